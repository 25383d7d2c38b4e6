"""One case of conformance on one target: all its sizes, each in all orders."""

from __future__ import annotations

from pathlib import Path

from ..errors import NSAError
from ..target import GPU_TARGETS
from .cases import CASES, ORDERS, SHIPPED
from .check import check
from .results import Row, failed_row, rows_of


def run_case(number: int, target: str, cache: Path | None) -> list[Row]:
    """Return the rows of one case on one target, at all its sizes, each in all orders."""
    case = (*CASES, *SHIPPED)[number]
    rows: list[Row] = []
    for sizes in case.sizes:
        try:
            outcomes = [
                check(case.desc, sizes, GPU_TARGETS[target], order=order, seed=seed, cache=cache)
                for order, seed in ORDERS
            ]
        except NSAError as error:
            return [*rows, failed_row(str(case.desc), case.desc.kind, target, f"{type(error).__name__}: {error}")]
        rows += rows_of(outcomes)
    return rows
