"""How `inspect` prints a kernel's resources and occupancy, alone, several in one table, or beside another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..occupancy import Limit
from ..resources import Resources, resident
from ..sass import CLASSES
from ..target import GPU_TARGETS
from .app import console, print_table
from .shown import Shown

_UNCOUNTED = "not counted: no nvdisasm (pip install 'nsa_codegen[gpu]')"
_BAR_CELLS = 24


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A kernel, and what it takes."""

    kernel: Shown
    resources: Resources

    @property
    def title(self) -> str:
        """The target and schedule, which tell two of one desc apart."""
        return f"{self.kernel.target.name} {self.kernel.schedule}"


def resource_figures(resources: Resources) -> dict[str, Any]:
    """Return the figures of a kernel by the words of the table."""
    code = resources.instructions
    counts = {name.replace("_", " "): None if code is None else code.count(name) for name in CLASSES}
    return {
        "registers": resources.registers,
        "spill bytes": resources.spill_bytes,
        "stack bytes": resources.stack_bytes,
        "shared bytes": resources.shared_bytes,
        "barriers": resources.barriers,
        "threads": resources.threads,
        "blocks per multiprocessor": resources.blocks_per_processor,
        "occupancy": f"{100 * resources.occupancy:.1f} %",
        "limited by": " and ".join(resources.limited_by),
        "instructions": _UNCOUNTED if code is None else code.total,
        **counts,
    }


def occupancy_rows(measured: Measured) -> list[dict[str, Any]]:
    """Return one row per limit: what a block takes, what there is, how many blocks fit, and whether it binds."""
    fits = resident(measured.resources, GPU_TARGETS[measured.resources.target])
    return [
        {
            "limit": limit.name,
            "per block": limit.per_block,
            "per multiprocessor": limit.available,
            "blocks": limit.blocks,
            "binds": limit.name in fits.limited_by,
        }
        for limit in fits.limits
    ]


def figures_json(stage: str, measured: Measured) -> dict[str, Any]:
    """Return the figures of `stage` (resources or occupancy) as plain data, with what they are of."""
    named = {"target": measured.kernel.target.name, "schedule": measured.kernel.schedule.to_json()}
    if stage == "resources":
        return named | {"resources": measured.resources.to_json()}
    resources = measured.resources
    summary = {"blocks": resources.blocks_per_processor, "fraction": resources.occupancy}
    return named | {"occupancy": summary | {"limits": occupancy_rows(measured)}}


def print_resources(measured: Sequence[Measured]) -> None:
    """Print the resources: of one kernel as a column, of several as a row each."""
    if len(measured) == 1:
        rows = [{"figure": k, "value": v} for k, v in resource_figures(measured[0].resources).items()]
        _print_titled((str(measured[0].kernel.desc), measured[0].title), rows, ("figure", "value"))
        return
    table = [{"kernel": str(m.kernel.desc), **_short(m.resources)} for m in measured]
    print_table(f"{len(measured)} kernels", table, tuple(table[0]))


def print_resource_difference(one: Measured, other: Measured) -> None:
    """Print the resources of two kernels side by side, with the change from the first to the second."""
    mine, theirs = resource_figures(one.resources), resource_figures(other.resources)
    rows = [
        {"figure": name, "first": mine[name], "second": theirs[name], "change": _change(mine[name], theirs[name])}
        for name in mine
    ]
    _print_titled(_versus(one, other), rows, ("figure", "first", "second", "change"))


def print_occupancy(measured: Measured) -> None:
    """Print the limits of a kernel's occupancy as a table, and the occupancy as a bar."""
    rows = [
        {**row, "binds": "<- binds" if row["binds"] else "", "": _bar(row["blocks"] / _most(measured))}
        for row in occupancy_rows(measured)
    ]
    columns = ("limit", "per block", "per multiprocessor", "blocks", "", "binds")
    _print_titled((str(measured.kernel.desc), measured.title), rows, columns)
    console().print(_summary(measured.resources), markup=False, soft_wrap=True)


def print_occupancy_difference(one: Measured, other: Measured) -> None:
    """Print the limits of two kernels side by side."""
    rows = [
        {"limit": mine["limit"], "first": _limit_text(mine), "second": _limit_text(theirs)}
        for mine, theirs in zip(occupancy_rows(one), occupancy_rows(other), strict=True)
    ]
    _print_titled(_versus(one, other), rows, ("limit", "first", "second"))
    for place, measured in (("first ", one), ("second", other)):
        console().print(f"{place} {_summary(measured.resources)}", markup=False, soft_wrap=True)


def _short(resources: Resources) -> dict[str, Any]:
    """Return the figures that fit one row."""
    code = resources.instructions
    counts = {} if code is None else {name.replace("_", " "): code.count(name) for name in _SHOWN_CLASSES}
    return {
        "registers": resources.registers,
        "spills": resources.spill_bytes,
        "shared": resources.shared_bytes,
        "threads": resources.threads,
        "blocks": resources.blocks_per_processor,
        "occupancy": f"{100 * resources.occupancy:.1f} %",
        "limited by": " and ".join(resources.limited_by),
        **(counts or {"instructions": _UNCOUNTED}),
    }


_SHOWN_CLASSES = ("matrix", "async_copy", "global_load", "local", "barrier")


def _versus(one: Measured, other: Measured) -> tuple[str, ...]:
    return str(one.kernel.desc), f"first   {one.title}", f"second  {other.title}"


def _print_titled(lines: Sequence[str], rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print a table under lines that may be wider than it."""
    for line in lines:
        console().print(line, style="bold", markup=False, soft_wrap=True)
    print_table("", rows, columns)


def _change(mine: Any, theirs: Any) -> str:
    if mine == theirs or not isinstance(mine, int) or not isinstance(theirs, int):
        return ""
    return f"{theirs - mine:+d}"


def _limit_text(row: dict[str, Any]) -> str:
    return f"{row['blocks']} ({row['per block']} of {row['per multiprocessor']}){' <- binds' if row['binds'] else ''}"


def _summary(resources: Resources) -> str:
    bar, bound = _bar(resources.occupancy), " and ".join(resources.limited_by)
    blocks = f"{resources.blocks_per_processor} block{'' if resources.blocks_per_processor == 1 else 's'}"
    return f"{bar} {100 * resources.occupancy:.1f} % of the warps: {blocks} of {resources.threads} threads, by {bound}"


def _most(measured: Measured) -> int:
    limits: tuple[Limit, ...] = resident(measured.resources, GPU_TARGETS[measured.resources.target]).limits
    return max(limit.blocks for limit in limits)


def _bar(part: float) -> str:
    full = round(_BAR_CELLS * part)
    return "#" * full + "." * (_BAR_CELLS - full)
