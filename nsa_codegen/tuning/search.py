"""The search: candidates are claimed in a study that tuners share, built side by side, judged one by one, and logged.

Where the legal space is no larger than the number of trials it is judged whole, best predicted first; else the best
predicted come first, and then what Optuna's TPE proposes. With the static judge the best predicted are compiled until
enough of them do not spill. What is found is kept as it comes: in the study, and from there in the log, so that neither
an interruption nor a crash loses a record.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..errors import TuningError
from ..schedule import Schedule
from .child import Outcome, Worker, call_all
from .kernel_search import KernelSearch
from .options import Found, Options, Report, Tools
from .problems import Problem
from .storage import shown_url, without_passwords
from .study import STORAGE_ERRORS, open_storage, study_names

PREPARE_SECONDS = 900.0
_WAIT_SECONDS = 0.5


class Tuner:
    """One process of a run; used as a context, whose end stops what it started."""

    def __init__(self, options: Options, *, tools: Tools | None = None, report: Report | None = None) -> None:
        self.options, self.tools = options, tools or Tools()
        self.report = report or (lambda found: None)
        self.storage = open_storage(options.storage)
        environment = {"NSA_CODEGEN_HOME": str(options.scratch)}
        if options.target.kind == "cpu":
            environment["NSA_CODEGEN_TARGET"] = options.target.name
        self._builders = [Worker(environment=environment) for _ in range(max(1, options.jobs))]
        self._judge = Worker(environment=environment)
        self._prepared: tuple[Problem, int] | None = None  # and at which start of the judge

    def __enter__(self) -> Tuner:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in (self._judge, *self._builders):
            worker.close()

    def tune(self, problem: Problem) -> Found:
        """Search the space of one kernel until the study has its candidates, and return what is known of it then.

        Raises `TuningError` if the study and the log do not belong together, if the default does not work, or if the
        storage fails, and `TuningLogError` if the log is damaged or of another machine.
        """
        try:
            return self._tune(problem)
        except STORAGE_ERRORS as error:
            url = self.options.storage
            said = without_passwords(f"{type(error).__name__}: {error}", url)
            raise TuningError(
                f"the storage {shown_url(url)} failed ({said}); what it has and the log are kept: go on with --resume "
                f"when it works again"
            ) from error

    def _tune(self, problem: Problem) -> Found:
        search = KernelSearch(self, problem)
        while True:
            claims = search.claim()
            if claims:
                search.judge(claims)
            elif search.study.running():
                time.sleep(_WAIT_SECONDS)  # for another tuner; or for one that is gone, whose claims are free then
                search.settle()
            else:
                break
        search.settle()
        if self.options.meta.judge == "measured":
            search.finish()
        return search.found

    def build(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Outcome]:
        """Return the outcomes of a function in the processes that build; no tuner of the machine measures meanwhile."""
        with self._machine(alone=False):
            return call_all(self._builders, function, arguments, seconds=self.options.seconds)

    def measure(
        self, problem: Problem, default: Schedule, function: Callable[..., Any], what: Any, seconds: float,
        *, anew: bool = False, limit: float | None = None,
    ) -> Outcome:  # fmt: skip
        """Return the outcome of `function(problem, what, target, default, seconds)` in the process that measures.

        It takes `limit` seconds at most, by default those of one candidate. The process is made ready for `problem` if
        it is not, and begins with it if `anew`. No tuner of this machine measures or builds meanwhile. Raises
        `TuningError` if it can't be made ready.
        """
        if anew:
            self._judge.close()
        target = self.options.target
        if self._prepared != (problem, self._judge.starts) or not self._judge.is_alive:
            self._prepare(problem, default)
        with self._machine(alone=True):
            most = self.options.seconds if limit is None else limit
            return self._judge.call(function, problem, what, target, default, seconds, seconds=most)

    def _prepare(self, problem: Problem, default: Schedule) -> None:
        target, scratch = self.options.target, self.options.scratch
        wanted = self.tools.prerequisites(problem, target, default)
        self.build(self.tools.build, [(desc, schedule, target, scratch, frozenset()) for desc, schedule in wanted])
        with self._machine(alone=False):
            ready = self._judge.call(self.tools.prepare, problem, target, default, seconds=PREPARE_SECONDS)
        if ready.status != "ok":
            raise TuningError(f"{problem.desc} can't be judged; making its inputs {ready.status}: {ready.reason}")
        self._prepared = problem, self._judge.starts

    @contextlib.contextmanager
    def _machine(self, *, alone: bool) -> Iterator[None]:
        """Inside, no tuner of this machine measures, and if `alone`, none builds either."""
        self.options.scratch.mkdir(parents=True, exist_ok=True)
        with (self.options.scratch / f"measuring-{socket.gethostname()}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield


def require_new_run(options: Options) -> None:
    """Raise `TuningError` if the run has studies in its storage or logs already."""
    run, target = options.meta.run, options.target.name
    names = [n for n in study_names(open_storage(options.storage)) if n.startswith(f"{run} {target} ")]
    logs = sorted((options.logs / target).glob(f"*/{run}.jsonl"))
    if names or logs:
        where = f"its logs are {options.logs / target}/*/{run}.jsonl" if logs else f"in {shown_url(options.storage)}"
        raise TuningError(
            f"the run {run!r} exists already for {target} ({where}): give --resume to go on with it or to join another "
            f"tuner, or choose another --run"
        )
