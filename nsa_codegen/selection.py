"""Which schedule a kernel gets: the nearest tuned row along the fallback chain, else the op's generic schedule.

Tuned rows are in `schedules/<op>_<direction>/<arch>.json`, chain and generic schedules in `schedules/fallback.toml`;
the folder stands at the root of a checkout, and inside the package once installed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .desc import KernelDesc
from .errors import ScheduleError
from .schedule import Schedule, ScheduleSpace, schedule_class
from .target import GpuTarget, Target

FALLBACK = "fallback.toml"
_ROW_FIELDS = {"bucket", "schedule", "record", "environment"}


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A legal schedule, and the row that it comes from."""

    schedule: Schedule
    source: str


def schedules_folder() -> Path:
    """Return the folder of tuned schedules: the package's own, else the checkout's."""
    package = Path(__file__).parent
    installed = package / "schedules"
    return installed if installed.is_dir() else package.parent / "schedules"


def select(desc: KernelDesc, target: Target, *, folder: Path | None = None) -> Selected:
    """Return the schedule of `desc` on `target`, and where it was found.

    Raises `ScheduleError` if a row is malformed or not legal here, or if no schedule is.
    """
    folder = folder or schedules_folder()
    fallback = _read_fallback(folder / FALLBACK)
    for arch in _chain(target.name, fallback["chain"]):
        path = folder / desc.kind / f"{arch}.json"
        row, number = _best_row(path, desc)
        if row is not None:
            source = f"{desc.kind}/{path.name} row {number} {json.dumps(row['bucket'], sort_keys=True)}"
            return Selected(schedule=_legal(row["schedule"], desc, target, source), source=source)
    family = target.matrix if isinstance(target, GpuTarget) else "generic"
    return _generic(family, fallback.get(family, {}).get(desc.kind, []), desc, target)


def _read_fallback(path: Path) -> dict[str, dict[str, Any]]:
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise ScheduleError(f"{path} can't be read ({error}); install nsa_codegen with its schedules") from error
    except tomllib.TOMLDecodeError as error:
        raise ScheduleError(f"{path} is not TOML: {error}") from error
    if not data.keys() >= {"chain", "generic"}:
        raise ScheduleError(f"{path} has the tables {sorted(data)}; it must have 'chain' and 'generic'")
    return data


def _chain(arch: str, parents: dict[str, str]) -> Iterator[str]:
    seen: list[str] = []
    while arch not in seen:
        seen.append(arch)
        yield arch
        if arch not in parents:
            return
        arch = parents[arch]
    raise ScheduleError(f"{FALLBACK}: the chain {' -> '.join([*seen, arch])} has no end")


def _best_row(path: Path, desc: KernelDesc) -> tuple[dict[str, Any] | None, int]:
    """Return the row, and its number, whose bucket names most facts of `desc` and no others; the first of equals."""
    try:
        rows = json.loads(path.read_text())
    except FileNotFoundError:
        return None, 0
    except ValueError as error:
        raise ScheduleError(f"{path} is not JSON: {error}") from error
    facts = {"dtype": desc.dtype, **dict(desc.dims)}
    best, best_number = None, 0
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != _ROW_FIELDS or not row["record"]:
            raise ScheduleError(f"{path} row {number} must have {sorted(_ROW_FIELDS)}, and a record that is not empty")
        bucket = row["bucket"]
        if bucket.items() <= facts.items() and (best is None or len(bucket) > len(best["bucket"])):
            best, best_number = row, number
    return best, best_number


def _generic(family: str, choices: list[dict[str, Any]], desc: KernelDesc, target: Target) -> Selected:
    reasons = []
    for number, choice in enumerate(choices):
        schedule = schedule_class(target).parse(choice)
        reason = ScheduleSpace.check(schedule, desc, target)
        if reason is None:
            return Selected(schedule=schedule, source=f"{FALLBACK} {family}.{desc.kind} choice {number}")
        reasons.append(f"choice {number}: {reason}")
    raise ScheduleError(
        f"no schedule for {desc} on {target.name}: no tuned row fits, and of {family}.{desc.kind} in {FALLBACK} "
        + (f"none is legal: {'; '.join(reasons)}" if reasons else "there is none; add one")
    )


def _legal(data: dict[str, Any], desc: KernelDesc, target: Target, source: str) -> Schedule:
    try:
        return ScheduleSpace.require(schedule_class(target).parse(data), desc, target)
    except ScheduleError as error:
        raise ScheduleError(f"{source}: {error}") from error
