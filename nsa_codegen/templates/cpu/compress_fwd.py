"""Compression, forward: compressed token i is phi(x[i*stride : i*stride + kernel]) (paper eq. 7).

`mean` and `conv` take one window and head per step, channels in the lanes; `mlp` lays windows in the lanes, so that
both layers are register-tiled products with the weights as scalars.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from .common import ELEMENT, STORAGE, call, decode_task, down, down_row, prelude, product, token_product, up


def get_compress_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`method`, `kernel`, `stride`, `dim`, `out`, and `hidden` for mlp)."""
    makers = {"mean": mean_kernel, "conv": conv_kernel, "mlp": mlp_kernel}
    return makers[desc.word("method")](desc, schedule)


def mean_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel of the plain mean over each window."""
    dtype, out_dtype, dim = desc.dtype, desc.word("out"), desc.size("dim")
    kernel, stride = desc.size("kernel"), desc.size("stride")
    batch, keys, kv_heads, windows = (T.dynamic(x) for x in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress(
        x: T.Tensor((batch, keys, kv_heads, dim), STORAGE[dtype]),
        out: T.Tensor((batch, windows, kv_heads, dim), STORAGE[out_dtype]),
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            acc = T.alloc_local((dim,), "float32")
            b, i = (T.alloc_var("int32") for _ in range(2))
            for task in T.serial(task_lo, task_hi):
                b = T.truncdiv(task, windows)
                i = T.truncmod(task, windows)
                for h in T.serial(kv_heads):
                    call("fill", acc.data, T.float32(0), dim)
                    for u in T.serial(kernel):
                        call(f"add_row<{ELEMENT[dtype]}>", acc.data, T.address_of(x[b, i * stride + u, h, 0]), dim)
                    call(f"divide_row<{ELEMENT[out_dtype]}>", T.address_of(out[b, i, h, 0]), acc.data, kernel, dim)

    return compress


def conv_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel of the depthwise strided convolution; weights are float32."""
    dtype, dim = desc.dtype, desc.size("dim")
    kernel, stride = desc.size("kernel"), desc.size("stride")
    batch, keys, kv_heads, windows = (T.dynamic(x) for x in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress(
        x: T.Tensor((batch, keys, kv_heads, dim), STORAGE[dtype]),
        weight: T.Tensor((kernel, kv_heads, dim), "float32"),
        bias: T.Tensor((kv_heads, dim), "float32"),
        out: T.Tensor((batch, windows, kv_heads, dim), STORAGE[dtype]),
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            acc = T.alloc_local((dim,), "float32")
            b, i = (T.alloc_var("int32") for _ in range(2))
            for task in T.serial(task_lo, task_hi):
                b = T.truncdiv(task, windows)
                i = T.truncmod(task, windows)
                for h in T.serial(kv_heads):
                    call("copy", acc.data, T.address_of(bias[h, 0]), dim)
                    for u in T.serial(kernel):
                        call(
                            f"multiply_add<{ELEMENT[dtype]}>",
                            *(acc.data, T.address_of(x[b, i * stride + u, h, 0]), T.address_of(weight[u, h, 0]), dim),
                        )
                    down_row(dtype, T.address_of(out[b, i, h, 0]), acc.data, dim)

    return compress


def mlp_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel of w2 gelu(w1 (window + position) + b1) + b2; weights are float32, shared by the heads."""
    dtype, dim, hidden = desc.dtype, desc.size("dim"), desc.size("hidden")
    kernel, stride, lanes = desc.size("kernel"), desc.size("stride"), schedule.query_lanes
    batch, keys, kv_heads, windows = (T.dynamic(x) for x in ("batch", "keys", "kv_heads", "windows"))

    add_token = token_product(desc, schedule)

    @T.prim_func
    def compress(
        x: T.Tensor((batch, keys, kv_heads, dim), STORAGE[dtype]),
        position: T.Tensor((kernel, dim), "float32"),
        w1: T.Tensor((hidden, kernel, dim), "float32"),
        b1: T.Tensor((hidden,), "float32"),
        w2: T.Tensor((dim, hidden), "float32"),
        b2: T.Tensor((dim,), "float32"),
        out: T.Tensor((batch, windows, kv_heads, dim), STORAGE[dtype]),
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            x_t = T.alloc_local((dim, lanes), "float32")
            inner = T.alloc_local((hidden, lanes), "float32")
            part = T.alloc_local((hidden, lanes), "float32")
            outer = T.alloc_local((dim, lanes), "float32")
            b, h, i0, count = (T.alloc_var("int32") for _ in range(4))
            for task in T.serial(task_lo, task_hi):
                b, h, i0, _ = decode_task(task, T.ceildiv(windows, lanes), kv_heads, 1, lanes)
                count = T.min(lanes, windows - i0)
                for e in T.serial(hidden):
                    call("fill", T.address_of(inner[e, 0]), b1[e], lanes)
                call("fill", x_t.data, T.float32(0), dim * lanes)
                for u in T.serial(kernel):
                    for lane in T.serial(count):
                        for c in T.serial(dim):
                            x_t[c, lane] = up(dtype, x[b, (i0 + lane) * stride + u, h, c]) + position[u, c]
                    add_token(inner, part, x_t, w1, u)
                call("gelu", inner.data, hidden * lanes)
                for c in T.serial(dim):
                    call("fill", T.address_of(outer[c, 0]), b2[c], lanes)
                call(
                    product(lanes, schedule, "ADD"),
                    *(outer.data, lanes, w2.data, hidden, 1, inner.data, dim, hidden, outer.data),
                )
                for lane in T.serial(count):
                    for c in T.serial(dim):
                        out[b, i0 + lane, h, c] = down(dtype, outer[c, lane])

    return compress
