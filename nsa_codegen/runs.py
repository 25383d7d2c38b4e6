"""How the backward of a CPU's attention cuts queries into runs: for its templates and for whoever launches them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from .desc import KernelDesc
from .index_sets import RangeSet, causal, everything
from .tiling import ceil_div, padded

SUMS_SCALE = math.log(2)  # of what a gathered attention leaves for dk: of scores in log2 units
KEYS_PER_TASK = 64  # keys whose gradients one task adds up from the runs of queries
LEAST_RUN, MOST_RUNS = 64, 64  # queries of a run in a CPU's backward, and runs of a sequence
ENOUGH_RUNS = 128  # runs of all batch rows and heads together
LEAST_PARTS = 1 << 23  # numbers that the gradients of runs may always take; else half as many as q and out have
FEW_RUNS = 8  # of all rows together: threads wait for the last of so few, and up to twice as many may take twice that


def reach_of(desc: KernelDesc) -> RangeSet:
    """Return the keys that a query of a gathered attention may see of listed blocks."""
    return causal() if desc.word("reach") == "causal" else everything()


@dataclass(frozen=True, kw_only=True)
class Runs:
    """How a CPU's backward cuts queries into tasks: `count` runs of `queries`, none of which sees over `reach` keys.

    Each run sums gradients of keys and values in a place of its own. Nothing here depends on the number of threads.
    """

    queries: int
    count: int
    reach: int

    @classmethod
    def of_attention(
        cls, visible: RangeSet, *, batch: int, kv_heads: int, group: int, tokens: int, keys: int, q_start: int,
        dk: int, dv: int,
    ) -> Runs:  # fmt: skip
        """Return the runs of an attention's backward; what they leave has half the numbers of q and out, or a few."""
        rows = batch * kv_heads
        room = rows * tokens * group * (dk + dv) // 2
        width = padded(dk) + padded(dv)
        return cls.of(visible, tokens=tokens, keys=keys, q_start=q_start, rows=rows, width=width, room=room)

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def of(cls, visible: RangeSet, *, tokens: int, keys: int, q_start: int, rows: int, width: int, room: int) -> Runs:
        """Return as many runs as leave room for the gradients of all of them, and no more than there is use for.

        `rows` are batch rows times key/value heads, `width` is how many numbers the gradients of a key take, and `room`
        how many those of all runs may.
        """
        most = max(1, min(MOST_RUNS, ENOUGH_RUNS // max(rows, 1)))
        queries = LEAST_RUN * max(1, ceil_div(tokens, LEAST_RUN * most))
        while True:
            count = ceil_div(tokens, queries)
            firsts = range(q_start, q_start + tokens, queries)
            lasts = (min(first + queries, q_start + tokens) - 1 for first in firsts)
            reach = max((_reach(visible, *run, keys) for run in zip(firsts, lasts, strict=True)), default=0)
            least = 2 * LEAST_PARTS if FEW_RUNS < rows * count <= 2 * FEW_RUNS else LEAST_PARTS
            if count <= 1 or rows * width * count * reach <= max(least, room):
                return cls(queries=queries, count=count, reach=reach)
            queries *= 2


def _reach(visible: RangeSet, first: int, last: int, keys: int) -> int:
    """Return from the first to past the last key that the queries `first` to `last` see."""
    begin = visible.ranges[0].lo.at(first, keys)
    return max(0, max(span.hi.at(last, keys) for span in visible.ranges) - begin)


@functools.lru_cache(maxsize=1024)
def keys_passed(visible: RangeSet, *, tokens: int, keys: int, q_start: int, queries: int, run: int) -> int:
    """Return the most keys that a tile of `queries` queries of a run passes over: ranges that overlap count once."""
    most = 0
    for start in range(0, tokens, run):
        stop = min(start + run, tokens)
        for first in range(start, stop, queries):
            last, end, total = min(first + queries, stop) - 1, 0, 0
            for span in visible.ranges:
                begin = max(end, span.lo.at(q_start + first, keys))
                end = max(begin, span.hi.at(q_start + last, keys))
                total += end - begin
            most = max(most, total)
    return most
