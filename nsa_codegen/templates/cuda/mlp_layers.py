"""What the kernels of the compression's mlp share: sizes, a view of the windows, the inner layer, and the GELU.

The position encoding is the same for all windows: its part of the inner layer, w1 . position, is a constant of each
hidden unit, and comes with the bias as float32 `inner_bias` = w1 . position + b1.
"""

from dataclasses import dataclass
from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import GpuSchedule
from ...tiling import ceil_div
from .common import LOG2_E

MATRIX = 16  # what the sides of a matrix product are multiples of
DEPTHS = (64, 32, 16)
SQRT_HALF = 0.7071067811865476
INVERSE_SQRT_TWO_PI = 0.3989422804014327


@dataclass(frozen=True, kw_only=True)
class MlpTile:
    """Sizes of the mlp; `units` is a tile of hidden units, `columns` the `dim` channels padded for matrix products.

    A window is taken token by token, `pieces` pieces of `depth` channels each.
    """

    dim: int
    hidden: int
    kernel: int
    stride: int
    units: int
    depth: int

    @classmethod
    def of(cls, desc: KernelDesc, units: int) -> "MlpTile":
        """Return the sizes of `desc` for tiles of `units` hidden units; those past the last count as 0."""
        dim, hidden = desc.size("dim"), desc.size("hidden")
        depth = next((d for d in DEPTHS if dim % d == 0), MATRIX)
        kernel, stride = desc.size("kernel"), desc.size("stride")
        return cls(dim=dim, hidden=hidden, kernel=kernel, stride=stride, units=units, depth=depth)

    @property
    def columns(self) -> int:
        """Channels, padded."""
        return ceil_div(self.dim, MATRIX) * MATRIX

    @property
    def pieces(self) -> int:
        """Pieces of a token."""
        return ceil_div(self.dim, self.depth)

    @property
    def unit_tiles(self) -> int:
        """Tiles of hidden units."""
        return ceil_div(self.hidden, self.units)


def gelu(z: Any) -> Any:
    """Return the exact GELU of float32 `z`."""
    return 0.5 * z * (1.0 + T.erf(z * SQRT_HALF))


def gelu_slope(z: Any) -> Any:
    """Return the derivative of the exact GELU at float32 `z`."""
    return 0.5 * (1.0 + T.erf(z * SQRT_HALF)) + z * T.exp2(z * z * (-0.5 * LOG2_E)) * INVERSE_SQRT_TWO_PI


def window_view(x: Any, mlp: MlpTile, windows: Any) -> list[Any]:
    """Return x [batch, keys, kv_heads, dim] as its windows [batch, windows, kernel, kv_heads, dim], which overlap.

    It stays in a list: a name of its own would rename the argument.
    """
    batch, keys, kv_heads, dim = x.shape
    shape = (batch, windows, mlp.kernel, kv_heads, dim)
    token = kv_heads * dim
    return [T.StridedTensor(shape, (keys * token, mlp.stride * token, token, dim, 1), x.dtype, data=x.data)]


def inner_layer(mlp: MlpTile, schedule: GpuSchedule) -> Any:
    """Return the macro that sets `z` [rows, units] to w1 . window + inner_bias, from window i0 and unit e0 on."""
    rows, units, depth, pieces = schedule.rows, mlp.units, mlp.depth, mlp.pieces

    @T.macro
    def product(x, w1, inner_bias, z, b, h, i0, e0, windows):
        x_tile = T.alloc_shared((rows, depth), w1.dtype)
        w1_tile = T.alloc_shared((units, depth), w1.dtype)
        by_window = window_view(x, mlp, windows)
        by_token = [T.reshape(w1, (mlp.hidden, mlp.kernel, mlp.dim))]
        T.clear(z)
        for step in T.Pipelined(mlp.kernel * pieces, num_stages=schedule.stages):
            u = T.truncdiv(step, pieces)
            c0 = T.truncmod(step, pieces) * depth
            T.copy(by_window[0][b, i0 : i0 + rows, u, h, c0 : c0 + depth], x_tile)
            T.copy(by_token[0][e0 : e0 + units, u, c0 : c0 + depth], w1_tile)
            T.gemm(x_tile, w1_tile, z, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
        for i, e in T.Parallel(rows, units):
            z[i, e] += inner_bias[T.min(e0 + e, mlp.hidden - 1)]

    return product
