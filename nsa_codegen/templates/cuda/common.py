"""What every GPU kernel shares: the tile of (query, head) rows, steps over ranges of keys, masks, and the softmax.

Extents of pipelined loops start at 0, and what a copy reads never hangs on data: positions are clamped and scores
masked, so that copies stay asynchronous.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...index_sets import Bound, RangeSet
from ...splits import holds_weights
from ...target import GpuTarget
from ...tiling import BlockTile, RowTile

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453


def negative_infinity() -> Any:
    """Return float32 minus infinity."""
    return -T.infinity("float32")


def bound_at(bound: Bound, position: Any, keys: Any) -> Any:
    """Return the expression of `bound` for a query at `position`, clamped into `0 .. keys`.

    Division truncates: for a negative numerator that gives 0 at most, which the clamp gives as well.
    """
    if bound.divisor == 0:
        value = keys
    elif bound.divisor == 1:
        value = position + bound.offset
    else:
        value = T.truncdiv(position + bound.offset, bound.divisor)
    if bound.cap is not None:
        value = T.min(value, bound.cap)
    return T.max(0, T.min(value, keys))


def row_query(tile: RowTile, row: Any) -> Any:
    """Return the query of the tile that a row belongs to."""
    return row if tile.heads == 1 else T.truncdiv(row, tile.heads)


def row_head(tile: RowTile, row: Any, chunk: Any) -> Any:
    """Return the head of the group that a row belongs to."""
    if tile.heads == 1:
        return chunk
    head = T.truncmod(row, tile.heads)
    return head if tile.chunks == 1 else chunk * tile.heads + head


def is_row(tile: RowTile, row: Any, chunk: Any, group: int) -> Any:
    """Return whether a row of the tile stands for a query and a head; what is known at once is left out."""
    found = T.bool(True)
    if tile.queries * tile.heads < tile.lanes:
        found = T.And(found, row < tile.queries * tile.heads)
    if tile.chunks * tile.heads > group:
        found = T.And(found, row_head(tile, row, chunk) < group)
    return found


def load_rows(tile: RowTile, group: int, dim: int) -> Any:
    """Return the macro that copies the rows of a tile [rows, dim] from `x` [batch, tokens, heads, dim].

    Positions and heads are clamped: a row that is none gets another's data, and its results are left out.
    """

    @T.macro
    def load(x, staged, b, h, t0, chunk, tokens):
        for i, c in T.Parallel(tile.lanes, dim):
            staged[i, c] = x[
                b,
                T.min(t0 + row_query(tile, i), tokens - 1),
                h * group + T.min(row_head(tile, i, chunk), group - 1),
                c,
            ]

    return load


def load_row_values(tile: RowTile, group: int) -> Any:
    """Return the macro that copies one float32 of each row of a tile from `x` [batch, tokens, heads], so too."""

    @T.macro
    def load(x, staged, b, h, t0, chunk, tokens):
        for i in T.Parallel(tile.lanes):
            staged[i] = x[
                b,
                T.min(t0 + row_query(tile, i), tokens - 1),
                h * group + T.min(row_head(tile, i, chunk), group - 1),
            ]

    return load


def store_rows(tile: RowTile, group: int, dim: int) -> Any:
    """Return the macro that writes the rows [rows, dim] that are any to `x` [batch, tokens, heads, dim]."""

    @T.macro
    def store(held, x, b, h, t0, chunk, tokens):
        for i, c in T.Parallel(tile.lanes, dim):
            if T.And(t0 + row_query(tile, i) < tokens, is_row(tile, i, chunk, group)):
                x[b, t0 + row_query(tile, i), h * group + row_head(tile, i, chunk), c] = held[i, c]

    return store


def store_row_values(tile: RowTile, group: int) -> Any:
    """Return the macro that writes one float32 of each row that is one to `x` [batch, tokens, heads]."""

    @T.macro
    def store(held, x, b, h, t0, chunk, tokens):
        for i in T.Parallel(tile.lanes):
            if T.And(t0 + row_query(tile, i) < tokens, is_row(tile, i, chunk, group)):
                x[b, t0 + row_query(tile, i), h * group + row_head(tile, i, chunk)] = held[i]

    return store


class Segments:
    """The steps of one loop over the keys that a tile of queries sees, `width` keys each, one range after the other.

    `bounds` [ranges + 1, 3] holds begin, end and first step of each range, so that loops hang on plain variables; a
    range begins where the one before has ended.
    """

    def __init__(self, visible: RangeSet, bounds: Any, width: int) -> None:
        self.ranges, self.bounds, self.width = visible.ranges, bounds, width

    def start(self, step: Any) -> Any:
        """Return the first key of a step."""
        return self._of_range(step, lambda r: self.bounds[r, 0] - self.bounds[r, 2] * self.width) + step * self.width

    def end(self, step: Any) -> Any:
        """Return the key at which the range of a step ends."""
        return self._of_range(step, lambda r: self.bounds[r, 1])

    def _of_range(self, step: Any, value: Any) -> Any:
        found = value(0)
        for r in range(1, len(self.ranges)):
            found = found + T.cast(step >= self.bounds[r, 2], "int32") * (value(r) - value(r - 1))
        return found


def set_bounds(visible: RangeSet, width: int) -> Any:
    """Return the macro that fills `bounds` for a tile of queries at `first .. last`; the last entry counts steps."""

    @T.macro
    def fill(bounds, first, last, keys):
        bounds[0, 2] = 0
        for r, span in enumerate(visible.ranges):
            bounds[r, 0] = T.max(bounds[r - 1, 1] if r else 0, bound_at(span.lo, first, keys))
            bounds[r, 1] = T.max(bounds[r, 0], bound_at(span.hi, last, keys))
            bounds[r + 1, 2] = bounds[r, 2] + T.ceildiv(bounds[r, 1] - bounds[r, 0], width)

    return fill


def sees(visible: RangeSet, position: Any, key: Any, keys: Any) -> Any:
    """Return whether the query at `position` sees `key`."""
    found = None
    for span in visible.ranges:
        inside = key < bound_at(span.hi, position, keys)
        if span.lo != Bound(cap=0):  # a key is never before the first one
            inside = T.And(bound_at(span.lo, position, keys) <= key, inside)
        found = inside if found is None else T.Or(found, inside)
    return found


def sees_in_step(visible: RangeSet, steps: Segments, step: Any, position: Any, key: Any, keys: Any) -> Any:
    """Return whether the query at `position` sees `key` in a step, which leaves keys of other ranges to their steps."""
    found = sees(visible, position, key, keys)
    return found if len(visible.ranges) == 1 else T.And(key < steps.end(step), found)


def softmax_step(rows: int, width: int, depth: int) -> Any:
    """Return the macro of one step of the running softmax over scores [rows, width] in log2 units.

    It turns scores into weights, and rescales the outputs [rows, depth] of the steps before; a row that has
    seen no key yet keeps the maximum -inf, a total of 0 and outputs of 0.
    """

    @T.macro
    def step(s, weights, o, top, total, before, scaled, summed):
        T.copy(top, before)
        T.reduce_max(s, top, dim=1, clear=False)
        for i in T.Parallel(rows):
            scaled[i] = T.if_then_else(top[i] == negative_infinity(), 0.0, top[i])
        for i, j in T.Parallel(rows, width):
            s[i, j] = T.exp2(s[i, j] - scaled[i])
        T.reduce_sum(s, summed, dim=1)
        for i in T.Parallel(rows):
            before[i] = T.exp2(before[i] - scaled[i])
            total[i] = total[i] * before[i] + summed[i]
        T.copy(s, weights)
        for i, c in T.Parallel(rows, depth):
            o[i, c] = o[i, c] * before[i]

    return step


def finish_softmax(rows: int, depth: int) -> Any:
    """Return the macro that divides outputs by the total, and turns the maximum into the natural log-sum-exp."""

    @T.macro
    def finish(o, top, total):
        for i, c in T.Parallel(rows, depth):
            o[i, c] = T.if_then_else(total[i] > 0, o[i, c] / total[i], 0.0)
        for i in T.Parallel(rows):
            top[i] = T.if_then_else(total[i] > 0, (top[i] + T.log2(total[i])) * LN_2, negative_infinity())

    return finish


DELTA_ROWS = 32  # rows of a thread block of the kernel that makes delta
DELTA_THREADS = 128


def row_deltas(depth: int) -> Any:
    """Return the macro that sets `delta` [batch, tokens, heads] to dout . out - dlse, for one run of rows.

    A row is reduced over a power of two of columns, for which alone TileLang finds a layout.
    """
    columns = 1 << (depth - 1).bit_length()

    def in_row(c: Any, value: Any) -> Any:
        return value if columns == depth else T.if_then_else(c < depth, value, 0.0)

    @T.macro
    def set_deltas(out, dout, dlse, delta, first, b, tokens, heads):
        products = T.alloc_fragment((DELTA_ROWS, columns), "float32")
        sums = T.alloc_fragment((DELTA_ROWS,), "float32")
        for i, c in T.Parallel(DELTA_ROWS, columns):
            row = T.min(first + i, tokens * heads - 1)
            products[i, c] = in_row(
                c,
                T.cast(dout[b, T.truncdiv(row, heads), T.truncmod(row, heads), c], "float32")
                * T.cast(out[b, T.truncdiv(row, heads), T.truncmod(row, heads), c], "float32"),
            )
        T.reduce_sum(products, sums, dim=1)
        for i in T.Parallel(DELTA_ROWS):
            if first + i < tokens * heads:
                t = T.truncdiv(first + i, heads)
                delta[b, t, T.truncmod(first + i, heads)] = sums[i] - dlse[b, t, T.truncmod(first + i, heads)]

    return set_deltas


ADDED_ROWS = 16  # keys of a thread block that adds up what several have left of their gradients
ADDED_THREADS = 128


def add_parts(depth: int) -> Any:
    """Return the macro that adds up `count` of `parts` [any, batch, rows, heads, depth] from `first` on.

    The sums of `ADDED_ROWS` rows from `row` on, or of as many as there are, go to `grad` from the key `j0` on.
    """

    @T.macro
    def add(parts, grad, first, count, row, rows, j0, h, b):
        sums = T.alloc_fragment((ADDED_ROWS, depth), "float32")
        T.fill(sums, 0)
        for part in T.serial(count):
            for i, c in T.Parallel(ADDED_ROWS, depth):
                sums[i, c] += parts[first + part, b, row + T.min(i, rows - 1), h, c]
        for i, c in T.Parallel(ADDED_ROWS, depth):
            if i < rows:
                grad[b, j0 + i, h, c] = sums[i, c]

    return add


def weights_place(rows: int, threads: int, target: GpuTarget) -> tuple[Any, Any]:
    """Return how warps share a tile of keys past which queries go, and what allocates the weights between products."""
    if holds_weights(rows=rows, threads=threads, target=target):
        return T.GemmWarpPolicy.FullRow, T.alloc_fragment
    return T.GemmWarpPolicy.Square, T.alloc_shared


def log2_lse(rows: int) -> Any:
    """Return the macro that turns log-sum-exp into log2 units; a row that saw no key gets 0: its weights are masked."""

    @T.macro
    def convert(logs):
        for i in T.Parallel(rows):
            logs[i] = T.if_then_else(logs[i] == negative_infinity(), 0.0, logs[i] * LOG2_E)

    return convert


def load_blocks(block: int, blocks: BlockTile) -> Any:
    """Return the macro that copies the key blocks of a step of `listing[b, h, part]` from `x` to the tile `staged`.

    `x` is [batch, keys, heads, dim]. The list is read from memory, though masks have it in shared memory: TileLang
    takes what a copy reads there for what the next one writes, and puts a barrier between (docs/upstream.md).
    """

    def key_of(listing: Any, b: Any, h: Any, part: Any, step: Any, u: int = 0) -> Any:
        """The first key of a step's block `u`; no variable, which a loop split over warps would lose."""
        if blocks.parts > 1:
            entry, inner = T.truncdiv(step, blocks.parts), T.truncmod(step, blocks.parts) * blocks.wide
            return listing[b, h, part, entry] * block + inner
        return listing[b, h, part, step * blocks.together + u] * block

    @T.macro
    def load(x, staged, listing, part, step, b, h):
        for u in tuple(range(blocks.together)):
            T.copy(
                x[b, key_of(listing, b, h, part, step, u) : key_of(listing, b, h, part, step, u) + blocks.wide, h, :],
                staged[u * blocks.wide : (u + 1) * blocks.wide, :],
            )

    return load


def is_listed(desc: KernelDesc, tile: RowTile, blocks: BlockTile) -> Any:
    """Return the function (listed, sharers, step, row, column, first position, keys) -> whether a row sees a key."""
    block, causal = desc.size("block"), desc.word("reach") == "causal"

    def seen(listed: Any, sharers: Any, step: Any, i: Any, j: Any, position: Any, keys: Any) -> Any:
        if blocks.parts > 1:
            entry, inner = T.truncdiv(step, blocks.parts), T.truncmod(step, blocks.parts) * blocks.wide + j
        elif blocks.together == 1:
            entry, inner = step, j
        else:
            entry, inner = step * blocks.together + T.truncdiv(j, blocks.wide), T.truncmod(j, blocks.wide)
        key = listed[entry] * block + inner
        found = T.And((sharers[entry] >> row_query(tile, i)) & 1 != 0, key < keys)
        if blocks.parts > 1 or blocks.wide > block:
            found = T.And(found, inner < block)
        return T.And(found, key <= position + row_query(tile, i)) if causal else found

    return seen
