"""One op through the emitted kernels of a GPU target, executed on the CPU: findings, and errors against float64.

An output may be off by three times what eager torch in the same type is, plus 2 ulp of the greatest value. What kernels
must write holds NaN before they run.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import autograd, dispatch, reference
from ..desc import KernelDesc
from ..device import Executed, emulated
from ..errors import ExecutionError, SpecError
from ..needed import backward_descs
from ..ops import OPS, Sizes
from ..target import GpuTarget

assert autograd  # registers the gradients of the ops
WEIGHTS = ("weight", "bias", "position", "w1", "b1", "w2", "b2")
_EPS = 2.0**-24
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How far one output or gradient is from float64, how far eager torch is, and how far it may be.

    For chosen blocks these are score differences: that of a block taken to a better one that was not.
    """

    kind: str  # that of the kernel that wrote it
    name: str
    error: float
    eager: float
    allowed: float

    @property
    def passed(self) -> bool:
        """True if the error is within what is allowed; a NaN never is."""
        return self.error <= self.allowed


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
            with _nan_filled():
                found = results_of(desc, values, compiled=True)
        except ExecutionError as error:
            failure = str(error)
    accuracies: list[Accuracy] = []
    if failure is None:
        accuracies = judge(desc, found, results_of(desc, values), results_of(desc, widened(values)), values)
    return Outcome(
        desc=desc, sizes=sizes, target=target, order=order, seed=seed, launches=tuple(emulation.launches),
        accuracies=tuple(accuracies), bits=_digest(found), failure=failure,
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
    """Return outputs and gradients by name, for gradients of the outputs that depend on their shapes alone."""
    op = OPS[desc.op]
    leaves = {name: x.detach().clone().requires_grad_() for name, x in _floating(values) if has_backward(desc)}
    given = _with_leaves(values, leaves)
    outputs = run_op(desc, given) if compiled else op.reference(desc, **given)
    named = dict(zip(op.outputs, outputs, strict=True))
    found: Values = {name: x.detach() for name, x in named.items()}
    if leaves:
        douts = [_gradient(x, desc, seed) for seed, x in enumerate(outputs)]
        grads = torch.autograd.grad(outputs, list(leaves.values()), douts, allow_unused=True)
        for name, grad in zip(leaves, grads, strict=True):
            found[f"d{name}"] = torch.zeros_like(leaves[name]) if grad is None else grad
    return found


def _gradient(x: Tensor, desc: KernelDesc, seed: int) -> Tensor:
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 7), dtype=torch.float32)
    narrow = torch.float32 if seed else getattr(torch, desc.dtype)  # the second output is lse, float32 in every dtype
    return drawn.to(narrow).to(x.dtype)


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


def judge(desc: KernelDesc, got: Values, eager: Values, exact: Values, values: Values) -> list[Accuracy]:
    """Return the accuracy of every output and gradient; the results are `results_of`'s for the inputs `values`."""
    outputs = OPS[desc.op].outputs
    largest = max((_largest(x) for name, x in exact.items() if name not in outputs), default=0.0)
    found = []
    for name, x in exact.items():
        if name == "indices":
            found.append(_selection(desc, got[name], x, values))
            continue
        kind = f"{desc.op}_{'fwd' if name in outputs else 'bwd'}"
        # A gradient that is 0 but for rounding is a sum of parts as large as other gradients.
        cancels = kind.endswith("bwd") and _largest(x) < 1e-12 * largest
        found.append(_accuracy(kind, name, got[name], eager[name], x, largest if cancels else 0.0))
    return found


def _accuracy(kind: str, name: str, got: Tensor, eager: Tensor, exact: Tensor, term: float) -> Accuracy:
    error, other = _error(got, exact), _error(eager, exact)
    allowed = 3 * other + 2 * torch.finfo(eager.dtype).eps * max(term, _largest(exact))
    if got.shape != exact.shape or got.dtype != eager.dtype:
        error = math.nan
    return Accuracy(kind=kind, name=name, error=error, eager=other, allowed=allowed)


def _error(got: Tensor, exact: Tensor) -> float:
    """Return the greatest difference, NaN if there is one; equal infinities do not differ."""
    difference = torch.where(got.double() == exact, 0.0, (got.double() - exact).abs())
    return float(difference.max()) if difference.numel() else 0.0


def _largest(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _selection(desc: KernelDesc, got: Tensor, exact: Tensor, values: Values) -> Accuracy:
    """Compare chosen blocks with float64's; a block may stand for another whose score is equal but for rounding."""
    q, k, block = values["q"].double(), values["k"].double(), desc.size("block")
    options: Values = {"method": desc.word("method"), "block_size": block, "q_start": values["q_start"]}
    if options["method"] == "mean_key":
        k = k.repeat_interleave(block, dim=1)
        tail = values["q_start"] + q.shape[1] - k.shape[1]
        k = torch.cat([k, k.new_zeros((k.shape[0], max(0, tail), *k.shape[2:]))], dim=1)
        terms = desc.size("dk") * desc.size("group")
    else:
        options |= {"kernel": desc.size("kernel"), "stride": desc.size("stride"), "scale": values["scale"]}
        terms = k.shape[1] + (desc.size("dk") + 4) * 8
    options |= {"num_initial": desc.size("initial"), "num_local": desc.size("local")}
    scores, _ = reference.block_scores(q, k, **options)
    scores = torch.nn.functional.pad(scores, (0, 1), value=0.0)  # an index of -1 reads the last
    mine, theirs = (_members(x, scores.shape) for x in (got, exact))
    name = "block_indices"
    kind = f"{desc.op}_fwd"
    rising = (got[..., 1:] > got[..., :-1]) | (got[..., 1:] < 0)
    if not (torch.equal(mine.sum(-1), theirs.sum(-1)) and torch.equal(got >= 0, exact >= 0) and bool(rising.all())):
        return Accuracy(kind=kind, name=name, error=math.nan, eager=0.0, allowed=0.0)
    missed = scores.masked_fill(~(theirs & ~mine), -math.inf).amax(dim=-1)
    taken = scores.masked_fill(~(mine & ~theirs), math.inf).amin(dim=-1)
    gap = (missed - taken).clamp(min=0.0)
    finite = scores[scores.isfinite()]
    allowed = 8 * terms * _EPS * float(finite.abs().max()) if finite.numel() else 0.0
    return Accuracy(kind=kind, name=name, error=float(gap.max()), eager=0.0, allowed=allowed)


def _members(lists: Tensor, shape: torch.Size) -> Tensor:
    """Return which blocks each list names; the last place is for what is neither a block nor -1."""
    inside = torch.where((lists >= 0) & (lists < shape[-1] - 1), lists.long(), shape[-1] - 1)
    found = torch.zeros(shape, dtype=torch.bool).scatter_(-1, inside, True)
    found[..., -1] = ((lists < -1) | (lists >= shape[-1] - 1)).any(dim=-1)
    return found


def _digest(found: Values) -> str:
    """Return a digest of every bit of the results."""
    digest = hashlib.sha256()
    for name, x in found.items():
        digest.update(name.encode() + x.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _nan_filled() -> Iterator[None]:
    """Inside, what torch would leave uninitialised holds NaN, or the greatest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
