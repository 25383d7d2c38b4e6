"""Which candidate of a run's records is worth a row of `schedules/`, and why it is or is not.

The default stays unless it is beaten for certain. Measured: by more than 2 %, in the last final round and beyond its
spread: in three of four turns, or where a record does not say what turns were like, in quartiles of either time.
Static: by more than 5 % in the time predicted for code that was compiled and does not spill, since a model is less
sure than a clock. A default that spills is not fit to be shipped, and stays only if all others do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from ..desc import KernelDesc
from ..errors import ScheduleError
from ..schedule import Schedule, ScheduleSpace, schedule_class
from ..target import Target
from .records import Record
from .space import default_schedule

BEATS = {"measured": 1.02, "static": 1.05}  # the default's time over the candidate's
MEASURED_LEAST_SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """A record and the number of its line in its log, from 1 on."""

    line: int
    record: Record


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a run says of a desc: the `winner`, None where the default stays; `reason` says why.

    `best` is the winner, or of those that did not win the one that came nearest; of a run that came to no end, the best
    of its search; None if nothing is fit. `gain` is the default's time over its time, infinite where the default does
    not compile, None where it is not known. `decided` is False for a run that says nothing against an earlier one: it
    came to no end, or its best is within the spread. But the schedules `beaten`, which it held to the default and found
    no faster, it speaks against. `refused` are candidates that would have won and are not legal, with the reason.
    `upheld` is the record of a default that a clock found best.
    """

    winner: Numbered | None
    reason: str
    best: Numbered | None = None
    gain: float | None = None
    decided: bool = True
    beaten: tuple[Mapping[str, int], ...] = ()
    refused: tuple[str, ...] = ()
    upheld: Numbered | None = None

    @property
    def finite_gain(self) -> float | None:
        """The gain as it is shown: None where it is not known, or the default does not compile."""
        return None if self.gain is None or math.isinf(self.gain) else self.gain


def verdict(desc: KernelDesc, target: Target, records: Iterable[Numbered]) -> Verdict:
    """Return what the records of one run say of `desc`; every schedule is checked again."""
    found = list(records)
    judge = _measured if any(n.record.judge == "measured" for n in found) else _static
    ranked = judge(desc, target, found)
    if ranked is None:
        best, gain = _best_of_search(desc, target, found)
        return Verdict(
            winner=None, reason="the run came to no end: no finalist was measured, and nothing compiled", best=best,
            gain=gain, decided=False,
        )  # fmt: skip
    refused, doubted = [], []
    for candidate in ranked:
        numbered = candidate.numbered
        reason = illegal(numbered.record.schedule, desc, target)
        if reason is not None:
            refused.append(f"line {numbered.line}: {reason}")
        elif candidate.doubt:
            doubted.append(candidate)
        else:
            said = f"{candidate.gain:.2f} times as fast as the default{candidate.note}, {numbered.record.judge}"
            return Verdict(winner=numbered, reason=said, best=numbered, gain=candidate.gain, refused=tuple(refused))
    if not doubted:
        return Verdict(winner=None, reason="no candidate is fit", refused=tuple(refused))
    near = doubted[0]
    upheld = None if near.within_spread or judge is _static else _of_schedule(found, default_schedule(desc, target))
    return Verdict(
        winner=None, reason=near.doubt, best=near.numbered, gain=near.gain, decided=not near.within_spread,
        beaten=_beaten(found), refused=tuple(refused), upheld=upheld,
    )  # fmt: skip


def _best_of_search(desc: KernelDesc, target: Target, found: list[Numbered]) -> tuple[Numbered | None, float | None]:
    """Return the best of what was judged, of a static run without what spills, and its gain where that is known."""
    ranked = ranked_records(n.record for n in found if n.record.judge == "measured" or not n.record.spills)
    if not ranked:
        return None, None
    best = next(n for n in found if n.record == ranked[0])
    if best.record.judge == "measured":
        return best, best.record.speedup
    base = _of_schedule((n for n in found if n.record.predicted), default_schedule(desc, target))
    return best, None if base is None else _seconds(base) / _seconds(best)


def ranked_records(records: Iterable[Record]) -> tuple[Record, ...]:
    """Return those that are ok, the best first: by the speed-up where it was measured, else by the predicted time."""
    return tuple(sorted((r for r in records if cost_of(r) is not None), key=lambda r: cost_of(r) or 0.0))


def cost_of(record: Record) -> float | None:
    """Return what the search makes as small as it can: time over the default's of the same turns, or predicted seconds.

    None for what is not ok.
    """
    if record.status != "ok":
        return None
    if record.judge == "measured":
        return None if record.speedup is None else 1 / record.speedup
    return record.seconds


def _of_schedule(found: Iterable[Numbered], schedule: Schedule) -> Numbered | None:
    """Return the first record of a schedule that is right, if there is one."""
    values = schedule.to_json()
    return next((n for n in found if n.record.status == "ok" and dict(n.record.schedule) == values), None)


def _beaten(found: Iterable[Numbered]) -> tuple[Mapping[str, int], ...]:
    """Return the schedules that were no faster than the default in the last final round that they were in."""
    rounds = final_rounds(n.record for n in found)
    gains = {tuple(sorted(r.schedule.items())): r.speedup for of_round in rounds for r in of_round}
    return tuple(dict(schedule) for schedule, gain in gains.items() if gain is not None and gain <= 1)


def illegal(values: Mapping[str, Any], desc: KernelDesc, target: Target) -> str | None:
    """Return why a schedule given as plain data is not legal for a desc, None if it is."""
    try:
        schedule: Schedule = schedule_class(target).parse(dict(values))
    except ScheduleError as error:
        return str(error)
    return ScheduleSpace.check(schedule, desc, target)


def schedule_text(values: Mapping[str, int], target: Target) -> str:
    """Return a schedule that is given as plain data as schedules print themselves, whatever the order of its fields."""
    names = [f.name for f in fields(schedule_class(target))]
    return " ".join(f"{n}={values[n]}" for n in sorted(values, key=lambda n: names.index(n) if n in names else -1))


class _Candidate(NamedTuple):
    """A candidate, its gain, what speaks against a row, or "", whether that is the spread of its times, and a note.

    The gain is None where it is not known, which speaks against a row.
    """

    numbered: Numbered
    gain: float | None
    doubt: str = ""
    within_spread: bool = False
    note: str = ""


def final_rounds(records: Iterable[Record]) -> list[tuple[Record, ...]]:
    """Return the measured finalists of each final round, the last one last."""
    finals = [r for r in records if r.stage == "final" and r.status == "ok" and r.measured]
    return [tuple(of_round) for _, of_round in itertools.groupby(finals, lambda r: r.default)]  # which is timed once


def _measured(desc: KernelDesc, target: Target, found: list[Numbered]) -> list[_Candidate] | None:
    """Rank the finalists of the last final round by measured time."""
    rounds = final_rounds(n.record for n in found)
    if not rounds:
        return None
    finals = [n for n in found if n.record in rounds[-1]]
    ranked: list[_Candidate] = []
    for numbered in sorted(finals, key=lambda n: _order(n, n.record.measured.median if n.record.measured else 0.0)):
        measured, default, by_turn = numbered.record.measured, numbered.record.default, numbered.record.gain
        assert measured is not None
        if default is None:
            ranked.append(_Candidate(numbered, None, "the default was not timed beside it"))
            continue
        gain, doubt, within_spread = numbered.record.speedup, "", False
        assert gain is not None
        if gain <= BEATS["measured"]:
            doubt = f"the best is {gain:.3f} times as fast as the default: not beyond {BEATS['measured']}"
        elif min(measured.samples, default.samples) < MEASURED_LEAST_SAMPLES:
            doubt = f"{min(measured.samples, default.samples)} samples are less than {MEASURED_LEAST_SAMPLES}"
        elif by_turn.low <= 1.0 if by_turn is not None else measured.high >= default.low:
            doubt = f"{gain:.3f} times as fast as the default, which is within the spread of both"
            within_spread = True
        ranked.append(_Candidate(numbered, gain, doubt, within_spread))
    return ranked


def _static(desc: KernelDesc, target: Target, found: list[Numbered]) -> list[_Candidate] | None:
    """Rank what was compiled and does not spill by predicted time."""
    compiled = [
        n for n in found if n.record.status == "ok" and n.record.predicted and "registers" in (n.record.resources or {})
    ]
    if not compiled:
        return None
    default = default_schedule(desc, target)
    base = _of_schedule(compiled, default)
    failed = any(n.record.status == "failed" and dict(n.record.schedule) == default.to_json() for n in found)
    spills = base is not None and base.record.spills
    ranked: list[_Candidate] = []
    for numbered in sorted(compiled, key=lambda n: _order(n, _seconds(n))):
        if numbered.record.spills:
            continue
        gain = _seconds(base) / _seconds(numbered) if base is not None else math.inf if failed else None
        doubt = ""
        if gain is None:
            doubt = "the default was not compiled, so that nothing is known to beat it"
        elif gain <= BEATS["static"] and not spills:
            doubt = f"the best is predicted {gain:.3f} times as fast as the default: not beyond {BEATS['static']}"
        ranked.append(_Candidate(numbered, gain, doubt, note=", which spills" if spills else ""))
    return ranked


def _order(numbered: Numbered, seconds: float) -> tuple[float, list[int]]:
    return seconds, list(numbered.record.schedule.values())


def _seconds(numbered: Numbered) -> float:
    predicted = numbered.record.predicted
    assert predicted is not None
    return predicted["seconds"]
