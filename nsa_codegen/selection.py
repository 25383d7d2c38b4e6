"""Which schedule a kernel gets: the nearest tuned row along the fallback chain, else the op's generic schedule.

Tuned rows are in `schedules/<op>_<direction>/<arch>.json`, chain and generic schedules in `schedules/fallback.toml`;
the folder stands at the root of a checkout, and inside the package once installed.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .desc import KernelDesc
from .errors import ScheduleError
from .index_sets import RangeSet
from .schedule import Schedule, ScheduleSpace, multiplies_pairs, require_integer, schedule_class, too_few_blocks
from .target import GpuTarget, Target

FALLBACK = "fallback.toml"
_ROW_FIELDS = {"bucket": dict, "schedule": dict, "record": str, "environment": dict}


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A legal schedule, and the row that it comes from.

    `row` is the tuned row, None for a generic schedule; `tried` says what was looked at, in order, and what came of it.
    """

    schedule: Schedule
    source: str
    row: Mapping[str, Any] | None = None
    tried: tuple[str, ...] = ()


def schedules_folder() -> Path:
    """Return the folder of tuned schedules: the package's own, else the checkout's."""
    package = Path(__file__).parent
    installed = package / "schedules"
    return installed if installed.is_dir() else package.parent / "schedules"


def select(desc: KernelDesc, target: Target, *, folder: Path | None = None) -> Selected:
    """Return the schedule of `desc` on `target`, and where it was found.

    Raises `ScheduleError` if a row is malformed or not legal here, if no schedule is, or if the target has no kernels
    of the dtype.
    """
    reason = target.lacks_kernels(desc.dtype)
    if reason is not None:
        raise ScheduleError(f"{desc} on {target.name}: {reason}; ask for another dtype, or for a CPU target")
    folder = folder or schedules_folder()
    fallback = _read_fallback(folder / FALLBACK)
    tried: list[str] = []
    for arch in _chain(target.name, fallback["chain"]):
        path = folder / desc.kind / f"{arch}.json"
        rows, name = read_rows(path), f"{desc.kind}/{path.name}"
        fitting = _fitting(rows, desc)
        if fitting:
            number = fitting[0]
            row = rows[number]
            source = f"{name} row {number} {json.dumps(row['bucket'], sort_keys=True)}"
            tried.append(f"{source}: names most, of {len(fitting)} rows that fit, of {len(rows)} rows")
            schedule = _legal(row["schedule"], desc, target, source)
            return Selected(schedule=schedule, source=source, row=row, tried=tuple(tried))
        tried.append(f"{name}: {'no tuned rows' if not rows else f'none of its {len(rows)} rows fits'}")
    family = target.matrix if isinstance(target, GpuTarget) else "generic"
    return _generic(family, fallback.get(family, {}).get(desc.kind, []), desc, target, tried)


def chain_of(arch: str) -> tuple[str, ...]:
    """Return the architectures whose rows serve `arch`, its own first; raises `ScheduleError`."""
    return tuple(_chain(arch, _read_fallback(schedules_folder() / FALLBACK)["chain"]))


def facts_of(desc: KernelDesc) -> dict[str, int | str]:
    """Return the facts of a desc that a bucket may name: its dims, `dtype`, and the word for what queries see."""
    seen = {} if desc.visible is None else {"visible": visible_word(desc.visible)}
    return {"dtype": desc.dtype, **seen, **dict(desc.dims)}


def bucket_of(desc: KernelDesc, target: Target) -> dict[str, int | str]:
    """Return the bucket of the row that a tuned `desc` gets: all its facts but the dtype, which shares rows.

    Where its products are made over pairs, other dtypes have other loops, and the bucket names it.
    """
    shared = not multiplies_pairs(desc, target)
    return {name: value for name, value in sorted(facts_of(desc).items()) if name != "dtype" or not shared}


def visible_word(visible: RangeSet) -> str:
    """Return the kind of an index set: `window`, `complete`, `causal`, `everything`, or `union` of several ranges.

    Sets of one kind run the same loops, over ranges of other lengths.
    """
    if len(visible.ranges) > 1:
        return "union"
    (span,) = visible.ranges
    if span.lo.divisor:
        return "window"
    if span.hi.divisor > 1:
        return "complete"
    return "causal" if span.hi.divisor else "everything"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of tuned schedules, none without a file; raises `ScheduleError` for malformed ones."""
    try:
        rows = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ScheduleError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ScheduleError(f"{path} holds a {type(rows).__name__}; it must be a list of rows")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != _ROW_FIELDS.keys() or not row["record"]:
            raise ScheduleError(f"{path} row {number} must have {sorted(_ROW_FIELDS)}, and a record that is not empty")
        for name, kind in _ROW_FIELDS.items():
            if not isinstance(row[name], kind):
                raise ScheduleError(
                    f"{path} row {number}: its {name} is {row[name]!r}; it must be a {kind.__name__}: "
                    f"`nsa-codegen replay` writes rows of the logs again"
                )
        if any(isinstance(value, (dict, list)) for value in row["bucket"].values()):
            raise ScheduleError(
                f"{path} row {number}: its bucket is {row['bucket']!r}; every value must be a number or a word"
            )
    return rows


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


def _fitting(rows: list[dict[str, Any]], desc: KernelDesc) -> list[int]:
    """Return the numbers of the rows whose buckets name facts of `desc` and no others: those that name most first."""
    facts = facts_of(desc)
    fitting = [number for number, row in enumerate(rows) if row["bucket"].items() <= facts.items()]
    return sorted(fitting, key=lambda number: -len(rows[number]["bucket"]))


def _generic(
    family: str, choices: list[dict[str, Any]], desc: KernelDesc, target: Target, tried: list[str]
) -> Selected:
    reasons: list[str] = []
    for number, choice in enumerate(choices):
        source, blocks = f"{FALLBACK} {family}.{desc.kind} choice {number}", choice.get("blocks", 1)
        require_integer(f"{source}: blocks", blocks)
        schedule = schedule_class(target).parse({name: value for name, value in choice.items() if name != "blocks"})
        reason = ScheduleSpace.check(schedule, desc, target) or too_few_blocks(schedule, desc, target, blocks)
        if reason is None:
            return Selected(schedule=schedule, source=source, tried=(*tried, *reasons, f"{source}: legal"))
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
