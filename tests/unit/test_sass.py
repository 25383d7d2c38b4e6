"""Instruction counts: classes of opcodes, the main part, and nvdisasm itself, with a script in its place."""

import importlib.metadata
import json

import pytest

from nsa_codegen import sass
from nsa_codegen.errors import CompilerError
from nsa_codegen.sass import (
    CLASSES,
    Instructions,
    access_bytes,
    count_instructions,
    disassemble,
    find_nvdisasm,
    main_part,
    opcode_class,
    sum_instructions,
)


def code(*lines):
    """Return instructions as nvdisasm's JSON has them, from texts like `@P0 BRA 0x20`."""
    found = []
    for line in lines:
        words = line.split(" ", 2) if line.startswith("@") else ["", *line.split(" ", 1)]
        item = {"opcode": words[1], "operands": words[2] if len(words) > 2 else ""}
        found.append(item | ({"predicate": words[0]} if words[0] else {}))
    return found


@pytest.mark.parametrize(
    ("opcode", "name"),
    [
        ("HMMA.16816.F32", "matrix"),
        ("HGMMA.64x64x16.F32", "matrix"),
        ("UTCHMMA", "matrix"),
        ("LDGSTS.E.BYPASS.128", "async_copy"),
        ("UTMALDG.4D", "async_copy"),
        ("UBLKCP.S.G", "async_copy"),
        ("UBLKCP.G.S", "global_store"),
        ("UTMASTG.4D", "global_store"),
        ("LDG.E.128.CONSTANT", "global_load"),
        ("LD.E", "global_load"),
        ("STG.E", "global_store"),
        ("LDS", "shared_load"),
        ("LDSM.16.M88.4", "shared_load"),
        ("STS.128", "shared_store"),
        ("STSM.16.M88.4", "shared_store"),
        ("LDL.LU", "local"),
        ("STL.64", "local"),
        ("BAR.SYNC.DEFER_BLOCKING", "barrier"),
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT", "barrier"),
        ("RED.E.ADD.F32", "global_reduce"),
        ("LDGDEPBAR", None),
        ("LDC.64", None),
        ("FFMA", None),
        ("STRANGE", None),
    ],
)
def test_an_opcode_is_of_one_class(opcode, name):
    assert opcode_class(opcode) == name
    assert sum(pattern.match(opcode) is not None for pattern in CLASSES.values()) == (name is not None)


@pytest.mark.parametrize(
    ("opcode", "width"),
    [("LDG.E", 4), ("LDG.E.64.CONSTANT", 8), ("LDG.E.128", 16), ("LDG.E.U16", 2), ("LDG.E.U8.CONSTANT", 1)],
)
def test_the_width_of_a_load(opcode, width):
    assert access_bytes(opcode) == width


def test_a_loop_is_main_and_what_comes_once_before_is_not():
    text = code("LDG.E.128 R0", "LDG.E R1", "@P0 BRA 0x10", "EXIT")
    assert main_part(text) == [False, True, True, False]


def test_behind_the_first_matrix_instruction_all_is_main():
    text = code("LDG.E.128 R0", "STS.128 R0", "HMMA.16816.F32 R0", "LDG.E.128 R0", "EXIT")
    assert main_part(text) == [False, False, True, True, True]


def test_a_block_moved_behind_the_end_belongs_where_it_runs():
    """A spin that was moved out of the way jumps back; by addresses all between would be a loop."""
    text = code("LDG.E R0", "@P0 BRA 0x40", "STG.E R0", "EXIT", "NOP", "BRA 0x20")
    assert main_part(text) == [False] * 6
    text = code("LDG.E R0", "@P0 BRA 0x40", "STG.E R0", "EXIT", "NOP", "@P0 BRA 0x40", "BRA 0x20")
    assert main_part(text) == [False, False, False, False, True, True, False]


def test_a_loop_through_a_moved_block_holds_both_parts():
    text = code("LDG.E R0", "LDG.E R1", "BRA 0x50", "STG.E R0", "EXIT", "@P0 BRA 0x30", "BRA 0x10")
    assert main_part(text) == [False, True, True, False, False, True, True]


def test_branches_with_a_predicate_among_the_operands_fall_through():
    assert main_part(code("LDG.E R0", "BRA.U UP0, 0x0", "EXIT")) == [True, True, False]
    assert main_part(code("BRA.DIV UR4, 0x20", "BRA 0x0", "EXIT")) == [True, True, False]


def test_a_branch_to_itself_is_a_loop_and_a_return_is_none():
    assert main_part(code("EXIT", "BRA 0x10", "RET.REL.NODEC R2, k")) == [False, True, False]


def test_addresses_count_from_the_functions_start():
    assert main_part(code("LDG.E R0", "LDG.E R1", "BRA 0x110"), 0x100) == [False, True, True]


COUNTED = Instructions(
    total=9,
    opcodes={"HMMA.16816.F32": 2, "LDG.E": 3, "LDG.E.128.CONSTANT": 4, "LDGSTS.E.BYPASS.128": 5},
    main_opcodes={"HMMA.16816.F32": 2, "LDG.E": 1, "LDGSTS.E.BYPASS.128": 5},
)


def test_counts_by_class_and_width():
    assert COUNTED.count("global_load") == 7 and COUNTED.count("global_load", main=True) == 1
    assert COUNTED.by_opcode("matrix") == {"HMMA.16816.F32": 2}
    assert COUNTED.loads_of(16) == 4 and COUNTED.loads_of(16, main=True) == 0 and COUNTED.loads_of(4) == 3


def test_the_main_part_of_several_kernels_is_that_of_those_that_multiply():
    adding = Instructions(total=5, opcodes={"LDG.E.128": 4}, main_opcodes={"LDG.E.128": 4})
    both = sum_instructions([COUNTED, adding])
    assert both.total == 14 and both.opcodes == {**COUNTED.opcodes, "LDG.E.128": 4}
    assert both.main_opcodes == COUNTED.main_opcodes
    assert sum_instructions([adding, adding]).main_opcodes == {"LDG.E.128": 8}


def test_json_keeps_all():
    data = json.loads(json.dumps(COUNTED.to_json()))
    assert data["async_copy"] == 5 and data["local"] == 0 and data["total"] == 9
    assert Instructions.from_json(data) == COUNTED


@pytest.fixture
def nvdisasm(monkeypatch, tmp_path):
    """A script in nvdisasm's place: prints one function's code as JSON, or text for --print-code."""
    functions = [
        {"function-name": "k", "start": 0, "sass-instructions": code("LDG.E R0", "HMMA R0", "FADD R0", "EXIT")}
    ]
    (tmp_path / "json").write_text(json.dumps([{"Producer": "nvdisasm"}, functions]))
    path = tmp_path / "nvdisasm"
    path.write_text(f'#!/bin/sh\n[ "$1" = --emit-json ] && exec cat {tmp_path}/json\necho "code of $2"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return path


def test_counting_reads_the_disassembler(nvdisasm, tmp_path):
    assert find_nvdisasm() == nvdisasm
    counted = count_instructions(tmp_path / "k.cubin", "k")
    assert counted.total == 4
    assert counted.opcodes == {"HMMA": 1, "LDG.E": 1} and counted.main_opcodes == {"HMMA": 1}
    with pytest.raises(CompilerError, match=r"has no function 'other'; it has \['k'\]"):
        count_instructions(tmp_path / "k.cubin", "other")


def test_disassembling_gives_text(nvdisasm, tmp_path):
    assert disassemble(tmp_path / "k.cubin") == f"code of {tmp_path}/k.cubin\n"


def test_a_failing_disassembler_is_named(nvdisasm, tmp_path):
    nvdisasm.write_text("#!/bin/sh\necho broken\nexit 3\n")
    with pytest.raises(CompilerError, match=r"nvdisasm --print-code .* ended with status 3:\nbroken"):
        disassemble(tmp_path / "k.cubin")


def test_without_a_disassembler_the_extra_is_named(monkeypatch, tmp_path):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    def no_nvcc():
        raise CompilerError("none")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "files", missing)
    monkeypatch.setattr(sass, "find_nvcc", no_nvcc)
    assert find_nvdisasm() is None
    with pytest.raises(CompilerError, match=r"nvidia-cuda-nvdisasm.*nsa_codegen\[gpu\]"):
        disassemble(tmp_path / "k.cubin")
