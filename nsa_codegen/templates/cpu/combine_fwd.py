"""Gated combination, forward: out = sum over paths of gate times the path's output (paper eq. 5)."""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from .common import ELEMENT, STORAGE, call, down, prelude, up


def get_combine_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`paths`, `dv`, `gates`): o0 .. o3, gates -> out. Unused inputs are left out."""
    dtype, paths, dv = desc.dtype, desc.size("paths"), desc.size("dv")
    storage, shared = STORAGE[dtype], desc.word("gates") == "scalar"
    rows = T.dynamic("rows")

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
            acc = T.alloc_local((dv,), "float32")
            for task in T.serial(task_lo, task_hi):
                for r in T.serial(task * rows_per_task, T.min((task + 1) * rows_per_task, rows)):
                    call("fill", acc.data, T.float32(0), dv)
                    for p in tuple(range(paths)):
                        call(
                            f"axpy<{ELEMENT[dtype]}>",
                            *(acc.data, T.address_of((o0, o1, o2, o3)[p][r, 0])),
                            gates[0, p] if shared else up(dtype, gates[r, p]),
                            dv,
                        )
                    for c in T.serial(dv):
                        out[r, c] = down(dtype, acc[c])

    return combine
