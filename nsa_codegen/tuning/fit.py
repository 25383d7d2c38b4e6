"""Constants of the CPU cost model, fitted to measured records; `python -m nsa_codegen.tuning.fit LOG...` shows them.

A ridge: errors relative to the measured times, every kernel with the same weight, and a pull to the constants that
there are, so that what no record tells apart stays as it is. It changes nothing: what it prints is put into `cost_cpu`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NSAError
from ..ops import Sizes
from ..schedule import CpuSchedule, multiplies_pairs
from ..target import CpuTarget, parse_target
from . import cost_cpu
from .cpu_loops import loop
from .records import Log, Record, read_log

PULL = 0.05
_ROUNDS = 2000


def constants() -> dict[str, float]:
    """Return the constants that are fitted, as they are: `products`, `exposed`, and the passes by name."""
    return {"products": cost_cpu.WITHIN, "exposed": cost_cpu.EXPOSED, **cost_cpu.PASSES}


def fitted(records: Iterable[tuple[Record, CpuTarget]], *, pull: float = PULL) -> dict[str, float]:
    """Return the constants that predict measured records best; `pull` is the weight of those that there are."""
    before = constants()
    rows, kernels = [], []
    for record, target in records:
        if record.status == "ok" and record.measured is not None:
            rows.append([v / record.measured.median for v in _terms(record, target).values()])
            kernels.append(str(record.desc))
    if not rows:
        return before
    often = Counter(kernels)
    weights = np.array([often[name] ** -0.5 for name in kernels])
    matrix = np.array(rows) * weights[:, None]
    start = np.array(list(before.values()))
    return dict(zip(before, _solve(matrix, weights, start, pull).tolist(), strict=True))


def _terms(record: Record, target: CpuTarget) -> Mapping[str, float]:
    """Return the seconds of a record by constant, for the constant 1."""
    schedule, cores = CpuSchedule.parse(dict(record.schedule)), cost_cpu.CORES
    found = loop(record.desc, schedule, Sizes(**record.sizes))
    paired = multiplies_pairs(record.desc, target)
    clocks = sum(p.times * cost_cpu.product_clocks(p, schedule, target, paired=paired) for p in found.products)
    passes = {name: 1e-9 * found.passes.get(name, 0.0) / cores for name in cost_cpu.PASSES}
    return {"products": clocks / cost_cpu.CLOCK / cores, "exposed": cost_cpu.memory_seconds(found)["far"], **passes}


def _solve(matrix: Any, wanted: Any, start: Any, pull: float) -> Any:
    """Return the non-negative least squares solution that is pulled to `start`, coordinate by coordinate."""
    found = start.copy()
    for _ in range(_ROUNDS):
        for j, value in enumerate(start):
            column = matrix[:, j]
            rest = wanted - matrix @ found + column * found[j]
            found[j] = max(0.0, (column @ rest + pull / value) / (column @ column + pull / value**2))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the constants before and after fitting them to the logs that are named."""
    parser = argparse.ArgumentParser(prog="python -m nsa_codegen.tuning.fit", description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path, help="logs <run>.jsonl of measured runs of CPU kernels")
    named: list[Path] = parser.parse_args(arguments).logs
    try:
        logs: list[Log] = [read_log(path) for path in named]
    except NSAError as error:
        sys.exit(f"error: {error}")
    pairs = []
    for log in logs:
        target = parse_target(log.meta.target)
        if isinstance(target, CpuTarget):
            pairs += [(record, target) for record in log.records]
    after = fitted(pairs)
    for name, value in constants().items():
        print(f"{name:12} {value:8.3f} -> {after[name]:8.3f}")


if __name__ == "__main__":
    main()
