"""Streamed attention, backward, in two parts that need no atomics: over runs of queries, and over what runs left.

Weights are recomputed from lse: p = exp(s - lse), and divided by their sum, since lse was rounded. With dp = dout . v
and delta = sum_j p_j dp_j, which is dout . out but for out's rounding, an output that counts `gate` times has
ds = p * (gate * (dp - delta) + dlse) and dv = gate * p dout, and delta is the gradient of the gate. So neither out nor
gate * dout has to be in memory, and one dout serves all paths of a program, which add up dq. A tile of queries passes
twice over its keys: first for p and dp, which it keeps, and delta; then for ds, and from it dq, dk and dv: five
products in all. A run of queries is one task, and sums dk and dv of its tiles in a place of its own; `sums` adds those
of all runs, always in the same order. Where products are made over pairs, gradients of scores and weights become
bfloat16 for the last three.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...pairs import in_pairs
from ...schedule import Schedule
from ...target import Target
from ...tiling import RowTile, padded
from .backward_rows import ADDED, DELTA, GATE, LOG_SUM, OF_ROW, TOTAL, clear_row, finish_row, load_row, of_rows
from .common import (
    ELEMENT,
    STORAGE,
    bound_at,
    call,
    columns_at,
    decode_run,
    lines_of,
    load_bounds,
    position_stride,
    prelude,
    product,
    rows_of_tile,
    stage_rows,
    unpack_lanes,
)
from .lane_step import LaneStep, close_tiles, open_tiles, transpose
from .run_sums import seen_by_run, sums_kernel


def get_stream_attention_bwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`part`, `dk`, `dv`, `visible`, and `group` for runs)."""
    if desc.word("part") == "sums":
        return sums_kernel(desc, desc.streamed)
    return runs_kernel(desc, schedule, target)


def runs_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel q, k, v, lse, dout, dlse, gates -> dq, and dk and dv of each run of queries, and grad_gates.

    The output's gates are column `column` of `gates`; past the first, dq is added to what is there.
    """
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    ranges = desc.streamed.ranges
    tile = RowTile.of(group, schedule.query_lanes)
    lanes, queries, heads, chunks = tile.lanes, tile.queries, tile.heads, tile.chunks
    width, storage, wide_k, wide_v = schedule.key_tile, STORAGE[dtype], padded(dk), padded(dv)
    step = LaneStep.of(desc, schedule, target, lanes=lanes, keys=width)
    paired, long, deep = step.paired, in_pairs(width), in_pairs(lanes)
    converted = dtype != "float32" and not paired
    rows_held, left = ((deep // 2, "uint32"), (long, deep)) if paired else ((lanes, "float32"), (1, 1))
    batch, tokens, keys, kv_heads, runs, reach, passed, workers = (
        T.dynamic(n) for n in ("batch", "tokens", "keys", "kv_heads", "runs", "reach", "passed", "workers")
    )
    gate_rows, paths = T.dynamic("gate_rows"), T.dynamic("paths")

    @T.macro
    def load_rows(state, lse, dlse, gates, gate_step, column, filled, b, t0, h, chunk):
        """Set what each lane's query starts from."""
        for lane in T.serial(lanes):
            t = t0 + T.truncdiv(lane, heads)
            g = chunk * heads + T.truncmod(lane, heads)
            clear_row(state, lane)
            if lane < filled:
                load_row(state, lane, lse, dlse, gates, gate_step, column, b, t, h, g)

    @T.macro
    def finish_rows(state, grad_gates, do_up, column, filled, b, t0, h, chunk):
        for lane in T.serial(filled):
            t = t0 + T.truncdiv(lane, heads)
            g = chunk * heads + T.truncmod(lane, heads)
            finish_row(state, lane, grad_gates, column, b, t, h, g)
            if not paired:  # of dout, leave what goes to the values
                call("scale_row", T.address_of(do_up[lane, 0]), state[GATE, lane], wide_v)

    def add_to_keys(parts, key, weights, rows_up, rows, filled):
        """Return the call that adds weights [keys, lanes] times the tile's rows to gradients of keys, from `key` on."""
        wide = rows_up.shape[1]
        to = (T.address_of(parts[(*key, 0)]), wide, weights)
        if paired:
            return call("pair_product<true>", *to, T.int64(deep), rows_up.data, wide, rows, wide, in_pairs(filled))
        return call(product(wide, schedule, "SUM"), *to, lanes, 1, rows_up.data, rows, filled, rows_up.data)

    @T.macro
    def copy_rows(x, rows_of_x, wide, b, t0, h, chunk, filled):
        """Copy the tile's rows of x [batch, tokens, kv_heads, group, dim], zeros past dim: in pairs, or as float32."""
        if paired:
            call(
                f"pair_rows<{heads}>",
                *(rows_of_x.data, wide, T.address_of(x[b, t0, h, chunk * heads, 0])),
                *(position_stride(x), x.shape[-1], filled, in_pairs(filled), x.shape[-1], T.uint32(0)),
            )
        else:
            for i in T.serial(T.ceildiv(filled, heads)):
                call(
                    f"up_rows<{ELEMENT[dtype]}>",
                    *(T.address_of(rows_of_x[i * heads, 0]), wide, T.address_of(x[b, t0 + i, h, chunk * heads, 0])),
                    *(x.shape[-1], T.min(heads, filled - i * heads), T.min(heads, filled - i * heads), x.shape[-1]),
                )

    @T.macro
    def stage(x, x_up, rows, b, j0, h):
        """Bring keys or values that are converted into the form that products of numbers read."""
        if converted:
            stage_rows(dtype, x, x_up, rows, b, j0, h)

    @T.prim_func
    def stream_attention_runs(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k: T.Tensor((batch, keys, kv_heads, dk), storage),
        v: T.Tensor((batch, keys, kv_heads, dv), storage),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        dout: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        dlse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        gates: T.Tensor((gate_rows, paths), "float32"),
        grad_gates: T.Tensor((batch, tokens, kv_heads, group, paths), "float32"),
        dq: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        parts_k: T.Tensor((batch, kv_heads, runs, reach, wide_k), "float32"),
        parts_v: T.Tensor((batch, kv_heads, runs, reach, wide_v), "float32"),
        kept: T.Tensor((workers, 2, passed, lanes), "float32"),  # a tile's p, and dp
        gate_step: T.int32,
        column: T.int32,
        run: T.int32,
        q_start: T.int32,
        scale: T.float32,
        worker: T.int32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(paired=paired)) as _:
            q_t = T.alloc_local(*step.laid(dk))
            do_t = T.alloc_local(*step.laid(dv))
            dq_t = T.alloc_local(*step.summed(dk))
            q_up = T.alloc_local((rows_held[0], wide_k), rows_held[1])
            do_up = T.alloc_local((rows_held[0], wide_v), rows_held[1])
            state = T.alloc_local((OF_ROW, lanes), "float32")
            factors = T.alloc_local((lanes,), "float32")
            lo = T.alloc_local((len(ranges), lanes), "int32")
            hi = T.alloc_local((len(ranges), lanes), "int32")
            k_up = T.alloc_local(*step.staged(dk))
            v_up = T.alloc_local(*step.staged(dv))
            k_t = T.alloc_local(*(step.transposed(dk) if paired else ((1, 1), "float32")))
            ds_t = T.alloc_local(*step.pairs)
            ds = T.alloc_local(left, "uint16")
            p = T.alloc_local(left, "uint16")
            b, h, index, first, last, begin, end = (T.alloc_var("int32") for _ in range(7))
            from_key, to_key, stop, t0, j0, at, rows, filled = (T.alloc_var("int32") for _ in range(8))
            if deep > lanes and paired:  # lanes that hold no query count for nothing
                call("fill_rows", ds.data, long, deep // 2)
                call("fill_rows", p.data, long, deep // 2)
            open_tiles(paired)
            for task in T.serial(task_lo, task_hi):
                b, h, index = decode_run(task, runs, kv_heads)
                from_key, to_key = seen_by_run(desc.streamed, index, run, q_start, tokens, keys)
                call("fill_rows", T.address_of(parts_k[b, h, index, 0, 0]), to_key - from_key, wide_k)
                call("fill_rows", T.address_of(parts_v[b, h, index, 0, 0]), to_key - from_key, wide_v)
                stop = T.min((index + 1) * run, tokens)
                for i in T.serial(T.ceildiv(stop - index * run, queries)):
                    t0 = index * run + i * queries
                    first = q_start + t0
                    last = q_start + T.min(t0 + queries, stop) - 1
                    for chunk in T.serial(chunks):
                        filled = rows_of_tile(tile, group, stop, t0, chunk)
                        step.lay(q_t, q, heads, filled, scale, b, t0, h, chunk * heads)
                        step.lay(do_t, dout, heads, filled, None, b, t0, h, chunk * heads)
                        copy_rows(q, q_up, wide_k, b, t0, h, chunk, filled)
                        copy_rows(dout, do_up, wide_v, b, t0, h, chunk, filled)
                        load_rows(
                            *(state, lse, dlse, gates, gate_step, column),
                            *(filled, b, t0, h, chunk),
                        )
                        load_bounds(lo, hi, ranges, filled, t0, q_start, heads, keys)
                        call("fill_rows", dq_t.data, dq_t.shape[0], lanes)
                        end = 0
                        at = 0
                        for span in ranges:
                            begin = T.max(end, bound_at(span.lo, first, keys))
                            end = T.max(begin, bound_at(span.hi, last, keys))
                            steps = T.ceildiv(end - begin, width)
                            for x in T.serial(steps):
                                j0 = begin + x * width
                                rows = T.min(width, end - j0)
                                stage(k, k_up, rows, b, j0, h)
                                stage(v, v_up, rows, b, j0, h)
                                step.score(
                                    *(T.address_of(kept[worker, 0, at, 0]), k, k_up, q_t, rows),
                                    lines_of(dtype, q, heads, filled, (x, steps), b, t0, h, chunk * heads, ahead=True),
                                    *(b, j0, h),
                                )
                                if T.Or(j0 < bound_at(span.lo, last, keys), j0 + rows > bound_at(span.hi, first, keys)):
                                    call(
                                        f"mask_lanes<{lanes}, {len(ranges)}>",
                                        *(T.address_of(kept[worker, 0, at, 0]), lo.data, hi.data, j0, rows),
                                    )
                                step.score(
                                    *(T.address_of(kept[worker, 1, at, 0]), v, v_up, do_t, rows),
                                    lines_of(
                                        dtype, dout, heads, filled, (x, steps), b, t0, h, chunk * heads, ahead=True
                                    ),
                                    *(b, j0, h),
                                )
                                call(
                                    f"weigh<{lanes}>",
                                    *(T.address_of(kept[worker, 0, at, 0]), T.address_of(kept[worker, 1, at, 0]), rows),
                                    *(step.units(scale), of_rows(state, LOG_SUM)),
                                    *(of_rows(state, TOTAL), of_rows(state, DELTA)),
                                )
                                at = at + rows
                        finish_rows(state, grad_gates, do_up, column, filled, b, t0, h, chunk)
                        end = 0
                        at = 0
                        for span in ranges:
                            begin = T.max(end, bound_at(span.lo, first, keys))
                            end = T.max(begin, bound_at(span.hi, last, keys))
                            steps = T.ceildiv(end - begin, width)
                            for x in T.serial(steps):
                                j0 = begin + x * width
                                rows = T.min(width, end - j0)
                                if paired:
                                    transpose(k, k_t, rows, b, j0, h)
                                    call(
                                        f"to_scores_pairs<{lanes}>",
                                        *(ds_t.data, ds.data, p.data, deep),
                                        *(T.address_of(kept[worker, 1, at, 0]), T.address_of(kept[worker, 0, at, 0])),
                                        *(rows, in_pairs(rows)),
                                        *(of_rows(state, GATE), of_rows(state, DELTA), of_rows(state, ADDED)),
                                    )
                                    call(
                                        "pair_product<true>",
                                        *(dq_t.data, lanes, k_t.data, T.int64(long), ds_t.data, lanes),
                                        *(dq_t.shape[0], lanes, in_pairs(rows)),
                                        lines_of(dtype, dq, heads, filled, (x, steps), b, t0, h, chunk * heads),
                                    )
                                    add_to_keys(parts_k, (b, h, index, j0 - from_key), ds.data, q_up, rows, filled)
                                    add_to_keys(parts_v, (b, h, index, j0 - from_key), p.data, do_up, rows, filled)
                                else:
                                    stage(k, k_up, rows, b, j0, h)
                                    call(
                                        f"to_scores<{lanes}>",
                                        *(T.address_of(kept[worker, 1, at, 0]), T.address_of(kept[worker, 0, at, 0])),
                                        *(rows, of_rows(state, GATE), of_rows(state, DELTA), of_rows(state, ADDED)),
                                    )
                                    call(
                                        product(lanes, schedule, "SUM"),
                                        *(dq_t.data, lanes, *columns_at(dtype, k, k_up, b, j0, h)),
                                        *(T.address_of(kept[worker, 1, at, 0]), dk, rows, q_t.data),
                                        lines_of(dtype, dq, heads, filled, (x, steps), b, t0, h, chunk * heads),
                                    )
                                    add_to_keys(
                                        *(parts_k, (b, h, index, j0 - from_key), T.address_of(kept[worker, 1, at, 0])),
                                        *(q_up, rows, filled),
                                    )
                                    add_to_keys(
                                        *(parts_v, (b, h, index, j0 - from_key), T.address_of(kept[worker, 0, at, 0])),
                                        *(do_up, rows, filled),
                                    )
                                at = at + rows
                        call("fill", factors.data, scale, lanes)
                        if column > 0:
                            unpack_lanes(dtype, dq, dq_t, heads, filled, factors, b, t0, h, chunk * heads, added=True)
                        else:
                            unpack_lanes(dtype, dq, dq_t, heads, filled, factors, b, t0, h, chunk * heads)
            close_tiles(paired)

    return stream_attention_runs
