"""`Target`: the facts of one architecture that schedules and compilers need, its name, and detection.

CPU targets are instruction-set levels rather than models, so that an artifact built for one runs on every
machine of that level. GPU targets are architectures as compilers spell them; kernels for them are emitted,
compiled and judged on machines that have none.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from .errors import TargetError, nearest

_X86, _ARM = ("x86_64", "amd64"), ("aarch64", "arm64")
_FEATURES_V3 = {"avx2", "fma", "f16c", "bmi1", "bmi2"}
_FEATURES_V4 = _FEATURES_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One architecture: its name, and the family of templates that serves it (`cpu`, `cuda` or `hip`)."""

    name: str
    kind: str

    @property
    def facts(self) -> str:
        """What templates read of the target beside its name, as one word of a key."""
        raise NotImplementedError

    def takes_pairs(self, dtype: str) -> bool:
        """Return whether operands of products of `dtype` lie in pairs, as some CPUs take them."""
        return False

    def serving(self, dtype: str) -> Target:
        """Return the target whose kernels serve tensors of `dtype` here: this one, unless its own unit is no use."""
        return self

    def lacks_kernels(self, dtype: str) -> str | None:
        """Return why no kernel of `dtype` can be made for the target, or None."""
        return None


@dataclass(frozen=True, kw_only=True)
class CpuTarget(Target):
    """An instruction-set level of a processor.

    `vector_bytes` and `vector_registers` describe the vector unit, `flags` are what selects it at a
    gcc-compatible C++ compiler, and `features` are the processor flags that running its code needs. `pairs` is what
    multiplies pairs of bfloat16 numbers: the tiles of `amx`, the vectors of `avx512_bf16`, or nothing (empty). `base`
    names the target without it, whose kernels serve the other dtypes.
    """

    kind: str = "cpu"
    vector_bytes: int
    vector_registers: int
    flags: tuple[str, ...]
    features: frozenset[str] = frozenset()
    pairs: str = ""
    base: str = ""

    @property
    def lanes(self) -> int:
        """Float32 elements in one vector register."""
        return self.vector_bytes // 4

    @property
    def facts(self) -> str:
        """`<bytes>x<registers>` of the vector unit, and what multiplies pairs."""
        return f"{self.vector_bytes}x{self.vector_registers}" + (f"-{self.pairs}" if self.pairs else "")

    def takes_pairs(self, dtype: str) -> bool:
        """Return whether products of `dtype` are made over pairs."""
        return bool(self.pairs) and dtype == "bfloat16"

    def serving(self, dtype: str) -> Target:
        """Return the target whose kernels serve tensors of `dtype`: the base one where no pairs are multiplied."""
        return CPU_TARGETS[self.base] if self.base and not self.takes_pairs(dtype) else self

    def __str__(self) -> str:
        unit = f", {self.pairs}" if self.pairs else ""
        vectors = f"{self.vector_bytes * 8}-bit vectors, {self.vector_registers} registers"
        return f"{self.name} ({self.kind}, {vectors}{unit})"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a card does at best: the roofs of a roofline.

    `matrix_tflops` are dense products of 16-bit floats summed in 32 bits, `dram_gbs` gigabytes (1e9) a second of
    device memory, `l2_gbs` the same of the second cache, and `clock_mhz` the highest clock; the last two are None
    where the maker publishes none. `source` says where they are written.
    """

    matrix_tflops: float
    dram_gbs: int
    clock_mhz: int | None
    l2_gbs: int | None = None
    source: str


@dataclass(frozen=True, kw_only=True)
class GpuTarget(Target):
    """An architecture of a GPU.

    `product` is a card that has it. `matrix` is the matrix instruction that its kernels use (`mma`, `wgmma` or
    `mfma`), `copy` what brings tiles into shared memory (`cp.async`, `tma` or `buffer`). Limits of one
    multiprocessor: `warps`, `blocks`, 32-bit `registers`, `shared_bytes`; `block_shared_bytes` is what one thread
    block may ask for, and `reserved_bytes` what the system takes of it per block. `processors` is how many
    multiprocessors `product` has, `warp` the threads of a warp, and `source` where these figures are written.

    Registers are given to a warp `register_unit` at a time, out of its one of `partitions` equal shares, at most
    `thread_registers` a thread; shared memory is given to a block `shared_unit` bytes at a time.
    """

    product: str
    matrix: str
    copy: str
    warps: int
    blocks: int
    registers: int
    shared_bytes: int
    block_shared_bytes: int
    reserved_bytes: int
    processors: int
    warp: int = 32
    partitions: int = 4
    thread_registers: int
    register_unit: int
    shared_unit: int
    rates: Rates
    source: str

    @property
    def facts(self) -> str:
        """What templates and the space of schedules read, by name."""
        return f"{self.matrix}-{self.copy}-{self.block_shared_bytes}"

    def lacks_kernels(self, dtype: str) -> str | None:
        """Return why there are none of float32: matrix instructions take 16-bit floats."""
        return None if dtype != "float32" else "GPU kernels are of float16 and bfloat16, and float32 has none"

    def __str__(self) -> str:
        return f"{self.name} ({self.product}, {self.matrix}, {self.block_shared_bytes // 1024} KB shared per block)"


_KB = 1024
_CUDA_LIMITS = "CUDA C++ Programming Guide 13.0, 'Compute Capabilities', and cuda_occupancy.h of the toolkit 13.0"
_HIP_LIMITS = "ROCm 'AMD GPU specifications' and LLVM's AMDGPUBaseInfo.cpp (granules, workgroups by barriers)"


def _cuda(
    name: str, product: str, processors: int, matrix: str, copy: str, rates: Rates, *, also: str = "", **limits: int
) -> GpuTarget:
    """Return a target of NVIDIA; `also` says where the multiprocessors are written, if not in the rates' source."""
    return GpuTarget(
        name=name,
        kind="cuda",
        product=product,
        processors=processors,
        matrix=matrix,
        copy=copy,
        registers=65536,
        thread_registers=255,
        register_unit=256,
        shared_unit=128,
        reserved_bytes=_KB,
        block_shared_bytes=limits["shared_bytes"] - _KB,
        rates=rates,
        source=f"{_CUDA_LIMITS}; multiprocessors: {also or rates.source}",
        **limits,
    )


def _hip(name: str, product: str, processors: int, shared_bytes: int, shared_unit: int, rates: Rates) -> GpuTarget:
    """Return a target of AMD: 4 SIMDs of 512 registers for 64 lanes, 8 at a time; 8 waves on each."""
    return GpuTarget(
        name=name,
        kind="hip",
        product=product,
        processors=processors,
        matrix="mfma",
        copy="buffer",
        warps=32,
        blocks=16,  # as many workgroups of more than one wave as there are barriers
        registers=131072,
        thread_registers=512,
        register_unit=512,
        shared_unit=shared_unit,
        shared_bytes=shared_bytes,
        block_shared_bytes=shared_bytes,
        reserved_bytes=0,
        warp=64,
        rates=rates,
        source=f"{_HIP_LIMITS}; compute units: {rates.source}",
    )


_FLAGS_V4 = ("-march=x86-64-v4", "-mprefer-vector-width=512")
# Register counts and features: x86-64 psABI microarchitecture levels; Arm A64 base SIMD (32 x 128 bit).
CPU_TARGETS: dict[str, CpuTarget] = {
    t.name: t
    for t in (
        CpuTarget(
            name="x86_64_amx",
            vector_bytes=64,
            vector_registers=32,
            flags=(*_FLAGS_V4, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
            features=frozenset(_FEATURES_V4 | {"avx512_bf16", "amx_tile", "amx_bf16"}),
            pairs="amx",
            base="x86_64_v4",
        ),
        CpuTarget(
            name="x86_64_v4_bf16",
            vector_bytes=64,
            vector_registers=32,
            flags=(*_FLAGS_V4, "-mavx512bf16"),
            features=frozenset(_FEATURES_V4 | {"avx512_bf16"}),
            pairs="avx512_bf16",
            base="x86_64_v4",
        ),
        CpuTarget(
            name="x86_64_v4",
            vector_bytes=64,
            vector_registers=32,
            flags=_FLAGS_V4,
            features=frozenset(_FEATURES_V4),
        ),
        CpuTarget(
            name="x86_64_v3",
            vector_bytes=32,
            vector_registers=16,
            flags=("-march=x86-64-v3",),
            features=frozenset(_FEATURES_V3),
        ),
        CpuTarget(name="aarch64", vector_bytes=16, vector_registers=32, flags=("-march=armv8-a",)),
        CpuTarget(name="generic", vector_bytes=16, vector_registers=16, flags=()),
    )
}
_A100 = Rates(
    matrix_tflops=312, dram_gbs=2039, clock_mhz=1410, l2_gbs=7219,
    source="NVIDIA A100 80GB SXM data sheet; NVIDIA A100 architecture white paper (L2: 5120 bytes a clock)",
)  # fmt: skip
_A40 = Rates(
    matrix_tflops=149.7, dram_gbs=696, clock_mhz=1740,
    source="NVIDIA A40 data sheet; NVIDIA Ampere GA102 architecture white paper",
)  # fmt: skip
_L4 = Rates(
    matrix_tflops=121, dram_gbs=300, clock_mhz=2040,
    source="NVIDIA L4 data sheet and product brief (7424 CUDA cores; 242 TFLOPS with sparsity)",
)  # fmt: skip
_H100 = Rates(
    matrix_tflops=989.4, dram_gbs=3350, clock_mhz=1830,
    source="NVIDIA H100 SXM data sheet; NVIDIA H100 architecture white paper",
)  # fmt: skip
_B200 = Rates(
    matrix_tflops=2250, dram_gbs=8000, clock_mhz=None,
    source="NVIDIA HGX platform data sheet (4.5 PFLOPS with sparsity, up to 8 TB/s a GPU)",
)  # fmt: skip
_RTX_5090 = Rates(
    matrix_tflops=209.5, dram_gbs=1792, clock_mhz=2407,
    source="NVIDIA RTX Blackwell GPU architecture white paper (RTX 5090: half rate with 32-bit sums)",
)  # fmt: skip
_MI300X = Rates(
    matrix_tflops=1307.4, dram_gbs=5300, clock_mhz=2100, source="AMD Instinct MI300X data sheet"
)  # fmt: skip
_MI355X = Rates(
    matrix_tflops=2516.6, dram_gbs=8000, clock_mhz=2400, source="AMD Instinct MI355X data sheet"
)  # fmt: skip
_REPORTED = "148, as the CUDA driver reports of the card (no data sheet says it)"

GPU_TARGETS: dict[str, GpuTarget] = {
    t.name: t
    for t in (
        _cuda("sm_80", "A100", 108, "mma", "cp.async", _A100, warps=64, blocks=32, shared_bytes=164 * _KB),
        _cuda("sm_86", "A40", 84, "mma", "cp.async", _A40, warps=48, blocks=16, shared_bytes=100 * _KB),
        _cuda("sm_89", "L4", 58, "mma", "cp.async", _L4, warps=48, blocks=24, shared_bytes=100 * _KB),
        _cuda("sm_90a", "H100", 132, "wgmma", "tma", _H100, warps=64, blocks=32, shared_bytes=228 * _KB),
        _cuda("sm_100a", "B200", 148, "mma", "tma", _B200, warps=64, blocks=32, shared_bytes=228 * _KB, also=_REPORTED),
        _cuda("sm_103a", "B300", 148, "mma", "tma", _B200, warps=64, blocks=32, shared_bytes=228 * _KB, also=_REPORTED),
        _cuda("sm_120a", "RTX 5090", 170, "mma", "tma", _RTX_5090, warps=48, blocks=24, shared_bytes=100 * _KB),
        _hip("gfx942", "Instinct MI300X", 304, 64 * _KB, 512, _MI300X),
        _hip("gfx950", "Instinct MI355X", 256, 160 * _KB, 1280, _MI355X),
    )
}
TARGETS: dict[str, Target] = {**CPU_TARGETS, **GPU_TARGETS}


def parse_target(name: str) -> Target:
    """Return the target called `name`; `"cpu"` and `"native"` mean this machine's (or `NSA_CODEGEN_TARGET`'s).

    Raises `TargetError` for a name that is unknown.
    """
    if name in ("cpu", "native"):
        return native_target()
    if name in TARGETS:
        return TARGETS[name]
    raise TargetError(f"target {name!r} is not known: {nearest(name, ('cpu', *TARGETS))}")


def native_target() -> CpuTarget:
    """Return the best CPU target that this machine runs; `NSA_CODEGEN_TARGET` overrides it."""
    forced = os.environ.get("NSA_CODEGEN_TARGET")
    if forced and forced not in ("cpu", "native"):
        target = parse_target(forced)
        if not isinstance(target, CpuTarget):
            raise TargetError(f"NSA_CODEGEN_TARGET={forced} is not a CPU target; allowed are {list(CPU_TARGETS)}")
        if not runs_here(target):
            raise TargetError(
                f"NSA_CODEGEN_TARGET={forced} does not run on this machine, which lacks {lacking(target)}"
            )
        return target
    return next(t for t in CPU_TARGETS.values() if runs_here(t))


def runs_here(target: Target) -> bool:
    """Return whether this machine's processor can run code built for `target`; no GPU target is a processor's."""
    return isinstance(target, CpuTarget) and not lacking(target)


def lacking(target: CpuTarget) -> list[str]:
    """Return what this machine lacks to run code for `target`: a processor, its features, or leave to use them."""
    machine = platform.machine().lower()
    family = () if target.name == "generic" else _ARM if target.name == "aarch64" else _X86
    if family and machine not in family:
        return [f"a processor of {family[0]} (it is {machine})"]
    missing = sorted(target.features - processor_features())
    if not missing and target.pairs == "amx" and not _may_use_tiles():
        return ["the system's permission to use AMX's tiles (arch_prctl)"]
    return missing


@functools.cache
def _may_use_tiles() -> bool:
    """Return whether the system lets this process use AMX's tiles; Linux wants to be asked before the first use.

    Linux 5.16 or newer does, if no signal stack of the process is too small to keep them.
    """
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # of asm/unistd_64.h, asm/prctl.h, XFEATURE_XTILEDATA
    try:
        return bool(ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0)
    except (OSError, AttributeError):
        return False


def processor_features() -> frozenset[str]:
    """Return the processor's feature flags as Linux names them; empty where they cannot be read."""
    facts = _processor_facts()
    return frozenset(facts.get("flags", facts.get("Features", "")).split())


def processor_name() -> str:
    """Return the processor's model name, for records and tables; with family and model where it has no number."""
    facts = _processor_facts()
    if not facts:
        return platform.processor() or platform.machine()
    found = facts.get("model name", platform.machine())
    if "cpu family" not in facts or any(c.isdigit() for c in found):
        return found
    return f"{found} family {facts['cpu family']} model {facts.get('model', '?')}"  # virtual machines name a brand only


def _processor_facts() -> dict[str, str]:
    """Return what Linux says of the first processor, by name; empty where it cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts
