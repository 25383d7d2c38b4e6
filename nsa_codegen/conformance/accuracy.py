"""How far results may be from float64, as a whole and in each row; and which blocks may stand for others.

An output may be off by three times what eager torch in the same type is, plus 2 ulp of the greatest value. The same
holds in each row with what is greatest there: the gradient of a key that few queries see is small beside others, and
may not be lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..desc import KernelDesc
from ..ops import OPS

ROUNDED = "rounded out"  # among float64 results: what their gradients change by where `out` is rounded
LEAST_ROW = 8  # numbers of a row that has a bound of its own: fewer of them may all be small by luck
_EPS = 2.0**-24
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How far one output or gradient is from float64, how far eager torch is, and how far it may be.

    As a whole, or in the row where the error is the greatest part of what is allowed. For chosen blocks these are score
    differences: that of a block taken to a better one that was not.
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


def judge(desc: KernelDesc, got: Values, eager: Values, exact: Values, values: Values) -> list[Accuracy]:
    """Return the accuracy of every output and gradient; the results are `results_of`'s for the inputs `values`."""
    outputs, rounded = OPS[desc.op].outputs, exact.get(ROUNDED, {})
    exact = {name: x for name, x in exact.items() if name != ROUNDED}
    largest = max((_largest(x) for name, x in exact.items() if name not in outputs), default=0.0)
    found = []
    for name, x in exact.items():
        if name == "indices":
            found.append(_selection(desc, got[name], x, values))
            continue
        kind = f"{desc.op}_{'fwd' if name in outputs else 'bwd'}"
        # A gradient that is 0 but for rounding is a sum of parts as large as other gradients.
        cancels = kind.endswith("bwd") and _largest(x) < 1e-12 * largest
        term = largest if cancels else 0.0
        bounds = _whole(got[name], eager[name], x, term)
        if not (math.isnan(bounds[0]) or cancels):
            bounds = max(bounds, _row(got[name], eager[name], x, rounded.get(name), bounds[2]), key=_part)
        found.append(Accuracy(kind=kind, name=name, error=bounds[0], eager=bounds[1], allowed=bounds[2]))
    return found


def _whole(got: Tensor, eager: Tensor, exact: Tensor, term: float) -> tuple[float, float, float]:
    """Return the error, eager's, and what is allowed for all of an output whose parts are as large as `term`."""
    other = _error(eager, exact)
    allowed = 3 * other + 2 * torch.finfo(eager.dtype).eps * max(term, _largest(exact))
    alike = got.shape == exact.shape and got.dtype == eager.dtype
    return _error(got, exact) if alike else math.nan, other, allowed


def _row(got: Tensor, eager: Tensor, exact: Tensor, rounded: Tensor | None, most: float) -> tuple[float, float, float]:
    """Return the same for the row, along the last dim, whose error is the greatest part of what is allowed there.

    The terms of a row and their roundings add up to the size of their norm alike, so that 2 ulp of its greatest number
    are room enough; where terms cancel, what was `rounded` is added. What is computed in float32 may be off by what
    that rounds of the greatest of all rows, of which 128 roundings are allowed. No row may be off by more than `most`.
    """
    if exact.dim() < 2 or exact.shape[-1] < LEAST_ROW or not exact.numel() or not bool(exact.isfinite().all()):
        return 0.0, 0.0, most
    error, other, largest = (x.abs().amax(dim=-1) for x in (got.double() - exact, eager.double() - exact, exact))
    allowed = 3 * other + 2 * torch.finfo(eager.dtype).eps * largest + 128 * 2 * _EPS * largest.max()
    if rounded is not None:
        allowed = allowed + rounded.abs().amax(dim=-1)
    allowed = allowed.clamp(max=most)
    at = int(torch.where(error > 0, error / allowed, 0.0).argmax())
    return float(error.flatten()[at]), float(other.flatten()[at]), float(allowed.flatten()[at])


def _part(bounds: tuple[float, float, float]) -> float:
    error, _, allowed = bounds
    return error / allowed if allowed else math.inf if error else 0.0


def _error(got: Tensor, exact: Tensor) -> float:
    """Return the greatest difference, NaN if there is one; equal infinities do not differ."""
    difference = torch.where(got.double() == exact, 0.0, (got.double() - exact).abs())
    return float(difference.max()) if difference.numel() else 0.0


def _largest(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _selection(desc: KernelDesc, got: Tensor, exact: Tensor, values: Values) -> Accuracy:
    """Compare chosen blocks with float64's; a scored block may stand for another of equal score but for rounding."""
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
    scores, candidates = reference.block_scores(q, k, **options)
    scores, candidates = (torch.nn.functional.pad(x, (0, 1)) for x in (scores, candidates))  # -1 reads the last
    mine, theirs = (_members(x, scores.shape) for x in (got, exact))
    rising = (got[..., 1:] > got[..., :-1]) | (got[..., 1:] < 0)
    # Blocks that are forced are no candidates: neither may they be missing, nor others stand for them.
    forced_alike = not bool(((mine ^ theirs) & ~candidates[:, None, :]).any())
    name, kind = "block_indices", f"{desc.op}_fwd"
    if not (forced_alike and torch.equal(got >= 0, exact >= 0) and bool(rising.all())):
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
