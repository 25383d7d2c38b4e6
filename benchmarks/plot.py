"""Draw the plots of stored results again: `python benchmarks/plot.py [results/<machine>.json ...]`, all by default."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from nsa_codegen.bench.plots import write_plots
from nsa_codegen.bench.suite import read_result
from nsa_codegen.errors import NSAError

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the plots of each file beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="files that `nsa-codegen bench` wrote; all by default")
    named = parser.parse_args(arguments).results
    try:
        for path in named or _stored():
            for plot in write_plots(read_result(path), path.parent, path.stem):
                print(plot)
    except NSAError as error:
        sys.exit(f"error: {error}")


def _stored() -> list[Path]:
    """Return the files of `bench`; others hold the results of other benchmarks."""
    return [p for p in sorted(RESULTS.glob("*.json")) if "comparisons" in json.loads(p.read_text())]


if __name__ == "__main__":
    main()
