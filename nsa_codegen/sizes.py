"""How large sizes and positions may be: of what kernels make of them, in 32 bits, nothing overflows."""

from __future__ import annotations

from typing import Any

from . import index_sets
from .errors import SpecError
from .index_sets import IndexSet, TopK

MAX_POSITION = 2**30  # positions, of queries and of keys
MAX_SIZE = MAX_POSITION - 2**16  # a position, a size or an offset, and a tile together stay below 2**31


def require_size(owner: str, name: str, value: object, least: int = 1) -> None:
    """Raise `SpecError` unless `value` is an int from `least` to `MAX_SIZE`."""
    index_sets.require_size(owner, name, value, least)
    _require_within(owner, name, value, least)


def require_numbers(owner: str, visible: IndexSet) -> None:
    """Raise `SpecError` unless the numbers of an index set are at most `MAX_SIZE`, and at most as much below 0."""
    if isinstance(visible, TopK):
        for name in ("n", "block", "initial", "local"):
            _require_within(f"{owner}: TopK", name, getattr(visible, name))
        return
    for bound in (bound for span in visible.ranges for bound in (span.lo, span.hi)):
        for name in ("offset", "divisor", "cap"):
            if (value := getattr(bound, name)) is not index_sets.END:
                _require_within(f"{owner}: Bound", name, value)


def _require_within(owner: str, name: str, value: Any, least: int = -MAX_SIZE) -> None:
    """Raise `SpecError` unless `value`, which is known to be an int, is within the limits."""
    if not least <= value <= MAX_SIZE:
        raise SpecError(
            f"{owner}.{name} = {value!r} is not allowed: it must be an integer from {least} to {MAX_SIZE}, so that "
            f"positions and sizes add up in 32 bits"
        )
