"""desc + schedule + target -> `KernelSource`: the emitted text. Pure, and needs neither compiler nor device.

TileLang is imported at the first lowering, never by loading a kernel that is already built.
"""

from __future__ import annotations

import functools
from typing import Any

from .desc import KernelDesc
from .lowering_cpu import lower_cpu
from .lowering_gpu import LoweredGpu, lower_gpu
from .schedule import Schedule, ScheduleSpace
from .source import KernelSource, require_tilelang
from .target import GpuTarget, Target


def lower(desc: KernelDesc, schedule: Schedule, target: Target) -> KernelSource:
    """Return the emitted text of `desc` under `schedule` for `target`.

    Raises `ScheduleError` if the schedule is not legal, `LoweringError` if TileLang is missing, of another
    version than the pinned one, or refuses the template.
    """
    if isinstance(target, GpuTarget):
        return lowered_gpu(desc, schedule, target).source
    ScheduleSpace.require(schedule, desc, target)
    return lower_cpu(primitive_function(desc, schedule, target), _title(desc, schedule, target))


@functools.lru_cache(maxsize=1)  # a build lowers for the text, and then makes the library of the same lowering
def lowered_gpu(desc: KernelDesc, schedule: Schedule, target: GpuTarget) -> LoweredGpu:
    """Return the lowered kernel of a GPU target; raises what `lower` raises."""
    ScheduleSpace.require(schedule, desc, target)
    function, title = primitive_function(desc, schedule, target), _title(desc, schedule, target)
    return lower_gpu(function, target, title, specialized=schedule.values()["specialized"] == 1)


def _title(desc: KernelDesc, schedule: Schedule, target: Target) -> str:
    return f"{desc}\nschedule {schedule}\ntarget {target}"


def primitive_function(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the TileLang function of `desc`, before lowering."""
    require_tilelang()
    from .templates import kernel_maker

    return kernel_maker(desc, target)(desc, schedule, target)
