"""Block selection, forward: block scores and their top-k, with no score matrix (paper eq. 8-11).

One task is a tile of queries of one key/value head. `compressed` keeps, per tile of compressed tokens, the block sums
relative to the running maximum of that moment, and normalises them at the end: one product, memory O(blocks) a worker.
`mean_key` scores the group's summed query against the mean key of each complete block.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from ...tiling import padded
from .block_scores import BlockScores, add_scores, invert, is_masked, keep_sums, list_blocks
from .common import (
    ELEMENT,
    FEW_LANES,
    NEG_INF,
    STORAGE,
    bound_at,
    call,
    decode_task,
    keys_ahead,
    lines_of,
    load_bounds,
    pack_lanes,
    prelude,
    product,
    rows_at,
    rows_of_tile,
    scalar,
    stage_rows,
)
from .few_rows import FEW_ROWS, in_lanes, is_one_vector, rows_ahead


def get_select_blocks_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`method`, `group`, `dk`, `block`, `n`, `initial`, `local`): q, k -> indices."""
    if desc.word("method") == "compressed":
        return compressed_kernel(desc, schedule)
    return mean_key_kernel(desc, schedule, target)


def compressed_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel of the paper's selection: softmax over compressed tokens, summed into blocks and over heads."""
    dtype, group, dk, n = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("n")
    facts = BlockScores.of(desc, schedule)
    tile, step, spilled, seen = facts.tile, facts.scored.tokens, facts.scored.spilled, facts.seen
    lanes, queries, heads, chunks = tile.lanes, tile.queries, tile.heads, tile.chunks
    converted = dtype != "float32"
    batch, tokens, keys, kv_heads, workers, steps, blocks = (
        T.dynamic(x) for x in ("batch", "tokens", "keys", "kv_heads", "workers", "steps", "blocks")
    )

    @T.prim_func
    def select_blocks(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), STORAGE[dtype]),
        k: T.Tensor((batch, keys, kv_heads, dk), STORAGE[dtype]),
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
        with T.Kernel(1, prelude=prelude(n)) as _:
            q_t = T.alloc_local((dk, lanes), "float32")
            s = T.alloc_local((step, lanes), "float32")
            top = T.alloc_local((lanes,), "float32")
            total = T.alloc_local((lanes,), "float32")
            factor = T.alloc_local((lanes,), "float32")
            lo = T.alloc_local((1, lanes), "int32")
            hi = T.alloc_local((1, lanes), "int32")
            k_up = T.alloc_local((step if converted else 1, dk), "float32")
            b, h, t0 = (T.alloc_var("int32") for _ in range(3))
            end, j0, rows, filled = (T.alloc_var("int32") for _ in range(4))
            for task in T.serial(task_lo, task_hi):
                b, h, t0, _ = decode_task(task, T.ceildiv(tokens, queries), kv_heads, 1, queries)
                end = bound_at(seen, q_start + T.min(t0 + queries, tokens) - 1, keys)
                call("fill", T.address_of(scores[worker, 0, 0]), T.float32(0), queries * blocks)
                for chunk in T.serial(chunks):
                    filled = rows_of_tile(tile, group, tokens, t0, chunk)
                    pack_lanes(dtype, q_t, q, heads, filled, scalar("log2_units", scale), b, t0, h, chunk * heads)
                    load_bounds(lo, hi, facts.ranges, filled, t0, q_start, heads, keys)
                    call("fill", top.data, NEG_INF, lanes)
                    call("fill", total.data, T.float32(0), lanes)
                    passes = T.ceildiv(end, step)
                    for i in T.serial(passes):
                        j0 = i * step
                        rows = T.min(step, end - j0)
                        if converted:
                            stage_rows(dtype, k, k_up, rows, b, j0, h)
                        call(
                            product(lanes, schedule, "ZERO"),
                            *(s.data, lanes, *rows_at(dtype, k, k_up, b, j0, h), q_t.data, rows, dk, factor.data),
                            keys_ahead(dtype, k, T.min(step, end - j0 - rows), b, j0 + rows, h)
                            if lanes <= FEW_LANES
                            else lines_of(dtype, q, heads, filled, (i, passes), b, t0, h, chunk * heads, ahead=True),
                        )
                        if is_masked(tile, group, j0 + rows > bound_at(seen, q_start + t0, keys)):
                            call(f"mask_lanes<{lanes}, 1>", s.data, lo.data, hi.data, j0, rows)
                        call(f"softmax_step<{lanes}>", s.data, rows, top.data, total.data, factor.data)
                        keep_sums(sums, tops, facts, worker, i, s, rows, top)
                    invert(total, lanes)
                    add_scores(scores, sums, tops, facts, worker, passes, top, total)
                for t in T.serial(T.min(queries, tokens - t0)):
                    list_blocks(indices, scores, desc, worker, b, t0 + t, h, t, q_start + t0 + t)

    return select_blocks


def mean_key_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel of the seed's selection: `k` holds the float32 means of the complete blocks."""
    dtype, group, dk, block = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("block")
    n, lanes, step, wide = desc.size("n"), schedule.query_lanes, schedule.key_tile, padded(schedule.key_tile)
    by_query = is_one_vector(lanes, target) and dk >= lanes
    batch, tokens, keys, kv_heads, workers, blocks = (
        T.dynamic(x) for x in ("batch", "tokens", "keys", "kv_heads", "workers", "blocks")
    )

    @T.macro
    def load_queries(q, q_t, q_head, rows, b, t0, h):
        """Pack the tile's queries, summed over the group's heads, as [dk, lanes]."""
        pack_lanes(dtype, q_t, q, 1, rows, T.float32(1), b, t0, h, 0)
        for g in T.serial(1, group):
            pack_lanes(dtype, q_head, q, 1, rows, T.float32(1), b, t0, h, g)
            call("add_row<nsa::f32>", q_t.data, q_head.data, dk * lanes)

    @T.macro
    def load_rows(q, q_r, rows, b, t0, h):
        """Lay the tile's queries, summed over the group's heads, side by side, [rows, dk]."""
        for t in T.serial(rows):
            call(f"up_row<{ELEMENT[dtype]}>", T.address_of(q_r[t, 0]), T.address_of(q[b, t0 + t, h, 0, 0]), dk)
            for g in T.serial(1, group):
                call(f"add_row<{ELEMENT[dtype]}>", T.address_of(q_r[t, 0]), T.address_of(q[b, t0 + t, h, g, 0]), dk)

    @T.prim_func
    def select_blocks(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), STORAGE[dtype]),
        k: T.Tensor((batch, keys, kv_heads, dk), "float32"),
        indices: T.Tensor((batch, tokens, kv_heads, n), "int32"),
        scores: T.Tensor((workers, lanes, blocks), "float32"),
        q_start: T.int32,
        task_lo: T.int32,
        task_hi: T.int32,
        worker: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(n)) as _:
            q_t = T.alloc_local((dk, lanes), "float32")
            q_head = T.alloc_local((dk, lanes), "float32")
            q_r = T.alloc_local((FEW_ROWS if by_query else 1, dk), "float32")
            ones = T.alloc_local((lanes,), "float32")
            s = T.alloc_local((step, lanes), "float32")
            s_r = T.alloc_local((FEW_ROWS if by_query else 1, wide), "float32")
            b, h, t0 = (T.alloc_var("int32") for _ in range(3))
            end, j0, rows, filled = (T.alloc_var("int32") for _ in range(4))
            call("fill", ones.data, T.float32(1), lanes)
            for task in T.serial(task_lo, task_hi):
                b, h, t0, _ = decode_task(task, T.ceildiv(tokens, lanes), kv_heads, 1, lanes)
                filled = T.min(lanes, tokens - t0)
                if in_lanes(by_query, lanes, filled):
                    load_queries(q, q_t, q_head, filled, b, t0, h)
                else:
                    load_rows(q, q_r, filled, b, t0, h)
                end = T.min(keys, T.truncdiv(q_start + T.min(t0 + lanes, tokens) - 1, block))
                passes = T.ceildiv(end, step)
                for i in T.serial(passes):
                    j0 = i * step
                    rows = T.min(step, end - j0)
                    if in_lanes(by_query, lanes, filled):
                        call(
                            product(lanes, schedule, "ZERO"),
                            *(s.data, lanes, *rows_at("float32", k, k, b, j0, h), q_t.data, rows, dk, s.data),
                            keys_ahead("float32", k, T.min(step, end - j0 - rows), b, j0 + rows, h)
                            if lanes <= FEW_LANES
                            else lines_of(dtype, q, group, filled * group, (i, passes), b, t0, h, 0, ahead=True),
                        )
                        call(
                            "unpack_lanes<nsa::f32, 1>",
                            *(T.address_of(scores[worker, 0, j0]), T.int64(blocks), 0),
                            *(s.data, lanes, filled, rows, ones.data),
                        )
                    else:
                        call(
                            f"score_rows<{dk}>",
                            *(s_r.data, wide, q_r.data, filled, *rows_at("float32", k, k, b, j0, h)[:2], rows),
                            rows_ahead("float32", k, T.min(step, end - j0 - rows), b, j0 + rows, h),
                        )
                        for t in T.serial(filled):
                            call("copy", T.address_of(scores[worker, t, j0]), T.address_of(s_r[t, 0]), rows)
                for t in T.serial(T.min(lanes, tokens - t0)):
                    list_blocks(indices, scores, desc, worker, b, t0 + t, h, t, q_start + t0 + t)

    return select_blocks
