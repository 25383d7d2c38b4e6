"""Streamed attention, forward: softmax(scale * q . k) v over the ranges of an index set (paper eq. 1-2, 5).

One thread block is one tile of rows (query, head of the group) of one key/value head; keys and values pass by.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import GpuSchedule
from ...target import GpuTarget
from ...tiling import RowTile
from .common import (
    LOG2_E,
    Segments,
    finish_softmax,
    load_rows,
    negative_infinity,
    row_query,
    sees_in_step,
    set_bounds,
    softmax_step,
    store_row_values,
    store_rows,
)


def get_stream_attention_fwd_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel for `desc` (`group`, `dk`, `dv`, `visible`): q, k, v -> out, lse."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    visible, rows, width = desc.streamed, schedule.rows, schedule.key_tile
    tile = RowTile.of(group, rows)
    batch, tokens, keys, kv_heads = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads"))
    softmax = softmax_step(rows, width, dv)

    @T.prim_func
    def stream_attention(
        q: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
        k: T.Tensor((batch, keys, kv_heads, dk), dtype),
        v: T.Tensor((batch, keys, kv_heads, dv), dtype),
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
            s = T.alloc_fragment((rows, width), "float32")
            weights = T.alloc_fragment((rows, width), dtype)
            o = T.alloc_fragment((rows, dv), "float32")
            top = T.alloc_fragment((rows,), "float32")
            total = T.alloc_fragment((rows,), "float32")
            before = T.alloc_fragment((rows,), "float32")
            scaled = T.alloc_fragment((rows,), "float32")
            summed = T.alloc_fragment((rows,), "float32")
            chunk = T.truncmod(x, tile.chunks)
            t0 = T.truncdiv(x, tile.chunks) * tile.queries
            count = T.alloc_var("int32")
            bounds = T.alloc_local((len(visible.ranges) + 1, 3), "int32")
            set_bounds(visible, width)(bounds, q_start + t0, q_start + T.min(t0 + tile.queries, tokens) - 1, keys)
            steps = Segments(visible, bounds, width)
            count = bounds[len(visible.ranges), 2]
            load_rows(tile, group, dk)(q, q_tile, b, h, t0, chunk, tokens)
            T.sync_threads()  # TileLang leaves it out before loops split over warps: docs/upstream.md
            T.fill(o, 0)
            T.fill(total, 0)
            T.fill(top, negative_infinity())
            for step in T.Pipelined(count, num_stages=schedule.stages):
                j0 = steps.start(step)
                T.copy(k[b, j0 : j0 + width, h, :], k_tile)
                T.copy(v[b, j0 : j0 + width, h, :], v_tile)
                T.clear(s)
                T.gemm(q_tile, k_tile, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                for i, j in T.Parallel(rows, width):
                    s[i, j] = T.if_then_else(
                        sees_in_step(visible, steps, step, q_start + t0 + row_query(tile, i), j0 + j, keys),
                        s[i, j] * (scale * LOG2_E),
                        negative_infinity(),
                    )
                softmax(s, weights, o, top, total, before, scaled, summed)
                T.gemm(weights, v_tile, o, policy=T.GemmWarpPolicy.FullRow)
            finish_softmax(rows, dv)(o, top, total)
            store_rows(tile, group, dv)(o, out, b, h, t0, chunk, tokens)
            store_row_values(tile, group)(top, lse, b, h, t0, chunk, tokens)

    return stream_attention
