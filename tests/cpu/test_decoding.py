"""A model that decodes with a cache, on compiled kernels: as near to float64 as the eager model over all positions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SMALL_MODELS, draw, kernels_of

from nsa_codegen.nn import NSA

OPTIONS: dict[str, dict[str, Any]] = {
    "shared keys, mean keys": {**SMALL_MODELS["seed"], "num_heads": 4, "num_kv_heads": 2},
    "own keys, compressed scores": SMALL_MODELS["paper"],
}
with torch.random.fork_rng():
    torch.manual_seed(0)  # other weights may bring scores so near to each other that rounding decides what is selected
    MODELS = {
        name: NSA.build(
            embed_dim=12, hidden_size=24, num_layers=2, output_mode="all", impl="compiled", **options
        ).eval()
        for name, options in OPTIONS.items()
    }
KERNELS = [d for m in MODELS.values() for d in kernels_of(m.options.spec.program(), torch.float32, backward=False)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_prefill_and_steps_are_the_model_over_all_positions(name: str, batch: int, kernels: Path) -> None:
    model, x = MODELS[name], draw(batch, 290, 12, seed=batch)
    eager, exact = (copy.deepcopy(model) for _ in range(2))
    eager.impl = exact.impl = "reference"
    wanted = exact.double()(x.double())
    cache = model.new_cache()
    pieces = [model(part, cache) for part in x.split([200, 47, *[1] * 43], dim=1)]
    error, other = ((found.double() - wanted).abs().max().item() for found in (torch.cat(pieces, dim=1), eager(x)))
    floor = 2 * torch.finfo(torch.float32).eps * wanted.abs().max().item()
    assert error <= 3 * other + floor
