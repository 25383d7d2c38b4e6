"""Kernels of GPU targets at run time: loaded by `tvm_ffi` where there is a GPU, or executed on the CPU for conformance.

Loading takes TileLang's runtime library, but neither its compiler nor nvcc. `GpuArtifact` and `ExecutedKernel` are
launched alike, with values by name.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .build import ensure
from .desc import KernelDesc
from .errors import CorruptArtifactError, ExecutionError, LoweringError, TargetError
from .schedule import Schedule
from .store import Entry
from .target import GPU_TARGETS, GpuTarget

if TYPE_CHECKING:  # the executor is loaded when something is executed
    from .executor import Executable
    from .executor.launch import Facts
    from .executor.report import Report


@dataclass(frozen=True, kw_only=True)
class Executed:
    """One launch on the executor: whose kernel, what of it, and what was found."""

    desc: KernelDesc
    schedule: Schedule
    report: Report


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """How the ops of CPU tensors are executed now, and every launch so far."""

    target: GpuTarget
    order: str
    seed: int
    cache: Path | None
    launches: list[Executed] = field(default_factory=list)


_emulated: contextvars.ContextVar[Emulation | None] = contextvars.ContextVar("emulated", default=None)


@dataclass(frozen=True, kw_only=True)
class GpuArtifact:
    """A loaded kernel of a GPU: `function` checks its arguments and launches on the current stream of their device."""

    entry: Entry
    target: GpuTarget
    function: Any

    def launch(self, values: Mapping[str, Any]) -> None:
        """Launch with the entry's arguments taken from `values`; waits for nothing.

        Raises `TargetError`, before anything is launched, if their device has another architecture.
        """
        arguments = [values[a.name] for a in self.entry.manifest.arguments]
        device = next(x.device for x in arguments if isinstance(x, torch.Tensor))
        if device_target(device) is not self.target:
            raise TargetError(
                f"{self.entry.manifest.entry} is built for {self.target.name}, and {device} is an "
                f"{device_target(device).name}; build it with --target {device_target(device).name}"
            )
        self.function(*arguments)


@dataclass(frozen=True, kw_only=True)
class ExecutedKernel:
    """The emitted text of a GPU kernel, run on the CPU by the executor: slow, and every check made."""

    desc: KernelDesc
    schedule: Schedule
    executable: Executable
    facts: Facts

    def launch(self, values: Mapping[str, Any]) -> None:
        """Run over CPU tensors, inside `emulated`; raises `ExecutionError` with every finding."""
        from .executor.launch import execute

        emulation = _emulated.get()
        assert emulation is not None, "kernels are executed inside `emulated`"
        arguments = [values[a["name"]] for a in self.facts["arguments"]]
        for report in execute(self.executable, self.facts, arguments, order=emulation.order, seed=emulation.seed):
            emulation.launches.append(Executed(desc=self.desc, schedule=self.schedule, report=report))
            if not report.passed:
                raise ExecutionError(f"{self.desc} on {emulation.target.name}: {report}")


def device_target(device: torch.device) -> GpuTarget:
    """Return the target of a CUDA device; raises `TargetError` if it is none, or of no architecture of ours."""
    if device.type != "cuda":
        raise TargetError(f"{device} is no GPU; move the tensors to a CUDA device")
    return _target_of(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _target_of(index: int) -> GpuTarget:
    major, minor = torch.cuda.get_device_capability(index)
    for name in (f"sm_{major}{minor}", f"sm_{major}{minor}a"):
        if name in GPU_TARGETS:
            return GPU_TARGETS[name]
    names = [t.name for t in GPU_TARGETS.values() if t.kind == "cuda"]
    raise TargetError(
        f"{torch.cuda.get_device_name(index)} has the architecture sm_{major}{minor}; kernels are for {names}"
    )


@contextlib.contextmanager
def emulated(
    target: GpuTarget, *, order: str = "forward", seed: int = 0, cache: Path | None = None
) -> Iterator[Emulation]:
    """Run the ops of CPU tensors through the emitted kernels of `target`, executed on the CPU, inside the context.

    `order` and `seed` choose the interleaving; lowered texts are kept under `cache`, or in the user's cache directory.
    """
    emulation = Emulation(target=target, order=order, seed=seed, cache=cache)
    token = _emulated.set(emulation)
    try:
        yield emulation
    finally:
        _emulated.reset(token)


def emulated_target() -> GpuTarget | None:
    """Return the target whose kernels the ops of CPU tensors run through now, if any."""
    emulation = _emulated.get()
    return None if emulation is None else emulation.target


def executed_kernel(desc: KernelDesc, schedule: Schedule, target: GpuTarget) -> ExecutedKernel:
    """Return the kernel for the executor, lowered if its text is not kept; raises what lowering raises."""
    from .emitted import executable_of

    emulation = _emulated.get()
    cache = None if emulation is None else emulation.cache
    executable, facts = executable_of(desc, schedule, target, cache)
    return ExecutedKernel(desc=desc, schedule=schedule, executable=executable, facts=facts)


def load_artifact(desc: KernelDesc, schedule: Schedule, target: GpuTarget) -> GpuArtifact:
    """Return the stored kernel, built first if the store has none; raises what building raises."""
    entry = ensure(desc, schedule, target)
    _load_runtime()
    import tvm_ffi

    try:
        module = tvm_ffi.load_module(str(entry.library))
        return GpuArtifact(entry=entry, target=target, function=module[entry.manifest.entry])
    except (RuntimeError, AttributeError, OSError) as error:
        raise CorruptArtifactError(
            f"{entry.library} is the file that was built, but can't be loaded here: {error}; remove {entry.folder} and "
            f"build it again"
        ) from error


@functools.cache
def _load_runtime() -> None:
    """Load TileLang's runtime library, which kernels' host code calls; TileLang itself is not imported."""
    found = importlib.util.find_spec("tilelang")
    if found is None or not found.submodule_search_locations:
        raise LoweringError("GPU kernels need TileLang's runtime library: pip install 'nsa_codegen[build]'")
    library = Path(found.submodule_search_locations[0]) / "lib" / "libtvm_runtime.so"
    importlib.import_module("tvm_ffi")
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
