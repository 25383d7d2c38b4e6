"""How well the cost model ranks: against the times that a run measured, for every desc and over all of them.

Two figures: Spearman's rank correlation of predicted with measured times, and what taking the model's best candidate
instead of the measured best loses. Candidates are compared within one run, desc and set of sizes alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..desc import KernelDesc
from .records import Record

Pair = tuple[float, float]  # predicted and measured


@dataclass(frozen=True, kw_only=True)
class Honesty:
    """The ranking of `candidates` candidates of one desc, or with `descs` > 1 of several.

    `spearman` is from -1 to 1, None where all times of one side are the same. `loss` is the measured time of the
    model's best over the measured best, at least 1; candidates that the model holds equal count by their mean. Over
    several descs both are means, of the loss the geometric one.
    """

    name: str
    candidates: int
    descs: int
    spearman: float | None
    loss: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The rankings of `descs` descs in three figures: what is published of the model.

    `spearman` is the median, None where it is defined for none; `loss` the geometric mean, and `worst` the greatest.
    """

    name: str
    descs: int
    candidates: int
    spearman: float | None
    loss: float
    worst: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return asdict(self)


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, equal values at the mean of their ranks; None if it is not defined."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (one, other)]
    if len(one) < 2 or any(r.std() == 0 for r in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def loss(pairs: Sequence[Pair]) -> float:
    """Return the measured time of the model's best over the measured best."""
    least = min(predicted for predicted, _ in pairs)
    chosen = [measured for predicted, measured in pairs if math.isclose(predicted, least, rel_tol=1e-9)]
    return sum(chosen) / len(chosen) / min(measured for _, measured in pairs)


def pairs_by_desc(records: Iterable[Record]) -> dict[tuple[KernelDesc, str], list[Pair]]:
    """Return predicted and measured times of a run's candidates that have both, by desc and sizes; of the search alone.

    Measured times are in units of the default's of the same turns, which leaves out what the machine did meanwhile.
    Finalists are left out, since they are few, and were chosen.
    """
    found: dict[tuple[KernelDesc, str], list[Pair]] = {}
    for record in records:
        if record.status != "ok" or record.stage != "search" or not record.predicted or record.measured is None:
            continue
        unit = 1.0 if record.default is None else record.default.median
        pair = (record.predicted["seconds"], record.measured.median / unit)
        found.setdefault((record.desc, str(sorted(record.sizes.items()))), []).append(pair)
    return found


def together(found: Iterable[tuple[KernelDesc, Honesty]]) -> tuple[Honesty, ...]:
    """Return the figures of rankings by kind, in order, then over `all`; empty without any."""
    return tuple(_mean(name, rows) for name, rows in _by_kind(found))


def rankings(records: Iterable[Record]) -> tuple[tuple[KernelDesc, Honesty], ...]:
    """Return every desc of one run that has two candidates or more, once for each set of sizes, with its figures."""
    return tuple(
        (
            desc,
            Honesty(
                name=str(desc),
                candidates=len(pairs),
                descs=1,
                spearman=spearman(*zip(*pairs, strict=True)),
                loss=loss(pairs),
            ),
        )
        for (desc, _), pairs in pairs_by_desc(records).items()
        if len(pairs) > 1
    )


def summaries(found: Iterable[tuple[KernelDesc, Honesty]]) -> tuple[Summary, ...]:
    """Return what is published of rankings: a summary of each kind, in order, then of `all`; empty without any."""
    return tuple(_summary(name, rows) for name, rows in _by_kind(found))


def _by_kind(found: Iterable[tuple[KernelDesc, Honesty]]) -> list[tuple[str, list[Honesty]]]:
    """Return the figures of each kind, in order of the kinds, and of `all`; nothing without any."""
    kinds: dict[str, list[Honesty]] = {}
    for desc, row in found:
        kinds.setdefault(desc.kind, []).append(row)
    every = [row for rows in kinds.values() for row in rows]
    return [*sorted(kinds.items()), ("all", every)] if every else []


def _summary(name: str, rows: list[Honesty]) -> Summary:
    ranked = [row.spearman for row in rows if row.spearman is not None]
    return Summary(
        name=name,
        descs=len(rows),
        candidates=sum(row.candidates for row in rows),
        spearman=statistics.median(ranked) if ranked else None,
        loss=statistics.geometric_mean(row.loss for row in rows),
        worst=max(row.loss for row in rows),
    )


def _mean(name: str, rows: list[Honesty]) -> Honesty:
    ranked = [row.spearman for row in rows if row.spearman is not None]
    return Honesty(
        name=name,
        candidates=sum(row.candidates for row in rows),
        descs=len(rows),
        spearman=sum(ranked) / len(ranked) if ranked else None,
        loss=math.exp(sum(math.log(row.loss) for row in rows) / len(rows)),
    )


def _ranks(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: np.ndarray[Any, np.dtype[np.float64]] = (ends - (counts - 1) / 2)[inverse]
    return ranks
