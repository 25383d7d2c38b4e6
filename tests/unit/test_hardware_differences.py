"""Schedules differ where the hardware does, and what is said of a difference names the fact that is behind it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from nsa_codegen.desc import KernelDesc
from nsa_codegen.index_sets import window
from nsa_codegen.ops import Sizes
from nsa_codegen.schedule import GpuSchedule, Schedule
from nsa_codegen.selection import select
from nsa_codegen.target import TARGETS, GpuTarget, Target
from nsa_codegen.tuning.problems import preset_problems
from nsa_codegen.tuning.reasons import explain, hardware_differences, schedule_differences

NAMES = ("sm_80", "sm_90a", "sm_100a", "sm_120a")
WINDOW = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), group=16, dk=192, dv=128)
LONG = Sizes(batch=1, tokens=16384, keys=16384, kv_heads=4)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(NAMES, 2)), ids="-".join)
def test_schedules_differ_where_the_hardware_does_and_every_field_has_a_fact(first: str, second: str) -> None:
    """Targets of one matrix instruction share a list of generic schedules: without any tuned row they are the same."""
    one, other = TARGETS[first], TARGETS[second]
    assert isinstance(one, GpuTarget) and isinstance(other, GpuTarget)
    facts = hardware_differences(one, other)
    assert facts
    tuned, said = False, []
    for problem in preset_problems("paper", one, "bfloat16"):
        ours, theirs = (select(problem.desc, target) for target in (one, other))
        tuned = tuned or ours.row is not None or theirs.row is not None
        pairs = [(ours.schedule, one, theirs.schedule, other), (theirs.schedule, other, ours.schedule, one)]
        for schedule, target, there, elsewhere in pairs if ours.schedule != theirs.schedule else ():
            found = differences(problem.desc, problem.sizes, schedule, target, there, elsewhere)
            fields, values = schedule.values(), there.values()
            assert found.keys() == {name for name in fields if fields[name] != values[name]}
            for name, reason in found.items():
                assert any(fact in reason for fact in facts), f"{problem.desc} {name}: {reason}"
            said += found.values()
    assert said or not (tuned or one.matrix != other.matrix), f"{first} and {second} have the same schedules"
    decided = [reason for reason in said if "no one fact decides it" not in reason]
    assert 2 * len(decided) > len(said) or not said, said


def differences(
    desc: KernelDesc, sizes: Sizes, schedule: Schedule, target: Target, there: Schedule, elsewhere: Target
) -> dict[str, str]:
    found = explain(desc, schedule, target, sizes), explain(desc, there, elsewhere, sizes)
    return schedule_differences(*found, sizes)


def h100(**changed: Any) -> Target:
    return replace(TARGETS["sm_90a"], **changed)


def test_the_fact_that_is_named_is_the_one_that_is_changed() -> None:
    """Of targets that differ in one fact that one is named; a wide tile needs the greater shared memory."""
    narrow, wide = GpuSchedule(rows=64, key_tile=64, stages=2), GpuSchedule(rows=64, key_tile=128, stages=2)
    less = h100(block_shared_bytes=101376, shared_bytes=102400)
    reason = differences(WINDOW, LONG, narrow, less, wide, h100())["key_tile"]
    assert "128 is not legal on sm_90a: tiles take" in reason
    assert "with sm_90a's shared memory of a block (232448 bytes), shared memory of a multiprocessor" in reason
    assert "it would be legal, and predicted" in reason and "copy engine" not in reason
    other = differences(WINDOW, LONG, wide, h100(), narrow, less)["key_tile"]
    assert "what is there now would not be legal" in other or "128 is not legal" in other


def test_the_strongest_of_several_facts_is_named() -> None:
    """Registers refuse a tile with mma whatever memory there is."""
    narrow, wide = GpuSchedule(rows=64, key_tile=32, stages=2), GpuSchedule(rows=64, key_tile=128, stages=2)
    mma = h100(matrix="mma", copy="cp.async")
    reason = differences(WINDOW, LONG, narrow, mma, wide, h100())["key_tile"]
    assert "accumulators and scores; beyond 120" in reason and "with sm_90a's matrix instruction (wgmma" in reason
    assert "with sm_90a's copy engine" not in reason


def test_a_difference_without_a_fact_behind_it_is_said_to_be_one() -> None:
    """The same hardware: whatever differs, no fact is behind it."""
    one, other = GpuSchedule(rows=64, key_tile=64, stages=2), GpuSchedule(rows=64, key_tile=64, stages=1)
    (reason,) = differences(WINDOW, LONG, one, h100(), other, h100()).values()
    assert "no one fact decides it" in reason and "differ in nothing" in reason
