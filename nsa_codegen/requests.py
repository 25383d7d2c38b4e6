"""The kernels that a program takes, each with its schedule: what is built ahead of use."""

from __future__ import annotations

from collections.abc import Iterable

from .build import Request
from .desc import KernelDesc
from .needed import needed_descs
from .program import Program
from .schedule import narrowed
from .selection import select
from .target import Target


def needed_requests(program: Program, dtype: str, target: Target, direction: str = "both") -> tuple[Request, ...]:
    """Return the requests for `needed_descs` on `target`; raises `SpecError` and `ScheduleError`."""
    return requests_for(needed_descs(program, dtype, direction, target=target), target)


def requests_for(descs: Iterable[KernelDesc], target: Target) -> tuple[Request, ...]:
    """Return each desc with the schedule that is selected for it on `target`, and with that for few queries.

    Raises `ScheduleError`.
    """
    chosen = [(d, select(d, target).schedule) for d in descs]
    chosen += [(d, narrowed(schedule, d, target)) for d, schedule in chosen]
    return tuple(dict.fromkeys(Request(desc=d, schedule=s, target=target) for d, s in chosen))
