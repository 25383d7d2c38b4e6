"""A program over few queries, as in decoding, where laying out its kernels' arguments takes longer than the kernels.

All working memory of the call is one piece, and arguments are addresses in it, so that nothing is allocated or wrapped
by kernel. What the kernels are given is what `OpDef.prepare` lays out for each: both take it from `OpDef.extent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .dispatch import Kernel
from .ops import OPS
from .ops.base import ExtentOf

CACHE_LINE = 64  # bytes


@dataclass(frozen=True, kw_only=True)
class Step:
    """A kernel and what sizes make of it; that of a path may list the blocks of the path `lists`."""

    kernel: Kernel
    extent: ExtentOf
    path: int = 0
    lists: int | None = None

    @classmethod
    def of(cls, kernel: Kernel, path: int = 0, lists: int | None = None) -> Step:
        """Return the step of a kernel of the CPU."""
        extent = OPS[kernel.desc.op].extent
        assert extent is not None
        return cls(kernel=kernel, extent=extent(kernel.desc, kernel.schedule), path=path, lists=lists)

    def run(self, tasks: int, given: dict[str, Any], workers: int) -> None:
        """Run the kernel on addresses and numbers by argument name."""
        self.kernel.artifact.launch(tasks, *[given[name] for name in self.kernel.names], threads=workers)


@dataclass(frozen=True, kw_only=True)
class FewQueries:
    """The kernels of a program, the paths' in the order in which they run.

    An output has `row_bytes` per query and head, and a list of blocks `list_bytes` per query and key/value head.
    """

    steps: tuple[Step, ...]
    combine: Step
    row_bytes: int
    list_bytes: int

    def __call__(
        self,
        q: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        gates: Tensor,
        *,
        q_start: int,
        scale: float,
        out: Tensor,
    ) -> None:
        """Write what the program computes of contiguous tensors to `out`; gates are as `combine` reads them."""
        batch, tokens, heads, _ = q.shape
        kv_heads, workers, rows = keys[0].shape[2], torch.get_num_threads(), batch * tokens * heads
        extents = [s.extent(workers, batch, tokens, keys[s.path].shape[1], kv_heads, q_start) for s in self.steps]
        lse = _lines(rows * self.row_bytes)
        listed = lse + _lines(rows * 4)
        of_path = listed + _lines(batch * tokens * kv_heads * self.list_bytes)
        held = len(self.steps) * of_path
        held += sum([_lines(4 * elements) for extent in extents for elements in extent.scratch.values()])
        memory = torch.empty(held, dtype=torch.uint8)
        free, queries = memory.data_ptr(), q.data_ptr()
        outs: dict[str, Any] = {}
        lists: dict[int, int] = {}
        for step, extent in zip(self.steps, extents, strict=True):
            path, given = step.path, extent.sizes
            given |= {"q": queries, "k": keys[path].data_ptr(), "v": values[path].data_ptr(), "scale": scale}
            given |= {"out": free, "lse": free + lse, "indices": free + listed, "block_indices": lists.get(path)}
            outs[f"o{path}"] = free
            if step.lists is not None:
                lists[step.lists] = free + listed
            free += of_path
            for name, elements in extent.scratch.items():
                given[name] = free
                free += _lines(4 * elements)
            step.run(extent.tasks, given, workers)
        extent = self.combine.extent(workers, 1, rows, rows, 1, 0)
        self.combine.run(
            extent.tasks, {**outs, **extent.sizes, "gates": gates.data_ptr(), "out": out.data_ptr()}, workers
        )


def _lines(size: int) -> int:
    """Return `size` bytes rounded up to whole cache lines, so that everything begins at one."""
    return -(-size // CACHE_LINE) * CACHE_LINE
