"""`CpuLoop`: a CPU kernel as the cost model sees it: tasks, products by shape, passes over elements, bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..desc import KernelDesc

Passes = defaultdict[str, float]
FLOAT = 4
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Product:
    """`times` products [rows, depth] times [depth, lanes]; `sums` are added to what is in memory.

    `stride` is how many bytes lie between the scalars of one step of the depth and the next.
    """

    times: float
    rows: int
    lanes: int
    depth: int
    sums: bool = False
    stride: int = FLOAT


@dataclass(frozen=True, kw_only=True)
class CpuLoop:
    """A kernel: `tasks`, of which the longest is `longest` average ones, and the work of all of them together.

    `passes` are elements by the name of what is done to them. `streamed` bytes are read again and again, out of
    `reach` bytes at a time; `unique` bytes are those of all operands and results, once.
    """

    tasks: int
    longest: float = 1.0
    products: tuple[Product, ...] = ()
    passes: Mapping[str, float] = field(default_factory=dict)
    streamed: float = 0.0
    reach: float = 0.0
    unique: float = 0.0


def passes_of(elements: Mapping[str, float]) -> Passes:
    """Return elements by the name of a pass, 0 for all others."""
    return defaultdict(float, elements)


def part_of(desc: KernelDesc) -> str:
    """Return which part of a backward a desc is; `forward` for a forward."""
    return str(dict(desc.dims).get("part", "forward"))
