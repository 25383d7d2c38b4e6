"""`Schedule`: one point of how a kernel is made; `ScheduleSpace`: which points are legal, and why others are not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from .desc import KernelDesc
from .errors import ScheduleError, nearest
from .target import Target


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The tuned choices of a CPU kernel.

    `query_lanes`: rows (query, head) laid side by side in the vector lanes of one tile.
    `key_tile`: keys, blocks or windows taken in one step of the loop over keys.
    `register_rows`, `register_vectors`: the register tile of the product, in rows and vectors.
    """

    query_lanes: int = 64
    key_tile: int = 64
    register_rows: int = 4
    register_vectors: int = 4

    def to_json(self) -> dict[str, int]:
        """Return the schedule as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Schedule:
        """Return the schedule that `to_json` described; raises `ScheduleError` on an unknown or non-integer field."""
        names = tuple(f.name for f in fields(cls))
        for name, value in data.items():
            if name not in names:
                raise ScheduleError(f"Schedule has no field {name!r}: {nearest(name, names)}")
            if isinstance(value, bool) or not isinstance(value, int):
                raise ScheduleError(f"Schedule.{name} = {value!r} is not allowed: it must be an integer")
        return cls(**data)

    def __str__(self) -> str:
        return " ".join(f"{k}={v}" for k, v in asdict(self).items())


class ScheduleSpace:
    """The schedules that a desc may have on a target."""

    axes: ClassVar[dict[str, tuple[int, ...]]] = {
        "query_lanes": (16, 32, 64, 128),
        "key_tile": (16, 32, 64, 128),
        "register_rows": (2, 4, 6, 8),
        "register_vectors": (1, 2, 4),
    }

    @classmethod
    def candidates(cls, desc: KernelDesc, target: Target) -> Iterator[Schedule]:
        """Yield every legal schedule."""
        for values in itertools.product(*cls.axes.values()):
            schedule = Schedule(**dict(zip(cls.axes, values, strict=True)))
            if cls.check(schedule, desc, target) is None:
                yield schedule

    @classmethod
    def check(cls, schedule: Schedule, desc: KernelDesc, target: Target) -> str | None:
        """Return None if `schedule` is legal for `desc` on `target`, else the reason why it is not."""
        for name, value in asdict(schedule).items():
            if value < 1:
                return f"{name} = {value} must be at least 1"
        if schedule.query_lanes % target.lanes:
            return (
                f"query_lanes = {schedule.query_lanes} is not a multiple of the {target.lanes} lanes of {target.name}"
            )
        tile = schedule.register_rows * schedule.register_vectors
        needed = tile + schedule.register_vectors + 1
        if needed > target.vector_registers:
            have = target.vector_registers
            return f"a register tile of {tile} vectors needs {needed} registers; {target.name} has {have}"
        scratch = 4 * schedule.query_lanes * (schedule.key_tile + desc_depth(desc))
        if scratch > MAX_SCRATCH_BYTES:
            return f"tiles of {scratch} bytes pass the {MAX_SCRATCH_BYTES} allowed on a worker's stack"
        return None

    @classmethod
    def require(cls, schedule: Schedule, desc: KernelDesc, target: Target) -> Schedule:
        """Return `schedule`; raise `ScheduleError` with the reason if it is not legal."""
        reason = cls.check(schedule, desc, target)
        if reason is not None:
            raise ScheduleError(f"schedule ({schedule}) is not legal for {desc} on {target.name}: {reason}")
        return schedule


MAX_SCRATCH_BYTES = 1 << 20


def desc_depth(desc: KernelDesc) -> int:
    """Return the feature rows that a tile of `desc` keeps per lane: keys' and values' dims together."""
    return sum(v for k, v in desc.dims if k in ("dk", "dv", "dim", "hidden") and isinstance(v, int))
