"""The space that is searched for one desc: its axes, the legal schedules, how many are refused and why; the default."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..desc import KernelDesc
from ..errors import ScheduleError
from ..schedule import Schedule, ScheduleSpace, schedule_class
from ..selection import FALLBACK, schedules_folder, select
from ..target import Target


@dataclass(frozen=True, kw_only=True)
class Space:
    """The schedules of `desc` on `target`.

    `axes` are the values of each field, `raw` the number of their combinations, `legal` those that `check` lets pass,
    and `refused` how many it refuses by kind of reason. `default` is the schedule of a desc that was never tuned, and
    `shipped` that of its tuned row, None without one.
    """

    desc: KernelDesc
    target: Target
    axes: Mapping[str, tuple[int, ...]]
    raw: int
    legal: tuple[Schedule, ...]
    refused: Mapping[str, int]
    default: Schedule
    shipped: Schedule | None = None

    @classmethod
    def of(cls, desc: KernelDesc, target: Target) -> Space:
        """Return the space; raises `ScheduleError` if no schedule of the fallback file is legal."""
        default, tuned = default_schedule(desc, target), _tuned(desc, target)
        axes = ScheduleSpace.axes(desc, target, default)
        legal, refused = [], Counter[str]()
        for schedule in _combinations(axes, target):
            reason = ScheduleSpace.check(schedule, desc, target)
            if reason is None:
                legal.append(schedule)
            else:
                refused[reason_kind(reason)] += 1
        raw = len(legal) + refused.total()
        return cls(
            desc=desc, target=target, axes=axes, raw=raw, legal=tuple(legal), refused=dict(refused), default=default,
            shipped=tuned if tuned in legal and tuned != default else None,
        )  # fmt: skip

    def schedule(self, values: Mapping[str, int]) -> Schedule:
        """Return the schedule with these values of the axes."""
        return schedule_class(self.target).parse(dict(values))

    def to_json(self) -> dict[str, Any]:
        """Return the numbers that a log's meta keeps."""
        return {"raw": self.raw, "legal": len(self.legal), "refused": dict(sorted(self.refused.items()))}


def reason_kind(reason: str) -> str:
    """Return a reason of `check` with its numbers as `#`, so that refusals of one cause count together."""
    return re.sub(r"(?<!\w)\d+(\.\d+)?(?!\w)", "#", reason)


@functools.cache
def default_schedule(desc: KernelDesc, target: Target) -> Schedule:
    """Return the schedule that `desc` has without any tuned row; raises `ScheduleError` if there is none."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(schedules_folder() / FALLBACK, Path(folder) / FALLBACK)
        return select(desc, target, folder=Path(folder)).schedule


def _tuned(desc: KernelDesc, target: Target) -> Schedule | None:
    """Return the schedule that `schedules/` gives; None if its row can't be read or is not legal."""
    with contextlib.suppress(ScheduleError):
        return select(desc, target).schedule
    return None


def _combinations(axes: Mapping[str, tuple[int, ...]], target: Target) -> Iterator[Schedule]:
    for values in itertools.product(*axes.values()):
        yield schedule_class(target)(**dict(zip(axes, values, strict=True)))
