"""The search, with stand-ins for building and measuring: every candidate a record, whatever it does; shared studies."""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tuning_fakes as fakes
from tuning_fakes import DESC, META, TARGET

from nsa_codegen.errors import TuningError, TuningLogError
from nsa_codegen.tuning import kernel_search, search, winners
from nsa_codegen.tuning.options import Tools
from nsa_codegen.tuning.records import Judged, append, log_path, read_log
from nsa_codegen.tuning.search import Tuner, require_new_run
from nsa_codegen.tuning.study import SharedStudy, open_storage
from nsa_codegen.tuning.winners import Numbered, verdict

TOOLS = Tools(
    build=fakes.build, prepare=fakes.nothing, judge=fakes.judge, finals=fakes.finals, static=fakes.static,
    prerequisites=fakes.nothing,
)  # fmt: skip
LOG = log_path(Path("logs"), TARGET.name, DESC, META.run)


@pytest.fixture(autouse=True)
def small_space(monkeypatch):
    """Searches are of twelve schedules; twelve others, of 40 vectors, are refused."""
    monkeypatch.setattr(kernel_search.Space, "of", fakes.small_space)
    monkeypatch.setattr(winners, "default_schedule", lambda desc, target: fakes.DEFAULT)


def tune(folder, tools=TOOLS, **given):
    """Return what is found, the legal records of the search by (lanes, keys), and those of the final round."""
    with Tuner(fakes.options_in(folder, **given), tools=tools) as tuner:
        found = tuner.tune(fakes.LightProblem())
    records = read_log(folder / LOG).records
    assert found.records == tuple(sorted((r for r in records if r.stage == "search"), key=lambda r: r.number))
    legal = [r for r in found.records if r.status != "illegal"]
    search = {(r.schedule["query_lanes"], r.schedule["key_tile"]): r for r in legal}
    assert len(search) == len(legal), "a schedule was judged twice"
    return found, search, [r for r in records if r.stage == "final"]


def judged_in(folder):
    """Return (lanes, keys) of everything that was judged, in any process, and by how many tuners."""
    lines = [line.split() for line in (folder / "judged.txt").read_text().splitlines()]
    return [(int(lanes), int(keys)) for lanes, keys, _ in lines], len({tuner for *_, tuner in lines})


def test_whatever_a_candidate_does_is_a_record_and_the_search_goes_on(tmp_path):
    found, search, finals = tune(tmp_path, seconds=2.5)
    assert len(search) == 12 and found.best.schedule["key_tile"] == 8 and found.gain == 8.0
    assert search[64, 64].number == 0, "the default comes first"
    said = {
        (16, 8): ("crashed", "ended by SIGSEGV"),
        (16, 16): ("timeout", "not done after 2.5 s"),
        (16, 32): ("failed", "building it: ValueError: no text for it"),
        (16, 64): ("failed", "RuntimeError: the kernel returned 7"),
        (32, 8): ("wrong", "out is off"),
        (64, 32): ("same", "its text is that of candidate 0"),
    }
    for place, (status, reason) in said.items():
        assert search[place].status == status and reason in search[place].reason, place
    twins = {search[32, 32].status, search[32, 64].status}
    assert twins == {"ok", "same"}
    statuses = Counter(r.status for r in search.values())
    assert statuses == {"ok": 5, "same": 2, "failed": 2, "crashed": 1, "timeout": 1, "wrong": 1}
    assert search[64, 32].same_as == 0 and search[64, 32].measured is None
    ok = search[64, 8]
    assert ok.speedup == 8.0 and ok.error == 1.0 and ok.key and ok.resources["sha256"] and ok.predicted["seconds"] > 0
    assert [r.schedule["key_tile"] for r in finals] == [8, 16, 16, 32, 8, 8] and all(r.speedup for r in finals)
    assert found.default == search[64, 64] and found.finals == tuple(finals)


def test_a_run_is_not_begun_twice_and_goes_on_only_on_its_own_device(tmp_path):
    options = fakes.options_in(tmp_path, trials=2)
    require_new_run(options)
    _, search, _ = tune(tmp_path, trials=2)
    assert len(search) == 2
    with pytest.raises(TuningError, match=r"run 'r' exists already for x86_64_v4 .*--resume"):
        require_new_run(options)
    with pytest.raises(TuningError, match="processor 'p', and this run of 'q'"):
        tune(tmp_path, meta=replace(META, environment={"processor": "q", "cores": 2}))
    with pytest.raises(TuningError, match="of another device or judge"):
        tune(tmp_path, logs=tmp_path / "elsewhere", meta=replace(META, environment={"processor": "q"}))


def test_a_run_goes_on_from_its_log_when_the_storage_is_lost(tmp_path):
    """As if the storage were there: numbers, schedules, and twins go on; nothing is judged twice."""
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge)
    tune(tmp_path, tools, trials=4)
    text = (tmp_path / LOG).read_text()
    tune(tmp_path, tools, trials=4, storage=f"sqlite:///{tmp_path / 'second.db'}")
    assert (tmp_path / LOG).read_text() == text
    _, search, _ = tune(tmp_path, tools, trials=6, storage=f"journal:///{tmp_path / 'third'}")
    assert (tmp_path / LOG).read_text().startswith(text) and len(search) == 6
    judged, _ = judged_in(tmp_path)
    assert len(judged) == len(set(judged)) == 6
    _, search, _ = tune(tmp_path, tools, trials=8)  # the first storage, which lacks what the third added
    assert len(search) == 8
    numbers = [r.number for r in read_log(tmp_path / LOG).records if r.stage == "search"]
    assert len(numbers) == len(set(numbers)) == 8


def test_one_log_is_not_written_by_tuners_of_two_storages(tmp_path):
    tune(tmp_path, trials=3)
    text = (tmp_path / LOG).read_text()
    storage = f"sqlite:///{tmp_path / 'other.db'}"
    (tmp_path / "elsewhere").mkdir()
    tune(tmp_path / "elsewhere", trials=5, storage=storage, seed=1)
    with pytest.raises(TuningError, match=r"is another in the storage than in the log: name the --storage"):
        tune(tmp_path, trials=5, storage=storage)
    record = read_log(tmp_path / LOG).records[1]
    with pytest.raises(TuningLogError, match=r"has another candidate 1 of .*let one storage serve"):
        append(tmp_path / LOG, replace(record, when="2020-01-01T00:00:00+00:00"))
    assert (tmp_path / LOG).read_text() == text


def test_a_run_that_is_done_stays_as_it_is_and_more_trials_add_to_it(tmp_path):
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge)
    tune(tmp_path, tools, trials=3)
    text = (tmp_path / LOG).read_text()
    tune(tmp_path, tools, trials=3)
    assert (tmp_path / LOG).read_text() == text
    _, search, finals = tune(tmp_path, tools, trials=5)
    assert len(search) == 5 and (tmp_path / LOG).read_text().startswith(text) and len(finals) == 2 + 2 + 4 + 2
    judged, _ = judged_in(tmp_path)
    assert len(judged) == len(set(judged)) == 5


def test_a_final_round_that_decides_nothing_is_held_again_by_who_resumes(tmp_path):
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge)
    _, _, first = tune(tmp_path, replace(tools, finals=fakes.unsure_finals), trials=3)
    assert len(first) == 2
    _, search, finals = tune(tmp_path, tools, trials=3)
    assert finals[:2] == first and len(finals) == 2 + 2 + 2 and len(search) == 3
    assert len(tune(tmp_path, tools, trials=3)[2]) == 6  # that one did


def test_what_wins_against_others_is_held_to_the_default_by_itself(tmp_path):
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge)
    found, _, finals = tune(tmp_path, replace(tools, finals=fakes.lucky_finals), trials=4)
    assert len(finals) == 3 + 1 and finals[3].schedule == finals[0].schedule
    assert found.gain == 0.99 and found.best == finals[3]
    numbered = [Numbered(line=i, record=r) for i, r in enumerate(read_log(tmp_path / LOG).records, start=1)]
    said = verdict(fakes.DESC, fakes.TARGET, numbered)
    assert said.winner is None and said.decided and said.beaten == (finals[3].schedule,)


def test_a_final_round_has_the_time_of_all_that_it_measures(tmp_path):
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge, finals=fakes.slow_finals)
    found, _, finals = tune(tmp_path, tools, trials=4, seconds=1.5)
    assert finals and {r.status for r in finals} == {"ok"} and found.gain is not None


def test_a_claim_that_another_tuner_took_over_is_that_ones(tmp_path, monkeypatch):
    """As of a machine that slept: what it judged is not logged twice, and what it had claimed is not given up twice."""
    lost = []

    class Overtaken(kernel_search.KernelSearch):
        def judge(self, claims):
            if not lost:
                lost.extend(claims)
                for claim in claims:
                    self.study.give_up(claim, "its tuner is gone")
            super().judge(claims)

    monkeypatch.setattr(search, "KernelSearch", Overtaken)
    found, legal, _ = tune(tmp_path, trials=4)
    assert len(lost) > 1 and len(legal) >= 4
    assert not {claim.number for claim in lost} & {r.number for r in found.records}


def test_a_final_round_that_fails_ends_the_search(tmp_path):
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge, finals=fakes.finals_of_several)
    found, _, finals = tune(tmp_path, tools, trials=4)
    assert [r.status for r in finals] == ["ok"] * 3 + ["failed"] and found.gain is not None


def test_the_shipped_schedule_is_judged_and_a_finalist(tmp_path, monkeypatch):
    """However many are better, and beyond the trials; so that a row that has become slower is found out."""
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge)
    shipped = fakes.CpuSchedule(key_tile=64, query_lanes=32)
    space = functools.partial(fakes.small_space, shipped=shipped)
    monkeypatch.setattr(kernel_search.Space, "of", space)
    _, search, finals = tune(tmp_path, tools, trials=10)
    assert len(search) == 11 and search[32, 64].number == 1
    assert shipped.to_json() in [dict(r.schedule) for r in finals] and len(finals) == 4 + 1 + 2


def test_a_lost_log_is_written_again_from_the_study(tmp_path):
    _, search, _ = tune(tmp_path, trials=3)
    (tmp_path / LOG).unlink()
    _, again, _ = tune(tmp_path, trials=3)
    assert again == search


def test_a_default_that_does_not_work_ends_the_search_of_its_kernel(tmp_path):
    with pytest.raises(TuningError, match=r"the default schedule of combine_fwd.* is wrong, .*: every one is off"):
        tune(tmp_path, replace(TOOLS, judge=all_wrong))
    (record,) = read_log(tmp_path / LOG).records
    assert record.status == "wrong"


def all_wrong(*_):
    return Judged(status="wrong", reason="every one is off")


def test_inputs_that_can_not_be_made_are_an_error_of_the_tuner_and_no_record(tmp_path):
    with pytest.raises(TuningError, match=r"can't be judged; making its inputs failed: TypeError"):
        tune(tmp_path, replace(TOOLS, prepare=len))
    assert read_log(tmp_path / LOG).records == ()


def test_with_more_schedules_than_trials_the_sampler_chooses_and_what_it_may_not_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_search, "_PREDICTED_LEAST", 2)
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge)
    found, search, _ = tune(tmp_path, tools, trials=9)
    assert len(search) == 9 and {r.status for r in search.values()} == {"ok"}
    illegal = [r for r in found.records if r.status == "illegal"]
    assert illegal and all("a register tile of 160 vectors" in r.reason and r.predicted is None for r in illegal)
    assert len({tuple(r.schedule.values()) for r in illegal}) == len(illegal)


def test_few_trials_are_the_default_and_what_the_cost_model_says_is_best(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_search, "predict", lambda desc, s, target, sizes: Predicted(s.key_tile * s.query_lanes))
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge)
    found, search, _ = tune(tmp_path, tools, trials=5)
    default = found.space.default
    places = [(s.query_lanes, s.key_tile) for s in found.space.legal if s != default]
    best = sorted(places, key=lambda place: place[0] * place[1])[:4]
    assert list(search) == [(default.query_lanes, default.key_tile), *best]


def test_the_static_judge_compiles_the_best_predicted_until_enough_do_not_spill(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_search, "predict", lambda desc, s, target, sizes: Predicted(s.key_tile))
    found, search, finals = tune(tmp_path, meta=replace(META, judge="static"), compiled=3, trials=12)
    assert not finals and not (tmp_path / "judged.txt").exists()
    good = [r for r in search.values() if r.status == "ok" and not r.resources["spill_bytes"]]
    assert {(r.schedule["query_lanes"], r.schedule["key_tile"]) for r in good} == {
        (16, 8),
        (16, 16),
        (16, 32),
        (64, 64),
    }
    assert {r.judge for r in search.values()} == {"static"}
    assert {r.status for p, r in search.items() if p[0] == 32} == {"failed"}
    assert found.gain == 8.0 and found.best.schedule["key_tile"] == 8


def test_a_default_that_is_new_since_is_compiled_by_a_run_that_goes_on_and_lacks_nothing_else(tmp_path, monkeypatch):
    static = replace(META, judge="static")
    found, search, _ = tune(tmp_path, meta=static, compiled=3)
    other = next(s for s in found.space.legal if (s.query_lanes, s.key_tile) not in search)
    monkeypatch.setattr(kernel_search.Space, "of", lambda desc, target: replace(found.space, default=other))
    _, again, _ = tune(tmp_path, meta=static, compiled=1)
    assert again.keys() - search.keys() == {(other.query_lanes, other.key_tile)}


@pytest.mark.parametrize(
    ("kind", "judge", "changed", "said"),
    [  # a new default's value, that of a field that the kernel does not read, and a field of its own
        ("journal", "measured", {"key_tile": (*fakes.TILES, 128)}, r"\(\(8, 16, 32, 64\), \(8, 16, 32, 64, 128\)\)"),
        ("sqlite", "static", {"register_rows": (8,)}, r"\(\(4,\), \(8,\)\)"),
        ("sqlite", "measured", {"unrolled": (1, 2)}, r"\(None, \(1, 2\)\)"),
    ],
)
def test_a_run_of_another_space_is_refused_and_goes_on_in_its_own(tmp_path, monkeypatch, kind, judge, changed, said):
    given = {"meta": replace(META, judge=judge), "storage": f"{kind}:///{tmp_path / 'study'}"}
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge)
    found, before, _ = tune(tmp_path, tools, trials=3, compiled=2, **given)
    texts = {p: p.read_bytes() for p in (tmp_path / "logs").rglob("*.json*")}
    other = replace(found.space, raw=99, axes=found.space.axes | changed)
    with monkeypatch.context() as patch:
        patch.setattr(kernel_search.Space, "of", lambda desc, target: other)
        with pytest.raises(TuningError, match=rf"is of another space, .*{said}.*; choose another --run"):
            tune(tmp_path, tools, trials=6, compiled=4, **given)
    assert {p: p.read_bytes() for p in (tmp_path / "logs").rglob("*.json*")} == texts
    _, after, _ = tune(tmp_path, tools, trials=6, compiled=4, **given)
    assert len(after) > len(before) and before.items() <= after.items()


def test_axes_are_compared_before_the_first_candidate_is_judged(tmp_path):
    """A tuner that ended then leaves a trial, whose axes the study keeps."""
    storage, axes = open_storage(f"journal:///{tmp_path / 'study'}"), {"key_tile": (8, 16), "query_lanes": (16, 32)}
    first = SharedStudy(storage, "s", axes, seed=0)
    assert first.ask({"key_tile": 8, "query_lanes": 16}) is not None
    SharedStudy(storage, "s", axes, seed=0).require_axes()
    other = SharedStudy(storage, "s", axes | {"key_tile": (8, 16, 32)}, seed=0)
    with pytest.raises(TuningError, match=r"'key_tile': \(\(8, 16\), \(8, 16, 32\)\)"):
        other.require_axes()


class Predicted:
    def __init__(self, tile):
        self.seconds = tile * 1e-3

    def to_json(self):
        return {"seconds": self.seconds}


def process(folder, trials=12):
    return subprocess.Popen(
        [sys.executable, fakes.__file__, str(folder), str(trials)],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs have it ignored
    )


@contextlib.contextmanager
def postgresql():
    """Yield the URL of an empty database of a PostgreSQL server of our own; skips where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = Path(shutil.which("initdb") or (found[-1] if found else ""))
    if not initdb.name:
        pytest.skip("no PostgreSQL server is installed")
    folder = Path(tempfile.mkdtemp(prefix="nsa-pg-", dir="/tmp"))  # short: sockets have paths of 107 letters
    other: dict[str, Any] = {"cwd": folder, "check": True, "stdout": subprocess.DEVNULL}
    if os.getuid() == 0:  # whom the server refuses to run for
        shutil.chown(folder, "postgres")
        other["user"] = "postgres"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = [initdb.with_name("pg_ctl"), "--pgdata", folder / "data", "--wait"]
    options = f"-k {folder} -p {port} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run([initdb, "--pgdata", folder / "data", "--auth", "trust", "--username", "tuner"], **other)
    subprocess.run([*server, "--log", folder / "log", "--options", options, "start"], **other)
    try:
        yield f"postgresql+psycopg://tuner@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*server, "--mode", "immediate", "stop"], **other)
        shutil.rmtree(folder)


@pytest.mark.parametrize(("kind", "trials"), [("journal", 10), ("sqlite", 12), ("postgresql", 12)])
def test_two_tuners_divide_the_work_and_leave_one_log(tmp_path, kind, trials, monkeypatch):
    with postgresql() if kind == "postgresql" else contextlib.nullcontext(f"{kind}:///{tmp_path / 'study'}") as url:
        monkeypatch.setenv("TUNING_FAKES_STORAGE", url)
        divide_the_work(tmp_path, trials, monkeypatch)


def divide_the_work(tmp_path, trials, monkeypatch):
    monkeypatch.setenv("TUNING_FAKES_SLOW", "0.2")
    monkeypatch.setenv("TUNING_FAKES_TOGETHER", "2")
    tuners = [process(tmp_path, trials) for _ in range(2)]
    errors = [t.communicate(timeout=100)[1].decode() for t in tuners]
    assert [t.returncode for t in tuners] == [0, 0], errors
    judged, by = judged_in(tmp_path)
    assert by == 2, "one tuner did it all"
    assert len(judged) == len(set(judged)) == trials
    records = read_log(tmp_path / LOG).records
    search, finals = ([r for r in records if r.stage == s and r.status == "ok"] for s in ("search", "final"))
    assert len(search) == len({tuple(r.schedule.values()) for r in search}) == len({r.number for r in search}) == trials
    assert len(finals) == 4 + 2 and len({r.number for r in finals}) == 4, "the final round was not held once"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_tuner_that_is_stopped_keeps_its_records_and_who_resumes_does_the_rest(tmp_path, how, monkeypatch):
    monkeypatch.setenv("TUNING_FAKES_SLOW", "0.3")
    tuner = process(tmp_path)
    try:
        for _ in range(600):
            if (tmp_path / "judged.txt").exists() and len(judged_in(tmp_path)[0]) > 2:
                break
            time.sleep(0.1)
    finally:
        tuner.send_signal(how)
        tuner.communicate(timeout=30)
    before = read_log(tmp_path / LOG).records
    assert 1 <= len(before) < 12
    with (tmp_path / LOG).open("a") as file:
        file.write(json.dumps(before[0].to_json())[:100])  # as if it had been stopped while it wrote
    monkeypatch.delenv("TUNING_FAKES_SLOW")
    tools = replace(TOOLS, build=fakes.build_apart, judge=fakes.slow_judge)
    _, search, finals = tune(tmp_path, tools)
    after = read_log(tmp_path / LOG)
    assert after.records[: len(before)] == before and after.torn == 0
    assert len(search) == 12 and {r.status for r in search.values()} == {"ok"} and len(finals) == 4 + 2
    judged, _ = judged_in(tmp_path)
    again = [place for place, times in Counter(judged).items() if times > 1]
    assert len(again) <= 1, "more than the one that was being judged was judged again"


def test_a_url_that_is_none_says_what_is_one(tmp_path):
    with pytest.raises(TuningError, match="journal:///folder/file, sqlite:///"):
        tune(tmp_path, storage="here.db")
    with pytest.raises(TuningError, match="can't be opened"):
        tune(tmp_path, storage="nonsense://here/db")
