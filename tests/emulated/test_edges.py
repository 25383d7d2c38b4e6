"""The torch functions on an emulated GPU where there is little to compute, or tensors are not of one dtype."""

import math

import pytest
import torch
from cases import nan_filled

from nsa_codegen import functional
from nsa_codegen.device import emulated
from nsa_codegen.target import GPU_TARGETS

DTYPE = torch.float16  # and descs of conformance's cases, whose kernels are lowered once


@pytest.fixture
def on(cache):
    return lambda arch: emulated(GPU_TARGETS[arch], cache=cache)


def drawn(*shape, dtype=DTYPE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def attend(q, k, v, lists=None):
    if lists is None:
        return functional.window_attention(q, k, v, window_size=20, impl="compiled")
    return functional.selected_attention(q, k, v, lists, block_size=16, impl="compiled")


@pytest.mark.parametrize("listed", [False, True])
def test_without_queries_keys_get_no_gradient(on, listed):
    lists = torch.zeros(2, 0, 2, 4, dtype=torch.int32) if listed else None
    leaves = [drawn(2, n, h, d).requires_grad_() for n, h, d in ((0, 8, 32), (40, 2, 32), (40, 2, 16))]
    with on("sm_90a"), nan_filled():
        out, lse = attend(*leaves, lists)
        grads = torch.autograd.grad((out, lse), leaves, (torch.ones_like(out), torch.ones_like(lse)))
    assert [g.shape for g in grads] == [x.shape for x in leaves]
    assert not any(bool(g.any()) for g in grads)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_what_a_loss_makes_of_the_lse_of_rows_without_keys_is_not_taken(on, arch):
    lists = torch.full((1, 20, 2, 4), -1, dtype=torch.int32)
    lists[:, 12:, :, 0] = 0
    leaves = [drawn(1, 20, h, d, seed=d).requires_grad_() for h, d in ((8, 32), (2, 32), (2, 16))]
    found = []
    for given in (0.0, math.nan, math.inf):
        with on(arch), nan_filled():
            out, lse = attend(*leaves, lists)
            dlse = torch.where(lse == -math.inf, given, torch.ones_like(lse))
            found.append(torch.autograd.grad((out, lse), leaves, (torch.ones_like(out), dlse)))
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in found[0])
    for grads in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(grads, found[0], strict=True))


WEIGHTS = {
    "conv": lambda dtype: (drawn(8, 2, 32, dtype=dtype), drawn(2, 32, dtype=dtype)),
    "mlp": lambda dtype: (
        (drawn(8, 32, dtype=dtype), drawn(64, 256, dtype=dtype) / 16, drawn(32, 64, dtype=dtype) / 8),
        (drawn(64, dtype=dtype), drawn(32, dtype=dtype)),
    ),
}


@pytest.mark.parametrize(("method", "arch"), [("conv", "sm_80"), ("mlp", "sm_90a")])
def test_weights_may_be_of_another_dtype_than_tokens(on, method, arch):
    """As under autocast: they are rounded to the dtype of the tokens, and their gradients are of their own."""
    x = drawn(1, 20, 2, 32)
    results = []
    for dtype in (torch.float32, DTYPE):
        weight, bias = WEIGHTS[method](dtype)
        leaves = [w.requires_grad_() for w in (weight if method == "mlp" else (weight,))]
        given = tuple(leaves) if method == "mlp" else leaves[0]
        with on(arch), nan_filled():
            out = functional.compress(x, kernel=8, stride=4, method=method, weight=given, bias=bias, impl="compiled")
            grads = torch.autograd.grad(out.float().square().sum(), leaves)
        assert out.dtype == DTYPE and [g.dtype for g in grads] == [dtype for _ in leaves]
        results.append((out, *grads))
    exact = functional.compress(
        x.double(), kernel=8, stride=4, method=method, impl="reference",
        weight=tuple(w.double() for w in given) if method == "mlp" else given.double(),
        bias=tuple(b.double() for b in bias) if method == "mlp" else bias.double(),
    )  # fmt: skip
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.to(DTYPE), other, rtol=0.05, atol=0.05 * float(other.abs().max()))
    torch.testing.assert_close(results[0][0].double(), exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))
