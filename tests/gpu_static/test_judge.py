"""The judge itself: it passes a good kernel, and every rule finds what it is for."""

from __future__ import annotations

from dataclasses import replace

import judge
import pytest
from judge import Case, faults

from nsa_codegen.desc import KernelDesc
from nsa_codegen.resources import Resources
from nsa_codegen.sass import Instructions
from nsa_codegen.schedule import GpuSchedule
from nsa_codegen.target import GPU_TARGETS

DESC = KernelDesc.of("stream_attention", "float16", group=16, dk=128, dv=128)
COPIES = {"HMMA.16816.F32": 64, "LDGSTS.E.BYPASS.128": 16, "LDG.E": 4}
GOOD = Case(
    desc=DESC,
    schedule=GpuSchedule(rows=64, key_tile=64),
    target=GPU_TARGETS["sm_80"],
    resources=Resources(
        kernel="k", target="sm_80", registers=168, spill_store_bytes=0, spill_load_bytes=0, stack_bytes=0,
        static_shared_bytes=0, shared_bytes=65536, barriers=1, threads=128, blocks_per_processor=2, occupancy=0.125,
        limited_by=("shared memory",),
        instructions=Instructions(total=900, opcodes={**COPIES, "LDG.E.128.CONSTANT": 8}, main_opcodes=COPIES),
    ),
)  # fmt: skip


def with_resources(**changed):
    return replace(GOOD, resources=replace(GOOD.resources, **changed))


def with_code(opcodes, **changed):
    code = Instructions(total=900, opcodes=opcodes, main_opcodes=opcodes)
    return replace(with_resources(instructions=code), **changed)


def test_a_good_kernel_has_no_faults():
    assert faults(GOOD) == []


@pytest.mark.parametrize("changed", [{"spill_load_bytes": 4}, {"spill_store_bytes": 4}, {"stack_bytes": 8}])
def test_spills_and_stacks_are_found(changed):
    (fault,) = faults(with_resources(**changed))
    assert "of spills" in fault


def test_local_memory_is_found_in_the_code():
    assert faults(with_code({**COPIES, "LDL": 1})) == ["0 bytes of spills, 0 of stack, 1 local accesses"]


def test_a_matrix_step_without_tensor_cores_is_found():
    assert faults(with_code({"FFMA": 999, "LDGSTS.E.BYPASS.128": 16})) == [
        "a matrix step without tensor-core instructions"
    ]


def test_ops_without_a_matrix_step_need_none():
    desc = KernelDesc.of("combine", "float16", dv=128, gates="sigmoid", paths=3)
    assert faults(with_code({"LDG.E.128.CONSTANT": 9}, desc=desc)) == []


def test_wide_streaming_tiles_use_warp_groups_on_hopper():
    hopper = GPU_TARGETS["sm_90a"]
    code = {"HMMA.16816.F32": 64, "UTMALDG.4D": 4}
    (fault,) = (f for f in faults(with_code(code, target=hopper)) if "HGMMA" in f)
    assert "with 64 rows multiplies by ['HMMA.16816.F32']" in fault
    narrow = with_code(code, target=hopper, schedule=GpuSchedule(rows=32, key_tile=64, threads=64))
    assert not any("HGMMA" in f for f in faults(narrow))
    code = {"HGMMA.64x64x16.F32": 16, "UTMALDG.4D": 4}
    assert not any("HGMMA" in f for f in faults(with_code(code, target=hopper)))


def test_tiles_without_asynchronous_copies_are_found():
    assert faults(with_code({"HMMA.16816.F32": 64, "LDG.E": 2})) == ["no asynchronous copy in the main part"]


@pytest.mark.parametrize("opcode", ["LDG.E.128.CONSTANT", "LDG.E.64", "LDG.E.U16.CONSTANT"])
def test_plain_loads_of_tiles_are_found(opcode):
    assert faults(with_code({**COPIES, opcode: 1})) == [f"plain loads of tiles in the main part: {{'{opcode}': 1}}"]


def test_scalars_that_add_up_to_a_tile_are_found():
    tile = 64 * 128 * 2
    assert faults(with_code({**COPIES, "LDG.E": tile // (4 * 128) - 1})) == []
    assert "a tile of 16384 among them" in faults(with_code({**COPIES, "LDG.E": tile // (4 * 128)}))[0]


def test_loads_before_the_main_part_are_free():
    assert GOOD.code.loads_of(16) == 8 and faults(GOOD) == []


def test_too_much_shared_memory_is_found():
    found = faults(with_resources(shared_bytes=164 * 1024))
    assert found[0] == "167936 bytes of shared memory; a block may have 166912"
    assert "not one block fits" in found[1]


def test_an_occupancy_that_is_not_that_of_the_figures_is_found():
    (fault,) = faults(with_resources(blocks_per_processor=3))
    assert fault == "the stored occupancy is 3 blocks; the figures give 2"


def test_uncounted_instructions_are_no_pass():
    with pytest.raises(AssertionError, match="nvdisasm is missing"):
        faults(with_resources(instructions=None))


def test_every_rule_is_asked():
    rules = {f for n, f in vars(judge).items() if callable(f) and getattr(f, "__module__", "") == "judge"}
    named = {r for r in rules if getattr(r, "__annotations__", {}).get("return") == "str | None"}
    assert named == set(judge.RULES)
