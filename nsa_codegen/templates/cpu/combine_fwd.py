"""Gated combination, forward: out = sum over paths of gate times the path's output (paper eq. 5)."""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from .common import ELEMENT, STORAGE, call, prelude, up


def get_combine_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`paths`, `dv`, `gates`): o0 .. o3, gates -> out. Unused inputs are left out."""
    dtype, paths, dv = desc.dtype, desc.size("paths"), desc.size("dv")
    storage, shared = STORAGE[dtype], desc.word("gates") == "scalar"
    rows = T.dynamic("rows")

    def weighted(outs, gates, r):
        """Return row r of each path's output, and behind it its gate."""
        weights = [gates[0, p] if shared else up(dtype, gates[r, p]) for p in range(paths)]
        return [x for o, weight in zip(outs, weights, strict=False) for x in (T.address_of(o[r, 0]), weight)]

    @T.prim_func
    def combine(
        o0: T.Tensor((rows, dv), storage),
        o1: T.Tensor((rows, dv), storage),
        o2: T.Tensor((rows, dv), storage),
        o3: T.Tensor((rows, dv), storage),
        gates: T.Tensor((1, paths) if shared else (rows, paths), "float32" if shared else storage),
        out: T.Tensor((rows, dv), storage),
        rows_per_task: T.int32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            for task in T.serial(task_lo, task_hi):
                for r in T.serial(task * rows_per_task, T.min((task + 1) * rows_per_task, rows)):
                    call(
                        f"weighted_sum<{ELEMENT[dtype]}>",
                        *(T.address_of(out[r, 0]), dv, *weighted((o0, o1, o2, o3), gates, r)),
                    )

    return combine
