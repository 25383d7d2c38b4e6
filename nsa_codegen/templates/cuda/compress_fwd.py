"""Compression, forward: compressed token i is phi(x[i*stride : i*stride + kernel]) (paper eq. 7).

`mean` and `conv` are memory-bound: a thread sums 16 bytes of channels over a window. `mlp` is two matrix products over
a tile of windows, which take the hidden units a tile at a time.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import GpuSchedule
from ...target import GpuTarget
from .mlp_layers import MlpTile, gelu, inner_layer


def get_compress_fwd_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel for `desc` (`method`, `kernel`, `stride`, `dim`, `out`, and `hidden` for mlp)."""
    makers = {"mean": mean_kernel, "conv": conv_kernel, "mlp": mlp_kernel}
    return makers[desc.word("method")](desc, schedule)


def mean_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernel x -> out of the plain mean over each window."""
    dtype, dim, kernel, stride = desc.dtype, desc.size("dim"), desc.size("kernel"), desc.size("stride")
    rows = schedule.rows
    batch, keys, kv_heads, windows = (T.dynamic(n) for n in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress(
        x: T.Tensor((batch, keys, kv_heads, dim), dtype),
        out: T.Tensor((batch, windows, kv_heads, dim), desc.word("out")),
    ):
        with T.Kernel(T.ceildiv(windows, rows), kv_heads, batch, threads=schedule.threads) as (tile, h, b):
            total = T.alloc_fragment((rows, dim), "float32")
            T.clear(total)
            for u in T.serial(kernel):
                for i, c in T.Parallel(rows, dim):
                    total[i, c] += T.cast(x[b, T.min((tile * rows + i) * stride + u, keys - 1), h, c], "float32")
            for i, c in T.Parallel(rows, dim):
                if tile * rows + i < windows:
                    out[b, tile * rows + i, h, c] = total[i, c] / kernel

    return compress


def conv_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernel x, weight, bias -> out of the depthwise strided convolution."""
    dtype, dim, kernel, stride = desc.dtype, desc.size("dim"), desc.size("kernel"), desc.size("stride")
    rows = schedule.rows
    batch, keys, kv_heads, windows = (T.dynamic(n) for n in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress(
        x: T.Tensor((batch, keys, kv_heads, dim), dtype),
        weight: T.Tensor((kernel, kv_heads, dim), dtype),
        bias: T.Tensor((kv_heads, dim), dtype),
        out: T.Tensor((batch, windows, kv_heads, dim), dtype),
    ):
        with T.Kernel(T.ceildiv(windows, rows), kv_heads, batch, threads=schedule.threads) as (tile, h, b):
            total = T.alloc_fragment((rows, dim), "float32")
            for i, c in T.Parallel(rows, dim):
                total[i, c] = bias[h, c]
            for u in T.serial(kernel):
                for i, c in T.Parallel(rows, dim):
                    total[i, c] += T.cast(
                        x[b, T.min((tile * rows + i) * stride + u, keys - 1), h, c], "float32"
                    ) * T.cast(weight[u, h, c], "float32")
            for i, c in T.Parallel(rows, dim):
                if tile * rows + i < windows:
                    out[b, tile * rows + i, h, c] = total[i, c]

    return compress


def mlp_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernels x, w1, inner_bias -> active and active, w2, b2 -> out, one for each layer, for all heads.

    `active` = gelu(w1 . window + inner_bias) is [batch, kv_heads, windows, hidden].
    """
    dtype, rows, mlp = desc.dtype, schedule.rows, MlpTile.of(desc, schedule.key_tile)
    dim, hidden, units, columns, threads = mlp.dim, mlp.hidden, mlp.units, mlp.columns, schedule.threads
    batch, keys, kv_heads, windows = (T.dynamic(n) for n in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress(
        x: T.Tensor((batch, keys, kv_heads, dim), dtype),
        w1: T.Tensor((hidden, mlp.kernel * dim), dtype),
        inner_bias: T.Tensor((hidden,), "float32"),
        w2: T.Tensor((dim, hidden), dtype),
        b2: T.Tensor((dim,), dtype),
        active: T.Tensor((batch, kv_heads, windows, hidden), dtype),
        out: T.Tensor((batch, windows, kv_heads, dim), dtype),
    ):
        with T.Kernel(T.ceildiv(windows, rows) * mlp.unit_tiles, kv_heads, batch, threads=threads) as (y, h, b):
            z = T.alloc_fragment((rows, units), "float32")
            i0 = T.truncdiv(y, mlp.unit_tiles) * rows
            e0 = T.truncmod(y, mlp.unit_tiles) * units
            inner_layer(mlp, schedule)(x, w1, inner_bias, z, b, h, i0, e0, windows)
            for i, e in T.Parallel(rows, units):
                if T.And(i0 + i < windows, e0 + e < hidden):
                    active[b, h, i0 + i, e0 + e] = gelu(z[i, e])
        with T.Kernel(T.ceildiv(windows, rows), kv_heads, batch, threads=threads) as (y, h, b):
            active_tile = T.alloc_shared((rows, units), dtype)
            w2_tile = T.alloc_shared((columns, units), dtype)
            total = T.alloc_fragment((rows, columns), "float32")
            T.clear(total)
            for part in T.Pipelined(mlp.unit_tiles, num_stages=schedule.stages):
                T.copy(active[b, h, y * rows : y * rows + rows, part * units : part * units + units], active_tile)
                T.copy(w2[0:columns, part * units : part * units + units], w2_tile)
                T.gemm(active_tile, w2_tile, total, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
            for i, c in T.Parallel(rows, columns):
                if T.And(y * rows + i < windows, c < dim):
                    out[b, y * rows + i, h, c] = total[i, c] + T.cast(b2[T.min(c, dim - 1)], "float32")

    return compress
