"""Tuned against default schedules on this machine's processor, both sides in turns in one process.

    python benchmarks/tuned.py --write

Every kernel of both presets, both directions, is timed under the schedule that `schedules/` gives it and under the one
that it would have without a tuned row; where these are one, the ratio is 1 and nothing is timed. `--write` keeps the
times, the ratios and their geometric mean in results/tuned-<machine>.json, of other types than float32 with their name.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, print a table, and write the results if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each kernel")
    parser.add_argument("--dtype", default="float32", help="type of the tensors")
    parser.add_argument("--write", action="store_true", help="keep the results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        os.environ["NSA_CODEGEN_HOME"] = store
        result = measure(options.seconds, options.dtype)
    from nsa_codegen.cli.app import print_table

    print_table(
        f"tuned against default on {result['machine']['name']}",
        result["kernels"],
        ("kernel", "default_ms", "tuned_ms", "ratio"),
    )
    print(f"geometric mean {result['geometric_mean']:.3f}, least {result['least']:.3f}")
    if options.write:
        kind = "" if options.dtype == "float32" else f"-{options.dtype}"
        path = RESULTS / f"tuned-{result['machine']['slug']}{kind}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {path}")


def measure(seconds: float, dtype: str) -> dict[str, Any]:
    """Return machine, date, and a row per kernel: medians in milliseconds, and how many times faster tuned is."""
    import torch

    from nsa_codegen.bench.machine import machine_facts
    from nsa_codegen.build import Request, build_all
    from nsa_codegen.selection import select
    from nsa_codegen.target import native_target
    from nsa_codegen.tuning.measured import measure_finalists, prepare, prerequisites
    from nsa_codegen.tuning.problems import preset_problems
    from nsa_codegen.tuning.space import default_schedule

    target = native_target()
    rows: list[dict[str, Any]] = []
    for preset in ("seed", "paper"):
        for problem in preset_problems(preset, target, dtype):
            default, tuned = default_schedule(problem.desc, target), select(problem.desc, target).schedule
            row = {"preset": preset, "kernel": str(problem.desc), "schedule": str(tuned), "ratio": 1.0}
            rows.append(row)
            if tuned == default:
                continue
            wanted = dict.fromkeys([*prerequisites(problem, target, default), (problem.desc, tuned)])
            for built in build_all([Request(desc=d, schedule=s, target=target) for d, s in wanted]):
                if built.error is not None:
                    raise built.error
            prepare(problem, target, default)
            (found,) = measure_finalists(problem, (tuned,), target, default, seconds)
            assert found.measured is not None and found.default is not None
            row |= {"default_ms": 1e3 * found.default.median, "tuned_ms": 1e3 * found.measured.median}
            row["ratio"] = found.default.median / found.measured.median
    ratios = [float(row["ratio"]) for row in rows]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "threads": torch.get_num_threads(),
        "geometric_mean": statistics.geometric_mean(ratios),
        "least": min(ratios),
        "kernels": rows,
    }


if __name__ == "__main__":
    main()
