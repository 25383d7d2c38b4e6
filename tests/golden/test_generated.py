"""The committed kernels of `generated/` are what this version emits.

All keys are checked, and the texts of a sample: one per op and direction of the first CPU's, and of the others' a part
that turns with the day, all in `ROUNDS` days. `NSA_CODEGEN_DRIFT=all` (`make drift`) takes all.
"""

import dataclasses
import datetime
import difflib
import json
import os
import re
from pathlib import Path

import pytest

from nsa_codegen.desc import KernelDesc
from nsa_codegen.lowering import lower
from nsa_codegen.manifest import POOL_OP, Manifest, RequestKey
from nsa_codegen.requests import needed_requests
from nsa_codegen.schedule import schedule_class
from nsa_codegen.spec import NSASpec
from nsa_codegen.store import source_name
from nsa_codegen.target import parse_target

ROOT = Path(__file__).parents[2] / "generated"
CPUS, PAIR_CPUS, GPUS = (
    re.findall(rf"^{name} \?= (.*)$", (ROOT.parent / "Makefile").read_text(), re.MULTILINE)[0].split()
    for name in ("CPUS", "PAIR_CPUS", "GPUS")
)
SHIPPED = (
    *((name, "float32") for name in (*CPUS, *PAIR_CPUS)),
    *((name, "bfloat16") for name in (*PAIR_CPUS, *GPUS)),
)
ROUNDS = 16
WORKSPACE = re.compile(r"\bworkspace_\d+\b")  # which of several a reduction gets differs from run to run
REMEDY = "run `make generated` and commit the result"


def committed() -> dict[Path, RequestKey]:
    keys = {p.parent: RequestKey.from_json(json.loads(p.read_text())) for p in sorted(ROOT.glob("*/*/*/key.json"))}
    return {folder: key for folder, key in keys.items() if key.op != POOL_OP}


def sample() -> list[Path]:
    """Return the folders whose texts are lowered again today, in one order on every worker."""
    folders = committed()
    if os.environ.get("NSA_CODEGEN_DRIFT") == "all":
        return list(folders)
    kinds: dict[str, Path] = {}
    others = []
    for folder, key in folders.items():
        if key.arch == CPUS[0]:
            kinds.setdefault(folder.parent.name, folder)
        else:
            others.append(folder)
    today = datetime.datetime.now(datetime.UTC).date().toordinal() % ROUNDS
    return [*kinds.values(), *others[today::ROUNDS]]


@pytest.mark.parametrize(("target", "dtype"), SHIPPED, ids=lambda x: x)
@pytest.mark.parametrize("preset", ["seed", "paper"])
def test_every_kernel_of_the_presets_is_committed_under_its_present_key(preset: str, target: str, dtype: str) -> None:
    program = getattr(NSASpec, preset)().program()
    wanted = {
        RequestKey.of(r.desc, r.schedule, r.target).folder
        for r in needed_requests(program, dtype, parse_target(target))
    }
    missing = sorted(str(f) for f in wanted if not (ROOT / f / source_name(target)).exists())
    assert not missing, f"{len(missing)} kernels are not in generated/; {REMEDY}: {missing[:3]}"


@pytest.mark.parametrize("target", PAIR_CPUS)
@pytest.mark.parametrize("preset", ["seed", "paper"])
def test_float32_on_cpus_with_pairs_has_kernels_of_the_target_without(preset: str, target: str) -> None:
    for request in needed_requests(getattr(NSASpec, preset)().program(), "float32", parse_target(target)):
        assert request.key.arch == "x86_64_v4"
        assert (ROOT / request.key.folder / source_name(request.key.arch)).exists(), request


def test_nothing_but_the_presets_kernels_is_committed() -> None:
    wanted = {
        ROOT / RequestKey.of(r.desc, r.schedule, r.target).folder
        for preset in ("seed", "paper")
        for target, dtype in SHIPPED
        for r in needed_requests(getattr(NSASpec, preset)().program(), dtype, parse_target(target))
    }
    strays = sorted(str(f.relative_to(ROOT)) for f in committed() if f not in wanted)
    assert not strays, f"{len(strays)} folders are of other templates or no preset's; {REMEDY}: {strays[:3]}"


@pytest.mark.parametrize("folder", sample(), ids=lambda folder: "/".join(folder.parts[-3:]))
def test_lowering_again_gives_the_committed_text(folder: Path) -> None:
    key = committed()[folder]
    target = parse_target(key.arch)
    desc, schedule = (
        KernelDesc.from_json(json.loads(key.desc)),
        schedule_class(target).parse(json.loads(key.schedule)),
    )
    source = lower(desc, schedule, target)
    committed_text = (folder / source_name(key.arch)).read_text()
    text, again = (WORKSPACE.sub("workspace", x) for x in (committed_text, source.text))
    drift = difflib.unified_diff(text.splitlines(), again.splitlines(), "committed", "emitted", lineterm="", n=1)
    assert text == again, f"{REMEDY}:\n" + "\n".join(list(drift)[:40])
    manifest = Manifest.from_json(json.loads((folder / "manifest.json").read_text()))
    assert manifest.source_sha256 == dataclasses.replace(source, text=committed_text).sha256
