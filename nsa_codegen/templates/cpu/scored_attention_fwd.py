"""Attention over compressed tokens that lists blocks by its own weights, forward (paper eq. 5, 8-11).

One task is a tile of queries of one key/value head. The weights that sum the values are summed into blocks as well, so
that the scores of the selection cost no second product with the keys.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from ...tiling import padded
from .block_scores import BlockScores, add_scores, is_masked, keep_sums, list_blocks
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
from .few_rows import FEW_ROWS, attend_rows, in_lanes, is_one_vector, load_rows, store_rows
from .lane_step import LaneStep, close_tiles, open_tiles, stage_step


def get_scored_attention_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (dims of the attention and of the selection): q, k, v -> out, lse, indices."""
    dtype, group, dk, dv, n = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv"), desc.size("n")
    facts = BlockScores.of(desc, schedule)
    tile, width, spilled, seen = facts.tile, facts.scored.tokens, facts.scored.spilled, facts.seen
    lanes, queries, heads, chunks = tile.lanes, tile.queries, tile.heads, tile.chunks
    storage, wide = STORAGE[dtype], padded(width)
    step = LaneStep.of(desc, schedule, target, lanes=lanes, keys=width)
    by_query = is_one_vector(lanes, target) and min(dk, dv) >= lanes and not step.paired
    batch, tokens, keys, kv_heads, workers, steps, blocks = (
        T.dynamic(x) for x in ("batch", "tokens", "keys", "kv_heads", "workers", "steps", "blocks")
    )

    @T.prim_func
    def scored_attention(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k: T.Tensor((batch, keys, kv_heads, dk), storage),
        v: T.Tensor((batch, keys, kv_heads, dv), storage),
        out: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        indices: T.Tensor((batch, tokens, kv_heads, n), "int32"),
        sums: T.Tensor((workers, steps, spilled, lanes), "float32"),
        tops: T.Tensor((workers, steps, lanes), "float32"),
        scores: T.Tensor((workers, queries, blocks), "float32"),
        q_start: T.int32,
        scale: T.float32,
        task_lo: T.int32,
        task_hi: T.int32,
        worker: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(n, paired=step.paired)) as _:
            q_t = T.alloc_local(*step.laid(dk))
            s = T.alloc_local((wide, lanes), "float32")
            p = T.alloc_local(*step.pairs)
            o_t = T.alloc_local(*step.summed(dv))
            q_r = T.alloc_local((FEW_ROWS if by_query else 1, dk), "float32")
            s_r = T.alloc_local((FEW_ROWS if by_query else 1, wide), "float32")
            o = T.alloc_local((FEW_ROWS if by_query else 1, dv), "float32")
            top = T.alloc_local((lanes,), "float32")
            total = T.alloc_local((lanes,), "float32")
            alpha = T.alloc_local((lanes,), "float32")
            lo = T.alloc_local((1, lanes), "int32")
            hi = T.alloc_local((1, lanes), "int32")
            k_up = T.alloc_local(*step.staged(dk))
            v_up = T.alloc_local(*step.transposed(dv))
            b, h, t0 = (T.alloc_var("int32") for _ in range(3))
            end, j0, rows, filled = (T.alloc_var("int32") for _ in range(4))
            open_tiles(step.paired)
            for task in T.serial(task_lo, task_hi):
                b, h, t0, _ = decode_task(task, T.ceildiv(tokens, queries), kv_heads, 1, queries)
                end = bound_at(seen, q_start + T.min(t0 + queries, tokens) - 1, keys)
                call("fill", T.address_of(scores[worker, 0, 0]), T.float32(0), queries * blocks)
                for chunk in T.serial(chunks):
                    filled = rows_of_tile(tile, group, tokens, t0, chunk)
                    if in_lanes(by_query, lanes, filled):
                        step.lay(q_t, q, heads, filled, scale, b, t0, h, chunk * heads)
                        call("fill_rows", o_t.data, o_t.shape[0], lanes)
                    else:
                        load_rows(dtype, q_r, 0, q, tile, filled, scale, b, t0, h, chunk)
                        call("fill_rows", o.data, filled, dv)
                    load_bounds(lo, hi, facts.ranges, filled, t0, q_start, heads, keys)
                    call("fill", top.data, NEG_INF, lanes)
                    call("fill", total.data, T.float32(0), lanes)
                    passes = T.ceildiv(end, width)
                    for i in T.serial(passes):
                        j0 = i * width
                        rows = T.min(width, end - j0)
                        stage_step(step, k, k_up, v, v_up, rows, b, j0, h)
                        if in_lanes(by_query, lanes, filled):
                            step.score(
                                *(s.data, k, k_up, q_t, rows),
                                step.ahead(
                                    *(k, T.min(width, end - j0 - rows), (b, j0 + rows, h)),
                                    *(q, heads, filled, (i, passes), (b, t0, h, chunk * heads)),
                                    read=True,
                                ),
                                *(b, j0, h),
                            )
                            if is_masked(tile, group, j0 + rows > bound_at(seen, q_start + t0, keys)):
                                call(f"mask_lanes<{lanes}, 1>", s.data, lo.data, hi.data, j0, rows)
                            step.weigh(s, p, rows, scale, top, total, alpha, kept=True)
                        else:
                            attend_rows(
                                *(dtype, (o, top, total), s_r, q_r, 0, filled, (k, k_up), (v, v_up), lo, hi),
                                *(b, j0, h, rows, T.min(width, end - j0 - rows)),
                            )
                            call(f"lay_in_lanes<{wide}>", s.data, s_r.data, filled, rows)
                        keep_sums(sums, tops, facts, worker, i, s, rows, top)
                        if in_lanes(by_query, lanes, filled):
                            step.add(
                                *(o_t, v, v_up, s, p, rows, alpha),
                                step.ahead(
                                    *(v, T.min(width, end - j0 - rows), (b, j0 + rows, h)),
                                    *(out, heads, filled, (i, passes), (b, t0, h, chunk * heads)),
                                    read=False,
                                ),
                                *(b, j0, h),
                            )
                    store_sums(lse, top, total, 0, tile, filled, b, t0, h, chunk)
                    if in_lanes(by_query, lanes, filled):
                        unpack_lanes(dtype, out, o_t, heads, filled, total, b, t0, h, chunk * heads)
                    else:
                        store_rows(dtype, out, o, 0, total, tile, filled, b, t0, h, chunk)
                    add_scores(scores, sums, tops, facts, worker, passes, top, total)
                for t in T.serial(T.min(queries, tokens - t0)):
                    list_blocks(indices, scores, desc, worker, b, t0 + t, h, t, q_start + t0 + t)
            close_tiles(step.paired)

    return scored_attention
