"""Streamed attention, backward, in two parts that need no atomics: over runs of queries, and over what runs left.

Weights are recomputed from lse: p = exp(s - lse), and divided by their sum, since lse was rounded. With dp = dout . v
and delta = sum_j p_j dp_j, which is dout . out but for out's rounding, an output that counts `gate` times has
ds = p * (gate * (dp - delta) + dlse) and dv = gate * p dout, and delta is the gradient of the gate. So neither out nor
gate * dout has to be in memory, and one dout serves all paths of a program, which add up dq. A tile of queries passes
twice over its keys: first for p and dp, which it keeps, and delta; then for ds, and from it dq, dk and dv: five
products in all. A run of queries is one task, and sums dk and dv of its tiles in a place of its own; `sums` adds those
of all runs, always in the same order.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
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
    pack_lanes,
    prelude,
    product,
    rows_at,
    rows_of_tile,
    scalar,
    stage_rows,
    unpack_lanes,
)
from .run_sums import seen_by_run, sums_kernel


def get_stream_attention_bwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`part`, `dk`, `dv`, `visible`, and `group` for runs)."""
    if desc.word("part") == "sums":
        return sums_kernel(desc, desc.streamed)
    return runs_kernel(desc, schedule)


def runs_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel q, k, v, lse, dout, dlse, gates -> dq, and dk and dv of each run of queries, and grad_gates.

    The output's gates are column `column` of `gates`; past the first, dq is added to what is there.
    """
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    ranges = desc.streamed.ranges
    tile = RowTile.of(group, schedule.query_lanes)
    lanes, queries, heads, chunks = tile.lanes, tile.queries, tile.heads, tile.chunks
    step, storage, converted = schedule.key_tile, STORAGE[dtype], dtype != "float32"
    staged, wide_k, wide_v = step if converted else 1, padded(dk), padded(dv)
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
            finish_row(state, lane, grad_gates, do_up, column, b, t, h, g)

    def add_to_keys(parts, key, kept, weights, rows_up, rows, filled):
        """Return the call that adds weights [keys, lanes] times the tile's rows to gradients of keys, from `key` on."""
        wide = rows_up.shape[1]
        return call(
            product(wide, schedule, "SUM"),
            *(T.address_of(parts[(*key, 0)]), wide, T.address_of(kept[(*weights, 0)]), lanes, 1),
            *(rows_up.data, rows, filled, rows_up.data),
        )

    @T.macro
    def copy_rows(x, rows_of_x, wide, b, t0, h, chunk, filled):
        """Copy the tile's rows of x [batch, tokens, kv_heads, group, dim] as float32, zeros past dim."""
        for i in T.serial(T.ceildiv(filled, heads)):
            call(
                f"up_rows<{ELEMENT[dtype]}>",
                *(T.address_of(rows_of_x[i * heads, 0]), wide, T.address_of(x[b, t0 + i, h, chunk * heads, 0])),
                *(x.shape[-1], T.min(heads, filled - i * heads), T.min(heads, filled - i * heads), x.shape[-1]),
            )

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
        with T.Kernel(1, prelude=prelude()) as _:
            q_t = T.alloc_local((dk, lanes), "float32")
            do_t = T.alloc_local((dv, lanes), "float32")
            dq_t = T.alloc_local((dk, lanes), "float32")
            q_up = T.alloc_local((lanes, wide_k), "float32")
            do_up = T.alloc_local((lanes, wide_v), "float32")
            state = T.alloc_local((OF_ROW, lanes), "float32")
            factors = T.alloc_local((lanes,), "float32")
            lo = T.alloc_local((len(ranges), lanes), "int32")
            hi = T.alloc_local((len(ranges), lanes), "int32")
            k_up = T.alloc_local((staged, dk), "float32")
            v_up = T.alloc_local((staged, dv), "float32")
            b, h, index, first, last, begin, end = (T.alloc_var("int32") for _ in range(7))
            from_key, to_key, stop, t0, j0, at, rows, filled = (T.alloc_var("int32") for _ in range(8))
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
                        pack_lanes(dtype, q_t, q, heads, filled, scalar("log2_units", scale), b, t0, h, chunk * heads)
                        pack_lanes(dtype, do_t, dout, heads, filled, T.float32(1), b, t0, h, chunk * heads)
                        copy_rows(q, q_up, wide_k, b, t0, h, chunk, filled)
                        copy_rows(dout, do_up, wide_v, b, t0, h, chunk, filled)
                        load_rows(
                            *(state, lse, dlse, gates, gate_step, column),
                            *(filled, b, t0, h, chunk),
                        )
                        load_bounds(lo, hi, ranges, filled, t0, q_start, heads, keys)
                        call("fill", dq_t.data, T.float32(0), dk * lanes)
                        end = 0
                        at = 0
                        for span in ranges:
                            begin = T.max(end, bound_at(span.lo, first, keys))
                            end = T.max(begin, bound_at(span.hi, last, keys))
                            steps = T.ceildiv(end - begin, step)
                            for x in T.serial(steps):
                                j0 = begin + x * step
                                rows = T.min(step, end - j0)
                                if converted:
                                    stage_rows(dtype, k, k_up, rows, b, j0, h)
                                    stage_rows(dtype, v, v_up, rows, b, j0, h)
                                call(
                                    product(lanes, schedule, "ZERO"),
                                    *(T.address_of(kept[worker, 0, at, 0]), lanes),
                                    *(*rows_at(dtype, k, k_up, b, j0, h), q_t.data, rows, dk, q_t.data),
                                    lines_of(dtype, q, heads, filled, (x, steps), b, t0, h, chunk * heads, ahead=True),
                                )
                                if T.Or(j0 < bound_at(span.lo, last, keys), j0 + rows > bound_at(span.hi, first, keys)):
                                    call(
                                        f"mask_lanes<{lanes}, {len(ranges)}>",
                                        *(T.address_of(kept[worker, 0, at, 0]), lo.data, hi.data, j0, rows),
                                    )
                                call(
                                    product(lanes, schedule, "ZERO"),
                                    *(T.address_of(kept[worker, 1, at, 0]), lanes),
                                    *(*rows_at(dtype, v, v_up, b, j0, h), do_t.data, rows, dv, do_t.data),
                                    lines_of(
                                        dtype, dout, heads, filled, (x, steps), b, t0, h, chunk * heads, ahead=True
                                    ),
                                )
                                call(
                                    f"weigh<{lanes}>",
                                    *(T.address_of(kept[worker, 0, at, 0]), T.address_of(kept[worker, 1, at, 0])),
                                    *(rows, of_rows(state, LOG_SUM), of_rows(state, TOTAL), of_rows(state, DELTA)),
                                )
                                at = at + rows
                        finish_rows(state, grad_gates, do_up, column, filled, b, t0, h, chunk)
                        end = 0
                        at = 0
                        for span in ranges:
                            begin = T.max(end, bound_at(span.lo, first, keys))
                            end = T.max(begin, bound_at(span.hi, last, keys))
                            steps = T.ceildiv(end - begin, step)
                            for x in T.serial(steps):
                                j0 = begin + x * step
                                rows = T.min(step, end - j0)
                                if converted:
                                    stage_rows(dtype, k, k_up, rows, b, j0, h)
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
                                    parts_k, (b, h, index, j0 - from_key), kept, (worker, 1, at), q_up, rows, filled
                                )
                                add_to_keys(
                                    parts_v, (b, h, index, j0 - from_key), kept, (worker, 0, at), do_up, rows, filled
                                )
                                at = at + rows
                        call("fill", factors.data, scale, lanes)
                        if column > 0:
                            unpack_lanes(dtype, dq, dq_t, heads, filled, factors, b, t0, h, chunk * heads, added=True)
                        else:
                            unpack_lanes(dtype, dq, dq_t, heads, filled, factors, b, t0, h, chunk * heads)

    return stream_attention_runs
