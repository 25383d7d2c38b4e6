"""Times of several contenders that take turns, so that a change of the machine's pace meets all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ops import Work

MOST_ROUNDS = 15
SAMPLE_SECONDS = 0.003
SHORT_SECONDS = 0.1  # of a first call: one of no more may have prepared what later ones find, and says little of them
# The threads of OpenMP spin for a while after a parallel region; the next contender finds the cores free.
PAUSE_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One thing to be timed, and the operations and bytes that it takes, where that is known."""

    name: str
    run: Callable[[], object]
    work: Work | None = None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds per call of each contender, one sample per round, and how many calls a sample averages.

    `warm` is False if the time allowed only rounds that include the first call.
    """

    samples: dict[str, list[float]]
    repeats: dict[str, int]
    warm: bool


def interleave(
    contenders: Sequence[Contender],
    *,
    seconds: float,
    most_rounds: int = MOST_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], None] = time.sleep,
) -> Timing:
    """Return times of `contenders` that run in turn, A B C A B C ..., for about `seconds`, at least one round.

    The first round warms up and is dropped, unless another one does not fit. Of calls of a tenth of a second or less,
    a sample begins with one that is not timed, since it finds threads and cores asleep after the pause; one shorter
    than a few milliseconds is repeated within the sample.
    """
    begin = clock()
    first = {c.name: _timed(c, 1, clock, pause) for c in contenders}
    short = {name for name, taken in first.items() if taken <= SHORT_SECONDS}
    repeats = {c.name: 1 for c in contenders}
    for c in contenders:
        if c.name in short:
            repeats[c.name] = max(1, math.ceil(SAMPLE_SECONDS / max(_timed(c, 1, clock, pause), 1e-7)))
    lasted = clock() - begin
    warm = 2 * lasted <= seconds
    samples: dict[str, list[float]] = {c.name: [] if warm else [first[c.name]] for c in contenders}
    rounds = 0 if warm else 1
    if not warm:
        repeats = {c.name: 1 for c in contenders}
    while rounds < most_rounds and (rounds == 0 or clock() - begin + lasted <= seconds):
        started = clock()
        for c in contenders:
            samples[c.name].append(_timed(c, repeats[c.name], clock, pause, led=c.name in short))
        lasted, rounds = clock() - started, rounds + 1
    return Timing(samples=samples, repeats=repeats, warm=warm)


def _timed(
    contender: Contender,
    repeats: int,
    clock: Callable[[], float],
    pause: Callable[[float], None],
    *,
    led: bool = False,
) -> float:
    """Return seconds per call of `repeats` calls after a pause and, if `led`, a call that is not timed."""
    pause(PAUSE_SECONDS)
    if led:
        contender.run()
    start = clock()
    for _ in range(repeats):
        contender.run()
    return (clock() - start) / repeats
