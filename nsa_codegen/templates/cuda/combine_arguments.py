"""What both kernels of `combine` share: views of the tensors by rows, and no arguments for paths that are absent."""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc

MOST_PATHS = 4
VECTOR = 8  # 16-bit elements in 16 bytes


def without_arguments(function: Any, names: list[str]) -> Any:
    """Return the function of TileLang `function` without the unused tensors `names` among its arguments."""
    kept = [p for p in function.params if p not in function.buffer_map or function.buffer_map[p].name not in names]
    buffers = {p: function.buffer_map[p] for p in kept if p in function.buffer_map}
    return type(function)(kept, function.body, function.ret_type, buffers, function.attrs)


def by_rows(tensors: tuple[Any, ...], size: int) -> list[Any]:
    """Return views [batch, tokens * heads, size] of tensors [batch, tokens, heads, size].

    They stay in a list: a name of its own would rename the argument.
    """
    return [T.reshape(x, (x.shape[0], x.shape[1] * x.shape[2], size)) for x in tensors]


def load_gates(desc: KernelDesc, rows: int) -> Any:
    """Return the macro that fills float32 `weights` [rows, paths] of a tile; rows past `count` get the last row's."""
    paths, shared = desc.size("paths"), desc.word("gates") == "scalar"

    @T.macro
    def load(gates, weights, b, x, count):
        if shared:
            for i, p in T.Parallel(rows, paths):
                weights[i, p] = gates[p]
        else:
            lines = by_rows((gates,), paths)
            for i, p in T.Parallel(rows, paths):
                weights[i, p] = lines[0][b, T.min(x * rows + i, count - 1), p]

    return load


def even_columns(size: int) -> int:
    """Return the columns of a tile that takes rows of `size` in pieces: a power of two, which divides `size` if it can.

    Sums along rows want columns that are a power of two.
    """
    divisor = size & -size
    return divisor if divisor >= VECTOR else 1 << (size - 1).bit_length()
