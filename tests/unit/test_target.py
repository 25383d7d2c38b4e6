"""Targets: every name parses, every GPU's facts are there and agree with each other, and each has a source."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from nsa_codegen import target as target_module
from nsa_codegen.desc import DTYPES
from nsa_codegen.errors import TargetError
from nsa_codegen.target import (
    CPU_TARGETS,
    GPU_TARGETS,
    TARGETS,
    GpuTarget,
    lacking,
    parse_target,
    processor_name,
    runs_here,
)

CUDA = [t for t in GPU_TARGETS.values() if t.kind == "cuda"]
HIP = [t for t in GPU_TARGETS.values() if t.kind == "hip"]
NAMES = {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a", "gfx942", "gfx950"}


def test_the_targets_are_those_that_users_have():
    assert set(GPU_TARGETS) == NAMES
    assert set(TARGETS) == NAMES | set(CPU_TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_a_name_gives_its_target(name):
    target = parse_target(name)
    assert target.name == name and name in str(target)
    assert target.kind == ("cpu" if name in CPU_TARGETS else "hip" if name.startswith("gfx") else "cuda")


@pytest.mark.parametrize(("name", "meant"), [("sm_90", "sm_90a"), ("sm90a", "sm_90a"), ("gfx9420", "gfx942")])
def test_an_unknown_name_is_answered_with_the_nearest(name, meant):
    with pytest.raises(TargetError, match=f"{name}.*did you mean '{meant}"):
        parse_target(name)


def test_no_gpu_target_is_a_processors():
    assert not any(runs_here(t) for t in GPU_TARGETS.values())
    assert parse_target("cpu").kind == "cpu"


def test_a_gpu_is_no_native_target(monkeypatch):
    monkeypatch.setenv("NSA_CODEGEN_TARGET", "sm_90a")
    with pytest.raises(TargetError, match="NSA_CODEGEN_TARGET=sm_90a is not a CPU target"):
        parse_target("native")


def test_what_a_machine_lacks_is_said(monkeypatch):
    amx, arm = CPU_TARGETS["x86_64_amx"], CPU_TARGETS["aarch64"]
    monkeypatch.delenv("NSA_CODEGEN_TARGET", raising=False)
    monkeypatch.setattr(target_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(target_module, "processor_features", lambda: amx.features - {"amx_tile"})
    assert lacking(amx) == ["amx_tile"] and not runs_here(amx) and runs_here(CPU_TARGETS["x86_64_v4"])
    assert lacking(arm) == ["a processor of aarch64 (it is x86_64)"] and runs_here(CPU_TARGETS["generic"])
    monkeypatch.setattr(target_module, "processor_features", lambda: amx.features)
    monkeypatch.setattr(target_module, "_may_use_tiles", lambda: False)
    assert parse_target("cpu").name == "x86_64_v4_bf16"
    monkeypatch.setenv("NSA_CODEGEN_TARGET", "x86_64_amx")
    with pytest.raises(TargetError, match=r"lacks \[.the system's permission to use AMX's tiles"):
        parse_target("cpu")
    monkeypatch.setattr(target_module, "_may_use_tiles", lambda: True)
    assert parse_target("cpu") == amx


@pytest.mark.parametrize("name", ["x86_64_amx", "x86_64_v4_bf16"])
def test_where_no_pairs_are_multiplied_the_base_target_serves(name):
    own, base = CPU_TARGETS[name], CPU_TARGETS["x86_64_v4"]
    assert {dtype: own.serving(dtype) for dtype in DTYPES} == {"float32": base, "bfloat16": own, "float16": base}
    assert (own.vector_bytes, own.vector_registers) == (base.vector_bytes, base.vector_registers)
    assert own.features >= base.features and own.flags[: len(base.flags)] == base.flags


def test_targets_without_pairs_serve_every_type_themselves():
    others = [t for t in TARGETS.values() if not t.takes_pairs("bfloat16")]
    assert all(t.serving(dtype) is t for t in others for dtype in DTYPES)


def test_only_some_processors_take_pairs_and_only_of_bfloat16():
    taking = {(t.name, dtype) for t in TARGETS.values() for dtype in DTYPES if t.takes_pairs(dtype)}
    assert taking == {("x86_64_amx", "bfloat16"), ("x86_64_v4_bf16", "bfloat16")}


@pytest.mark.parametrize("target", GPU_TARGETS.values(), ids=str)
def test_facts_are_complete_and_agree(target: GpuTarget):
    for field in fields(target):
        assert getattr(target, field.name) not in (None, "") or field.name == "reserved_bytes"
    assert target.block_shared_bytes + target.reserved_bytes == target.shared_bytes
    assert target.shared_bytes % target.shared_unit == 0
    share = target.registers // target.partitions
    assert share % target.register_unit == 0 and target.warps % target.partitions == 0
    assert target.thread_registers * target.warp <= share
    assert target.product in target.rates.source or target.product in ("B200", "B300")  # those are of NVIDIA's HGX
    assert len(target.source) > 40 and "multiprocessors:" in target.source.replace("compute units:", "multiprocessors:")


@pytest.mark.parametrize("target", CUDA, ids=str)
def test_the_product_is_as_fast_as_its_multiprocessors(target: GpuTarget):
    """Operations of a multiprocessor in a clock are a power of two: an error in one of the three figures shows."""
    if target.rates.clock_mhz is None:
        return
    per_clock = target.rates.matrix_tflops * 1e12 / (target.processors * target.rates.clock_mhz * 1e6)
    allowed = {"sm_80": 2048, "sm_86": 1024, "sm_89": 1024, "sm_90a": 4096, "sm_120a": 512}
    assert per_clock == pytest.approx(allowed[target.name], rel=0.01)


@pytest.mark.parametrize(("target", "allowed"), list(zip(HIP, (2048, 4096), strict=True)), ids=str)
def test_amds_product_is_as_fast_as_its_compute_units(target: GpuTarget, allowed: int):
    per_clock = target.rates.matrix_tflops * 1e12 / (target.processors * (target.rates.clock_mhz or 0) * 1e6)
    assert per_clock == pytest.approx(allowed, rel=0.01)


def test_facts_that_templates_read_stay_one_word():
    assert all(re.fullmatch(r"[\w.]+-[\w.]+-\d+", t.facts) for t in GPU_TARGETS.values())


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["model name\t: AMD Ryzen 9 7950X", "cpu family\t: 25", "model\t\t: 97"], "AMD Ryzen 9 7950X"),
        (["cpu family\t: 25", "model\t\t: 17", "model name\t: AMD EPYC"], "AMD EPYC family 25 model 17"),
        (["model name\t: Some Core", "processor\t: 0"], "Some Core"),
    ],
)
def test_a_brand_alone_does_not_name_a_processor(lines: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual machines give processors of several generations one name, and a timing belongs to one of them."""
    second = "\n\nprocessor\t: 1\nmodel name\t: another\n"
    monkeypatch.setattr(Path, "read_text", lambda self: "\n".join(lines) + second)
    assert processor_name() == name
