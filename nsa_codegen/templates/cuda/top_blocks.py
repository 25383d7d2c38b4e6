"""The running list of a query's best blocks, in registers of one thread, and the indices that are written at the end.

A query whose blocks all fit into its n slots needs no scores. Any other has `initial + local` forced blocks, and
`free = n - initial - local` slots for the best of the blocks between them.
"""

from dataclasses import dataclass
from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...tiling import ceil_div

LOWEST = -3.4028234663852886e38  # float32's lowest: what is no number ranks last among the candidates


@dataclass(frozen=True, kw_only=True)
class BestBlocks:
    """The lists of a tile of `queries`: slots, and which thread keeps which query's list.

    A thread keeps `each` lists; where there are more threads than queries, every `spread`-th keeps one.
    """

    block: int
    n: int
    initial: int
    local: int
    queries: int
    threads: int

    @classmethod
    def of(cls, desc: KernelDesc, queries: int, threads: int) -> "BestBlocks":
        """Return the lists of a selection `desc`."""
        sizes = {name: desc.size(name) for name in ("block", "n", "initial", "local")}
        return cls(queries=queries, threads=threads, **sizes)

    @property
    def free(self) -> int:
        """Slots that forced blocks leave."""
        return self.n - self.initial - self.local

    @property
    def slots(self) -> int:
        """Size of a list: `free`, at least 1."""
        return max(1, self.free)

    @property
    def each(self) -> int:
        """Lists of a thread."""
        return ceil_div(self.queries, self.threads)

    @property
    def spread(self) -> int:
        """Threads from one list to the next."""
        return max(1, self.threads // self.queries)

    def query(self, thread: Any, which: Any) -> Any:
        """Return the query in the tile whose list is a thread's list `which`."""
        return T.truncdiv(thread, self.spread) + which * self.threads

    def keeps(self, thread: Any, which: Any) -> Any:
        """Return whether the thread has that list."""
        return T.And(T.truncmod(thread, self.spread) == 0, self.query(thread, which) < self.queries)

    def candidates(self, position: Any) -> Any:
        """Return how many blocks, from block 0 on, have to be scored for the queries up to `position`."""
        if self.free <= 0:
            return T.int32(0)
        own = T.truncdiv(position, self.block)
        return T.if_then_else(own < self.n, 0, own - self.local + 1)


def clear_lists(best: BestBlocks) -> Any:
    """Return the macro that empties the lists: float32 `scores` and int32 `blocks`, [each, slots]."""

    @T.macro
    def clear(scores, blocks):
        for w in T.unroll(best.each):
            for s in T.unroll(best.slots):
                scores[w, s] = -T.infinity("float32")
                blocks[w, s] = -1

    return clear


def offer_blocks(best: BestBlocks, count: int) -> Any:
    """Return the macro that offers the blocks first .. first + count - 1, `offered` [queries, >= count], to the lists.

    Blocks come in ascending order, so that an equal one in the list is a lower one and stays before. Only a score
    above the list's least moves anything. Blocks from `past` on are not complete yet.
    """
    slots = best.slots

    @T.macro
    def offer(offered, scores, blocks, thread, first, past, position):
        score = T.alloc_local((1,), "float32")
        last = T.alloc_local((1,), "int32")
        for w in T.unroll(best.each):
            if best.keeps(thread, w):
                last[0] = T.min(past - 1, T.truncdiv(position + best.query(thread, w), best.block) - best.local)
                for y in T.serial(count):
                    score[0] = offered[best.query(thread, w), y]
                    score[0] = T.if_then_else(score[0] >= LOWEST, score[0], LOWEST)
                    if T.And(score[0] > scores[w, slots - 1], T.And(first + y >= best.initial, first + y <= last[0])):
                        for s in T.unroll(slots - 1):
                            if scores[w, slots - 2 - s] < score[0]:
                                scores[w, slots - 1 - s] = scores[w, slots - 2 - s]
                                blocks[w, slots - 1 - s] = blocks[w, slots - 2 - s]
                            else:
                                if scores[w, slots - 1 - s] < score[0]:
                                    scores[w, slots - 1 - s] = score[0]
                                    blocks[w, slots - 1 - s] = first + y
                        if scores[w, 0] < score[0]:
                            scores[w, 0] = score[0]
                            blocks[w, 0] = first + y

    return offer


def write_indices(best: BestBlocks) -> Any:
    """Return the macro that writes a tile's int32 indices [batch, tokens, kv_heads, n], ascending, -1 in the tail."""

    @T.macro
    def write(blocks, indices, thread, b, h, t0, tokens, q_start):
        own = T.alloc_local((1,), "int32")
        rank = T.alloc_local((1,), "int32")
        for w in T.unroll(best.each):
            if T.And(best.keeps(thread, w), t0 + best.query(thread, w) < tokens):
                own[0] = T.truncdiv(q_start + t0 + best.query(thread, w), best.block)
                if own[0] < best.n:
                    for s in T.serial(best.n):
                        indices[b, t0 + best.query(thread, w), h, s] = T.if_then_else(s <= own[0], s, -1)
                else:
                    for s in T.serial(best.initial):
                        indices[b, t0 + best.query(thread, w), h, s] = s
                    for s in T.unroll(best.free):
                        rank[0] = best.initial
                        for r in T.unroll(best.free):
                            rank[0] += T.cast(blocks[w, r] < blocks[w, s], "int32")
                        indices[b, t0 + best.query(thread, w), h, rank[0]] = blocks[w, s]
                    for s in T.serial(best.local):
                        indices[b, t0 + best.query(thread, w), h, best.n - best.local + s] = own[0] - best.local + 1 + s

    return write
