"""Which launches a GPU kernel makes under a schedule at run-time sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..desc import KernelDesc
from ..schedule import GpuSchedule
from ..target import GpuTarget
from .gpu_attention import gather_launches, select_launches, stream_launches
from .gpu_launch import COPY_GROUP, GpuLaunch
from .gpu_other import combine_launches, compress_launches

if TYPE_CHECKING:
    from ..ops import Sizes


def launches(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget, sizes: Sizes) -> tuple[GpuLaunch, ...]:
    """Return the launches of a kernel at run-time sizes."""
    group = COPY_GROUP if target.copy == "tma" else 0
    return tuple(
        replace(x, stages=schedule.stages, copiers=0 if x.plain else group) if x.products else x
        for x in _MAKERS[desc.op](desc, schedule, sizes)
    )


_MAKERS = {
    "stream_attention": stream_launches,
    "gather_attention": gather_launches,
    "select_blocks": select_launches,
    "combine": combine_launches,
    "compress": compress_launches,
}
