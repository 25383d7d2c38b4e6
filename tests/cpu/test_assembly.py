"""Tile kernels vectorise: what the compiler makes of the emitted text, at the full width of each x86 target."""

import re
import subprocess
from pathlib import Path

import pytest

from nsa_codegen.compiler import compile_flags, find_compiler
from nsa_codegen.desc import KernelDesc
from nsa_codegen.index_sets import window
from nsa_codegen.lowering import lower
from nsa_codegen.selection import select
from nsa_codegen.target import parse_target

ATTENTION = {"group": 4, "dk": 64, "dv": 64}
DESCS = {
    "stream": KernelDesc.of("stream_attention", "float32", visible=window(64), **ATTENTION),
    "gather": KernelDesc.of(
        "gather_attention", "float32", block=64, n=16, reach="causal", source="packed", **ATTENTION
    ),
    "select": KernelDesc.of(
        "select_blocks", "float32", method="compressed", group=4, dk=64, block=64, n=16, initial=1, local=2,
        kernel=32, stride=16,
    ),
    "stream backward": KernelDesc.of(
        "stream_attention", "float32", direction="bwd", part="runs", visible=window(64), **ATTENTION
    ),
}  # fmt: skip
REGISTERS = {"x86_64_v4": "zmm", "x86_64_v3": "ymm"}


@pytest.mark.parametrize("target_name", REGISTERS)
@pytest.mark.parametrize("name", DESCS)
def test_products_run_on_full_vectors(name: str, target_name: str, tmp_path: Path) -> None:
    target, desc = parse_target(target_name), DESCS[name]
    schedule = select(desc, target).schedule
    (tmp_path / "kernel.cpp").write_text(lower(desc, schedule, target).text)
    flags = [f for f in compile_flags(target) if f != "-shared"]
    command = [*find_compiler().command, *flags, "-S", "kernel.cpp", "-o", "kernel.s"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "kernel.s").read_text()
    packed = len(re.findall(rf"\bvfn?m(?:add|sub)\d+ps\b.*%{REGISTERS[target_name]}", text))
    scalar = len(re.findall(r"\bvfn?m(?:add|sub)\d+ss\b", text))
    tile = schedule.register_rows * schedule.register_vectors
    assert packed >= 2 * tile, f"{packed} fused multiply-adds on {REGISTERS[target_name]} for two products of {tile}"
    # A product that did not vectorise would show a register tile of scalar ones; some per row (log-sum-exp) are fine.
    assert scalar < tile + 4, f"{scalar} scalar fused multiply-adds beside {packed} packed ones"
    assert not re.search(r"\bcall\s+\S*exp", text), "exp2 is not inline"
