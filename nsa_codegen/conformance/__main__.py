"""`python -m nsa_codegen.conformance`: every case on every target in every order; writes the table and the data."""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from .cases import CASES, SHIPPED, TARGETS
from .results import Row, merged, problems, results_json, results_page
from .run import run_case

_ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run what the arguments ask for, write the results, and return 0 if all conforms."""
    parser = argparse.ArgumentParser(prog="python -m nsa_codegen.conformance", description=__doc__)
    parser.add_argument("--target", action="append", choices=TARGETS, help="this one only; may be given more than once")
    parser.add_argument("--op", action="append", choices=sorted({c.desc.op for c in CASES}), help="this one only, too")
    parser.add_argument("--shipped", action="store_true", help="only kernels whose texts are in generated/")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--page", type=Path, default=_ROOT / "docs" / "conformance.md")
    parser.add_argument("--data", type=Path, default=_ROOT / "benchmarks" / "results" / "conformance.json")
    parser.add_argument("--keep", action="store_true", help="keep the rows of the data file that are not run again")
    parser.add_argument("--cache", type=Path, default=None, help="folder of lowered texts and PTX")
    options = parser.parse_args()
    start = time.perf_counter()
    rows: list[tuple[tuple[str, int], list[Row]]] = []
    cases = (*CASES, *SHIPPED)
    numbers = [n for n, case in enumerate(cases) if options.op is None or case.desc.op in options.op]
    if options.shipped:
        numbers = [n for n in numbers if n >= len(CASES)]
    tasks = [(n, target) for target in options.target or TARGETS for n in numbers]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_case, n, target, options.cache): (n, target) for n, target in tasks}
        for done, future in enumerate(as_completed(futures), 1):
            found, (n, target) = future.result(), futures[future]
            wrong = problems(found)
            rows.append(((target, n), found))
            print(f"{done}/{len(tasks)} {target} {cases[n].desc}: {'; '.join(wrong)[:300] or 'ok'}", file=sys.stderr)
    ordered = [row for _, found in sorted(rows, key=lambda item: item[0]) for row in found]
    seconds = time.perf_counter() - start
    if options.keep:
        before, known = json.loads(options.data.read_text()), {str(case.desc) for case in cases}
        kept = [row for row in before["rows"] if row["desc"] in known]  # not of what is a case no more
        ordered, seconds = merged(kept, ordered), seconds + before["seconds"]
    data = results_json(ordered, seconds=seconds)
    options.data.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(data, separators=(",", ":")).replace('{"kernel":', '\n{"kernel":')  # one row per line
    options.data.write_text(lines + "\n")
    options.page.write_text(results_page(data))
    wrong = problems(ordered)
    print(f"{len(ordered)} results, {len(wrong)} problems, {data['seconds']} s", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
