"""Every kernel shipped for a GPU is judged from the resources in its manifest; nothing here runs on a GPU.

A sample is compiled again, so that a manifest can't say what its text does not give; and selected attention is held
against TileLang's own example, whose figures `benchmarks/tilelang_example.py` wrote.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from judge import Case, faults

from nsa_codegen.cli.shown import find_kernels
from nsa_codegen.cli.stages import kernel_resources
from nsa_codegen.manifest import RequestKey
from nsa_codegen.nvcc import compile_cubin, find_nvcc
from nsa_codegen.ops import Sizes
from nsa_codegen.requests import needed_requests
from nsa_codegen.resources import Resources, cubin_resources
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import GPU_TARGETS, GpuTarget
from nsa_codegen.tuning.cost_gpu import predicted_occupancy
from nsa_codegen.tuning.gpu_loops import launches

ROOT = Path(__file__).parents[2] / "generated"
EXAMPLE = Path(__file__).parents[2] / "benchmarks" / "results" / "tilelang-nsa-example.json"
GPUS = re.findall(r"^GPUS \?= (.*)$", (ROOT.parent / "Makefile").read_text(), re.MULTILINE)[0].split()
CUDA = [t for t in GPU_TARGETS.values() if t.name in GPUS and t.kind == "cuda"]
DTYPE = "bfloat16"
SIZES = Sizes(batch=1, tokens=4096, keys=4096, kv_heads=1)  # what fits a multiprocessor does not hang on them


def shipped(preset: str, target: GpuTarget) -> dict[str, tuple[Any, Path]]:
    """Return the requests of a preset, and the folder that each one's kernel has or should have."""
    requests = needed_requests(getattr(NSASpec, preset)().program(), DTYPE, target)
    return {str(r.desc): (r, ROOT / RequestKey.of(r.desc, r.schedule, r.target).folder) for r in requests}


def stored_resources(folder: Path) -> Resources:
    return Resources.from_json(json.loads((folder / "manifest.json").read_text())["resources"])


@pytest.mark.parametrize("target", CUDA, ids=str)
@pytest.mark.parametrize("preset", ["seed", "paper"])
def test_no_shipped_kernel_has_a_fault(preset: str, target: GpuTarget) -> None:
    found: dict[str, list[str]] = {}
    kinds = set()
    for name, (request, folder) in shipped(preset, target).items():
        if not (folder / "manifest.json").exists():
            found[name] = [f"is not in {ROOT.name}/: run `make generated` and commit the result"]
            continue
        case = Case(desc=request.desc, schedule=request.schedule, target=target, resources=stored_resources(folder))
        kinds.add(request.desc.kind)
        if wrong := faults(case):
            found[name] = wrong
    assert not found, "\n".join(f"{name}: {'; '.join(wrong)}" for name, wrong in found.items())
    assert {"stream_attention_fwd", "stream_attention_bwd", "gather_attention_fwd", "gather_attention_bwd"} <= kinds


def test_occupancy_is_what_the_schedule_predicted() -> None:
    """Of kernels with products: the thread blocks that fit a multiprocessor, told without a compiler and with it.

    Nearly always the same; else one block, or four warps of smaller blocks: registers are guessed by thread.
    """
    apart: dict[str, int] = {}
    for target in CUDA:
        for preset in ("seed", "paper"):
            for name, (request, folder) in shipped(preset, target).items():
                found = [x for x in launches(request.desc, request.schedule, target, SIZES) if x.products]
                if found:
                    resources = stored_resources(folder)
                    compiled, warps = resources.blocks_per_processor, resources.threads // target.warp
                    guessed = min(predicted_occupancy(x, target).blocks for x in found)
                    apart[f"{target.name} {preset} {name}"] = abs(compiled - guessed)
                    near = abs(compiled - guessed) <= max(1, 4 // warps)
                    assert guessed >= 1 and (near or len(found) > 1), (target.name, name)
    assert len(apart) >= 20 * len(CUDA)
    assert sum(d == 0 for d in apart.values()) >= 0.85 * len(apart), {name: d for name, d in apart.items() if d}


@pytest.mark.parametrize("target", CUDA, ids=str)
def test_a_manifest_says_what_its_text_gives(target: GpuTarget, tmp_path: Path) -> None:
    folder = next(f for name, (_, f) in shipped("paper", target).items() if name.startswith("gather_attention_fwd"))
    manifest = json.loads((folder / "manifest.json").read_text())
    stored = Resources.from_json(manifest["resources"])
    (source,) = folder.glob("kernel.cu")
    dynamic = stored.shared_bytes - stored.static_shared_bytes
    cubin = compile_cubin(source.read_text(), target, tmp_path)
    again = cubin_resources(cubin, threads=stored.threads, shared_bytes=dynamic, target=target, kernel=stored.kernel)
    if find_nvcc().version in json.dumps(manifest["binary"]):
        assert again == stored
    else:  # another release of nvcc allots registers as it likes, and may not spill either
        assert again.spill_bytes == 0 and again.shared_bytes == stored.shared_bytes


@pytest.mark.parametrize("name", ["sm_80", "sm_90a"])
def test_selected_attention_takes_less_than_tilelangs_example(name: str) -> None:
    record = json.loads(EXAMPLE.read_text())
    shape, target = record["shape"], GPU_TARGETS[name]
    spec = NSASpec.paper(
        num_heads=shape["heads"], num_kv_heads=shape["groups"], head_dim=shape["dim"], value_dim=shape["dim"],
        block_size=shape["block"], num_selected_blocks=shape["selected"],
    )  # fmt: skip
    ours = kernel_resources(find_kernels("gather_attention_fwd", spec.program(), DTYPE, target)[0])
    assert ours.instructions is not None and ours.spill_bytes == 0
    for options, data in record["figures"][name].items():
        theirs = Resources.from_json(data)
        assert theirs.instructions is not None
        assert ours.registers < theirs.registers, options
        assert ours.occupancy > theirs.occupancy, options
        assert ours.instructions.count("async_copy") > theirs.instructions.count("async_copy"), options
        plain = ours.instructions.count("global_load", main=True), theirs.instructions.count("global_load", main=True)
        assert plain[0] <= plain[1], options
