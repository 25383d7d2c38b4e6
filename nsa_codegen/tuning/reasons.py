"""Why a schedule is as it is on its target: each value with the fact behind it; and what two targets differ in.

Nothing here decides anything: the reasons are worked out from the same rules and the same model that did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..desc import KernelDesc
from ..errors import InputError
from ..occupancy import occupancy
from ..schedule import (
    WARP_GROUP_ROWS,
    CpuSchedule,
    GpuSchedule,
    Schedule,
    ScheduleSpace,
    accumulators,
    has_tensor_copies,
    most_accumulators,
    multiplies_pairs,
)
from ..target import CpuTarget, GpuTarget, Target
from ..tiling import RowTile
from .cost_cpu import product_clocks
from .cost_gpu import predicted_registers
from .cost_model import predict
from .cpu_loops import loop
from .gpu_facts import FACTS, matrix_flops
from .gpu_loops import launches
from .prediction import Prediction

if TYPE_CHECKING:
    from ..ops import Sizes

UNREAD = "this kernel does not read it"
_TELLS = 0.01  # a change of a ratio of predicted times that says anything
# Facts as `hardware_differences` names them, with the fields of a target that state them. What the model knows of a GPU
# beyond its target goes by the name, and rates are those of a card with so many multiprocessors: these go together.
_Swaps = Mapping[tuple[str, ...], tuple[str, ...]]
_CPU_SWAPS: _Swaps = {("vectors",): ("vector_bytes",), ("vector registers",): ("vector_registers",)}
_GPU_SWAPS: _Swaps = {
    ("matrix instruction",): ("matrix",),
    ("copy engine",): ("copy",),
    ("shared memory of a block", "shared memory of a multiprocessor"): ("block_shared_bytes", "shared_bytes"),
    ("registers of a multiprocessor", "warps of a multiprocessor"): ("registers", "warps", "blocks"),
    ("multiprocessors", "matrix operations a clock", "operations a byte of memory", "second cache"): (
        "name", "rates", "processors",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One kernel's schedule on one target: a reason for each field, and the prediction at `sizes`."""

    desc: KernelDesc
    schedule: Schedule
    target: Target
    reasons: Mapping[str, str]
    prediction: Prediction


def explain(desc: KernelDesc, schedule: Schedule, target: Target, sizes: Sizes) -> Explained:
    """Return the reasons behind a legal schedule, and its prediction at run-time sizes."""
    if isinstance(target, CpuTarget) and isinstance(schedule, CpuSchedule):
        reasons = _cpu_reasons(desc, schedule, target, sizes)
    elif isinstance(target, GpuTarget) and isinstance(schedule, GpuSchedule):
        reasons = _gpu_reasons(desc, schedule, target, sizes)
    else:
        raise InputError(f"explain: a {type(schedule).__name__} is no schedule of {target.name}")
    prediction = predict(desc, schedule, target, sizes)
    return Explained(desc=desc, schedule=schedule, target=target, reasons=reasons, prediction=prediction)


def hardware_differences(one: Target, other: Target) -> dict[str, tuple[str, str]]:
    """Return the facts that schedules hang on and in which two targets of one family differ, by name."""
    if isinstance(one, GpuTarget) and isinstance(other, GpuTarget):
        facts = tuple(_gpu_facts(t) for t in (one, other))
    elif isinstance(one, CpuTarget) and isinstance(other, CpuTarget):
        facts = tuple(_cpu_facts(t) for t in (one, other))
    else:
        raise InputError(
            f"explain.diff: {one.name} and {other.name} are of two families, whose kernels have other loops; give a "
            f"target of the same kind"
        )
    return {name: (facts[0][name], facts[1][name]) for name in facts[0] if facts[0][name] != facts[1][name]}


def _cpu_facts(target: CpuTarget) -> dict[str, str]:
    return {
        "vectors": f"{8 * target.vector_bytes} bits",
        "vector registers": str(target.vector_registers),
        "products of bfloat16 pairs": target.pairs or "none",
    }


def schedule_differences(one: Explained, other: Explained, sizes: Sizes) -> dict[str, str]:
    """Return the fields in which two schedules of a desc differ, each with what speaks against the other's value.

    The other's value is put in the place of one's own: `check` refuses it there, or the model says what it costs. Then
    facts of the hardware are put in the place of one's own, one at a time, to see which of them speaks for that value.
    """
    ours, theirs = one.schedule.values(), other.schedule.values()
    found = {}
    for name in ours:
        if ours[name] == theirs[name]:
            continue
        swapped = type(one.schedule).parse(ours | {name: theirs[name]})
        back = type(one.schedule).parse(theirs | {name: ours[name]})
        here = _against(one, swapped, str(theirs[name]), sizes)
        behind = _behind(one, swapped, other.target, sizes)
        if behind is None:  # nothing there speaks for their value here; something may speak against ours there
            behind = _behind(other, back, one.target, sizes)
            behind = None if behind is None else f"{_against(other, back, str(ours[name]), sizes)}; {behind}"
        if behind is None:
            facts = ", ".join(hardware_differences(one.target, other.target)) or "nothing that is known here"
            behind = f"no one fact decides it: it came with the other fields, and the targets differ in {facts}"
        found[name] = f"{here}; {behind}"
    return found


def _against(one: Explained, swapped: Schedule, value: str, sizes: Sizes) -> str:
    """Return what `check` or the model says of `one` with a field changed to `value`."""
    reason = ScheduleSpace.check(swapped, one.desc, one.target)
    if reason is not None:
        return f"{value} is not legal on {one.target.name}: {reason}"
    there = predict(one.desc, swapped, one.target, sizes)
    ratio = _percent(there.seconds / one.prediction.seconds)
    return (
        f"{value} would be predicted {ratio} on {one.target.name}, bound by {there.bound}; as it is, by "
        f"{one.prediction.bound}"
    )


def _behind(one: Explained, swapped: Schedule, other: Target, sizes: Sizes) -> str | None:
    """Return the fact of `other` that, in the place of one's own, speaks most for `swapped`; None if none does."""
    differing = hardware_differences(one.target, other)
    before, best = _ratio(one, swapped, one.target, sizes), None
    least = before * (1 - _TELLS)
    swaps = _CPU_SWAPS if one.target.kind == "cpu" else _GPU_SWAPS
    for names, fields in swaps.items():
        named = [name for name in names if name in differing]
        mixed: Any = replace(one.target, **{field: getattr(other, field) for field in fields}) if named else None
        if mixed is None or (ratio := _ratio(one, swapped, mixed, sizes)) >= least:
            continue
        least = ratio
        facts = ", ".join(f"{name} ({differing[name][1]})" for name in named)
        if ratio == 0.0:
            said = "what is there now would not be legal"
        else:
            said = f"it would be {'legal, and ' if math.isinf(before) else ''}predicted {_percent(ratio)}"
        best = f"with {other.name}'s {facts} {said}"
    return best


def _ratio(one: Explained, swapped: Schedule, target: Target, sizes: Sizes) -> float:
    """Return the predicted time of `swapped` over that of one's own: infinite if it is not legal, 0 if that is not."""
    if ScheduleSpace.check(swapped, one.desc, target) is not None:
        return math.inf
    if ScheduleSpace.check(one.schedule, one.desc, target) is not None:
        return 0.0
    first, second = (predict(one.desc, schedule, target, sizes).seconds for schedule in (swapped, one.schedule))
    return first / second


def _percent(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "as fast"
    return f"{100 * (ratio - 1):.0f} % slower" if ratio > 1 else f"{100 * (1 / ratio - 1):.0f} % faster"


def _gpu_facts(target: GpuTarget) -> dict[str, str]:
    facts, rates = FACTS[target.name], target.rates
    matrix = {
        "wgmma": "wgmma: 64 rows of a warp group, operands from shared memory",
        "mma": "mma: 16 rows of a warp, operands in registers",
        "mfma": "mfma: 16 rows of a wave, operands in registers",
    }
    copies = {
        "tma": "tma: one thread starts the copy of a tile, in a warp group of its own or among those that compute",
        "cp.async": "cp.async: the threads that compute copy as well, and hold the addresses",
        "buffer": "buffer loads: the threads that compute copy",
    }
    share = f" (mma reaches {100 * facts.mma_share:.0f} %)" if facts.mma_share < 1 else ""
    return {
        "matrix instruction": matrix[target.matrix],
        "copy engine": copies[target.copy],
        "shared memory of a block": f"{target.block_shared_bytes} bytes",
        "shared memory of a multiprocessor": f"{target.shared_bytes} bytes",
        "registers of a multiprocessor": str(target.registers),
        "warps of a multiprocessor": str(target.warps),
        "multiprocessors": str(target.processors),
        "matrix operations a clock": f"{matrix_flops(target):.0f}{share}",
        "operations a byte of memory": f"{1000 * rates.matrix_tflops / rates.dram_gbs:.0f}",
        "second cache": f"{facts.l2_megabytes:g} MB, {facts.l2_bytes:.0f} bytes a clock and multiprocessor",
    }


def _gpu_reasons(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget, sizes: Sizes) -> dict[str, str]:
    launch = max(launches(desc, schedule, target, sizes), key=lambda x: x.blocks * x.steps * max(1, len(x.products)))
    registers = int(min(predicted_registers(launch, target), target.thread_registers))
    threads = launch.threads + launch.copiers
    fits = occupancy(target, threads=threads, registers=registers, shared_bytes=launch.shared)
    resident = f"{fits.blocks} thread block(s) a multiprocessor, by {' and '.join(fits.limited_by)}"
    if not launch.products:
        share = f"{schedule.rows} rows of a thread block, {launch.copied * launch.steps:.0f} bytes for its threads"
        unread = dict.fromkeys(schedule.values(), UNREAD)
        return unread | {"rows": share, "threads": f"all of them copy; {resident}"}
    return {
        "rows": _rows_reason(desc, schedule, target, launch.products[0].rows),
        "key_tile": _tile_reason(desc, schedule, target, registers),
        "stages": _stages_reason(desc, schedule, target, sizes, launch.shared),
        "threads": _threads_reason(schedule, target, launch.copiers) + f"; {resident}",
        "specialized": _specialized_reason(desc, schedule, target),
    }


def _rows_reason(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget, rows: int) -> str:
    what = f"{rows} rows stay"
    if desc.op in ("stream_attention", "gather_attention") and ("part", "keys") not in desc.dims:
        tile = RowTile.of(desc.size("group"), schedule.rows)
        what = f"{tile.queries} queries of {tile.heads} heads stay"
    elif ("part", "keys") in desc.dims:
        what = f"{rows} keys stay"
    if target.matrix != "wgmma":
        return f"{what}; {target.matrix} takes 16 rows a warp, so that any multiple will do"
    if rows < WARP_GROUP_ROWS or schedule.threads < 4 * target.warp:
        share = f"{100 * FACTS[target.name].mma_share:.0f} %"
        return f"{what}; less than the {WARP_GROUP_ROWS} rows of a warp group, so mma is used, at {share} of the rate"
    return f"{what}; wgmma takes {WARP_GROUP_ROWS} rows a warp group, and both operands from shared memory"


def _tile_reason(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget, registers: int) -> str:
    most = target.thread_registers
    said = f"{schedule.key_tile} pass by in a step; a thread holds about {registers} of {most} registers"
    if desc.op in ("stream_attention", "gather_attention"):
        held = accumulators(schedule, desc)
        said += f", {held} of them sums and scores"
        if (most_held := most_accumulators(desc, target)) is not None:
            too = "addresses of five products" if target.matrix == "wgmma" else "fragments of both operands"
            said += f" ({most_held} are allowed, since {target.matrix} keeps {too} there too)"
    return said


def _stages_reason(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget, sizes: Sizes, shared: int) -> str:
    more = GpuSchedule.parse({**schedule.to_json(), "stages": schedule.stages + 1})
    most = max(x.shared for x in launches(desc, more, target, sizes))
    verdict = "would not fit" if most > target.block_shared_bytes else "would fit"
    flight = (
        "one tile, and no copy beside the products" if schedule.stages == 1 else f"{schedule.stages} tiles in flight"
    )
    return (
        f"{flight}: {shared} of the {target.block_shared_bytes} bytes of shared memory that a block may have; "
        f"one more takes {most}, which {verdict}"
    )


def _specialized_reason(desc: KernelDesc, schedule: GpuSchedule, target: GpuTarget) -> str:
    if not has_tensor_copies(desc, target):
        return f"{UNREAD}: this kernel has no tensor copies on {target.name}"
    if schedule.specialized:
        return "a warp group of its own starts the tensor copies, beside those that compute"
    return "no warp group copies beside those that compute, which would take as many registers a thread"


def _threads_reason(schedule: GpuSchedule, target: GpuTarget, copiers: int) -> str:
    warps = schedule.threads // target.warp
    if schedule.specialized == 0:
        return f"{warps} warps compute, and one thread of them starts the copies ({target.copy})"
    if copiers:
        return f"{warps} warps compute, and {copiers} threads copy beside them ({target.copy})"
    return f"{warps} warps compute and copy ({target.copy})"


def _cpu_reasons(desc: KernelDesc, schedule: CpuSchedule, target: CpuTarget, sizes: Sizes) -> dict[str, str]:
    found = loop(desc, schedule, sizes)
    if not found.products:
        return dict.fromkeys(schedule.to_json(), UNREAD)
    main = max(found.products, key=lambda p: p.times * p.rows * p.lanes * p.depth)
    lanes = f"{schedule.query_lanes} lanes are {schedule.query_lanes // target.lanes} vectors of {target.lanes}"
    step = f"{schedule.key_tile} a step; the greatest product is {main.rows} x {main.depth} x {main.lanes}"
    if desc.op == "stream_attention":
        tile = RowTile.of(desc.size("group"), schedule.query_lanes)
        lanes += f": {tile.queries} queries of {tile.heads} heads, which pass over the union of their ranges"
    elif desc.op == "gather_attention":
        tile, step = RowTile.of(desc.size("group"), schedule.query_lanes), UNREAD
        lanes = f"{tile.queries} queries of {tile.heads} heads meet a block together, if they list it"
    if multiplies_pairs(desc, target):
        unit = f"{UNREAD}: the products are those over pairs ({target.pairs})"
        return {"query_lanes": lanes, "key_tile": step, "register_rows": unit, "register_vectors": unit}
    clocks = product_clocks(main, schedule, target)
    share = 100 * main.rows * main.lanes * main.depth / clocks / 16 if clocks else 0.0
    taken = schedule.register_rows * schedule.register_vectors + schedule.register_vectors + 1
    return {
        "query_lanes": lanes,
        "key_tile": step,
        "register_rows": f"{schedule.register_rows} x {schedule.register_vectors} vectors take {taken} of the "
        f"{target.vector_registers} registers; of less than 4 rows, scalars are loaded apart",
        "register_vectors": f"that product runs at {share:.0f} % of the multiply-adds' rate, as predicted",
    }
