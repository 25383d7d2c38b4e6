"""`Target`: the facts of one architecture that schedules and compilers need, its name, and detection.

CPU targets are instruction-set levels rather than models, so that an artifact built for one runs on every
machine of that level. GPU targets arrive with the GPU templates; asking for one says so.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from .errors import TargetError, nearest

_FEATURES_V3 = {"avx2", "fma", "f16c", "bmi1", "bmi2"}
_FEATURES_V4 = _FEATURES_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One architecture.

    `vector_bytes` and `vector_registers` describe the vector unit, `flags` are what selects it at a
    gcc-compatible C++ compiler, and `features` are the processor flags that running its code needs.
    """

    name: str
    kind: str
    vector_bytes: int
    vector_registers: int
    flags: tuple[str, ...]
    features: frozenset[str] = frozenset()

    @property
    def lanes(self) -> int:
        """Float32 elements in one vector register."""
        return self.vector_bytes // 4

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.vector_bytes * 8}-bit vectors, {self.vector_registers} registers)"


# Register counts and features: x86-64 psABI microarchitecture levels; Arm A64 base SIMD (32 x 128 bit).
TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target(
            name="x86_64_v4",
            kind="cpu",
            vector_bytes=64,
            vector_registers=32,
            flags=("-march=x86-64-v4", "-mprefer-vector-width=512"),
            features=frozenset(_FEATURES_V4),
        ),
        Target(
            name="x86_64_v3",
            kind="cpu",
            vector_bytes=32,
            vector_registers=16,
            flags=("-march=x86-64-v3",),
            features=frozenset(_FEATURES_V3),
        ),
        Target(name="aarch64", kind="cpu", vector_bytes=16, vector_registers=32, flags=("-march=armv8-a",)),
        Target(name="generic", kind="cpu", vector_bytes=16, vector_registers=16, flags=()),
    )
}
GPU_NAMES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a", "gfx942", "gfx950")


def parse_target(name: str) -> Target:
    """Return the target called `name`; `"cpu"` and `"native"` mean this machine's (or `NSA_CODEGEN_TARGET`'s).

    Raises `TargetError` for a name that is unknown or has no templates yet.
    """
    if name in ("cpu", "native"):
        return native_target()
    if name in TARGETS:
        return TARGETS[name]
    if name in GPU_NAMES:
        raise TargetError(f"target {name!r} has no templates in this version; targets with kernels: {list(TARGETS)}")
    raise TargetError(f"target {name!r} is not known: {nearest(name, ('cpu', *TARGETS))}")


def native_target() -> Target:
    """Return the best CPU target that this machine runs; `NSA_CODEGEN_TARGET` overrides it."""
    forced = os.environ.get("NSA_CODEGEN_TARGET")
    if forced and forced not in ("cpu", "native"):
        target = parse_target(forced)
        if not runs_here(target):
            raise TargetError(
                f"NSA_CODEGEN_TARGET={forced} needs processor features that this machine lacks: "
                f"{sorted(target.features - processor_features()) or platform.machine()}"
            )
        return target
    return next(t for t in TARGETS.values() if runs_here(t))


def runs_here(target: Target) -> bool:
    """Return whether this machine can run code built for `target`."""
    machine = platform.machine().lower()
    if target.name == "generic":
        return True
    if target.name == "aarch64":
        return machine in ("aarch64", "arm64")
    return machine in ("x86_64", "amd64") and target.features <= processor_features()


def processor_features() -> frozenset[str]:
    """Return the processor's feature flags as Linux names them; empty where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return frozenset(flags.partition(":")[2].split())


def processor_name() -> str:
    """Return the processor's model name, for records and tables."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
