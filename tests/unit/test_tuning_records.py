"""Tuning logs: what is written is read; a torn last line costs itself only; anything else that is off is refused."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tuning_fakes import DESC, META, TARGET

from nsa_codegen.errors import TuningLogError
from nsa_codegen.index_sets import window
from nsa_codegen.tuning.records import (
    FORMAT,
    Record,
    Spread,
    append,
    log_path,
    meta_path,
    read_log,
    require_same_machine,
    write_meta,
)

SPREAD = Spread(median=0.5, low=0.25, high=0.75, samples=7)
RECORD = Record(
    number=3, desc=DESC, schedule={"key_tile": 64}, status="ok", judge="measured", stage="search",
    sizes={"batch": 2, "tokens": 9}, predicted={"seconds": 0.1, "compute": 0.05}, measured=SPREAD,
    default=replace(SPREAD, median=1.0), error=1.5, resources={"sha256": "ab", "registers": 40}, key="0123456789ab",
    when="2026-01-02T03:04:05+00:00",
)  # fmt: skip
REFUSED = replace(RECORD, number=4, status="illegal", reason="too big", predicted=None, measured=None, default=None)


@pytest.fixture
def log(tmp_path):
    """A log of two records."""
    path = log_path(tmp_path, TARGET.name, DESC, "r")
    write_meta(path, META)
    append(path, RECORD)
    append(path, REFUSED)
    return path


def refusal(path) -> str:
    with pytest.raises(TuningLogError) as caught:
        read_log(path)
    return str(caught.value)


def test_what_is_written_is_read(log):
    assert log.relative_to(log.parents[2]).as_posix() == "x86_64_v4/combine_fwd/r.jsonl"
    found = read_log(log)
    assert found.records == (RECORD, REFUSED) and found.meta == META and found.torn == 0
    assert RECORD.speedup == 2.0 and RECORD.seconds == 0.5 and REFUSED.seconds is None


def test_a_desc_with_an_index_set_is_read_back():
    desc = replace(DESC, op="stream_attention", visible=window(9))
    assert Record.from_json(json.loads(json.dumps(replace(RECORD, desc=desc).to_json()))).desc == desc


def test_a_record_is_added_once(log):
    append(log, RECORD)
    assert read_log(log).records == (RECORD, REFUSED)


def test_writers_at_a_time_leave_whole_lines(tmp_path):
    path = log_path(tmp_path, TARGET.name, DESC, "r")
    write_meta(path, META)
    wanted = [replace(RECORD, number=i, reason="x" * 5000) for i in range(60)]
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda r: append(path, r), wanted))
    assert sorted(read_log(path).records, key=lambda r: r.number) == wanted


@pytest.mark.parametrize("cut", [1, 30, 300])
def test_a_torn_last_line_is_left_out_and_the_next_writer_cuts_it_off(log, cut):
    with log.open("ab") as file:
        file.write(json.dumps(replace(RECORD, number=5).to_json()).encode()[:cut])
    found = read_log(log)
    assert found.records == (RECORD, REFUSED) and found.torn == 1
    added = replace(RECORD, number=6)
    append(log, added)
    assert read_log(log).records == (RECORD, REFUSED, added) and read_log(log).torn == 0


def test_a_whole_last_line_without_its_newline_is_kept(log):
    last = replace(RECORD, number=5)
    with log.open("ab") as file:
        file.write(json.dumps(last.to_json()).encode())
    assert read_log(log).records == (RECORD, REFUSED, last)
    added = replace(RECORD, number=6)
    append(log, added)
    assert read_log(log).records == (RECORD, REFUSED, last, added)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{half", "not JSON"),
        ("[1]", "is a list, not an object"),
        (json.dumps(RECORD.to_json() | {"format": FORMAT + 1}), f"is of format {FORMAT + 1}"),
        (json.dumps(RECORD.to_json() | {"status": "good"}), "status is 'good'"),
        (json.dumps(RECORD.to_json() | {"judge": "guessed"}), "judge is 'guessed'"),
        (json.dumps(RECORD.to_json() | {"stage": "middle"}), "stage is 'middle'"),
        (json.dumps(RECORD.to_json() | {"error": "big"}), "error is 'big'"),
        (json.dumps(RECORD.to_json() | {"schedule": {"key_tile": 1.5}}), "must be an integer"),
        (json.dumps(RECORD.to_json() | {"measured": {"median": 1}}), "must have the numbers"),
        *(
            (json.dumps(RECORD.to_json() | {"measured": RECORD.to_json()["measured"] | {"median": x}}), "measured is")
            for x in (0, -1.0, True, "1")
        ),
        *(
            (json.dumps(RECORD.to_json() | {"predicted": x}), "predicted is")
            for x in ({}, {"seconds": None}, {"seconds": "1"}, {"seconds": 0}, {"seconds": True})
        ),
        (json.dumps(RECORD.to_json() | {"desc": {"op": "combine"}}), "desc is none"),
        (json.dumps(RECORD.to_json() | {"desc": {**DESC.to_json(), "dims": {"dv": [16]}}}), "desc is none"),
        (json.dumps(RECORD.to_json() | {"extra": 1}), "has ['extra']"),
        (json.dumps({k: v for k, v in RECORD.to_json().items() if k != "when"}), "lacks the fields ['when']"),
        (json.dumps(RECORD.to_json()).replace("1.5", "NaN"), "NaN is no number"),
    ],
)
def test_a_line_that_is_none_is_refused_with_its_place_and_reason(log, line, said):
    first, second = log.read_text().splitlines()
    log.write_text(f"{first}\n{line}\n{second}\n")
    message = refusal(log)
    assert f"{log} line 2: " in message and said in message


def test_a_last_line_that_was_ended_is_not_taken_for_a_torn_one(log):
    with log.open("a") as file:
        file.write('{"number"\n')
    assert "line 3: not JSON" in refusal(log)


def test_a_log_without_its_meta_or_with_another_format_of_it_is_refused(log):
    beside = meta_path(log)
    text = beside.read_text()
    beside.write_text(text.replace(f'"format": {FORMAT}', '"format": 99'))
    assert "is of format 99" in refusal(log) and str(beside) in refusal(log)
    beside.unlink()
    assert f"{beside} can't be read" in refusal(log)
    assert "can't be read" in refusal(log.with_name("none.jsonl"))


def test_spaces_gather_in_the_meta_and_another_machine_is_refused(log):
    write_meta(log, replace(META, space={"a": {"raw": 2, "legal": 1, "refused": {}}}))
    write_meta(log, replace(META, command="resumed", space={"b": {"raw": 4, "legal": 4, "refused": {}}}))
    assert set(read_log(log).meta.space) == {"a", "b"} and read_log(log).meta.command == META.command
    for other, said in (
        (replace(META, environment={"processor": "q", "cores": 2}), "processor 'p', and this run of 'q'"),
        (replace(META, judge="static"), "judge 'measured', and this run of 'static'"),
    ):
        with pytest.raises(TuningLogError, match="choose another --run") as caught:
            write_meta(log, other)
        assert said in str(caught.value)


def test_another_compiler_is_another_run(log):
    with pytest.raises(TuningLogError, match=r"of compiler 'g\+\+ 12', and this run of 'clang 19'"):
        require_same_machine(*(replace(META, environment={"compiler": c}) for c in ("g++ 12", "clang 19")), log)


def test_a_disk_that_takes_part_of_a_line_is_asked_again_or_refuses(log, monkeypatch):
    whole = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: whole(handle, data[:7]))
    added = replace(RECORD, number=6)
    append(log, added)
    assert read_log(log).records == (RECORD, REFUSED, added)

    def full(handle, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        append(log, replace(RECORD, number=7))
    assert read_log(log).records == (RECORD, REFUSED, added)


def test_infinite_numbers_are_never_written(log):
    with pytest.raises(ValueError):
        append(log, replace(RECORD, error=float("inf")))
    assert read_log(log).records == (RECORD, REFUSED)
