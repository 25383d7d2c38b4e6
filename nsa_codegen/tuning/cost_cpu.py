"""The cost model of CPU kernels: register-tiled products, the work beside them, memory behind the caches, the tasks.

A kernel is tasks of a core; a task is steps of products and of passes over elements. Formulas, constants and what is
left out are in docs/cost-model.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..desc import KernelDesc
from ..pairs import PAIR_QUANTUM, PAIR_ROWS
from ..schedule import CpuSchedule, multiplies_pairs
from ..target import CpuTarget
from ..tiling import ceil_div
from .cpu_loop import FLOAT, CpuLoop, Product
from .cpu_loops import loop
from .prediction import Prediction

if TYPE_CHECKING:
    from ..ops import Sizes

# Of one core of an AMD EPYC 9004 (Zen 4) under Linux, 2 cores, gcc 12: measured with nsa_codegen/bench/peak.cpp and
# with the primitives of templates/cpu/tile by themselves.
CLOCK = 3.67e9  # of the 117 GFLOP/s of multiply-adds, 32 operations a clock
FMA_BYTES = 64  # of float32 multiplied and added a clock
MOST_FMA = 2  # instructions of multiply-add a clock
LOADS = 1  # of a register tile's operands a clock, a scalar each row and step and the vectors: fitted
NARROW_ROW = 0.8  # clocks a row and step of a register tile of less than 4 rows, whose scalars are loaded apart
WITHIN = 1.2  # times of products within kernels over those of the same products by themselves
TILE_CLOCKS = 30  # of an instruction of a matrix unit within a product: measured on an Intel Xeon with AMX
PAIR_TILE = (8, 2)  # rows and vectors of the register tile of pairs, in tile/pairs.h
SUMS_CLOCKS = 1.1  # clocks a vector of a register tile that starts from what is in memory, or is added to it
SCATTERED = 8.0  # clocks at least of a step whose scalars are each on a page of their own
PAGE_BYTES = 4096
CORES = 2
L2_BYTES, L3_BYTES = 1 << 20, 32 << 20  # of a core, of all
L3_RATE, DRAM_RATE = 66e9, 16e9  # bytes a second of a core, sequential; DRAM at all cores together
EXPOSED = 0.45  # of the time that memory takes to deliver operands, which the work does not hide
CALL = 4e-6  # seconds: a call and a round of the pool
# Nanoseconds an element of a pass over elements.
PASSES = {
    "weights": 0.35,  # running softmax
    "gradients": 0.22,  # of scores
    "masked": 0.1,
    "packed": 0.12,  # rows into lanes
    "unpacked": 0.09,
    "converted": 0.045,  # half to float32
    "rounded": 0.8,  # float32 to half
    "added": 0.03,
    "dotted": 0.11,
    "filled": 0.026,
    "scalar": 0.25,  # loops with one element at a time
    "gelu": 6.0,
    "gelu_slope": 8.5,
    "offered": 1.6,  # blocks to a query's list
    "listed": 14.0,  # slots of a query's list, sorted and written
    "summed": 0.1,  # weights into block sums
}


def predict_cpu(desc: KernelDesc, schedule: CpuSchedule, target: CpuTarget, sizes: Sizes) -> Prediction:
    """Return the prediction for `CORES` cores."""
    found = loop(desc, schedule, sizes)
    paired = multiplies_pairs(desc, target)
    clocks = sum(p.times * product_clocks(p, schedule, target, paired=paired) for p in found.products)
    products = WITHIN * clocks / CLOCK
    passes = 1e-9 * sum(count * PASSES[name] for name, count in found.passes.items())
    memory = memory_seconds(found)
    work = products + passes
    per_task = max(work, memory["near"]) / max(1, found.tasks)
    rounds = math.ceil(found.tasks / CORES) * per_task
    busy = max(rounds, found.longest * per_task)
    seconds = CALL + max(busy + EXPOSED * memory["far"], memory["far"])
    parts = {
        "compute": work / CORES,
        "memory": max(memory["near"] / CORES, memory["far"]),
        "latency": seconds - max(work / CORES, memory["near"] / CORES, memory["far"]),
        "products": products / CORES,
        "passes": passes / CORES,
    }
    flops = sum(2.0 * p.times * p.rows * p.lanes * p.depth for p in found.products)
    facts = {
        "operations": flops,
        "product_efficiency": flops / (clocks * 2 * FMA_BYTES / FLOAT) if clocks else 0.0,
        "tasks": float(found.tasks),
        "unique_bytes": float(found.unique),
    }
    return Prediction(seconds=seconds, parts=parts, bound=_bound(parts, facts), facts=facts)


def product_clocks(product: Product, schedule: CpuSchedule, target: CpuTarget, *, paired: bool = False) -> float:
    """Return the clocks of one product: [rows, depth] times [depth, lanes], register tile by register tile.

    One that is `paired` goes by the tiles of a matrix unit, or by register tiles of their own, over half the depth.
    """
    if paired and target.pairs == "amx":
        tiles = ceil_div(product.rows, PAIR_ROWS) * ceil_div(product.lanes, PAIR_ROWS)
        return tiles * ceil_div(product.depth, PAIR_QUANTUM) * TILE_CLOCKS
    rows, vectors = schedule.register_rows, schedule.register_vectors
    if paired:
        product = dataclasses.replace(product, depth=ceil_div(product.depth, 2))
        rows, vectors = PAIR_TILE
    left, clocks = ceil_div(product.lanes, target.lanes), 0.0
    while left > 0 and vectors >= 1:  # vectors that fill no tile take one of twice the rows and half the vectors
        wide, left = divmod(left, vectors)
        clocks += wide * _columns(product, rows, vectors, target)
        rows, vectors = 2 * rows, vectors // 2
    return clocks


def _columns(product: Product, rows: int, vectors: int, target: CpuTarget) -> float:
    """Return the clocks of all rows for the columns of one register tile; what is left takes tiles of 8, 4, 2 and 1."""
    left, clocks = product.rows, 0.0
    while left > 0 and rows >= 1:
        count, left = divmod(left, rows)
        clocks += count * _tile(product, rows, vectors, target)
        rows = 8 if rows > 8 else 4 if rows > 4 else rows // 2
    return clocks


def _tile(product: Product, rows: int, vectors: int, target: CpuTarget) -> float:
    rate = min(MOST_FMA, max(1, FMA_BYTES // target.vector_bytes))
    step = max(rows * vectors / rate, (rows + vectors) / LOADS) + (NARROW_ROW * rows if rows < 4 else 0.0)
    if product.stride > PAGE_BYTES:
        step = max(step, SCATTERED)
    return product.depth * step + (SUMS_CLOCKS * rows * vectors if product.sums else 0.0)


def memory_seconds(found: CpuLoop) -> dict[str, float]:
    """Return the seconds of `near`, traffic from the last cache, and `far`, what memory itself must deliver."""
    near = found.streamed / L3_RATE if found.reach > L2_BYTES else 0.0
    fits = found.unique <= L3_BYTES
    return {"near": near, "far": found.unique / (CORES * (L3_RATE if fits else DRAM_RATE))}


def _bound(parts: Mapping[str, float], facts: Mapping[str, float]) -> str:
    if parts["latency"] > max(parts["compute"], parts["memory"]):
        return f"latency: a call, and {facts['tasks']:.0f} tasks for {CORES} cores"
    if parts["memory"] > parts["compute"]:
        return "memory"
    if parts["passes"] > parts["products"]:
        return "passes over elements"
    return f"products, {100 * facts['product_efficiency']:.0f} % of the multiply-adds' rate"
