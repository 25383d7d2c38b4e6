"""`KernelDesc`: one kernel to be made, with its static dimensions. Sequence length, batch and heads are run-time."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from .errors import SpecError
from .index_sets import RangeSet, require_choice

DTYPES = ("float32", "bfloat16", "float16")
DIRECTIONS = ("fwd", "bwd")
PACKED, PAIRS, PLAIN = "packed", "pairs", "plain"  # listed blocks: as float32, in pairs, or read where they are
LAYOUTS = {False: ("columns", "rows"), True: ("column_pairs", "row_pairs")}  # of packed blocks, by whether in pairs
_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True, kw_only=True)
class KernelDesc:
    """One op in one direction with its compile-time facts.

    `dims` holds named static sizes and words (`group`, `dk`, `block`, ...), sorted by name; `visible` is the
    index set of a streamed attention.
    """

    op: str
    dtype: str
    direction: str = "fwd"
    dims: tuple[tuple[str, int | str], ...] = ()
    visible: RangeSet | None = None

    def __post_init__(self) -> None:
        require_choice("KernelDesc", "dtype", self.dtype, DTYPES)
        require_choice("KernelDesc", "direction", self.direction, DIRECTIONS)
        object.__setattr__(self, "dims", tuple(sorted(self.dims)))

    @classmethod
    def of(
        cls, op: str, dtype: str, *, direction: str = "fwd", visible: RangeSet | None = None, **dims: int | str
    ) -> KernelDesc:
        """Return a desc with `dims` given as keywords."""
        return cls(op=op, dtype=dtype, direction=direction, dims=tuple(dims.items()), visible=visible)

    def replace(self, **dims: int | str) -> KernelDesc:
        """Return the desc with some dims changed or added."""
        merged = {**dict(self.dims), **dims}
        return dataclasses.replace(self, dims=tuple(merged.items()))

    def size(self, name: str) -> int:
        """Return the static size called `name`."""
        value = self._find(name)
        if not isinstance(value, int):
            raise SpecError(f"KernelDesc.{name} = {value!r} is not a size in {self}")
        return value

    def word(self, name: str) -> str:
        """Return the static word called `name`."""
        return str(self._find(name))

    @property
    def streamed(self) -> RangeSet:
        """The index set of a streamed attention."""
        if self.visible is None:
            raise SpecError(f"KernelDesc of {self.op!r} has no index set; give visible=")
        return self.visible

    @functools.cached_property
    def _by_name(self) -> dict[str, int | str]:
        return dict(self.dims)

    def _find(self, name: str) -> int | str:
        if name in self._by_name:
            return self._by_name[name]
        raise SpecError(f"KernelDesc of {self.op!r} has no {name!r}; it has {[k for k, _ in self.dims]}")

    def to_json(self) -> dict[str, Any]:
        """Return the desc as plain data, stable across processes."""
        visible = None if self.visible is None else self.visible.to_json()
        return {
            "op": self.op,
            "direction": self.direction,
            "dtype": self.dtype,
            "dims": dict(self.dims),
            "visible": visible,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> KernelDesc:
        """Return the desc that `to_json` described."""
        visible = None if data["visible"] is None else RangeSet.from_json(data["visible"])
        return cls.of(data["op"], data["dtype"], direction=data["direction"], visible=visible, **data["dims"])

    @property
    def kind(self) -> str:
        """`<op>_<direction>`: the folder of the kernel and of its schedules."""
        return f"{self.op}_{self.direction}"

    @property
    def readable(self) -> str:
        """A name fit for a folder: dtype and dims; it need not be unique, the key beside it is."""
        parts = [_SHORT[self.dtype]]
        parts += [f"{k}{v}" if isinstance(v, int) else str(v) for k, v in self.dims]
        return "-".join(parts)

    def __str__(self) -> str:
        seen = "" if self.visible is None else f" in {self.visible}"
        return f"{self.kind}({self.dtype}, {', '.join(f'{k}={v}' for k, v in self.dims)}){seen}"


def with_lse(desc: KernelDesc) -> KernelDesc:
    """Return the desc of a selection that is given the log-sum-exp of the attention whose weights score the blocks."""
    return desc.replace(lse="given")


def takes_lse(desc: KernelDesc) -> bool:
    """Return whether a desc is one of `with_lse`."""
    return dict(desc.dims).get("lse") == "given"
