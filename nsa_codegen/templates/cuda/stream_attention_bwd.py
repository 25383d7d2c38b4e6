"""Streamed attention, backward: two kernels, one over tiles of queries, one over tiles of keys.

With p = exp(scale * q . k - lse) and dp = dout . v, the gradient of a score is ds = p * (dp - delta), where
delta = dout . out - dlse. Each kernel sums in one fixed order; nothing is added atomically.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...index_sets import Range, RangeSet
from ...schedule import GpuSchedule
from ...splits import is_split
from ...target import GpuTarget
from ...tiling import RowTile
from .common import (
    ADDED_ROWS,
    ADDED_THREADS,
    DELTA_ROWS,
    DELTA_THREADS,
    LOG2_E,
    Segments,
    add_parts,
    is_row,
    load_row_values,
    load_rows,
    log2_lse,
    row_deltas,
    row_query,
    sees,
    sees_in_step,
    set_bounds,
    store_rows,
    weights_place,
)


def get_stream_attention_bwd_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel of `desc`'s part: `queries` gives dq and delta, `keys` gives dk and dv."""
    if desc.word("part") == "queries":
        return queries_kernel(desc, schedule)
    return keys_kernel(desc, schedule, target)


def queries_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernel q, k, v, out, lse, dout, dlse -> dq, delta."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    visible, rows, width = desc.streamed, schedule.rows, schedule.key_tile
    tile = RowTile.of(group, rows)
    batch, tokens, keys, kv_heads = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads"))

    @T.prim_func
    def stream_attention_queries(
        q: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
        k: T.Tensor((batch, keys, kv_heads, dk), dtype),
        v: T.Tensor((batch, keys, kv_heads, dv), dtype),
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
            s = T.alloc_fragment((rows, width), "float32")
            ds = T.alloc_fragment((rows, width), "float32")
            weights = T.alloc_fragment((rows, width), dtype)
            grad = T.alloc_fragment((rows, dk), "float32")
            logs = T.alloc_fragment((rows,), "float32")
            rest = T.alloc_fragment((rows,), "float32")
            count = T.alloc_var("int32")
            bounds = T.alloc_local((len(visible.ranges) + 1, 3), "int32")
            chunk = T.truncmod(x, tile.chunks)
            t0 = T.truncdiv(x, tile.chunks) * tile.queries
            set_bounds(visible, width)(bounds, q_start + t0, q_start + T.min(t0 + tile.queries, tokens) - 1, keys)
            steps = Segments(visible, bounds, width)
            count = bounds[len(visible.ranges), 2]
            load_rows(tile, group, dk)(q, q_tile, b, h, t0, chunk, tokens)
            load_rows(tile, group, dv)(dout, dout_tile, b, h, t0, chunk, tokens)
            load_row_values(tile, group)(delta, rest, b, h, t0, chunk, tokens)
            load_row_values(tile, group)(lse, logs, b, h, t0, chunk, tokens)
            log2_lse(rows)(logs)
            T.sync_threads()  # TileLang leaves it out before loops split over warps: docs/upstream.md
            T.fill(grad, 0)
            for step in T.Pipelined(count, num_stages=schedule.stages):
                j0 = steps.start(step)
                T.copy(k[b, j0 : j0 + width, h, :], k_tile)
                T.copy(v[b, j0 : j0 + width, h, :], v_tile)
                T.clear(s)
                T.gemm(q_tile, k_tile, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.clear(ds)
                T.gemm(dout_tile, v_tile, ds, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                for i, j in T.Parallel(rows, width):
                    s[i, j] = T.if_then_else(
                        sees_in_step(visible, steps, step, q_start + t0 + row_query(tile, i), j0 + j, keys),
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

    return stream_attention_queries


def keys_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel q, k, v, lse, delta, dout -> dk, dv; its rows are keys, and (query, head) rows pass by.

    Where many queries see a key, some thread blocks share them and leave `parts_k` and `parts_v`, which are added up.
    """
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    visible, rows, width = desc.streamed, schedule.rows, schedule.key_tile
    tile = RowTile.of(group, width)
    policy, allocate = weights_place(rows, schedule.threads, target)
    batch, tokens, keys, kv_heads, splits = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads", "splits"))

    @T.macro
    def sum_queries(q, k, v, lse, delta, dout, sum_k, sum_v, b, h, j0, split, shares, q_start, scale):
        """Sum up dk and dv of a tile of keys over one of `shares` equal shares of the steps that see some of it."""
        k_tile = T.alloc_shared((rows, dk), dtype)
        v_tile = T.alloc_shared((rows, dv), dtype)
        q_tile = T.alloc_shared((width, dk), dtype)
        dout_tile = T.alloc_shared((width, dv), dtype)
        logs = T.alloc_shared((width,), "float32")
        rest = T.alloc_shared((width,), "float32")
        s = T.alloc_fragment((rows, width), "float32")
        ds = T.alloc_fragment((rows, width), "float32")
        weights = allocate((rows, width), dtype)
        begin, end, done, count = (T.alloc_var("int32") for _ in range(4))
        begin = first_query(visible, j0, tokens, q_start)
        end = past_query(visible, j0, T.min(j0 + rows, keys), tokens, q_start)
        count = T.ceildiv(T.max(end - begin, 0), tile.queries) * tile.chunks
        done = T.truncdiv(count * split, shares)
        count = T.truncdiv(count * (split + 1), shares) - done
        T.copy(k[b, j0 : j0 + rows, h, :], k_tile)
        T.copy(v[b, j0 : j0 + rows, h, :], v_tile)
        T.fill(sum_k, 0)
        T.fill(sum_v, 0)
        for step in T.Pipelined(count, num_stages=schedule.stages):
            t0 = begin + T.truncdiv(done + step, tile.chunks) * tile.queries
            chunk = T.truncmod(done + step, tile.chunks)
            load_rows(tile, group, dk)(q, q_tile, b, h, t0, chunk, tokens)
            load_rows(tile, group, dv)(dout, dout_tile, b, h, t0, chunk, tokens)
            load_row_values(tile, group)(lse, logs, b, h, t0, chunk, tokens)
            load_row_values(tile, group)(delta, rest, b, h, t0, chunk, tokens)
            T.clear(s)
            T.gemm(k_tile, q_tile, s, transpose_B=True, policy=policy)
            T.clear(ds)
            T.gemm(v_tile, dout_tile, ds, transpose_B=True, policy=policy)
            for j, i in T.Parallel(rows, width):
                t = t0 + row_query(tile, i)
                s[j, i] = T.if_then_else(
                    T.And(
                        T.And(t < tokens, is_row(tile, i, chunk, group)),
                        T.And(j0 + j < keys, sees(visible, q_start + t, j0 + j, keys)),
                    ),
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

    if is_split(visible):

        @T.prim_func
        def stream_attention_split_keys(
            q: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
            k: T.Tensor((batch, keys, kv_heads, dk), dtype),
            v: T.Tensor((batch, keys, kv_heads, dv), dtype),
            lse: T.Tensor((batch, tokens, kv_heads * group), "float32"),
            delta: T.Tensor((batch, tokens, kv_heads * group), "float32"),
            dout: T.Tensor((batch, tokens, kv_heads * group, dv), dtype),
            parts_k: T.Tensor((splits, batch, keys, kv_heads, dk), "float32"),
            parts_v: T.Tensor((splits, batch, keys, kv_heads, dv), "float32"),
            grad_k: T.Tensor((batch, keys, kv_heads, dk), dtype),
            grad_v: T.Tensor((batch, keys, kv_heads, dv), dtype),
            q_start: T.int32,
            scale: T.float32,
        ):
            with T.Kernel(T.ceildiv(keys, rows) * splits, kv_heads, batch, threads=schedule.threads) as (x, h, b):
                sum_k = T.alloc_fragment((rows, dk), "float32")
                sum_v = T.alloc_fragment((rows, dv), "float32")
                j0, split = (T.alloc_var("int32") for _ in range(2))  # of what would be a division at each use
                j0 = T.truncdiv(x, splits) * rows
                split = T.truncmod(x, splits)
                sum_queries(q, k, v, lse, delta, dout, sum_k, sum_v, b, h, j0, split, splits, q_start, scale)
                T.copy(sum_k, parts_k[split, b, j0 : j0 + rows, h, :])
                T.copy(sum_v, parts_v[split, b, j0 : j0 + rows, h, :])
            with T.Kernel(T.ceildiv(keys, ADDED_ROWS), kv_heads, batch, threads=ADDED_THREADS) as (x, h, b):
                j0 = x * ADDED_ROWS
                add_parts(dk)(parts_k, grad_k, 0, splits, j0, keys - j0, j0, h, b)
                add_parts(dv)(parts_v, grad_v, 0, splits, j0, keys - j0, j0, h, b)

        return stream_attention_split_keys

    @T.prim_func
    def stream_attention_keys(
        q: T.Tensor((batch, tokens, kv_heads * group, dk), dtype),
        k: T.Tensor((batch, keys, kv_heads, dk), dtype),
        v: T.Tensor((batch, keys, kv_heads, dv), dtype),
        lse: T.Tensor((batch, tokens, kv_heads * group), "float32"),
        delta: T.Tensor((batch, tokens, kv_heads * group), "float32"),
        dout: T.Tensor((batch, tokens, kv_heads * group, dv), dtype),
        grad_k: T.Tensor((batch, keys, kv_heads, dk), dtype),
        grad_v: T.Tensor((batch, keys, kv_heads, dv), dtype),
        q_start: T.int32,
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(keys, rows), kv_heads, batch, threads=schedule.threads) as (x, h, b):
            sum_k = T.alloc_fragment((rows, dk), "float32")
            sum_v = T.alloc_fragment((rows, dv), "float32")
            j0 = x * rows
            sum_queries(q, k, v, lse, delta, dout, sum_k, sum_v, b, h, j0, 0, 1, q_start, scale)
            T.copy(sum_k, grad_k[b, j0 : j0 + rows, h, :])
            T.copy(sum_v, grad_v[b, j0 : j0 + rows, h, :])

    return stream_attention_keys


def first_query(visible: RangeSet, key: Any, tokens: Any, q_start: Any) -> Any:
    """Return the first query of which a range ends after `key`; `tokens` if there is none."""
    found = tokens
    for span in visible.ranges:
        found = T.min(found, _first_of(span, key, tokens, q_start))
    return found


def past_query(visible: RangeSet, key: Any, end: Any, tokens: Any, q_start: Any) -> Any:
    """Return the first query of which every range that reaches `key` or later begins at `end` or later."""
    found = T.int32(0)
    for span in visible.ranges:
        past = T.min(tokens, end * span.lo.divisor - span.lo.offset - q_start) if span.lo.divisor else tokens
        if span.lo.cap is not None:
            if span.lo.divisor:
                past = T.if_then_else(end > span.lo.cap, tokens, past)
            else:
                past = T.if_then_else(end > span.lo.cap, tokens, 0)
        found = T.max(found, T.if_then_else(_first_of(span, key, tokens, q_start) < tokens, past, 0))
    return found


def _first_of(span: Range, key: Any, tokens: Any, q_start: Any) -> Any:
    first = T.max(0, (key + 1) * span.hi.divisor - span.hi.offset - q_start) if span.hi.divisor else T.int32(0)
    return first if span.hi.cap is None else T.if_then_else(key < span.hi.cap, first, tokens)
