"""Compression, backward, of the mean and the convolution: to the tokens, and to the convolution's weights.

The mlp's is in `mlp_backward`.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from .common import ELEMENT, STORAGE, call, down_row, prelude
from .mlp_backward import inner_kernel, mlp_tokens_kernel, mlp_weights_kernel

RUN = 32


def get_compress_bwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`part`, `method`, `kernel`, `stride`, `dim`, and `hidden` for mlp)."""
    if desc.word("method") == "mlp":
        makers = {"inner": inner_kernel, "tokens": mlp_tokens_kernel, "weights": mlp_weights_kernel}
        return makers[desc.word("part")](desc, schedule)
    return {"tokens": tokens_kernel, "weights": weights_kernel}[desc.word("part")](desc)


def tokens_kernel(desc: KernelDesc) -> Any:
    """Return the kernel dout, weight -> dx: of every window i that holds token t, weight[t - i*stride] * dout[i]."""
    dtype, dim, kernel, stride = desc.dtype, desc.size("dim"), desc.size("kernel"), desc.size("stride")
    mean = desc.word("method") == "mean"
    batch, keys, kv_heads, windows = (T.dynamic(x) for x in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress_tokens(
        dout: T.Tensor((batch, windows, kv_heads, dim), STORAGE[dtype]),
        weight: T.Tensor((kernel, kv_heads, dim), "float32"),
        dx: T.Tensor((batch, keys, kv_heads, dim), STORAGE[dtype]),
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            acc = T.alloc_local((dim,), "float32")
            b, t, first, past = (T.alloc_var("int32") for _ in range(4))
            for task in T.serial(task_lo, task_hi):
                b = T.truncdiv(task, keys)
                t = T.truncmod(task, keys)
                first = T.truncdiv(T.max(0, t - kernel + stride), stride)
                past = T.min(windows, T.truncdiv(t, stride) + 1)
                for h in T.serial(kv_heads):
                    call("fill", acc.data, T.float32(0), dim)
                    for i in T.serial(first, past):
                        if mean:
                            call(f"add_row<{ELEMENT[dtype]}>", acc.data, T.address_of(dout[b, i, h, 0]), dim)
                        else:
                            call(
                                f"multiply_add<{ELEMENT[dtype]}>",
                                *(acc.data, T.address_of(dout[b, i, h, 0])),
                                *(T.address_of(weight[t - i * stride, h, 0]), dim),
                            )
                    if mean:
                        call(f"divide_row<{ELEMENT[dtype]}>", T.address_of(dx[b, t, h, 0]), acc.data, kernel, dim)
                    else:
                        down_row(dtype, T.address_of(dx[b, t, h, 0]), acc.data, dim)

    return compress_tokens


def weights_kernel(desc: KernelDesc) -> Any:
    """Return the kernel x, dout -> dweight, dbias: sums over all windows, one task per row of the weights."""
    dtype, dim, kernel, stride = desc.dtype, desc.size("dim"), desc.size("kernel"), desc.size("stride")
    batch, keys, kv_heads, windows = (T.dynamic(x) for x in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress_weights(
        x: T.Tensor((batch, keys, kv_heads, dim), STORAGE[dtype]),
        dout: T.Tensor((batch, windows, kv_heads, dim), STORAGE[dtype]),
        grad_weight: T.Tensor((kernel, kv_heads, dim), "float32"),
        grad_bias: T.Tensor((kv_heads, dim), "float32"),
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            gradient = T.alloc_local((dim,), "float32")
            weight_part = T.alloc_local((dim,), "float32")  # sums over a run of windows: shorter sums round less
            bias_part = T.alloc_local((dim,), "float32")
            u, h = (T.alloc_var("int32") for _ in range(2))
            for task in T.serial(task_lo, task_hi):
                u = T.truncdiv(task, kv_heads)
                h = T.truncmod(task, kv_heads)
                call("fill", T.address_of(grad_weight[u, h, 0]), T.float32(0), dim)
                if u == 0:
                    call("fill", T.address_of(grad_bias[h, 0]), T.float32(0), dim)
                for b, r in T.grid(batch, T.ceildiv(windows, RUN)):
                    call("fill", weight_part.data, T.float32(0), dim)
                    call("fill", bias_part.data, T.float32(0), dim)
                    for i in T.serial(r * RUN, T.min((r + 1) * RUN, windows)):
                        call(f"up_row<{ELEMENT[dtype]}>", gradient.data, T.address_of(dout[b, i, h, 0]), dim)
                        call(
                            f"multiply_add<{ELEMENT[dtype]}>",
                            *(weight_part.data, T.address_of(x[b, i * stride + u, h, 0]), gradient.data, dim),
                        )
                        call("add_row<nsa::f32>", bias_part.data, gradient.data, dim)
                    call("add_row<nsa::f32>", T.address_of(grad_weight[u, h, 0]), weight_part.data, dim)
                    if u == 0:
                        call("add_row<nsa::f32>", T.address_of(grad_bias[h, 0]), bias_part.data, dim)

    return compress_weights
