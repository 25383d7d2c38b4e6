"""The benchmark suite from end to end at tiny sizes: the form of what it writes, never how long anything took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import kernels_of
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from nsa_codegen import requests
from nsa_codegen.bench import contenders, models, start, works
from nsa_codegen.bench.settings import Settings
from nsa_codegen.bench.stats import quartiles, ratios
from nsa_codegen.bench.suite import plan, require_result
from nsa_codegen.cli import app
from nsa_codegen.nn import NSAAttention
from nsa_codegen.spec import NSASpec

DIMS = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
SETTINGS = Settings(tokens=(96,), backward_tokens=(96,), threads=1, **DIMS)  # type: ignore[arg-type]
VARIANTS = (torch.float32, torch.bfloat16, torch.float16)
KERNELS = [
    *(d for dtype in VARIANTS for d in kernels_of(SETTINGS.spec.program(), dtype)),
    *kernels_of(NSASpec.seed().program(), torch.float32),
]
PARTS = {
    "forward": ("forward", [96], {"nsa", "sdpa"}),
    "eager forward": ("forward", [96], {"nsa", "reference"}),
    "backward": ("backward", [96], {"nsa", "sdpa"}),
    "steps backward": ("ops_backward", [96], {"nsa", "compress", "selected_attention", "combine"}),
    "threads forward": ("variants", [96], {"1 thread"}),
    "dtypes backward": ("variants", [96], {"float32", "bfloat16", "float16"}),
    "decode": ("decode", [64, 96], {"nsa", "sdpa"}),
    "module forward": ("module", [96], {"nsa", "sdpa"}),
}


@pytest.fixture(scope="module")
def result(kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command writes, with plots beside it."""
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("bench") / "tiny.json"
    sizes = ["--min-tokens", "96", "--max-tokens", "96", "--seconds", "0"]
    dims = [x for name, value in DIMS.items() for x in (f"--{name.replace('_', '-')}", str(value))]
    parts = [x for part in (*SETTINGS.parts,) if part not in ("flex", "model", "start") for x in ("--only", part)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSA_CODEGEN_HOME", str(kernels))
        arguments = ["bench", *sizes, *dims, *parts, "--threads", "1", "--output", str(path), "--json"]
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(path.read_text())
    assert {p.name for p in path.parent.iterdir()} == {
        "tiny.json", "tiny-time.png", "tiny-speedup.png", "tiny-roofline.png", "tiny-memory.png",
    }  # fmt: skip
    return require_result(json.loads(path.read_text()), path.name)


def test_a_result_says_where_and_how_it_was_made(result: dict[str, Any]) -> None:
    assert result["command"] and result["date"][:2] == "20"
    assert {"name", "slug", "cores", "torch", "environment", "memory_bytes"} <= set(result["machine"])
    assert result["settings"]["threads"] == 1 and result["settings"]["num_heads"] == 2
    assert all(result["limits"][name] > 0 for name in ("fma_one", "fma_all", "copy_bytes"))
    assert len(result["limits"]["samples"]["fma_all"]) >= 2


@pytest.mark.parametrize("name", PARTS)
def test_a_comparison_has_its_lengths_and_contenders(result: dict[str, Any], name: str) -> None:
    part, tokens, who = PARTS[name]
    found = [c for c in result["comparisons"] if c["name"] == name]
    assert [c["tokens"] for c in found] == tokens and all(c["part"] == part for c in found)
    assert all(who <= {row["name"] for row in c["contenders"]} for c in found)


def test_every_row_follows_from_its_raw_samples(result: dict[str, Any]) -> None:
    for comparison in result["comparisons"]:
        samples = {row["name"]: row["samples"] for row in comparison["contenders"]}
        assert len({len(s) for s in samples.values()}) == 1
        for row in comparison["contenders"]:
            low, middle, high = quartiles(row["samples"])
            assert row["seconds"] == {"median": middle, "q1": low, "q3": high}
            expected = quartiles(ratios(samples[comparison["baseline"]], row["samples"]))
            assert row["speedup"]["median"] == expected[1]
            if "operations" in row:
                assert row["operations"] > 0 and row["bytes"] > 0 and row["of_limit"] > 0


def test_memory_of_each_contender_has_its_operands(result: dict[str, Any]) -> None:
    found = {(m["who"], m["direction"], m["tokens"]): m for m in result["memory"]}
    assert {(w, d, t) for w in ("nsa", "sdpa") for d, t in (("forward", 96), ("backward", 96))} <= set(found)
    assert all(m["bytes"] >= 0 and "error" not in m for m in found.values())
    # q and out of two heads, k and v of one, and three gates a head, all float32.
    assert found["nsa", "forward", 96]["operands_bytes"] == 96 * 4 * (2 * 2 * 16 + 2 * 16 + 3 * 2)


def test_starting_is_measured_in_processes_of_their_own(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_PROCESSES", 2)
    monkeypatch.setattr(start, "needed_requests", lambda program, dtype, target: needed(program, dtype, target)[:1])
    needed = requests.needed_requests
    rows = start.measure_start(SETTINGS)
    assert [(r["name"].split(" of ")[0], len(r["samples"])) for r in rows] == [
        ("import", 2), ("first kernel", 2), ("first attention, seven kernels more", 2), ("cold build", 1),
    ]  # fmt: skip
    assert all(s > 0 for r in rows for s in r["samples"])


def test_rivals_compute_the_same_attention(kernels: Path) -> None:
    """A comparison of two things that differ would be worth nothing: the dense twins against the definition."""
    x = contenders.Inputs.draw(SETTINGS.spec, "float32", queries=40, keys=40)
    q, k, v = x.heads_first()
    scores = torch.einsum("bthd,bsd->bhts", x.q, x.k[:, :, 0]) * 16**-0.5
    seen = torch.ones(40, 40, dtype=torch.bool).tril()
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    wanted = torch.einsum("bhts,bsd->bhtd", weights, x.v[:, :, 0])
    assert torch.allclose(contenders.dense(q, k, v), wanted, atol=1e-5)


def test_a_modules_work_is_that_of_its_projections_and_its_attention(kernels: Path) -> None:
    """Torch counts the projections, and neither attention; the dense one has two products by pair of positions."""
    ours, twin, *_ = models.module(SETTINGS.spec, "float32", 96)
    pairs = SETTINGS.spec.num_heads * 96 * 97 // 2
    attentions = {
        ours: works.whole_work(SETTINGS.spec, "float32", batch=1, queries=96, keys=96).operations,
        twin: pairs * 2 * 2 * SETTINGS.spec.head_dim,
    }
    for contender, attention in attentions.items():
        with FlopCounterMode(display=False) as counter:
            contender.run()
        assert contender.work is not None
        assert contender.work.operations == counter.get_total_flops() + attention


def test_steps_put_together_are_the_attention(kernels: Path) -> None:
    spec = SETTINGS.spec
    x = contenders.Inputs.draw(spec, "float32", queries=150, keys=150)
    with torch.no_grad():
        steps = contenders.steps_of(spec, x)
        from nsa_codegen import functional

        whole = functional.nsa_attention(x.q, x.k, x.v, x.gates, spec, impl="compiled")
        assert torch.equal(steps.calls["combine"](), whole)  # type: ignore[arg-type]


def test_gradients_of_the_steps_are_those_of_their_inputs(kernels: Path) -> None:
    for contender in contenders.ops_backward(SETTINGS.spec, "float32", 96):
        grads = contender.run()
        assert all(bool(g.isfinite().all()) for pair in grads for g in (pair if isinstance(pair, tuple) else (pair,)))  # type: ignore[attr-defined]


def test_every_planned_comparison_runs_once(kernels: Path) -> None:
    """The model too, which the command's run above leaves out for its size."""
    settings = Settings(tokens=(96,), backward_tokens=(96,), threads=1, parts=("model",), **DIMS)  # type: ignore[arg-type]
    for comparison in plan(settings):
        assert {c.name for c in comparison.make()} == {"nsa", "sdpa"}
    decoding = (models.decode(*which, "float32", 96) for which in (("paper", SETTINGS.options), ("seed", {})))
    for contender in (*models.model(train=True, tokens=16, batch=1), *(c for pair in decoding for c in pair)):
        contender.run()


@torch.no_grad()
def test_the_dense_twin_decodes_what_it_computes_of_all_positions() -> None:
    torch.manual_seed(0)
    twin = models.DenseAttention(NSAAttention(32, NSASpec.seed(**DIMS)))
    x = torch.randn(1, 7, 32)
    none = torch.empty(1, 1, 0, 16)
    cache = models.DenseCache(none, none, 7)
    steps = torch.cat([twin(token, cache) for token in x.split(1, dim=1)], dim=1)
    torch.testing.assert_close(steps, twin(x))
