"""Gathered attention, forward: softmax attention over the tokens of each query's list of blocks (paper eq. 12).

One thread block is one tile of rows (query, head of the group). It passes over the union of its queries' lists, which
`steps`, `listing` and `members` hold, and masks what a query has not listed: a block is loaded once for all queries of
the tile, and small groups share a tile instead of filling it with nothing.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import GpuSchedule
from ...target import GpuTarget
from ...tiling import BlockTile, RowTile
from .common import (
    LOG2_E,
    finish_softmax,
    is_listed,
    load_blocks,
    load_rows,
    negative_infinity,
    softmax_step,
    store_row_values,
    store_rows,
)


def get_gather_attention_fwd_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel for `desc` (`group`, `dk`, `dv`, `block`, `n`, `reach`): q, k, v, lists -> out, lse."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    block, rows = desc.size("block"), schedule.rows
    tile = RowTile.of(group, rows)
    blocks = BlockTile.of(desc, tile.queries, schedule.key_tile)
    width = blocks.rows
    batch, tokens, keys, kv_heads, tiles = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads", "tiles"))
    softmax = softmax_step(rows, width, dv)
    seen = is_listed(desc, tile, blocks)

    @T.prim_func
    def gather_attention(
        q: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
        k: T.Tensor((batch, keys, kv_heads, dk), dtype),
        v: T.Tensor((batch, keys, kv_heads, dv), dtype),
        steps: T.Tensor((batch, kv_heads, tiles), "int32"),
        listing: T.Tensor((batch, kv_heads, tiles, blocks.capacity), "int32"),
        members: T.Tensor((batch, kv_heads, tiles, blocks.capacity), "int32"),
        out: T.Tensor((batch, tokens, kv_heads * group, dv), dtype),
        lse: T.Tensor((batch, tokens, kv_heads * group), "float32"),
        q_start: T.int32,
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(tokens, tile.queries) * tile.chunks, kv_heads, batch, threads=schedule.threads) as (
            x,
            h,
            b,
        ):
            q_tile = T.alloc_shared((rows, dk), dtype)
            k_tile = T.alloc_shared((width, dk), dtype)
            v_tile = T.alloc_shared((width, dv), dtype)
            listed = T.alloc_shared((blocks.capacity,), "int32")
            sharers = T.alloc_shared((blocks.capacity,), "int32")
            s = T.alloc_fragment((rows, width), "float32")
            weights = T.alloc_fragment((rows, width), dtype)
            o = T.alloc_fragment((rows, dv), "float32")
            top = T.alloc_fragment((rows,), "float32")
            total = T.alloc_fragment((rows,), "float32")
            before = T.alloc_fragment((rows,), "float32")
            scaled = T.alloc_fragment((rows,), "float32")
            summed = T.alloc_fragment((rows,), "float32")
            count = T.alloc_var("int32")
            chunk = T.truncmod(x, tile.chunks)
            part = T.truncdiv(x, tile.chunks)
            t0 = part * tile.queries
            count = T.ceildiv(steps[b, h, part], blocks.together) * blocks.parts
            for i in T.Parallel(blocks.capacity):
                listed[i] = listing[b, h, part, i]
                sharers[i] = members[b, h, part, i]
            load_rows(tile, group, dk)(q, q_tile, b, h, t0, chunk, tokens)
            T.sync_threads()  # TileLang leaves it out before loops split over warps: docs/upstream.md
            T.fill(o, 0)
            T.fill(total, 0)
            T.fill(top, negative_infinity())
            for step in T.Pipelined(count, num_stages=schedule.stages):
                load_blocks(block, blocks)(k, k_tile, listing, part, step, b, h)
                load_blocks(block, blocks)(v, v_tile, listing, part, step, b, h)
                T.clear(s)
                T.gemm(q_tile, k_tile, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                for i, j in T.Parallel(rows, width):
                    s[i, j] = T.if_then_else(
                        seen(listed, sharers, step, i, j, q_start + t0, keys),
                        s[i, j] * (scale * LOG2_E),
                        negative_infinity(),
                    )
                softmax(s, weights, o, top, total, before, scaled, summed)
                T.gemm(weights, v_tile, o, policy=T.GemmWarpPolicy.FullRow)
            finish_softmax(rows, dv)(o, top, total)
            store_rows(tile, group, dv)(o, out, b, h, t0, chunk, tokens)
            store_row_values(tile, group)(top, lse, b, h, t0, chunk, tokens)

    return gather_attention
