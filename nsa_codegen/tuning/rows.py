"""The files of `schedules/`: made what a replay of the logs gives, and each row held against its record.

A row whose evidence is not here is not touched for that: that of a log which is elsewhere, as the rows that a package
brings are, stays until the logs here decide its bucket; that of a log or a line which was refused stays as it is.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import ScheduleError
from ..selection import bucket_of, facts_of, read_rows
from ..target import TARGETS, Target
from .records import Record
from .replay import Replayed, Row, read_lines
from .winners import illegal


def changes(files: Mapping[str, str], schedules: Path) -> str:
    """Return the unified diff from the files under `schedules` to the given ones; empty if they are the same."""
    current = {p.relative_to(schedules).as_posix(): p.read_text() for p in sorted(schedules.glob("*/*.json"))}
    parts: list[str] = []
    for name in sorted({*current, *files}):
        old, new = current.get(name, ""), files.get(name, "")
        lines = (old.splitlines(keepends=True), new.splitlines(keepends=True))
        parts += difflib.unified_diff(*lines, f"schedules/{name}", f"replayed/{name}")
    return "".join(parts)


def write(files: Mapping[str, str], schedules: Path) -> list[str]:
    """Make the files under `schedules` the given ones, each in one step, and return the names of those that changed."""
    changed: list[str] = []
    for path in sorted(schedules.glob("*/*.json")):
        name = path.relative_to(schedules).as_posix()
        if name not in files:
            path.unlink()
            changed.append(name)
    for name, text in files.items():
        path = schedules / name
        if path.exists() and path.read_text() == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(text)
        temporary.replace(path)
        changed.append(name)
    return changed


def merged(replayed: Mapping[str, tuple[Row, ...]], kept: Mapping[str, tuple[Row, ...]]) -> dict[str, str]:
    """Return the texts of all files of rows by their path: those that logs give, and those that stay."""
    files = {}
    for name in sorted({*replayed, *kept}):
        rows = {_text(row["bucket"]): row for row in (*replayed.get(name, ()), *kept.get(name, ()))}
        files[name] = json.dumps([rows[bucket] for bucket in sorted(rows)], indent=1, sort_keys=True) + "\n"
    return files


def kept_rows(replayed: Replayed, schedules: Path) -> dict[str, tuple[Row, ...]]:
    """Return the rows under `schedules` that stay though no log that was read gives them, by the path of their file.

    A file that is none has no rows to keep.
    """
    decided = {
        (f"{d.desc.kind}/{d.arch}.json", _text(bucket_of(d.desc, TARGETS[d.arch])))
        for d in replayed.decisions
        if d.verdict.decided
    }
    found: dict[str, tuple[Row, ...]] = {}
    for path in sorted(schedules.glob("*/*.json")):
        name, rows = path.relative_to(schedules).as_posix(), list[Row]()
        with contextlib.suppress(ScheduleError):
            rows = [*read_rows(path)]
        kept = tuple(r for r in rows if _stays(r, replayed, is_decided=(name, _text(r["bucket"])) in decided))
        if kept:
            found[name] = kept
    return found


def _stays(row: Row, replayed: Replayed, *, is_decided: bool) -> bool:
    log = row["record"].rpartition("#")[0]
    if log in replayed.logs:
        return bool({log, row["record"]} & replayed.unread)
    return not is_decided


def verify_rows(schedules: Path, logs: Path) -> list[str]:
    """Return what is wrong with the rows under `schedules`, held against the logs: one line each, empty if nothing is.

    A row needs a record that is there and intact, of its architecture and kernel, with its schedule, status ok, whose
    desc its bucket fits; and a schedule that is still legal for that desc.
    """
    wrong: list[str] = []
    for path in sorted(schedules.glob("*/*.json")):
        kind, arch = path.parent.name, path.stem
        try:
            rows = read_rows(path)
        except ScheduleError as error:
            wrong.append(str(error))
            continue
        for number, row in enumerate(rows):
            wrong += [f"{kind}/{path.name} row {number}: {said}" for said in _row_problems(row, kind, arch, logs)]
    return wrong


def _row_problems(row: Row, kind: str, arch: str, logs: Path) -> Iterator[str]:
    name, _, line = row["record"].rpartition("#")
    if arch not in TARGETS or not re.fullmatch(rf"{arch}/{kind}/[^/]+\.jsonl#\d+", row["record"]):
        yield f"its record is {row['record']!r}; it must be '{arch}/{kind}/<run>.jsonl#<line>'"
        return
    path, said = logs / name, list[str]()
    if not path.exists():
        yield f"its record {row['record']} is in no log: {path} is missing; bring the log back, or take the row out"
        return
    log = read_lines(path, logs, said)
    numbered = None if log is None else next((n for n in log.records if n.line == int(line)), None)
    if numbered is None:
        yield f"its record {row['record']} is not there or not intact{': ' + said[0] if said else ''}"
        return
    yield from _differences(row, numbered.record, TARGETS[arch])


def _differences(row: Row, record: Record, target: Target) -> Iterator[str]:
    if dict(record.schedule) != row["schedule"]:
        yield f"its schedule is {row['schedule']}, and its record's {dict(record.schedule)}; replay the logs"
    if record.status != "ok":
        yield f"its record's status is {record.status!r}: {record.reason}"
    if not row["bucket"].items() <= facts_of(record.desc).items():
        yield f"its bucket {row['bucket']} does not fit its record's {record.desc}"
    reason = illegal(row["schedule"], record.desc, target)
    if reason is not None:
        yield f"its schedule is not legal for {record.desc}: {reason}"


def _text(bucket: Row) -> str:
    return json.dumps(bucket, sort_keys=True)
