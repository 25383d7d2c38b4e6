"""The measured judge on real kernels of this machine; wrong ones are seen; and `nsa-codegen tune` from end to end."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nsa_codegen.build import Request, build_all
from nsa_codegen.cli import app
from nsa_codegen.desc import KernelDesc
from nsa_codegen.index_sets import window
from nsa_codegen.lowering import lower
from nsa_codegen.needed import backward_descs
from nsa_codegen.ops import Sizes
from nsa_codegen.schedule import CpuSchedule
from nsa_codegen.source import KernelSource
from nsa_codegen.store import KernelStore
from nsa_codegen.target import native_target
from nsa_codegen.tuning.measured import build_candidate, judge_measured, measure_finalists, prepare, prerequisites
from nsa_codegen.tuning.problems import Problem
from nsa_codegen.tuning.records import read_log
from nsa_codegen.tuning.space import Space, default_schedule
from nsa_codegen.tuning.winners import Numbered, verdict

TARGET = native_target()
DIMS: dict[str, Any] = {"group": 2, "dk": 16, "dv": 16}
STREAM = KernelDesc.of("stream_attention", "float32", visible=window(20), **DIMS)
GATHER = KernelDesc.of("gather_attention", "bfloat16", reach="causal", source="packed", block=8, n=3, **DIMS)
SIZES = Sizes(batch=1, tokens=90, keys=90, kv_heads=2)
CHECKS = (Sizes(batch=2, tokens=33, keys=33, kv_heads=2), Sizes(batch=1, tokens=20, keys=75, kv_heads=1, q_start=55))


def problem_of(forward: KernelDesc, part: str) -> Problem:
    parts = {"forward": forward} | {d.word("part"): d for d in backward_descs(forward)}
    return Problem(desc=parts[part], forward=forward, sizes=SIZES, checks=CHECKS)


PROBLEMS = [problem_of(*pair) for pair in ((STREAM, "forward"), (STREAM, "runs"), (STREAM, "sums"), (GATHER, "runs"))]
DEFAULTS = {p.desc: default_schedule(p.desc, TARGET) for p in PROBLEMS}
KERNELS = [desc for p in PROBLEMS for desc, _ in prerequisites(p, TARGET, DEFAULTS[p.desc])]
OTHER = CpuSchedule(query_lanes=32, key_tile=32, register_rows=2, register_vectors=1)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.desc.readable)
def test_a_right_kernel_is_ok_and_timed_beside_the_default(problem: Problem) -> None:
    default = DEFAULTS[problem.desc]
    prepare(problem, TARGET, default)
    judged = judge_measured(problem, default, TARGET, default, seconds=0.0)
    assert judged.status == "ok", judged.reason
    assert judged.error is not None and 0 < judged.error < 5
    assert judged.measured is not None and judged.default is not None
    for spread in (judged.measured, judged.default):
        assert 0 < spread.low <= spread.median <= spread.high and spread.samples >= 2
    finals = measure_finalists(problem, (default, default), TARGET, default, 0.0)
    assert len(finals) == 2 and all(f.measured is not None and f.measured.samples >= 7 for f in finals)


def skipping(text: str) -> str:
    return text.replace("(void *)arguments, tasks, threads)", "(void *)arguments, tasks - 1, threads)")


def scaling(text: str) -> str:
    return re.sub(r"float scale = (a\[\d+\]\.float32);", r"float scale = \1 * 1.01f;", text)


@pytest.mark.parametrize(
    ("change", "problem", "lanes", "said"),
    [
        (skipping, PROBLEMS[0], 64, "out is off by nan"),
        (skipping, PROBLEMS[2], 32, "is off by nan"),
        (scaling, PROBLEMS[1], 32, "dq is off by"),
        (scaling, PROBLEMS[2], 64, "dk is off by"),
    ],
    ids=["forward-skips-a-task", "keys-skip-a-task", "queries-scale", "keys-scale"],
)  # fmt: skip
def test_a_wrong_kernel_is_wrong(
    change: Any, problem: Problem, lanes: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default, schedule = DEFAULTS[problem.desc], replace(OTHER, query_lanes=lanes)
    prepare(problem, TARGET, default)

    def mutated(*request: Any) -> KernelSource:
        source = lower(*request)
        text = change(source.text)
        assert text != source.text
        return replace(source, text=text)

    request = Request(desc=problem.desc, schedule=schedule, target=TARGET)
    (built,) = build_all([request], jobs=1, store=KernelStore(tmp_path), lower=mutated)
    assert built.error is None
    monkeypatch.setenv("NSA_CODEGEN_HOME", str(tmp_path))
    judged = judge_measured(problem, schedule, TARGET, default, seconds=0.0)
    assert judged.status == "wrong" and said in judged.reason and judged.measured is None
    assert (judged.error is None) == ("nan" in said) and (judged.error is None or judged.error > 5)


def test_a_candidate_whose_text_is_known_is_not_compiled(kernels: Path) -> None:
    desc = KernelDesc.of("combine", "float32", paths=2, dv=16, gates="scalar")
    one = build_candidate(desc, OTHER, TARGET, kernels, frozenset())
    other = build_candidate(desc, replace(OTHER, key_tile=64), TARGET, kernels, frozenset({one.code}))
    assert one.key and one.resources is not None and len(one.resources["sha256"]) == 64
    assert other.same and other.code == one.code and not other.key


def test_tune_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = tmp_path / "home"
    monkeypatch.setenv("NSA_CODEGEN_HOME", str(home))
    arguments = ["tune", "--op", "select_blocks", "--trials", "2", "--jobs", "1", "--run", "tiny", "--json"]
    arguments += ["--logs", str(tmp_path / "logs"), "--measure-seconds", "0"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    (row,), (space,) = found["kernels"], found["spaces"]
    log = read_log(Path(row["log"]))
    first = log.records[0]
    wanted = 2 + (Space.of(first.desc, TARGET).shipped is not None)  # which is judged beside as many as asked for
    assert found["judge"] == "measured" and row["candidates"] == wanted and row["ok"] >= 1
    assert 0 < space["legal"] <= space["raw"]
    assert Path(row["log"]) == tmp_path / "logs" / TARGET.name / "select_blocks_fwd" / "tiny.jsonl"
    assert {"processor", "cores", "threads", "os", "compiler", "tilelang", "torch"} <= log.meta.environment.keys()
    stages = [r.stage for r in log.records]
    assert stages[:wanted] == ["search"] * wanted and stages[wanted:] and set(stages[wanted:]) == {"final"}
    assert first.status == "ok" and first.measured is not None and first.predicted is not None and first.key
    assert not home.exists(), "the user's own store was written"
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1 and "the run 'tiny' exists already" in again.stderr
    resumed = CliRunner().invoke(app, [*arguments, "--resume"])
    records, before = read_log(Path(row["log"])).records, len(log.records)
    assert resumed.exit_code == 0 and records[:before] == log.records
    finals = [Numbered(line=0, record=r) for r in log.records if r.stage == "final"]
    if verdict(first.desc, TARGET, finals).decided:
        assert records == log.records
    assert {r.stage for r in records[before:]} <= {"final"}, "only a round that decided nothing is held again"
