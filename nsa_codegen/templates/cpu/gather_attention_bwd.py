"""Gathered attention, backward, in two parts that need no atomics: over runs of queries, and over what runs left.

A query passes twice over its list, with the formulas and for the reasons of the streamed attention's backward: first
for p and p * (dp - base), which it keeps, then for dq, and for dk and dv, which its run of queries sums in a place of
its own. `sums` adds those of all runs, always in the same order.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...runs import reach_of
from ...schedule import Schedule
from ...target import Target
from ...tiling import HEADS_PER_STEP, padded
from .common import NEG_INF, STORAGE, call, decode_run, down, prelude, product, scalar, up
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
    heads = min(group, HEADS_PER_STEP)
    chunks = -(-group // heads)
    batch, tokens, kv_heads, blocks, runs, reach, workers = (
        T.dynamic(x) for x in ("batch", "tokens", "kv_heads", "blocks", "runs", "reach", "workers")
    )

    @T.macro
    def load_queries(q, out, lse, dout, dlse, q_up, do_up, logs, base, rest, b, t, h, chunk, scale):
        call("fill", q_up.data, T.float32(0), heads * wide_k)
        call("fill", do_up.data, T.float32(0), heads * wide_v)
        for g in T.serial(heads):
            logs[g] = -NEG_INF
            base[g] = 0.0
            rest[g] = 0.0
            if chunk * heads + g < group:
                for c in T.serial(dk):
                    q_up[g, c] = up(dtype, q[b, t, h, chunk * heads + g, c]) * scalar("log2_units", scale)
                for c in T.serial(dv):
                    do_up[g, c] = up(dtype, dout[b, t, h, chunk * heads + g, c])
                    base[g] = base[g] + do_up[g, c] * up(dtype, out[b, t, h, chunk * heads + g, c])
                rest[g] = -dlse[b, t, h, chunk * heads + g]
                logs[g] = scalar("log2_of", lse[b, t, h, chunk * heads + g])

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
        kept: T.Tensor((workers, 2, n, heads, width), "float32"),  # a query's p, and p * (dp - base)
        length: T.int32,
        run: T.int32,
        q_start: T.int32,
        scale: T.float32,
        worker: T.int32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(n)) as _:
            q_up = T.alloc_local((heads, wide_k), "float32")
            do_up = T.alloc_local((heads, wide_v), "float32")
            dq_up = T.alloc_local((heads, wide_k), "float32")
            logs = T.alloc_local((heads,), "float32")
            base = T.alloc_local((heads,), "float32")
            rest = T.alloc_local((heads,), "float32")
            chosen = T.alloc_local((n,), "int32")
            b, h, index, to_key, end, count, j, seen = (T.alloc_var("int32") for _ in range(8))
            for task in T.serial(task_lo, task_hi):
                b, h, index = decode_run(task, runs, kv_heads)
                _, to_key = seen_by_run(reach_of(desc), index, run, q_start, tokens, length)
                call("fill_rows", T.address_of(parts_k[b, h, index, 0, 0]), to_key, wide_k)
                call("fill_rows", T.address_of(parts_v[b, h, index, 0, 0]), to_key, wide_v)
                for t in T.serial(index * run, T.min((index + 1) * run, tokens)):
                    end = T.min(length, q_start + t + 1) if causal else length
                    count = T.call_extern(
                        "int32",
                        "nsa::distinct_blocks",
                        *(chosen.data, T.address_of(block_indices[b, t, h, 0]), n, T.ceildiv(end, block)),
                    )
                    for chunk in T.serial(chunks):
                        load_queries(
                            *(q, out, lse, dout, dlse, q_up, do_up, logs, base, rest),
                            *(b, t, h, chunk, scale),
                        )
                        call("fill", dq_up.data, T.float32(0), heads * wide_k)
                        for x in T.serial(count):
                            j = chosen[x]
                            seen = T.min(block, end - j * block)
                            call(
                                product(width, schedule, "ZERO"),
                                *(T.address_of(kept[worker, 0, x, 0, 0]), width, q_up.data, wide_k, 1),
                                *(T.address_of(k_columns[b, h, j, 0, 0]), heads, dk, q_up.data),
                            )
                            call(
                                product(width, schedule, "ZERO"),
                                *(T.address_of(kept[worker, 1, x, 0, 0]), width, do_up.data, wide_v, 1),
                                *(T.address_of(v_columns[b, h, j, 0, 0]), heads, dv, q_up.data),
                            )
                            for g in T.serial(heads):
                                for lane in T.serial(seen, width):
                                    kept[worker, 0, x, g, lane] = NEG_INF
                                rest[g] = rest[g] + scalar(
                                    "weigh_row",
                                    *(T.address_of(kept[worker, 0, x, g, 0]), T.address_of(kept[worker, 1, x, g, 0])),
                                    *(width, logs[g], base[g]),
                                )
                        for x in T.serial(count):
                            j = chosen[x]
                            seen = T.min(block, end - j * block)
                            for g in T.serial(heads):
                                call(
                                    "axpy<nsa::f32>",
                                    *(T.address_of(kept[worker, 1, x, g, 0]), T.address_of(kept[worker, 0, x, g, 0])),
                                    *(-rest[g], width),
                                )
                            call(
                                product(wide_k, schedule, "SUM"),
                                *(dq_up.data, wide_k, T.address_of(kept[worker, 1, x, 0, 0]), width, 1),
                                *(T.address_of(k_rows[b, h, j, 0, 0]), heads, seen, q_up.data),
                            )
                            call(
                                product(wide_k, schedule, "SUM"),
                                *(T.address_of(parts_k[b, h, index, j * block, 0]), wide_k),
                                *(T.address_of(kept[worker, 1, x, 0, 0]), 1, width, q_up.data, seen, heads, q_up.data),
                            )
                            call(
                                product(wide_v, schedule, "SUM"),
                                *(T.address_of(parts_v[b, h, index, j * block, 0]), wide_v),
                                *(T.address_of(kept[worker, 0, x, 0, 0]), 1, width, do_up.data, seen, heads, q_up.data),
                            )
                        for g in T.serial(T.min(heads, group - chunk * heads)):
                            for c in T.serial(dk):
                                dq[b, t, h, chunk * heads + g, c] = down(dtype, dq_up[g, c] * scale)

    return gather_attention_runs
