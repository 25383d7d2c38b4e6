"""What is made of raw samples: quartiles, ratios round by round, exponents. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence


def quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile; of a single sample, that sample three times."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def ratios(baseline: Sequence[float], samples: Sequence[float]) -> list[float]:
    """Return `baseline[i] / samples[i]`: how many times faster than the baseline each round was."""
    return [b / s for b, s in zip(baseline, samples, strict=True)]


def exponent(points: Iterable[tuple[float, float]]) -> float | None:
    """Return `p` of the least-squares fit `y = c * x**p` in logarithms, or None for fewer than two distinct x."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles by name."""
    low, middle, high = quartiles(samples)
    return {"median": middle, "q1": low, "q3": high}
