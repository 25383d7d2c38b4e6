"""Draw the plots of stored results again: `python benchmarks/plot.py [results/<machine>.json ...]`, all by default."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nsa_codegen.bench.plots import write_plots
from nsa_codegen.bench.suite import require_result

RESULTS = Path(__file__).parent / "results"


def main(names: list[str]) -> None:
    """Write the plots of each file beside it."""
    for path in map(Path, names) if names else sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text())
        if not names and "comparisons" not in found:
            continue  # the results of another benchmark
        result = require_result(found, str(path))
        for plot in write_plots(result, path.parent, path.stem):
            print(plot)


if __name__ == "__main__":
    main(sys.argv[1:])
