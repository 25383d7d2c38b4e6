"""What a run of the tuner is asked to do, what it calls in other processes, and what it has found so far."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..schedule import Schedule
from ..store import KernelStore
from ..target import Target
from .measured import MEASURE_SECONDS, build_candidate, judge_measured, measure_finalists, prepare, prerequisites
from .problems import Problem
from .records import Judged, Meta, Record
from .space import Space
from .static import judge_static
from .winners import Numbered, Verdict, verdict

FINAL_SECONDS = 5.0


def compile_and_predict(problem: Problem, schedule: Schedule, target: Target, root: Path) -> Judged:
    """Return the static judgement of a candidate, compiled into the store at `root` where the target has a compiler."""
    compile = target.kind == "cuda"
    return judge_static(problem.desc, schedule, target, problem.sizes, store=KernelStore(root), compile=compile)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is asked to do.

    `meta` names run, target, judge and machine. `trials` are candidates per kernel, `seconds` the limit of time for
    building one and for judging one, `jobs` how many are built at a time. `scratch` is the folder of the candidates'
    kernels, `compiled` how many the static judge compiles beside the default, `finalists` how many are measured again.
    """

    meta: Meta
    target: Target
    storage: str
    logs: Path
    scratch: Path
    trials: int = 64
    seconds: float = 120.0
    measure_seconds: float = MEASURE_SECONDS
    final_seconds: float = FINAL_SECONDS
    jobs: int = 1
    compiled: int = 3
    finalists: int = 4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What runs in other processes: importable functions with the arguments of those that stand here."""

    build: Callable[..., Any] = build_candidate
    prepare: Callable[..., Any] = prepare
    judge: Callable[..., Judged] = judge_measured
    finals: Callable[..., tuple[Judged, ...]] = measure_finalists
    static: Callable[..., Judged] = compile_and_predict
    prerequisites: Callable[..., tuple[Any, ...]] = prerequisites


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known of one kernel: its space, records of the search and of the final rounds, and its log."""

    problem: Problem
    space: Space
    records: tuple[Record, ...]
    finals: tuple[Record, ...]
    log: Path

    @functools.cached_property
    def verdict(self) -> Verdict:
        """What `replay` says of these records, whose lines are not known here."""
        numbered = [Numbered(line=0, record=record) for record in (*self.records, *self.finals)]
        return verdict(self.problem.desc, self.space.target, numbered)

    @property
    def best(self) -> Record | None:
        """The candidate that wins, or came nearest to it; while there is no final round, the best of the search."""
        return None if self.verdict.best is None else self.verdict.best.record

    @property
    def default(self) -> Record | None:
        """The record of the default schedule."""
        wanted = self.space.default.to_json()
        return next((r for r in self.records if dict(r.schedule) == wanted), None)

    @property
    def gain(self) -> float | None:
        """How many times faster than the default the best is, measured in turns or predicted; None if not known."""
        return self.verdict.finite_gain


Report = Callable[[Found], None]  # called after every record with what is known so far
