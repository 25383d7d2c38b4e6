"""What the machine is, and what it could do at most: operations in registers, and bytes copied in memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..compiler import compile_shared
from ..ops import Work
from ..store import SOURCE
from ..target import native_target, processor_name

ENVIRONMENT = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "NSA_CODEGEN_TARGET", "CXX")
_SAMPLE_SECONDS = 0.05
_COPY_BYTES = 256 << 20  # beyond any cache, read and written
_SAMPLES = 7


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The best of several samples each: float32 operations per second on one thread and on `threads`, bytes copied.

    `pairs_all` are operations per second on pairs of bfloat16 numbers on `threads`, 0 where no unit multiplies them. A
    copy's bytes count twice: read, and written.
    """

    threads: int
    fma_one: float
    fma_all: float
    copy_bytes: float
    pairs_all: float = 0.0
    samples: Mapping[str, list[float]]

    def seconds(self, work: Work, dtype: str) -> float:
        """Return the least time of `work` on tensors of `dtype`: its operations at the peak, or bytes at copy speed."""
        peak: float = getattr(self, peak_for(vars(self), dtype))
        return max(work.operations / peak, work.bytes / self.copy_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the limits as plain data."""
        return asdict(self)


def peak_for(limits: Mapping[str, Any], dtype: str) -> str:
    """Return which of the `limits`, as plain data, bounds operations on `dtype`; older ones know nothing of pairs."""
    return "pairs_all" if dtype == "bfloat16" and limits.get("pairs_all") else "fma_all"


def measure_limits(threads: int, *, samples: int = _SAMPLES, copy_bytes: int = _COPY_BYTES) -> Limits:
    """Return the limits of this machine with `threads` threads; raises `CompilerError` without a C++ compiler."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(Path(__file__).parent / "peak.cpp", folder / SOURCE)
        library = ctypes.CDLL(str(folder / compile_shared(folder, target=native_target()).name))
    numbers, pairs = library.nsa_fma_peak, library.nsa_pair_peak
    for peak in (numbers, pairs):
        peak.argtypes, peak.restype = [ctypes.c_int32, ctypes.c_int64], ctypes.c_double
    found: dict[str, list[float]] = {"fma_one": [], "fma_all": [], "pairs_all": []}
    steps, steps_of_pairs = _steps_of_a_sample(numbers), _steps_of_a_sample(pairs)
    for _ in range(samples):
        found["fma_one"].append(numbers(1, steps))
        found["fma_all"].append(numbers(threads, steps))
        found["pairs_all"].append(pairs(threads, steps_of_pairs))
    found["copy_bytes"] = _copy_speeds(samples, copy_bytes)
    return Limits(threads=threads, samples=found, **{name: max(values) for name, values in found.items()})


def _steps_of_a_sample(peak: Callable[[int, int], float]) -> int:
    least = 1 << 16
    start = time.perf_counter()
    if not peak(1, least):
        return 1
    return max(least, int(least * _SAMPLE_SECONDS / (time.perf_counter() - start)))


def _copy_speeds(samples: int, size: int) -> list[float]:
    source, target = torch.ones(size // 4), torch.zeros(size // 4)
    found = []
    for _ in range(samples):
        start = time.perf_counter()
        target.copy_(source)
        found.append(2 * size / (time.perf_counter() - start))
    return found


def machine_facts() -> dict[str, Any]:
    """Return the machine's name, cores, memory, system and versions, and the variables that change speed."""
    name, cores = processor_name(), os.cpu_count() or 1
    return {
        "name": name,
        "slug": slug(f"{name} {native_target().name} {cores} cores"),
        "cores": cores,
        "target": native_target().name,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "environment": {v: os.environ[v] for v in ENVIRONMENT if v in os.environ},
    }


def slug(name: str) -> str:
    """Return `name` as part of a file's name: lower case, words joined by `-`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("(r)", "").replace("(tm)", "")).strip("-")
