"""One op through the emitted kernels of a GPU target, executed on the CPU: findings, and errors against float64.

What kernels must write holds NaN before they run. How far results may be off is in `accuracy`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import autograd, dispatch
from ..desc import KernelDesc
from ..device import Executed, emulated
from ..errors import ExecutionError, SpecError
from ..needed import backward_descs
from ..ops import OPS, Sizes
from ..target import GpuTarget
from .accuracy import ROUNDED, Values
from .accuracy import Accuracy as Accuracy
from .accuracy import judge as judge

assert autograd  # registers the gradients of the ops
WEIGHTS = ("weight", "bias", "position", "w1", "b1", "w2", "b2")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one check found: every launch, every output's accuracy, a digest of the bits, and why it was cut short."""

    desc: KernelDesc
    sizes: Sizes
    target: GpuTarget
    order: str
    seed: int
    launches: tuple[Executed, ...]
    accuracies: tuple[Accuracy, ...]
    bits: str
    failure: str | None

    @property
    def passed(self) -> bool:
        """True if all was executed, nothing was found, and everything is as accurate as it has to be."""
        return self.failure is None and all(a.passed for a in self.accuracies)


def check(
    desc: KernelDesc,
    sizes: Sizes,
    target: GpuTarget,
    *,
    order: str = "forward",
    seed: int = 0,
    cache: Path | None = None,
) -> Outcome:
    """Run the forward `desc` at `sizes`, and its backward if it has one; raises what lowering raises.

    Inputs are the op's own, with an empty row and a doubled block among the lists where there are any.
    """
    values = inputs_of(desc, sizes)
    found: Values = {}
    failure = None
    with emulated(target, order=order, seed=seed, cache=cache) as emulation:
        try:
            with nan_filled():
                found = results_of(desc, values, compiled=True)
        except ExecutionError as error:
            failure = str(error)
    accuracies: list[Accuracy] = []
    if failure is None:
        accuracies = judge(desc, found, results_of(desc, values), results_of(desc, widened(values)), values)
    return Outcome(
        desc=desc, sizes=sizes, target=target, order=order, seed=seed, launches=tuple(emulation.launches),
        accuracies=tuple(accuracies), bits=digest(found), failure=failure,
    )  # fmt: skip


def run_op(desc: KernelDesc, values: Values) -> tuple[Tensor, ...]:
    """Run the torch op of a forward `desc`; what has no gradient runs its kernel alone."""
    ops = torch.ops.nsa_codegen
    if not has_backward(desc):
        return dispatch.run(desc, **values)
    if desc.op == "compress":
        weights = [values.get(name) for name in WEIGHTS]
        return (ops.compress(values["x"], desc.word("method"), desc.size("kernel"), desc.size("stride"), *weights),)
    if desc.op == "combine":
        return (ops.combine(values["outs"], values["gates"]),)
    q, k, v, *rest = (values[name] for name in ("q", "k", "v", "q_start", "scale"))
    if desc.op == "stream_attention":
        return tuple(ops.stream_attention(q, k, v, desc.streamed.text, *rest))
    causal = desc.word("reach") == "causal"
    return tuple(ops.gather_attention(q, k, v, values["block_indices"], desc.size("block"), causal, *rest))


def has_backward(desc: KernelDesc) -> bool:
    """Return whether gradients pass through the op of `desc`: not through a mean that only serves scores."""
    if desc.op == "compress" and dict(desc.dims).get("out", desc.dtype) != desc.dtype:
        return False
    return bool(backward_descs(desc))


def forward_of(desc: KernelDesc) -> KernelDesc:
    """Return a forward desc whose check runs the kernel of `desc`; raises `SpecError` if there is none."""
    if desc.direction == "fwd":
        return desc
    dims: dict[str, Any] = {name: value for name, value in desc.dims if name != "part"}
    options: list[dict[str, Any]] = [dims, {**dims, "out": desc.dtype}]
    if desc.op == "gather_attention":
        options = [{"n": 4, **dims, "source": "plain"}]
    for option in options:
        forward = KernelDesc.of(desc.op, desc.dtype, visible=desc.visible, **option)
        with contextlib.suppress(SpecError):
            if desc in (*backward_descs(forward, "cpu"), *backward_descs(forward, "cuda")):
                return forward
    raise SpecError(f"no forward kernel is known whose backward runs {desc}")


def inputs_of(desc: KernelDesc, sizes: Sizes) -> Values:
    """Return the inputs of a check by name: the op's own, with an empty row and a doubled block among lists."""
    values = OPS[desc.op].make_inputs(desc, sizes, torch.Generator().manual_seed(sizes.tokens))
    lists = values.get("block_indices")
    if lists is not None and lists.numel():
        lists[:, 0] = -1  # a query without keys
        lists[:, -1, :, -1] = lists[:, -1, :, 0]  # a block twice
    return values


def results_of(desc: KernelDesc, values: Values, *, compiled: bool = False) -> Values:
    """Return outputs and gradients by name, for gradients of the outputs that depend on their shapes alone.

    In float64 also, under `ROUNDED`, what gradients change by where `out` is rounded before more is made of it.
    """
    op = OPS[desc.op]
    leaves = {name: x.detach().clone().requires_grad_() for name, x in _floating(values) if has_backward(desc)}
    given = _with_leaves(values, leaves)
    outputs = run_op(desc, given) if compiled else op.reference(desc, **given)
    named = dict(zip(op.outputs, outputs, strict=True))
    found: Values = {name: x.detach() for name, x in named.items()}
    if leaves:
        douts = [_gradient(x, desc, seed) for seed, x in enumerate(outputs)]
        if outputs[0].dtype == torch.float64 and len(outputs) == 2:
            found[ROUNDED] = _effect_of_rounding(desc, outputs, leaves, douts[0])
        grads = torch.autograd.grad(outputs, list(leaves.values()), douts, allow_unused=True)
        for name, grad in zip(leaves, grads, strict=True):
            found[f"d{name}"] = torch.zeros_like(leaves[name]) if grad is None else grad
    return found


def digest(found: Values) -> str:
    """Return a digest of every bit of the results."""
    whole = hashlib.sha256()
    for name, x in found.items():
        whole.update(name.encode() + x.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]


@contextlib.contextmanager
def nan_filled() -> Iterator[None]:
    """Inside, what torch would leave uninitialised on any device holds NaN, or the greatest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _gradient(x: Tensor, desc: KernelDesc, seed: int) -> Tensor:
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 7), dtype=torch.float32)
    narrow = torch.float32 if seed else getattr(torch, desc.dtype)  # the second output is lse, float32 in every dtype
    return drawn.to(narrow).to(x)


def _effect_of_rounding(desc: KernelDesc, outputs: Sequence[Tensor], leaves: Values, dout: Tensor) -> Values:
    """Return what each gradient, by its name, changes by if `out` is rounded to the desc's type in dout . out.

    A score's gradient is ds = p * (dp - delta) with delta = dout . out - dlse, and with few keys in sight dp and delta
    nearly cancel. 2 ulp of the norm of the sum's terms, ten times what their roundings come to, stand for a gradient
    of the log-sum-exp.
    """
    out, lse = outputs
    unit = 2 * torch.finfo(getattr(torch, desc.dtype)).eps * (out.detach() * dout).norm(dim=-1)
    found = torch.autograd.grad(lse, list(leaves.values()), unit, retain_graph=True, allow_unused=True)
    return {f"d{name}": x for name, x in zip(leaves, found, strict=True) if x is not None}


def _floating(values: Values) -> Iterator[tuple[str, Tensor]]:
    for name, value in values.items():
        many = isinstance(value, (list, tuple))
        for i, x in enumerate(value if many else [value]):
            if isinstance(x, Tensor) and x.is_floating_point():
                yield f"{name}{i}" if many else name, x


def _with_leaves(values: Values, leaves: dict[str, Tensor]) -> Values:
    given: Values = {}
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            given[name] = [leaves.get(f"{name}{i}", x) for i, x in enumerate(value)]
        else:
            given[name] = leaves.get(name, value)
    return given


def widened(value: Any) -> Any:
    """Return `value` with every floating tensor in it as float64."""
    if isinstance(value, dict):
        return {name: widened(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [widened(v) for v in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
