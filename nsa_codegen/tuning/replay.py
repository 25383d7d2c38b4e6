"""Replay: the rows of `schedules/` made again from the logs of `tuning_logs/`.

Logs are the only source of rows: the same logs give the same rows. What can't be read or is not legal is refused with
its reason, and nothing else is lost by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..desc import KernelDesc
from ..errors import NSAError, TuningLogError
from ..selection import bucket_of, chain_of, facts_of
from ..target import TARGETS, Target
from .records import Meta, Record, meta_path
from .winners import Numbered, Verdict, verdict

Row = Mapping[str, Any]  # of a file of `schedules/`: bucket, schedule, record, environment
_KEPT = ("processor", "gpu", "driver", "cores", "compiler", "tilelang", "nvcc")
STATIC = "static: compiled, not run"


@dataclass(frozen=True, kw_only=True)
class ReadLog:
    """A log as replay reads it: by its lines, so that one that is refused costs no other.

    `name` is the path below the folder of logs, `<arch>/<kind>/<run>.jsonl`; `damaged` are the numbers of lines that
    were refused, and `torn` is that of its last line if that is no whole one, and else 0.
    """

    name: str
    arch: str
    kind: str
    meta: Meta
    records: tuple[Numbered, ...]
    damaged: tuple[int, ...] = ()
    torn: int = 0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided of one desc on one architecture, and from which log: the row, or that of an upheld default."""

    arch: str
    desc: KernelDesc
    log: str
    verdict: Verdict
    row: Row | None
    default: Row | None = None


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The rows that logs give, by the path of their file below `schedules/`; the decisions; what was refused, and why.

    `logs` are the names of all logs that are there, and `unread` those that were refused, or `log#line` of refused
    lines. `torn` says of which logs the last line was left out.
    """

    rows: Mapping[str, tuple[Row, ...]]
    decisions: tuple[Decision, ...]
    refused: tuple[str, ...]
    logs: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    torn: tuple[str, ...] = ()


def replay(logs: Path) -> Replayed:
    """Return the rows that the logs under `logs` give; reads only.

    Of the runs of a desc on an architecture, a measured one outranks one that was compiled only, and then the latest
    counts: that whose last record of the desc is the newest. A run that came to no end, or decided nothing, leaves
    the one before, but not a winner that it found no faster than the default. A default that was measured best has a
    row only where the row of an architecture further along the chain would overrule it.
    """
    refused: list[str] = []
    paths = sorted(logs.glob("*/*/*.jsonl"))
    found = [log for path in paths if (log := read_lines(path, logs, refused)) is not None]
    decisions = [d for d in _decisions(found, refused) if d is not None]
    rows: dict[str, dict[str, tuple[Decision, Row]]] = {}
    for decision in decisions:
        if decision.row is None:
            continue
        name, bucket = f"{decision.desc.kind}/{decision.arch}.json", json.dumps(decision.row["bucket"], sort_keys=True)
        held = rows.setdefault(name, {})
        if bucket not in held or _precedes(decision, held[bucket][0]):
            held[bucket] = (decision, decision.row)
    further = {arch: chain_of(arch)[1:] for arch in {d.arch for d in decisions}}
    for decision in decisions:
        kept, kind, facts = decision.default, decision.desc.kind, facts_of(decision.desc).items()
        along = (row for arch in further[decision.arch] for _, row in rows.get(f"{kind}/{arch}.json", {}).values())
        if kept is not None and any(row["bucket"].items() <= facts for row in along):
            held = rows.setdefault(f"{kind}/{decision.arch}.json", {})
            held.setdefault(json.dumps(kept["bucket"], sort_keys=True), (decision, kept))
    names = frozenset(path.relative_to(logs).as_posix() for path in paths)
    unread = names - {log.name for log in found} | {f"{log.name}#{line}" for log in found for line in log.damaged}
    torn = tuple(
        f"{log.name} line {log.torn}: torn, and left out: a tuner was stopped as it wrote it; go on with its run by "
        f"`nsa-codegen tune --resume`, or remove the line"
        for log in found
        if log.torn
    )
    return Replayed(
        rows={name: tuple(row for _, (_, row) in sorted(held.items())) for name, held in sorted(rows.items())},
        decisions=tuple(decisions), refused=tuple(refused), logs=names, unread=unread, torn=torn,
    )  # fmt: skip


def decided(desc: KernelDesc, arch: str, logs: Path) -> Decision | None:
    """Return what the logs under `logs` decide of one desc on one architecture; None if none of them has it."""
    paths = sorted((logs / arch / desc.kind).glob("*.jsonl"))
    found = [log for path in paths if (log := read_lines(path, logs, [])) is not None]
    return next((d for d in _decisions(found, []) if d is not None and d.desc == desc), None)


def read_lines(path: Path, logs: Path, refused: list[str]) -> ReadLog | None:
    """Return the log at `path`, without the lines that are refused; their reasons are added to `refused`.

    None if nothing of it can be used: its meta is not intact, or its place names another architecture or kernel. A torn
    last line is left out and not counted as refused.
    """
    name = path.relative_to(logs).as_posix()
    arch, kind, _ = name.split("/")
    try:
        meta = Meta.from_json(_json(meta_path(path).read_bytes()))
    except (OSError, TuningLogError) as error:
        refused.append(f"{name}: its meta is refused: {error}; restore it, or tune again")
        return None
    if meta.target != arch or arch not in TARGETS:
        refused.append(f"{name}: its meta is of the target {meta.target!r}, and its folder of {arch!r}; move it there")
        return None
    records, damaged, torn = [], list[int](), 0
    lines = path.read_bytes().split(b"\n")
    for line, text in enumerate(lines, start=1):
        if line == len(lines) and (not text or not _is_json(text)):
            torn = line if text else 0
            break
        try:
            record = Record.from_json(_json(text))
            if record.desc.kind != kind:
                raise TuningLogError(f"the record is of {record.desc.kind}, and the folder of {kind}")
        except TuningLogError as error:
            refused.append(f"{name} line {line}: {error}")
            damaged.append(line)
            continue
        records.append(Numbered(line=line, record=record))
    return ReadLog(
        name=name, arch=arch, kind=kind, meta=meta, records=tuple(records), damaged=tuple(damaged), torn=torn
    )


def _decisions(found: list[ReadLog], refused: list[str]) -> Iterator[Decision | None]:
    """Yield the decision of each desc of each architecture, from the run that counts."""
    by_desc: dict[tuple[str, str], list[tuple[ReadLog, list[Numbered]]]] = {}
    for log in found:
        runs: dict[str, list[Numbered]] = {}
        for numbered in log.records:
            runs.setdefault(json.dumps(numbered.record.desc.to_json(), sort_keys=True), []).append(numbered)
        for text, records in runs.items():
            by_desc.setdefault((log.arch, text), []).append((log, records))
    for (arch, _), runs_of_desc in sorted(by_desc.items()):
        decision, beaten = None, list[Mapping[str, int]]()
        for log, records in sorted(runs_of_desc, key=lambda run: _rank(*run), reverse=True):
            earlier = _decision(arch, log, records, refused)
            if earlier is None:
                continue
            if earlier.verdict.winner is not None and earlier.verdict.winner.record.schedule in beaten:
                break  # the default stays: what that run had overruled is no better known
            decision, beaten = earlier, [*beaten, *earlier.verdict.beaten]
            if decision.verdict.decided:
                break
        yield decision


def _decision(arch: str, log: ReadLog, records: list[Numbered], refused: list[str]) -> Decision | None:
    desc, target = records[0].record.desc, TARGETS[arch]
    try:
        found = verdict(desc, target, records)
    except NSAError as error:
        refused.append(f"{log.name}: {desc}: {error}")
        return None
    refused += [f"{log.name} {said}" for said in found.refused]
    row, default = (_row(desc, target, log, n) for n in (found.winner, found.upheld))
    return Decision(arch=arch, desc=desc, log=log.name, verdict=found, row=row, default=default)


def _row(desc: KernelDesc, target: Target, log: ReadLog, numbered: Numbered | None) -> Row | None:
    if numbered is None:
        return None
    return {
        "bucket": bucket_of(desc, target),
        "schedule": dict(numbered.record.schedule),
        "record": f"{log.name}#{numbered.line}",
        "environment": row_environment(log.meta, numbered.record),
    }


def row_environment(meta: Meta, record: Record) -> dict[str, Any]:
    """Return what a row says of where it comes from: the judge; and the device, if it was measured on one."""
    kept = {name: meta.environment[name] for name in _KEPT if meta.environment.get(name) is not None}
    if record.judge == "measured":
        return {"judge": "measured", **kept}
    device = ("processor", "gpu", "driver", "cores")
    return {"judge": STATIC, **{name: value for name, value in kept.items() if name not in device}}


def _rank(log: ReadLog, records: list[Numbered]) -> tuple[bool, str, str]:
    measured = any(n.record.judge == "measured" for n in records)
    return measured, max(n.record.when for n in records), log.name


def _precedes(one: Decision, other: Decision) -> bool:
    """Return whether of two descs that share a bucket the first keeps it: what was measured, then the greater gain."""
    ranks = [(d.row is not None and d.row["environment"]["judge"] != STATIC, d.verdict.gain or 0) for d in (one, other)]
    return ranks[0] > ranks[1]


def _json(text: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise TuningLogError(f"not JSON ({error})") from error


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
