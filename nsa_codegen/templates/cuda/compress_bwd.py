"""Compression, backward, of the mean and the convolution: to the tokens, and to the convolution's weights.

The mlp's is in `mlp_backward`. Sums run in one fixed order; nothing is added atomically.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import GpuSchedule
from ...target import GpuTarget
from ...tiling import ceil_div
from .mlp_backward import inner_kernel, mlp_tokens_kernel, mlp_weights_kernel


def get_compress_bwd_kernel(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> Any:
    """Return the kernel for `desc` (`part`, `method`, `kernel`, `stride`, `dim`, and `hidden` for mlp)."""
    if desc.word("method") == "mlp":
        makers = {"inner": inner_kernel, "tokens": mlp_tokens_kernel, "weights": mlp_weights_kernel}
        return makers[desc.word("part")](desc, schedule)
    return {"tokens": tokens_kernel, "weights": weights_kernel}[desc.word("part")](desc, schedule)


def tokens_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernel dout, weight -> dx: of every window i that holds token t, weight[t - i*stride] * dout[i].

    The mean takes no weight. A token's windows are i = t // stride - m, where it stands at u = t % stride + m * stride.
    """
    dtype, dim, kernel, stride = desc.dtype, desc.size("dim"), desc.size("kernel"), desc.size("stride")
    mean, rows = desc.word("method") == "mean", schedule.rows
    batch, keys, kv_heads, windows = (T.dynamic(n) for n in ("batch", "keys", "kv_heads", "windows"))

    @T.macro
    def sum_windows(dout, weight, dx, tile, h, b):
        total = T.alloc_fragment((rows, dim), "float32")
        T.clear(total)
        for m in T.serial(ceil_div(kernel, stride)):
            for i, c in T.Parallel(rows, dim):
                t = tile * rows + i
                window = T.truncdiv(t, stride) - m
                place = T.truncmod(t, stride) + m * stride
                if T.And(T.And(window >= 0, window < windows), place < kernel):
                    value = T.cast(dout[b, T.max(0, T.min(window, windows - 1)), h, c], "float32")
                    if mean:
                        total[i, c] += value
                    else:
                        total[i, c] += value * T.cast(weight[T.min(place, kernel - 1), h, c], "float32")
        for i, c in T.Parallel(rows, dim):
            if tile * rows + i < keys:
                dx[b, tile * rows + i, h, c] = total[i, c] / (kernel if mean else 1)

    if mean:

        @T.prim_func
        def compress_tokens(
            dout: T.Tensor((batch, windows, kv_heads, dim), dtype), dx: T.Tensor((batch, keys, kv_heads, dim), dtype)
        ):
            with T.Kernel(T.ceildiv(keys, rows), kv_heads, batch, threads=schedule.threads) as (tile, h, b):
                sum_windows(dout, dout, dx, tile, h, b)

        return compress_tokens

    @T.prim_func
    def compress_tokens(
        dout: T.Tensor((batch, windows, kv_heads, dim), dtype),
        weight: T.Tensor((kernel, kv_heads, dim), dtype),
        dx: T.Tensor((batch, keys, kv_heads, dim), dtype),
    ):
        with T.Kernel(T.ceildiv(keys, rows), kv_heads, batch, threads=schedule.threads) as (tile, h, b):
            sum_windows(dout, weight, dx, tile, h, b)

    return compress_tokens


def weights_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernel x, dout -> grad_weight, grad_bias, float32: one block sums a row of them over all windows.

    Block u < kernel makes grad_weight[u], block `kernel` grad_bias. Each thread sums a share of the windows, and the
    shares are summed at the end: short sums round less.
    """
    dtype, dim, kernel, stride = desc.dtype, desc.size("dim"), desc.size("kernel"), desc.size("stride")
    shares, columns = schedule.rows, schedule.key_tile
    batch, keys, kv_heads, windows = (T.dynamic(n) for n in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress_weights(
        x: T.Tensor((batch, keys, kv_heads, dim), dtype),
        dout: T.Tensor((batch, windows, kv_heads, dim), dtype),
        grad_weight: T.Tensor((kernel, kv_heads, dim), "float32"),
        grad_bias: T.Tensor((kv_heads, dim), "float32"),
    ):
        with T.Kernel(kernel + 1, kv_heads, ceil_div(dim, columns), threads=schedule.threads) as (u, h, part):
            total = T.alloc_fragment((shares, columns), "float32")
            sums = T.alloc_fragment((columns,), "float32")
            T.clear(total)
            for b in T.serial(batch):
                for step in T.serial(T.ceildiv(windows, shares)):
                    for i, c in T.Parallel(shares, columns):
                        if T.And(step * shares + i < windows, part * columns + c < dim):
                            gradient = T.cast(dout[b, step * shares + i, h, part * columns + c], "float32")
                            token = T.min((step * shares + i) * stride + T.min(u, kernel - 1), keys - 1)
                            value = T.cast(x[b, token, h, part * columns + c], "float32")
                            total[i, c] += gradient * T.if_then_else(u < kernel, value, 1.0)
            T.reduce_sum(total, sums, dim=0)
            for c in T.Parallel(columns):
                if part * columns + c < dim:
                    if u < kernel:
                        grad_weight[u, h, part * columns + c] = sums[c]
                    else:
                        grad_bias[h, part * columns + c] = sums[c]

    return compress_weights
