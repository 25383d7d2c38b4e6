"""Resources: what the assembler's report says, occupancy from it, and JSON; with a report written by hand."""

import json

import pytest

from nsa_codegen import resources
from nsa_codegen.errors import CompilerError
from nsa_codegen.nvcc import report_path
from nsa_codegen.resources import Resources, assembler_report, cubin_resources, resident
from nsa_codegen.sass import Instructions
from nsa_codegen.target import GPU_TARGETS

SM_80 = GPU_TARGETS["sm_80"]
ONE = """\
ptxas info    : 9 bytes gmem, 72 bytes cmem[4]
ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for helper
    64 bytes stack frame, 32 bytes spill stores, 32 bytes spill loads
ptxas info    : Function properties for one
    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 223 registers, used 3 barriers, 24 bytes cumulative stack size, 1024 bytes smem, 400 bytes cmem[0]
"""
TWO = """\
ptxas info    : Compiling entry function 'two' for 'sm_80'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 360 bytes cmem[0]
"""


@pytest.fixture
def cubin(tmp_path):
    return tmp_path / "kernel.cubin"


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """Instructions that are counted without a disassembler."""
    counts = Instructions(total=3, opcodes={"LDG.E": 1}, main_opcodes={})
    monkeypatch.setattr(resources, "find_nvdisasm", lambda: "there")
    monkeypatch.setattr(resources, "count_instructions", lambda cubin, kernel: counts)
    return counts


def test_a_report_is_read_kernel_by_kernel(cubin):
    report_path(cubin).write_text(ONE + TWO)
    assert assembler_report(report_path(cubin)) == {
        "one": {
            "registers": 223, "stack_bytes": 24, "spill_store_bytes": 16, "spill_load_bytes": 20, "barriers": 3,
            "static_shared_bytes": 1024,
        },
        "two": {
            "registers": 8, "stack_bytes": 0, "spill_store_bytes": 0, "spill_load_bytes": 0, "barriers": 0,
            "static_shared_bytes": 0,
        },
    }  # fmt: skip


def test_resources_add_the_launch(cubin, counted):
    report_path(cubin).write_text(ONE)
    found = cubin_resources(cubin, threads=128, shared_bytes=40 * 1024, target=SM_80)
    assert (found.kernel, found.target, found.registers, found.barriers) == ("one", "sm_80", 223, 3)
    assert found.spill_bytes == 36 and found.stack_bytes == 24
    assert found.static_shared_bytes == 1024 and found.shared_bytes == 41 * 1024
    assert (found.blocks_per_processor, found.occupancy, found.limited_by) == (2, 0.125, ("registers",))
    assert found.instructions == counted
    assert resident(found, SM_80).blocks == 2


def test_json_keeps_all_and_has_the_sum_of_spills(cubin):
    report_path(cubin).write_text(ONE)
    found = cubin_resources(cubin, threads=128, shared_bytes=0, target=SM_80)
    data = json.loads(json.dumps(found.to_json()))
    assert data["spill_bytes"] == 36 and data["instructions"]["global_load"] == 1
    assert Resources.from_json(data) == found


def test_without_a_disassembler_the_rest_is_there(cubin, monkeypatch):
    monkeypatch.setattr(resources, "find_nvdisasm", lambda: None)
    report_path(cubin).write_text(TWO)
    found = cubin_resources(cubin, threads=128, shared_bytes=0, target=SM_80)
    assert found.instructions is None and found.registers == 8
    assert Resources.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_of_several_kernels_one_must_be_named(cubin):
    report_path(cubin).write_text(ONE + TWO)
    assert cubin_resources(cubin, threads=32, shared_bytes=0, target=SM_80, kernel="two").kernel == "two"
    for wrong in (None, "three"):
        with pytest.raises(CompilerError, match=r"has the kernels \['one', 'two'\]"):
            cubin_resources(cubin, threads=32, shared_bytes=0, target=SM_80, kernel=wrong)


def test_a_missing_report_says_how_to_get_one(cubin):
    with pytest.raises(CompilerError, match="compile_cubin"):
        cubin_resources(cubin, threads=32, shared_bytes=0, target=SM_80)


def test_a_report_of_another_form_is_an_error(cubin):
    report_path(cubin).write_text(TWO.replace("Used 8 registers", "Took 8 registers"))
    with pytest.raises(CompilerError, match="another form"):
        assembler_report(report_path(cubin))
    report_path(cubin).write_text(TWO.replace("properties for two", "properties for too"))
    with pytest.raises(CompilerError, match="another form"):
        assembler_report(report_path(cubin))
