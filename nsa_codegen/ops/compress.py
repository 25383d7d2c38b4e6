"""`compress`: compressed tokens, phi over strided windows of keys or values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..desc import KernelDesc
from ..needed import compress_desc
from ..program import Phi
from ..schedule import CpuSchedule, GpuSchedule
from ..tiling import ceil_div, padded
from .base import Call, Extent, ExtentOf, Launch, OpDef, Sizes, Values, Work, draw, element_bytes, scratch, torch_dtype


def _phi(desc: KernelDesc) -> Phi:
    return Phi(method=desc.word("method"), kernel=desc.size("kernel"), stride=desc.size("stride"))


def make_inputs(desc: KernelDesc, sizes: Sizes, generator: torch.Generator) -> Values:
    """Return random x and the method's weights, in x's dtype."""
    dim, kernel = desc.size("dim"), desc.size("kernel")
    values: Values = {"x": draw(generator, desc.dtype, sizes.batch, sizes.keys, sizes.kv_heads, dim)}
    if desc.word("method") == "conv":
        values["weight"] = draw(generator, desc.dtype, kernel, sizes.kv_heads, dim)
        values["bias"] = draw(generator, desc.dtype, sizes.kv_heads, dim)
    elif desc.word("method") == "mlp":
        hidden = desc.size("hidden")
        values["position"] = draw(generator, desc.dtype, kernel, dim)
        values["w1"] = draw(generator, desc.dtype, hidden, kernel * dim) / (kernel * dim) ** 0.5
        values["b1"] = draw(generator, desc.dtype, hidden)
        values["w2"] = draw(generator, desc.dtype, dim, hidden) / hidden**0.5
        values["b2"] = draw(generator, desc.dtype, dim)
    return values


def run_reference(desc: KernelDesc, *, x: Tensor, **weights: Tensor) -> tuple[Tensor]:
    """Return the compressed tokens by the eager definition, in the dtype that `desc` writes."""
    method, phi = desc.word("method"), _phi(desc)
    given: dict[str, Any] = {}
    if method == "conv":
        given = {"weight": weights["weight"], "bias": weights["bias"]}
    elif method == "mlp":
        given = {
            "weight": (weights["position"], weights["w1"], weights["w2"]),
            "bias": (weights["b1"], weights["b2"]),
        }
    if method == "mean" and desc.word("out") != desc.dtype and x.dtype != torch.float64:
        x = x.to(torch_dtype(desc.word("out")))
    return (reference.compress(x, kernel=phi.kernel, stride=phi.stride, method=method, **given),)


def prepare(desc: KernelDesc, schedule: CpuSchedule, workers: int, *, x: Tensor, **weights: Tensor) -> Launch:
    """Return the launch; weights are taken as float32."""
    batch, keys, kv_heads, dim = x.shape
    found = extent(desc, schedule)(Call(workers, batch, keys, keys, kv_heads, 0, batch))
    dtype = torch_dtype(desc.word("out")) if desc.word("method") == "mean" else x.dtype
    out = x.new_empty((batch, found.sizes["windows"], kv_heads, dim), dtype=dtype)
    return found.launch({"x": x, "out": out, **{n: w.float().contiguous() for n, w in weights.items()}}, (out,))


def extent(desc: KernelDesc, schedule: CpuSchedule) -> ExtentOf:
    """Return the extent by sizes: one task per window, or for the mlp per tile of windows and head."""
    phi, mlp = _phi(desc), desc.word("method") == "mlp"

    def of(call: Call) -> Extent:
        batch, keys, kv_heads, windows = call.batch, call.keys, call.heads, phi.length(call.keys)
        tasks = batch * kv_heads * ceil_div(windows, schedule.query_lanes) if mlp else batch * windows
        return Extent(tasks, {"batch": batch, "keys": keys, "kv_heads": kv_heads, "windows": windows}, {})

    return of


def prepare_backward(
    desc: KernelDesc, schedule: CpuSchedule, workers: int, *, x: Tensor, dout: Tensor, **rest: Tensor
) -> Launch:
    """Return the launch of one part.

    `inner` gives the mlp's active = gelu(z) and dz; `tokens` gives dx, from dz or dout; `weights` gives float32
    gradients: dweight, dbias of a convolution, or dw1, dw2, db1, db2 of the mlp from active and dz.
    """
    batch, keys, kv_heads, dim = x.shape
    windows, part, kernel = dout.shape[1], desc.word("part"), desc.size("kernel")
    values: Values = {"x": x, "dout": dout, "batch": batch, "keys": keys, "kv_heads": kv_heads, "windows": windows}
    values.update({name: w.float().contiguous() for name, w in rest.items()})
    mlp = desc.word("method") == "mlp"
    if part == "tokens":
        grad_x = torch.empty_like(x)
        values.update(dx=grad_x)
        steps = ceil_div(ceil_div(keys, desc.size("stride")), schedule.query_lanes)
        return Launch(tasks=batch * kv_heads * steps if mlp else batch * keys, values=values, outputs=(grad_x,))
    if not mlp:
        grads: tuple[Tensor, ...] = (scratch(kernel, kv_heads, dim), scratch(kv_heads, dim))
        values.update(grad_weight=grads[0], grad_bias=grads[1])
        return Launch(tasks=kernel * kv_heads, values=values, outputs=grads)
    hidden = desc.size("hidden")
    if part == "inner":
        kept = tuple(scratch(batch, kv_heads, windows, padded(hidden)) for _ in range(2))
        values.update(active=kept[0], dz=kept[1])
        tasks = batch * kv_heads * ceil_div(windows, schedule.query_lanes)
        return Launch(tasks=tasks, values=values, outputs=kept)
    grads = (scratch(hidden, kernel * dim), scratch(dim, hidden), scratch(hidden), scratch(dim))
    values.update(zip(("grad_w1", "grad_w2", "grad_b1", "grad_b2"), grads, strict=True))
    return Launch(tasks=kernel + 1, values=values, outputs=grads)


def prepare_gpu(
    desc: KernelDesc, schedule: GpuSchedule, *, x: Tensor, dout: Tensor | None = None, **rest: Tensor
) -> Launch:
    """Return the launch of the forward or of one part of the backward, with the outputs that the CPU's have.

    Weights are taken in x's dtype, as matrix instructions multiply them; their gradients are float32. The mlp takes its
    first layer's bias with the position encoding's part in it, and keeps `active` and `dz` in x's dtype,
    [batch, heads, windows, hidden].
    """
    batch, _, kv_heads, dim = x.shape
    method, kernel, windows = desc.word("method"), desc.size("kernel"), _phi(desc).length(x.shape[1])
    weights = {name: w.to(x.dtype).contiguous() for name, w in rest.items()}
    values: Values = {"x": x, "dout": dout, **weights}
    if method == "mlp":
        hidden = desc.size("hidden")
        inner = (batch, kv_heads, windows, hidden)
        if "w1" in rest and "b1" in rest:
            encoded = weights["w1"].double() @ weights["position"].double().flatten()
            values["inner_bias"] = (encoded + rest["b1"].double()).float()
    if desc.direction == "fwd":
        dtype = torch_dtype(desc.word("out")) if method == "mean" else x.dtype
        out = x.new_empty((batch, windows, kv_heads, dim), dtype=dtype)
        values.update(out=out, active=x.new_empty(inner) if method == "mlp" else None)
        return Launch(tasks=out.numel(), values=values, outputs=(out,))
    part = desc.word("part")
    names: tuple[str, ...]
    outputs: tuple[Tensor, ...]
    if part == "tokens":
        names, outputs = ("dx",), (torch.zeros_like(x) if not windows else torch.empty_like(x),)
    elif part == "inner":
        names, outputs = ("active", "dz"), (x.new_empty(inner), x.new_empty(inner))
    elif method == "conv":
        names = ("grad_weight", "grad_bias")
        outputs = tuple(x.new_zeros(s, dtype=torch.float32) for s in ((kernel, kv_heads, dim), (kv_heads, dim)))
    else:
        names = ("grad_w1", "grad_w2", "grad_b1", "grad_b2")
        shapes = ((hidden, kernel * dim), (dim, hidden), (hidden,), (dim,))
        outputs = tuple(x.new_zeros(s, dtype=torch.float32) for s in shapes)
    values.update(zip(names, outputs, strict=True))
    return Launch(tasks=windows * x.numel(), values=values, outputs=outputs)


def work(desc: KernelDesc, sizes: Sizes) -> Work:
    """Return an addition (mean) or a multiply-add (conv) per input, or the mlp's two products; x and out once."""
    dim, windows = desc.size("dim"), _phi(desc).length(sizes.keys)
    per_window = {"mean": desc.size("kernel") * dim, "conv": 2 * desc.size("kernel") * dim}.get(desc.word("method"))
    if per_window is None:
        per_window = 2 * desc.size("hidden") * dim * (desc.size("kernel") + 1)
    rows = sizes.batch * sizes.kv_heads
    moved = (sizes.keys + windows) * dim * element_bytes(desc.dtype)
    return Work(operations=rows * windows * per_window, bytes=rows * moved)


COMPRESS = OpDef(
    name="compress",
    summary="compressed tokens: mean, depthwise strided convolution, or mlp with intra-block position encoding",
    inputs={"x": "B S Hkv D"},
    outputs={"out": "B N Hkv D"},
    samples=(
        *(
            compress_desc(method, dtype, kernel=kernel, stride=stride, dim=dim)
            for method in ("mean", "conv", "mlp")
            for dtype, kernel, stride, dim in (("float32", 4, 4, 32), ("bfloat16", 8, 4, 80), ("float16", 6, 3, 8))
        ),
        compress_desc("mean", "bfloat16", kernel=16, stride=16, dim=64, out="float32"),
    ),
    make_inputs=make_inputs,
    reference=run_reference,
    prepare=prepare,
    extent=extent,
    work=work,
    prepare_backward=prepare_backward,
    prepare_gpu=prepare_gpu,
)
