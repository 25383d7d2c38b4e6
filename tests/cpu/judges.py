"""What holds results against float64: error bounds of outputs, of gradients and their rows, and of a selection."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from cases import draw, nan_filled, widened
from torch import Tensor

from nsa_codegen import reference

EPS = 2.0**-24  # half an ulp at 1: the error of one float32 rounding
LEAST_ROW = 8  # numbers of a row that has a bound of its own: fewer of them may all be small by luck


def assert_accurate(
    got: Tensor, eager: Tensor, exact: Tensor, what: str, *, term: float = 0.0, floor: Tensor | None = None
) -> None:
    """Require an error of at most 3x eager's, plus 2 ulp of the greatest output; infinities at the same places.

    The same holds in each row, see `row_bounds`. `term` is the size of what cancels in the output, where that is known
    to be more than the output; rows are not looked at then.
    """
    assert got.shape == exact.shape, f"{what}: shape {list(got.shape)}, not {list(exact.shape)}"
    assert got.dtype == eager.dtype, f"{what}: {got.dtype}, not {eager.dtype}"
    assert not bool(got.isnan().any()), f"{what}: NaN in {int(got.isnan().sum())} of {got.numel()} places"
    infinite = exact.isinf()
    assert torch.equal(got.double()[infinite], exact[infinite]), f"{what}: infinities differ"
    if exact.numel() == int(infinite.sum()):
        return
    unit = torch.finfo(eager.dtype).eps * max(term, float(exact[~infinite].abs().max()))
    error, allowed = ((x.double() - exact)[~infinite].abs().max() for x in (got, eager))
    allowed = 3 * allowed + 2 * unit
    assert error <= allowed, f"{what}: error {float(error):.3e}, allowed {float(allowed):.3e}, ulp {unit:.3e}"
    if term or exact.dim() < 2 or exact.shape[-1] < LEAST_ROW or bool(infinite.any()):
        return
    errors, bounds = row_bounds(got, eager, exact, floor)
    wrong = errors > bounds.clamp(max=allowed)
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        of = f"error {float(errors[at]):.3e}, allowed {float(bounds[at]):.3e}"
        raise AssertionError(f"{what}: {of} in row {at}")


def row_bounds(got: Tensor, eager: Tensor, exact: Tensor, floor: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the greatest error of each row, along the last dim, and what it may be: a small row may not be anything.

    Eager's error of that row counts thrice, and 2 ulp of its greatest number: its terms and their roundings add up to
    the size of their norm alike. `floor` is added where terms cancel. What is computed in float32 may be off by what
    that rounds of the greatest of all rows, of which 128 roundings are allowed.
    """
    error, others, largest = (x.abs().amax(dim=-1) for x in (got.double() - exact, eager.double() - exact, exact))
    bound = 3 * others + 2 * torch.finfo(eager.dtype).eps * largest + 128 * 2 * EPS * largest.max()
    return error, bound if floor is None else bound + floor


def floors_of_rounded_out(outputs: Any, leaves: Iterable[Tensor], douts: Iterable[Tensor], dtype: Any) -> list[Any]:
    """Return, by rows of each gradient, what it changes by if `out` is rounded to `dtype` before delta is made of it.

    ds = p * (dp - delta), where delta = dout . out - dlse: with few keys in sight dp and delta nearly cancel. 2 ulp
    of the norm of the terms of dout . out are ten times what their roundings come to, and are passed on as dlse.
    Without a log-sum-exp among the float64 `outputs` there are none.
    """
    leaves = list(leaves)
    if len(outputs) < 2:
        return [None] * len(leaves)
    out, lse = outputs[:2]
    unit = 2 * torch.finfo(dtype).eps * (out.detach() * next(iter(douts)).double()).norm(dim=-1)
    found = torch.autograd.grad(lse, leaves, unit, retain_graph=True, allow_unused=True)
    return [None if x is None else x.abs().amax(dim=-1) for x in found]


def drawn_like(outputs: Any, seed: int, dtypes: Iterable[torch.dtype]) -> list[Tensor]:
    """Return gradients of `outputs` drawn in `dtypes`, lse's included."""
    return [
        draw(*o.shape, seed=seed + i, dtype=d).to(o.dtype) for i, (o, d) in enumerate(zip(outputs, dtypes, strict=True))
    ]


def gradients(outputs: Any, inputs: Iterable[Tensor], seed: int, dtypes: Iterable[torch.dtype]) -> list[Tensor]:
    """Return the gradients of `outputs` to `inputs` for those of the outputs that `drawn_like` returns."""
    return list(torch.autograd.grad(outputs, list(inputs), drawn_like(outputs, seed, dtypes)))


def compare_gradients(run: Any, values: dict[str, Any], what: str, *, seed: int = 7) -> None:
    """Compare the gradients of `run("compiled", values)` to every floating tensor of `values` with the reference's.

    `run(impl, values)` returns a tuple of outputs. The outputs are compared as well.
    """
    names = [n for n, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()]
    found, floors = [], []
    for impl, given in (("compiled", values), ("reference", values), ("reference", widened(values))):
        leaves = {n: given[n].detach().clone().requires_grad_() for n in names}
        with nan_filled() if impl == "compiled" else contextlib.nullcontext():
            outputs = run(impl, {**given, **leaves})
            dtypes = [o.dtype for o in outputs] if not found else found[0][0]
            if len(found) == 2:
                floors = floors_of_rounded_out(outputs, leaves.values(), drawn_like(outputs, seed, dtypes), dtypes[0])
            found.append((dtypes, [o.detach() for o in outputs], gradients(outputs, leaves.values(), seed, dtypes)))
    (_, got, got_grads), (_, eager, eager_grads), (_, exact, exact_grads) = found
    for i, triple in enumerate(zip(got, eager, exact, strict=True)):
        assert_accurate(*triple, f"{what}: output {i}")
    largest = max(float(g.abs().max()) for g in exact_grads if g.numel())
    for name, floor, *triple in zip(names, floors, got_grads, eager_grads, exact_grads, strict=True):
        term = term_of(triple[-1], largest)
        if name == "gates" and triple[-1].dim() == 1:
            term = norm_of_terms(exact[0], seed, dtypes[0])
        assert_accurate(*triple, f"{what}: gradient of {name}", term=term, floor=floor)


def norm_of_terms(out: Tensor, seed: int, dtype: torch.dtype) -> float:
    """Return the size of what cancels in the gradient of a gate that all rows share: a sum of dout * out over all.

    Terms of either sign add up to the size of their norm, and so do the errors of out in them, which are those of a
    softmax and a sum of its own: thrice a rounding.
    """
    return 3 * float((draw(*out.shape, seed=seed, dtype=dtype).double() * out.double()).norm())


def term_of(exact: Tensor, largest: float) -> float:
    """Return the size of what cancels in a gradient: `largest` of all gradients where this one is 0 but for rounding.

    So it is for what shifts all scores of a query alike, such as a bias of the keys, or the keys themselves if there is
    but one: parts of the size of other gradients add up to 0, exactly only by luck.
    """
    return largest if exact.numel() and float(exact.abs().max()) < 1e-12 * largest else 0.0


def margin_of_mean_key(q: Tensor, k_mean: Tensor, added: int) -> Tensor:
    """Bound the float32 error of mean-key scores, [B, T, Hkv, M], for float64 q and (absolute) means [B, M, Hkv, Dk].

    A sum of n products in any order errs by at most n * 2^-24 times the sum of their absolute values, to first order;
    the sums here are over Dk, over the group, and `added` terms for the means. Twice that, for the higher orders.
    """
    batch, tokens, heads, dk = q.shape
    group = heads // k_mean.shape[2]
    absolute = q.abs().reshape(batch, tokens, -1, group, dk).sum(dim=3)
    return 2 * (dk + group + added) * EPS * torch.einsum("bthd,bjhd->bthj", absolute, k_mean.abs())


def margin_of_compressed(q: Tensor, k: Tensor, scores: Tensor, *, scale: float, terms: int) -> Tensor:
    """Bound the float32 error of compressed-softmax scores `scores` [B, T, Hkv, M], for float64 q and k.

    An error of d in the exponent is a relative error of d in a weight and in the weights' sum; d is at most
    (Dk + 4) * 2^-24 times scale * sum |q||k|. The powers of two add 2e-7 each, and sums of n weights n * 2^-24, with N
    tokens in the softmax and `terms` weights in a block score. Weights below 2^-126 count as 0.
    """
    batch, tokens, heads, dk = q.shape
    length, kv_heads = k.shape[1:3]
    if length == 0:
        return torch.zeros_like(scores)
    absolute = q.abs().reshape(batch, tokens, kv_heads, heads // kv_heads, dk)
    largest = torch.einsum("bthgd,bshd->bthgs", absolute, k.abs()).amax(dim=(3, 4)) * scale
    relative = 2 * (dk + 4) * EPS * largest + (length + terms) * EPS + 4 * 2e-7
    return 2 * relative[..., None] * scores + terms * 2.0**-126


def assert_selected(got: Tensor, q: Tensor, k: Tensor, margin_terms: int, **options: Any) -> None:
    """Require the float64 selection, except between blocks whose float64 scores differ by less than float32 rounding.

    `q`, `k` and `options` are what `reference.select_blocks` takes; k is rounded as the kernel reads it.
    """
    q, k = q.double(), k.double()
    sizes = {name: value for name, value in options.items() if name != "num_selected"}
    scores, candidates = reference.block_scores(q, k, **sizes)
    exact = reference.select_blocks(q, k, **options)
    if options["method"] == "mean_key":
        whole, block = scores.shape[-1] - 1, options["block_size"]
        absolute = k[:, : whole * block].abs().reshape(k.shape[0], whole, block, *k.shape[2:]).mean(dim=2)
        margin = torch.nn.functional.pad(margin_of_mean_key(q, absolute, margin_terms), (0, 1))
    else:
        scale = options.get("scale")
        scale = q.shape[-1] ** -0.5 if scale is None else abs(scale)
        margin = margin_of_compressed(q, k, scores, scale=scale, terms=margin_terms)
    assert got.shape == exact.shape
    assert got.dtype == torch.int32
    blocks = scores.shape[-1]
    assert bool(((got >= -1) & (got < blocks)).all()), "an index outside -1 .. blocks-1"
    filled = got >= 0
    assert torch.equal(filled, exact >= 0), "another number of blocks"
    rising = (got[..., 1:] > got[..., :-1]) | ~filled[..., 1:]
    assert bool(rising.all()), "indices do not ascend, or -1 is not in the tail"
    mine, theirs = (torch.zeros_like(scores).bool().flatten(0, 2) for _ in range(2))
    for mask, lists in ((mine, got), (theirs, exact)):
        rows = lists.flatten(0, 2).long()
        row, slot = (rows >= 0).nonzero(as_tuple=True)
        mask[row, rows[row, slot]] = True
    mine, theirs = mine.view(scores.shape), theirs.view(scores.shape)
    unequal = (mine ^ theirs) & ~candidates[:, None, :]
    assert not bool(unequal.any()), "chosen, but neither forced nor a candidate; or forced, and not chosen"
    best_missed = (scores - margin).masked_fill(~(theirs & ~mine), -math.inf).amax(dim=-1)
    worst_taken = (scores + margin).masked_fill(~(mine & ~theirs), math.inf).amin(dim=-1)
    wrong = best_missed > worst_taken
    assert not bool(wrong.any()), f"wrong blocks at {wrong.nonzero()[0].tolist()}, in {int(wrong.sum())} rows"
