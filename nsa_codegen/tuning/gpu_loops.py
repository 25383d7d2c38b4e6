"""Which launches a GPU kernel makes under a schedule at run-time sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..desc import KernelDesc
from ..schedule import GpuSchedule, has_tensor_copies
from ..splits import holds_weights
from ..target import GpuTarget
from .gpu_attention import gather_launches, select_launches, stream_launches
from .gpu_launch import COPY_GROUP, GpuLaunch
from .gpu_other import combine_launches, compress_launches

if TYPE_CHECKING:
    from ..ops import Sizes


def launches(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget, sizes: Sizes) -> tuple[GpuLaunch, ...]:
    """Return the launches of a kernel at run-time sizes."""
    specialized = schedule.specialized == 1 and has_tensor_copies(desc, target)
    group = COPY_GROUP if specialized else 0
    return tuple(
        replace(_weights_held(x, target), stages=schedule.stages, copiers=group) if x.products else x
        for x in _MAKERS[desc.op](desc, schedule, sizes)
    )


def _weights_held(launch: GpuLaunch, target: GpuTarget) -> GpuLaunch:
    """Return a loop over queries whose warps keep the weights, the left side of its last two products, in registers.

    Other launches, and loops whose weights pass through shared memory, are returned as they are.
    """
    over_queries = launch.products[0].square
    if not over_queries or not holds_weights(rows=launch.products[0].rows, threads=launch.threads, target=target):
        return launch
    products = tuple(replace(p, square=False, stored=number < 2) for number, p in enumerate(launch.products))
    tile = int(launch.staged) // 2  # which is written twice a step
    return replace(launch, products=products, staged=0.0, barriers=launch.barriers - 2, shared=launch.shared - tile)


_MAKERS = {
    "stream_attention": stream_launches,
    "gather_attention": gather_launches,
    "select_blocks": select_launches,
    "combine": combine_launches,
    "compress": compress_launches,
}
