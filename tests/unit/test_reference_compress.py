"""`reference.compress` against loops over windows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import compress as naive_compress
from naive import draw
from torch import Tensor

from nsa_codegen.errors import InputError
from nsa_codegen.reference import compress

SIZES = st.integers(1, 7)


def conv_weights(kernel: int, heads: int, dim: int) -> tuple[Tensor, Tensor]:
    return draw(kernel, heads, dim, seed=1), draw(heads, dim, seed=2)


def mlp_weights(kernel: int, dim: int, hidden: int = 5) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    weight = (draw(kernel, dim, seed=3), draw(hidden, kernel * dim, seed=4), draw(dim, hidden, seed=5))
    return weight, (draw(hidden, seed=6), draw(dim, seed=7))


def conv_phi(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor, int], Tensor]:
    def phi(window: Tensor, head: int) -> Tensor:
        out = []
        for c in range(window.shape[1]):
            total = 0.0 if bias is None else float(bias[head, c])
            for u in range(window.shape[0]):
                total += float(weight[u, head, c]) * float(window[u, c])
            out.append(total)
        return torch.tensor(out, dtype=torch.float64)

    return phi


def mlp_phi(weight: tuple[Tensor, ...], bias: tuple[Tensor, ...]) -> Callable[[Tensor, int], Tensor]:
    position, w1, w2 = (w.tolist() for w in weight)
    b1, b2 = (b.tolist() for b in bias)

    def phi(window: Tensor, head: int) -> Tensor:
        kernel, dim = window.shape
        hidden = []
        for e, start in enumerate(b1):
            total = start
            for u in range(kernel):
                for c in range(dim):
                    total += w1[e][u * dim + c] * (float(window[u, c]) + position[u][c])
            hidden.append(0.5 * total * (1 + math.erf(total / math.sqrt(2))))
        out = [b2[c] + sum(w2[c][e] * h for e, h in enumerate(hidden)) for c in range(dim)]
        return torch.tensor(out, dtype=torch.float64)

    return phi


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 24), kernel=SIZES, stride=SIZES, heads=st.integers(1, 2), dim=st.integers(1, 3))
def test_kf10_every_method_is_its_equation_at_every_length(
    tokens: int, kernel: int, stride: int, heads: int, dim: int
) -> None:
    x = draw(2, tokens, heads, dim, seed=0)
    size = {"kernel": kernel, "stride": stride}
    weight, bias = conv_weights(kernel, heads, dim)
    w_mlp, b_mlp = mlp_weights(kernel, dim)
    cases = [
        (compress(x, **size), lambda window, _: sum(window) / kernel),
        (compress(x, **size, method="conv", weight=weight, bias=bias), conv_phi(weight, bias)),
        (compress(x, **size, method="conv", weight=weight), conv_phi(weight, None)),
        (compress(x, **size, method="mlp", weight=w_mlp, bias=b_mlp), mlp_phi(w_mlp, b_mlp)),
    ]
    for got, phi in cases:
        torch.testing.assert_close(got, naive_compress(x, kernel, stride, phi), rtol=1e-12, atol=1e-12)


def test_kf05_a_partial_window_forms_no_token() -> None:
    x = draw(1, 11, 1, 2, seed=0)
    assert compress(x[:, :3], kernel=4, stride=2).shape == (1, 0, 1, 2)
    assert compress(x[:, :4], kernel=4, stride=2).shape == (1, 1, 1, 2)
    assert compress(x, kernel=4, stride=2).shape == (1, 4, 1, 2)
    assert torch.equal(compress(x, kernel=4, stride=2), compress(x[:, :10], kernel=4, stride=2))


def test_each_compressed_token_depends_on_its_window_only() -> None:
    kernel, stride = 6, 4
    weight, bias = mlp_weights(kernel, 2)
    x = draw(1, 23, 1, 2, seed=0).requires_grad_()
    out = compress(x, kernel=kernel, stride=stride, method="mlp", weight=weight, bias=bias)
    for n in range(out.shape[1]):
        (gradient,) = torch.autograd.grad(out[0, n].sum(), x, retain_graph=True)
        touched = set(gradient.abs().sum((0, 2, 3)).nonzero().flatten().tolist())
        assert touched == set(range(n * stride, n * stride + kernel))


def test_conv_with_equal_weights_is_the_mean() -> None:
    x = draw(2, 20, 3, 4, seed=0)
    weight = torch.full((5, 3, 4), 1 / 5, dtype=torch.float64)
    got = compress(x, kernel=5, stride=3, method="conv", weight=weight, bias=torch.zeros(3, 4))
    torch.testing.assert_close(got, compress(x, kernel=5, stride=3), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["mean", "conv", "mlp"])
def test_half_types_are_computed_in_float32_and_rounded_once(dtype: torch.dtype, method: str) -> None:
    x = draw(2, 19, 2, 4, seed=0, dtype=dtype)
    weight, bias = {"mean": (None, None), "conv": conv_weights(4, 2, 4), "mlp": mlp_weights(4, 4)}[method]
    options = {"kernel": 4, "stride": 2, "method": method, "weight": weight, "bias": bias}
    got = compress(x, **options)
    assert got.dtype == dtype
    assert torch.equal(got, compress(x.float(), **options).to(dtype))


def test_gradcheck() -> None:
    x = draw(1, 9, 2, 2, seed=0).requires_grad_()
    weight, bias = (w.requires_grad_() for w in conv_weights(4, 2, 2))
    (position, w1, w2), (b1, b2) = mlp_weights(4, 2, hidden=3)
    mlp = [w.requires_grad_() for w in (position, w1, w2, b1, b2)]
    assert torch.autograd.gradcheck(lambda x: compress(x, kernel=4, stride=3), x)
    assert torch.autograd.gradcheck(
        lambda x, w, b: compress(x, kernel=4, stride=3, method="conv", weight=w, bias=b), (x, weight, bias)
    )
    assert torch.autograd.gradcheck(
        lambda x, p, w1, w2, b1, b2: compress(x, kernel=4, stride=3, method="mlp", weight=(p, w1, w2), bias=(b1, b2)),
        (x, *mlp),
    )


@pytest.mark.parametrize("method", ["mean", "conv", "mlp"])
def test_no_window_gives_zero_gradients(method: str) -> None:
    x = draw(1, 3, 2, 4, seed=0).requires_grad_()
    weight, bias = {"mean": (None, None), "conv": conv_weights(4, 2, 4), "mlp": mlp_weights(4, 4)}[method]
    compress(x, kernel=4, stride=2, method=method, weight=weight, bias=bias).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["mean", "conv", "mlp"])
def test_kf06_one_batch_row_never_reaches_another(poison: float, method: str) -> None:
    x = draw(3, 19, 2, 4, seed=0, dtype=torch.float32)
    weight, bias = {"mean": (None, None), "conv": conv_weights(4, 2, 4), "mlp": mlp_weights(4, 4)}[method]
    options = {"kernel": 4, "stride": 2, "method": method, "weight": weight, "bias": bias}
    clean = compress(x, **options)
    x[1] = poison
    dirty = compress(x, **options)
    assert torch.equal(clean[[0, 2]], dirty[[0, 2]])
    assert not dirty[1].isfinite().all()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"method": "maen"}, ("method = 'maen'", "did you mean 'mean'?")),
        ({"weight": torch.ones(4, 2, 3)}, ("'mean' takes no weight",)),
        ({"method": "conv"}, ("weight of method 'conv'", "[4, 2, 3]", "got None")),
        ({"method": "conv", "weight": torch.ones(4, 3)}, ("weight of method 'conv'", "[4, 2, 3]", "shape [4, 3]")),
        ({"method": "conv", "weight": torch.ones(4, 2, 3), "bias": torch.ones(3)}, ("bias", "[2, 3]", "shape [3]")),
        ({"method": "mlp", "weight": torch.ones(4, 3)}, ("(position, w1, w2)", "shape [4, 3]", "None")),
        (
            {"method": "mlp", "weight": (torch.ones(4, 3), torch.ones(6, 11), torch.ones(3, 6)),
             "bias": (torch.ones(6), torch.ones(3))},
            ("w1 of method 'mlp'", "[6, 12]", "shape [6, 11]"),
        ),
        (
            {"method": "mlp", "weight": (torch.ones(4, 3), torch.ones(6, 12), torch.ones(3, 6)),
             "bias": (torch.ones(5), torch.ones(3))},
            ("b1 of method 'mlp'", "[6]", "shape [5]"),
        ),
        ({"method": "mlp", "weight": (1, 2, 3), "bias": (4, 5)}, ("all tensors", "3 values and 2 values")),
        ({"method": "mlp", "weight": (torch.ones(4, 3),) * 2, "bias": None}, ("got 2 values and None",)),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(options: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        compress(torch.ones(1, 9, 2, 3), kernel=4, stride=2, **options)  # type: ignore[arg-type]
    for part in parts:
        assert part in str(error.value)
