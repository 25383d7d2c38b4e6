"""A whole program with gradients as one function: as near to float64 as the single ops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DTYPES, MEANS, SEED, draw, drawn, kernels_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nsa_codegen import functional, inference, sequence, training
from nsa_codegen.errors import InputError, SecondDerivativeError
from nsa_codegen.plan import plan_of
from nsa_codegen.spec import NSASpec

SPECS = {"mean keys": SEED, "three heads in a group": MEANS}
KERNELS = [d for s in SPECS.values() for dtype in DTYPES for d in kernels_of(s.program(), dtype)]
NAMES = ("out", "q", "k", "v", "gates")


def inputs(spec: NSASpec, batch: int, tokens: int, *, shared: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return q, k, v, gates, and the gradient of the output."""
    lead = (batch, tokens)
    q, dout = (draw(*lead, spec.num_heads, d, seed=d, dtype=dtype) for d in (spec.head_dim, spec.value_dim))
    k, v = (draw(*lead, spec.num_kv_heads, d, seed=d + 1, dtype=dtype) for d in (spec.head_dim, spec.value_dim))
    gates = draw(*((3,) if shared else (*lead, spec.num_heads, 3)), seed=7, dtype=dtype).sigmoid()
    return [q, k, v, gates, dout]


def results(spec: NSASpec, given: list[Tensor], *, impl: str = "compiled") -> list[Tensor]:
    """Return the output and the gradients of q, k, v and gates."""
    *leaves, dout = (x.clone().requires_grad_() for x in given)
    out = functional.nsa_attention(*leaves, spec, impl=impl)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.detach())]


def single_ops(spec: NSASpec, given: list[Tensor]) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "trains_as_one", lambda *_: False)
        return results(spec, given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_as_near_to_float64_as_the_single_ops(
    name: str, dtype: torch.dtype, kernels: Path, sequences: list[Any]
) -> None:
    spec = SPECS[name]

    @drawn(6)
    @given(batch=st.integers(1, 4), tokens=st.integers(1, 130), shared=st.booleans())
    def check(batch: int, tokens: int, shared: bool) -> None:
        sequences.clear()
        values = inputs(spec, batch, tokens, shared=shared, dtype=dtype)
        one, single = results(spec, values), single_ops(spec, values)
        assert len(sequences) == 2  # forward and backward
        exact = results(spec, [x.double() for x in values], impl="reference")
        assert torch.equal(one[0], single[0])
        for what, a, b, e in zip(NAMES, one, single, exact, strict=True):
            error, other = ((x.double() - e).abs().max().item() for x in (a, b))
            # Of a single query the gradients of q and k are 0: what cancels is as large as dout . v times k or q.
            cancels = tokens == 1 and what in ("q", "k")
            size = values[4].double().norm() * values[2].double().norm() if cancels else e.abs().max()
            assert error <= 1.5 * other + 2 * torch.finfo(dtype).eps * size, (what, error, other)

    check()


@pytest.mark.parametrize("name", SPECS)
def test_bits_do_not_depend_on_threads(name: str, kernels: Path, sequences: list[Any]) -> None:
    """Threads that share rows or tasks, many or one: the same sums in the same order."""
    before, spec = torch.get_num_threads(), SPECS[name]
    values = inputs(spec, 3, 100, shared=False)
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(spec, values))
        assert sorted(by_row for *_, by_row in sequences) == [False] * 2 + [True] * 4
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


def test_what_is_not_asked_for_has_no_gradient(kernels: Path, sequences: list[Any]) -> None:
    spec = SPECS["mean keys"]
    values = inputs(spec, 2, 40, shared=True)
    whole = results(spec, values)
    for asked in range(4):
        leaves = [x.clone().requires_grad_(i == asked) for i, x in enumerate(values[:4])]
        out = functional.nsa_attention(*leaves, spec, impl="compiled")
        out.backward(values[4])
        assert [x.grad is not None for x in leaves] == [i == asked for i in range(4)]
        assert torch.equal(leaves[asked].grad, whole[1 + asked])
    assert len(sequences) == 2 * 5


def test_tensors_that_are_not_contiguous(kernels: Path, sequences: list[Any]) -> None:
    spec = SPECS["three heads in a group"]
    values = inputs(spec, 2, 60, shared=False)
    turned = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in values]
    assert not any(x.is_contiguous() for x in turned)
    *leaves, dout = turned
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = functional.nsa_attention(*leaves, spec, impl="compiled")
    got = [out.detach(), *torch.autograd.grad(out, leaves, dout)]
    assert len(sequences) == 2
    assert all(torch.equal(a, b) for a, b in zip(got, results(spec, values), strict=True))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_long_rows_have_the_bits_of_small_ones(
    name: str, shared: bool, kernels: Path, sequences: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long rows take the forward in runs of queries, and the backward path by path."""
    spec = SPECS[name]
    values = inputs(spec, 3, 130, shared=shared)
    small = results(spec, values)
    assert len(sequences) == 2
    for longest in (129, 40, 1):
        sequences.clear()
        monkeypatch.setattr(inference, "RUN_ELEMENTS", longest * spec.num_heads * spec.head_dim)
        long = results(spec, values)
        assert len(sequences) == len(spec.program().paths)  # of the backward
        assert all(torch.equal(a, b) for a, b in zip(small, long, strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_closed_gates_have_gradients(shared: bool, kernels: Path, sequences: list[Any]) -> None:
    """A gate of 0 lets nothing through to keys and values, and its own gradient is dout . out all the same."""
    spec = SPECS["three heads in a group"]
    for closed in range(3):
        values = inputs(spec, 2, 70, shared=shared)
        values[3][..., closed] = 0.0
        got = results(spec, values)
        exact = results(spec, [x.double() for x in values], impl="reference")
        for what, a, e in zip(NAMES, got, exact, strict=True):
            assert (a.double() - e).abs().max() <= 4e-6 * e.abs().max(), (closed, what)
    assert len(sequences) == 2 * 3


@pytest.fixture
def new_plans() -> Iterator[None]:
    """Plans whose sequences have no layout yet, and none of the test's afterwards."""
    plan_of.cache_clear()
    yield
    plan_of.cache_clear()


def test_calls_of_one_set_of_sizes_share_a_layout(
    kernels: Path, new_plans: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers of a model at one position; other sizes, positions and threads have layouts of their own."""
    spec, laid_out = SPECS["mean keys"], []
    lay_out = sequence.Sequence._lay_out
    monkeypatch.setattr(sequence.Sequence, "_lay_out", lambda self, *a: laid_out.append(a) or lay_out(self, *a))
    one, other = inputs(spec, 2, 37, shared=True), [x.flip(0) for x in inputs(spec, 2, 37, shared=True)]
    first, second = results(spec, one), results(spec, other)
    assert len(laid_out) == 2  # forward and backward
    assert all(torch.equal(a, b) for a, b in zip(results(spec, one), first, strict=True))
    plan_of.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(results(spec, other), second, strict=True))
    assert len(laid_out) == 4
    results(spec, inputs(spec, 2, 38, shared=True))
    torch.set_num_threads(2)
    results(spec, one)
    assert len(laid_out) == 8


@pytest.mark.parametrize("shared", [True, False])
def test_opcheck(shared: bool, kernels: Path) -> None:
    spec = SPECS["three heads in a group"]
    program, ops = spec.program(), torch.ops.nsa_codegen
    q, k, v, gates, dout = inputs(spec, 2, 40, shared=shared)
    kv = [functional.compress(x, kernel=8, stride=4, impl="compiled") for x in (k, v)]
    pairs = [kv[0], k, k], [kv[1], v, v]
    options = (program.text, 0, 0.25)
    _, *saved = ops.attention_saving(q, *pairs, gates, *options)
    torch.library.opcheck(ops.attention_saving.default, (q, *pairs, gates, *options))
    torch.library.opcheck(ops.attention_backward.default, (q, *pairs, gates, *saved, dout, *options))


def test_second_derivatives_are_refused(kernels: Path) -> None:
    spec = SPECS["mean keys"]
    *leaves, dout = (x.requires_grad_() for x in inputs(spec, 2, 30, shared=True))
    out = functional.nsa_attention(*leaves, spec, impl="compiled")
    (grad,) = torch.autograd.grad(out, leaves[0], dout.detach(), create_graph=True)
    with pytest.raises(SecondDerivativeError, match="first derivatives only"):
        grad.sum().backward()


def test_bad_tensors_get_the_errors_of_the_single_ops(kernels: Path) -> None:
    spec = SPECS["mean keys"]
    q, k, v, gates, _ = inputs(spec, 2, 30, shared=True)
    q.requires_grad_()
    for bad, named in (
        ((q, k[:, :, :1], v, gates), "key/value heads differ"),
        ((q, k, v, gates[:2]), "gates"),
        ((q, k, v.double(), gates), "float64"),
        ((q[0], k, v, gates), "q"),
    ):
        with pytest.raises(InputError, match=named):
            functional.nsa_attention(*bad, spec, impl="compiled")
