"""A program's kernels in one call: for few queries, as in decoding, and for batch rows that are small each.

Laying out arguments by kernel takes longer than kernels of few queries do. And where a batch row fits in the second
cache, each thread takes rows of its own through all kernels: what one leaves, the next finds there, and no thread
waits for another. Working memory is one piece if it is small. What the kernels are given is what `OpDef.prepare` lays
out for each: both take it from `OpDef.extent`.
"""

from __future__ import annotations

import array
import functools
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .dispatch import MAX_TASKS, Kernel
from .errors import InputError, KernelFailedError
from .ops import OPS
from .ops.base import Call, ExtentOf
from .pages import in_large_pages
from .runs import SUMS_SCALE, Runs
from .tiling import ceil_div

CACHE_LINE = 64  # bytes
SPARE = 1 << 20  # bytes of memory that small calls leave to the next one
QUERIES, START, SCALE, SUMS = "q", "q_start", "scale", "scale of sums"
LAYOUTS = 64  # that a sequence keeps: one for each set of sizes
Place = tuple[
    int, int, int, int
]  # an argument: its base, how far from it, and what it grows by from row to row, by worker


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

    `slots` are its arguments in order: a tensor's name, or else what its extent calls the argument, or `numbers` does.
    With `beside`, it needs nothing of the step before, and may run at the same time.
    """

    kernel: Kernel
    extent: ExtentOf
    keys: str
    slots: tuple[tuple[bool, str], ...]
    numbers: Mapping[str, int]
    beside: bool = False

    @classmethod
    def of(cls, kernel: Kernel, keys: str, numbers: Mapping[str, int] | None = None, /, **tensors: str) -> Step:
        """Return the step of a kernel of the CPU; `tensors` are names by argument, `numbers` are constants."""
        extent = OPS[kernel.desc.op].extent
        assert extent is not None
        given = {START: START, SCALE: SCALE, **tensors}
        slots = tuple((name in given, given.get(name, name)) for name in kernel.names)
        made = extent(kernel.desc, kernel.schedule)
        return cls(kernel=kernel, extent=made, keys=keys, slots=slots, numbers=numbers or {})


class Layout(NamedTuple):
    """What sizes make of a sequence: the numbers that the pool reads, and bytes of the memory that it takes.

    Bases of arguments are 0, the tensors of the call in order, the memory, and the position of the first query.
    """

    numbers: array.array[int]
    memory: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Sequence:
    """The kernels of a program in the order in which they run, and the memory between them.

    The tensors of a call have names: `q`, `keys 0`, `values 0` and so on by path, and what steps call the others. A
    name stands for one type. Calls of one set of sizes share a layout: the layers of a model, one after the other.
    """

    steps: tuple[Step, ...]
    areas: tuple[Area, ...]

    def __call__(self, tensors: Mapping[str, Tensor], *, q_start: int, scale: float, by_row: bool) -> None:
        """Run the kernels on contiguous tensors, some of which they write; those of one dimension are for all rows.

        Areas that `tensors` names are these, the others are memory of this call. Threads share the tasks of each
        kernel, or with `by_row` the batch rows. Raises `InputError` for too many tasks, and `KernelFailedError`.
        """
        self.ready(tensors, q_start=q_start, scale=scale, by_row=by_row)(tensors.values(), q_start)

    def ready(self, tensors: Mapping[str, Tensor], *, q_start: int, scale: float, by_row: bool) -> Ready:
        """Return the call for all tensors of the sizes of these, in this order. Raises `InputError`.

        Its first query may stand at any position up to `q_start`, but with areas of runs nowhere else.
        """
        named = tuple([(name, x.shape, x.element_size()) for name, x in tensors.items()])
        workers, rows = torch.get_num_threads(), tensors[QUERIES].shape[0] if by_row else 1
        layout = self._layout(named, q_start, scale, by_row, workers)
        return Ready(self, layout.numbers, layout.numbers.buffer_info()[0], layout.memory, rows, workers)

    @functools.cached_property
    def _layout(self) -> Callable[..., Layout]:
        return functools.lru_cache(maxsize=LAYOUTS)(self._lay_out)

    def _lay_out(
        self, named: tuple[tuple[str, torch.Size, int], ...], q_start: int, scale: float, by_row: bool, workers: int
    ) -> Layout:
        shapes = {name: shape for name, shape, _ in named}
        (batch, tokens, heads, _), kv_heads = shapes[QUERIES], shapes["keys 0"][2]
        rows, lead, copies = (batch, 1, workers) if by_row else (1, batch, 1)
        at: dict[str, Place] = {SCALE: (0, _bits(scale), 0, 0), SUMS: (0, _bits(SUMS_SCALE), 0, 0)}
        counts = {}
        for base, (name, shape, element) in enumerate(named, start=1):
            whole = len(shape) == 1
            at[name] = (base, 0, 0 if whole else math.prod(shape) * element // rows, 0)
            counts[name] = 0 if whole else shape[1]

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
        memory, base = _Memory(), 1 + len(named)
        for name, size in sizes.items():
            at[name] = (base, memory.take(copies * size), 0, size)
        at[START] = (base + 1, 0, 0, 0)
        call: list[int] = []
        for step, extent in zip(self.steps, extents, strict=True):
            own: dict[str, Place] = {name: (0, n, 0, 0) for name, n in {**extent.sizes, **step.numbers}.items()}
            own |= {name: (base, memory.take(4 * elements), 0, 0) for name, elements in extent.scratch.items()}
            call += (step.kernel.artifact.address, extent.tasks, len(step.slots), step.beside)
            for shared, name in step.slots:
                call += at[name] if shared else own[name]
        return Layout(array.array("q", call), memory.size)


class Ready(NamedTuple):
    """A sequence for calls of one set of sizes; `address` is that of its numbers."""

    sequence: Sequence
    numbers: array.array[int]
    address: int
    memory: int
    rows: int
    workers: int

    def __call__(self, tensors: Iterable[Tensor], q_start: int) -> None:
        """Run the kernels on contiguous tensors in the order in which they were named; raises `KernelFailedError`."""
        steps = self.sequence.steps
        memory = _borrowed() if self.memory <= SPARE else in_large_pages(_bytes(self.memory))
        bases = array.array("q", [0, *[x.data_ptr() for x in tensors], memory.data_ptr(), q_start])
        pool = steps[0].kernel.artifact.pool
        status = pool.sequence(self.address, bases.buffer_info()[0], len(steps), self.rows, self.workers)
        if status:
            names = [step.kernel.artifact.entry.manifest.entry for step in steps]
            raise KernelFailedError(
                f"one of {names} returned status {status} (rows={self.rows}, threads={self.workers})"
            )
        if self.memory <= SPARE:
            _spares.append(memory)


_spares: list[Tensor] = []  # one for each thread that was in a small call at once


def _borrowed() -> Tensor:
    try:
        return _spares.pop()
    except IndexError:
        return _bytes(SPARE)


def _bytes(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu")


class _Memory:
    """Memory that is laid out before it is taken, in one piece: a large one the C library gives back after the call."""

    def __init__(self) -> None:
        self.size = 0  # bytes

    def take(self, size: int) -> int:
        """Return where `size` bytes more begin."""
        offset = self.size
        self.size += _lines(size)
        return offset


@functools.lru_cache(maxsize=64)
def _bits(x: float) -> int:
    """Return a float32 as an integer of the same bits."""
    bits: int = struct.unpack("<I", struct.pack("<f", x))[0]
    return bits


def _lines(size: int) -> int:
    """Return `size` bytes rounded up to whole cache lines, so that everything begins at one."""
    return -(-size // CACHE_LINE) * CACHE_LINE
