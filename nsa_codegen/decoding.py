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
QUERIES = "q"


@dataclass(frozen=True, kw_only=True)
class Area:
    """Memory of a tensor between kernels: `bytes` per query and head, or with `lists` per query and key/value head.

    With `block`, per block of so many of the keys named `keys`, and per key/value head.
    """

    name: str
    bytes: int
    lists: bool = False
    keys: str = ""
    block: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """A kernel, what sizes make of it, and the names of the tensors that it takes; it goes through that called `keys`.

    `slots` are its arguments in order: a tensor's name, or else what its extent calls the argument.
    """

    kernel: Kernel
    extent: ExtentOf
    keys: str
    slots: tuple[tuple[bool, str], ...]

    @classmethod
    def of(cls, kernel: Kernel, keys: str, **tensors: str) -> Step:
        """Return the step of a kernel of the CPU; `tensors` are names by argument."""
        extent = OPS[kernel.desc.op].extent
        assert extent is not None
        given = {**tensors, "scale": "scale"}
        slots = tuple((name in given, given.get(name, name)) for name in kernel.names)
        return cls(kernel=kernel, extent=extent(kernel.desc, kernel.schedule), keys=keys, slots=slots)


@dataclass(frozen=True, kw_only=True)
class FewQueries:
    """The kernels of a program in the order in which they run, and the memory between them.

    The tensors of a call are called `q`, `keys 0`, `values 0` and so on by path, `gates`, and `out`, which is written.
    """

    steps: tuple[Step, ...]
    areas: tuple[Area, ...]

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
        kv_heads, workers = keys[0].shape[2], torch.get_num_threads()
        at: dict[str, Any] = {"scale": scale, "gates": gates.data_ptr(), "out": out.data_ptr(), QUERIES: q.data_ptr()}
        counts = {QUERIES: tokens}
        for path, k in enumerate(keys):
            at[f"keys {path}"], at[f"values {path}"] = k.data_ptr(), values[path].data_ptr()
            counts[f"keys {path}"] = k.shape[1]
        size = 0
        for area in self.areas:
            at[area.name] = size
            if area.block:
                counts[area.name] = counts[area.keys] // area.block
                size += _lines(batch * kv_heads * counts[area.name] * area.bytes)
            else:
                size += _lines(batch * tokens * (kv_heads if area.lists else heads) * area.bytes)
        extents = []
        free = size
        for step in self.steps:
            of_heads = heads if step.keys == QUERIES else kv_heads
            extent = step.extent(workers, batch, tokens, counts[step.keys], of_heads, q_start)
            size += sum([_lines(4 * elements) for elements in extent.scratch.values()])
            extents.append(extent)
        memory = torch.empty(size, dtype=torch.uint8)
        base = memory.data_ptr()
        free += base
        for area in self.areas:
            at[area.name] += base
        for step, extent in zip(self.steps, extents, strict=True):
            own = extent.sizes
            for name, elements in extent.scratch.items():
                own[name] = free
                free += _lines(4 * elements)
            arguments = [at[name] if shared else own[name] for shared, name in step.slots]
            step.kernel.artifact.launch(extent.tasks, *arguments, threads=workers)


def _lines(size: int) -> int:
    """Return `size` bytes rounded up to whole cache lines, so that everything begins at one."""
    return -(-size // CACHE_LINE) * CACHE_LINE
