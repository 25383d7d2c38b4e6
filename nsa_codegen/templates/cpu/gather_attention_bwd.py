"""Gathered attention, backward, in two parts that need no atomics: over runs of queries, and over what runs left.

A tile of queries passes twice over its lists, with the formulas and for the reasons of the streamed attention's
backward: first for p and p * (dp - base), which it keeps, then for dq, and for dk and dv, which its run of queries sums
in a place of its own. Block by block, the rows of those that list it are taken together, as in the forward. `sums` adds
what all runs left, always in the same order.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...runs import reach_of
from ...schedule import Schedule
from ...target import Target
from ...tiling import RowTile, padded
from .common import ELEMENT, NEG_INF, STORAGE, call, decode_run, down, prelude, product, scalar, up
from .run_sums import seen_by_run, sums_kernel


def get_gather_attention_bwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`part`, `dk`, `dv`, `reach`, and `group`, `block`, `n` for runs)."""
    if desc.word("part") == "sums":
        return sums_kernel(desc, reach_of(desc))
    return runs_kernel(desc, schedule)


def runs_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel q, k packed both ways, v by columns, list, out, lse, dout, dlse -> dq, dk and dv of each run.

    Queries are kept scaled, in log2 units, and so is dk.
    """
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    block, n, causal = desc.size("block"), desc.size("n"), desc.word("reach") == "causal"
    storage, width, wide_k, wide_v = STORAGE[dtype], padded(block), padded(dk), padded(dv)
    tile = RowTile.of(group, schedule.query_lanes)
    queries, heads, chunks = tile.queries, tile.heads, tile.chunks
    batch, tokens, kv_heads, blocks, runs, reach, workers = (
        T.dynamic(x) for x in ("batch", "tokens", "kv_heads", "blocks", "runs", "reach", "workers")
    )

    @T.macro
    def load_queries(q, out, lse, dout, dlse, q_up, do_up, logs, base, rest, taken, b, t0, h, chunk, scale):
        call("fill_rows", q_up.data, taken * heads, wide_k)
        call("fill_rows", do_up.data, taken * heads, wide_v)
        for i in T.serial(taken):
            for g in T.serial(heads):
                logs[i * heads + g] = -NEG_INF
                base[i * heads + g] = 0.0
                rest[i * heads + g] = 0.0
                if chunk * heads + g < group:
                    for c in T.serial(dk):
                        q_up[i * heads + g, c] = up(dtype, q[b, t0 + i, h, chunk * heads + g, c]) * scalar(
                            "log2_units", scale
                        )
                    for c in T.serial(dv):
                        do_up[i * heads + g, c] = up(dtype, dout[b, t0 + i, h, chunk * heads + g, c])
                    base[i * heads + g] = scalar(
                        f"dot_row<{ELEMENT[dtype]}>",
                        *(
                            T.address_of(do_up[i * heads + g, 0]),
                            T.address_of(out[b, t0 + i, h, chunk * heads + g, 0]),
                            dv,
                        ),
                    )
                    rest[i * heads + g] = -dlse[b, t0 + i, h, chunk * heads + g]
                    logs[i * heads + g] = scalar("log2_of", lse[b, t0 + i, h, chunk * heads + g])

    def end_of(t, length, q_start):
        """The end of the keys that query `t` may see."""
        return T.min(length, q_start + t + 1) if causal else length

    @T.prim_func
    def gather_attention_runs(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k_columns: T.Tensor((batch, kv_heads, blocks, dk, width), "float32"),
        k_rows: T.Tensor((batch, kv_heads, blocks, block, wide_k), "float32"),
        v_columns: T.Tensor((batch, kv_heads, blocks, dv, width), "float32"),
        block_indices: T.Tensor((batch, tokens, kv_heads, n), "int32"),
        out: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        dout: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        dlse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        dq: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        parts_k: T.Tensor((batch, kv_heads, runs, reach, wide_k), "float32"),
        parts_v: T.Tensor((batch, kv_heads, runs, reach, wide_v), "float32"),
        kept: T.Tensor((workers, 2, queries * n, heads, width), "float32"),  # by member: p, and p * (dp - base)
        marks: T.Tensor((workers, blocks, 2), "int32"),
        length: T.int32,
        run: T.int32,
        q_start: T.int32,
        scale: T.float32,
        worker: T.int32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(n)) as _:
            q_up = T.alloc_local((queries * heads + 1, wide_k), "float32")
            do_up = T.alloc_local((queries * heads + 1, wide_v), "float32")
            dq_up = T.alloc_local((queries * heads, wide_k), "float32")
            q_rows = T.alloc_local((queries * heads + 1, wide_k), "float32")
            do_rows = T.alloc_local((queries * heads + 1, wide_v), "float32")
            dq_rows = T.alloc_local((queries * heads, wide_k), "float32")
            logs = T.alloc_local((queries * heads,), "float32")
            base = T.alloc_local((queries * heads,), "float32")
            rest = T.alloc_local((queries * heads,), "float32")
            limits = T.alloc_local((queries,), "int32")
            counts = T.alloc_local((queries,), "int32")
            listed = T.alloc_local((queries * n,), "int32")
            begins = T.alloc_local((queries * n + 1,), "int32")
            members = T.alloc_local((queries * n,), "int32")
            places = T.alloc_local((queries, n), "int32")
            b, h, index, to_key, t0, stop, taken, found = (T.alloc_var("int32") for _ in range(8))
            j, first, many, seen, member = (T.alloc_var("int32") for _ in range(5))
            call("fill_rows", T.address_of(marks[worker, 0, 0]), blocks, 2)
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
                            *(q, out, lse, dout, dlse, q_up, do_up, logs, base, rest),
                            *(taken, b, t0, h, chunk, scale),
                        )
                        call("fill_rows", dq_up.data, taken * heads, wide_k)
                        for u in T.serial(found):
                            j = listed[u]
                            first = begins[u]
                            many = begins[u + 1] - first
                            call(
                                "copy_members",
                                q_rows.data,
                                q_up.data,
                                T.address_of(members[first]),
                                many,
                                heads * wide_k,
                            )
                            call(
                                "copy_members",
                                do_rows.data,
                                do_up.data,
                                T.address_of(members[first]),
                                many,
                                heads * wide_v,
                            )
                            call(
                                product(width, schedule, "ZERO"),
                                *(T.address_of(kept[worker, 0, first, 0, 0]), width, q_rows.data, wide_k, 1),
                                *(T.address_of(k_columns[b, h, j, 0, 0]), many * heads, dk, q_rows.data),
                            )
                            call(
                                product(width, schedule, "ZERO"),
                                *(T.address_of(kept[worker, 1, first, 0, 0]), width, do_rows.data, wide_v, 1),
                                *(T.address_of(v_columns[b, h, j, 0, 0]), many * heads, dv, q_rows.data),
                            )
                            for x in T.serial(many):
                                member = members[first + x]
                                seen = T.min(block, end_of(t0 + member, length, q_start) - j * block)
                                for g in T.serial(heads):
                                    for lane in T.serial(seen, width):
                                        kept[worker, 0, first + x, g, lane] = NEG_INF
                                    rest[member * heads + g] = rest[member * heads + g] + scalar(
                                        "weigh_row",
                                        T.address_of(kept[worker, 0, first + x, g, 0]),
                                        T.address_of(kept[worker, 1, first + x, g, 0]),
                                        *(width, logs[member * heads + g], base[member * heads + g]),
                                    )
                        for u in T.serial(found):
                            j = listed[u]
                            first = begins[u]
                            many = begins[u + 1] - first
                            seen = T.min(block, end_of(t0 + members[first + many - 1], length, q_start) - j * block)
                            for x in T.serial(many):
                                for g in T.serial(heads):
                                    call(
                                        "axpy<nsa::f32>",
                                        T.address_of(kept[worker, 1, first + x, g, 0]),
                                        T.address_of(kept[worker, 0, first + x, g, 0]),
                                        *(-rest[members[first + x] * heads + g], width),
                                    )
                            call(
                                "copy_members",
                                q_rows.data,
                                q_up.data,
                                T.address_of(members[first]),
                                many,
                                heads * wide_k,
                            )
                            call(
                                "copy_members",
                                do_rows.data,
                                do_up.data,
                                T.address_of(members[first]),
                                many,
                                heads * wide_v,
                            )
                            call(
                                product(wide_k, schedule, "ZERO"),
                                *(dq_rows.data, wide_k, T.address_of(kept[worker, 1, first, 0, 0]), width, 1),
                                *(T.address_of(k_rows[b, h, j, 0, 0]), many * heads, seen, q_rows.data),
                            )
                            call(
                                "add_members",
                                dq_up.data,
                                dq_rows.data,
                                T.address_of(members[first]),
                                many,
                                heads * wide_k,
                            )
                            call(
                                product(wide_k, schedule, "SUM"),
                                *(T.address_of(parts_k[b, h, index, j * block, 0]), wide_k),
                                *(T.address_of(kept[worker, 1, first, 0, 0]), 1, width, q_rows.data),
                                *(seen, many * heads, q_rows.data),
                            )
                            call(
                                product(wide_v, schedule, "SUM"),
                                *(T.address_of(parts_v[b, h, index, j * block, 0]), wide_v),
                                *(T.address_of(kept[worker, 0, first, 0, 0]), 1, width, do_rows.data),
                                *(seen, many * heads, q_rows.data),
                            )
                        for i in T.serial(taken):
                            for g in T.serial(T.min(heads, group - chunk * heads)):
                                for c in T.serial(dk):
                                    dq[b, t0 + i, h, chunk * heads + g, c] = down(
                                        dtype, dq_up[i * heads + g, c] * scale
                                    )

    return gather_attention_runs
