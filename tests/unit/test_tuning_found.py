"""What a tuner says of a kernel that it has searched is what `replay` will make of its log."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import tuning_fakes as fakes
from tuning_logs_made import record, write_log

from nsa_codegen.desc import KernelDesc
from nsa_codegen.index_sets import window
from nsa_codegen.schedule import CpuSchedule, GpuSchedule
from nsa_codegen.target import TARGETS
from nsa_codegen.tuning.options import Found
from nsa_codegen.tuning.records import Record
from nsa_codegen.tuning.replay import decided
from nsa_codegen.tuning.space import Space, default_schedule

CPU = KernelDesc.of("stream_attention", "float32", visible=window(512), group=4, dk=64, dv=64)
GPU = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), group=16, dk=192, dv=128)
V4, H100 = TARGETS["x86_64_v4"], TARGETS["sm_90a"]
FAST, FASTER = CpuSchedule(query_lanes=32, key_tile=32), CpuSchedule(query_lanes=16, key_tile=128)
GOOD, SPILLING = GpuSchedule(rows=64, key_tile=32, stages=2), GpuSchedule(rows=64, key_tile=64, stages=3)
SEARCHED = record(CPU, default_schedule(CPU, V4), measured=1.0, stage="search")


def found_of(*records: Record) -> Found:
    desc, target = records[0].desc, V4 if records[0].desc is CPU else H100
    default = default_schedule(desc, target)
    space = Space(desc=desc, target=target, axes={}, raw=1, legal=(default,), refused={}, default=default)
    search, finals = (tuple(r for r in records if r.stage == stage) for stage in ("search", "final"))
    problem: Any = fakes.LightProblem(desc=desc, forward=desc)
    return Found(problem=problem, space=space, records=search, finals=finals, log=Path("run.jsonl"))


def headline(found: Found) -> str:
    """What `nsa-codegen tune` prints of it; the package's attribute `tune` is the function."""
    said: str = importlib.import_module("nsa_codegen.cli.tune")._headline(found)
    return said


def gpu(schedule: GpuSchedule, seconds: float, spill_bytes: int, number: int = 0) -> Record:
    return record(GPU, schedule, predicted=seconds, spill_bytes=spill_bytes, stage="search", number=number)


SURE = record(CPU, FAST, measured=0.8)
UNSURE = dataclasses.replace(record(CPU, FASTER, measured=0.7, width=0.6), default=SURE.default)
LUCKY = record(CPU, FAST, measured=0.5)
ALONE = record(CPU, FAST, measured=1.0, default=1.01)
DEFAULT = default_schedule(GPU, H100)
CASES: dict[str, tuple[list[Record], int, float, str]] = {
    "won": ([SEARCHED, LUCKY], 1, 2.0, "stream_attention_fwd 1 best 500 ms (2.00x the default)"),
    "won beside one within the spread": ([SEARCHED, UNSURE, SURE], 2, 1.25, "best 800 ms (1.25x the default)"),
    "no faster by itself": ([SEARCHED, LUCKY, ALONE], 2, 1.01, "best 1e+03 ms (1.01x the default, which stays)"),
    "slower": ([SEARCHED, record(CPU, FAST, measured=1.25)], 1, 0.8, "(0.80x the default, which stays)"),
    "not sure": ([SEARCHED, UNSURE], 1, 1 / 0.7, "best 700 ms (1.43x the default, within the spread)"),
    "still searched": ([SEARCHED, record(CPU, FAST, measured=0.5, stage="search", number=1)], 1, 2.0, "500 ms (2.00x"),
    "the fastest spills": (
        [gpu(DEFAULT, 1.0, 0), gpu(SPILLING, 0.2, 64, 1), gpu(GOOD, 0.8, 0, 2)], 2, 1.25, "800 ms (1.25x the default)",
    ),
    "the default spills": (
        [gpu(DEFAULT, 0.5, 64), gpu(GOOD, 0.8, 0, 1)], 1, 0.625, "best 800 ms (0.62x the default)",
    ),
    "hardly better": (
        [gpu(DEFAULT, 1.0, 0), gpu(GOOD, 0.98, 0, 1)], 1, 1 / 0.98, "(1.02x the default, which stays)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_best_and_its_gain_are_those_of_replay(case: str, tmp_path: Path) -> None:
    records, best, gain, said = CASES[case]
    found, arch = found_of(*records), V4.name if records[0].desc is CPU else H100.name
    assert found.best == records[best] and found.gain == pytest.approx(gain)
    assert said in headline(found)
    write_log(tmp_path, arch, *records)
    decision = decided(records[0].desc, arch, tmp_path)
    assert decision is not None
    assert (decision.row is None) == (found.verdict.winner is None) and decision.verdict.reason == found.verdict.reason
    if decision.row is not None:
        assert decision.row["schedule"] == dict(records[best].schedule)


def test_a_gain_that_is_not_known_is_not_said() -> None:
    failed = record(GPU, DEFAULT, status="failed", stage="search")
    found = found_of(failed, gpu(GOOD, 0.8, 0, 1))
    assert found.best is not None and found.gain is None and found.verdict.winner is not None
    assert headline(found) == "stream_attention_fwd 2 best 800 ms"
    alone = found_of(gpu(GOOD, 0.8, 0))
    assert alone.gain is None and alone.verdict.winner is None
    nothing = found_of(gpu(SPILLING, 0.2, 64))
    assert nothing.best is None and nothing.gain is None and headline(nothing) == "stream_attention_fwd 1"
