"""`GpuLaunch`: one launch of a kernel as the cost model sees it: thread blocks, steps, products, copies, instructions.

Counts of instructions were fitted on the disassembled loops of the committed kernels; docs/cost-model.md says how well.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..desc import KernelDesc

HALF = 2  # bytes of an element
FLOAT = 4
COPY_GROUP = 128  # threads that only copy, where copies have a warp group of their own
# Instructions of a thread, fitted on the SASS of the loops of generated/.
STEP = 100  # a step: barriers, addresses, the loop
WEIGHT = {"forward": 12, "queries": 14, "keys": 14, "select": 37}  # a score that becomes a weight
SEES = 6  # a score of a range with a lower end, or of a listed block
PLAIN_COPY = 30  # 16 bytes that threads copy themselves
MOST_HELD = 64  # float32 of a thread's loads in flight


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product of a step, [rows, depth] times [depth, columns]; `stored`: its left side is in shared memory."""

    rows: int
    columns: int
    depth: int
    stored: bool = True
    square: bool = False  # warps share rows and columns, else rows alone


@dataclass(frozen=True, kw_only=True)
class GpuLaunch:
    """One launch: `blocks` thread blocks with the loop `steps` each (of one block: mean and longest).

    Of a block: `threads` compute, `copiers` copy beside them. Of a step: `products`, `exponentials`, other
    `instructions` of all threads together, `staged` bytes of shared memory beside the products' operands, `copied`
    bytes that arrive, asynchronously or not, `stages` tiles of them in flight, and `barriers`. Once a block: `head` and
    `tail` bytes. `unique` bytes are those of all operands and results, once; `reach` those of a head that the copies of
    its `row` blocks come from. `held` are the float32 of a thread that live through the loop, `passing` those of a
    step; `depth` is the operands' inner dim, `plain` whether threads copy themselves, and `known` whether the number
    of steps is known when it is compiled. `shared` bytes are a block's.
    """

    name: str
    blocks: int
    steps: float
    longest: float
    threads: int
    copiers: int = 0
    products: tuple[Product, ...] = ()
    exponentials: float = 0.0
    instructions: float = 0.0
    staged: float = 0.0
    copied: float = 0.0
    asynchronous: bool = True
    stages: int = 1
    barriers: int = 1
    head: float = 0.0
    tail: float = 0.0
    unique: float = 0.0
    reach: float = 0.0
    row: int = 1
    shared: int = 0
    held: float = 0.0
    passing: float = 0.0
    depth: int = 0
    plain: bool = False
    known: bool = False


def part_of(desc: KernelDesc) -> str:
    """Return which part of a backward a desc is; `forward` for a forward."""
    return str(dict(desc.dims).get("part", "forward"))


def traffic(name: str, blocks: int, block_bytes: float, threads: int, elements: float, steps: float = 1.0) -> GpuLaunch:
    """Return a launch that is all loads and stores: `block_bytes` of a block, in `steps` rounds of loads in flight."""
    return GpuLaunch(
        name=name, blocks=blocks, steps=steps, longest=steps, threads=threads, instructions=4 * elements / steps,
        copied=block_bytes / steps, asynchronous=False, barriers=0, unique=blocks * block_bytes,
        held=min(MOST_HELD, elements / threads / steps),
    )  # fmt: skip
