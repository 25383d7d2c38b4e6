"""The tuning report: what the page says of logs, the pictures, honesty, and what is said without matplotlib."""

from __future__ import annotations

import dataclasses
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from tuning_logs_made import record, write_log
from typer.testing import CliRunner

from nsa_codegen.cli import app
from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import MissingPackageError, ScheduleError, TuningLogError
from nsa_codegen.index_sets import window
from nsa_codegen.schedule import CpuSchedule, GpuSchedule
from nsa_codegen.target import TARGETS
from nsa_codegen.tuning.honesty import rankings, together
from nsa_codegen.tuning.records import Spread, read_log
from nsa_codegen.tuning.replay import decided
from nsa_codegen.tuning.report import studies_of, write_report
from nsa_codegen.tuning.space import default_schedule

WINDOW = KernelDesc.of("stream_attention", "float32", visible=window(512), group=4, dk=64, dv=64)
COMBINE = KernelDesc.of("combine", "float32", paths=3, dv=64, gates="scalar")
GPU = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), group=16, dk=192, dv=128)
TILES = (16, 32, 64, 128)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "logs"
    searched = [
        record(WINDOW, CpuSchedule(key_tile=t), measured=m, predicted=p, stage="search", number=i)
        for i, (t, m, p) in enumerate(zip(TILES, (1.0, 0.9, 0.5, 0.7), (1.1, 0.8, 0.6, 0.5), strict=True))
    ]
    failed = record(WINDOW, CpuSchedule(key_tile=64, query_lanes=32), measured=0.1, status="wrong", stage="search")
    final = record(WINDOW, CpuSchedule(key_tile=64), measured=0.55, predicted=0.6)
    write_log(folder, "x86_64_v4", *searched, failed, final)
    pairs = [
        record(COMBINE, CpuSchedule(key_tile=t), measured=m, predicted=p, stage="search")
        for t, m, p in zip(TILES, (1.0, 2.0, 3.0, 4.0), (4.0, 3.0, 2.0, 1.0), strict=True)
    ]
    write_log(folder, "x86_64_v4", *pairs)
    gpu = [
        record(GPU, s, predicted=p, spill_bytes=0, stage="search")
        for s, p in ((default_schedule(GPU, TARGETS["sm_90a"]), 1.0), (GpuSchedule(stages=3), 0.8))
    ]
    write_log(folder, "sm_90a", *gpu)
    return folder


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_the_page_holds_kernels_spaces_honesty_and_its_pictures(logs: Path, tmp_path: Path) -> None:
    page = write_report(logs, tmp_path / "out")
    text = page.read_text()
    assert page.name == "report.html" and "<script" not in text and "http" not in text  # self-contained
    assert f"<td>{WINDOW}</td><td class=n>6</td><td class=n>1</td><td class=n>1000</td><td class=n>550</td>" in text
    assert "query_lanes=64 key_tile=64 register_rows=4 register_vectors=4" in text
    assert "208: threads = # is not a multiple" in text and "Test Processor" in text
    assert "static: compiled, not run" in text and "<td>measured</td>" in text
    pictures = sorted(p.name for p in page.parent.glob("*.png"))
    assert pictures == [
        "sm_90a-best.png", "sm_90a-roofline.png", "x86_64_v4-best.png", "x86_64_v4-predicted.png",
        "x86_64_v4-roofline.png",
    ]  # fmt: skip
    assert text.count("data:image/png;base64,") == len(pictures)
    assert all(min(png_size(page.parent / name)) > 300 for name in pictures)


def test_best_so_far_counts_every_candidate_and_never_rises(logs: Path) -> None:
    (log,) = (read_log(p) for p in logs.glob("x86_64_v4/stream_attention_fwd/*.jsonl"))
    (study,) = studies_of(log)
    at, times = study.best_so_far()
    assert at == [1, 2, 3, 4] and times == pytest.approx([1.0, 0.9, 0.5, 0.5])  # the wrong one is counted, and no best
    assert study.verdict.gain == pytest.approx(1 / 0.55)
    assert study.best is not None and study.best.schedule == CpuSchedule(key_tile=64).to_json()


def test_the_last_final_round_says_what_is_best_and_the_page_why_the_default_stays(logs: Path, tmp_path: Path) -> None:
    """A finalist that was lucky beside others, and is no faster by itself: no row, and no gain."""
    folder, fast = tmp_path / "lucky", CpuSchedule(key_tile=32)
    rounds = [
        record(WINDOW, CpuSchedule(key_tile=64), measured=1.0, default=1.0, stage="search"),
        record(WINDOW, fast, measured=0.5, default=1.0),
        record(WINDOW, CpuSchedule(key_tile=128), measured=0.6, default=1.0),
        record(WINDOW, fast, measured=0.99, default=1.001),
    ]
    path = write_log(folder, "x86_64_v4", *rounds)
    (study,) = studies_of(read_log(path))
    replayed = decided(WINDOW, "x86_64_v4", folder)
    assert replayed is not None and replayed.row is None and replayed.verdict == study.verdict
    assert study.best == rounds[-1] and study.default == 1.001
    text = write_report(folder, tmp_path / "out").read_text()
    cells = "<td class=n>1001</td><td class=n>990</td><td class=n>1.01</td>"
    schedule = "query_lanes=64 key_tile=32 register_rows=4 register_vectors=4"
    assert f"{cells}<td>{schedule}</td><td>the best is 1.011 times as fast as the default: not beyond 1.02</td>" in text


def test_a_gain_is_that_of_the_turns_and_of_what_wins(logs: Path, tmp_path: Path) -> None:
    """Not the ratio of the medians; nor is a finalist the best that was faster within its spread."""
    turns = Spread(median=1.3, low=1.2, high=1.4, samples=9)
    sure = dataclasses.replace(record(WINDOW, CpuSchedule(key_tile=32), measured=0.8), gain=turns)
    unsure = dataclasses.replace(
        record(WINDOW, CpuSchedule(key_tile=128), measured=0.7, width=0.6), default=sure.default
    )
    path = write_log(tmp_path / "turns", "x86_64_v4", unsure, sure)
    (study,) = studies_of(read_log(path))
    assert study.best == sure and study.verdict.gain == 1.3
    text = write_report(path, tmp_path / "out").read_text()
    assert "<td class=n>1000</td><td class=n>800</td><td class=n>1.30</td>" in text


def test_what_spills_is_no_best_of_a_static_run(logs: Path, tmp_path: Path) -> None:
    spilling, good = GpuSchedule(rows=64, key_tile=64, stages=3), GpuSchedule(rows=64, key_tile=32, stages=2)
    searched = [
        record(GPU, s, predicted=p, spill_bytes=spills, stage="search", number=i)
        for i, (s, p, spills) in enumerate(
            ((default_schedule(GPU, TARGETS["sm_90a"]), 1.0, 0), (spilling, 0.2, 64), (good, 0.8, 0))
        )
    ]
    (study,) = studies_of(read_log(write_log(tmp_path / "static", "sm_90a", *searched)))
    assert (
        study.verdict.winner is not None
        and study.best == searched[2]
        and study.verdict.gain == pytest.approx(1.25)
        and study.default == 1.0
    )
    assert study.best_so_far() == ([1, 3], [1.0, 0.8])


def test_a_kernel_that_is_not_to_be_scheduled_any_more_costs_no_page(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise ScheduleError("no schedule of the fallback file is legal")

    monkeypatch.setattr("nsa_codegen.tuning.report.default_schedule", refuse)
    assert "<td>no schedule of the fallback file is legal</td>" in write_report(logs, tmp_path / "out").read_text()


def test_runs_and_architectures_are_each_ranked_by_themselves(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one kernel, each ranked well, between which the model has changed; and one that is ranked badly."""
    from matplotlib.figure import Figure

    runs = (
        ("x86_64_v4", "first", (0.5, 0.6, 0.7), (5.0, 6.0, 7.0)),
        ("x86_64_v4", "second", (1.5, 1.8, 2.1), (1.0, 1.2, 1.4)),
        ("x86_64_v3", "other", (1.0, 2.0, 3.0), (3.0, 2.0, 1.0)),
    )
    for arch, run, measured, predicted in runs:
        tried = [
            record(COMBINE, CpuSchedule(key_tile=t), measured=m, predicted=p, stage="search")
            for t, m, p in zip(TILES[:3], measured, predicted, strict=True)
        ]
        write_log(tmp_path / "runs", arch, *tried, run=run)
    drawn: dict[str, Any] = {}
    save = Figure.savefig

    def keep(figure: Any, *given: Any, **named: Any) -> None:
        (axes,) = figure.axes
        drawn[f"{len(drawn)} {axes.get_xlabel()}"] = axes
        save(figure, *given, **named)

    monkeypatch.setattr(Figure, "savefig", keep)
    text = write_report(tmp_path / "runs", tmp_path / "out").read_text()
    for arch, run, name, counts, figures in (
        ("x86_64_v4", "first", COMBINE, (1, 3), ("1.00", "1.000")),
        ("x86_64_v4", "second", COMBINE, (1, 3), ("1.00", "1.000")),
        ("x86_64_v4", "", "combine_fwd", (2, 6), ("1.00", "1.000")),
        ("x86_64_v4", "", "all", (2, 6), ("1.00", "1.000")),
        ("x86_64_v3", "other", COMBINE, (1, 3), ("-1.00", "3.000")),
        ("x86_64_v3", "", "all", (1, 3), ("-1.00", "3.000")),
    ):
        numbers = "".join(f"<td class=n>{n}</td>" for n in (*counts, *figures))
        assert f"<td>{arch}</td><td>{run}</td><td>{name}</td>{numbers}" in text, (arch, run, name)
    bad, good = (axes for name, axes in drawn.items() if name.endswith("predicted / least predicted"))
    for axes, ranked, lost in ((good, "1.00", "0.0"), (bad, "-1.00", "200.0")):
        title = f"Spearman {ranked}, mean over kernels; taking the model's best loses {lost} %"
        label = axes.get_legend().get_texts()[0].get_text()
        assert axes.get_title() == title and label == f"combine_fwd, Spearman {ranked}"
    points = sorted(zip(*good.lines[0].get_data(), strict=True))  # in units of the least of the run
    assert points == [pytest.approx((x, x)) for x in (1.0, 1.0, 1.2, 1.2, 1.4, 1.4)]


def test_without_a_final_round_the_search_says_what_is_best(logs: Path) -> None:
    (log,) = (read_log(p) for p in logs.glob("sm_90a/*/*.jsonl"))
    (study,) = studies_of(log)
    assert study.default == 1.0 and study.verdict.gain == pytest.approx(1.25)
    assert study.best is not None and study.best.seconds == 0.8


def test_honesty_is_by_desc_by_kind_and_over_all(logs: Path) -> None:
    ranked = [pair for p in logs.rglob("*.jsonl") for pair in rankings(read_log(p).records)]
    found = {f.name: f for f in (*(row for _, row in ranked), *together(ranked))}
    assert set(found) == {str(WINDOW), str(COMBINE), "stream_attention_fwd", "combine_fwd", "all"}
    assert [f.name for f in together(ranked)] == ["combine_fwd", "stream_attention_fwd", "all"]
    assert found[str(WINDOW)].spearman == pytest.approx(0.8) and found[str(WINDOW)].candidates == 4
    assert found[str(WINDOW)].loss == pytest.approx(0.7 / 0.5)  # the model's best is not the measured one
    assert found[str(COMBINE)].spearman == pytest.approx(-1.0) and found[str(COMBINE)].loss == pytest.approx(4.0)
    assert found["all"].spearman == pytest.approx(-0.1) and found["all"].loss == pytest.approx((1.4 * 4.0) ** 0.5)
    assert together([]) == () and found["all"].to_json()["descs"] == 2


def test_honesty_takes_times_in_units_of_the_defaults_of_the_same_turns() -> None:
    """A machine that is slow for a while makes both slow: what counts is the ratio."""
    drifting = [
        record(WINDOW, CpuSchedule(key_tile=t), measured=m, default=d, predicted=p, stage="search")
        for t, m, d, p in ((16, 1.0, 1.0, 1.0), (32, 1.8, 2.0, 0.9), (64, 3.2, 4.0, 0.8))
    ]
    ((_, row),) = rankings(drifting)
    assert row.spearman == pytest.approx(1.0)


def test_one_log_or_several_can_be_given(logs: Path, tmp_path: Path) -> None:
    paths = sorted(logs.rglob("*.jsonl"))
    assert str(GPU) not in write_report([p for p in paths if "sm_90a" not in str(p)], tmp_path / "two").read_text()
    assert str(GPU) in write_report(next(p for p in paths if "sm_90a" in str(p)), tmp_path / "one").read_text()
    with pytest.raises(TuningLogError, match="there is no log in"):
        write_report(tmp_path / "two", tmp_path / "none")
    with pytest.raises(TuningLogError, match="there is no log in no-such-run"):
        write_report("no-such-run", tmp_path / "none")


def test_the_command_takes_a_folder_or_its_own_and_gives_json(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cases: list[tuple[list[str], str]] = [([], "tuning-report"), (["there"], "there")]
    for given, folder in cases:
        done = CliRunner().invoke(app, ["tune", "--report", *given, "--logs", str(logs), "--json"])
        assert done.exit_code == 0, done.stderr
        page = Path(json.loads(done.stdout)["report"])
        assert page.parent == Path(folder) and str(WINDOW) in page.read_text()
        assert f"wrote {page}" in done.stderr
    done = CliRunner().invoke(app, ["tune", "--logs", str(logs), "--report"])
    assert done.exit_code == 0 and done.stdout == "" and "wrote tuning-report/report.html" in done.stderr


def test_a_damaged_log_is_refused_by_name(logs: Path, tmp_path: Path) -> None:
    path = next(logs.rglob("*.jsonl"))
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(TuningLogError, match=rf"{path.name} line 1"):
        write_report(logs, tmp_path / "out")


def test_without_matplotlib_the_extra_is_named(logs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'nsa_codegen\[bench\]'"):
        write_report(logs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
