"""A program's kernels in one call: for few queries, as in decoding, and for batch rows that are small each.

Laying out arguments by kernel takes longer than kernels of few queries do. And where a batch row fits in the second
cache, each thread takes rows of its own through all kernels: what one leaves, the next finds there, and no thread
waits for another. Working memory is one piece if it is small. What the kernels are given is what `OpDef.prepare` lays
out for each: both take it from `OpDef.extent`.
"""

from __future__ import annotations

import array
import functools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .dispatch import MAX_TASKS, Kernel
from .errors import InputError, KernelFailedError
from .ops import OPS
from .ops.base import Call, ExtentOf
from .ops.gather_attention import SUMS_SCALE
from .runs import Runs
from .tiling import ceil_div

CACHE_LINE = 64  # bytes
ONE_PIECE = 1 << 24  # bytes of memory that is taken at once; the C library gives larger pieces back after each call
QUERIES, SCALE, SUMS = "q", "scale", "scale of sums"
Moving = tuple[int, int, int]  # eight bytes of an argument, and what they grow by from row to row, and by worker


@dataclass(frozen=True, kw_only=True)
class Area:
    """Memory of a tensor between kernels: `bytes` per query and head, or with `lists` per query and key/value head.

    With `block`, per block of so many of the keys named `keys`, and per key/value head: the complete ones, or all. With
    `runs`, per key that a run of queries reaches, run and key/value head.
    """

    name: str
    bytes: int
    lists: bool = False
    keys: str = ""
    block: int = 0
    complete: bool = True
    runs: Callable[[Call], Runs] | None = None


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
        given = {SCALE: SCALE, **tensors}
        slots = tuple((name in given, given.get(name, name)) for name in kernel.names)
        return cls(kernel=kernel, extent=extent(kernel.desc, kernel.schedule), keys=keys, slots=slots)


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """The kernels of a program in the order in which they run, and the memory between them.

    The tensors of a call have names: `q`, `keys 0`, `values 0` and so on by path, and what steps call the others.
    """

    steps: tuple[Step, ...]
    areas: tuple[Area, ...]

    def __call__(self, tensors: Mapping[str, Tensor], *, q_start: int, scale: float, by_row: bool) -> None:
        """Run the kernels on contiguous tensors, some of which they write; those of one dimension are for all rows.

        Areas that `tensors` names are these, the others are memory of this call. Threads share the tasks of each
        kernel, or with `by_row` the batch rows. Raises `InputError` for too many tasks, and `KernelFailedError`.
        """
        q, workers = tensors[QUERIES], torch.get_num_threads()
        (batch, tokens, heads, _), kv_heads = q.shape, tensors["keys 0"].shape[2]
        rows, lead, copies = (batch, 1, workers) if by_row else (1, batch, 1)
        at: dict[str, Moving] = {SCALE: (_bits(scale), 0, 0), SUMS: (_bits(SUMS_SCALE), 0, 0)}
        counts = {}
        for name, x in tensors.items():
            whole = x.dim() == 1
            at[name] = (x.data_ptr(), 0 if whole else x.nbytes // rows, 0)
            counts[name] = 0 if whole else x.shape[1]

        def call_of(keys: str) -> Call:
            of_heads = heads if keys == QUERIES else kv_heads
            return Call(workers, lead, tokens, counts[keys], of_heads, q_start, batch, heads // kv_heads)

        sizes: dict[str, int] = {}
        for area in self.areas:
            if area.name in at:
                continue
            if area.runs is not None:
                runs = area.runs(call_of(area.keys))
                many = kv_heads * runs.count * runs.reach
            elif area.block:
                count = counts[area.keys]
                counts[area.name] = count // area.block if area.complete else ceil_div(count, area.block)
                many = kv_heads * counts[area.name]
            else:
                many = tokens * (kv_heads if area.lists else heads)
            sizes[area.name] = _lines(lead * many * area.bytes)
        extents = [step.extent(call_of(step.keys)) for step in self.steps]
        if (most := max([extent.tasks for extent in extents])) > MAX_TASKS:
            raise InputError(f"attention: {most} tasks are more than the {MAX_TASKS} of one call; split the batch")
        scratch = sum([_lines(4 * n) for extent in extents for n in extent.scratch.values()])
        needed = copies * sum(sizes.values()) + scratch
        apart = needed > ONE_PIECE
        held = [torch.empty(0 if apart else needed, dtype=torch.uint8)]
        free = held[0].data_ptr()
        for name, size in sizes.items():
            if apart:
                free = _another(held, copies * size)
            at[name] = (free, 0, size)
            free += copies * size
        call: list[int] = []
        for step, extent in zip(self.steps, extents, strict=True):
            own = extent.sizes
            for name, elements in extent.scratch.items():
                if apart:
                    free = _another(held, 4 * elements)
                own[name] = free
                free += _lines(4 * elements)
            call += (step.kernel.artifact.address, extent.tasks, len(step.slots))
            for shared, name in step.slots:
                call += at[name] if shared else (own[name], 0, 0)
        self._run(call, rows, workers)  # `held` is the kernels' memory until they end

    def _run(self, call: list[int], rows: int, workers: int) -> None:
        numbers = array.array("q", call)
        pool = self.steps[0].kernel.artifact.pool
        status = pool.sequence(numbers.buffer_info()[0], len(self.steps), rows, workers)
        if status:
            names = [step.kernel.artifact.entry.manifest.entry for step in self.steps]
            raise KernelFailedError(f"one of {names} returned status {status} (rows={rows}, threads={workers})")


@functools.lru_cache(maxsize=64)
def _bits(x: float) -> int:
    """Return a float32 as an integer of the same bits."""
    bits: int = struct.unpack("<I", struct.pack("<f", x))[0]
    return bits


def _another(held: list[Tensor], size: int) -> int:
    """Return the address of `size` bytes more, and add them to what is held."""
    held.append(torch.empty(size, dtype=torch.uint8))
    return held[-1].data_ptr()


def _lines(size: int) -> int:
    """Return `size` bytes rounded up to whole cache lines, so that everything begins at one."""
    return -(-size // CACHE_LINE) * CACHE_LINE
