"""Index sets: which keys a query at position `t` sees, without a word about loops.

A static set is a union of ranges whose ends are `min(floor((t + offset) / divisor), cap)`; a gathered set
is the result of a block top-k. From the former the templates derive tile bounds and masks, from the latter
that keys are gathered by block.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from .errors import SpecError, nearest

END = None  # the open end of a bound: "up to the last key"


def require_size(owner: str, name: str, value: object, least: int = 1) -> None:
    """Raise `SpecError` unless `value` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpecError(f"{owner}.{name} = {value!r} is not allowed: it must be an integer >= {least}")


def _require_a(kind: type, owner: str, name: str, value: object, what: str) -> None:
    """Raise `SpecError` unless `value` is a `kind`, for which a bool counts only if that is meant."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SpecError(f"{owner}.{name} = {value!r} is not allowed: it must be {what}")


def require_choice(owner: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise `SpecError` unless `value` is one of the words `allowed`."""
    if value not in allowed:
        raise SpecError(f"{owner}.{name} = {value!r} is not allowed: {nearest(str(value), allowed)}")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A bound on key indices, non-decreasing in `t`: `min(floor((t + offset) / divisor), cap)`.

    `divisor = 0` leaves out the term in `t`, so that `cap` alone remains; `cap = END` is no cap.
    """

    offset: int = 0
    divisor: int = 0
    cap: int | None = END

    def __post_init__(self) -> None:
        _require_a(int, "Bound", "offset", self.offset, "an integer")
        require_size("Bound", "divisor", self.divisor, least=0)
        if self.cap is not END:
            _require_a(int, "Bound", "cap", self.cap, "an integer, or END for none")

    def at(self, t: int, keys: int) -> int:
        """Return the bound for position `t`, clamped into `0 .. keys`."""
        value = keys if self.divisor == 0 else (t + self.offset) // self.divisor
        if self.cap is not END:
            value = min(value, self.cap)
        return max(0, min(value, keys))

    def __str__(self) -> str:
        if self.divisor == 0:
            return "end" if self.cap is END else str(self.cap)
        term = "t" if self.offset == 0 else f"t{self.offset:+d}"
        if self.divisor > 1:
            term = f"({term})//{self.divisor}"
        return term if self.cap is END else f"min({term}, {self.cap})"


@dataclass(frozen=True, kw_only=True)
class Range:
    """The keys `lo(t) <= i < hi(t)`."""

    lo: Bound
    hi: Bound

    def __post_init__(self) -> None:
        for name in ("lo", "hi"):
            _require_a(Bound, "Range", name, getattr(self, name), "a Bound, such as Bound(cap=0)")

    def __str__(self) -> str:
        return f"[{self.lo}, {self.hi})"


@dataclass(frozen=True, kw_only=True)
class RangeSet:
    """A union of ranges, in ascending order of their lower ends; the keys are streamed.

    Build one with `causal`, `window`, `first`, `complete` or `everything`, and join them with `|`.
    """

    kind: ClassVar[str] = "streamed"
    ranges: tuple[Range, ...]
    text: str = field(init=False, repr=False, compare=False)  # the ranges as JSON, which torch ops take as a string

    def __post_init__(self) -> None:
        _require_a(tuple, "RangeSet", "ranges", self.ranges, "a tuple of Range")
        for one in self.ranges:
            _require_a(Range, "RangeSet", "ranges", one, "a tuple of Range")
        if not self.ranges:
            raise SpecError("RangeSet.ranges = () is not allowed: give at least one range")
        object.__setattr__(self, "text", json.dumps(self.to_json(), separators=(",", ":")))
        for before, after in zip(self.ranges, self.ranges[1:], strict=False):
            if not _never_above(before.lo, after.lo):
                raise SpecError(
                    f"RangeSet.ranges = {self} is not allowed: ranges must be in ascending order of their lower ends; "
                    f"swap the two sides of '|'"
                )

    def __or__(self, other: RangeSet) -> RangeSet:
        if not isinstance(other, RangeSet):
            raise _no_union(self, other)
        return RangeSet(ranges=self.ranges + other.ranges)

    def __ror__(self, other: object) -> RangeSet:
        raise _no_union(other, self)

    def sees(self, t: int, key: int, keys: int) -> bool:
        """Return whether the query at position `t` sees key `key` of `keys`."""
        return any(r.lo.at(t, keys) <= key < r.hi.at(t, keys) for r in self.ranges)

    def count(self, t: int, keys: int) -> int:
        """Return how many of `keys` keys the query at position `t` sees."""
        total, end = 0, 0
        for lo, hi in sorted((r.lo.at(t, keys), r.hi.at(t, keys)) for r in self.ranges):
            total += max(0, hi - max(end, lo))
            end = max(end, hi)
        return total

    def to_json(self) -> list[dict[str, Any]]:
        """Return the ranges as plain data, stable across processes."""
        return [asdict(r) for r in self.ranges]

    @staticmethod
    def from_json(rows: list[dict[str, Any]]) -> RangeSet:
        """Return the set that `to_json` described."""
        return RangeSet(ranges=tuple(Range(lo=Bound(**r["lo"]), hi=Bound(**r["hi"])) for r in rows))

    def __str__(self) -> str:
        return " | ".join(str(r) for r in self.ranges)


def _no_union(one: object, other: object) -> SpecError:
    return SpecError(
        f"{one} | {other} is not allowed: only range sets join, such as first(4) | window(64); what a top-k lists "
        f"needs a Path of its own"
    )


def _never_above(before: Bound, after: Bound) -> bool:
    """Return whether `before.at(t, keys) <= after.at(t, keys)` for every `t >= 0` and every number of keys.

    A bound reaches the value `v >= 1` at `t = max(0, v * divisor - offset)`, or never if `v` passes its cap. So
    `before` must reach no value sooner than `after` does: a comparison of two lines in `v`, settled at its ends.
    """
    last = before.cap  # the greatest value that `before` reaches
    if last is not END and last < 1:
        return True
    if after.cap is not END and (last is END or after.cap < last):
        return False
    if after.divisor == 0:
        return True  # `after` reaches everything at t = 0
    slope = before.divisor - after.divisor
    gap = (before.offset if before.divisor else 0) - after.offset
    start = max(1, after.offset // after.divisor + 1)  # the least value that `after` does not have at t = 0
    if last is END:
        return slope >= 0 and start * slope >= gap
    return start > last or min(start * slope, last * slope) >= gap


SCORES = ("mean_key", "compressed")


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The tokens, up to `t`, of the `n` best blocks of `block` keys; the keys are gathered.

    Forced blocks count toward `n` and come first: the block of `t` with the `local - 1` before it, and the
    first `initial` ones. `score` is `"mean_key"` or `"compressed"`; the latter reads the softmax over the
    compressed tokens of the program's path named `source`.
    """

    kind: ClassVar[str] = "gathered"
    score: str
    n: int
    block: int
    initial: int = 0
    local: int = 1
    source: str = "compressed"
    causal: bool = True

    def __post_init__(self) -> None:
        require_choice("TopK", "score", self.score, SCORES)
        require_size("TopK", "n", self.n)
        require_size("TopK", "block", self.block)
        require_size("TopK", "initial", self.initial, least=0)
        require_size("TopK", "local", self.local)
        _require_a(str, "TopK", "source", self.source, "the name of a path, such as 'compressed'")
        _require_a(bool, "TopK", "causal", self.causal, "True or False")
        if self.n < self.initial + self.local:
            raise SpecError(
                f"TopK.n = {self.n} is not allowed: {self.initial} initial and {self.local} local blocks are forced "
                f"and count toward it; use n >= {self.initial + self.local}"
            )

    def __or__(self, other: object) -> TopK:
        raise _no_union(self, other)

    def count(self, t: int, keys: int) -> int:
        """Return how many tokens the query at position `t` sees."""
        current = t // self.block
        chosen = min(self.n, current + 1)
        last = min((current + 1) * self.block, keys) if not self.causal else min(t + 1, keys)
        return (chosen - 1) * self.block + max(0, last - current * self.block)

    def __str__(self) -> str:
        forced = f"{self.initial} initial, {self.local} local"
        return f"top_k({self.score}, n={self.n}, block={self.block}, {forced})"


IndexSet = RangeSet | TopK


def causal() -> RangeSet:
    """Every key up to the query's own position: `0 .. t`."""
    return RangeSet(ranges=(Range(lo=Bound(cap=0), hi=Bound(offset=1, divisor=1)),))


def window(w: int) -> RangeSet:
    """The last `w` keys, the query's own included: `t-w+1 .. t`."""
    require_size("window", "w", w)
    return RangeSet(ranges=(Range(lo=Bound(offset=1 - w, divisor=1), hi=Bound(offset=1, divisor=1)),))


def first(n: int) -> RangeSet:
    """The first `n` keys that are not after the query: `0 .. min(n - 1, t)` (sink tokens)."""
    require_size("first", "n", n)
    return RangeSet(ranges=(Range(lo=Bound(cap=0), hi=Bound(offset=1, divisor=1, cap=n)),))


def complete(kernel: int, stride: int) -> RangeSet:
    """The compressed tokens whose window has ended: `i * stride + kernel - 1 <= t`."""
    require_size("complete", "kernel", kernel)
    require_size("complete", "stride", stride)
    return RangeSet(ranges=(Range(lo=Bound(cap=0), hi=Bound(offset=stride - kernel + 1, divisor=stride)),))


def everything() -> RangeSet:
    """Every key, whatever the position (`causal=False`)."""
    return RangeSet(ranges=(Range(lo=Bound(cap=0), hi=Bound()),))


def top_k(
    score: str, *, n: int, block: int, initial: int = 0, local: int = 1, source: str = "compressed", causal: bool = True
) -> TopK:
    """The tokens of the `n` best blocks of `block` keys under `score`; see `TopK`."""
    return TopK(score=score, n=n, block=block, initial=initial, local=local, source=source, causal=causal)
