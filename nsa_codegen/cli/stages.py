"""The stages at which `inspect` shows a kernel: which ones a target has, and the text or figures of each."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..compiler import LIMIT_SECONDS, compile_assembly, failure_text, run_command
from ..errors import CompilerError, InputError, StoreError
from ..lowering import lower, primitive_function
from ..nvcc import compile_cubin, emit_ptx
from ..resources import Resources, source_resources
from ..sass import disassemble
from ..source import KernelSource
from ..store import KernelStore
from ..target import CpuTarget, GpuTarget, Target
from .shown import Shown

if TYPE_CHECKING:
    from ..program import Program

_COMMON = ("program", "schedule", "tir")
STAGES: dict[str, tuple[str, ...]] = {
    "cpu": (*_COMMON, "source", "asm", "manifest"),
    "cuda": (*_COMMON, "cuda", "host", "ptx", "sass", "resources", "occupancy", "manifest"),
    "hip": (*_COMMON, "source", "host", "manifest"),
}
FIGURES = ("resources", "occupancy")
LANGUAGES = {
    "tir": "python", "source": "cpp", "cuda": "cpp", "host": "cpp", "asm": "gas", "ptx": "ptx", "sass": "gas",
    "manifest": "json",
}  # fmt: skip


def require_stage(stage: str | None, target: Target) -> str:
    """Return `stage`, or the target's emitted text if None; raises `InputError` for a stage that it has not."""
    allowed = STAGES[target.kind]
    if stage is None:
        return "cuda" if target.kind == "cuda" else "source"
    if stage not in allowed:
        raise InputError(f"inspect.stage = {stage!r} is not one of {target.name}'s; it has {', '.join(allowed)}")
    return stage


def stage_text(stage: str, kernel: Shown, program: Program) -> str:
    """Return the text of a kernel at a stage that is no figure; raises the errors of lowering and compiling."""
    target = kernel.serving
    if stage == "program":
        return f"{program}"
    if stage == "schedule":
        return f"{kernel.desc}\ntarget    {target}\nschedule  {kernel.schedule}\nfrom      {kernel.origin}"
    if stage == "tir":
        return str(primitive_function(kernel.desc, kernel.schedule, target).script())
    if stage in ("source", "cuda"):
        return emitted(kernel).text
    if stage == "host":
        return lower(kernel.desc, kernel.schedule, target).host
    if stage == "asm":
        return _assembly(kernel)
    if stage == "ptx" and isinstance(target, GpuTarget):
        return emit_ptx(emitted(kernel).text, target)
    if stage == "sass" and isinstance(target, GpuTarget):
        with tempfile.TemporaryDirectory() as folder:
            return disassemble(compile_cubin(emitted(kernel).text, target, Path(folder)))
    return _manifest(kernel)


def kernel_resources(kernel: Shown) -> Resources:
    """Return what a kernel takes: as its manifest says, else of its text compiled now.

    Raises the errors of lowering and compiling, and `InputError` if its target is compiled by no nvcc.
    """
    if not isinstance(kernel.target, GpuTarget) or kernel.target.kind != "cuda":
        raise InputError(f"{kernel.desc} on {kernel.target.name} has no resources to show: they are a cubin's")
    stored = _stored_resources(kernel)
    if stored is not None:
        return stored
    source = lower(kernel.desc, kernel.schedule, kernel.target)
    with tempfile.TemporaryDirectory() as folder:
        cubin = compile_cubin(source.text, kernel.target, Path(folder))
        return source_resources(cubin, source, kernel.target)


def emitted(kernel: Shown) -> KernelSource:
    """Return the emitted source of a kernel: the stored one, else lowered now."""
    if kernel.entry is not None:
        return kernel.entry.source
    return lower(kernel.desc, kernel.schedule, kernel.target)


def _stored_resources(kernel: Shown) -> Resources | None:
    found = None if kernel.entry is None else kernel.entry.manifest.resources
    return None if found is None else Resources.from_json(found)


def _manifest(kernel: Shown) -> str:
    if kernel.entry is None:
        raise StoreError(
            f"{kernel.desc} is not built, so it has no manifest: {KernelStore().explain_miss(kernel.key)}\n"
            f"build it with `nsa-codegen build`"
        )
    return kernel.entry.manifest.text


def _assembly(kernel: Shown) -> str:
    """Return the built binary, disassembled; without a binary or objdump, what the compiler makes of the text."""
    if not isinstance(kernel.serving, CpuTarget):
        raise InputError(f"{kernel.serving.name} has no assembly; look at its ptx or sass")
    objdump, library = shutil.which("objdump"), kernel.entry.library if kernel.entry is not None else None
    if objdump is None or library is None:
        return compile_assembly(emitted(kernel).text, kernel.serving)
    command = [objdump, "--disassemble", "--no-show-raw-insn", "--demangle", str(library)]
    status, output = run_command(command, None, LIMIT_SECONDS)
    if status != 0:
        raise CompilerError(failure_text(command, status, output, LIMIT_SECONDS))
    return output
