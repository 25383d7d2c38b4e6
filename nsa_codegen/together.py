"""Heads of few queries that a CPU's thread passes over keys together: for the templates and for whoever launches them.

Heads of one position lie side by side in memory, one head of many positions far apart.
"""

from __future__ import annotations

from .desc import KernelDesc
from .schedule import CpuSchedule
from .tiling import ceil_div

MOST_TOGETHER = 8  # of more than some heads, a position's are pages anyway
TOGETHER_BYTES = 128 << 10  # of keys and values that they read in a step, which the second cache has room for


def most_together(desc: KernelDesc, schedule: CpuSchedule) -> int:
    """Return how many heads may pass over their keys together where each has few rows."""
    numbers = schedule.key_tile * (desc.size("dk") + desc.size("dv"))
    return max(1, min(MOST_TOGETHER, TOGETHER_BYTES // (4 * numbers)))


def shared_evenly(heads: int, most: int, workers: int) -> int:
    """Return how many of `heads` heads, at most `most`, a task has so that workers have as many tasks each."""
    return max(1, ceil_div(heads, workers * ceil_div(heads, workers * most)))
