"""`SharedStudy`: an Optuna study of one desc that several tuners, on one machine or more, work on at a time.

A tuner that asks for a candidate says so in the storage, and goes on only if no trial before it has the same schedule:
trials are numbered by the storage, so that of two tuners that choose alike exactly one goes on. A finished trial keeps
its record, whence a log that lacks it is completed. The trial of a tuner that is gone is given up, and its schedule is
free again. A study whose storage is gone gets its trials back from the log.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingPackageError, TuningError
from .records import Record
from .storage import shown_url, without_passwords

try:
    import optuna
    from optuna.distributions import CategoricalDistribution
    from optuna.samplers import BaseSampler, TPESampler
    from optuna.storages import BaseStorage, JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ImportError as _error:
    raise MissingPackageError("tuning needs Optuna: pip install 'nsa_codegen[tune]'") from _error

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

JOURNAL, SQLITE = "journal:///", "sqlite:///"
STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)  # of a storage that is gone, or refuses
_OPENING_FAILS = (ImportError, ValueError, OSError, *STORAGE_ERRORS)
CLAIM, RECORD, VOID, DONE = "claim", "record", "void", "done"
_ENQUEUED, _FACTS = "enqueued", "facts"
_PUBLISH_SECONDS = 10.0  # after which a trial that says nothing is taken for that of a tuner that was killed
_STALE_SECONDS = 3600.0  # the same for a trial that a tuner on another machine has claimed
_POLL_SECONDS = 0.02
_MOST_ATTEMPTS = 10
_BUSY_SECONDS = 60  # that SQLite waits for another tuner's writing
_RESTORE_SECONDS = 60.0  # that one tuner waits for another that gives the study its trials


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A candidate that is this tuner's to judge: its number, and its schedule."""

    number: int
    values: Mapping[str, int]


def open_storage(url: str) -> BaseStorage:
    """Return the storage that `url` names: `journal:///path`, or what SQLAlchemy takes, like `sqlite:///path`.

    Folders of a file are made. Raises `TuningError`, which shows no password, if it can't be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" not in url:
        raise TuningError(
            f"tune.storage = {shown_url(url)!r} is no URL; give journal:///folder/file, sqlite:///folder/file.db or "
            f"another that Optuna takes, like postgresql+psycopg://user@host/database"
        )
    try:
        if url.startswith((JOURNAL, SQLITE)):
            path = Path(url.partition(":///")[2]).absolute()
            path.parent.mkdir(parents=True, exist_ok=True)
        if url.startswith(JOURNAL):
            return JournalStorage(JournalFileBackend(str(path), lock_obj=_FileLock(str(path))))
        options = {"connect_args": {"timeout": _BUSY_SECONDS}} if url.startswith(SQLITE) else {}
        return _database(url, options)
    except _OPENING_FAILS as error:
        said = without_passwords(f"{type(error).__name__}: {error}", url)
        raise TuningError(
            f"tune.storage = {shown_url(url)!r} can't be opened ({said}); check the URL, that the database is there, "
            f"and that its driver is installed (nsa_codegen[postgresql] for PostgreSQL)"
        ) from None  # what the error says may show the password


def study_names(storage: BaseStorage) -> tuple[str, ...]:
    """Return the names of all studies in the storage."""
    return tuple(optuna.get_all_study_names(storage))


class SharedStudy:
    """The study called `name`, made if there is none, over categorical `axes`; `seed` is the sampler's."""

    def __init__(self, storage: BaseStorage, name: str, axes: Mapping[str, tuple[int, ...]], *, seed: int) -> None:
        self.axes, self.owner = axes, _owner()
        self._storage, self._name, self._marker = storage, name, ""
        self._study = optuna.create_study(
            storage=storage, study_name=name, direction="minimize", load_if_exists=True, sampler=_Given()
        )
        self._tpe = TPESampler(seed=seed + len(self.trials()))
        self._given = _Given()

    def trials(self) -> list[FrozenTrial]:
        """Return all trials that were not given up, in order of their numbers."""
        return [t for t in self._study.get_trials(deepcopy=False) if VOID not in t.user_attrs]

    def records(self) -> tuple[Record, ...]:
        """Return the records of all trials that have one, in order of their numbers."""
        texts = [t.user_attrs[RECORD] for t in self.trials() if RECORD in t.user_attrs]
        return tuple(Record.from_json(json.loads(text)) for text in texts)

    def require_facts(self, facts: Mapping[str, Any]) -> None:
        """Keep `facts` with the study; raises `TuningError` if it has others: times compare on one device only."""
        before = self._study.user_attrs.get(_FACTS)
        if before is None:
            self._study.set_user_attr(_FACTS, dict(facts))
        elif before != dict(facts):
            differ = {
                name: (before.get(name), facts.get(name)) for name in facts if before.get(name) != facts.get(name)
            }
            raise TuningError(
                f"the study {self._name!r} is of another device or judge, (its, ours): {differ}; choose another --run, "
                f"or go on where it was begun"
            )

    def require_axes(self) -> None:
        """Raise `TuningError` if the study's trials have other axes, since Optuna takes no others from then on."""
        trials = self._study.get_trials(deepcopy=False)
        known = [item for t in trials for item in t.distributions.items()]
        theirs = {name: tuple(d.choices) for name, d in known if isinstance(d, CategoricalDistribution)}
        complete = any(RECORD in t.user_attrs for t in trials)  # without a record a trial may not have all of them yet
        names = [n for n in {**self.axes, **theirs} if n in theirs or complete]
        differ = {n: (theirs.get(n), self.axes.get(n)) for n in names if theirs.get(n) != self.axes.get(n)}
        if differ:
            raise TuningError(
                f"the study {self._name!r} is of another space, values as (its, ours): {differ}: defaults or what is "
                f"searched have changed since; choose another --run"
            )

    def restore(
        self,
        records: Sequence[Record],
        cost: Callable[[Record], float | None],
        values: Mapping[int, Mapping[str, int]],
    ) -> None:
        """Give the study what it lacks of the `records` of its log, by their numbers: its storage was another, or lost.

        `cost` is what each is told, `values` those of the axes by its number. Raises `TuningError` if a record has the
        number of another trial of the study, or a schedule that is not of the axes.
        """
        begin = time.monotonic()
        lacks = self._lacks(records)
        while lacks:
            if self.first_to("trials of the log"):
                by_number = {r.number: r for r in records}
                for number in range(self._count(), max(by_number) + 1):
                    self._study.add_trial(self._trial_of(by_number.get(number), cost, values.get(number, {})))
                self.done_with()
            elif time.monotonic() - begin > _RESTORE_SECONDS:
                raise TuningError(
                    f"the log has trials of {self._name!r} that the storage lacks, and was written to by a tuner with "
                    f"another --storage meanwhile: let one storage serve all tuners of a run"
                )
            else:
                time.sleep(_POLL_SECONDS)
            lacks = self._lacks(records)

    def _lacks(self, records: Sequence[Record]) -> bool:
        """Return whether some record has no trial; raises `TuningError` if the trial of its number is another."""
        known, count, lacks = {r.number: r for r in self.records()}, self._count(), False
        for record in records:
            lacks |= record.number >= count
            if record.number < count and known.get(record.number) != record:
                raise TuningError(
                    f"candidate {record.number} of {self._name!r} is another in the storage than in the log: name the "
                    f"--storage that the run was made with, or choose another --run"
                )
        return lacks

    def _count(self) -> int:
        """Return how many trials there are, those given up among them."""
        return len(self._study.get_trials(deepcopy=False))

    def _trial_of(
        self, record: Record | None, cost: Callable[[Record], float | None], values: Mapping[str, int]
    ) -> FrozenTrial:
        """Return the finished trial that a record was made of; without one, a trial that was given up."""
        create = optuna.trial.create_trial
        if record is None:
            return create(state=TrialState.FAIL, user_attrs={VOID: "it left no record"})
        value = cost(record)
        try:
            return create(
                state=TrialState.PRUNED if value is None else TrialState.COMPLETE,
                value=value,
                params=dict(values),
                distributions={name: CategoricalDistribution(allowed) for name, allowed in self.axes.items()},
                user_attrs={
                    CLAIM: self.owner,
                    RECORD: json.dumps(record.to_json(), sort_keys=True, allow_nan=False),
                },
            )
        except ValueError as error:
            raise TuningError(
                f"candidate {record.number} of {self._name!r} in the log is not of today's space ({error}): choose "
                f"another --run"
            ) from error

    def counted_before(self, number: int) -> int:
        """Return how many trials before `number` are judged or claimed, without those that were illegal."""
        before = [t for t in self.trials() if t.number < number and t.state != TrialState.WAITING]
        return sum('"status": "illegal"' not in t.user_attrs.get(RECORD, "") for t in before)

    def taken(self) -> set[tuple[int, ...]]:
        """Return the schedules, as values of the axes in order, that some tuner has judged or claimed."""
        return {self.key_of(t.params) for t in self.trials() if len(t.params) == len(self.axes)}

    def key_of(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the values in the order of the axes."""
        return tuple(int(values[name]) for name in self.axes)

    def enqueue(self, values: Mapping[str, int]) -> None:
        """Have `values` judged next, by whichever tuner asks first, unless they are taken or enqueued already."""
        text = json.dumps(dict(values), sort_keys=True)
        waiting = any(t.user_attrs.get(_ENQUEUED) == text and t.state == TrialState.WAITING for t in self.trials())
        if not waiting and self.key_of(values) not in self.taken():
            self._study.enqueue_trial(dict(values), user_attrs={_ENQUEUED: text})

    def running(self) -> int:
        """Return how many trials are being judged now, by any tuner."""
        return sum(t.state == TrialState.RUNNING for t in self.trials())

    def ask(self, values: Mapping[str, int] | None) -> Claim | None:
        """Claim what was enqueued, else `values`, or with None what the sampler proposes; None if it is another's."""
        self._study.sampler = self._tpe if values is None else self._given
        self._given.values = values or {}
        trial = self._study.ask()
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # SQLite may give two what was enqueued
            found = {name: int(trial.suggest_categorical(name, allowed)) for name, allowed in self.axes.items()}
            trial.set_user_attr(CLAIM, self.owner)
            if self._is_first(trial.number, found):
                return Claim(number=trial.number, values=found)
            trial.set_user_attr(VOID, "another trial has this schedule")
            self._study.tell(trial.number, state=TrialState.FAIL)
        return None

    def keep(self, record: Record) -> bool:
        """Keep the record of a trial that this tuner claimed, before it is logged and told.

        Returns whether the claim was still its own: another tuner takes one over that it holds for that of a dead one.
        """
        try:
            self._set(record.number, RECORD, json.dumps(record.to_json(), sort_keys=True, allow_nan=False))
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return True

    def tell(self, number: int, value: float | None) -> None:
        """Finish a trial: with its value, the less the better, or as one that came to nothing."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            if value is None:
                self._study.tell(number, state=TrialState.PRUNED)
            else:
                self._study.tell(number, value)

    def unfinished(self) -> tuple[Record, ...]:
        """Return records whose trial was not told, of tuners that are gone."""
        gone = [t for t in self._of_gone_tuners() if RECORD in t.user_attrs]
        return tuple(Record.from_json(json.loads(t.user_attrs[RECORD])) for t in gone)

    def give_up_gone(self) -> int:
        """Give up the trials of tuners that are gone and left no record; return how many."""
        gone = [t for t in self._of_gone_tuners() if RECORD not in t.user_attrs]
        for trial in gone:
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._set(trial.number, VOID, "the tuner that judged it is gone")
                self._study.tell(trial.number, state=TrialState.FAIL)
        return len(gone)

    def give_up(self, claim: Claim, reason: str) -> None:
        """Give up a claim of this tuner, so that its schedule is free again; another may have taken it over already."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._set(claim.number, VOID, reason)
            self._study.tell(claim.number, state=TrialState.FAIL)

    def first_to(self, what: str) -> bool:
        """Return whether this tuner is to do `what`, which is done once for this study: `done_with` ends it.

        Another is to do it if the one that was first is gone.
        """
        for attempt in itertools.count(1):
            self._marker = f"{self._name} | {what} {attempt}"
            try:
                marker = optuna.create_study(storage=self._storage, study_name=self._marker)
            except optuna.exceptions.DuplicatedStudyError:
                if self._is_in_good_hands(self._marker):
                    return False
                continue
            marker.set_user_attr(CLAIM, self.owner)
            return True
        raise AssertionError

    def done_with(self) -> None:
        """Say that what this tuner was the first to do is done."""
        optuna.load_study(storage=self._storage, study_name=self._marker).set_user_attr(DONE, True)

    def _is_in_good_hands(self, name: str) -> bool:
        """Return whether the study that marks a task is of a tuner that lives, or has done it."""
        begin = time.monotonic()
        while True:
            facts = optuna.load_study(storage=self._storage, study_name=name).user_attrs
            if DONE in facts or CLAIM in facts or time.monotonic() - begin > _PUBLISH_SECONDS:
                return DONE in facts or (CLAIM in facts and _lives(facts[CLAIM]))
            time.sleep(_POLL_SECONDS)

    def _is_first(self, number: int, found: Mapping[str, int]) -> bool:
        """Return whether no trial before `number`, nor any with a record, has the schedule `found`."""
        values, begin = self.key_of(found), time.monotonic()
        while True:
            others = [t for t in self.trials() if t.number != number]
            silent = [t for t in others if t.number < number and _is_silent(t)]
            if not silent or time.monotonic() - begin > _PUBLISH_SECONDS:
                break
            time.sleep(_POLL_SECONDS)
        rivals = [t for t in others if t not in silent and (t.number < number or RECORD in t.user_attrs)]
        return all(CLAIM not in t.user_attrs or self.key_of(t.params) != values for t in rivals)

    def _of_gone_tuners(self) -> list[FrozenTrial]:
        now, gone = datetime.datetime.now(), []
        for trial in self.trials():
            if trial.state != TrialState.RUNNING:
                continue
            age = (now - trial.datetime_start).total_seconds() if trial.datetime_start else 0.0
            owner = trial.user_attrs.get(CLAIM)
            if owner is None:
                lives = age < _PUBLISH_SECONDS
            else:
                lives = _lives(owner, age)
            if not lives:
                gone.append(trial)
        return gone

    def _set(self, number: int, name: str, value: str) -> None:
        study_id = self._storage.get_study_id_from_name(self._name)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        self._storage.set_trial_user_attr(trial_id, name, value)


def _database(url: str, options: dict[str, Any]) -> RDBStorage:
    """Return the storage of a database; of tuners that make its tables at a time, all but one have to try again."""
    for attempt in itertools.count(1):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except SQLAlchemyError as error:
            made_meanwhile = any(word in str(error) for word in ("already exists", "UNIQUE", "duplicate key"))
            if not made_meanwhile or attempt == _MOST_ATTEMPTS:
                raise
            time.sleep(attempt * _POLL_SECONDS)
    raise AssertionError


class _Given(BaseSampler):
    """A sampler that returns what it was given."""

    def __init__(self) -> None:
        self.values: Mapping[str, int] = {}

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return self.values[param_name]


class _FileLock(JournalFileOpenLock):
    """A lock that the system releases when its process ends, however it ends."""

    def __init__(self, journal: str) -> None:
        super().__init__(journal)
        self._path = f"{journal}.lock"
        self._handle = -1

    def acquire(self) -> bool:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._handle = handle
        return True

    def release(self) -> None:
        os.close(self._handle)


def _is_silent(trial: FrozenTrial) -> bool:
    """Return whether a trial has begun, and not yet said what it is."""
    return trial.state == TrialState.RUNNING and CLAIM not in trial.user_attrs


def _owner() -> str:
    """Return what tells this process from every other: its machine, number, and start."""
    return f"{socket.gethostname()} {os.getpid()} {_start_of(os.getpid())}"


def _lives(owner: str, age: float = 0.0) -> bool:
    """Return whether the process `owner` is there; of another machine's, whether its trial is not too old."""
    host, number, start = owner.rsplit(" ", 2)
    if host != socket.gethostname():
        return age < _STALE_SECONDS
    return _start_of(int(number)) == start


def _start_of(process: int) -> str:
    """Return when a process of this machine was started, as the kernel counts; empty if there is none."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    state, *rest = text.rpartition(")")[2].split()
    return "" if state == "Z" else rest[18]
