"""Torch's default dtype and device are for tensors that callers make: no result depends on them, and no buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import MEANS, PAPER, SEED, SMALL_MODELS, draw, kernels_of
from torch import Tensor

from nsa_codegen import NSA, functional, inference, repeated, training

KERNELS = [d for spec in (SEED, MEANS, PAPER) for d in kernels_of(spec.program(), torch.float32)]
DTYPES = (torch.bfloat16, torch.float16, torch.float64)
Call = Callable[..., Any]


@pytest.fixture(params=[*DTYPES, torch.device("meta")], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """A function that sets another default dtype or device, until the test ends."""

    def change() -> None:
        if isinstance(request.param, torch.dtype):
            torch.set_default_dtype(request.param)
        else:
            torch.set_default_device(request.param)

    yield change
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def cases() -> dict[str, tuple[Call, list[Tensor]]]:
    """Each function of `functional`, and the floating tensors that it is given."""
    q, k, v = draw(2, 40, 6, 16, seed=0), draw(2, 40, 2, 16, seed=1), draw(2, 40, 2, 8, seed=2)
    lists = torch.randint(-1, 5, (2, 40, 2, 4), dtype=torch.int32, generator=torch.Generator().manual_seed(3))
    conv = [draw(8, 2, 16, seed=4), draw(2, 16, seed=5)]
    mlp = [draw(*shape, seed=n) / 8 for n, shape in enumerate(((8, 16), (32, 128), (16, 32), (32,), (16,)))]
    outs, gates = [draw(2, 40, 6, 8, seed=n) for n in range(3)], draw(2, 40, 6, 3, seed=6).sigmoid()
    of_seed = [q[:, :, :2], k, draw(2, 40, 2, 16, seed=7), gates[0, 0, 0].clone()]
    compiled: dict[str, Any] = {"impl": "compiled"}
    sizes, listed = {"kernel": 8, "stride": 4, **compiled}, {"block_size": 8, "num_selected": 3, **compiled}

    def through_mlp(x: Tensor, position: Tensor, w1: Tensor, w2: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
        return functional.compress(x, method="mlp", weight=(position, w1, w2), bias=(b1, b2), **sizes)

    return {
        "window": (lambda *x: functional.window_attention(*x, window_size=9, **compiled), [q, k, v]),
        "compressed": (lambda *x: functional.compressed_attention(*x, **sizes), [q, k[:, :9], v[:, :9]]),
        "selected": (lambda *x: functional.selected_attention(*x, lists, block_size=8, **compiled), [q, k, v]),
        "mean": (lambda x: functional.compress(x, **sizes), [k]),
        "conv": (lambda x, w, b: functional.compress(x, method="conv", weight=w, bias=b, **sizes), [k, *conv]),
        "mlp": (through_mlp, [k, *mlp]),
        "combine": (lambda *x: functional.combine(list(x[:3]), x[3], **compiled), [*outs, gates]),
        "nsa": (lambda *x: functional.nsa_attention(*x, MEANS, **compiled), [q, k, v, gates]),
        "nsa, mean keys": (lambda *x: functional.nsa_attention(*x, SEED, **compiled), of_seed),
        "lists by means": (lambda *x: functional.select_blocks(*x, method="mean_key", **listed), [q, k]),
        "lists": (
            lambda *x: functional.select_blocks(*x, method="compressed", kernel=8, stride=4, **listed), [q, k[:, :9]],
        ),
        "means": (lambda x: functional.block_means(x, block_size=8, **compiled), [k]),
    }  # fmt: skip


def results(cases: dict[str, tuple[Call, list[Tensor]]], dout: Tensor) -> dict[str, list[Tensor]]:
    """What each function returns, with gradients recorded and without, and the gradients."""
    found = {}
    for name, (call, values) in cases.items():
        leaves = [x.clone().requires_grad_() for x in values]
        outs = _tuple(call(*leaves))
        grads = [dout.view(-1)[: out.numel()].view(out.shape) for out in outs]
        found[name] = [out.detach() for out in outs]
        if outs[0].requires_grad:
            found[name] += torch.autograd.grad(outs, leaves, grads)
        with torch.no_grad():
            found[name] += _tuple(call(*values))
    return found


def _tuple(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def require_equal(found: dict[str, list[Tensor]], wanted: dict[str, list[Tensor]]) -> None:
    for name, tensors in wanted.items():
        for x, y in zip(found[name], tensors, strict=True):
            assert x.dtype == y.dtype and x.device == y.device and torch.equal(x, y), name


@pytest.mark.parametrize("elements", [1 << 20, 1000], ids=["rows", "runs"])
@pytest.mark.parametrize("as_one", [True, False])
def test_functions(
    default: Callable[[], None], kernels: Path, monkeypatch: pytest.MonkeyPatch, elements: int, as_one: bool
) -> None:
    monkeypatch.setattr(inference, "RUN_ELEMENTS", elements)
    monkeypatch.setattr(repeated, "_calls", {})
    if not as_one:
        monkeypatch.setattr(training, "trains_as_one", lambda *_: False)
    given = cases(), draw(10_000, seed=9)
    wanted = results(*given)
    default()
    require_equal(results(*given), wanted)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_a_model_trains_and_decodes(default: Callable[[], None], kernels: Path, name: str) -> None:
    model = NSA.build(12, hidden_size=24, num_layers=2, output_mode="all", impl="compiled", **SMALL_MODELS[name]).eval()
    x, dout = draw(2, 40, 12, seed=0), draw(2, 40, 24, seed=1)

    def made() -> dict[str, list[Tensor]]:
        model.zero_grad()
        out = model(x)
        (out * dout).sum().backward()
        cache = model.new_cache()
        with torch.no_grad():
            steps = [model(part, cache) for part in x.split([30, *[1] * 10], dim=1)]
        return {"model": [out.detach(), *(p.grad.clone() for p in model.parameters())], "decoding": steps}

    wanted = made()
    default()
    require_equal(made(), wanted)
