"""Compression by the mlp, backward, in three parts: to its inner layer, to the tokens, and to its weights.

With z = w1 (window + position) + b1 and out = w2 gelu(z) + b2: `inner` recomputes z and writes gelu(z) and dz for each
window; `tokens` sums, for a token, w1[:, u]^T dz over the windows that hold it at u; `weights` sums outer products over
the windows. Sums run in one fixed order.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import GpuSchedule
from ...tiling import ceil_div
from .mlp_layers import MATRIX, MlpTile, gelu, gelu_slope, inner_layer, window_view


def inner_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernel x, dout, w1, inner_bias, w2 -> gelu(z) as `active`, dz: [batch, kv_heads, windows, hidden]."""
    dtype, rows, mlp = desc.dtype, schedule.rows, MlpTile.of(desc, schedule.key_tile)
    dim, hidden, units, columns, threads = mlp.dim, mlp.hidden, mlp.units, mlp.columns, schedule.threads
    batch, keys, kv_heads, windows = (T.dynamic(n) for n in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress_inner(
        x: T.Tensor((batch, keys, kv_heads, dim), dtype),
        dout: T.Tensor((batch, windows, kv_heads, dim), dtype),
        w1: T.Tensor((hidden, mlp.kernel * dim), dtype),
        inner_bias: T.Tensor((hidden,), "float32"),
        w2: T.Tensor((dim, hidden), dtype),
        active: T.Tensor((batch, kv_heads, windows, hidden), dtype),
        dz: T.Tensor((batch, kv_heads, windows, hidden), dtype),
    ):
        with T.Kernel(T.ceildiv(windows, rows) * mlp.unit_tiles, kv_heads, batch, threads=threads) as (y, h, b):
            dout_tile = T.alloc_shared((rows, columns), dtype)
            w2_tile = T.alloc_shared((columns, units), dtype)
            z = T.alloc_fragment((rows, units), "float32")
            grad = T.alloc_fragment((rows, units), "float32")
            i0 = T.truncdiv(y, mlp.unit_tiles) * rows
            e0 = T.truncmod(y, mlp.unit_tiles) * units
            inner_layer(mlp, schedule)(x, w1, inner_bias, z, b, h, i0, e0, windows)
            T.copy(dout[b, i0 : i0 + rows, h, 0:columns], dout_tile)
            T.copy(w2[0:columns, e0 : e0 + units], w2_tile)
            T.clear(grad)
            T.gemm(dout_tile, w2_tile, grad, policy=T.GemmWarpPolicy.FullRow)
            for i, e in T.Parallel(rows, units):
                if T.And(i0 + i < windows, e0 + e < hidden):
                    active[b, h, i0 + i, e0 + e] = gelu(z[i, e])
                    dz[b, h, i0 + i, e0 + e] = grad[i, e] * gelu_slope(z[i, e])

    return compress_inner


def mlp_tokens_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernel dz, w1 -> dx; a block makes the tokens a * stride + r of a run of a.

    Token a * stride + r stands at u = r + m * stride in window a - m. What lies outside dz or w1 is loaded as 0.
    """
    dtype, rows, mlp = desc.dtype, schedule.rows, MlpTile.of(desc, schedule.key_tile)
    dim, hidden, units, columns, stride = mlp.dim, mlp.hidden, mlp.units, mlp.columns, mlp.stride
    threads = schedule.threads
    batch, keys, kv_heads, windows = (T.dynamic(n) for n in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress_tokens(
        dz: T.Tensor((batch, kv_heads, windows, hidden), dtype),
        w1: T.Tensor((hidden, mlp.kernel * dim), dtype),
        dx: T.Tensor((batch, keys, kv_heads, dim), dtype),
    ):
        with T.Kernel(T.ceildiv(T.ceildiv(keys, stride), rows) * stride, kv_heads, batch, threads=threads) as (y, h, b):
            dz_tile = T.alloc_shared((rows, units), dtype)
            w1_tile = T.alloc_shared((units, columns), dtype)
            total = T.alloc_fragment((rows, columns), "float32")
            by_token = [T.reshape(w1, (hidden, mlp.kernel, dim))]
            a0 = T.truncdiv(y, stride) * rows
            r = T.truncmod(y, stride)
            T.clear(total)
            for step in T.Pipelined(ceil_div(mlp.kernel, stride) * mlp.unit_tiles, num_stages=schedule.stages):
                m = T.truncdiv(step, mlp.unit_tiles)
                e0 = T.truncmod(step, mlp.unit_tiles) * units
                T.copy(dz[b, h, a0 - m : a0 - m + rows, e0 : e0 + units], dz_tile)
                T.copy(by_token[0][e0 : e0 + units, r + m * stride, 0:columns], w1_tile)
                T.gemm(dz_tile, w1_tile, total, policy=T.GemmWarpPolicy.FullRow)
            for i, c in T.Parallel(rows, columns):
                if T.And((a0 + i) * stride + r < keys, c < dim):
                    dx[b, (a0 + i) * stride + r, h, c] = total[i, c]

    return compress_tokens


def mlp_weights_kernel(desc: KernelDesc, schedule: GpuSchedule) -> Any:
    """Return the kernels x, position, dz -> grad_w1, grad_b1; active, dout -> grad_w2; and dout -> grad_b2; float32.

    The first two are products over all windows, `key_tile` of them at a time; a block has `rows` hidden units. In the
    first, a product with ones sums dz, and the position encoding adds its outer product with that sum.
    """
    dtype, width, mlp = desc.dtype, schedule.key_tile, MlpTile.of(desc, schedule.rows)
    dim, hidden, units, columns, kernel = mlp.dim, mlp.hidden, mlp.units, mlp.columns, mlp.kernel
    shares, part = 16, min(64, columns & -columns)
    batch, keys, kv_heads, windows = (T.dynamic(n) for n in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress_weights(
        x: T.Tensor((batch, keys, kv_heads, dim), dtype),
        dout: T.Tensor((batch, windows, kv_heads, dim), dtype),
        position: T.Tensor((kernel, dim), dtype),
        active: T.Tensor((batch, kv_heads, windows, hidden), dtype),
        dz: T.Tensor((batch, kv_heads, windows, hidden), dtype),
        grad_w1: T.Tensor((hidden, kernel * dim), "float32"),
        grad_b1: T.Tensor((hidden,), "float32"),
        grad_w2: T.Tensor((dim, hidden), "float32"),
        grad_b2: T.Tensor((dim,), "float32"),
    ):
        with T.Kernel(mlp.unit_tiles, kernel, threads=schedule.threads) as (y, u):
            dz_tile = T.alloc_shared((width, units), dtype)
            x_tile = T.alloc_shared((width, columns), dtype)
            ones = T.alloc_shared((width, MATRIX), dtype)
            sums = T.alloc_shared((units, MATRIX), "float32")
            total = T.alloc_fragment((units, columns), "float32")
            counted = T.alloc_fragment((units, MATRIX), "float32")
            by_window = window_view(x, mlp, windows)
            runs, steps = T.alloc_var("int32"), T.alloc_var("int32")
            runs = T.ceildiv(windows, width)
            steps = runs * batch * kv_heads
            T.fill(ones, 1)
            T.clear(total)
            T.clear(counted)
            for step in T.Pipelined(steps, num_stages=schedule.stages):
                i0 = T.truncmod(step, runs) * width
                h = T.truncmod(T.truncdiv(step, runs), kv_heads)
                b = T.truncdiv(T.truncdiv(step, runs), kv_heads)
                T.copy(dz[b, h, i0 : i0 + width, y * units : y * units + units], dz_tile)
                T.copy(by_window[0][b, i0 : i0 + width, u, h, 0:columns], x_tile)
                T.gemm(dz_tile, x_tile, total, transpose_A=True, policy=T.GemmWarpPolicy.FullRow)
                T.gemm(dz_tile, ones, counted, transpose_A=True, policy=T.GemmWarpPolicy.FullRow)
            T.copy(counted, sums)
            for i, c in T.Parallel(units, columns):
                if T.And(y * units + i < hidden, c < dim):
                    grad_w1[y * units + i, u * dim + c] = total[i, c] + sums[i, 0] * T.cast(
                        position[u, T.min(c, dim - 1)], "float32"
                    )
            for i in T.Parallel(units):
                if T.And(y * units + i < hidden, u == 0):
                    grad_b1[y * units + i] = sums[i, 0]
        with T.Kernel(mlp.unit_tiles, threads=schedule.threads) as y:
            active_tile = T.alloc_shared((width, units), dtype)
            dout_tile = T.alloc_shared((width, columns), dtype)
            total = T.alloc_fragment((units, columns), "float32")
            runs, steps = T.alloc_var("int32"), T.alloc_var("int32")
            runs = T.ceildiv(windows, width)
            steps = runs * batch * kv_heads
            T.clear(total)
            for step in T.Pipelined(steps, num_stages=schedule.stages):
                i0 = T.truncmod(step, runs) * width
                h = T.truncmod(T.truncdiv(step, runs), kv_heads)
                b = T.truncdiv(T.truncdiv(step, runs), kv_heads)
                T.copy(active[b, h, i0 : i0 + width, y * units : y * units + units], active_tile)
                T.copy(dout[b, i0 : i0 + width, h, 0:columns], dout_tile)
                T.gemm(active_tile, dout_tile, total, transpose_A=True, policy=T.GemmWarpPolicy.FullRow)
            for i, c in T.Parallel(units, columns):
                if T.And(y * units + i < hidden, c < dim):
                    grad_w2[c, y * units + i] = total[i, c]
        with T.Kernel(ceil_div(dim, part), threads=schedule.threads) as y:
            shared_sums = T.alloc_fragment((shares, part), "float32")
            column_sums = T.alloc_fragment((part,), "float32")
            lines = [T.reshape(dout, (batch, windows * kv_heads, dim))]
            T.clear(shared_sums)
            for b in T.serial(batch):
                for step in T.serial(T.ceildiv(windows * kv_heads, shares)):
                    for i, c in T.Parallel(shares, part):
                        if T.And(step * shares + i < windows * kv_heads, y * part + c < dim):
                            shared_sums[i, c] += T.cast(lines[0][b, step * shares + i, y * part + c], "float32")
            T.reduce_sum(shared_sums, column_sums, dim=0)
            for c in T.Parallel(part):
                if y * part + c < dim:
                    grad_b2[y * part + c] = column_sums[c]

    return compress_weights
