"""Gathered attention, backward, in two parts that need no atomics: over runs of queries, and over what runs left.

A tile of queries passes twice over its lists, with the formulas and for the reasons of the streamed attention's
backward: first for p and dp, which it keeps, then for dq, and for dk and dv, which its run of queries sums
in a place of its own. Block by block, the rows of those that list it are taken together, as in the forward. `sums` adds
what all runs left, always in the same order. Products over pairs take blocks packed in pairs, and as bfloat16 queries,
gradients of the output and of scores, and weights.
"""

from typing import Any

import tilelang.language as T

from ...desc import LAYOUTS, KernelDesc
from ...pairs import PAIR_ROWS, in_pairs, members_kept, packed_block
from ...runs import SUMS_SCALE, reach_of
from ...schedule import Schedule
from ...target import Target
from ...tiling import RowTile, padded
from .backward_rows import ADDED, DELTA, GATE, LOG_SUM, OF_ROW, TOTAL, clear_row, finish_row, load_row, of_rows
from .common import (
    ELEMENT,
    NEG_INF,
    STORAGE,
    call,
    decode_run,
    down_row,
    lines_at,
    members_at,
    prelude,
    product,
    scalar,
    up_row,
)
from .gathered_pairs import score_members, sum_members
from .lane_step import close_tiles, flip_of, open_tiles
from .packing import HELD
from .run_sums import seen_by_run, sums_kernel


def get_gather_attention_bwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`part`, `dk`, `dv`, `reach`, and `group`, `block`, `n` for runs)."""
    if desc.word("part") == "sums":
        return sums_kernel(desc, reach_of(desc))
    return runs_kernel(desc, schedule, target)


def runs_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel q, k packed both ways, v by columns, list, lse, dout, dlse, gates -> dq, dk and dv of each run.

    Gates, their gradients and what becomes of dq are as in the streamed attention's. Queries are kept scaled, in log2
    units, and so is dk; over pairs gradients of scores are scaled instead, and so is dq.
    """
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    block, n, causal = desc.size("block"), desc.size("n"), desc.word("reach") == "causal"
    storage, width, wide_k, wide_v = STORAGE[dtype], padded(block), padded(dk), padded(dv)
    tile, paired = RowTile.of(group, schedule.query_lanes), target.takes_pairs(dtype)
    queries, heads, chunks, held = tile.queries, tile.heads, tile.chunks, HELD[paired]
    columns, rows = LAYOUTS[paired]
    (of_k, _), (of_v, _), (of_k_rows, _) = (
        packed_block(layout, block, dim) for layout, dim in ((columns, dk), (columns, dv), (rows, dk))
    )
    # Numbers of 4 bytes in a row of queries and of dout, rows behind the last, and what pairs of rows take.
    row_k, row_v, behind = (in_pairs(dk) // 2, in_pairs(dv) // 2, PAIR_ROWS) if paired else (wide_k, wide_v, 1)
    many_pairs = in_pairs(queries * heads) // 2 if paired else 1
    batch, tokens, kv_heads, blocks, runs, reach, workers = (
        T.dynamic(x) for x in ("batch", "tokens", "kv_heads", "blocks", "runs", "reach", "workers")
    )
    gate_rows, paths = T.dynamic("gate_rows"), T.dynamic("paths")

    @T.macro
    def load_heads(up, x, i, b, t0, h, chunk, flip):
        """Copy the heads of query t0 + i to the rows of `up`, as bfloat16."""
        call(
            "copy_rows",
            *(T.address_of(up[i * heads, 0]), 2 * up.shape[1], T.address_of(x[b, t0 + i, h, chunk * heads, 0])),
            *(T.int64(x.shape[4]), T.min(heads, group - chunk * heads), heads, x.shape[4], flip),
        )

    @T.macro
    def load_queries(state, q, dout, q_up, do_up, lse, dlse, gates, gate_step, column, taken, b, t0, h, chunk, scale):
        if not paired:
            call("fill_rows", q_up.data, taken * heads, wide_k)
            call("fill_rows", do_up.data, taken * heads, wide_v)
        for i in T.serial(taken):
            if paired:
                load_heads(q_up, q, i, b, t0, h, chunk, flip_of(scale))
                load_heads(do_up, dout, i, b, t0, h, chunk, T.uint32(0))
            for g in T.serial(heads):
                row = i * heads + g
                clear_row(state, row)
                if chunk * heads + g < group:
                    if not paired:
                        up_row(
                            *(dtype, T.address_of(q_up[row, 0])),
                            *(T.address_of(q[b, t0 + i, h, chunk * heads + g, 0]), dk),
                        )
                        call("scale_row", T.address_of(q_up[row, 0]), scalar("log2_units", scale), dk)
                        up_row(
                            *(dtype, T.address_of(do_up[row, 0])),
                            *(T.address_of(dout[b, t0 + i, h, chunk * heads + g, 0]), dv),
                        )
                    load_row(state, row, lse, dlse, gates, gate_step, column, b, t0 + i, h, chunk * heads + g)

    @T.macro
    def finish_queries(state, grad_gates, do_up, column, taken, b, t0, h, chunk):
        for i in T.serial(taken):
            for g in T.serial(T.min(heads, group - chunk * heads)):
                finish_row(state, i * heads + g, grad_gates, column, b, t0 + i, h, chunk * heads + g)
                if not paired:  # of dout, leave what goes to the values
                    call("scale_row", T.address_of(do_up[i * heads + g, 0]), state[GATE, i * heads + g], wide_v)

    def end_of(t, length, q_start):
        """The end of the keys that query `t` may see."""
        return T.min(length, q_start + t + 1) if causal else length

    def kept_of(kept, worker, which, first):
        """Where what is kept of a member is, by its number from `first` on."""
        return lambda x: T.address_of(kept[worker, which, first + x, 0, 0])

    def block_of(x, b, h, j):
        """Where a packed block is."""
        return lambda: T.address_of(x[b, h, j, 0, 0])

    @T.macro
    def add_to_keys(
        parts, b, h, index, j, after, weights, across, pairs, up, spare, dim, members, first, many, seen, flip
    ):
        """Add the members' rows to the gradients of a block's keys, weighted by pairs of rows [pair, key]."""
        call(
            "pair_rows<1>",
            *(pairs.data, pairs.shape[1], members_at("member_rows", spare, up, heads, members, first, many)),
            *(T.int64(2 * up.shape[1]), T.int64(0), many * heads, in_pairs(many * heads), dim, flip),
        )
        call(
            "add_across",
            *(T.address_of(parts[b, h, index, j * block, 0]), pairs.shape[1], weights.data, width, across.data),
            *(pairs.data, pairs.shape[1], seen, pairs.shape[1], in_pairs(many * heads)),
            lines_at(T.address_of(parts[b, h, index, after * block, 0]), block * pairs.shape[1], written=True),
        )

    @T.prim_func
    def gather_attention_runs(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k_columns: T.Tensor((batch, kv_heads, blocks, *of_k), held),
        k_rows: T.Tensor((batch, kv_heads, blocks, *of_k_rows), held),
        v_columns: T.Tensor((batch, kv_heads, blocks, *of_v), held),
        block_indices: T.Tensor((batch, tokens, kv_heads, n), "int32"),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        dout: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        dlse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        gates: T.Tensor((gate_rows, paths), "float32"),
        grad_gates: T.Tensor((batch, tokens, kv_heads, group, paths), "float32"),
        dq: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        parts_k: T.Tensor((batch, kv_heads, runs, reach, wide_k), "float32"),
        parts_v: T.Tensor((batch, kv_heads, runs, reach, wide_v), "float32"),
        kept: T.Tensor((workers, 2, members_kept(desc, tile), heads, width), "float32"),  # by member: p, and dp
        marks: T.Tensor((workers, blocks, 2), "int32"),
        gate_step: T.int32,
        column: T.int32,
        length: T.int32,
        run: T.int32,
        q_start: T.int32,
        scale: T.float32,
        worker: T.int32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(n, paired=paired)) as _:
            q_up = T.alloc_local((queries * heads + behind, row_k), held)
            do_up = T.alloc_local((queries * heads + behind, row_v), held)
            dq_up = T.alloc_local((queries * heads, wide_k), "float32")
            q_rows = T.alloc_local((queries * heads + behind, row_k), held)
            do_rows = T.alloc_local((queries * heads + behind, row_v), held)
            dq_rows = T.alloc_local((queries * heads + behind, wide_k), "float32")
            q_pairs = T.alloc_local((many_pairs, wide_k), held)
            do_pairs = T.alloc_local((many_pairs, wide_v), held)
            ds = T.alloc_local((queries * heads + behind if paired else 1, in_pairs(width)), "uint16")
            ds_pairs = T.alloc_local((many_pairs, width), "uint32")
            p_pairs = T.alloc_local((many_pairs, width), "uint32")
            across = T.alloc_local((width if paired else 1, many_pairs), "uint32")
            state = T.alloc_local((OF_ROW, queries * heads), "float32")
            limits = T.alloc_local((queries,), "int32")
            counts = T.alloc_local((queries,), "int32")
            listed = T.alloc_local((queries * n,), "int32")
            begins = T.alloc_local((queries * n + 1,), "int32")
            members = T.alloc_local((queries * n,), "int32")
            places = T.alloc_local((queries, n), "int32")
            b, h, index, to_key, t0, stop, taken, found = (T.alloc_var("int32") for _ in range(8))
            j, after, first, many, seen, member = (T.alloc_var("int32") for _ in range(6))
            call("fill_rows", T.address_of(marks[worker, 0, 0]), blocks, 2)
            if paired:  # what lies behind the keys of a row stays 0
                call("fill_rows", ds.data, ds.shape[0], in_pairs(width) // 2)
            open_tiles(paired)
            for task in T.serial(task_lo, task_hi):
                b, h, index = decode_run(task, runs, kv_heads)
                _, to_key = seen_by_run(reach_of(desc), index, run, q_start, tokens, length)
                call("fill_rows", T.address_of(parts_k[b, h, index, 0, 0]), to_key, wide_k)
                call("fill_rows", T.address_of(parts_v[b, h, index, 0, 0]), to_key, wide_v)
                stop = T.min((index + 1) * run, tokens)
                for step in T.serial(T.ceildiv(stop - index * run, queries)):
                    t0 = index * run + step * queries
                    taken = T.min(queries, stop - t0)
                    for i in T.serial(taken):
                        limits[i] = T.ceildiv(end_of(t0 + i, length, q_start), block)
                    found = T.call_extern(
                        "int32",
                        "nsa::group_blocks",
                        *(listed.data, begins.data, members.data, places.data, counts.data),
                        *(T.address_of(marks[worker, 0, 0]), T.address_of(block_indices[b, t0, h, 0])),
                        *(T.int64(kv_heads) * n, limits.data, taken, n),
                    )
                    for chunk in T.serial(chunks):
                        load_queries(
                            *(state, q, dout, q_up, do_up, lse, dlse, gates, gate_step, column),
                            *(taken, b, t0, h, chunk, scale),
                        )
                        call("fill_rows", dq_up.data, taken * heads, wide_k)
                        for u in T.serial(found):
                            j = listed[u]
                            after = listed[T.min(u + 1, found - 1)]
                            first = begins[u]
                            many = begins[u + 1] - first
                            if paired:
                                score_members(
                                    *(heads, kept_of(kept, worker, 0, first), q_up, q_rows, members, first, many),
                                    *(block_of(k_columns, b, h, j), width),
                                )
                                score_members(
                                    *(heads, kept_of(kept, worker, 1, first), do_up, do_rows, members, first, many),
                                    *(block_of(v_columns, b, h, j), width),
                                )
                            else:
                                call(
                                    product(width, schedule, "ZERO"),
                                    *(T.address_of(kept[worker, 0, first, 0, 0]), width),
                                    *(members_at("member_rows", q_rows, q_up, heads, members, first, many), wide_k, 1),
                                    *(T.address_of(k_columns[b, h, j, 0, 0]), many * heads, dk, q_rows.data),
                                    lines_at(T.address_of(k_columns[b, h, after, 0, 0]), dk * width),
                                )
                                call(
                                    product(width, schedule, "ZERO"),
                                    *(T.address_of(kept[worker, 1, first, 0, 0]), width),
                                    *(
                                        members_at("member_rows", do_rows, do_up, heads, members, first, many),
                                        wide_v,
                                        1,
                                    ),
                                    *(T.address_of(v_columns[b, h, j, 0, 0]), many * heads, dv, q_rows.data),
                                    lines_at(T.address_of(v_columns[b, h, after, 0, 0]), dv * width),
                                )
                            for x in T.serial(many):
                                member = members[first + x]
                                seen = T.min(block, end_of(t0 + member, length, q_start) - j * block)
                                for g in T.serial(heads):
                                    for lane in T.serial(seen, width):
                                        kept[worker, 0, first + x, g, lane] = NEG_INF
                                    row = member * heads + g
                                    call(
                                        "weigh_row",
                                        T.address_of(kept[worker, 0, first + x, g, 0]),
                                        T.address_of(kept[worker, 1, first + x, g, 0]),
                                        *(width, scalar("pair_units", scale) if paired else T.float32(1)),
                                        state[LOG_SUM, row],
                                        *(T.address_of(state[TOTAL, row]), T.address_of(state[DELTA, row])),
                                    )
                        finish_queries(state, grad_gates, do_up, column, taken, b, t0, h, chunk)
                        for u in T.serial(found):
                            j = listed[u]
                            after = listed[T.min(u + 1, found - 1)]
                            first = begins[u]
                            many = begins[u + 1] - first
                            seen = T.min(block, end_of(t0 + members[first + many - 1], length, q_start) - j * block)
                            if paired:
                                call(
                                    f"to_scores_pair_rows<{width}>",
                                    *(ds.data, ds.shape[1], ds_pairs.data, p_pairs.data),
                                    *(
                                        T.address_of(kept[worker, 1, first, 0, 0]),
                                        T.address_of(kept[worker, 0, first, 0, 0]),
                                    ),
                                    *(T.address_of(members[first]), many, heads, in_pairs(many * heads)),
                                    *(scalar("log2_units", scale), of_rows(state, GATE)),
                                    *(of_rows(state, DELTA), of_rows(state, ADDED)),
                                )
                                sum_members(
                                    *(heads, dq_up, dq_rows, lambda x: T.address_of(ds[x * heads, 0]), in_pairs(width)),
                                    *(members, first, many, block_of(k_rows, b, h, j), seen),
                                )
                                add_to_keys(
                                    *(parts_k, b, h, index, j, after, ds_pairs, across, q_pairs, q_up, q_rows),
                                    *(dk, members, first, many, seen, flip_of(scale)),
                                )
                                add_to_keys(
                                    *(parts_v, b, h, index, j, after, p_pairs, across, do_pairs, do_up, do_rows),
                                    *(dv, members, first, many, seen, T.uint32(0)),
                                )
                            else:
                                for x in T.serial(many):
                                    for g in T.serial(heads):
                                        row = members[first + x] * heads + g
                                        call(
                                            "to_scores_row",
                                            T.address_of(kept[worker, 1, first + x, g, 0]),
                                            T.address_of(kept[worker, 0, first + x, g, 0]),
                                            *(width, state[GATE, row], state[DELTA, row], state[ADDED, row]),
                                        )
                                call(
                                    product(wide_k, schedule, "SUM"),
                                    *(members_at("member_sums", dq_rows, dq_up, heads, members, first, many), wide_k),
                                    *(T.address_of(kept[worker, 1, first, 0, 0]), width, 1),
                                    *(T.address_of(k_rows[b, h, j, 0, 0]), many * heads, seen, q_rows.data),
                                    lines_at(T.address_of(k_rows[b, h, after, 0, 0]), block * wide_k),
                                )
                                call(
                                    "add_spare",
                                    dq_up.data,
                                    dq_rows.data,
                                    T.address_of(members[first]),
                                    many,
                                    heads * wide_k,
                                )
                                call(
                                    product(wide_k, schedule, "SUM"),
                                    *(T.address_of(parts_k[b, h, index, j * block, 0]), wide_k),
                                    *(T.address_of(kept[worker, 1, first, 0, 0]), 1, width),
                                    members_at("member_rows", q_rows, q_up, heads, members, first, many),
                                    *(seen, many * heads, q_rows.data),
                                    lines_at(
                                        T.address_of(parts_k[b, h, index, after * block, 0]),
                                        block * wide_k,
                                        written=True,
                                    ),
                                )
                                call(
                                    product(wide_v, schedule, "SUM"),
                                    *(T.address_of(parts_v[b, h, index, j * block, 0]), wide_v),
                                    *(T.address_of(kept[worker, 0, first, 0, 0]), 1, width),
                                    members_at("member_rows", do_rows, do_up, heads, members, first, many),
                                    *(seen, many * heads, q_rows.data),
                                    lines_at(
                                        T.address_of(parts_v[b, h, index, after * block, 0]),
                                        block * wide_v,
                                        written=True,
                                    ),
                                )
                        for i in T.serial(taken):
                            for g in T.serial(T.min(heads, group - chunk * heads)):
                                call(
                                    "scale_row",
                                    T.address_of(dq_up[i * heads + g, 0]),
                                    T.float32(SUMS_SCALE) if paired else scale,
                                    dk,
                                )
                                if column > 0:
                                    call(
                                        f"add_row<{ELEMENT[dtype]}>",
                                        *(
                                            T.address_of(dq_up[i * heads + g, 0]),
                                            T.address_of(dq[b, t0 + i, h, chunk * heads + g, 0]),
                                            dk,
                                        ),
                                    )
                                down_row(
                                    *(dtype, T.address_of(dq[b, t0 + i, h, chunk * heads + g, 0])),
                                    *(T.address_of(dq_up[i * heads + g, 0]), dk),
                                )
            close_tiles(paired)

    return gather_attention_runs
