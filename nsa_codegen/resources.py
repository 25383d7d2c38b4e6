"""`Resources`: what a compiled GPU kernel takes of a multiprocessor, and what its code is made of.

Registers, spills and shared memory are the assembler's own report; instructions are counted in the disassembled
binary; occupancy follows from both and the target's limits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from .errors import CompilerError
from .nvcc import report_path
from .occupancy import Occupancy, occupancy
from .sass import Instructions, count_instructions, find_nvdisasm, sum_instructions
from .source import KernelSource
from .target import GpuTarget


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one kernel takes.

    `registers` are those of a thread. `spill_store_bytes` and `spill_load_bytes` are the bytes a thread that spills
    write and read, counted once per instruction; `stack_bytes` is its stack frame. `shared_bytes` are those of a
    block, static and dynamic. `barriers` are named barriers. `threads` are those of a block, and
    `blocks_per_processor` of them run on a multiprocessor at once, which `limited_by` binds and which fill the part
    `occupancy` of its warps. `instructions` is None where no nvdisasm was at hand.
    """

    kernel: str
    target: str
    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    stack_bytes: int
    static_shared_bytes: int
    shared_bytes: int
    barriers: int
    threads: int
    blocks_per_processor: int
    occupancy: float
    limited_by: tuple[str, ...]
    instructions: Instructions | None

    @property
    def spill_bytes(self) -> int:
        """Bytes of spills, written and read."""
        return self.spill_store_bytes + self.spill_load_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data, `spill_bytes` among them."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["limited_by"] = list(self.limited_by)
        data["instructions"] = None if self.instructions is None else self.instructions.to_json()
        return data | {"spill_bytes": self.spill_bytes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the figures that `to_json` described."""
        values = {f.name: data[f.name] for f in fields(cls)}
        counted = values["instructions"]
        values["instructions"] = None if counted is None else Instructions.from_json(counted)
        return cls(**values | {"limited_by": tuple(values["limited_by"])})


def cubin_resources(
    cubin: Path, *, threads: int, shared_bytes: int, target: GpuTarget, kernel: str | None = None
) -> Resources:
    """Return the resources of a kernel in a cubin that `compile_cubin` made.

    `threads` are those of a block in all, `shared_bytes` what a launch asks for dynamically. `kernel` may be left
    out where the cubin has one. Raises `CompilerError` if the assembler's report is not beside the cubin or does
    not tell of the kernel, and `TargetError` if `threads` is not allowed.
    """
    report = assembler_report(report_path(cubin))
    name = _only(kernel, report, cubin)
    facts = report[name]
    shared = facts["static_shared_bytes"] + shared_bytes
    fits = occupancy(target, threads=threads, registers=facts["registers"], shared_bytes=shared)
    return Resources(
        kernel=name,
        target=target.name,
        shared_bytes=shared,
        threads=threads,
        blocks_per_processor=fits.blocks,
        occupancy=fits.fraction,
        limited_by=fits.limited_by,
        instructions=count_instructions(cubin, name) if find_nvdisasm() is not None else None,
        **facts,
    )


def source_resources(cubin: Path, source: KernelSource, target: GpuTarget) -> Resources:
    """Return the resources of a text's kernel; of several, the most that any takes, and the sum of instructions.

    Raises what `cubin_resources` raises.
    """
    found = [
        cubin_resources(cubin, threads=k.threads, shared_bytes=k.shared_bytes, target=target, kernel=k.kernel)
        for k in source.launches
    ]
    if len(found) == 1:
        return found[0]
    tightest = min(found, key=lambda r: r.occupancy)
    counted = [r.instructions for r in found if r.instructions is not None]
    return dataclasses.replace(
        tightest,
        kernel=" + ".join(r.kernel for r in found),
        registers=max(r.registers for r in found),
        spill_store_bytes=sum(r.spill_store_bytes for r in found),
        spill_load_bytes=sum(r.spill_load_bytes for r in found),
        stack_bytes=max(r.stack_bytes for r in found),
        barriers=max(r.barriers for r in found),
        instructions=sum_instructions(counted) if len(counted) == len(found) else None,
    )


def resident(resources: Resources, target: GpuTarget) -> Occupancy:
    """Return the occupancy of a kernel limit by limit, of which `resources` keeps the outcome."""
    return occupancy(
        target, threads=resources.threads, registers=resources.registers, shared_bytes=resources.shared_bytes
    )


_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '\w+'\n(.*?)(?=ptxas info +: Compiling entry|\Z)", re.DOTALL)
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_BARRIERS = re.compile(r"used (\d+) barriers")
_SHARED = re.compile(r"(\d+) bytes smem")


def assembler_report(path: Path) -> dict[str, dict[str, int]]:
    """Return what the report of `ptxas -v` in `path` says of every kernel: the fields of `Resources` by name.

    Raises `CompilerError` if there is no report.
    """
    if not path.exists():
        raise CompilerError(f"{path} is missing, which holds the registers and spills; compile with `compile_cubin`")
    found: dict[str, dict[str, int]] = {}
    for name, text in _ENTRY.findall(path.read_text()):
        # A function that was not inlined has a frame of its own, before the kernel's.
        _, _, own = text.partition(f"properties for {name}\n")
        frame, used = _FRAME.search(own), _USED.search(text)
        if frame is None or used is None:
            raise CompilerError(f"{path} tells of {name} in another form than expected:\n{text[:1000]}")
        barriers, shared = _BARRIERS.search(text), _SHARED.search(text)
        found[name] = {
            "registers": int(used[1]),
            "stack_bytes": int(frame[1]),
            "spill_store_bytes": int(frame[2]),
            "spill_load_bytes": int(frame[3]),
            "barriers": int(barriers[1]) if barriers else 0,
            "static_shared_bytes": int(shared[1]) if shared else 0,
        }
    return found


def _only(kernel: str | None, report: Mapping[str, Any], cubin: Path) -> str:
    if kernel is None and len(report) == 1:
        return next(iter(report))
    if kernel is None or kernel not in report:
        raise CompilerError(f"{cubin.name} has the kernels {sorted(report)}; {kernel!r} is none of them")
    return kernel
