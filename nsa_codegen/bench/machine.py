"""What the machine is, and what it could do at most: operations in registers, and bytes copied in memory."""

from __future__ import annotations

import collections
import ctypes
import functools
import os
import platform
import re
import shutil
import statistics
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

    `fed_all` are those on `threads` with operands out of the first cache, as products have them: no product does more.
    `pairs_all` are operations per second on pairs of bfloat16 numbers on `threads`, 0 where no unit multiplies them. A
    copy's bytes count twice: read, and written. `clock_fma` and `clock_fed` are median clocks a second right after
    `fma_all` and `fed_all`, 0 where they can't be told.
    """

    threads: int
    fma_one: float
    fma_all: float
    copy_bytes: float
    fed_all: float = 0.0
    pairs_all: float = 0.0
    clock_fma: float = 0.0
    clock_fed: float = 0.0
    samples: Mapping[str, list[float]]

    @classmethod
    def of(cls, threads: int, samples: Mapping[str, list[float]]) -> Limits:
        """Return the limits that `samples` of each make."""
        found = {n: statistics.median(x) if n.startswith("clock") else max(x) for n, x in samples.items()}
        return cls(threads=threads, samples=samples, **found)

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
    numbers, fed, pairs = (_unit(library[name]) for name in ("nsa_fma_peak", "nsa_fed_peak", "nsa_pair_peak"))
    found: dict[str, list[float]] = collections.defaultdict(list)
    for _ in range(samples):
        found["fma_one"].append(numbers(1)[0])
        for name, unit in (("fma", numbers), ("fed", fed)):
            rate, clock = unit(threads)
            found[f"{name}_all"].append(rate)
            found[f"clock_{name}"].append(clock)
        found["pairs_all"].append(pairs(threads)[0])
    return Limits.of(threads, {**found, "copy_bytes": _copy_speeds(samples, copy_bytes)})


def _unit(peak: Any) -> Callable[[int], tuple[float, float]]:
    """Return what measures a unit once on so many threads, in samples of one length: operations and clocks a second."""
    peak.argtypes, peak.restype = [ctypes.c_int32, ctypes.c_int64, ctypes.POINTER(ctypes.c_double)], ctypes.c_double

    def sample(threads: int, steps: int) -> tuple[float, float]:
        clock = ctypes.c_double()
        return peak(threads, steps, ctypes.byref(clock)), clock.value

    return functools.partial(sample, steps=_steps_of_a_sample(lambda steps: sample(1, steps)[0]))


def _steps_of_a_sample(peak: Callable[[int], float]) -> int:
    least = 1 << 16
    start = time.perf_counter()
    if not peak(least):
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
