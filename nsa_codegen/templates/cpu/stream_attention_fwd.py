"""Streamed attention, forward: softmax(scale * q . k) v over the ranges of an index set (paper eq. 1-2, 5).

One task is one tile of queries of one key/value head. Queries lie in the lanes, so that scores and outputs are
held transposed: no transpose of K or V, and no reduction across lanes. In a tile of one vector, as calls of few queries
have, that pays if half of its lanes hold a query; else dims and keys lie in the lanes, query by query.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from ...tiling import RowTile
from .common import (
    ELEMENT,
    FEW_LANES,
    FEW_ROWS,
    NEG_INF,
    STORAGE,
    bound_at,
    call,
    columns_at,
    decode_task,
    in_lanes,
    is_one_vector,
    keys_ahead,
    lines_of,
    pack_lanes,
    prelude,
    product,
    rows_ahead,
    rows_at,
    rows_of_tile,
    scalar,
    stage_rows,
    store_sums,
    unpack_lanes,
)


def get_stream_attention_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`group`, `dk`, `dv`, `visible`): q, k, v -> out, lse."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    ranges = desc.streamed.ranges
    tile = RowTile.of(group, schedule.query_lanes)
    lanes, queries, heads, chunks = tile.lanes, tile.queries, tile.heads, tile.chunks
    step, storage, few = schedule.key_tile, STORAGE[dtype], lanes <= FEW_LANES
    by_query = is_one_vector(lanes, target) and min(dk, dv) >= lanes
    converted = dtype != "float32"
    staged = step if converted else 1  # rows of K and V held as float32; float32 is read in place
    batch, tokens, keys, kv_heads = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads"))

    @T.macro
    def load_bounds(lo, hi, filled, t0, q_start):
        """Set the range of keys of each lane's query; a lane without a query sees no key."""
        for lane in T.serial(lanes):
            for r, span in enumerate(ranges):
                lo[r, lane] = 0
                hi[r, lane] = 0
                if lane < filled:
                    lo[r, lane] = bound_at(span.lo, q_start + t0 + T.truncdiv(lane, heads), keys)
                    hi[r, lane] = bound_at(span.hi, q_start + t0 + T.truncdiv(lane, heads), keys)

    @T.macro
    def load_rows(q_r, q, filled, b, t0, h, chunk, scale):
        for r in T.serial(filled):
            call(
                f"up_row<{ELEMENT[dtype]}>",
                T.address_of(q_r[r, 0]),
                T.address_of(q[b, t0 + T.truncdiv(r, heads), h, chunk * heads + T.truncmod(r, heads), 0]),
                dk,
            )
        call("scale_row", q_r.data, scalar("log2_units", scale), filled * dk)

    @T.macro
    def store_rows(out, o, total, filled, b, t0, h, chunk):
        for r in T.serial(filled):
            call(
                f"down_rows<{ELEMENT[dtype]}>",
                T.address_of(out[b, t0 + T.truncdiv(r, heads), h, chunk * heads + T.truncmod(r, heads), 0]),
                *(T.int64(0), T.address_of(o[r, 0]), dv, 1, dv, total[r]),
            )

    @T.prim_func
    def stream_attention(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k: T.Tensor((batch, keys, kv_heads, dk), storage),
        v: T.Tensor((batch, keys, kv_heads, dv), storage),
        out: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        q_start: T.int32,
        scale: T.float32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            q_t = T.alloc_local((dk, lanes), "float32")
            s = T.alloc_local((step, lanes), "float32")
            o_t = T.alloc_local((dv, lanes), "float32")
            q_r = T.alloc_local((lanes if by_query else 1, dk), "float32")
            o = T.alloc_local((lanes if by_query else 1, dv), "float32")
            top = T.alloc_local((lanes,), "float32")
            total = T.alloc_local((lanes,), "float32")
            alpha = T.alloc_local((lanes,), "float32")
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
                if in_lanes(by_query, lanes, filled):
                    pack_lanes(dtype, q_t, q, heads, filled, scalar("log2_units", scale), b, t0, h, chunk * heads)
                    call("fill", o_t.data, T.float32(0), dv * lanes)
                else:
                    load_rows(q_r, q, filled, b, t0, h, chunk, scale)
                    call("fill_rows", o.data, filled, dv)
                load_bounds(lo, hi, filled, t0, q_start)
                call("fill", top.data, NEG_INF, lanes)
                call("fill", total.data, T.float32(0), lanes)
                end = 0
                for span in ranges:
                    begin = T.max(end, bound_at(span.lo, first, keys))
                    end = T.max(begin, bound_at(span.hi, last, keys))
                    steps = T.ceildiv(end - begin, step)
                    for i in T.serial(steps):
                        j0 = begin + i * step
                        rows = T.min(step, end - j0)
                        if converted:
                            stage_rows(dtype, k, k_up, rows, b, j0, h)
                            stage_rows(dtype, v, v_up, rows, b, j0, h)
                        if in_lanes(by_query, lanes, filled):
                            call(
                                product(lanes, schedule, "ZERO"),
                                *(s.data, lanes, *rows_at(dtype, k, k_up, b, j0, h), q_t.data, rows, dk, alpha.data),
                                keys_ahead(dtype, k, T.min(step, end - j0 - rows), b, j0 + rows, h)
                                if few
                                else lines_of(dtype, q, heads, filled, (i, steps), b, t0, h, chunk * heads, ahead=True),
                            )
                            if T.Or(j0 < bound_at(span.lo, last, keys), j0 + rows > bound_at(span.hi, first, keys)):
                                call(f"mask_lanes<{lanes}, {len(ranges)}>", s.data, lo.data, hi.data, j0, rows)
                            call(f"softmax_step<{lanes}>", s.data, rows, top.data, total.data, alpha.data)
                            call(
                                product(lanes, schedule, "RESCALE"),
                                *(o_t.data, lanes, *columns_at(dtype, v, v_up, b, j0, h), s.data, dv, rows, alpha.data),
                                keys_ahead(dtype, v, T.min(step, end - j0 - rows), b, j0 + rows, h)
                                if few
                                else lines_of(dtype, out, heads, filled, (i, steps), b, t0, h, chunk * heads),
                            )
                        else:
                            call(
                                f"attend_few<{FEW_ROWS}, {lanes}, {len(ranges)}, {step}, {dk}, {dv}, {ELEMENT[dtype]}>",
                                *(o.data, top.data, total.data, q_r.data, filled),
                                *rows_at(dtype, k, k_up, b, j0, h)[:2],
                                *rows_at(dtype, v, v_up, b, j0, h)[:2],
                                *(j0, rows, lo.data, hi.data),
                                rows_ahead(dtype, k, T.min(step, end - j0 - rows), b, j0 + rows, h),
                                rows_ahead(dtype, v, T.min(step, end - j0 - rows), b, j0 + rows, h),
                            )
                store_sums(lse, top, total, tile, filled, b, t0, h, chunk)
                if in_lanes(by_query, lanes, filled):
                    unpack_lanes(dtype, out, o_t, heads, filled, total, b, t0, h, chunk * heads)
                else:
                    store_rows(out, o, total, filled, b, t0, h, chunk)

    return stream_attention
