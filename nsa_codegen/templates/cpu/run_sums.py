"""The gradients of keys and values, added up from those of the runs of queries: the last part of a backward."""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...index_sets import RangeSet
from ...runs import KEYS_PER_TASK
from ...tiling import padded
from .common import ELEMENT, STORAGE, bound_at, call, decode_task, prelude


def seen_by_run(visible: RangeSet, index: Any, run: Any, q_start: Any, tokens: Any, keys: Any) -> tuple[Any, Any]:
    """Return the first key that some query of run `index` sees, and the one after the last (`Runs`)."""
    first, last = q_start + index * run, q_start + T.min((index + 1) * run, tokens) - 1
    begin, end = bound_at(visible.ranges[0].lo, first, keys), bound_at(visible.ranges[0].hi, last, keys)
    for span in visible.ranges[1:]:
        end = T.max(end, bound_at(span.hi, last, keys))
    return begin, T.max(begin, end)


def sums_kernel(desc: KernelDesc, visible: RangeSet) -> Any:
    """Return the kernel dk and dv of each run -> dk times `scale`, dv; a task has KEYS_PER_TASK keys."""
    dtype, dk, dv = desc.dtype, desc.size("dk"), desc.size("dv")
    wide_k, wide_v, some = padded(dk), padded(dv), KEYS_PER_TASK
    batch, keys, kv_heads, runs, reach = (T.dynamic(n) for n in ("batch", "keys", "kv_heads", "runs", "reach"))

    @T.prim_func
    def run_sums(
        parts_k: T.Tensor((batch, kv_heads, runs, reach, wide_k), "float32"),
        parts_v: T.Tensor((batch, kv_heads, runs, reach, wide_v), "float32"),
        grad_k: T.Tensor((batch, keys, kv_heads, dk), STORAGE[dtype]),
        grad_v: T.Tensor((batch, keys, kv_heads, dv), STORAGE[dtype]),
        tokens: T.int32,
        run: T.int32,
        q_start: T.int32,
        scale: T.float32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            sum_k = T.alloc_local((some, wide_k), "float32")
            sum_v = T.alloc_local((some, wide_v), "float32")
            b, h, j0, wide, from_key, to_key, begin, end = (T.alloc_var("int32") for _ in range(8))
            for task in T.serial(task_lo, task_hi):
                b, h, j0, _ = decode_task(task, T.ceildiv(keys, some), kv_heads, 1, some)
                wide = T.min(some, keys - j0)
                call("fill", sum_k.data, T.float32(0), some * wide_k)
                call("fill", sum_v.data, T.float32(0), some * wide_v)
                for index in T.serial(runs):
                    from_key, to_key = seen_by_run(visible, index, run, q_start, tokens, keys)
                    begin = T.max(j0, from_key)
                    end = T.min(j0 + wide, to_key)
                    if begin < end:
                        call(
                            "add_row<nsa::f32>",
                            *(
                                T.address_of(sum_k[begin - j0, 0]),
                                T.address_of(parts_k[b, h, index, begin - from_key, 0]),
                            ),
                            (end - begin) * wide_k,
                        )
                        call(
                            "add_row<nsa::f32>",
                            *(
                                T.address_of(sum_v[begin - j0, 0]),
                                T.address_of(parts_v[b, h, index, begin - from_key, 0]),
                            ),
                            (end - begin) * wide_v,
                        )
                call(
                    f"down_rows<{ELEMENT[dtype]}>",
                    *(T.address_of(grad_k[b, j0, h, 0]), T.int64(kv_heads) * dk, sum_k.data, wide_k, wide, dk, scale),
                )
                call(
                    f"down_rows<{ELEMENT[dtype]}>",
                    *(T.address_of(grad_v[b, j0, h, 0]), T.int64(kv_heads) * dv, sum_v.data, wide_v, wide, dv),
                    T.float32(1),
                )

    return run_sums
