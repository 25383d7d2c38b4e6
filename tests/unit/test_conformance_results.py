"""benchmarks/results/conformance.json is of the kernels, schedules and sizes of today; `make conformance` writes it."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nsa_codegen.conformance import CASES, TARGETS
from nsa_codegen.conformance.cases import SHIPPED
from nsa_codegen.conformance.check import has_backward
from nsa_codegen.conformance.results import problems
from nsa_codegen.needed import backward_descs
from nsa_codegen.selection import select
from nsa_codegen.target import GPU_TARGETS

ROWS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "benchmarks" / "results" / "conformance.json").read_text()
)["rows"]


def test_everything_conforms() -> None:
    assert problems(ROWS) == []


STALE = dict.fromkeys(("sm_89", "sm_100a"), "the results are of former schedules and sizes: docs/gpu.md, Not there")


@pytest.mark.parametrize(
    "arch",
    [pytest.param(a, marks=[pytest.mark.xfail(strict=True, reason=STALE[a])] if a in STALE else []) for a in TARGETS],
)
def test_results_are_of_the_schedules_and_sizes_of_today(arch: str) -> None:
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in ROWS:
        if row["target"] == arch:
            found[row["desc"], row["kernel"]].append(row)
    for case in (*CASES, *SHIPPED):
        today: dict[str, set[str]] = defaultdict(set)
        for desc in (case.desc, *(backward_descs(case.desc, "cuda") if has_backward(case.desc) else ())):
            today[desc.kind].add(str(select(desc, GPU_TARGETS[arch]).schedule))
        for kernel, schedules in today.items():
            rows = found[str(case.desc), kernel]
            assert {s for row in rows for s in row["schedules"]} == schedules, f"{kernel} of {case.desc} on {arch}"
            sizes = [row["sizes"] for row in rows]
            assert all(asdict(s) in sizes for s in case.sizes), f"{kernel} of {case.desc} on {arch}"
