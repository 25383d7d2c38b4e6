"""The conformance cases on this machine's GPU: what the executor checks on the CPU, run for real, and its report."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..device import device_target
from ..errors import TargetError
from ..ops import Sizes
from ..source import TILELANG_VERSION
from .accuracy import judge
from .cases import CASES, SHIPPED, Case
from .check import digest, inputs_of, nan_filled, results_of, widened


def require_gpu() -> torch.device:
    """Return the current CUDA device; raises `TargetError` if there is none or its architecture is none of ours."""
    if not torch.cuda.is_available():
        raise TargetError(
            "there is no GPU here: nothing was run on one. `nsa-codegen execute` runs a GPU kernel on the CPU, and "
            "`make conformance` all of them"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    device_target(device)
    return device


def run_on_gpu(on_done: Callable[[int], None]) -> dict[str, Any]:
    """Return the report of every case on the current GPU: device, driver, versions, errors; sealed by its sha256.

    Every case runs twice, and has to leave the same bits; what kernels must write holds NaN before.

    `on_done` is called with the number of cases done. Raises what `require_gpu` and building raise.
    """
    device = require_gpu()
    rows: list[dict[str, Any]] = []
    for done, case in enumerate((*CASES, *SHIPPED), 1):
        rows += [row_of(case, sizes, device) for sizes in case.sizes]
        on_done(done)
    report = {
        "claim": "run on the GPU named here",
        "gpu": torch.cuda.get_device_name(device),
        "target": device_target(device).name,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "tilelang": TILELANG_VERSION,
        "host": platform.platform(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "passed": all(row["passed"] for row in rows),
        "rows": rows,
    }
    return report | {"seal": hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()}


def row_of(case: Case, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Return the errors of a case at one size on a device, and whether two runs left the same bits."""
    values = inputs_of(case.desc, sizes)
    there = _moved(values, device)
    with nan_filled():
        first, second = (results_of(case.desc, there, compiled=True) for _ in range(2))
    exact, eager = results_of(case.desc, widened(values)), results_of(case.desc, values)
    accuracies = judge(case.desc, _moved(first, torch.device("cpu")), eager, exact, values)
    errors = {a.name: [a.error, a.eager, a.allowed] for a in accuracies}
    same_bits = digest(first) == digest(second)
    passed = same_bits and all(a.passed for a in accuracies)
    return {"desc": str(case.desc), "sizes": str(sizes), "errors": errors, "same_bits": same_bits, "passed": passed}


def _moved(values: Any, device: torch.device) -> Any:
    if isinstance(values, dict):
        return {name: _moved(value, device) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_moved(value, device) for value in values]
    return values.to(device) if isinstance(values, Tensor) else values
