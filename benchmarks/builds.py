"""Times cold and warm builds of a preset's kernels for GPUs that are not here: `python benchmarks/builds.py --write`.

Each target starts from an empty store, in a process of its own as a user starts it; three warm builds follow.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from nsa_codegen.bench.machine import machine_facts
from nsa_codegen.target import GPU_TARGETS

RESULT = Path(__file__).parent / "results" / "builds.json"
WARM = 3


def main(
    target: Annotated[list[str] | None, typer.Option(help="Time this target only; may be repeated.")] = None,
    preset: Annotated[str, typer.Option(help="Whose kernels are built.")] = "paper",
    store: Annotated[Path | None, typer.Option(help="Keep the kernels in this folder, which has none yet.")] = None,
    write: Annotated[bool, typer.Option(help="Write results/builds.json.")] = False,
) -> None:
    """Print, and with --write store, the seconds of each target's builds."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in target or [t for t in GPU_TARGETS if t.startswith("sm_")]:
            rows.append(measure(name, preset, store or Path(folder)))
            print("{target}: {kernels} kernels, cold {cold:.1f} s, warm {warm:.2f} s".format(**rows[-1]), flush=True)
    if write:
        found = {
            "command": f"python benchmarks/builds.py --preset {preset} --write",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": machine_facts(),
            "jobs": os.cpu_count(),
            "preset": preset,
            "what": "bfloat16, forward and backward; compiled, not run: no GPU is here",
            "rows": rows,
        }
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


def measure(target: str, preset: str, store: Path) -> dict[str, Any]:
    """Return the seconds of one cold build and the median of the warm ones; raises if one fails."""
    command = [sys.executable, "-m", "nsa_codegen.cli", "build", "--target", target, "--preset", preset]
    command += ["--dtype", "bfloat16", "--direction", "both", "--json"]
    seconds, built = [], []
    for _ in range(1 + WARM):
        start = time.perf_counter()
        done = subprocess.run(
            command, env={**os.environ, "NSA_CODEGEN_HOME": str(store)}, check=True, stdout=subprocess.PIPE, text=True
        )
        seconds.append(time.perf_counter() - start)
        built.append(json.loads(done.stdout))
    if any(row["how"] == "stored" for row in built[0]):
        raise SystemExit(f"{store} holds kernels of {target} already: a build from it is not cold")
    return {
        "target": target,
        "kernels": len(built[0]),
        "cold": seconds[0],
        "warm": statistics.median(seconds[1:]),
    }


if __name__ == "__main__":
    typer.run(main)
