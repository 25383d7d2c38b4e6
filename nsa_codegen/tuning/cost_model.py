"""The cost model: a time for a candidate that was never run, from its description, its schedule and the target.

Pure and cheap, and without a compiler; what was compiled, `resources`, makes it better. docs/cost-model.md has the
formulas, the source of each constant, and what is left out; `honesty` says how well it ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..desc import KernelDesc
from ..errors import ScheduleError
from ..schedule import CpuSchedule, GpuSchedule, Schedule, schedule_class
from ..target import CpuTarget, GpuTarget, Target
from .cost_cpu import predict_cpu
from .cost_gpu import predict_gpu
from .prediction import Prediction

if TYPE_CHECKING:
    from ..ops import Sizes

__all__ = ["Prediction", "predict"]


def predict(
    desc: KernelDesc,
    schedule: Schedule,
    target: Target,
    sizes: Sizes,
    resources: Mapping[str, Any] | None = None,
) -> Prediction:
    """Return the predicted time of one call of a kernel at run-time sizes.

    `resources` are a manifest's: registers, spills, shared memory, instructions. Raises `ScheduleError` for a schedule
    of the other family of targets.
    """
    if isinstance(target, CpuTarget) and isinstance(schedule, CpuSchedule):
        return predict_cpu(desc, schedule, target, sizes)
    if isinstance(target, GpuTarget) and isinstance(schedule, GpuSchedule):
        return predict_gpu(desc, schedule, target, sizes, resources)
    raise ScheduleError(
        f"a {type(schedule).__name__} is not for {target.kind} targets; use a {schedule_class(target).__name__}"
    )
