"""Gated combination, backward: do_p = gate_p * dout, and dgate_p = dout . o_p per row."""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from .common import ELEMENT, STORAGE, down_row, prelude, scalar, up, up_row


def get_combine_bwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`paths`, `dv`, `gates`): o0 .. o3, gates, dout -> d0 .. d3, grad_gates.

    `grad_gates` is float32 [rows, paths]; where one gate serves all rows, its gradient is their sum.
    """
    dtype, paths, dv = desc.dtype, desc.size("paths"), desc.size("dv")
    storage, shared = STORAGE[dtype], desc.word("gates") == "scalar"
    rows = T.dynamic("rows")

    @T.prim_func
    def combine_backward(
        o0: T.Tensor((rows, dv), storage),
        o1: T.Tensor((rows, dv), storage),
        o2: T.Tensor((rows, dv), storage),
        o3: T.Tensor((rows, dv), storage),
        gates: T.Tensor((1, paths) if shared else (rows, paths), "float32" if shared else storage),
        dout: T.Tensor((rows, dv), storage),
        d0: T.Tensor((rows, dv), storage),
        d1: T.Tensor((rows, dv), storage),
        d2: T.Tensor((rows, dv), storage),
        d3: T.Tensor((rows, dv), storage),
        grad_gates: T.Tensor((rows, paths), "float32"),
        rows_per_task: T.int32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            gradient = T.alloc_local((dv,), "float32")
            for task in T.serial(task_lo, task_hi):
                for r in T.serial(task * rows_per_task, T.min((task + 1) * rows_per_task, rows)):
                    up_row(dtype, gradient.data, T.address_of(dout[r, 0]), dv)
                    for p in tuple(range(paths)):
                        down_row(
                            *(dtype, T.address_of((d0, d1, d2, d3)[p][r, 0]), gradient.data, dv),
                            gates[0, p] if shared else up(dtype, gates[r, p]),
                        )
                        grad_gates[r, p] = scalar(
                            f"dot_row<{ELEMENT[dtype]}>",
                            *(gradient.data, T.address_of((o0, o1, o2, o3)[p][r, 0]), dv),
                        )

    return combine_backward
