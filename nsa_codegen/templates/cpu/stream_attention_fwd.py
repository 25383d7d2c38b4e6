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
from ...tiling import RowTile, padded
from ...together import most_together
from .common import (
    NEG_INF,
    STORAGE,
    bound_at,
    call,
    decode_task,
    load_bounds,
    prelude,
    rows_of_tile,
    store_sums,
    unpack_lanes,
)
from .few_rows import are_few, attend_heads, is_one_vector
from .lane_step import LaneStep, close_tiles, open_tiles, stage_step


def get_stream_attention_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`group`, `dk`, `dv`, `visible`): q, k, v -> out, lse."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    ranges = desc.streamed.ranges
    tile = RowTile.of(group, schedule.query_lanes)
    lanes, queries, heads, chunks = tile.lanes, tile.queries, tile.heads, tile.chunks
    width, storage = schedule.key_tile, STORAGE[dtype]
    step = LaneStep.of(desc, schedule, target, lanes=lanes, keys=width)
    by_query = is_one_vector(lanes, target) and min(dk, dv) >= lanes and not step.paired
    batch, tokens, keys, kv_heads = (T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads"))

    @T.prim_func
    def stream_attention(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k: T.Tensor((batch, keys, kv_heads, dk), storage),
        v: T.Tensor((batch, keys, kv_heads, dv), storage),
        out: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        q_start: T.int32,
        scale: T.float32,
        together: T.int32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(paired=step.paired)) as _:
            q_t = T.alloc_local(*step.laid(dk))
            s = T.alloc_local((padded(width), lanes), "float32")
            p = T.alloc_local(*step.pairs)
            o_t = T.alloc_local(*step.summed(dv))
            top = T.alloc_local((lanes,), "float32")
            total = T.alloc_local((lanes,), "float32")
            alpha = T.alloc_local((lanes,), "float32")
            lo = T.alloc_local((len(ranges), lanes), "int32")
            hi = T.alloc_local((len(ranges), lanes), "int32")
            k_up = T.alloc_local(*step.staged(dk))
            v_up = T.alloc_local(*step.transposed(dv))
            b, h, t0, chunk = (T.alloc_var("int32") for _ in range(4))
            begin, end, j0, rows, filled, from_tile, to_tile = (T.alloc_var("int32") for _ in range(7))
            from_tile = task_lo * together
            to_tile = T.min(task_hi * together, batch * kv_heads * T.ceildiv(tokens, queries) * chunks)
            if by_query:  # noqa: SIM102 - the first is known here, the second to the kernel
                if are_few(lanes, tokens * heads):
                    attend_heads(
                        *(dtype, ranges, tile, width, most_together(desc, schedule)),
                        *(q, k, v, out, lse, q_start, scale, together, task_lo, task_hi),
                    )
                    from_tile = to_tile
            open_tiles(step.paired)
            for index in T.serial(from_tile, to_tile):
                b, h, t0, chunk = decode_task(index, T.ceildiv(tokens, queries), kv_heads, chunks, queries)
                first = q_start + t0
                last = q_start + T.min(t0 + queries, tokens) - 1
                filled = rows_of_tile(tile, group, tokens, t0, chunk)
                step.lay(q_t, q, heads, filled, scale, b, t0, h, chunk * heads)
                load_bounds(lo, hi, ranges, filled, t0, q_start, heads, keys)
                call("fill", top.data, NEG_INF, lanes)
                call("fill", total.data, T.float32(0), lanes)
                call("fill_rows", o_t.data, o_t.shape[0], lanes)
                end = 0
                for span in ranges:
                    begin = T.max(end, bound_at(span.lo, first, keys))
                    end = T.max(begin, bound_at(span.hi, last, keys))
                    steps = T.ceildiv(end - begin, width)
                    for i in T.serial(steps):
                        j0 = begin + i * width
                        rows = T.min(width, end - j0)
                        stage_step(step, k, k_up, v, v_up, rows, b, j0, h)
                        step.score(
                            *(s.data, k, k_up, q_t, rows),
                            step.ahead(
                                *(k, T.min(width, end - j0 - rows), (b, j0 + rows, h)),
                                *(q, heads, filled, (i, steps), (b, t0, h, chunk * heads)),
                                read=True,
                            ),
                            *(b, j0, h),
                        )
                        if T.Or(j0 < bound_at(span.lo, last, keys), j0 + rows > bound_at(span.hi, first, keys)):
                            call(f"mask_lanes<{lanes}, {len(ranges)}>", s.data, lo.data, hi.data, j0, rows)
                        step.weigh(s, p, rows, scale, top, total, alpha)
                        step.add(
                            *(o_t, v, v_up, s, p, rows, alpha),
                            step.ahead(
                                *(v, T.min(width, end - j0 - rows), (b, j0 + rows, h)),
                                *(out, heads, filled, (i, steps), (b, t0, h, chunk * heads)),
                                read=False,
                            ),
                            *(b, j0, h),
                        )
                store_sums(lse, top, total, 0, tile, filled, b, t0, h, chunk)
                unpack_lanes(dtype, out, o_t, heads, filled, total, b, t0, h, chunk * heads)
            close_tiles(step.paired)

    return stream_attention
