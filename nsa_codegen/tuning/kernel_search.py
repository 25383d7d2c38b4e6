"""`KernelSearch`: the search of one kernel by one tuner: which candidate is next, and what becomes of it."""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..desc import KernelDesc
from ..errors import TuningError
from ..schedule import Schedule, ScheduleSpace
from .cost_model import predict
from .options import Found, Options
from .problems import Problem
from .records import DEVICE_FACTS, Judged, Meta, Record, append, log_path, read_log, write_meta
from .space import Space
from .study import Claim, SharedStudy
from .winners import cost_of, final_rounds, ranked_records

if TYPE_CHECKING:
    from .search import Tuner

_MOST_PROPOSALS = 10  # of the sampler that are taken or illegal, before an untried schedule is drawn
_PREDICTED_FIRST = 4  # one trial in so many is what the cost model says is best; the sampler goes on from there
_PREDICTED_LEAST = 10  # at the least, since from fewer TPE draws at random
_ALONE = 2  # final rounds of a winner by itself
_RETRY: tuple[Claim, ...] = ()


def study_name(meta: Meta, desc: KernelDesc) -> str:
    """Return the name of the study of `desc` in a run."""
    return f"{meta.run} {meta.target} {desc}"


def planned(problem: Problem, options: Options) -> int:
    """Return how many candidates of a kernel are judged, with the default, and to be measured with the shipped one."""
    space = Space.of(problem.desc, options.target)
    if options.meta.judge == "static":
        return min(options.compiled + 1, len(space.legal))
    return min(options.trials + (space.shipped is not None), len(space.legal))


class KernelSearch:
    """The search of `problem` by `tuner`.

    Made, it has opened study and log and brought them together. Raises `TuningError` if they do not belong together,
    and `TuningLogError` if the log is damaged or of another machine.
    """

    def __init__(self, tuner: Tuner, problem: Problem) -> None:
        options, desc = tuner.options, problem.desc
        self._tuner, self._options, self._problem, self._desc = tuner, options, problem, desc
        self._space = Space.of(desc, options.target)
        self._total = planned(problem, options)
        self._log = log_path(options.logs, options.target.name, desc, options.meta.run)
        name = study_name(options.meta, desc)
        self.study = SharedStudy(tuner.storage, name, self._space.axes, seed=options.seed)
        self.study.require_axes()
        write_meta(self._log, replace(options.meta, space={str(desc): self._space.to_json()}))
        facts = {name: options.meta.environment.get(name) for name in DEVICE_FACTS}
        self.study.require_facts({"judge": options.meta.judge, **facts})
        records = [r for r in read_log(self._log).records if r.desc == desc]
        logged = {r.number: r for r in records if r.stage == "search"}
        values = {n: self._schedule(r.schedule).values() for n, r in logged.items()}
        self.study.restore(tuple(logged.values()), lambda record: _cost(record, logged), values)
        self._finals = [r for r in records if r.stage == "final"]
        self._random = random.Random(options.seed + len(self.study.records()))
        self._refused_proposals = 0
        self._order = self._predicted_order()
        self.settle()
        self.study.enqueue(self._space.default.values())
        if not self._is_static and self._space.shipped is not None:
            self.study.enqueue(self._space.shipped.values())

    @property
    def found(self) -> Found:
        """What is known now, by all tuners."""
        return Found(
            problem=self._problem, space=self._space, records=self.study.records(), finals=tuple(self._finals),
            log=self._log,
        )  # fmt: skip

    def settle(self) -> None:
        """Bring study and log together: log what it lacks, finish or give up trials of tuners that are gone."""
        for record in self.study.unfinished():
            self.study.tell(record.number, self._cost_of(record))
        self.study.give_up_gone()
        for record in self.study.records():
            append(self._log, record)

    def claim(self) -> list[Claim]:
        """Return the next candidates of this tuner, a batch of them or fewer; none if all are judged or claimed."""
        claims: list[Claim] = []
        try:
            while len(claims) < 2 * self._options.jobs and self._lacking() > 0:
                found = self._propose()
                if found is None:
                    break
                claims += found
        except BaseException:
            self._give_up(claims)
            raise
        return claims

    def judge(self, claims: list[Claim]) -> None:
        """Judge the claimed candidates, and keep and log each as it ends; what is left at an exception is given up.

        Raises `TuningError` if the default schedule can't be measured.
        """
        left = list(claims)
        try:
            for claim, judged in self._static(claims) if self._is_static else self._measured(claims):
                record = self._record(claim, judged)
                left.remove(claim)  # from here on a trial that is cut short is settled by whoever goes on
                self._keep(record)
                if not self._is_static and claim.values == self._space.default.values() and not _works(record):
                    raise TuningError(
                        f"the default schedule of {self._desc} is {record.status}, so that nothing can be compared "
                        f"with it: {record.reason}"
                    )
        finally:
            self._give_up(left)

    def finish(self) -> None:
        """Measure the best once more beside the default, in a new process, unless another tuner does or has.

        A round that the log had before, and that decided nothing, is held again. What wins is held to the default twice
        more, each time by itself in a process of its own: the best of several is in part the luckiest, and where memory
        lies differs from process to process.
        """
        records = self.study.records()
        ended = max((f.when for f in self._finals), default="") > max(r.when for r in records)
        if not (ended and self.found.verdict.decided) and not self._hold_round(self._finalists(records)):
            return
        while (winner := self.found.verdict.winner) is not None and not self._is_confirmed():
            if not self._hold_round((winner.record,)):
                return

    def _hold_round(self, chosen: tuple[Record, ...]) -> bool:
        """Measure the chosen beside the default and log it; False if that failed, or if another tuner does or has."""
        count, before = _counted(self.study.records()), len(self._finals)
        if not self.study.first_to(f"final round of {count}" + f", after {before}" * (before > 0)):
            self._finals = self._logged_finals()
            return False
        schedules = tuple(self._schedule(r.schedule) for r in chosen)
        seconds = self._options.final_seconds
        outcome = self._tuner.measure(
            self._problem, self._space.default, self._tuner.tools.finals, schedules, seconds, anew=True,
            limit=seconds + self._options.seconds * (len(schedules) + 1),
        )  # fmt: skip
        failed = Judged(status=outcome.status, reason=outcome.reason)
        found = outcome.value if outcome.status == "ok" else (failed,) * len(chosen)
        for record, judged in zip(chosen, found, strict=True):
            kept = replace(
                record, stage="final", status=judged.status, reason=judged.reason, measured=judged.measured,
                default=judged.default, gain=judged.gain, when=_now(),
            )  # fmt: skip
            append(self._log, kept)
            self._finals.append(kept)
        self.study.done_with()
        return outcome.status == "ok"

    def _is_confirmed(self) -> bool:
        """Return whether the last rounds were of one candidate by itself."""
        alone = [found[0].schedule for found in final_rounds(self._finals)[-_ALONE:] if len(found) == 1]
        return len(alone) == _ALONE and all(schedule == alone[0] for schedule in alone)

    @property
    def _is_static(self) -> bool:
        return self._options.meta.judge == "static"

    def _logged_finals(self) -> list[Record]:
        return [r for r in read_log(self._log).records if r.stage == "final" and r.desc == self._desc]

    def _lacking(self) -> int:
        """Return how many candidates no tuner has judged or claimed yet, of those that are to be."""
        default = self._space.default.to_json()
        if not self._is_static:
            return self._total - _counted(self.study.records()) - self.study.running()
        records = self.study.records()
        if len(records) >= self._options.trials:
            return 0  # none of so many is fit
        good = sum(_is_good(r) and dict(r.schedule) != default for r in records)
        taken = self.study.taken()
        default_lacks = self.study.key_of(self._space.default.values()) not in taken
        return max(0, self._total - 1 - good) + default_lacks - self.study.running()

    def _propose(self) -> tuple[Claim, ...] | None:
        """Return a claim; none if another tuner was faster or the proposal was illegal; None if nothing is untried."""
        taken = self.study.taken()
        untried = [s for s in self._order if self.study.key_of(s.values()) not in taken]
        if not untried:
            return None
        values: dict[str, int] | None = untried[0].values()
        begun = len(taken) >= max(_PREDICTED_LEAST, self._total // _PREDICTED_FIRST)
        if begun and not self._is_static and len(self._space.legal) > self._options.trials:  # TPE chooses the rest
            drawn = self._refused_proposals >= _MOST_PROPOSALS
            values = self._random.choice(untried).values() if drawn else None
        claim = self.study.ask(values)
        self._refused_proposals += 1
        if claim is None:
            return _RETRY
        reason = ScheduleSpace.check(self._schedule(claim.values), self._desc, self._options.target)
        if reason is not None:
            self._keep(self._record(claim, Judged(status="illegal", reason=reason)))
            return _RETRY
        if not self._is_static and self.study.counted_before(claim.number) >= self._total:
            self.study.give_up(claim, "another tuner claimed the last one")
            return _RETRY
        self._refused_proposals = 0
        return (claim,)

    def _measured(self, claims: list[Claim]) -> Iterator[tuple[Claim, Judged]]:
        """Build the candidates side by side, then measure each whose text is new, alone."""
        texts = frozenset(self._by_code())
        target, scratch = self._options.target, self._options.scratch
        arguments = [(self._desc, self._schedule(c.values), target, scratch, texts) for c in claims]
        for claim, outcome in zip(claims, self._tuner.build(self._tuner.tools.build, arguments), strict=True):
            if outcome.status != "ok":
                yield claim, Judged(status=outcome.status, reason=f"building it: {outcome.reason}")
                continue
            code, known = outcome.value.code, self._by_code()
            if code in known:
                yield claim, self._same(known[code], code)
                continue
            judged = self._measure(claim)
            resources = {**(outcome.value.resources or {}), "code": code}
            yield claim, replace(judged, resources=resources, key=outcome.value.key)

    def _measure(self, claim: Claim) -> Judged:
        outcome = self._tuner.measure(
            self._problem, self._space.default, self._tuner.tools.judge, self._schedule(claim.values),
            self._options.measure_seconds,
        )  # fmt: skip
        if outcome.status != "ok":
            return Judged(status=outcome.status, reason=outcome.reason)
        found: Judged = outcome.value
        return found

    def _static(self, claims: list[Claim]) -> Iterator[tuple[Claim, Judged]]:
        """Compile the candidates side by side, and predict the time of each from what was compiled."""
        target, scratch = self._options.target, self._options.scratch
        arguments = [(self._problem, self._schedule(c.values), target, scratch) for c in claims]
        for claim, outcome in zip(claims, self._tuner.build(self._tuner.tools.static, arguments), strict=True):
            failed = Judged(status=outcome.status, reason=outcome.reason)
            yield claim, outcome.value if outcome.status == "ok" else failed

    def _same(self, twin: Record, code: str) -> Judged:
        reason = f"its text is that of candidate {twin.number}"
        if twin.status != "ok":
            reason += f", which is {twin.status}: {twin.reason}"
        return Judged(status="same", reason=reason, same_as=twin.number, resources={"code": code})

    def _by_code(self) -> dict[str, Record]:
        """Return the judged candidates by what their text is but for the line that names the schedule."""
        judged = [r for r in self.study.records() if r.status in ("ok", "wrong") and r.resources]
        return {str(r.resources["code"]): r for r in reversed(judged) if r.resources and "code" in r.resources}

    def _finalists(self, records: tuple[Record, ...]) -> tuple[Record, ...]:
        """Return the best candidates that differ from the default, and the shipped one; or else the default itself."""
        default = [r for r in records if dict(r.schedule) == self._space.default.to_json()]
        ranked = [r for r in ranked_records(records) if r not in default]
        best, rest = ranked[: self._options.finalists], ranked[self._options.finalists :]
        shipped = [r for r in rest if self._schedule(r.schedule) == self._space.shipped]
        return (*best, *shipped) or tuple(r for r in default if r.status == "ok")

    def _predicted_order(self) -> list[Schedule]:
        """Return the legal schedules, the best predicted first."""
        target, sizes = self._options.target, self._problem.sizes
        return sorted(self._space.legal, key=lambda s: predict(self._desc, s, target, sizes).seconds)

    def _record(self, claim: Claim, judged: Judged) -> Record:
        predicted = judged.predicted
        if predicted is None and judged.status != "illegal":
            schedule = self._schedule(claim.values)
            predicted = predict(self._desc, schedule, self._options.target, self._problem.sizes).to_json()
        return Record(
            number=claim.number, desc=self._desc, schedule=self._schedule(claim.values).to_json(), status=judged.status,
            reason=judged.reason, judge=self._options.meta.judge, stage="search", sizes=self._problem.sizes_json,
            predicted=predicted, measured=judged.measured, default=judged.default, gain=judged.gain, error=judged.error,
            resources=judged.resources, key=judged.key, same_as=judged.same_as, when=_now(),
        )  # fmt: skip

    def _keep(self, record: Record) -> None:
        """Keep a record in the study, then in the log, then finish its trial: in this order, so that none gets lost.

        One of a claim that another tuner took over meanwhile is left to that one.
        """
        if self.study.keep(record):
            append(self._log, record)
            self.study.tell(record.number, self._cost_of(record))
        self._tuner.report(self.found)

    def _cost_of(self, record: Record) -> float | None:
        return _cost(record, {r.number: r for r in self.study.records()} if record.status == "same" else {})

    def _schedule(self, values: Any) -> Schedule:
        return self._space.schedule(values)

    def _give_up(self, claims: list[Claim]) -> None:
        for claim in claims:
            self.study.give_up(claim, "its tuner was interrupted")


def _cost(record: Record, by_number: Mapping[int, Record]) -> float | None:
    """Return what a trial is told: the cost of its record, or of the candidate whose text it has."""
    found = record if record.status != "same" else by_number.get(-1 if record.same_as is None else record.same_as)
    return None if found is None else cost_of(found)


def _counted(records: tuple[Record, ...]) -> int:
    """Return how many records count as trials: all but those of schedules that were not legal."""
    return sum(r.status != "illegal" for r in records)


def _works(record: Record) -> bool:
    return record.status in ("ok", "same")


def _is_good(record: Record) -> bool:
    """Return whether a compiled candidate is fit to be shipped: it does not spill."""
    return record.status == "ok" and not record.spills


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
