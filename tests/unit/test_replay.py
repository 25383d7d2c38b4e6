"""Replay: logs to rows, byte for byte; what is refused, and that nothing else is lost; rows against their records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tuning_logs_made import record, write_log, write_rows
from typer.testing import CliRunner

from nsa_codegen.cli import app
from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import ScheduleError
from nsa_codegen.index_sets import complete, window
from nsa_codegen.schedule import CpuSchedule, GpuSchedule
from nsa_codegen.selection import bucket_of, schedules_folder, select
from nsa_codegen.target import TARGETS
from nsa_codegen.tuning import records
from nsa_codegen.tuning.records import Spread, logs_folder
from nsa_codegen.tuning.replay import STATIC, replay
from nsa_codegen.tuning.rows import changes, kept_rows, merged, verify_rows
from nsa_codegen.tuning.space import default_schedule

V4, H100 = TARGETS["x86_64_v4"], TARGETS["sm_90a"]
DIMS: dict[str, Any] = {"group": 4, "dk": 64, "dv": 64}
WINDOW = KernelDesc.of("stream_attention", "float32", visible=window(512), **DIMS)
COMPLETE = KernelDesc.of("stream_attention", "float32", visible=complete(32, 16), **DIMS)
HALF = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), **DIMS)
FAST, FASTER = CpuSchedule(query_lanes=32, key_tile=32), CpuSchedule(query_lanes=16, key_tile=128)
DEFAULT = default_schedule(WINDOW, V4)
ILLEGAL = {"query_lanes": 64, "key_tile": 64, "register_rows": 8, "register_vectors": 4}


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


@pytest.fixture
def schedules(tmp_path: Path) -> Path:
    folder = tmp_path / "schedules"
    folder.mkdir()
    (folder / "fallback.toml").write_text((schedules_folder() / "fallback.toml").read_text())
    return folder


def rows_of(schedules: Path, name: str = "stream_attention_fwd/x86_64_v4.json") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((schedules / name).read_text())
    return found


def run(*arguments: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["replay", *(str(a) for a in arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_the_fastest_finalist_becomes_the_row_that_selection_then_takes(logs: Path, schedules: Path) -> None:
    write_log(
        logs,
        "x86_64_v4",
        record(WINDOW, CpuSchedule(key_tile=16), measured=0.1, stage="search"),  # no finalist: measured once, by chance
        record(WINDOW, DEFAULT, measured=1.0),
        record(WINDOW, FAST, measured=0.8, number=3),
        record(WINDOW, FASTER, measured=0.7, number=4),
        record(WINDOW, CpuSchedule(key_tile=32), measured=0.5, status="wrong"),
    )
    assert write_rows(logs, schedules) == ["stream_attention_fwd/x86_64_v4.json"]
    (row,) = rows_of(schedules)
    assert row["schedule"] == FASTER.to_json() and row["record"] == "x86_64_v4/stream_attention_fwd/run.jsonl#4"
    assert row["bucket"] == {**DIMS, "visible": "window"}
    assert row["environment"]["judge"] == "measured" and row["environment"]["processor"] == "Test Processor"
    found = select(WINDOW, V4, folder=schedules)
    assert found.schedule == FASTER and found.row == row
    assert select(HALF, V4, folder=schedules).schedule == FASTER  # the types share rows
    assert select(COMPLETE, V4, folder=schedules).source.startswith("fallback.toml")


def test_the_same_logs_give_the_same_bytes(logs: Path, schedules: Path) -> None:
    for run_name, desc, best in (("b", WINDOW, FAST), ("a", COMPLETE, FASTER)):
        write_log(logs, "x86_64_v4", record(desc, best, measured=0.5), run=run_name)
    found = replay(logs)
    write_rows(logs, schedules)
    text = (schedules / "stream_attention_fwd/x86_64_v4.json").read_text()
    assert [r["bucket"]["visible"] for r in json.loads(text)] == ["complete", "window"]
    assert replay(logs).rows == found.rows and text.endswith("]\n")
    assert write_rows(logs, schedules) == [] and changes(merged(found.rows, {}), schedules) == ""


@pytest.mark.parametrize(
    ("measured", "width", "why"),
    [
        (0.985, 0.001, "1.015 times as fast as the default: not beyond 1.02"),
        (0.9, 0.2, "1.111 times as fast as the default, which is within the spread of both"),
        (1.2, 0.01, "0.833 times as fast as the default: not beyond 1.02"),
    ],
)
def test_the_default_stays_unless_it_is_beaten_for_certain(logs: Path, measured: float, width: float, why: str) -> None:
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=measured, width=width))
    found = replay(logs)
    assert found.rows == {} and not found.refused
    assert why in found.decisions[0].verdict.reason


def test_a_finalist_beyond_doubt_wins_over_a_faster_one_within_the_spread(logs: Path) -> None:
    unsure, sure = record(WINDOW, FASTER, measured=0.7, width=0.6), record(WINDOW, FAST, measured=0.8)
    write_log(logs, "x86_64_v4", dataclasses.replace(unsure, default=sure.default), sure)
    (decision,) = replay(logs).decisions
    assert decision.row is not None and decision.row["schedule"] == FAST.to_json()


def test_the_later_run_counts_and_takes_a_row_away_too(logs: Path) -> None:
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.5, when="2026-11-24T10:00:00+00:00"), run="first")
    later = record(WINDOW, FASTER, measured=0.6, when="2026-11-25T10:00:00+00:00")
    write_log(logs, "x86_64_v4", later, run="another")
    (decision,) = replay(logs).decisions
    assert decision.row is not None and decision.row["schedule"] == FASTER.to_json()
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=1.0, when="2026-11-26T10:00:00+00:00"), run="last")
    assert replay(logs).rows == {}
    # A run that came to no end has no finalist, and says nothing.
    unended = record(WINDOW, FAST, measured=0.5, stage="search", when="2026-11-27T10:00:00+00:00")
    write_log(logs, "x86_64_v4", unended, run="stopped")
    assert replay(logs).decisions[0].log.endswith("/last.jsonl")


def test_a_run_that_is_not_sure_says_nothing_against_an_earlier_one(logs: Path) -> None:
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.5), run="quiet")
    noisy = record(WINDOW, FASTER, measured=0.9, width=0.2, when="2026-11-25T10:00:00+00:00")
    write_log(logs, "x86_64_v4", noisy, run="noisy")
    (decision,) = replay(logs).decisions
    assert decision.log.endswith("/quiet.jsonl") and decision.row is not None
    sure = record(WINDOW, FASTER, measured=0.9, when="2026-11-26T10:00:00+00:00")
    write_log(logs, "x86_64_v4", sure, run="noisy")  # its final round again, of which the last one counts
    (decision,) = replay(logs).decisions
    assert decision.row is not None and decision.row["schedule"] == FASTER.to_json()


def test_a_run_that_is_not_sure_takes_away_what_it_found_no_faster(logs: Path) -> None:
    """An earlier winner that is held to the default again, as kernels or machines change; nor is one before it back."""
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.5, when="2026-11-23T10:00:00+00:00"), run="first")
    write_log(logs, "x86_64_v4", record(WINDOW, FASTER, measured=0.5), run="second")
    noisy = record(WINDOW, FAST, measured=0.9, width=0.2, when="2026-11-25T10:00:00+00:00")
    write_log(logs, "x86_64_v4", noisy, run="third")
    (decision,) = replay(logs).decisions
    assert decision.log.endswith("/second.jsonl") and decision.row is not None
    slower = record(WINDOW, FASTER, measured=1.1, width=0.2, when="2026-11-25T10:00:01+00:00")
    write_log(logs, "x86_64_v4", slower, run="third")
    write_log(logs, "x86_64_v4", dataclasses.replace(noisy, when="2026-11-25T10:00:02+00:00", error=1.0), run="third")
    assert replay(logs).rows == {}


@pytest.mark.parametrize(("low", "beaten"), [(1.01, True), (0.99, False)])
def test_turns_tell_more_than_times(logs: Path, low: float, beaten: bool) -> None:
    """A clock that changes between turns widens the spread of times, and not that of turns."""
    noisy = record(WINDOW, FAST, measured=0.9, width=0.3)
    by_turn = Spread(median=1.1, low=low, high=1.2, samples=9)
    write_log(logs, "x86_64_v4", dataclasses.replace(noisy, gain=by_turn))
    (decision,) = replay(logs).decisions
    assert (decision.row is not None) == beaten
    assert "1.10 times" in decision.verdict.reason or "within the spread" in decision.verdict.reason


def test_what_was_measured_outranks_what_was_compiled_only(logs: Path, schedules: Path) -> None:
    gpu = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), group=16, dk=192, dv=128)
    default = default_schedule(gpu, H100)
    better, best = GpuSchedule(rows=64, key_tile=32, stages=2), GpuSchedule(rows=64, key_tile=64, stages=3)
    static = [
        record(gpu, default, predicted=1.0, spill_bytes=0),
        record(gpu, better, predicted=0.6, spill_bytes=0),
        record(gpu, best, predicted=0.2, spill_bytes=64),
    ]
    write_log(logs, "sm_90a", *static, run="static")
    write_rows(logs, schedules)
    (row,) = rows_of(schedules, "stream_attention_fwd/sm_90a.json")
    assert row["schedule"] == better.to_json()  # the fastest one spills
    assert row["environment"] == {"judge": STATIC, "compiler": "gcc 12", "tilelang": "0.1.15"}  # of no device
    old = record(gpu, best, measured=0.5, when="2020-01-01T00:00:00+00:00")
    write_log(logs, "sm_90a", old, run="measured", environment={"gpu": "H100", "driver": "580"})
    write_rows(logs, schedules)
    (row,) = rows_of(schedules, "stream_attention_fwd/sm_90a.json")
    assert row["schedule"] == best.to_json() and row["environment"]["gpu"] == "H100"


def test_a_static_winner_needs_a_default_that_was_compiled_too(logs: Path) -> None:
    gpu = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), group=16, dk=192, dv=128)
    better = GpuSchedule(rows=64, key_tile=32, stages=2)
    write_log(logs, "sm_90a", record(gpu, better, predicted=0.6, spill_bytes=0), run="a")
    assert "the default was not compiled" in replay(logs).decisions[0].verdict.reason
    failed = record(gpu, default_schedule(gpu, H100), predicted=None, status="failed")
    write_log(logs, "sm_90a", failed, run="a")
    (decision,) = replay(logs).decisions
    assert decision.row is not None and decision.row["schedule"] == better.to_json()


def test_a_default_that_spills_makes_way_for_the_best_that_does_not(logs: Path) -> None:
    gpu = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), group=16, dk=192, dv=128)
    slower, slowest = GpuSchedule(rows=64, key_tile=32, stages=2), GpuSchedule(rows=64, key_tile=32, stages=1)
    spilling = record(gpu, default_schedule(gpu, H100), predicted=0.5, spill_bytes=32)
    others = [record(gpu, s, predicted=t, spill_bytes=0) for s, t in ((slowest, 1.0), (slower, 0.8))]
    write_log(logs, "sm_90a", spilling, *others, run="a")
    (decision,) = replay(logs).decisions
    assert decision.row is not None and decision.row["schedule"] == slower.to_json()
    assert "0.62 times as fast as the default, which spills" in decision.verdict.reason


def test_refused_lines_and_candidates_are_named_and_nothing_else_is_lost(logs: Path, schedules: Path) -> None:
    path = write_log(
        logs,
        "x86_64_v4",
        record(WINDOW, ILLEGAL, measured=0.1),
        record(WINDOW, FAST, measured=0.5),
        record(COMPLETE, FASTER, measured=0.5),
    )
    lines = path.read_text().splitlines(keepends=True)
    other = json.loads(lines[1]) | {"format": 99}
    unknown = json.loads(lines[1]) | {"status": "fine"}
    garbage = ["{not json}\n", json.dumps(other) + "\n", json.dumps(unknown) + "\n"]
    path.write_text("".join([*lines, *garbage]) + '{"torn": ')
    code, out, err = run("--logs", logs, "--schedules", schedules)
    assert code == 1
    for said in (
        "run.jsonl line 1: a register tile of 32 vectors needs 37 registers",
        "run.jsonl line 4: not JSON",
        "run.jsonl line 5: the record is of format 99",
        "run.jsonl line 6: the record's status is 'fine'",
    ):
        assert said in " ".join(err.split()), said
    assert "error: x86_64_v4/stream_attention_fwd/run.jsonl line 7" not in err  # torn, which a killed writer leaves
    assert [r["schedule"] for r in rows_of(schedules)] == [FASTER.to_json(), FAST.to_json()]
    assert "wrote stream_attention_fwd/x86_64_v4.json" in out


def test_a_torn_last_line_is_a_warning_and_no_failure(logs: Path, schedules: Path) -> None:
    path = write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.5))
    whole = path.read_text()
    assert run("--logs", logs, "--schedules", schedules)[0::2] == (0, "")
    path.write_text(whole + '{"torn": ')
    for given in ((), ("--check",)):
        code, _, err = run("--logs", logs, "--schedules", schedules, *given)
        (line,) = err.splitlines()
        assert code == 0 and line.startswith(
            "warning: x86_64_v4/stream_attention_fwd/run.jsonl line 2: torn, and left out"
        )
    code, out, _ = run("--logs", logs, "--schedules", schedules, "--check", "--json")
    assert code == 0 and len(json.loads(out)["torn"]) == 1
    path.write_text(whole.rstrip("\n"))  # a whole line, though none is after it
    assert replay(logs).torn == () and len(replay(logs).decisions) == 1


def test_a_log_of_a_damaged_meta_or_another_target_is_refused_alone(logs: Path) -> None:
    kept = write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.5), run="kept")
    broken = write_log(logs, "x86_64_v4", record(COMPLETE, FAST, measured=0.5), run="broken")
    broken.with_name("broken.meta.json").write_text("{}")
    moved = logs / "x86_64_v3" / "stream_attention_fwd"
    moved.mkdir(parents=True)
    for suffix in (".jsonl", ".meta.json"):
        (moved / f"kept{suffix}").write_text(kept.with_name(f"kept{suffix}").read_text())
    found = replay(logs)
    assert [d.desc for d in found.decisions] == [WINDOW]
    said = "\n".join(found.refused)
    assert (
        "broken.jsonl: its meta is refused" in said
        and "of the target 'x86_64_v4', and its folder of 'x86_64_v3'" in said
    )


def test_check_shows_the_difference_and_changes_nothing(logs: Path, schedules: Path) -> None:
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.5))
    code, out, _ = run("--logs", logs, "--schedules", schedules, "--check")
    assert code == 1 and not (schedules / "stream_attention_fwd").exists()
    assert "+++ replayed/stream_attention_fwd/x86_64_v4.json" in out and '+   "key_tile": 32' in out
    assert run("--logs", logs, "--schedules", schedules)[0] == 0
    code, out, _ = run("--logs", logs, "--schedules", schedules, "--check")
    assert code == 0 and "schedules/ is what the logs give" in out
    path = schedules / "stream_attention_fwd" / "x86_64_v4.json"
    path.write_text(path.read_text().replace('"key_tile": 32', '"key_tile": 64'))
    code, out, err = run("--logs", logs, "--schedules", schedules, "--check")
    assert code == 1 and '-   "key_tile": 64' in out and "its record's" in err
    assert run("--logs", logs, "--schedules", schedules)[0] == 0  # and put right again
    assert rows_of(schedules)[0]["schedule"] == FAST.to_json()


def test_a_row_that_its_log_gives_no_more_is_taken_away(logs: Path, schedules: Path) -> None:
    path = write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.5), record(COMPLETE, FASTER, measured=0.5))
    write_rows(logs, schedules)
    path.write_text(path.read_text().splitlines(keepends=True)[1])
    assert write_rows(logs, schedules) == ["stream_attention_fwd/x86_64_v4.json"]
    assert [r["bucket"]["visible"] for r in rows_of(schedules)] == ["complete"]
    path.write_text("")
    assert write_rows(logs, schedules) == ["stream_attention_fwd/x86_64_v4.json"]
    assert list(schedules.glob("*/*.json")) == []


def test_rows_of_logs_that_are_elsewhere_stay_until_a_log_decides_their_bucket(
    tmp_path: Path, logs: Path, schedules: Path
) -> None:
    own, small = (
        tmp_path / "own",
        KernelDesc.of("stream_attention", "float32", visible=window(512), group=1, dk=32, dv=32),
    )
    gpu = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), group=16, dk=192, dv=128)
    write_log(logs, "x86_64_v4", *(record(desc, FAST, measured=0.5) for desc in (WINDOW, COMPLETE, small)))
    default = record(gpu, default_schedule(gpu, H100), predicted=1.0, spill_bytes=0)
    write_log(logs, "sm_90a", default, record(gpu, GpuSchedule(key_tile=32), predicted=0.5, spill_bytes=0))
    write_rows(logs, schedules)
    before = {p: p.read_text() for p in schedules.glob("*/*.json")}
    assert len(before) == 2 and len(rows_of(schedules)) == 3
    write_log(own, "x86_64_v4", record(WINDOW, FASTER, measured=0.5), record(COMPLETE, FAST, measured=2.0), run="own")
    code, out, err = run("--logs", own, "--schedules", schedules)
    assert (code, err) == (0, "") and "2 rows whose logs are not here" in out
    assert [p for p, text in before.items() if p.read_text() != text] == [
        schedules / "stream_attention_fwd" / "x86_64_v4.json"
    ]
    assert {r["bucket"]["dk"]: (r["record"], r["schedule"]) for r in rows_of(schedules)} == {
        32: ("x86_64_v4/stream_attention_fwd/run.jsonl#3", FAST.to_json()),
        64: ("x86_64_v4/stream_attention_fwd/own.jsonl#1", FASTER.to_json()),
    }  # and of complete blocks the default was better here


@pytest.mark.parametrize("damage", ["meta", "line"])
def test_rows_of_what_is_refused_stay_as_they_are(logs: Path, schedules: Path, damage: str) -> None:
    path = write_log(logs, "x86_64_v4", record(WINDOW, FASTER, measured=0.8), record(WINDOW, FAST, measured=0.5))
    write_rows(logs, schedules)
    (before,) = rows_of(schedules)
    assert before["record"].endswith("#2")
    if damage == "meta":
        path.with_name("run.meta.json").write_text("{}")
    else:
        path.write_text(path.read_text().splitlines(keepends=True)[0] + "{garbage}\n")
    code, out, err = run("--logs", logs, "--schedules", schedules)
    assert code == 1 and "refused" in out and "error: x86_64_v4/stream_attention_fwd/run.jsonl" in err
    assert rows_of(schedules) == [before]


WRONG = record(WINDOW, FAST, measured=0.4, status="wrong", stage="search")


def edited(row: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return row | changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"record": ".../../stream_attention_fwd/run.jsonl#1"}, "it must be"),
        ({"record": "x86_64_v4/stream_attention_fwd/../run.jsonl#1"}, "it must be"),
        ({"record": "somewhere"}, "it must be 'x86_64_v4/stream_attention_fwd/<run>.jsonl#<line>'"),
        ({"record": "x86_64_v4/stream_attention_fwd/none.jsonl#1"}, "none.jsonl is missing"),
        ({"record": "x86_64_v4/stream_attention_fwd/run.jsonl#9"}, "is not there or not intact"),
        ({"record": "x86_64_v4/stream_attention_fwd/run.jsonl#2"}, "its record's status is 'wrong'"),
        ({"schedule": FASTER.to_json()}, "its schedule is"),
        ({"schedule": ILLEGAL}, "is not legal for"),
        ({"bucket": {"dk": 128}}, "does not fit its record's"),
    ],
)
def test_an_edited_row_is_an_error(logs: Path, schedules: Path, changes: dict[str, Any], said: str) -> None:
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.5), WRONG)
    write_rows(logs, schedules)
    assert verify_rows(schedules, logs) == []
    (row,) = rows_of(schedules)
    (schedules / "stream_attention_fwd" / "x86_64_v4.json").write_text(json.dumps([row, edited(row, **changes)]))
    wrong = verify_rows(schedules, logs)
    assert wrong and all(w.startswith("stream_attention_fwd/x86_64_v4.json row 1: ") for w in wrong)
    assert any(said in w for w in wrong), wrong


def test_a_row_without_a_record_or_a_file_that_is_none_is_an_error(logs: Path, schedules: Path) -> None:
    path = schedules / "combine_fwd" / "x86_64_v4.json"
    path.parent.mkdir()
    path.write_text(json.dumps([{"bucket": {}, "schedule": {}, "record": "", "environment": {}}]))
    assert "a record that is not empty" in verify_rows(schedules, logs)[0]
    path.write_text("{}")
    assert "it must be a list of rows" in verify_rows(schedules, logs)[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("bucket", []), ("bucket", {"dk": [1]}), ("schedule", []), ("record", 3), ("environment", "none")],
)
def test_a_row_with_a_field_of_another_type_is_one_error(
    logs: Path, schedules: Path, field: str, value: object
) -> None:
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.5))
    write_rows(logs, schedules)
    path = schedules / "stream_attention_fwd" / "x86_64_v4.json"
    path.write_text(json.dumps([edited(rows_of(schedules)[0], **{field: value})]))
    with pytest.raises(ScheduleError, match=f"row 0: its {field} is "):
        select(WINDOW, V4, folder=schedules)
    code, _, err = run("--logs", logs, "--schedules", schedules, "--check")
    assert code == 1 and f"row 0: its {field} is " in " ".join(err.split())
    assert run("--logs", logs, "--schedules", schedules)[0] == 0
    assert select(WINDOW, V4, folder=schedules).schedule == FAST


def test_the_committed_rows_are_those_of_the_committed_logs() -> None:
    """Both folders may be empty; every row that there is has its record, and the logs give no other rows."""
    logs, schedules = logs_folder(), schedules_folder()
    found = replay(logs)
    assert found.refused == ()
    assert verify_rows(schedules, logs) == []
    assert kept_rows(found, schedules) == {}
    assert changes(merged(found.rows, {}), schedules) == ""
    assert len(found.rows) == len(list(schedules.glob("*/*.json")))


def test_one_function_says_where_logs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout's, whatever the working directory; that of the working directory for an installed package."""
    monkeypatch.chdir(tmp_path)
    assert logs_folder() == Path(__file__).parents[2] / "tuning_logs"
    installed = tmp_path / "site-packages" / "nsa_codegen" / "tuning" / "records.py"
    monkeypatch.setattr(records, "__file__", str(installed))
    assert logs_folder() == tmp_path / "tuning_logs"
    (path,) = (write_log(tmp_path / "tuning_logs", "x86_64_v4", record(WINDOW, FAST, measured=0.5)),)
    done = CliRunner().invoke(app, ["tune", "--report", str(tmp_path / "page")])
    assert done.exit_code == 0, done.stderr
    assert path.name in (tmp_path / "page" / "report.html").read_text()
    code, out, _ = run("--schedules", tmp_path / "schedules")
    assert code == 0 and "wrote stream_attention_fwd/x86_64_v4.json" in out


def test_a_static_judge_must_beat_the_default_by_more(logs: Path) -> None:
    """3 % are enough of a clock, and not of a model."""
    gpu = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), group=16, dk=192, dv=128)
    better = GpuSchedule(rows=64, key_tile=32, stages=2)
    static = [record(gpu, s, predicted=p, spill_bytes=0) for s, p in ((default_schedule(gpu, H100), 1.03), (better, 1))]
    write_log(logs, "sm_90a", *static)
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=1 / 1.03, width=0.001))
    found = {d.arch: d for d in replay(logs).decisions}
    assert found["sm_90a"].row is None and found["x86_64_v4"].row is not None
    assert "predicted 1.030 times as fast as the default: not beyond 1.05" in found["sm_90a"].verdict.reason


def test_a_default_that_was_measured_best_is_not_overruled_along_the_chain(logs: Path, schedules: Path) -> None:
    child = TARGETS["x86_64_v4_bf16"]  # whose chain goes on with V4
    write_log(logs, V4.name, record(WINDOW, FASTER, measured=0.5))
    for desc in (WINDOW, COMPLETE):  # of which the second has no row to be kept from
        upheld = (record(desc, DEFAULT, measured=1.0), record(desc, FASTER, measured=1.2, number=1))
        write_log(logs, child.name, *upheld, run="window" if desc == WINDOW else "complete")
    write_rows(logs, schedules)
    assert select(WINDOW, V4, folder=schedules).schedule == FASTER
    assert select(WINDOW, child, folder=schedules).schedule == DEFAULT
    assert verify_rows(schedules, logs) == []
    assert len(rows_of(schedules, f"stream_attention_fwd/{child.name}.json")) == 1


def test_descs_that_share_a_bucket_leave_one_row_the_greater_gain(logs: Path) -> None:
    assert bucket_of(WINDOW, V4) == bucket_of(HALF, V4)
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.8), record(HALF, FASTER, measured=0.5))
    (row,) = replay(logs).rows["stream_attention_fwd/x86_64_v4.json"]
    assert row["schedule"] == FASTER.to_json()


def test_a_folder_without_logs_is_named(tmp_path: Path, schedules: Path) -> None:
    code, _, err = run("--logs", tmp_path / "none", "--schedules", schedules)
    assert code == 1 and "is not a folder" in err


def test_json_has_everything(logs: Path, schedules: Path) -> None:
    write_log(logs, "x86_64_v4", record(WINDOW, FAST, measured=0.5))
    code, out, _ = run("--logs", logs, "--schedules", schedules, "--json")
    data = json.loads(out)
    assert code == 0 and data["changed"] == ["stream_attention_fwd/x86_64_v4.json"] and data["refused"] == []
    assert data["decisions"][0]["why"] == "2.00 times as fast as the default, measured"
