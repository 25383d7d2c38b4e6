"""The binary of a kernel's text, by family of targets: which flags make it, and making it in a folder of the store."""

from __future__ import annotations

import platform
from pathlib import Path

from .compiler import compile_flags, compile_shared
from .desc import KernelDesc
from .errors import LoweringError
from .manifest import Binary
from .nvcc import FLAGS, find_nvcc, report_path
from .schedule import Schedule
from .source import KernelSource
from .store import file_sha256
from .target import CpuTarget, GpuTarget, Target


def flags_of(target: Target) -> tuple[str, ...] | None:
    """Return the compiler's flags for `target`; None where there is no compiler, and the text is the artifact."""
    if isinstance(target, CpuTarget):
        return compile_flags(target)
    return (*FLAGS, f"-arch={target.name}") if target.kind == "cuda" else None


def build_binary(folder: Path, *, request: tuple[KernelDesc, Schedule, Target], source: KernelSource) -> Binary | None:
    """Make the binary of the text in `folder`, and return its record; None where the target has no compiler.

    Raises `CompilerError`, and `LoweringError` if TileLang emits another text now than `source`.
    """
    desc, schedule, target = request
    if isinstance(target, CpuTarget):
        return compile_shared(folder, target=target)
    if not isinstance(target, GpuTarget) or target.kind != "cuda":
        return None
    from .lowering import lowered_gpu  # TileLang makes the library, host code included, from its own lowering
    from .resources import source_resources

    lowered = lowered_gpu(desc, schedule, target)
    if lowered.source.text != source.text:
        raise LoweringError(f"the stored text of {desc} for {target.name} is not what TileLang emits now; remove it")
    library = folder / "building.so"
    cubin = lowered.build_library(library)
    resources = source_resources(cubin, lowered.source, target)
    for left_over in (cubin, report_path(cubin)):
        left_over.unlink(missing_ok=True)
    sha256, nvcc = file_sha256(library), find_nvcc()
    library = library.rename(folder / f"kernel-{sha256[:12]}.so")
    return Binary(
        name=library.name,
        sha256=sha256,
        size=library.stat().st_size,
        compiler="nvcc",
        compiler_version=nvcc.version,
        flags=flags_of(target) or (),
        processor=f"{platform.machine()} host code, {target.name} device code: compiled, not run",
        resources=resources.to_json(),
    )
