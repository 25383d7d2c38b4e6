"""Results of the whole conformance run, as data and as the page docs/conformance.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from ..nvcc import find_nvcc
from ..source import TILELANG_VERSION
from .cases import CASES, ORDERS, SHIPPED, TARGETS
from .check import Outcome

FORMAT = 1
Row = dict[str, Any]


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return one row per kernel kind, forward and backward, of checks that differ in their orders only."""
    first, rows = outcomes[0], []
    for kind in (f"{first.desc.op}_fwd", f"{first.desc.op}_bwd"):
        launches = [x for o in outcomes for x in o.launches if x.desc.kind == kind]
        errors = [a for o in outcomes for a in o.accuracies if a.kind == kind]
        if not launches and not errors:
            continue
        reports = [x.report for x in launches]
        worst = {a.name: a for a in sorted(errors, key=lambda a: a.error)}
        rows.append({
            "kernel": kind,
            "desc": str(first.desc),
            "target": first.target.name,
            "sizes": asdict(first.sizes),
            "schedules": sorted({str(x.schedule) for x in launches}),
            "launches": len(launches),
            "instructions": sum(r.instructions for r in reports),
            "findings": sorted({str(f) for r in reports for f in r.findings}),
            "not_executed": sorted({r.status for r in reports if r.status.startswith("not executed")}),
            "errors": {n: [float(f"{x:.3g}") for x in (a.error, a.eager, a.allowed)] for n, a in worst.items()},
            "inaccurate": sorted({a.name for a in errors if not a.passed}),
            "checks": len(outcomes),
            "passed": sum(o.passed for o in outcomes),
            "same_bits": len({o.bits for o in outcomes}) == 1,
        })  # fmt: skip
    return rows


def failed_row(desc: str, kernel: str, target: str, error: str) -> Row:
    """Return the row of a kernel that could not be made."""
    return {"kernel": kernel, "desc": desc, "target": target, "not_made": error}


def results_json(rows: Sequence[Row], *, seconds: float) -> dict[str, Any]:
    """Return everything that was run, as plain data."""
    return {
        "format": FORMAT,
        "claim": "executed on the CPU by nsa_codegen.executor under the model of docs/executor.md; not run on a GPU",
        "tilelang": TILELANG_VERSION,
        "nvcc": find_nvcc().version,
        "orders": [f"{order} {seed}" if order == "random" else order for order, seed in ORDERS],
        "seconds": round(seconds, 1),
        "rows": list(rows),
    }


def merged(kept: Iterable[Row], found: Sequence[Row]) -> list[Row]:
    """Return the rows of an earlier run, by target, with those that were found anew in place of their former ones."""
    anew = {(row["target"], row["desc"]) for row in found}
    rest = [row for row in kept if (row["target"], row["desc"]) not in anew]
    return sorted([*rest, *found], key=lambda row: TARGETS.index(row["target"]))


def problems(rows: Iterable[Row]) -> list[str]:
    """Return what does not conform, one line per finding, inaccurate row or kernel that was not made."""
    found = []
    for row in rows:
        name = f"{row['kernel']} on {row['target']}, {row['desc']}"
        if "not_made" in row:
            found.append(f"{name}: not made: {row['not_made']}")
            continue
        at = f"{name}, {_size_text(row['sizes'])}"
        here = [*row["findings"], *row["not_executed"]]
        here += [f"error, eager error and bound of {n}: {row['errors'][n]}" for n in row["inaccurate"]]
        if not row["same_bits"]:
            here.append("the bits depend on the order")
        if not here and row["passed"] < row["checks"]:
            here.append("a kernel that runs before or after it failed")
        found += [f"{at}: {text}" for text in here]
    return found


def results_page(data: dict[str, Any]) -> str:
    """Return docs/conformance.md for the data of `results_json`."""
    rows, wrong = data["rows"], problems(data["rows"])
    targets = [t for t in TARGETS if any(row["target"] == t for row in rows)]
    table = [f"| kernel | {' | '.join(targets)} |", f"|---|{'---|' * len(targets)}"]
    for kernel in sorted({row["kernel"] for row in rows}):
        cells = [_cell([r for r in rows if (r["kernel"], r["target"]) == (kernel, t)]) for t in targets]
        table.append(f"| `{kernel}` | {' | '.join(cells)} |")
    cases = []
    for case in (*CASES, *SHIPPED):
        sizes = "; ".join(f"{s.batch}, {s.tokens}, {s.keys}, {s.kv_heads}, {s.q_start}" for s in case.sizes)
        cases.append(f"| `{case.desc}` | {sizes} |")
    return _PAGE.format(
        tilelang=data["tilelang"],
        nvcc=data["nvcc"],
        orders=", ".join(data["orders"]),
        checks=sum(r.get("checks", 0) for r in rows),
        launches=sum(r.get("launches", 0) for r in rows),
        millions=sum(r.get("instructions", 0) for r in rows) / 1e6,
        table="\n".join(table),
        wrong="\n".join(f"- {' '.join(text.split())[:400]}" for text in wrong) or "Nothing.",
        cases="\n".join(cases),
    )


_PAGE = """\
# Conformance of the GPU kernels

*Written by `make conformance`; do not edit.*

**Every kernel here was executed on a CPU by `nsa_codegen.executor`, under the model that [executor.md](executor.md)
states. None of this is a run on a GPU, and nothing here is a speed.** What is claimed, for the inputs and interleavings
that ran:

- no access out of bounds or misaligned, no race, no missing or mismatched wait or barrier, no deadlock, nothing pending
  at exit: each kernel's report is empty, and every opcode has a model;
- outputs, filled with NaN before, are wholly written;
- the error against float64 is at most three times that of eager torch in the same type plus 2 ulp of the greatest
  value, as a whole and in each row, as of a key; forced blocks are float64's, and so are chosen ones, but for blocks
  whose scores differ by rounding;
- every order gives the same bits.

How tensor cores round their sums, and what approximate functions give in their last bits, is not modelled and not
claimed.

TileLang {tilelang}, nvcc {nvcc}; orders: {orders}. {checks} checks, {launches} launches, {millions:.0f} million warp
instructions; all of it in [conformance.json](../benchmarks/results/conformance.json).

## Results

Checks that passed, of all (a check is one desc at one size in one order), and the greatest error as a part of the
bound.

{table}

## What did not conform

{wrong}

## The cases

| forward, checked with its backward | batch, queries, keys, key heads, first position |
|---|---|
{cases}

Those from the seed preset's on are the kernels whose texts are in `generated/`. Lists of blocks hold -1, blocks twice,
blocks after the query, and one query has none. Of compressed keys the first queries see none. Those that stand past
position 100 have blocks to choose among and windows behind which keys lie. A backward runs on the results of its
forward.
"""


def _cell(rows: list[Row]) -> str:
    if not rows:
        return ""
    made = [r for r in rows if "not_made" not in r]
    errors = [e for r in made for e in r["errors"].values()]
    text = f"{sum(r['passed'] for r in made)}/{sum(r['checks'] for r in made)}"
    ratios = [error / allowed for error, _, allowed in errors if allowed > 0]
    if ratios:
        text += f", {max(ratios):.2f}"
    missing = len(rows) - len(made)
    return f"{text}; {missing} not made" if missing else text


def _size_text(sizes: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in sizes.items())
