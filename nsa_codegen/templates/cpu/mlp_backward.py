"""Compression by the mlp, backward, in three parts: to its inner layer, to the tokens, and to its weights.

With z = w1 (window + position) + b1 and out = w2 gelu(z) + b2: `inner` recomputes z and writes gelu(z) and dz for each
window; `tokens` sums, for a token, w1[:, u]^T dz over the windows that hold it at u; `weights` sums outer products over
the windows.
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...tiling import MLP_RUN, padded
from .common import ELEMENT, STORAGE, call, decode_task, down, prelude, product, token_product, up


def inner_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel x, dout, position, w1, b1, w2 -> active = gelu(z), dz; windows lie in the lanes."""
    dtype, dim, hidden = desc.dtype, desc.size("dim"), desc.size("hidden")
    kernel, stride, lanes, wide = desc.size("kernel"), desc.size("stride"), schedule.query_lanes, padded(hidden)
    batch, keys, kv_heads, windows = (T.dynamic(x) for x in ("batch", "keys", "kv_heads", "windows"))

    add_token = token_product(desc, schedule)

    @T.prim_func
    def compress_inner(
        x: T.Tensor((batch, keys, kv_heads, dim), STORAGE[dtype]),
        dout: T.Tensor((batch, windows, kv_heads, dim), STORAGE[dtype]),
        position: T.Tensor((kernel, dim), "float32"),
        w1: T.Tensor((hidden, kernel, dim), "float32"),
        b1: T.Tensor((hidden,), "float32"),
        w2: T.Tensor((dim, hidden), "float32"),
        active: T.Tensor((batch, kv_heads, windows, wide), "float32"),
        dz: T.Tensor((batch, kv_heads, windows, wide), "float32"),
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            x_t = T.alloc_local((dim, lanes), "float32")
            z = T.alloc_local((hidden, lanes), "float32")
            grad = T.alloc_local((hidden, lanes), "float32")
            part = T.alloc_local((hidden, lanes), "float32")
            b, h, i0, count = (T.alloc_var("int32") for _ in range(4))
            for task in T.serial(task_lo, task_hi):
                b, h, i0, _ = decode_task(task, T.ceildiv(windows, lanes), kv_heads, 1, lanes)
                count = T.min(lanes, windows - i0)
                for e in T.serial(hidden):
                    call("fill", T.address_of(z[e, 0]), b1[e], lanes)
                call("fill", x_t.data, T.float32(0), dim * lanes)
                for u in T.serial(kernel):
                    for lane in T.serial(count):
                        for c in T.serial(dim):
                            x_t[c, lane] = up(dtype, x[b, (i0 + lane) * stride + u, h, c]) + position[u, c]
                    add_token(z, part, x_t, w1, u)
                for lane in T.serial(count):
                    for c in T.serial(dim):
                        x_t[c, lane] = up(dtype, dout[b, i0 + lane, h, c])
                call(
                    product(lanes, schedule, "ZERO"),
                    *(grad.data, lanes, w2.data, 1, hidden, x_t.data, hidden, dim, x_t.data),
                )
                call("gelu_backward", z.data, grad.data, hidden * lanes)
                for lane in T.serial(count):
                    for e in T.serial(hidden):
                        active[b, h, i0 + lane, e] = z[e, lane]
                        dz[b, h, i0 + lane, e] = grad[e, lane]
                    for e in T.serial(hidden, wide):
                        active[b, h, i0 + lane, e] = 0.0
                        dz[b, h, i0 + lane, e] = 0.0

    return compress_inner


def mlp_tokens_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel dz, w1 -> dx: one task for `lanes` strides of tokens of one head."""
    dtype, dim, hidden = desc.dtype, desc.size("dim"), desc.size("hidden")
    kernel, stride, lanes, wide = desc.size("kernel"), desc.size("stride"), schedule.query_lanes, padded(hidden)
    batch, keys, kv_heads, windows = (T.dynamic(x) for x in ("batch", "keys", "kv_heads", "windows"))

    @T.macro
    def load_gradients(dz, dz_t, b, h, first):
        """Pack dz of the windows first .. first + lanes - 1 as [hidden, lanes]; a window that is not there is 0."""
        for lane in T.serial(lanes):
            if T.And(first + lane >= 0, first + lane < windows):
                for e in T.serial(hidden):
                    dz_t[e, lane] = dz[b, h, first + lane, e]
            else:
                for e in T.serial(hidden):
                    dz_t[e, lane] = 0.0

    @T.prim_func
    def compress_tokens(
        dz: T.Tensor((batch, kv_heads, windows, wide), "float32"),
        w1: T.Tensor((hidden, kernel, dim), "float32"),
        dx: T.Tensor((batch, keys, kv_heads, dim), STORAGE[dtype]),
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            dz_t = T.alloc_local((hidden, lanes), "float32")
            acc = T.alloc_local((dim, lanes), "float32")
            b, h, a0 = (T.alloc_var("int32") for _ in range(3))
            for task in T.serial(task_lo, task_hi):
                b, h, a0, _ = decode_task(task, T.ceildiv(T.ceildiv(keys, stride), lanes), kv_heads, 1, lanes)
                for r in T.serial(stride):  # tokens a * stride + r, at u = r + m * stride of window a - m
                    call("fill", acc.data, T.float32(0), dim * lanes)
                    for m in T.serial(T.ceildiv(kernel - r, stride)):
                        load_gradients(dz, dz_t, b, h, a0 - m)
                        call(
                            product(lanes, schedule, "ADD"),
                            *(acc.data, lanes, T.address_of(w1[0, r + m * stride, 0]), 1, kernel * dim),
                            *(dz_t.data, dim, hidden, acc.data),
                        )
                    for lane in T.serial(lanes):
                        if (a0 + lane) * stride + r < keys:
                            for c in T.serial(dim):
                                dx[b, (a0 + lane) * stride + r, h, c] = down(dtype, acc[c, lane])

    return compress_tokens


def mlp_weights_kernel(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the kernel x, dout, position, active, dz -> dw1, dw2, db1, db2: task u < kernel makes dw1[:, u]."""
    dtype, dim, hidden = desc.dtype, desc.size("dim"), desc.size("hidden")
    kernel, stride, wide, columns = desc.size("kernel"), desc.size("stride"), padded(hidden), padded(dim)
    element = ELEMENT[dtype]
    batch, keys, kv_heads, windows = (T.dynamic(x) for x in ("batch", "keys", "kv_heads", "windows"))

    @T.prim_func
    def compress_weights(
        x: T.Tensor((batch, keys, kv_heads, dim), STORAGE[dtype]),
        dout: T.Tensor((batch, windows, kv_heads, dim), STORAGE[dtype]),
        position: T.Tensor((kernel, dim), "float32"),
        active: T.Tensor((batch, kv_heads, windows, wide), "float32"),
        dz: T.Tensor((batch, kv_heads, windows, wide), "float32"),
        grad_w1: T.Tensor((hidden, kernel, dim), "float32"),
        grad_w2: T.Tensor((dim, hidden), "float32"),
        grad_b1: T.Tensor((hidden,), "float32"),
        grad_b2: T.Tensor((dim,), "float32"),
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            rows = T.alloc_local((MLP_RUN, columns), "float32")
            part = T.alloc_local((max(hidden * columns, dim * wide),), "float32")  # short sums first: they round less
            total = T.alloc_local((max(hidden * columns, dim * wide),), "float32")
            bias_1 = T.alloc_local((wide,), "float32")
            bias_2 = T.alloc_local((columns,), "float32")
            part_1 = T.alloc_local((wide,), "float32")
            part_2 = T.alloc_local((columns,), "float32")
            count = T.alloc_var("int32")
            for u in T.serial(task_lo, task_hi):
                call("fill", total.data, T.float32(0), max(hidden * columns, dim * wide))
                call("fill", bias_1.data, T.float32(0), wide)
                call("fill", bias_2.data, T.float32(0), columns)
                for b, h, run in T.grid(batch, kv_heads, T.ceildiv(windows, MLP_RUN)):
                    count = T.min(MLP_RUN, windows - run * MLP_RUN)
                    call("fill", rows.data, T.float32(0), MLP_RUN * columns)
                    if u < kernel:
                        for i in T.serial(count):
                            for c in T.serial(dim):
                                rows[i, c] = up(dtype, x[b, (run * MLP_RUN + i) * stride + u, h, c]) + position[u, c]
                        call(
                            product(columns, schedule, "ZERO"),
                            *(part.data, columns, T.address_of(dz[b, h, run * MLP_RUN, 0]), 1, wide),
                            *(rows.data, hidden, count, part.data),
                        )
                        call("add_row<nsa::f32>", total.data, part.data, hidden * columns)
                    else:
                        call("fill", part_1.data, T.float32(0), wide)
                        call("fill", part_2.data, T.float32(0), columns)
                        for i in T.serial(count):
                            call(
                                f"up_row<{element}>",
                                *(T.address_of(rows[i, 0]), T.address_of(dout[b, run * MLP_RUN + i, h, 0]), dim),
                            )
                            call("add_row<nsa::f32>", part_2.data, T.address_of(rows[i, 0]), columns)
                            call("add_row<nsa::f32>", part_1.data, T.address_of(dz[b, h, run * MLP_RUN + i, 0]), wide)
                        call("add_row<nsa::f32>", bias_1.data, part_1.data, wide)
                        call("add_row<nsa::f32>", bias_2.data, part_2.data, columns)
                        call(
                            product(wide, schedule, "ZERO"),
                            *(part.data, wide, rows.data, 1, columns, T.address_of(active[b, h, run * MLP_RUN, 0])),
                            *(dim, count, part.data),
                        )
                        call("add_row<nsa::f32>", total.data, part.data, dim * wide)
                if u < kernel:
                    for e in T.serial(hidden):
                        for c in T.serial(dim):
                            grad_w1[e, u, c] = total[e * columns + c]
                else:
                    for c in T.serial(dim):
                        for e in T.serial(hidden):
                            grad_w2[c, e] = total[c * wide + e]
                    call("copy", grad_b1.data, bias_1.data, hidden)
                    call("copy", grad_b2.data, bias_2.data, dim)

    return compress_weights
