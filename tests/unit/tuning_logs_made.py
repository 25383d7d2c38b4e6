"""Tuning logs for tests: written by the real writers, with times that the tests give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nsa_codegen.desc import KernelDesc
from nsa_codegen.schedule import Schedule
from nsa_codegen.tuning.records import Meta, Record, Spread, append, log_path, read_log, write_meta
from nsa_codegen.tuning.replay import replay
from nsa_codegen.tuning.rows import kept_rows, merged, write

ENVIRONMENT = {"processor": "Test Processor", "cores": 2, "compiler": "gcc 12", "tilelang": "0.1.15", "torch": "2.13"}


def spread(median: float, *, width: float = 0.01, samples: int = 9) -> Spread:
    return Spread(median=median, low=median * (1 - width), high=median * (1 + width), samples=samples)


def record(
    desc: KernelDesc,
    schedule: Schedule | Mapping[str, int],
    *,
    measured: float | None = None,
    default: float | None = 1.0,
    predicted: float | None = None,
    stage: str = "final",
    status: str = "ok",
    spill_bytes: int | None = None,
    number: int = 0,
    when: str = "2026-11-24T10:00:00+00:00",
    width: float = 0.01,
) -> Record:
    judge = "measured" if measured is not None else "static"
    return Record(
        number=number,
        desc=desc,
        schedule=schedule.to_json() if isinstance(schedule, Schedule) else dict(schedule),
        status=status,
        reason="" if status == "ok" else "for a reason",
        judge=judge,
        stage=stage,
        sizes={"batch": 1, "tokens": 4096, "keys": 4096, "kv_heads": 4, "q_start": 0},
        predicted=None if predicted is None else {"seconds": predicted, "operations": 1e9, "unique_bytes": 1e6},
        measured=None if measured is None else spread(measured, width=width),
        default=None if measured is None or default is None else spread(default, width=width),
        resources=None if spill_bytes is None else {"spill_bytes": spill_bytes, "registers": 128},
        when=when,
    )


def write_log(
    logs: Path, arch: str, *records: Record, run: str = "run", environment: Mapping[str, Any] = ENVIRONMENT
) -> Path:
    """Append records of one kind to a log and write its meta; return the log. Candidates of one number get others."""
    desc = records[0].desc
    path = log_path(logs, arch, desc, run)
    judge = records[0].judge
    space = {str(desc): {"raw": 256, "legal": 48, "refused": {"threads = # is not a multiple": 208}}}
    write_meta(
        path,
        Meta(run=run, target=arch, judge=judge, command="nsa-codegen tune", environment=environment, space=space),
    )
    taken = {(r.desc, r.number) for r in read_log(path).records if r.stage == "search"} if path.exists() else set()
    for one in records:
        if one.stage == "search":
            while (one.desc, one.number) in taken:
                one = replace(one, number=one.number + 1)
            taken.add((one.desc, one.number))
        append(path, one)
    return path


def write_rows(logs: Path, schedules: Path) -> list[str]:
    """Make the rows under `schedules` those that a replay of the logs gives; return the files that changed."""
    found = replay(logs)
    return write(merged(found.rows, kept_rows(found, schedules)), schedules)
