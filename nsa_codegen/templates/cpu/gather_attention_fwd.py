"""Gathered attention, forward: softmax over the tokens of each query's list of blocks (paper eq. 11, selected path).

One task is a run of queries of one key/value head. The heads of a group share the list; keys lie in the lanes. The
blocks are read from packed copies, or, when few queries make packing a whole sequence a waste, packed one by one.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from ...tiling import HEADS_PER_STEP, QUERIES_PER_TASK, padded
from .common import (
    ELEMENT,
    NEG_INF,
    STORAGE,
    call,
    decode_task,
    down,
    listed_product,
    mask_tail,
    prelude,
    product,
    scalar,
    up,
)


def get_gather_attention_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`group`, `dk`, `dv`, `block`, `n`, `reach`, `source`)."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    block, n, causal = desc.size("block"), desc.size("n"), desc.word("reach") == "causal"
    packed, element, storage = desc.word("source") == "packed", ELEMENT[dtype], STORAGE[dtype]
    width, columns = padded(block), padded(dv)
    slots = max(1, min(n, schedule.key_tile * 16 // width))
    run, heads = QUERIES_PER_TASK, min(group, HEADS_PER_STEP)
    chunks = -(-group // heads)
    row = slots * width
    batch, tokens, keys, kv_heads, blocks = (T.dynamic(x) for x in ("batch", "tokens", "keys", "kv_heads", "blocks"))
    k_shape = (batch, kv_heads, blocks, dk, width) if packed else (batch, keys, kv_heads, dk)
    v_shape = (batch, kv_heads, blocks, block, columns) if packed else (batch, keys, kv_heads, dv)

    def values_of(v: Any, staged: Any, b: Any, h: Any, j: Any) -> Any:
        return T.address_of(v[b, h, j, 0, 0]) if packed else staged.data

    @T.macro
    def load_queries(q, q_up, b, t, h, chunk, scale):
        for g in T.serial(heads):
            for c in T.serial(dk):
                if chunk * heads + g < group:
                    q_up[g, c] = up(dtype, q[b, t, h, chunk * heads + g, c]) * scalar("log2_units", scale)
                else:
                    q_up[g, c] = 0.0

    @T.macro
    def stage_keys(k, k_t, b, h, j):
        call(
            f"pack_lanes<{element}, 1>",
            *(k_t.data, width, T.address_of(k[b, j * block, h, 0]), T.int64(kv_heads) * dk, dk),
            *(T.min(block, keys - j * block), dk, T.float32(1)),
        )

    @T.macro
    def stage_values(v, v_up, b, h, j):
        call(
            f"up_rows<{element}>",
            *(v_up.data, columns, T.address_of(v[b, j * block, h, 0]), T.int64(kv_heads) * dv),
            *(T.min(block, keys - j * block), block, dv),
        )

    @T.macro
    def store_outputs(out, lse, o, top, total, b, t, h, chunk):
        for g in T.serial(heads):
            if chunk * heads + g < group:
                norm = scalar("inverse", total[g])
                for c in T.serial(dv):
                    out[b, t, h, chunk * heads + g, c] = down(dtype, o[g, c] * norm)
                lse[b, t, h, chunk * heads + g] = scalar("log_sum_exp", top[g], total[g])

    @T.prim_func
    def gather_attention(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k: T.Tensor(k_shape, "float32" if packed else storage),
        v: T.Tensor(v_shape, "float32" if packed else storage),
        block_indices: T.Tensor((batch, tokens, kv_heads, n), "int32"),
        out: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        length: T.int32,
        q_start: T.int32,
        scale: T.float32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(n)) as _:
            q_up = T.alloc_local((heads, dk), "float32")
            s = T.alloc_local((heads, row), "float32")
            o = T.alloc_local((heads, columns), "float32")
            top = T.alloc_local((heads,), "float32")
            total = T.alloc_local((heads,), "float32")
            chosen = T.alloc_local((n,), "int32")
            k_t = T.alloc_local((dk, 1 if packed else width), "float32")
            v_up = T.alloc_local((1 if packed else block, columns), "float32")
            b, h, t0 = (T.alloc_var("int32") for _ in range(3))
            end, count, base, used, seen, factor = (*(T.alloc_var("int32") for _ in range(5)), T.alloc_var("float32"))
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
                        load_queries(q, q_up, b, t, h, chunk, scale)
                        call("fill", o.data, T.float32(0), heads * columns)
                        call("fill", top.data, NEG_INF, heads)
                        call("fill", total.data, T.float32(0), heads)
                        for i in T.serial(T.ceildiv(count, slots)):
                            base = i * slots
                            used = T.min(slots, count - base)
                            if packed:
                                call(
                                    listed_product(width, heads, schedule),
                                    *(s.data, row, q_up.data, dk, T.address_of(k[b, h, 0, 0, 0]), dk * width),
                                    *(T.address_of(chosen[base]), used, heads, dk),
                                )
                            for x in T.serial(used):
                                if not packed:
                                    stage_keys(k, k_t, b, h, chosen[base + x])
                                    call(
                                        product(width, schedule, "ZERO"),
                                        *(T.address_of(s[0, x * width]), row, q_up.data, dk, 1),
                                        *(k_t.data, heads, dk, o.data),
                                    )
                                seen = T.min(block, end - chosen[base + x] * block)
                                mask_tail(s, heads, x * width + seen, (x + 1) * width)
                            for g in T.serial(heads):
                                factor = T.call_extern(
                                    "float32",
                                    "nsa::softmax_row",
                                    *(T.address_of(s[g, 0]), used * width),
                                    *(T.address_of(top[g]), T.address_of(total[g])),
                                )
                                if i > 0:
                                    call("scale_row", T.address_of(o[g, 0]), factor, columns)
                            for x in T.serial(used):
                                if not packed:
                                    stage_values(v, v_up, b, h, chosen[base + x])
                                seen = T.min(block, end - chosen[base + x] * block)
                                if heads == 1:
                                    call(
                                        f"product_row<{columns}>",
                                        *(o.data, T.address_of(s[0, x * width])),
                                        *(values_of(v, v_up, b, h, chosen[base + x]), seen),
                                    )
                                else:
                                    call(
                                        product(columns, schedule, "ADD"),
                                        *(o.data, columns, T.address_of(s[0, x * width]), row, 1),
                                        *(values_of(v, v_up, b, h, chosen[base + x]), heads, seen, o.data),
                                    )
                        store_outputs(out, lse, o, top, total, b, t, h, chunk)

    return gather_attention
