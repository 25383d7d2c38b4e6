"""Gradients of the ops of `dispatch`: backward ops over compiled kernels, and their registration with autograd.

Probabilities are recomputed from log-sum-exp, so that nothing quadratic is saved, and every sum has one order: two runs
are bit-equal. Second derivatives are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .desc import KernelDesc
from .dispatch import NAMESPACE, define_op, dtype_name, fake_op, gather_desc, run, stream_desc
from .errors import SecondDerivativeError
from .index_sets import complete
from .needed import backward_descs, backward_pack_descs, compress_desc

_ops = torch.ops.nsa_codegen


@define_op(
    "stream_attention_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor dout, Tensor dlse, "
    "str visible, SymInt q_start, float scale) -> (Tensor, Tensor, Tensor)"
)
def _stream_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor,
    visible: str,
    q_start: int,
    scale: float,
) -> tuple[Tensor, ...]:
    q, k, v, out, lse, dout, dlse = (x.contiguous() for x in (q, k, v, out, lse, dout, dlse))
    dlse = _without_empty_rows(dlse, lse)
    desc = stream_desc(visible, dtype_name(q), q.shape[2] // k.shape[2], q.shape[3], v.shape[3])
    shared = {"q": q, "k": k, "v": v, "q_start": q_start, "scale": scale}
    given = {**shared, "lse": lse, "dout": dout}
    if (gpu := dispatch.gpu_of(q)) is not None:
        by_queries, by_keys = backward_descs(desc, gpu.kind)
        grad_q, delta = run(by_queries, **given, out=out, dlse=dlse)
        return grad_q, *run(by_keys, **given, delta=delta)
    by_runs, by_sums = backward_descs(desc)
    grad_q, parts_k, parts_v = run(by_runs, **given, dlse=dlse)
    return grad_q, *run(by_sums, **shared, parts_k=parts_k, parts_v=parts_v)


def _without_empty_rows(dlse: Tensor, lse: Tensor) -> Tensor:
    """Return dlse with 0 for rows that see no key: their lse is constant, and a loss may give them inf or NaN."""
    return dlse.masked_fill(lse == -torch.inf, 0.0)


@fake_op("stream_attention_backward")
def _stream_backward_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@define_op(
    "gather_attention_backward(Tensor q, Tensor k, Tensor v, Tensor block_indices, Tensor out, Tensor lse, "
    "Tensor dout, Tensor dlse, int block, bool causal, SymInt q_start, float scale) -> (Tensor, Tensor, Tensor)"
)
def _gather_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_indices: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor,
    block: int,
    causal: bool,
    q_start: int,
    scale: float,
) -> tuple[Tensor, ...]:
    q, k, v, out, lse, dout, dlse = (x.contiguous() for x in (q, k, v, out, lse, dout, dlse))
    dlse = _without_empty_rows(dlse, lse)
    n, group = block_indices.shape[3], q.shape[2] // k.shape[2]
    desc = gather_desc(
        dtype_name(q), group, q.shape[3], v.shape[3], block, n, causal, dispatch.packed_source(dtype_name(q))
    )
    shared = {"q": q, "k": k, "v": v, "q_start": q_start}
    given = {**shared, "scale": scale, "lse": lse, "dout": dout}
    if (gpu := dispatch.gpu_of(q)) is not None:
        by_queries, by_keys = backward_descs(desc, gpu.kind)
        grad_q, delta = run(by_queries, **given, out=out, dlse=dlse, block_indices=block_indices)
        return grad_q, *run(by_keys, **given, delta=delta, block_indices=block_indices)
    by_runs, by_sums = backward_descs(desc)
    lists = block_indices.to(torch.int32).contiguous()
    packed = {name: run(d, x=v if name.startswith("v") else k)[0] for name, d in backward_pack_descs(desc).items()}
    grad_q, parts_k, parts_v = run(by_runs, **given, **packed, dlse=dlse, block_indices=lists)
    return grad_q, *run(by_sums, **shared, parts_k=parts_k, parts_v=parts_v, scale=scale)


@fake_op("gather_attention_backward")
def _gather_backward_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@define_op("combine_backward(Tensor[] outs, Tensor gates, Tensor dout) -> (Tensor[], Tensor)")
def _combine_backward(outs: list[Tensor], gates: Tensor, dout: Tensor) -> tuple[list[Tensor], Tensor]:
    words = "scalar" if gates.dim() == 1 else "sigmoid"
    desc = KernelDesc.of("combine", dtype_name(outs[0]), paths=len(outs), dv=outs[0].shape[-1], gates=words)
    (backward,) = backward_descs(desc)
    found = run(backward, outs=[o.contiguous() for o in outs], gates=gates, dout=dout.contiguous())
    by_row = found[-1]
    # In float64, so that the sum does not depend on how torch splits it over threads.
    grad_gates = by_row.double().sum(dim=0) if gates.dim() == 1 else by_row.view(gates.shape)
    return list(found[:-1]), grad_gates.to(gates.dtype)


@fake_op("combine_backward")
def _combine_backward_fake(outs: list[Tensor], gates: Tensor, dout: Tensor) -> Any:
    return [o.new_empty(o.shape) for o in outs], gates.new_empty(gates.shape)


_WEIGHTS = ("weight", "bias", "position", "w1", "b1", "w2", "b2")


@define_op(
    "compress_backward(Tensor x, Tensor dout, str method, int kernel, int stride, Tensor? weight, Tensor? bias, "
    "Tensor? position, Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2) -> Tensor[]"
)
def _compress_backward(
    x: Tensor, dout: Tensor, method: str, kernel: int, stride: int, *weights: Tensor | None
) -> list[Tensor]:
    """The gradients of x and of the weights that are given, in order."""
    x, dout = x.contiguous(), dout.contiguous()
    given = {name: w for name, w in zip(_WEIGHTS, weights, strict=True) if w is not None}
    desc = compress_desc(method, dtype_name(x), kernel=kernel, stride=stride, dim=x.shape[3])
    if method == "mlp":
        return _mlp_backward(desc.replace(hidden=given["w1"].shape[0]), x, dout, given)
    parts = backward_descs(desc)
    by_tokens = {"weight": given["weight"]} if method == "conv" else {}
    grads = [run(parts[0], x=x, dout=dout, **by_tokens)[0]]
    if method == "conv":
        by_weight = dict(zip(("weight", "bias"), run(parts[1], x=x, dout=dout), strict=True))
        grads += [by_weight[name].to(w.dtype) for name, w in given.items()]
    return grads


def _mlp_backward(desc: KernelDesc, x: Tensor, dout: Tensor, given: dict[str, Tensor]) -> list[Tensor]:
    by_inner, by_tokens, by_weights = backward_descs(desc)
    given = {name: w.contiguous() for name, w in given.items()}
    layers = {name: given[name] for name in ("position", "w1", "b1", "w2")}
    active, dz = run(by_inner, x=x, dout=dout, **layers)
    (grad_x,) = run(by_tokens, x=x, dout=dout, dz=dz, w1=given["w1"])
    w1, w2, b1, b2 = run(by_weights, x=x, dout=dout, position=given["position"], active=active, dz=dz)
    # The encoding is added to every window alike, as b1 is to every output of w1.
    position = (b1 @ given["w1"].float()).view(given["position"].shape)
    grads = {"position": position, "w1": w1, "b1": b1, "w2": w2, "b2": b2}
    return [grad_x, *(grads[name].to(w.dtype) for name, w in given.items())]


@fake_op("compress_backward")
def _compress_backward_fake(x: Tensor, dout: Tensor, method: str, kernel: int, stride: int, *weights: Any) -> Any:
    return [x.new_empty(x.shape), *(w.new_empty(w.shape) for w in weights if w is not None)]


def _compress_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, ctx.method, ctx.kernel, ctx.stride, *weights = inputs
    ctx.save_for_backward(x, *weights)


def _compress_grads(ctx: Any, dout: Tensor) -> Any:
    x, *weights = ctx.saved_tensors
    grad_x, *found = _ops.compress_backward(x, dout, ctx.method, ctx.kernel, ctx.stride, *weights)
    rest = iter(found)
    return grad_x, None, None, None, *(None if w is None else next(rest) for w in weights)


def _attention_setup(ctx: Any, inputs: Any, output: Any) -> None:
    tensors, ctx.options = (
        [i for i in inputs if isinstance(i, Tensor)],
        [i for i in inputs if not isinstance(i, Tensor)],
    )
    ctx.save_for_backward(*tensors, *output)


def _stream_grads(ctx: Any, dout: Tensor, dlse: Tensor) -> Any:
    return *_ops.stream_attention_backward(*ctx.saved_tensors, dout, dlse, *ctx.options), None, None, None


def _scored_setup(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, *_, kernel, stride, ctx.scale, ctx.q_start = inputs
    ctx.visible = complete(kernel, stride).text
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(q, k, v, *output[:2])


def _scored_grads(ctx: Any, dout: Tensor, dlse: Tensor, _: Any) -> Any:
    given = *ctx.saved_tensors, dout, dlse, ctx.visible, ctx.q_start, ctx.scale
    return *_ops.stream_attention_backward(*given), *(None for _ in range(8))


def _gather_grads(ctx: Any, dout: Tensor, dlse: Tensor) -> Any:
    grads = _ops.gather_attention_backward(*ctx.saved_tensors, dout, dlse, *ctx.options)
    return *grads, *(None for _ in range(5))


def _combine_setup(ctx: Any, inputs: Any, output: Any) -> None:
    outs, gates = inputs
    ctx.save_for_backward(*outs, gates)


def _combine_grads(ctx: Any, dout: Tensor) -> Any:
    *outs, gates = ctx.saved_tensors
    grads, grad_gates = _ops.combine_backward(outs, gates, dout)
    return list(grads), grad_gates


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise SecondDerivativeError(
        "nsa_codegen kernels have first derivatives only; for derivatives of gradients use impl='reference', which is "
        "differentiable to any order"
    )


def _register(name: str, setup: Any, backward: Any) -> None:
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=dispatch.LIBRARY)


_register("compress", _compress_setup, _compress_grads)
_register("stream_attention", _attention_setup, _stream_grads)
_register("scored_attention", _scored_setup, _scored_grads)
_register("gather_attention", _attention_setup, _gather_grads)
_register("combine", _combine_setup, _combine_grads)


def refuse_second_derivatives(name: str) -> None:
    """Have the backward op `name` raise `SecondDerivativeError` when its gradient is asked for."""
    _register(name, lambda ctx, inputs, output: None, _refuse)


for _name in ("compress", "stream_attention", "gather_attention", "combine"):
    refuse_second_derivatives(f"{_name}_backward")
