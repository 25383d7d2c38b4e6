"""Gathered attention, backward: over tiles of queries with the union of their lists, and over blocks of keys.

The second reads the inverse index: the queries that list a block, of which whole groups fill a tile's rows whatever the
group's size. ds = p * (dp - delta), with delta = dout . out - dlse; nothing is added atomically.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import GpuSchedule
from ...target import GpuTarget
from ...tiling import BlockTile, RowTile, ceil_div, padded
from .common import (
    ADDED_ROWS,
    ADDED_THREADS,
    DELTA_ROWS,
    DELTA_THREADS,
    LOG2_E,
    add_parts,
    is_listed,
    is_row,
    load_blocks,
    load_row_values,
    load_rows,
    log2_lse,
    row_deltas,
    row_head,
    row_query,
    store_rows,
    weights_place,
)


def get_gather_attention_bwd_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel of `desc`'s part: `queries` gives dq and delta, `keys` gives dk and dv."""
    if desc.word("part") == "queries":
        return queries_kernel(desc, schedule)
    return keys_kernel(desc, schedule, target)


def queries_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernel q, k, v, lists, out, lse, dout, dlse -> dq, delta."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    block, rows = desc.size("block"), schedule.rows
    tile = RowTile.of(group, rows)
    blocks = BlockTile.of(desc, tile.queries, schedule.key_tile)
    width = blocks.rows
    batch, tokens, keys, kv_heads, tiles = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads", "tiles"))
    seen = is_listed(desc, tile, blocks)

    @T.prim_func
    def gather_attention_queries(
        q: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
        k: T.Tensor((batch, keys, kv_heads, dk), dtype),
        v: T.Tensor((batch, keys, kv_heads, dv), dtype),
        steps: T.Tensor((batch, kv_heads, tiles), "int32"),
        listing: T.Tensor((batch, kv_heads, tiles, blocks.capacity), "int32"),
        members: T.Tensor((batch, kv_heads, tiles, blocks.capacity), "int32"),
        out: T.Tensor((batch, tokens, kv_heads * group, dv), dtype),
        lse: T.Tensor((batch, tokens, kv_heads * group), "float32"),
        dout: T.Tensor((batch, tokens, kv_heads * group, dv), dtype),
        dlse: T.Tensor((batch, tokens, kv_heads * group), "float32"),
        dq: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
        delta: T.Tensor((batch, tokens, kv_heads * group), "float32"),
        q_start: T.int32,
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(tokens * kv_heads * group, DELTA_ROWS), batch, threads=DELTA_THREADS) as (x, b):
            row_deltas(dv)(out, dout, dlse, delta, x * DELTA_ROWS, b, tokens, kv_heads * group)
        with T.Kernel(T.ceildiv(tokens, tile.queries) * tile.chunks, kv_heads, batch, threads=schedule.threads) as (
            x,
            h,
            b,
        ):
            q_tile = T.alloc_shared((rows, dk), dtype)
            dout_tile = T.alloc_shared((rows, dv), dtype)
            k_tile = T.alloc_shared((width, dk), dtype)
            v_tile = T.alloc_shared((width, dv), dtype)
            listed = T.alloc_shared((blocks.capacity,), "int32")
            sharers = T.alloc_shared((blocks.capacity,), "int32")
            s = T.alloc_fragment((rows, width), "float32")
            ds = T.alloc_fragment((rows, width), "float32")
            weights = T.alloc_fragment((rows, width), dtype)
            grad = T.alloc_fragment((rows, dk), "float32")
            logs = T.alloc_fragment((rows,), "float32")
            rest = T.alloc_fragment((rows,), "float32")
            count = T.alloc_var("int32")
            chunk = T.truncmod(x, tile.chunks)
            part = T.truncdiv(x, tile.chunks)
            t0 = part * tile.queries
            count = T.ceildiv(steps[b, h, part], blocks.together) * blocks.parts
            for i in T.Parallel(blocks.capacity):
                listed[i] = listing[b, h, part, i]
                sharers[i] = members[b, h, part, i]
            load_rows(tile, group, dk)(q, q_tile, b, h, t0, chunk, tokens)
            load_rows(tile, group, dv)(dout, dout_tile, b, h, t0, chunk, tokens)
            load_row_values(tile, group)(delta, rest, b, h, t0, chunk, tokens)
            load_row_values(tile, group)(lse, logs, b, h, t0, chunk, tokens)
            log2_lse(rows)(logs)
            T.sync_threads()  # TileLang leaves it out before loops split over warps: docs/upstream.md
            T.fill(grad, 0)
            for step in T.Pipelined(count, num_stages=schedule.stages):
                load_blocks(block, blocks)(k, k_tile, listing, part, step, b, h)
                load_blocks(block, blocks)(v, v_tile, listing, part, step, b, h)
                T.clear(s)
                T.gemm(q_tile, k_tile, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.clear(ds)
                T.gemm(dout_tile, v_tile, ds, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                for i, j in T.Parallel(rows, width):
                    s[i, j] = T.if_then_else(
                        seen(listed, sharers, step, i, j, q_start + t0, keys),
                        T.exp2(s[i, j] * (scale * LOG2_E) - logs[i]),
                        0.0,
                    )
                for i, j in T.Parallel(rows, width):
                    ds[i, j] = s[i, j] * (ds[i, j] - rest[i])
                T.copy(ds, weights)
                T.gemm(weights, k_tile, grad, policy=T.GemmWarpPolicy.FullRow)
            for i, c in T.Parallel(rows, dk):
                grad[i, c] = grad[i, c] * scale
            store_rows(tile, group, dk)(grad, dq, b, h, t0, chunk, tokens)

    return gather_attention_queries


def keys_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel q, k, v, inverse index, lse, delta, dout -> dk, dv; its rows are the keys of one block.

    A block larger than the tile takes several thread blocks. `pieces` are a block, begin and end in `listing` each:
    `slots` of what long lists are cut into, then the lists of all blocks, those empty. The former leave `parts_k` and
    `parts_v`, of which `shared` says for each block the first and how many are its, to be added up.
    """
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    block, causal, width = desc.size("block"), desc.word("reach") == "causal", schedule.key_tile
    rows = min(padded(block), schedule.rows)
    tiles, runs = ceil_div(block, rows), ceil_div(block, ADDED_ROWS)
    tile = RowTile.of(group, width)
    policy, allocate = weights_place(rows, schedule.threads, target)
    batch, tokens, keys, kv_heads = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads"))
    blocks, entries, every, slots = (T.dynamic(n) for n in ("blocks", "entries", "every", "slots"))

    @T.macro
    def load_listed(x, staged, listing, first, chunk, b, h):
        """Copy the rows of the listed queries from `first` on; past a block's own, another's, which are masked."""
        for i, c in T.Parallel(width, x.shape[3]):
            staged[i, c] = x[
                b,
                listing[b, h, first + row_query(tile, i)],
                h * group + T.min(row_head(tile, i, chunk), group - 1),
                c,
            ]

    @T.macro
    def load_listed_values(x, staged, listing, first, chunk, b, h):
        for i in T.Parallel(width):
            staged[i] = x[
                b,
                listing[b, h, first + row_query(tile, i)],
                h * group + T.min(row_head(tile, i, chunk), group - 1),
            ]

    def store_sums(depth: int) -> Any:
        @T.macro
        def store(sums, grad, parts, piece, inner, j0, slots, keys, h, b):
            """Write the gradients of a whole list where they belong, those of a piece of one to its slot."""
            for j, c in T.Parallel(rows, depth):
                if T.And(piece < slots, inner + j < block):
                    parts[piece, b, inner + j, h, c] = sums[j, c]
            for j, c in T.Parallel(rows, depth):  # not an else, which TileLang loses: docs/upstream.md
                if T.And(piece >= slots, T.And(inner + j < block, j0 + j < keys)):
                    grad[b, j0 + j, h, c] = sums[j, c]

        return store

    @T.prim_func
    def gather_attention_keys(
        q: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
        k: T.Tensor((batch, keys, kv_heads, dk), dtype),
        v: T.Tensor((batch, keys, kv_heads, dv), dtype),
        pieces: T.Tensor((batch, kv_heads, every, 3), "int32"),
        listing: T.Tensor((batch, kv_heads, entries), "int32"),
        shared: T.Tensor((batch, kv_heads, blocks, 2), "int32"),
        lse: T.Tensor((batch, tokens, kv_heads * group), "float32"),
        delta: T.Tensor((batch, tokens, kv_heads * group), "float32"),
        dout: T.Tensor((batch, tokens, kv_heads * group, dv), dtype),
        parts_k: T.Tensor((slots, batch, block, kv_heads, dk), "float32"),
        parts_v: T.Tensor((slots, batch, block, kv_heads, dv), "float32"),
        grad_k: T.Tensor((batch, keys, kv_heads, dk), dtype),
        grad_v: T.Tensor((batch, keys, kv_heads, dv), dtype),
        q_start: T.int32,
        scale: T.float32,
    ):
        with T.Kernel(every * tiles, kv_heads, batch, threads=schedule.threads) as (x, h, b):
            k_tile = T.alloc_shared((rows, dk), dtype)
            v_tile = T.alloc_shared((rows, dv), dtype)
            q_tile = T.alloc_shared((width, dk), dtype)
            dout_tile = T.alloc_shared((width, dv), dtype)
            logs = T.alloc_shared((width,), "float32")
            rest = T.alloc_shared((width,), "float32")
            position = T.alloc_shared((width,), "int32")
            s = T.alloc_fragment((rows, width), "float32")
            ds = T.alloc_fragment((rows, width), "float32")
            weights = allocate((rows, width), dtype)
            sum_k = T.alloc_fragment((rows, dk), "float32")
            sum_v = T.alloc_fragment((rows, dv), "float32")
            j0, begin, past, count = (T.alloc_var("int32") for _ in range(4))
            piece = T.truncdiv(x, tiles)
            inner = T.truncmod(x, tiles) * rows  # the first of the tile's keys within its block
            j0 = pieces[b, h, piece, 0] * block + inner
            begin = pieces[b, h, piece, 1]
            past = pieces[b, h, piece, 2]
            count = T.ceildiv(past - begin, tile.queries) * tile.chunks
            T.copy(k[b, j0 : j0 + rows, h, :], k_tile)
            T.copy(v[b, j0 : j0 + rows, h, :], v_tile)
            T.fill(sum_k, 0)
            T.fill(sum_v, 0)
            for step in T.Pipelined(count, num_stages=schedule.stages):
                first = begin + T.truncdiv(step, tile.chunks) * tile.queries
                chunk = T.truncmod(step, tile.chunks)
                load_listed(q, q_tile, listing, first, chunk, b, h)
                load_listed(dout, dout_tile, listing, first, chunk, b, h)
                load_listed_values(lse, logs, listing, first, chunk, b, h)
                load_listed_values(delta, rest, listing, first, chunk, b, h)
                for i in T.Parallel(width):
                    position[i] = T.if_then_else(
                        T.And(first + row_query(tile, i) < past, is_row(tile, i, chunk, group)),
                        q_start + listing[b, h, first + row_query(tile, i)],
                        -1,
                    )
                T.clear(s)
                T.gemm(k_tile, q_tile, s, transpose_B=True, policy=policy)
                T.clear(ds)
                T.gemm(v_tile, dout_tile, ds, transpose_B=True, policy=policy)
                for j, i in T.Parallel(rows, width):
                    s[j, i] = T.if_then_else(
                        T.And(position[i] >= (j0 + j if causal else 0), j0 + j < keys),
                        T.exp2((s[j, i] * scale - logs[i]) * LOG2_E),
                        0.0,
                    )
                T.copy(s, weights)
                T.gemm(weights, dout_tile, sum_v, policy=policy)
                for j, i in T.Parallel(rows, width):
                    ds[j, i] = s[j, i] * (ds[j, i] - rest[i])
                T.copy(ds, weights)
                T.gemm(weights, q_tile, sum_k, policy=policy)
            for j, c in T.Parallel(rows, dk):
                sum_k[j, c] = sum_k[j, c] * scale
            store_sums(dk)(sum_k, grad_k, parts_k, piece, inner, j0, slots, keys, h, b)
            store_sums(dv)(sum_v, grad_v, parts_v, piece, inner, j0, slots, keys, h, b)
        with T.Kernel(blocks * runs, kv_heads, batch, threads=ADDED_THREADS) as (x, h, b):
            first, count, filled = (T.alloc_var("int32") for _ in range(3))
            inner = T.truncmod(x, runs) * ADDED_ROWS
            j0 = T.truncdiv(x, runs) * block + inner
            first = shared[b, h, T.truncdiv(x, runs), 0]
            count = shared[b, h, T.truncdiv(x, runs), 1]
            filled = T.if_then_else(count > 0, T.min(block - inner, keys - j0), 0)
            add_parts(dk)(parts_k, grad_k, first, count, inner, filled, j0, h, b)
            add_parts(dv)(parts_v, grad_v, first, count, inner, filled, j0, h, b)

    return gather_attention_keys
