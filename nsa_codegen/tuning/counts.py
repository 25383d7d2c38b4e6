"""How often the loops of a kernel run: over keys for tiles of queries, over queries for tiles of keys, over lists.

Counted tile by tile as the templates' loops do it, in numpy, and kept: candidates of one desc share most counts. What
depends on data that a judge has not got, which blocks a query lists, is an expectation for lists drawn at random.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..index_sets import Bound, RangeSet
from ..tiling import ceil_div

NOMINAL_LISTED = 16
Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps of the loops of one key/value head's tiles: `tiles` of them, `total` steps together, the `longest`.

    `partial` is the part of the steps in which some score has to be masked.
    """

    tiles: int
    total: float
    longest: float
    partial: float = 1.0

    @property
    def mean(self) -> float:
        """Steps of a tile on average."""
        return self.total / self.tiles if self.tiles else 0.0


def bound_at(bound: Bound, positions: Array, keys: int) -> Array:
    """Return `Bound.at` for many positions."""
    value = np.full_like(positions, keys) if bound.divisor == 0 else (positions + bound.offset) // bound.divisor
    if bound.cap is not None:
        value = np.minimum(value, bound.cap)
    return np.clip(value, 0, keys)


@functools.lru_cache(maxsize=4096)
def steps_over_keys(
    visible: RangeSet, *, tokens: int, keys: int, q_start: int, queries: int, width: int, run: int = 0
) -> tuple[Steps, float]:
    """Return the steps of tiles of `queries` queries over their ranges, `width` keys each, and the keys that they pass.

    The keys are those of all tiles together; the last step of a range may be short of `width`. With `run` no tile
    reaches beyond its run of so many queries, and `longest` is that of a run's tiles together.
    """
    starts = np.arange(0, tokens, run or max(1, tokens))
    inside = np.arange(0, run or tokens, queries)
    first, stop = (starts[:, None] + inside).ravel(), np.repeat(starts + (run or tokens), len(inside))
    first, stop = first[first < tokens], stop[first < tokens]
    runs = first // run if run else np.arange(len(first))
    last = q_start + np.minimum(np.minimum(first + queries, stop), tokens) - 1
    first = q_start + first
    steps, partial, passed = np.zeros_like(first), np.zeros_like(first), 0
    end = np.zeros_like(first)
    for span in visible.ranges:
        begin = np.maximum(end, bound_at(span.lo, first, keys))
        end = np.maximum(begin, bound_at(span.hi, last, keys))
        count = -((begin - end) // width)
        steps += count
        passed += int((end - begin).sum())
        seen_by_all = np.clip(bound_at(span.hi, first, keys) - bound_at(span.lo, last, keys), 0, None) // width
        partial += np.maximum(count - seen_by_all, 0)
    total = int(steps.sum())
    share = float(partial.sum()) / total if total else 0.0
    longest = int(np.bincount(runs, weights=steps).max(initial=0))
    return Steps(tiles=len(first), total=total, longest=longest, partial=share), float(passed)


@functools.lru_cache(maxsize=4096)
def keys_of_runs(visible: RangeSet, *, tokens: int, keys: int, q_start: int, run: int) -> int:
    """Return the keys from the first to the last that a run of `run` queries sees, of all runs together."""
    first = q_start + np.arange(0, tokens, run)
    last = np.minimum(first + run, q_start + tokens) - 1
    begin = bound_at(visible.ranges[0].lo, first, keys)
    end = np.maximum.reduce([bound_at(span.hi, last, keys) for span in visible.ranges])
    return int(np.maximum(end - begin, 0).sum())


@functools.lru_cache(maxsize=4096)
def steps_over_queries(visible: RangeSet, *, tokens: int, keys: int, q_start: int, wide: int, queries: int) -> Steps:
    """Return the steps of tiles of `wide` keys over the queries that see some of them, `queries` a step.

    One loop runs from the first to the last query of all ranges.
    """
    j0 = np.arange(0, keys, wide)
    end = np.minimum(j0 + wide, keys)
    first, last = np.full_like(j0, tokens), np.zeros_like(j0)
    for span in visible.ranges:
        begin = _first_query(span.hi, j0, tokens, q_start)
        past = _past_query(span.lo, end, tokens, q_start)
        first = np.minimum(first, begin)
        last = np.maximum(last, np.where(begin < tokens, np.maximum(past, begin), 0))
    steps = -(np.minimum(first - last, 0) // queries)
    return Steps(tiles=len(j0), total=int(steps.sum()), longest=int(steps.max(initial=0)))


@functools.lru_cache(maxsize=4096)
def listed_blocks(
    *, tokens: int, q_start: int, block: int, n: int, queries: int, causal: bool, keys: int, shared: float = 0.0
) -> Steps:
    """Return the distinct blocks that tiles of `queries` queries list, `n` each, in expectation.

    A query lists no block that begins after it. The part `shared` of a list is that of the whole tile, and the rest is
    drawn at random from the blocks up to it.
    """
    first = q_start + np.arange(0, tokens, queries)
    last = np.minimum(first + queries, q_start + tokens) - 1
    there = np.full(first.shape, ceil_div(max(keys, 1), block), dtype=np.float64)
    if causal:
        there = np.minimum(there, last // block + 1)
    common = np.minimum(shared * n, there)
    left = np.maximum(there - common, 1e-9)
    share = np.clip((np.minimum(n, there) - common) / left, 0.0, 1.0)
    distinct = common + left * (1.0 - (1.0 - share) ** (last - first + 1))
    return Steps(tiles=len(first), total=float(distinct.sum()), longest=float(distinct.max(initial=0.0)))


@functools.lru_cache(maxsize=4096)
def listing_queries(*, tokens: int, keys: int, q_start: int, block: int, queries: int, piece: int) -> tuple[Steps, int]:
    """Return the steps of blocks of keys over the queries that list them, `queries` a step, for causal random lists.

    Lists longer than `piece` are cut into pieces, whose number comes second, and leave an empty one. A desc of that
    loop does not say how many blocks a query lists: `NOMINAL_LISTED`.
    """
    positions = np.arange(q_start, q_start + tokens)
    share = np.minimum(1.0, NOMINAL_LISTED / (positions // block + 1))
    later = np.concatenate([np.cumsum(share[::-1])[::-1], [0.0]])
    listing = later[np.clip(np.arange(0, max(keys, 1), block) - q_start, 0, tokens)]
    pieces = int(np.ceil(listing[listing > piece] / piece).sum())
    total = float(np.ceil(listing / queries).sum())
    longest = float(np.ceil(np.minimum(listing, piece) / queries).max())
    return Steps(tiles=len(listing) + pieces, total=total, longest=longest), pieces


def _first_query(hi: Bound, key: Array, tokens: int, q_start: int) -> Array:
    """Return the first query whose range ends after `key`; `tokens` if there is none."""
    first = (key + 1) * hi.divisor - hi.offset - q_start if hi.divisor else np.zeros_like(key)
    first = np.clip(first, 0, tokens)
    return first if hi.cap is None else np.where(key < hi.cap, first, tokens)


def _past_query(lo: Bound, end: Array, tokens: int, q_start: int) -> Array:
    """Return the first query whose range begins at `end` or later; `tokens` if there is none."""
    if lo.divisor == 0:
        return np.where(end > (lo.cap or 0), tokens, 0) if lo.cap is not None else np.zeros_like(end)
    past = np.clip(end * lo.divisor - lo.offset - q_start, 0, tokens)
    return past if lo.cap is None else np.where(end > lo.cap, tokens, past)
