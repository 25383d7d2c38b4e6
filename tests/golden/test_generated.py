"""The committed kernels of `generated/` are what this version emits: keys of all, texts of one per op and direction."""

import difflib
import json
from pathlib import Path

import pytest

from nsa_codegen.desc import KernelDesc
from nsa_codegen.lowering import lower
from nsa_codegen.manifest import POOL_OP, Manifest, RequestKey
from nsa_codegen.requests import needed_requests
from nsa_codegen.schedule import CpuSchedule
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import parse_target

ROOT = Path(__file__).parents[2] / "generated"
TARGET = "x86_64_v4"
REMEDY = "run `make generated` and commit the result"


def committed() -> dict[Path, RequestKey]:
    keys = {p.parent: RequestKey.from_json(json.loads(p.read_text())) for p in sorted(ROOT.glob("*/*/*/key.json"))}
    return {folder: key for folder, key in keys.items() if key.op != POOL_OP}


def one_per_kind() -> list[Path]:
    kinds: dict[str, Path] = {}
    for folder in committed():
        kinds.setdefault(folder.parent.name, folder)
    return list(kinds.values())


@pytest.mark.parametrize("preset", ["seed", "paper"])
def test_every_kernel_of_the_presets_is_committed_under_its_present_key(preset: str) -> None:
    program = getattr(NSASpec, preset)().program()
    wanted = {
        RequestKey.of(r.desc, r.schedule, r.target).folder
        for r in needed_requests(program, "float32", parse_target(TARGET))
    }
    missing = sorted(str(f) for f in wanted if not (ROOT / f / "kernel.cpp").exists())
    assert not missing, f"{len(missing)} kernels are not in generated/; {REMEDY}: {missing[:3]}"


def test_nothing_stale_is_committed() -> None:
    stale = []
    for folder, key in committed().items():
        desc, schedule = KernelDesc.from_json(json.loads(key.desc)), CpuSchedule.parse(json.loads(key.schedule))
        if RequestKey.of(desc, schedule, parse_target(key.arch)) != key:
            stale.append(str(folder.relative_to(ROOT)))
    assert not stale, f"{len(stale)} folders have keys of other templates; {REMEDY}: {stale[:3]}"


@pytest.mark.parametrize("folder", one_per_kind(), ids=lambda folder: folder.parent.name)
def test_lowering_again_gives_the_committed_text(folder: Path) -> None:
    key = committed()[folder]
    desc, schedule = KernelDesc.from_json(json.loads(key.desc)), CpuSchedule.parse(json.loads(key.schedule))
    source = lower(desc, schedule, parse_target(key.arch))
    text = (folder / "kernel.cpp").read_text()
    drift = difflib.unified_diff(text.splitlines(), source.text.splitlines(), "committed", "emitted", lineterm="", n=1)
    assert text == source.text, f"{REMEDY}:\n" + "\n".join(list(drift)[:40])
    assert Manifest.from_json(json.loads((folder / "manifest.json").read_text())).source_sha256 == source.sha256
