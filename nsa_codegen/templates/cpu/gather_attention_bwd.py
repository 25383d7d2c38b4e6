"""Gathered attention, backward, in two parts that need no atomics: over queries (dq), and over blocks (dk, dv).

`queries` follows each query's list as the forward does and writes delta = sum_j p_j dp_j - dlse; the formulas are
those of the streamed attention's backward. `keys` follows the inverse index, for each block the queries that list it
in ascending order, so that a block's gradient is summed by one task and always in the same order.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from ...tiling import HEADS_PER_STEP, QUERIES_PER_TASK, RowTile, padded
from .common import NEG_INF, STORAGE, call, decode_task, down, mask_tail, prelude, product, scalar, up


def get_gather_attention_bwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`part`, `group`, `dk`, `dv`, `block`, `reach`, and `n` for queries)."""
    return {"queries": queries_kernel, "keys": keys_kernel}[desc.word("part")](desc, schedule)


def queries_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel q, k packed both ways, v by columns, list, out, lse, dout, dlse -> dq, delta."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    block, n, causal = desc.size("block"), desc.size("n"), desc.word("reach") == "causal"
    storage, width, columns = STORAGE[dtype], padded(block), padded(dk)
    run, heads = QUERIES_PER_TASK, min(group, HEADS_PER_STEP)
    chunks = -(-group // heads)
    batch, tokens, kv_heads, blocks = (T.dynamic(x) for x in ("batch", "tokens", "kv_heads", "blocks"))

    @T.macro
    def load_queries(q, out, lse, dout, dlse, q_up, do_up, logs, base, rest, b, t, h, chunk, scale):
        call("fill", q_up.data, T.float32(0), heads * dk)
        call("fill", do_up.data, T.float32(0), heads * dv)
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
    def gather_attention_queries(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k_columns: T.Tensor((batch, kv_heads, blocks, dk, width), "float32"),
        k_rows: T.Tensor((batch, kv_heads, blocks, block, columns), "float32"),
        v_columns: T.Tensor((batch, kv_heads, blocks, dv, width), "float32"),
        block_indices: T.Tensor((batch, tokens, kv_heads, n), "int32"),
        out: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        dout: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        dlse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        dq: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        delta: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        length: T.int32,
        q_start: T.int32,
        scale: T.float32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(n)) as _:
            q_up = T.alloc_local((heads, dk), "float32")
            do_up = T.alloc_local((heads, dv), "float32")
            weighted = T.alloc_local((heads, columns), "float32")  # sum of p * (dp - base) * k
            mean = T.alloc_local((heads, columns), "float32")  # sum of p * k
            s = T.alloc_local((heads, width), "float32")
            ds = T.alloc_local((heads, width), "float32")
            logs = T.alloc_local((heads,), "float32")
            base = T.alloc_local((heads,), "float32")
            rest = T.alloc_local((heads,), "float32")
            chosen = T.alloc_local((n,), "int32")
            b, h, t0, end, count, j, seen = (T.alloc_var("int32") for _ in range(7))
            for task in T.serial(task_lo, task_hi):
                b, h, t0, _ = decode_task(task, T.ceildiv(tokens, run), kv_heads, 1, run)
                for t in T.serial(t0, T.min(t0 + run, tokens)):
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
                        call("fill", weighted.data, T.float32(0), heads * columns)
                        call("fill", mean.data, T.float32(0), heads * columns)
                        for x in T.serial(count):
                            j = chosen[x]
                            seen = T.min(block, end - j * block)
                            call(
                                product(width, schedule, "ZERO"),
                                *(s.data, width, q_up.data, dk, 1, T.address_of(k_columns[b, h, j, 0, 0])),
                                *(heads, dk, s.data),
                            )
                            mask_tail(s, heads, seen, width)
                            call(
                                product(width, schedule, "ZERO"),
                                *(ds.data, width, do_up.data, dv, 1, T.address_of(v_columns[b, h, j, 0, 0])),
                                *(heads, dv, s.data),
                            )
                            for g in T.serial(heads):
                                rest[g] = rest[g] + scalar(
                                    "weigh_row", T.address_of(s[g, 0]), T.address_of(ds[g, 0]), width, logs[g], base[g]
                                )
                            for gathered, weights in ((weighted, ds), (mean, s)):
                                call(
                                    product(columns, schedule, "ADD"),
                                    *(gathered.data, columns, weights.data, width, 1),
                                    *(T.address_of(k_rows[b, h, j, 0, 0]), heads, seen, s.data),
                                )
                        for g in T.serial(T.min(heads, group - chunk * heads)):
                            delta[b, t, h, chunk * heads + g] = base[g] + rest[g]
                            for c in T.serial(dk):
                                dq[b, t, h, chunk * heads + g, c] = down(
                                    dtype, (weighted[g, c] - rest[g] * mean[g, c]) * scale
                                )

    return gather_attention_queries


def keys_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel q, packed k and v by columns, inverse index, lse, delta, dout -> dk, dv."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    block, causal = desc.size("block"), desc.word("reach") == "causal"
    storage, width = STORAGE[dtype], padded(block)
    tile = RowTile.of(group, schedule.key_tile)
    queries, heads, chunks, step = tile.queries, tile.heads, tile.chunks, tile.queries * tile.heads
    batch, tokens, keys, kv_heads, blocks, entries = (
        T.dynamic(x) for x in ("batch", "tokens", "keys", "kv_heads", "blocks", "entries")
    )

    @T.macro
    def load_queries(q, dout, q_up, do_up, b, t, h, chunk, row):
        """Copy the heads of query t into rows from `row` on; a head that is not there becomes 0."""
        for g in T.serial(heads):
            for c in T.serial(dk):
                q_up[row + g, c] = 0.0
            for c in T.serial(dv):
                do_up[row + g, c] = 0.0
            if chunk * heads + g < group:
                for c in T.serial(dk):
                    q_up[row + g, c] = up(dtype, q[b, t, h, chunk * heads + g, c])
                for c in T.serial(dv):
                    do_up[row + g, c] = up(dtype, dout[b, t, h, chunk * heads + g, c])

    @T.prim_func
    def gather_attention_keys(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k_columns: T.Tensor((batch, kv_heads, blocks, dk, width), "float32"),
        v_columns: T.Tensor((batch, kv_heads, blocks, dv, width), "float32"),
        starts: T.Tensor((batch, kv_heads, blocks, 2), "int64"),
        listing: T.Tensor((entries,), "int32"),
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
            k_t = T.alloc_local((dk, width), "float32")
            dk_t = T.alloc_local((dk, width), "float32")
            dv_t = T.alloc_local((dv, width), "float32")
            part = T.alloc_local((max(dk, dv), width), "float32")  # one tile's sum: shorter sums round less
            q_up = T.alloc_local((step, dk), "float32")
            do_up = T.alloc_local((step, dv), "float32")
            s = T.alloc_local((step, width), "float32")
            ds = T.alloc_local((step, width), "float32")
            b, h, j, t, rows, seen = (T.alloc_var("int32") for _ in range(6))
            begin, end = T.alloc_var("int64"), T.alloc_var("int64")
            for task in T.serial(task_lo, task_hi):
                b, h, j, _ = decode_task(task, blocks, kv_heads, 1, 1)
                begin = starts[b, h, j, 0]
                end = starts[b, h, j, 1]
                call("copy", k_t.data, T.address_of(k_columns[b, h, j, 0, 0]), dk * width)
                call("scale_row", k_t.data, scalar("log2_units", scale), dk * width)
                call("fill", dk_t.data, T.float32(0), dk * width)
                call("fill", dv_t.data, T.float32(0), dv * width)
                for chunk in T.serial(chunks):
                    for i in T.serial(T.ceildiv(end - begin, queries)):
                        rows = T.Cast("int32", T.min(T.int64(queries), end - begin - i * queries)) * heads
                        for x in T.serial(T.truncdiv(rows, heads)):
                            load_queries(q, dout, q_up, do_up, b, listing[begin + i * queries + x], h, chunk, x * heads)
                        call(
                            product(width, schedule, "ZERO"),
                            *(s.data, width, q_up.data, dk, 1, k_t.data, rows, dk, s.data),
                        )
                        call(
                            product(width, schedule, "ZERO"),
                            *(ds.data, width, do_up.data, dv, 1, T.address_of(v_columns[b, h, j, 0, 0])),
                            *(rows, dv, s.data),
                        )
                        for x in T.serial(T.truncdiv(rows, heads)):
                            t = listing[begin + i * queries + x]
                            seen = T.min(block, keys - j * block)
                            if causal:
                                seen = T.min(seen, q_start + t + 1 - j * block)
                            for g in T.serial(heads):
                                for lane in T.serial(seen, width):
                                    s[x * heads + g, lane] = NEG_INF
                                if chunk * heads + g < group:
                                    call(
                                        "softmax_backward_row",
                                        *(T.address_of(s[x * heads + g, 0]), T.address_of(ds[x * heads + g, 0])),
                                        *(width, scalar("log2_of", lse[b, t, h, chunk * heads + g])),
                                        delta[b, t, h, chunk * heads + g],
                                    )
                                else:
                                    call("fill", T.address_of(s[x * heads + g, 0]), T.float32(0), width)
                                    call("fill", T.address_of(ds[x * heads + g, 0]), T.float32(0), width)
                        call(
                            product(width, schedule, "ZERO"),
                            *(part.data, width, do_up.data, 1, dv, s.data, dv, rows, s.data),
                        )
                        call("add_row<nsa::f32>", dv_t.data, part.data, dv * width)
                        call(
                            product(width, schedule, "ZERO"),
                            *(part.data, width, q_up.data, 1, dk, ds.data, dk, rows, s.data),
                        )
                        call("add_row<nsa::f32>", dk_t.data, part.data, dk * width)
                for lane in T.serial(T.min(block, keys - j * block)):
                    for c in T.serial(dk):
                        grad_k[b, j * block + lane, h, c] = down(dtype, dk_t[c, lane] * scale)
                    for c in T.serial(dv):
                        grad_v[b, j * block + lane, h, c] = down(dtype, dv_t[c, lane])

    return gather_attention_keys
