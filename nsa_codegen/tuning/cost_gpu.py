"""The cost model of GPU kernels: a roofline over six resources of a multiprocessor, with the latency that is left over.

For each launch: how many thread blocks a multiprocessor holds, what one step of the loop takes of each resource, what
part of the copies' latency neither other blocks nor tiles in flight hide, and how many rounds of blocks there are.
Formulas, constants and what is left out are in docs/cost-model.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..desc import KernelDesc
from ..occupancy import Occupancy, max_registers, occupancy
from ..sass import Instructions
from ..schedule import WARP_GROUP, WARP_GROUP_ROWS, GpuSchedule, ceil_to
from ..target import GpuTarget
from ..tiling import ceil_div
from .gpu_facts import DRAM_SHARE, FACTS, SHARED_BYTES, SHARED_LATENCY, GpuFacts, clock_hz, matrix_flops
from .gpu_launch import GpuLaunch, Product
from .gpu_loops import launches
from .prediction import Prediction

if TYPE_CHECKING:
    from ..ops import Sizes

FLOAT_SHARE = 0.65  # of a loop's instructions: counted in the SASS of generated/
PRODUCT_LATENCY = SHARED_LATENCY + 33  # clocks to a product's first result: operands, and one mma, an estimate
RAISED_REGISTERS = 240  # that TileLang gives warps beside copying ones, where it knows the number of steps
BARRIER = 40  # clocks, an estimate
REDUCTION = 120  # clocks of a row's maximum and sum over the threads that share it: an estimate
LAUNCH = 2.5e-6  # seconds of a launch beside its work: an estimate, that keeps tiny kernels from being told apart
BINDS = 0.6  # of the time: a resource that is used less is not what binds
RESOURCES = ("matrix", "exponentials", "instructions", "shared", "copies")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One launch in seconds: in all, each resource alone, latency left over; and how it was held."""

    seconds: float
    parts: Mapping[str, float]
    registers: int
    blocks: int
    limited_by: tuple[str, ...]
    waves: float
    spilled: float


def predict_gpu(
    desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget, sizes: Sizes, resources: Mapping[str, Any] | None = None
) -> Prediction:
    """Return the prediction; `resources` are a manifest's, and replace what is guessed of registers and copies."""
    found = launches(desc, schedule, target, sizes)
    if resources is not None:
        found = tuple(_compiled(x, resources) for x in found)
    timed = [_time(launch, target, resources) for launch in found]
    main = max(timed, key=lambda t: t.seconds)
    parts = {name: sum(t.parts[name] for t in timed) for name in main.parts}
    unique = sum(x.unique for x in found)
    facts = {
        "registers": float(main.registers),
        "blocks_per_processor": float(main.blocks),
        "waves": main.waves,
        "thread_blocks": float(sum(x.blocks for x in found)),
        "unique_bytes": float(unique),
        "spilled_bytes": main.spilled,
        "operations": float(sum(x.blocks * x.steps * _flops(x) for x in found)),
    }
    return Prediction(seconds=sum(t.seconds for t in timed), parts=parts, bound=_bound(main), facts=facts)


def predicted_registers(launch: GpuLaunch, target: GpuTarget) -> float:
    """Return the registers of a thread: sums, scores, fragments and addresses, as fitted on the committed kernels."""
    if launch.known and launch.copiers:
        return RAISED_REGISTERS
    joint = target.copy == "tma" and not launch.plain and not launch.copiers
    warp_groups = bool(launch.products) and all(uses_warp_group(p, launch, target) for p in launch.products)
    fixed = 16 if warp_groups else 30
    by_depth = 0.0 if warp_groups else 0.2
    if target.copy == "cp.async" or (joint and not warp_groups):  # the threads that compute keep the copies' addresses
        by_depth += 0.26
    if launch.plain:
        fixed, by_depth = fixed + 40, by_depth + 0.3
    return fixed + by_depth * launch.depth + launch.held + (1.4 if joint else 1.0) * launch.passing


def predicted_occupancy(launch: GpuLaunch, target: GpuTarget) -> Occupancy:
    """Return how many thread blocks fit a multiprocessor, as guessed without a compiler."""
    threads = launch.threads + launch.copiers
    registers, _ = _registers(launch, target, threads, None)
    return occupancy(target, threads=threads, registers=registers, shared_bytes=launch.shared)


def uses_warp_group(product: Product, launch: GpuLaunch, target: GpuTarget) -> bool:
    """Return whether warp groups make a product: 64 rows, whole groups, and a target that has the instruction."""
    warps = launch.threads // target.warp
    return target.matrix == "wgmma" and product.rows >= WARP_GROUP_ROWS and warps % WARP_GROUP == 0


def _compiled(launch: GpuLaunch, resources: Mapping[str, Any]) -> GpuLaunch:
    """Return the launch with what its compiled code shows: shared bytes, and copies that are plain loads after all."""
    if not launch.products:
        return launch
    counted = resources.get("instructions")
    plain = counted is not None and Instructions.from_json(counted).count("async_copy", main=True) == 0
    shared = int(resources["shared_bytes"])
    return replace(launch, shared=shared, asynchronous=launch.asynchronous and not plain)


def _time(launch: GpuLaunch, target: GpuTarget, resources: Mapping[str, Any] | None) -> Timed:
    facts, clock = FACTS[target.name], clock_hz(target)
    threads = launch.threads + launch.copiers
    if resources is not None and launch.products:
        threads = int(resources["threads"])
    registers, spilled = _registers(launch, target, threads, resources)
    fits = occupancy(target, threads=threads, registers=registers, shared_bytes=launch.shared)
    held = max(1, fits.blocks)
    per_processor = min(held, max(1, ceil_div(launch.blocks, target.processors)))
    use = _step(launch, target, facts, spilled)
    alone = _alone(launch, target, use)
    # What a loop copies, other blocks have copied as well; what nobody shares comes out of memory.
    latency = facts.l2_latency if launch.products else facts.dram_latency
    busy = per_processor * max(use.values())
    step = max(busy, alone)
    exposed = latency + launch.copied / facts.l2_bytes
    if launch.asynchronous:
        exposed = max(0.0, exposed - (launch.stages - 1) * step)
    step = max(busy, alone + exposed)
    ends = 2 * facts.dram_latency + per_processor * (launch.head + launch.tail) / facts.l2_bytes
    waves = launch.blocks / (target.processors * per_processor)
    mean, longest = ends + launch.steps * step, ends + launch.longest * step
    clocks = max(longest, math.ceil(waves) * mean) if launch.blocks else 0.0
    memory = launch.unique + _reloaded(launch, facts, target.processors * per_processor)
    roofs = {"memory": memory / (DRAM_SHARE * 1e9 * target.rates.dram_gbs)}
    total_steps = launch.blocks * launch.steps
    for name in RESOURCES:
        roofs[name] = total_steps * use[name] / target.processors / clock
    roofs["copies"] += launch.blocks * (launch.head + launch.tail) / facts.l2_bytes / target.processors / clock
    seconds = LAUNCH + max(clocks / clock, roofs["memory"])
    roofs["compute"] = max(roofs["matrix"], roofs["exponentials"], roofs["instructions"])
    roofs["latency"] = max(0.0, seconds - max(roofs.values()))
    return Timed(
        seconds=seconds, parts=roofs, registers=registers, blocks=held, waves=waves, spilled=spilled,
        limited_by=fits.limited_by,
    )  # fmt: skip


def _registers(
    launch: GpuLaunch, target: GpuTarget, threads: int, resources: Mapping[str, Any] | None
) -> tuple[int, float]:
    """Return the registers of a thread, and the bytes that it spills in a step."""
    if resources is not None and launch.products:
        spilled = resources["spill_store_bytes"] + resources["spill_load_bytes"]
        return int(resources["registers"]), float(spilled)
    wanted = predicted_registers(launch, target)
    most = max_registers(target, threads=threads)
    return int(min(wanted, most)), 2.0 * 4.0 * max(0.0, wanted - most)


def _step(launch: GpuLaunch, target: GpuTarget, facts: GpuFacts, spilled: float) -> dict[str, float]:
    """Return the clocks that one step of one block takes of each resource of a multiprocessor."""
    matrix = shared = operands = 0.0
    for product in launch.products:
        clocks, moved, instructions = _product(product, launch, target, facts)
        matrix, shared, operands = matrix + clocks, shared + moved, operands + instructions
    shared += launch.staged + launch.copied + spilled * launch.threads
    by_all = launch.plain or target.copy != "tma"  # else one thread starts a tile's copy
    instructions = launch.instructions + operands + launch.copied / 16 * (4 if by_all else 0)
    return {
        "matrix": matrix,
        "exponentials": launch.exponentials / facts.exponentials,
        "instructions": max(instructions / facts.issue, FLOAT_SHARE * instructions / facts.floats),
        "shared": shared / SHARED_BYTES,
        "copies": launch.copied / facts.l2_bytes,
    }


def _product(product: Product, launch: GpuLaunch, target: GpuTarget, facts: GpuFacts) -> tuple[float, float, float]:
    """Return clocks of the matrix units, bytes read from shared memory, and instructions of one product."""
    flops = matrix_flops(target)
    if uses_warp_group(product, launch, target):
        groups = launch.threads // target.warp // WARP_GROUP
        rows, columns = ceil_to(product.rows, WARP_GROUP_ROWS), ceil_to(product.columns, 8)
        down = rows // WARP_GROUP_ROWS  # instructions, each of which reads the right side
        left = rows * max(1, groups // down) * product.stored
        return 2 * rows * columns * product.depth / flops, 2 * product.depth * (left + down * columns), 0.0
    rows, columns, depth = ceil_to(product.rows, 16), ceil_to(product.columns, 8), ceil_to(product.depth, 16)
    down, across = _warps(product, launch.threads // target.warp)
    moved = 2 * depth * (rows * across * product.stored + columns * down)
    count = rows * columns * depth / 2048  # of m16n8k16
    loads = moved / 512  # four matrices of 8 by 8 at once, and their addresses
    instructions = target.warp * (count + loads * (4 if target.copy == "cp.async" else 1))
    return 2 * rows * columns * depth / (flops * facts.mma_share), moved, instructions


def _warps(product: Product, warps: int) -> tuple[int, int]:
    """Return how warps lie over a product, down its rows and across its columns: with the least traffic."""
    if not product.square:
        return warps, 1
    shapes = [(d, warps // d) for d in range(1, warps + 1) if warps % d == 0]
    fitting = [s for s in shapes if 16 * s[0] <= product.rows and 8 * s[1] <= product.columns] or shapes
    return min(fitting, key=lambda s: product.rows * s[1] + product.columns * s[0])


def _alone(launch: GpuLaunch, target: GpuTarget, use: Mapping[str, float]) -> float:
    """Return the clocks of one step of a block that has the multiprocessor to itself: its parts follow one another."""
    share = min(1.0, launch.threads / target.warp / target.partitions)
    work = max(use["matrix"], use["shared"]) + max(use["exponentials"], use["instructions"])
    waits = (
        len(launch.products) * PRODUCT_LATENCY + launch.barriers * BARRIER + (REDUCTION if launch.exponentials else 0)
    )
    return work / share + waits


def _reloaded(launch: GpuLaunch, facts: GpuFacts, places: int) -> float:
    """Return the bytes read from memory again, where what the blocks in flight range over passes the second cache."""
    loaded = launch.blocks * (launch.steps * launch.copied + launch.head)
    ranged = launch.reach * ceil_div(min(places, max(1, launch.blocks)), launch.row)
    missing = max(0.0, 1.0 - 1e6 * facts.l2_megabytes / ranged) if ranged else 0.0
    return missing * max(0.0, loaded - launch.unique)


def _flops(launch: GpuLaunch) -> float:
    return sum(2.0 * p.rows * p.columns * p.depth for p in launch.products)


def _bound(timed: Timed) -> str:
    """Return what binds: a resource by name, or latency, with the occupancy that leaves it over."""
    names = {"shared": "shared memory traffic", "copies": "copies from the second cache", "memory": "device memory"}
    resources = {name: s for name, s in timed.parts.items() if name not in ("compute", "latency")}
    name = max(resources, key=lambda n: resources[n])
    if resources[name] >= BINDS * timed.seconds:
        return names.get(name, f"{name} throughput" if name == "matrix" else name)
    if timed.waves < 1:
        return f"latency: {timed.waves:.2g} of the multiprocessors' places are filled"
    blocks = "1 thread block" if timed.blocks == 1 else f"{timed.blocks} thread blocks"
    return f"latency: {blocks} a multiprocessor, by {' and '.join(timed.limited_by)}"
