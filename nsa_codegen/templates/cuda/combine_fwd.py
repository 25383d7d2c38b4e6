"""Gated combination, forward: out = sum over paths of gate times the path's output (paper eq. 5).

Memory-bound: a block takes a run of rows (token, head) of one sequence, a thread 16 bytes of each path at once.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import GpuSchedule
from ...target import GpuTarget
from .combine_arguments import MOST_PATHS, by_rows, load_gates, without_arguments


def get_combine_fwd_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel for `desc` (`paths`, `dv`, `gates`): o0 .. o3, gates -> out; absent paths are no arguments."""
    dtype, paths, dv = desc.dtype, desc.size("paths"), desc.size("dv")
    shared, rows = desc.word("gates") == "scalar", schedule.rows
    batch, tokens, heads = (T.dynamic(n) for n in ("batch", "tokens", "heads"))
    shape = (batch, tokens, heads, dv)
    gates_shape = (paths,) if shared else (batch, tokens, heads, paths)

    @T.prim_func
    def combine(
        o0: T.Tensor(shape, dtype),
        o1: T.Tensor(shape, dtype),
        o2: T.Tensor(shape, dtype),
        o3: T.Tensor(shape, dtype),
        gates: T.Tensor(gates_shape, "float32" if shared else dtype),
        out: T.Tensor(shape, dtype),
    ):
        with T.Kernel(T.ceildiv(tokens * heads, rows), batch, threads=schedule.threads) as (x, b):
            outs = by_rows((o0, o1, o2, o3)[:paths], dv)
            written = by_rows((out,), dv)
            weights = T.alloc_shared((rows, paths), "float32")
            load_gates(desc, rows)(gates, weights, b, x, tokens * heads)
            for i, c in T.Parallel(rows, dv):
                if x * rows + i < tokens * heads:
                    written[0][b, x * rows + i, c] = gated_sum(outs, weights, b, x * rows + i, i, c)

    return without_arguments(combine, [f"o{p}" for p in range(paths, MOST_PATHS)])


def gated_sum(outs: list[Any], weights: Any, b: Any, row: Any, i: Any, c: Any) -> Any:
    """Return the sum over the paths of one element; `i` is the place of `row` in the tile."""
    total = weights[i, 0] * T.cast(outs[0][b, row, c], "float32")
    for p in range(1, len(outs)):
        total = total + weights[i, p] * T.cast(outs[p][b, row, c], "float32")
    return total
