"""Gated combination, backward: do_p = gate_p * dout, and dgate_p = dout . o_p per row (token, head)."""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import GpuSchedule
from ...target import GpuTarget
from ...tiling import ceil_div
from .combine_arguments import MOST_PATHS, by_rows, even_columns, load_gates, without_arguments


def get_combine_bwd_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel for `desc` (`paths`, `dv`, `gates`): o0 .. o3, gates, dout -> d0 .. d3, grad_gates.

    `grad_gates` is float32 [batch * tokens * heads, paths]; where one gate serves all rows, its gradient is their sum.
    """
    dtype, paths, dv = desc.dtype, desc.size("paths"), desc.size("dv")
    shared, rows = desc.word("gates") == "scalar", schedule.rows
    columns = even_columns(dv)
    batch, tokens, heads = (T.dynamic(n) for n in ("batch", "tokens", "heads"))
    shape = (batch, tokens, heads, dv)
    whole = dv % columns == 0

    def has_column(column: Any) -> Any:
        return T.bool(True) if whole else column < dv

    def element(x: Any, b: Any, row: Any, column: Any) -> Any:
        value = T.cast(x[b, row, column if whole else T.min(column, dv - 1)], "float32")
        return value if whole else T.if_then_else(column < dv, value, 0.0)

    gates_shape = (paths,) if shared else (batch, tokens, heads, paths)

    @T.prim_func
    def combine_backward(
        o0: T.Tensor(shape, dtype),
        o1: T.Tensor(shape, dtype),
        o2: T.Tensor(shape, dtype),
        o3: T.Tensor(shape, dtype),
        gates: T.Tensor(gates_shape, "float32" if shared else dtype),
        dout: T.Tensor(shape, dtype),
        d0: T.Tensor(shape, dtype),
        d1: T.Tensor(shape, dtype),
        d2: T.Tensor(shape, dtype),
        d3: T.Tensor(shape, dtype),
        grad_gates: T.Tensor((batch * tokens * heads, paths), "float32"),
    ):
        with T.Kernel(T.ceildiv(tokens * heads, rows), batch, threads=schedule.threads) as (x, b):
            gradient = T.alloc_fragment((rows, columns), "float32")
            products = T.alloc_fragment((rows, columns), "float32")
            sums = [T.alloc_fragment((rows,), "float32") for _ in range(paths)]
            weights = T.alloc_shared((rows, paths), "float32")
            outs = by_rows((o0, o1, o2, o3)[:paths], dv)
            grads = by_rows((d0, d1, d2, d3)[:paths], dv)
            given = by_rows((dout,), dv)
            load_gates(desc, rows)(gates, weights, b, x, tokens * heads)
            for p in tuple(range(paths)):
                T.clear(sums[p])
            for s in T.serial(ceil_div(dv, columns)):
                for i, c in T.Parallel(rows, columns):
                    gradient[i, c] = element(given[0], b, T.min(x * rows + i, tokens * heads - 1), s * columns + c)
                for p in tuple(range(paths)):
                    for i, c in T.Parallel(rows, columns):
                        products[i, c] = gradient[i, c] * element(
                            outs[p], b, T.min(x * rows + i, tokens * heads - 1), s * columns + c
                        )
                    T.reduce_sum(products, sums[p], dim=1, clear=False)
                    for i, c in T.Parallel(rows, columns):
                        if T.And(has_column(s * columns + c), x * rows + i < tokens * heads):
                            grads[p][b, x * rows + i, s * columns + c] = gradient[i, c] * weights[i, p]
            for p in tuple(range(paths)):
                for i in T.Parallel(rows):
                    if x * rows + i < tokens * heads:
                        grad_gates[b * tokens * heads + x * rows + i, p] = sums[p][i]

    return without_arguments(combine_backward, [f"{n}{p}" for n in "od" for p in range(paths, MOST_PATHS)])
