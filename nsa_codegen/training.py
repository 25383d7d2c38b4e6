"""A whole program with gradients as one function on the CPU: as `inference.py` without.

What is kept for the backward is log-sum-exps and lists of blocks, and no output of a path: the kernels of the backward
take the gradient of the combined output, with the gates, and add up the queries' gradients path by path. Where batch
rows are small, forward and backward take all their kernels in one call each (`sequence.py`), so that what one kernel
leaves of a row is in cache for the next one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .autograd import refuse_second_derivatives
from .checks import refuse_transforms, use_compiled
from .dispatch import define_op, fake_op
from .inference import Scope, by_runs, named, plan_for, rows_are_shared, rows_are_small, serves_here
from .ops.base import scratch
from .pages import in_large_pages
from .plan import Plan
from .program import Program

_ops = torch.ops.nsa_codegen


def trains_as_one(program: Program, q: Tensor, impl: str) -> bool:
    """Return whether `attention_with_gradients` may compute `program`: on the CPU's kernels."""
    if not torch.is_grad_enabled() or program.combine == "none" or not serves_here(program, q):
        return False
    return bool(q.numel()) and use_compiled("attention", impl, q)


def attention_with_gradients(
    program: Program,
    q: Tensor,
    pairs: Sequence[tuple[Tensor, Tensor]],
    gates: Tensor,
    *,
    scale: float,
    q_start: int,
) -> Tensor:
    """Return what `program` computes of checked tensors, differentiable once.

    Raises `ForwardDerivativeError` and `TransformError`.
    """
    keys, values = [k for k, _ in pairs], [v for _, v in pairs]
    refuse_transforms("attention", (q, gates, *keys, *values), lists=True)
    apply: Any = _Attention.apply
    out: Tensor = apply(program.text, q_start, scale, q, gates, *keys, *values)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text: str, q_start: int, scale: float, q: Tensor, gates: Tensor, *pairs: Tensor) -> Tensor:
        keys, values = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
        out, *saved = _ops.attention_saving(q, keys, values, gates, text, q_start, scale)
        ctx.options, ctx.counts = (text, q_start, scale), [len(keys), len(values), *map(len, saved)]
        ctx.save_for_backward(q, gates, *pairs, *(x for part in saved for x in part))
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        q, gates, *rest = ctx.saved_tensors
        keys, values, lses, lists = (list(x) for x in _split(rest, ctx.counts))
        grads = _ops.attention_backward(q, keys, values, gates, lses, lists, dout, *ctx.options)
        grad_q, grad_keys, grad_values, grad_gates = grads
        return None, None, None, grad_q, grad_gates, *grad_keys, *grad_values


def _split(tensors: Sequence[Tensor], counts: Sequence[int]) -> Any:
    first = 0
    for count in counts:
        yield tensors[first : first + count]
        first += count


@define_op(
    "attention_saving(Tensor q, Tensor[] keys, Tensor[] values, Tensor gates, str program, SymInt q_start, float scale)"
    " -> (Tensor, Tensor[], Tensor[])",
    devices=("CPU",),
)
def _attention_saving(
    q: Tensor, keys: list[Tensor], values: list[Tensor], gates: Tensor, program: str, q_start: int, scale: float
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The output, log-sum-exps by path, and the lists of blocks of the paths that have some."""
    q, keys, values, gates = q.contiguous(), _contiguous(keys), _contiguous(values), gates.contiguous()
    plan, listing = _plan(program, q, keys, values, gates)
    out, lses, lists = _saved(q, keys, values, list(listing.values()))
    in_large_pages(out)
    if rows_are_small(q, out.shape[3]):
        given = {**named(q, keys, values, gates), "out": out, **_saved_names(lses, lists, listing)}
        plan.forward(q.shape[1], keys)(given, q_start=q_start, scale=scale, by_row=rows_are_shared(q, out.shape[3]))
    else:
        scope = Scope(q=q, keys=keys, values=values, q_start=q_start, scale=scale)
        by_runs(plan, scope, gates, out, lses=lses, listed=dict(zip(listing, lists, strict=True)))
    return out, lses, lists


@define_op(
    "attention_backward(Tensor q, Tensor[] keys, Tensor[] values, Tensor gates, Tensor[] lses, Tensor[] lists, "
    "Tensor dout, str program, SymInt q_start, float scale) -> (Tensor, Tensor[], Tensor[], Tensor)",
    devices=("CPU",),
)
def _attention_backward(
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    gates: Tensor,
    lses: list[Tensor],
    lists: list[Tensor],
    dout: Tensor,
    program: str,
    q_start: int,
    scale: float,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    q, keys, values, gates = q.contiguous(), _contiguous(keys), _contiguous(values), gates.contiguous()
    plan, listing = _plan(program, q, keys, values, gates)
    grad_q = in_large_pages(torch.empty_like(q))
    grad_keys, grad_values = ([in_large_pages(torch.empty_like(x)) for x in part] for part in (keys, values))
    by_row = scratch(*q.shape[:3], len(keys))
    given = {**named(q, keys, values, gates), **_saved_names(lses, lists, listing), "dout": dout.contiguous()}
    given |= {"gates": given["gates"].float(), "grad q": grad_q, "grad gates": by_row}
    given |= {f"grad keys {n}": x for n, x in enumerate(grad_keys)}
    given |= {f"grad values {n}": x for n, x in enumerate(grad_values)}
    given["dlse"] = scratch(lses[0].numel()).zero_()
    small = rows_are_small(q, dout.shape[3])
    for kernels in (plan.backward,) if small else plan.backward_by_path:
        kernels(given, q_start=q_start, scale=scale, by_row=rows_are_shared(q, dout.shape[3]))
    # In float64, so that the sum does not depend on how torch splits it over threads.
    grad_gates = by_row.double().sum(dim=(0, 1, 2)) if gates.dim() == 1 else by_row
    return grad_q, grad_keys, grad_values, grad_gates.to(gates.dtype)


@fake_op("attention_saving")
def _attention_saving_fake(
    q: Tensor, keys: list[Tensor], values: list[Tensor], gates: Tensor, program: str, *_: Any
) -> Any:
    return _saved(
        q, keys, values, [row["top_k"]["n"] for row in json.loads(program) if "top_k" in row and "ranges" not in row]
    )


@fake_op("attention_backward")
def _attention_backward_fake(q: Tensor, keys: list[Tensor], values: list[Tensor], gates: Tensor, *_: Any) -> Any:
    like = [[x.new_empty(x.shape) for x in part] for part in (keys, values)]
    return q.new_empty(q.shape), *like, gates.new_empty(gates.shape)


def _plan(
    program: str, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], gates: Tensor
) -> tuple[Plan, dict[int, int]]:
    """Return the kernels, and by the numbers of the paths that attend to listed blocks how many a list has."""
    plan = plan_for(program, q, keys, values, gates)
    return plan, {n: path.visible.n for n, path in enumerate(plan.paths) if path.visible is not None}


def _saved(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], listed: Sequence[int]) -> Any:
    """Return memory for what the forward returns, with lists of so many blocks."""
    lead, kv_heads = q.shape[:3], keys[0].shape[2]
    lses = [q.new_empty(lead, dtype=torch.float32) for _ in keys]
    lists = [q.new_empty((*lead[:2], kv_heads, n), dtype=torch.int32) for n in listed]
    return q.new_empty((*lead, values[0].shape[3])), lses, lists


def _saved_names(lses: Sequence[Tensor], lists: Sequence[Tensor], listing: Mapping[int, int]) -> dict[str, Tensor]:
    found = {f"lse {n}": x for n, x in enumerate(lses)}
    return found | {f"list {n}": x for n, x in zip(listing, lists, strict=True)}


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


refuse_second_derivatives("attention_backward")
