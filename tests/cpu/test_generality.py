"""Programs of about ten lines, compiled by the templates of NSA, against explicit masks and loops written here.

No index set, reference or selection of the package is used on the other side. Inputs are multiples of 1/4 where blocks
are chosen by mean keys, so that float32 scores are exact and the choice is the same on every machine.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import draw, draw_exact, kernels_of
from judges import compare_gradients
from torch import Tensor
from torch.nn.functional import gelu

from nsa_codegen import functional
from nsa_codegen.program import Program
from nsa_codegen.spec import NSASpec

FILE = Path(__file__).parents[2] / "examples" / "programs.py"
_spec = importlib.util.spec_from_file_location("programs", FILE)
assert _spec is not None and _spec.loader is not None
programs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(programs)

LENGTHS = (3, 33, 64, 129, 257)
SINK, RECENT, BLOCK, CHOSEN = 3, 20, 16, 3
SHAPES: dict[str, tuple[dict[str, int], torch.dtype]] = {
    "g1-f32": ({"num_heads": 2, "num_kv_heads": 2, "head_dim": 32}, torch.float32),
    "g3-bf16": ({"num_heads": 6, "num_kv_heads": 2, "head_dim": 16}, torch.bfloat16),
}
DENSE = {name: programs.dense(**shape) for name, (shape, _) in SHAPES.items()}
SINKS = {name: programs.sinks(**shape, sink=SINK, recent=RECENT) for name, (shape, _) in SHAPES.items()}
MOBA = {name: programs.moba(**shape, block=BLOCK, n=CHOSEN) for name, (shape, _) in SHAPES.items()}
SEED = programs.nsa_seed(num_heads=4, num_kv_heads=2, head_dim=32)
PAPER = programs.nsa_paper(num_heads=4, num_kv_heads=1, head_dim=24, value_dim=16)
KERNELS = [
    *(desc for group in (DENSE, SINKS, MOBA) for name in SHAPES for desc in kernels_of(group[name], SHAPES[name][1])),
    *kernels_of(SEED, torch.float32),
    *kernels_of(PAPER, torch.float32),
]
shapes = pytest.mark.parametrize("name", SHAPES)
lengths = pytest.mark.parametrize("tokens", LENGTHS)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of each query head to the keys where `mask` [B, Hkv, T, S] is True; 0 for a row without any."""
    group = q.shape[2] // k.shape[2]
    heads = []
    for h in range(q.shape[2]):
        scores = q[:, :, h] @ k[:, :, h // group].transpose(1, 2) * q.shape[3] ** -0.5
        seen = mask[:, h // group]
        scores = scores.masked_fill(~seen, -1e30)
        weights = torch.exp(scores - scores.detach().amax(-1, keepdim=True)) * seen
        total = weights.sum(-1, keepdim=True)
        heads.append(weights / torch.where(total == 0, 1.0, total) @ v[:, :, h // group])
    return torch.stack(heads, dim=2)


def wide(x: Tensor) -> Tensor:
    """Return half types as float32, in which eager attention computes."""
    return x if x.dtype == torch.float64 else x.float()


def positions(tokens: int) -> tuple[Tensor, Tensor]:
    return torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]


def chosen_tokens(q: Tensor, k: Tensor, block: int, n: int) -> Tensor:
    """The tokens of the own block and of the `n - 1` past blocks with the best mean keys, up to t: [B, Hkv, T, S]."""
    batch, tokens, heads, _ = q.shape
    kv_heads, group = k.shape[2], heads // k.shape[2]
    q, k = q.detach().double(), k.detach().double()
    mask = torch.zeros(batch, kv_heads, tokens, tokens, dtype=torch.bool)
    for b in range(batch):
        for g in range(kv_heads):
            means = [k[b, j * block : (j + 1) * block, g].mean(dim=0) for j in range(tokens // block)]
            for t in range(tokens):
                own = t // block
                query = q[b, t, g * group : (g + 1) * group].sum(dim=0)
                best = sorted(range(own), key=lambda j: (-float(query @ means[j]), j))[: n - 1]
                for j in [*best, own]:
                    mask[b, g, t, j * block : min((j + 1) * block, t + 1)] = True
    return mask


def one_path(program: Program, naive_mask: Any, tokens: int, dtype: torch.dtype, *, exact: bool) -> None:
    """Compare a program of one path with attention under `naive_mask(q, k)`; several rows for short sequences."""
    make, batch, path = draw_exact if exact else draw, max(1, 128 // tokens), program.paths[0].name
    values = {
        "q": make(batch, tokens, program.num_heads, program.head_dim, seed=1).to(dtype),
        "k": make(batch, tokens, program.kv_heads, program.head_dim, seed=2).to(dtype),
        "v": draw(batch, tokens, program.kv_heads, program.dv, seed=3, dtype=dtype),
    }
    mask = naive_mask(values["q"], values["k"])

    def run(impl: str, x: dict[str, Tensor]) -> tuple[Tensor]:
        if impl == "compiled":
            return (functional.attention(program, x["q"], {path: (x["k"], x["v"])}, impl=impl),)
        out = softmax_attention(wide(x["q"]), wide(x["k"]), wide(x["v"]), mask)
        return (out.to(x["q"].dtype),)

    compare_gradients(run, values, f"{program.name} of {tokens}")


@shapes
@lengths
def test_dense_attention(name: str, tokens: int) -> None:
    t, j = positions(tokens)
    one_path(DENSE[name], lambda q, k: (j <= t).expand(len(q), 2, -1, -1), tokens, SHAPES[name][1], exact=False)


@shapes
@lengths
def test_window_with_sink_tokens(name: str, tokens: int) -> None:
    t, j = positions(tokens)
    seen = (j <= t) & ((j < SINK) | (j > t - RECENT))
    one_path(SINKS[name], lambda q, k: seen.expand(len(q), 2, -1, -1), tokens, SHAPES[name][1], exact=False)


@shapes
@lengths
def test_moba(name: str, tokens: int) -> None:
    one_path(MOBA[name], lambda q, k: chosen_tokens(q, k, BLOCK, CHOSEN), tokens, SHAPES[name][1], exact=True)


def mean_of_windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """The mean of each whole window, one after the other."""
    starts = range(0, x.shape[1] - kernel + 1, stride)
    rows = [x[:, s : s + kernel].mean(dim=1) for s in starts]
    return torch.stack(rows, dim=1) if rows else x[:, :0]


def mlp_of_windows(x: Tensor, w: dict[str, Tensor], kernel: int, stride: int) -> Tensor:
    """w2 gelu(w1 (window + position) + b1) + b2 of each whole window."""
    rows = []
    for s in range(0, x.shape[1] - kernel + 1, stride):
        flat = (x[:, s : s + kernel].transpose(1, 2) + w["position"]).flatten(start_dim=2)
        rows.append(gelu(flat @ w["w1"].T + w["b1"]) @ w["w2"].T + w["b2"])
    return torch.stack(rows, dim=1) if rows else x[:, :0]


def ended_windows(tokens: int, length: int, kernel: int, stride: int) -> Tensor:
    t, i = torch.arange(tokens)[:, None], torch.arange(length)[None, :]
    return i * stride + kernel <= t + 1


@lengths
def test_nsa_in_its_seed_form(tokens: int) -> None:
    batch = max(1, 128 // tokens)
    values = {
        "q": draw_exact(batch, tokens, 4, 32, seed=1),
        "k": draw_exact(batch, tokens, 2, 32, seed=2),
        "v": draw(batch, tokens, 2, 32, seed=3),
        "gates": torch.tensor([0.2, 0.5, 0.3]),
    }
    chosen = chosen_tokens(values["q"], values["k"], 16, 8)
    t, j = positions(tokens)

    def run(impl: str, x: dict[str, Tensor]) -> tuple[Tensor]:
        q, k, v, gates = x["q"], x["k"], x["v"], x["gates"]
        if impl == "compiled":
            kv_cmp = tuple(functional.compress(y, kernel=4, stride=4, impl=impl) for y in (k, v))
            kv = {"compressed": kv_cmp, "selected": (k, v), "window": (k, v)}
            return (functional.attention(SEED, q, kv, gates, impl=impl),)
        k_cmp, v_cmp = mean_of_windows(k, 4, 4), mean_of_windows(v, 4, 4)
        masks = (ended_windows(tokens, k_cmp.shape[1], 4, 4), chosen, (j <= t) & (j > t - 64))
        total = torch.zeros_like(q)
        for gate, mask, (keys, vals) in zip(gates, masks, ((k_cmp, v_cmp), (k, v), (k, v)), strict=True):
            if keys.shape[1]:
                total = total + gate * softmax_attention(q, keys, vals, mask.expand(batch, 2, -1, -1))
        return (total,)

    compare_gradients(run, values, f"seed of {tokens}")


@lengths
def test_nsa_in_the_papers_form(tokens: int) -> None:
    """With all its sizes, at lengths of at most 16 blocks: every block is chosen, the compressed path is real."""
    batch = max(1, 128 // tokens)
    values = {
        "q": draw(batch, tokens, 4, 24, seed=1),
        "k": draw(batch, tokens, 1, 24, seed=2),
        "v": draw(batch, tokens, 1, 16, seed=3),
        "gates": draw(batch, tokens, 4, 3, seed=4).sigmoid(),
    }
    for side, dim in (("k", 24), ("v", 16)):
        shapes_of = {
            "position": (32, dim),
            "w1": (2 * dim, 32 * dim),
            "b1": (2 * dim,),
            "w2": (dim, 2 * dim),
            "b2": (dim,),
        }
        for i, (weight, shape) in enumerate(shapes_of.items()):
            values[f"{side}_{weight}"] = draw(*shape, seed=10 + i) / shape[-1] ** 0.5
    t, j = positions(tokens)

    def run(impl: str, x: dict[str, Tensor]) -> tuple[Tensor]:
        q, k, v, gates = x["q"], x["k"], x["v"], x["gates"]
        weights = [{n: x[f"{side}_{n}"] for n in ("position", "w1", "b1", "w2", "b2")} for side in ("k", "v")]
        if impl == "compiled":
            k_cmp, v_cmp = (
                functional.compress(
                    y, kernel=32, stride=16, method="mlp", weight=(w["position"], w["w1"], w["w2"]),
                    bias=(w["b1"], w["b2"]), impl=impl,
                )
                for y, w in zip((k, v), weights, strict=True)
            )  # fmt: skip
            kv = {"compressed": (k_cmp, v_cmp), "selected": (k, v), "window": (k, v)}
            return (functional.attention(PAPER, q, kv, gates, impl=impl),)
        k_cmp, v_cmp = (mlp_of_windows(y, w, 32, 16) for y, w in zip((k, v), weights, strict=True))
        masks = (ended_windows(tokens, k_cmp.shape[1], 32, 16), j <= t, j <= t)
        total = torch.zeros_like(q[..., :16])
        for p, (mask, (keys, vals)) in enumerate(zip(masks, ((k_cmp, v_cmp), (k, v), (k, v)), strict=True)):
            if keys.shape[1]:
                total = total + gates[..., p, None] * softmax_attention(q, keys, vals, mask.expand(batch, 1, -1, -1))
        return (total + 0 * sum(y.sum() for y in x.values()),)  # short sequences have no window: zero gradients

    compare_gradients(run, values, f"paper of {tokens}")


def test_the_descriptions_are_the_presets() -> None:
    assert programs.nsa_seed() == NSASpec.seed().program()
    assert programs.nsa_paper() == NSASpec.paper().program()


def test_the_file_prints_programs_and_costs() -> None:
    out = subprocess.run([sys.executable, str(FILE)], capture_output=True, text=True, check=True).stdout
    for make in programs.PROGRAMS:
        assert str(make()) in out
    assert out.count("GFLOP") == len(programs.PROGRAMS)
    assert "[0, min(t+1, 4)) | [t-511, t+1)" in out
