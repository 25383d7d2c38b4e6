"""`nsa-codegen explain`: the chain that was tried, a reason for every value, and what two targets differ in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tuning_logs_made import record, write_log, write_rows
from typer.testing import CliRunner

from nsa_codegen import selection
from nsa_codegen.cli import app
from nsa_codegen.cli.explain import generic_note, row_note
from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import InputError
from nsa_codegen.index_sets import causal, complete, everything, first, window
from nsa_codegen.needed import needed_descs
from nsa_codegen.ops import Sizes
from nsa_codegen.schedule import CpuSchedule, GpuSchedule, ScheduleSpace
from nsa_codegen.selection import bucket_of, schedules_folder, select, visible_word
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import TARGETS, processor_name
from nsa_codegen.tuning import records as tuning_records
from nsa_codegen.tuning.reasons import UNREAD, explain, hardware_differences, schedule_differences
from nsa_codegen.tuning.replay import STATIC

V4, H100, A100, RTX = (TARGETS[n] for n in ("x86_64_v4", "sm_90a", "sm_80", "sm_120a"))
WINDOW = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), group=16, dk=192, dv=128)
LONG = Sizes(batch=1, tokens=16384, keys=16384, kv_heads=4)


def shown(*arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["explain", *arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of schedules that selection reads, with rows replayed from a log; returns the folder of logs."""
    folder, logs = tmp_path / "schedules", tmp_path / "tuning_logs"
    folder.mkdir()
    (folder / "fallback.toml").write_text((schedules_folder() / "fallback.toml").read_text())
    desc = KernelDesc.of("stream_attention", "float32", visible=window(64), group=1, dk=32, dv=32)
    here = {"processor": processor_name(), "cores": 2}
    write_log(logs, "x86_64_v4", record(desc, CpuSchedule(query_lanes=16), measured=0.5), environment=here)
    default = record(WINDOW, select(WINDOW, H100).schedule, predicted=1.0, spill_bytes=0)
    write_log(logs, "sm_90a", default, record(WINDOW, GpuSchedule(stages=3), predicted=0.5, spill_bytes=0))
    write_rows(logs, folder)
    monkeypatch.setattr(selection, "schedules_folder", lambda: folder)
    return logs


def test_a_generic_schedule_shows_the_chain_that_led_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fallback.toml").write_text((schedules_folder() / "fallback.toml").read_text())
    monkeypatch.setattr(selection, "schedules_folder", lambda: tmp_path)
    found = {item["kernel"]: item for item in shown("gather_attention", "--target", "sm_86", "--head-dim", "192")}
    (item,) = found.values()
    assert item["source"].startswith("fallback.toml mma.gather_attention_fwd choice") and item["record"] is None
    assert item["tried"][0] == "gather_attention_fwd/sm_86.json: no tuned rows"
    reasons = "\n".join(item["tried"][1:])
    assert "specialized = 0 is for loops with tensor copies (TMA), which this kernel has not on sm_86" in reasons
    assert "64 queries of a tile are more than the 32 bits that say who lists a block" in reasons
    assert item["tried"][-1].endswith("legal") and "never tuned" in item["note"]
    assert item["predicted"]["seconds"] > 0 and item["bound"] and item["parts"]["compute"] > 0


def test_a_default_that_won_its_logs_is_told_from_a_kernel_that_was_never_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path / "tuning_logs"
    monkeypatch.setattr(tuning_records, "logs_folder", lambda: logs)
    child, fast = TARGETS["x86_64_amx"], CpuSchedule(query_lanes=16)
    small = KernelDesc.of("combine", "float32", paths=2, dv=8, gates="scalar")
    assert generic_note(small, V4) == (
        f"generic: no tuned row serves it; whether it was tuned the logs say, and {logs} is not there"
    )
    write_log(logs, "x86_64_v4", record(small, fast, measured=0.99))
    for target in (V4, child):
        assert generic_note(small, target) == (
            "generic: tuned on x86_64_v4, and the default stays: the best is 1.010 times as fast as the default: not "
            "beyond 1.02 (x86_64_v4/combine_fwd/run.jsonl)"
        )
    other = KernelDesc.of("combine", "float32", paths=2, dv=16, gates="scalar")
    assert generic_note(other, V4) == generic_note(small, TARGETS["x86_64_v3"])
    assert generic_note(other, V4) == "generic: never tuned for this kernel and target"
    write_log(logs, "x86_64_v4", record(other, fast, measured=0.5), run="later")
    assert "(x86_64_v4/combine_fwd/later.jsonl), and no row says so; `nsa-codegen replay`" in generic_note(other, V4)


def test_refused_choices_of_the_generic_list_say_why() -> None:
    desc = KernelDesc.of("stream_attention", "bfloat16", direction="bwd", part="queries", visible=window(512), group=16,
                         dk=192, dv=128)  # fmt: skip
    found = select(desc, A100)
    number = int(found.source.rsplit(" ", 1)[1])
    assert number > 0 and len(found.tried) == 2 + number
    assert all(f"choice {i}: " in found.tried[1 + i] for i in range(number))
    reasons = "\n".join(found.tried)
    assert "specialized = 0 is for loops with tensor copies (TMA)" in reasons
    assert "accumulators and scores; beyond 120 sm_80 spills" in reasons
    assert "4 warps need 64 rows, 16 each; rows = 32" in reasons
    assert "2 thread blocks take 206848 bytes; a multiprocessor of sm_80 has 167936" in reasons


def test_a_tuned_row_is_named_with_its_record_and_what_its_machine_means_here(tuned: Path) -> None:
    items = shown("stream_attention", "--target", "x86_64_v4")
    item = next(i for i in items if "[t-63, t+1)" in i["kernel"])
    assert item["record"] == "x86_64_v4/stream_attention_fwd/run.jsonl#1"
    assert item["source"].startswith("stream_attention_fwd/x86_64_v4.json row 0")
    assert "names most, of 1 rows that fit, of 1 rows" in item["tried"][0]
    assert item["note"] == f"measured on {processor_name()}, as this machine is"
    other = next(i for i in items if i is not item)
    assert other["tried"][0] == "stream_attention_fwd/x86_64_v4.json: none of its 1 rows fits"
    (static,) = (
        i for i in shown("stream_attention", "--target", "sm_90a", "--preset", "paper") if "t-511" in i["kernel"]
    )
    assert static["note"] == STATIC and static["schedule"]["stages"] == 3


def test_a_row_of_another_machine_is_said_to_be_one() -> None:
    row = {"environment": {"judge": "measured", "processor": "Another CPU"}}
    assert "measured on Another CPU, and this machine has" in row_note(row, V4)
    assert "this machine has no GPU" in row_note({"environment": {"judge": "measured", "gpu": "H100"}}, H100)


@pytest.mark.parametrize("name", ["x86_64_v4", "x86_64_v3", "sm_80", "sm_90a", "sm_100a", "sm_120a", "gfx942"])
def test_every_kernel_of_the_presets_has_a_reason_for_every_value(name: str) -> None:
    target = TARGETS[name]
    for preset in (NSASpec.seed(), NSASpec.paper()):
        for desc in needed_descs(preset.program(), "float32" if target.kind == "cpu" else "bfloat16", target=target):
            found = explain(desc, select(desc, target).schedule, target, LONG)
            assert found.reasons.keys() == found.schedule.values().keys()
            assert all(found.reasons.values())
            if desc.op == "combine":
                assert found.reasons["key_tile" if target.kind != "cpu" else "query_lanes"] == UNREAD


def test_the_reasons_are_the_hardwares() -> None:
    found = explain(WINDOW, GpuSchedule(rows=64, key_tile=64, stages=2, threads=128), H100, LONG).reasons
    assert "wgmma takes 64 rows a warp group" in found["rows"] and "4 queries of 16 heads" in found["rows"]
    assert "of the 232448 bytes of shared memory" in found["stages"] and "one more takes 147456" in found["stages"]
    assert "128 threads copy beside them (tma)" in found["threads"]
    assert found["specialized"].startswith("a warp group of its own")
    joint = explain(WINDOW, GpuSchedule(specialized=0), H100, LONG).reasons
    assert "4 warps compute, and one thread of them starts the copies (tma)" in joint["threads"]
    assert "as many registers a thread" in joint["specialized"]
    less = explain(WINDOW, GpuSchedule(rows=32, key_tile=64, stages=2, threads=64), H100, LONG).reasons
    assert "less than the 64 rows of a warp group, so mma is used, at 63 %" in less["rows"]
    mma = explain(WINDOW, GpuSchedule(rows=64, key_tile=32, stages=2, threads=128), A100, LONG).reasons
    assert "120 are allowed, since mma keeps fragments" in mma["key_tile"]
    assert "warps compute and copy (cp.async)" in mma["threads"]


def test_a_difference_names_fields_and_facts() -> None:
    hardware = hardware_differences(H100, A100)
    assert hardware["matrix instruction"][0].startswith("wgmma") and hardware["matrix instruction"][1].startswith("mma")
    assert hardware["copy engine"][1].startswith("cp.async") and "shared memory of a block" in hardware
    assert "registers of a multiprocessor" not in hardware  # the same on both
    one, two = (explain(WINDOW, GpuSchedule(key_tile=k), t, LONG) for k, t in ((64, H100), (32, A100)))
    found = schedule_differences(two, one, LONG)
    assert found.keys() == {n for n, v in two.schedule.values().items() if v != one.schedule.values()[n]}
    assert "64 would be predicted" in found["key_tile"] and "slower on sm_80" in found["key_tile"]
    wide = explain(WINDOW, GpuSchedule(rows=64, key_tile=128, stages=2, threads=128), H100, LONG)
    refused = schedule_differences(two, wide, LONG)["key_tile"]
    assert "128 is not legal on sm_80: a thread holds 160 accumulators and scores; beyond 120 sm_80 spills" in refused
    assert "predicted" in schedule_differences(one, two, LONG)["key_tile"]
    with pytest.raises(InputError, match="are of two families"):
        hardware_differences(H100, V4)


def test_products_over_pairs_read_no_register_tile() -> None:
    amx = TARGETS["x86_64_amx"]
    assert hardware_differences(amx, V4) == {"products of bfloat16 pairs": ("amx", "none")}
    half, full = (dataclasses.replace(WINDOW, dtype=dtype) for dtype in ("bfloat16", "float32"))
    said = {d.dtype: explain(d, select(d, V4).schedule, amx, LONG).reasons for d in (half, full)}
    for field in ("register_rows", "register_vectors"):
        assert "those over pairs (amx)" in said["bfloat16"][field]
        assert "over pairs" not in said["float32"][field]


def test_the_command_shows_a_difference_in_words() -> None:
    done = CliRunner().invoke(
        app, ["explain", "stream_attention", "--target", "sm_90a", "--preset", "paper", "--diff", "sm_120a"]
    )
    assert done.exit_code == 0
    for said in ("schedule from fallback.toml wgmma", "wgmma: 64 rows", "mma: 16 rows", "schedules differ", "bound by"):
        assert said in done.stdout, said
    wrong = CliRunner().invoke(app, ["explain", "stream_attention", "--target", "sm_90a", "--diff", "cpu"])
    assert wrong.exit_code == 1 and "two families" in wrong.stderr


@pytest.mark.parametrize("op", ["stream_attention", "gather_attention", "select_blocks", "compress", "combine"])
@pytest.mark.parametrize(
    "pair", [("sm_90a", "sm_80"), ("sm_80", "sm_100a"), ("sm_120a", "sm_89"), ("sm_90a", "gfx942")]
)
def test_targets_with_and_without_tensor_copies_are_compared_in_words(op: str, pair: tuple[str, str]) -> None:
    target, other = pair
    done = CliRunner().invoke(app, ["explain", op, "--target", target, "--preset", "paper", "--diff", other])
    assert done.exit_code == 0, done.exception
    for item in shown(op, "--target", target, "--preset", "paper", "--diff", other):
        assert item["differences"].keys() == {
            n for n, value in item["schedule"].items() if value != item["other"]["schedule"][n]
        }
        for one in (item, item["other"]):
            without = one["target"] in ("sm_80", "sm_89", "gfx942")
            if without and "stream_attention" in item["kernel"]:
                assert "no tensor copies on" in one["reasons"]["specialized"]


def test_buckets_tell_index_sets_apart_by_kind() -> None:
    sets = {"causal": causal(), "window": window(9), "complete": complete(8, 4), "everything": everything(),
            "union": first(4) | window(9)}  # fmt: skip
    assert {name: visible_word(s) for name, s in sets.items()} == {name: name for name in sets}
    shared = {"dk": 192, "dv": 128, "group": 16, "visible": "window"}
    assert bucket_of(WINDOW, V4) == shared
    assert bucket_of(WINDOW, TARGETS["x86_64_amx"]) == shared | {"dtype": "bfloat16"}  # float32 has other loops there
    assert ScheduleSpace.check(select(WINDOW, RTX).schedule, WINDOW, RTX) is None
