"""Block selection, forward: block scores and their top-n, with no score matrix in memory (paper eq. 8-11).

A thread block is a tile of queries of one key/value head. `compressed` streams the compressed tokens for block scores,
which go to the queries' running lists; before that, for the softmax's maximum and sum, unless the attention over the
same tokens has left its log-sum-exp. `mean_key` scores the group's summed query against the mean key of each complete
block.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc, takes_lse
from ...errors import ScheduleError
from ...index_sets import complete
from ...schedule import GpuSchedule
from ...target import GpuTarget
from ...tiling import RowTile, ceil_div
from .common import LOG2_E, bound_at, load_row_values, load_rows, negative_infinity, row_query
from .top_blocks import BestBlocks, clear_lists, offer_blocks, write_indices

PADDING = 8  # float32 columns that keep the rows of a tile of accumulators in different banks


def get_select_blocks_fwd_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel for `desc` (`method`, `group`, `dk`, `block`, `n`, `initial`, `local`): q, k -> indices."""
    if desc.word("method") == "compressed":
        return compressed_kernel(desc, schedule)
    return mean_key_kernel(desc, schedule)


def compressed_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernel of the paper's selection, q, k, and `lse` if given, -> indices; a tile holds whole groups.

    Block j is scored when its last compressed token has passed. What it takes from the tile before, at most `history`
    sums over the group's heads, is carried over, so that every block is summed in the same order.
    """
    dtype, group, dk, rows, width = desc.dtype, desc.size("group"), desc.size("dk"), schedule.rows, schedule.key_tile
    per_block, per_window = desc.size("block") // desc.size("stride"), desc.size("kernel") // desc.size("stride")
    (seen,) = complete(desc.size("kernel"), desc.size("stride")).ranges
    tile, threads = RowTile.of(group, rows), schedule.threads
    queries, heads = tile.queries, tile.heads
    if tile.chunks > 1:
        raise ScheduleError(
            f"select_blocks: rows = {rows} do not hold the {group} heads of a group, over which scores are summed; "
            f"use a schedule with rows >= {group}"
        )
    history = per_window - 1 + (0 if width % per_block == 0 else per_block - 1)
    in_tile, most = ceil_div(width, per_block), min(per_block, per_window)
    best, given = BestBlocks.of(desc, queries, threads), takes_lse(desc)
    batch, tokens, keys, kv_heads = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads"))

    @T.macro
    def sum_heads(weights, line, thread):
        """Add each query's weights over its heads, and append the sums to `line` behind the history."""
        total = T.alloc_local((1,), "float32")
        for e in T.serial(ceil_div(queries * width, threads)):
            item = e * threads + thread
            if item < queries * width:
                total[0] = 0.0
                for g in T.serial(heads):
                    total[0] += weights[T.truncdiv(item, width) * heads + g, T.truncmod(item, width)]
                line[T.truncdiv(item, width), history + T.truncmod(item, width)] = total[0]

    @T.macro
    def sum_blocks(line, offered, thread, behind):
        """Score the blocks that end in this tile; the first begins `behind` tokens before it."""
        total = T.alloc_local((1,), "float32")
        for e in T.serial(ceil_div(queries * in_tile, threads)):
            item = e * threads + thread
            if item < queries * in_tile:
                total[0] = 0.0
                for v in T.serial(per_block + per_window - 1):  # token v - per_window + 1 of the block, so many times
                    times = T.cast(T.min(T.min(v + 1, per_block + per_window - 1 - v), most), "float32")
                    place = history - behind + T.truncmod(item, in_tile) * per_block + v - per_window + 1
                    total[0] += times * line[T.truncdiv(item, in_tile), T.min(place, history + width - 1)]
                offered[T.truncdiv(item, in_tile), T.truncmod(item, in_tile)] = total[0]

    @T.macro
    def carry(line, thread):
        """Move the last `history` sums to the front."""
        kept = T.alloc_local((max(1, ceil_div(queries * history, threads)),), "float32")
        for e in T.unroll(ceil_div(queries * history, threads)):
            item = T.min(e * threads + thread, queries * history - 1)
            kept[e] = line[T.truncdiv(item, history), width + T.truncmod(item, history)]
        T.sync_threads()
        for e in T.unroll(ceil_div(queries * history, threads)):
            item = e * threads + thread
            if item < queries * history:
                line[T.truncdiv(item, history), T.truncmod(item, history)] = kept[e]

    @T.macro
    def add_to_totals(s, top, total, before, scaled, summed):
        """Take a tile of scores into the running maximum and sum of each row."""
        T.copy(top, before)
        T.reduce_max(s, top, dim=1, clear=False)
        for i in T.Parallel(rows):
            scaled[i] = T.if_then_else(top[i] == negative_infinity(), 0.0, top[i])
        for i, j in T.Parallel(rows, width):
            s[i, j] = T.exp2(s[i, j] - scaled[i])
        T.reduce_sum(s, summed, dim=1)
        for i in T.Parallel(rows):
            total[i] = total[i] * T.exp2(before[i] - scaled[i]) + summed[i]

    @T.macro
    def score_blocks(s, weights, line, offered, scores, blocks, top, total, scaled, summed, j0, first, thread):
        """Turn a tile of scores into weights, and offer the blocks that end in it to the queries from `first` on."""
        for i in T.Parallel(rows):
            scaled[i] = T.if_then_else(total[i] > 0, top[i], 0.0)
            summed[i] = T.if_then_else(total[i] > 0, 1.0 / total[i], 0.0)
        for i, j in T.Parallel(rows, width):
            weights[i, j] = T.exp2(s[i, j] - scaled[i]) * summed[i]
        sum_heads(weights, line, thread)
        sum_blocks(line, offered, thread, T.truncmod(j0, per_block))
        offer_blocks(best, in_tile)(
            offered,
            scores,
            blocks,
            thread,
            T.truncdiv(j0, per_block),
            T.truncdiv(j0 + width, per_block),
            first,
        )
        if history:
            carry(line, thread)

    @T.macro
    def list_blocks(q, k, lse, indices, q_start, scale, x, h, b):
        q_tile = T.alloc_shared((rows, dk), dtype)
        k_tile = T.alloc_shared((width, dk), dtype)
        weights = T.alloc_shared((rows, width + PADDING), "float32")
        line = T.alloc_shared((queries, history + width), "float32")
        offered = T.alloc_shared((queries, in_tile + 1), "float32")
        s = T.alloc_fragment((rows, width), "float32")
        top = T.alloc_fragment((rows,), "float32")
        total = T.alloc_fragment((rows,), "float32")
        before = T.alloc_fragment((rows,), "float32")
        scaled = T.alloc_fragment((rows,), "float32")
        summed = T.alloc_fragment((rows,), "float32")
        ends = T.alloc_fragment((rows,), "int32")
        scores = T.alloc_local((best.each, best.slots), "float32")
        blocks = T.alloc_local((best.each, best.slots), "int32")
        t0, last, scored, passes, steps = (T.alloc_var("int32") for _ in range(5))
        thread = T.get_thread_binding()
        t0 = (T.ceildiv(tokens, queries) - 1 - x) * queries  # the longest first
        last = q_start + T.min(t0 + queries, tokens) - 1
        scored = best.candidates(last)
        passes = 0 if given else T.if_then_else(scored > 0, T.ceildiv(bound_at(seen.hi, last, keys), width), 0)
        steps = passes + T.ceildiv(scored * per_block, width)
        load_rows(tile, group, dk)(q, q_tile, b, h, t0, 0, tokens)
        for i in T.Parallel(rows):
            ends[i] = bound_at(seen.hi, q_start + t0 + row_query(tile, i), keys)
        if given:
            load_row_values(tile, group)(lse, top, b, h, t0, 0, tokens)
            for i in T.Parallel(rows):
                total[i] = T.if_then_else(top[i] == negative_infinity(), 0.0, 1.0)
                top[i] = top[i] * LOG2_E
        else:
            T.fill(total, 0)
            T.fill(top, negative_infinity())
        clear_lists(best)(scores, blocks)
        if history:
            for i, c in T.Parallel(queries, history):
                line[i, c] = 0.0
        for step in T.Pipelined(steps, num_stages=schedule.stages):
            j0 = (step if given else step - passes * T.cast(step >= passes, "int32")) * width
            T.copy(k[b, j0 : j0 + width, h, :], k_tile)
            T.clear(s)
            T.gemm(q_tile, k_tile, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
            for i, j in T.Parallel(rows, width):
                s[i, j] = T.if_then_else(j0 + j < ends[i], s[i, j] * (scale * LOG2_E), negative_infinity())
            held = (s, weights, line, offered, scores, blocks, top, total, scaled, summed)
            if given:
                score_blocks(*held, j0, q_start + t0, thread)
            elif step < passes:
                add_to_totals(s, top, total, before, scaled, summed)
            else:
                score_blocks(*held, j0, q_start + t0, thread)
        write_indices(best)(blocks, indices, thread, b, h, t0, tokens, q_start)

    if given:

        @T.prim_func
        def select_weighed_blocks(
            q: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
            k: T.Tensor((batch, keys, kv_heads, dk), dtype),
            lse: T.Tensor((batch, tokens, kv_heads * group), "float32"),
            indices: T.Tensor((batch, tokens, kv_heads, desc.size("n")), "int32"),
            q_start: T.int32,
            scale: T.float32,
        ):
            with T.Kernel(T.ceildiv(tokens, queries), kv_heads, batch, threads=threads) as (x, h, b):
                list_blocks(q, k, lse, indices, q_start, scale, x, h, b)

        return select_weighed_blocks

    @T.prim_func
    def select_blocks(
        q: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
        k: T.Tensor((batch, keys, kv_heads, dk), dtype),
        indices: T.Tensor((batch, tokens, kv_heads, desc.size("n")), "int32"),
        q_start: T.int32,
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(tokens, queries), kv_heads, batch, threads=threads) as (x, h, b):
            list_blocks(q, k, None, indices, q_start, scale, x, h, b)

    return select_blocks


def mean_key_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernel of the seed's selection: `k` holds the float32 means of the complete blocks.

    A tile's rows are queries, summed over the group's heads. Matrix instructions take 16-bit floats: a float32 is
    taken as a high and a low part, and of the products all but low times low are summed.
    """
    dtype, group, dk, rows, width = desc.dtype, desc.size("group"), desc.size("dk"), schedule.rows, schedule.key_tile
    threads, exact = schedule.threads, group == 1  # one head's query is its own high part
    best = BestBlocks.of(desc, rows, threads)
    batch, tokens, means, kv_heads = (T.dynamic(n) for n in ("batch", "tokens", "means", "kv_heads"))

    @T.prim_func
    def select_blocks(
        q: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
        k: T.Tensor((batch, means, kv_heads, dk), "float32"),
        indices: T.Tensor((batch, tokens, kv_heads, desc.size("n")), "int32"),
        q_start: T.int32,
    ):
        with T.Kernel(T.ceildiv(tokens, rows), kv_heads, batch, threads=threads) as (x, h, b):
            q_high = T.alloc_shared((rows, dk), dtype)
            q_low = T.alloc_shared((rows, dk), dtype)
            k_tile = T.alloc_shared((width, dk), "float32")
            k_high = T.alloc_shared((width, dk), dtype)
            k_low = T.alloc_shared((width, dk), dtype)
            offered = T.alloc_shared((rows, width + 1), "float32")
            s = T.alloc_fragment((rows, width), "float32")
            scores = T.alloc_local((best.each, best.slots), "float32")
            blocks = T.alloc_local((best.each, best.slots), "int32")
            t0, scored, steps = (T.alloc_var("int32") for _ in range(3))
            thread = T.get_thread_binding()
            t0 = (T.ceildiv(tokens, rows) - 1 - x) * rows  # the longest first
            scored = T.min(means, best.candidates(q_start + T.min(t0 + rows, tokens) - 1))
            steps = T.ceildiv(scored, width)
            if exact:
                for i, c in T.Parallel(rows, dk):
                    q_high[i, c] = q[b, T.min(t0 + i, tokens - 1), h, c]
            else:
                sum_heads(desc, rows)(q, q_high, q_low, b, h, t0, tokens)
            clear_lists(best)(scores, blocks)
            for step in T.Pipelined(steps, num_stages=schedule.stages):
                T.copy(k[b, step * width : step * width + width, h, :], k_tile)
                for i, c in T.Parallel(width, dk):
                    high = T.cast(k_tile[i, c], dtype)
                    k_high[i, c] = high
                    k_low[i, c] = k_tile[i, c] - T.cast(high, "float32")
                T.clear(s)
                if not exact:
                    T.gemm(q_low, k_high, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.gemm(q_high, k_low, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.gemm(q_high, k_high, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                for i, j in T.Parallel(rows, width):
                    offered[i, j] = s[i, j]
                offer_blocks(best, width)(
                    offered, scores, blocks, thread, step * width, T.min(step * width + width, means), q_start + t0
                )
            write_indices(best)(blocks, indices, thread, b, h, t0, tokens, q_start)

    return select_blocks


def sum_heads(desc: KernelDesc, rows: int) -> Any:
    """Return the macro that sums a tile's queries over the group's heads, as a high and a low part [rows, dk]."""
    group, dk = desc.size("group"), desc.size("dk")
    columns = dk & -dk  # a piece of the channels at a time: few registers, and even shares for the threads

    @T.macro
    def load(q, high, low, b, h, t0, tokens):
        total = T.alloc_fragment((rows, columns), "float32")
        for part in T.serial(dk // columns):
            T.clear(total)
            for g in T.serial(group):
                for i, c in T.Parallel(rows, columns):
                    total[i, c] += T.cast(q[b, T.min(t0 + i, tokens - 1), h * group + g, part * columns + c], "float32")
            for i, c in T.Parallel(rows, columns):
                high[i, part * columns + c] = total[i, c]
                low[i, part * columns + c] = total[i, c] - T.cast(T.cast(total[i, c], desc.dtype), "float32")

    return load
