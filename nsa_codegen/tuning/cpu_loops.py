"""What a CPU kernel does under a schedule at run-time sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..desc import KernelDesc
from ..schedule import CpuSchedule
from .cpu_attention import gather_loop, scored_loop, select_loop, stream_loop
from .cpu_loop import CpuLoop
from .cpu_other import combine_loop, compress_loop, pack_loop

if TYPE_CHECKING:
    from ..ops import Sizes


def loop(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """Return what the kernel of `desc` does at run-time sizes."""
    return _MAKERS[desc.op](desc, schedule, sizes)


_MAKERS = {
    "stream_attention": stream_loop,
    "gather_attention": gather_loop,
    "select_blocks": select_loop,
    "scored_attention": scored_loop,
    "combine": combine_loop,
    "compress": compress_loop,
    "pack_blocks": pack_loop,
}
