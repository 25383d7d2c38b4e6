"""Streamed attention, backward, in two parts that need no atomics: over queries (dq), and over keys (dk, dv).

Weights are recomputed from lse: p = exp(s - lse), ds = p * (dp - delta) with delta = sum_j p_j dp_j - dlse. `queries`
mirrors the forward. It starts from base = dout . out, into which out's rounding went, several times the error of
eager gradients, and mends that in the same pass: with rest = sum_j p_j (dp_j - base) - dlse, dq is sum_j p_j (dp_j -
base) k_j - rest sum_j p_j k_j, and delta, which it writes, base + rest. `keys` lays a tile of keys in the lanes and
runs over the queries that see it, a range that follows from the index set's bounds.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...index_sets import Range
from ...schedule import Schedule
from ...target import Target
from ...tiling import RowTile
from .common import (
    NEG_INF,
    STORAGE,
    bound_at,
    call,
    columns_at,
    decode_task,
    pack_lanes,
    prelude,
    product,
    rows_at,
    rows_of_tile,
    scalar,
    stage_rows,
    unpack_lanes,
    up,
)


def get_stream_attention_bwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`part`, `group`, `dk`, `dv`, `visible`)."""
    return {"queries": queries_kernel, "keys": keys_kernel}[desc.word("part")](desc, schedule)


def queries_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel q, k, v, out, lse, dout, dlse -> dq, delta."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    ranges = desc.streamed.ranges
    tile = RowTile.of(group, schedule.query_lanes)
    lanes, queries, heads, chunks = tile.lanes, tile.queries, tile.heads, tile.chunks
    step, storage, converted = schedule.key_tile, STORAGE[dtype], dtype != "float32"
    staged = step if converted else 1
    batch, tokens, keys, kv_heads = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads"))

    @T.macro
    def load_rows(out, lse, dlse, do_t, logs, base, rest, lo, hi, filled, b, t0, h, chunk, q_start):
        """Set what each lane's query starts from; a lane without a query has weight 0 everywhere."""
        for lane in T.serial(lanes):
            t = t0 + T.truncdiv(lane, heads)
            g = chunk * heads + T.truncmod(lane, heads)
            logs[lane] = -NEG_INF
            base[lane] = 0.0
            rest[lane] = 0.0
            for r, _ in enumerate(ranges):
                lo[r, lane] = 0
                hi[r, lane] = 0
            if lane < filled:
                for c in T.serial(dv):
                    base[lane] = base[lane] + do_t[c, lane] * up(dtype, out[b, t, h, g, c])
                rest[lane] = -dlse[b, t, h, g]
                logs[lane] = scalar("log2_of", lse[b, t, h, g])
                for r, span in enumerate(ranges):
                    lo[r, lane] = bound_at(span.lo, q_start + t, keys)
                    hi[r, lane] = bound_at(span.hi, q_start + t, keys)

    @T.macro
    def store_gradients(dq, delta, weighted_t, mean_t, base, rest, filled, b, t0, h, chunk, scale):
        call("subtract_lanes", weighted_t.data, mean_t.data, rest.data, lanes, dk)
        for lane in T.serial(filled):
            delta[b, t0 + T.truncdiv(lane, heads), h, chunk * heads + T.truncmod(lane, heads)] = base[lane] + rest[lane]
        call("fill", base.data, scale, lanes)
        unpack_lanes(dtype, dq, weighted_t, heads, filled, base, b, t0, h, chunk * heads)

    @T.prim_func
    def stream_attention_queries(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k: T.Tensor((batch, keys, kv_heads, dk), storage),
        v: T.Tensor((batch, keys, kv_heads, dv), storage),
        out: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        dout: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        dlse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        dq: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        delta: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        q_start: T.int32,
        scale: T.float32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            q_t = T.alloc_local((dk, lanes), "float32")
            do_t = T.alloc_local((dv, lanes), "float32")
            weighted_t = T.alloc_local((dk, lanes), "float32")  # sum of p * (dp - base) * k
            mean_t = T.alloc_local((dk, lanes), "float32")  # sum of p * k
            s = T.alloc_local((step, lanes), "float32")
            ds = T.alloc_local((step, lanes), "float32")
            logs = T.alloc_local((lanes,), "float32")
            base = T.alloc_local((lanes,), "float32")
            rest = T.alloc_local((lanes,), "float32")
            lo = T.alloc_local((len(ranges), lanes), "int32")
            hi = T.alloc_local((len(ranges), lanes), "int32")
            k_up = T.alloc_local((staged, dk), "float32")
            v_up = T.alloc_local((staged, dv), "float32")
            b, h, t0, chunk = (T.alloc_var("int32") for _ in range(4))
            begin, end, j0, rows, filled = (T.alloc_var("int32") for _ in range(5))
            for task in T.serial(task_lo, task_hi):
                b, h, t0, chunk = decode_task(task, T.ceildiv(tokens, queries), kv_heads, chunks, queries)
                first = q_start + t0
                last = q_start + T.min(t0 + queries, tokens) - 1
                filled = rows_of_tile(tile, group, tokens, t0, chunk)
                pack_lanes(dtype, q_t, q, heads, filled, scalar("log2_units", scale), b, t0, h, chunk * heads)
                pack_lanes(dtype, do_t, dout, heads, filled, T.float32(1), b, t0, h, chunk * heads)
                load_rows(
                    *(out, lse, dlse, do_t, logs, base, rest, lo, hi),
                    *(filled, b, t0, h, chunk, q_start),
                )
                call("fill", weighted_t.data, T.float32(0), dk * lanes)
                call("fill", mean_t.data, T.float32(0), dk * lanes)
                end = 0
                for span in ranges:
                    begin = T.max(end, bound_at(span.lo, first, keys))
                    end = T.max(begin, bound_at(span.hi, last, keys))
                    for i in T.serial(T.ceildiv(end - begin, step)):
                        j0 = begin + i * step
                        rows = T.min(step, end - j0)
                        if converted:
                            stage_rows(dtype, k, k_up, rows, b, j0, h)
                            stage_rows(dtype, v, v_up, rows, b, j0, h)
                        call(
                            product(lanes, schedule, "ZERO"),
                            *(s.data, lanes, *rows_at(dtype, k, k_up, b, j0, h), q_t.data, rows, dk, s.data),
                        )
                        if T.Or(j0 < bound_at(span.lo, last, keys), j0 + rows > bound_at(span.hi, first, keys)):
                            call(f"mask_lanes<{lanes}, {len(ranges)}>", s.data, lo.data, hi.data, j0, rows)
                        call(
                            product(lanes, schedule, "ZERO"),
                            *(ds.data, lanes, *rows_at(dtype, v, v_up, b, j0, h), do_t.data, rows, dv, s.data),
                        )
                        call(f"weigh<{lanes}>", s.data, ds.data, rows, logs.data, base.data, rest.data)
                        for gathered, weights in ((weighted_t, ds), (mean_t, s)):
                            call(
                                product(lanes, schedule, "ADD"),
                                *(gathered.data, lanes, *columns_at(dtype, k, k_up, b, j0, h)),
                                *(weights.data, dk, rows, s.data),
                            )
                store_gradients(dq, delta, weighted_t, mean_t, base, rest, filled, b, t0, h, chunk, scale)

    return stream_attention_queries


def keys_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel q, k, v, lse, delta, dout -> dk, dv."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    ranges = desc.streamed.ranges
    lanes, step = schedule.query_lanes, schedule.key_tile
    storage, converted = STORAGE[dtype], dtype != "float32"
    staged = step if converted else 1
    batch, tokens, keys, kv_heads = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads"))

    def first_query(span: Range, j0: Any, q_start: Any) -> Any:
        """The first query whose range ends after key j0."""
        first = T.max(0, (j0 + 1) * span.hi.divisor - span.hi.offset - q_start) if span.hi.divisor else 0
        return first if span.hi.cap is None else T.if_then_else(j0 < span.hi.cap, first, tokens)

    def past_query(span: Range, end: Any, q_start: Any) -> Any:
        """The first query whose range begins at `end` or later."""
        past = T.min(tokens, end * span.lo.divisor - span.lo.offset - q_start) if span.lo.divisor else 0
        return past if span.lo.cap is None else T.if_then_else(end > span.lo.cap, tokens, past)

    def partly(span: Range, t0: Any, rows: Any, j0: Any, wide: Any) -> Any:
        """Whether some of the tile's queries do not see all of its keys."""
        seen_from, seen_to = bound_at(span.lo, t0 + rows - 1, keys), bound_at(span.hi, t0, keys)
        return T.Or(wide < lanes, T.Or(j0 < seen_from, j0 + wide > seen_to))

    def outside(r: int, position: Any, key: Any) -> Any:
        """Whether `key` is not in range r of the query at `position`, or belongs to an earlier range."""
        found = T.Or(key < bound_at(ranges[r].lo, position, keys), key >= bound_at(ranges[r].hi, position, keys))
        for span in ranges[:r]:
            earlier = T.And(key >= bound_at(span.lo, position, keys), key < bound_at(span.hi, position, keys))
            found = T.Or(found, earlier)
        return found

    @T.prim_func
    def stream_attention_keys(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k: T.Tensor((batch, keys, kv_heads, dk), storage),
        v: T.Tensor((batch, keys, kv_heads, dv), storage),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        delta: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        dout: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        grad_k: T.Tensor((batch, keys, kv_heads, dk), storage),
        grad_v: T.Tensor((batch, keys, kv_heads, dv), storage),
        q_start: T.int32,
        scale: T.float32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            k_t = T.alloc_local((dk, lanes), "float32")
            v_t = T.alloc_local((dv, lanes), "float32")
            dk_t = T.alloc_local((dk, lanes), "float32")
            dv_t = T.alloc_local((dv, lanes), "float32")
            part = T.alloc_local((max(dk, dv), lanes), "float32")  # one tile's sum: shorter sums round less
            s = T.alloc_local((step, lanes), "float32")
            ds = T.alloc_local((step, lanes), "float32")
            q_up = T.alloc_local((staged, dk), "float32")
            do_up = T.alloc_local((staged, dv), "float32")
            factors = T.alloc_local((lanes,), "float32")
            b, h, j0, wide = (T.alloc_var("int32") for _ in range(4))
            begin, end, t0, rows = (T.alloc_var("int32") for _ in range(4))
            for task in T.serial(task_lo, task_hi):
                b, h, j0, _ = decode_task(task, T.ceildiv(keys, lanes), kv_heads, 1, lanes)
                wide = T.min(lanes, keys - j0)
                pack_lanes(dtype, k_t, k, 1, wide, scalar("log2_units", scale), b, j0, h)
                pack_lanes(dtype, v_t, v, 1, wide, T.float32(1), b, j0, h)
                call("fill", dk_t.data, T.float32(0), dk * lanes)
                call("fill", dv_t.data, T.float32(0), dv * lanes)
                for r, span in enumerate(ranges):
                    begin = first_query(span, j0, q_start)
                    end = past_query(span, j0 + wide, q_start)
                    for i in T.serial(T.ceildiv(T.max(end - begin, 0), step)):
                        t0 = begin + i * step
                        rows = T.min(step, end - t0)
                        for g in T.serial(group):
                            if converted:
                                stage_rows(dtype, q, q_up, rows, b, t0, h, g)
                                stage_rows(dtype, dout, do_up, rows, b, t0, h, g)
                            call(
                                product(lanes, schedule, "ZERO"),
                                *(s.data, lanes, *rows_at(dtype, q, q_up, b, t0, h, g), k_t.data, rows, dk, s.data),
                            )
                            if T.Or(r > 0, partly(span, q_start + t0, rows, j0, wide)):
                                for x in T.serial(rows):
                                    for lane in T.serial(lanes):
                                        s[x, lane] = T.if_then_else(
                                            outside(r, q_start + t0 + x, j0 + lane), NEG_INF, s[x, lane]
                                        )
                            call(
                                product(lanes, schedule, "ZERO"),
                                *(ds.data, lanes, *rows_at(dtype, dout, do_up, b, t0, h, g)),
                                *(v_t.data, rows, dv, s.data),
                            )
                            for x in T.serial(rows):
                                call(
                                    "softmax_backward_row",
                                    *(T.address_of(s[x, 0]), T.address_of(ds[x, 0]), lanes),
                                    scalar("log2_of", lse[b, t0 + x, h, g]),
                                    delta[b, t0 + x, h, g],
                                )
                            call(
                                product(lanes, schedule, "ZERO"),
                                *(part.data, lanes, *columns_at(dtype, dout, do_up, b, t0, h, g)),
                                *(s.data, dv, rows, s.data),
                            )
                            call("add_row<nsa::f32>", dv_t.data, part.data, dv * lanes)
                            call(
                                product(lanes, schedule, "ZERO"),
                                *(part.data, lanes, *columns_at(dtype, q, q_up, b, t0, h, g)),
                                *(ds.data, dk, rows, s.data),
                            )
                            call("add_row<nsa::f32>", dk_t.data, part.data, dk * lanes)
                call("fill", factors.data, scale, lanes)
                unpack_lanes(dtype, grad_k, dk_t, 1, wide, factors, b, j0, h)
                call("fill", factors.data, T.float32(1), lanes)
                unpack_lanes(dtype, grad_v, dv_t, 1, wide, factors, b, j0, h)

    return stream_attention_keys
