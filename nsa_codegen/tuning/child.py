"""`Worker`: a process of its own that runs one function after another, each within a limit of time.

Whatever a candidate does ends as an `Outcome`: a value, an exception's type and text, the signal that ended the
process, or that its time was up. A worker that was lost is started again at the next call. Each is the leader of a
process group, so that a compiler that it started ends with it, and Ctrl-C reaches the tuner alone; it also ends when
the tuner does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

WATCH_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one call: `status` is `ok`, `failed` (it raised), `crashed` or `timeout`; and `reason` why."""

    status: str
    value: Any = None
    reason: str = ""


@dataclass(kw_only=True)
class Worker:
    """One process under the environment variables `environment` beside its parent's; used from one thread.

    `starts` counts how often it was started: what it had in memory is lost with each.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    starts: int = 0
    _process: Any = None
    _connection: Connection | None = None
    _until: float | None = None
    _seconds: float = 0.0

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Outcome:
        """Return what `function(*arguments)` did within `seconds`; the function must be importable by name."""
        self.begin(function, *arguments, seconds=seconds)
        return self.end()

    def begin(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> None:
        """Start a call; its time counts from here, a start of the process aside."""
        connection = self._started()
        with contextlib.suppress(BrokenPipeError):  # it ended meanwhile, which `end` reports
            connection.send((function, arguments))
        self._seconds, self._until = seconds, time.monotonic() + seconds

    def end(self) -> Outcome:
        """Wait for the call that was begun, and return what it did."""
        assert self._connection is not None and self._until is not None, "begin a call first"
        ready = wait([self._connection, self._process.sentinel], max(0.0, self._until - time.monotonic()))
        self._until = None
        if not ready:
            self.close()
            return Outcome(status="timeout", reason=f"not done after {self._seconds:g} s, and ended")
        try:
            found: Outcome = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            reason = _ending(self._process.exitcode)
            self.close()
            return Outcome(status="crashed", reason=reason)
        return found

    @property
    def waits_for(self) -> tuple[Connection, float]:
        """The connection that is readable once the call that was begun ends, and when its time is up (monotonic)."""
        assert self._connection is not None and self._until is not None, "begin a call first"
        return self._connection, self._until

    @property
    def is_alive(self) -> bool:
        """Whether there is a process, with what it has in memory."""
        return self._process is not None and bool(self._process.is_alive())

    def close(self) -> None:
        """End the process and what it started; the next call starts another."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # before it leads a group there is none
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = self._until = None

    def _started(self) -> Connection:
        if self._process is not None and not self._process.is_alive():
            self.close()
        if self._connection is None:
            context = multiprocessing.get_context("spawn")  # TVM and torch hold threads that a fork would lose
            ours, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, dict(self.environment), os.getpid()), daemon=True
            )
            self._process.start()
            theirs.close()
            self._connection = ours
            self.starts += 1
            with contextlib.suppress(EOFError, ConnectionResetError):  # met again by the call
                ours.recv()
        return self._connection


def call_all(
    workers: Sequence[Worker],
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    seconds: float,
    on_done: Callable[[int, Outcome], None] | None = None,
) -> list[Outcome]:
    """Return the outcomes of `function(*arguments[i])` in order, as many at a time as there are workers.

    `on_done` is called with the number and the outcome as each one ends.
    """
    outcomes: dict[int, Outcome] = {}
    waiting, idle, busy = list(range(len(arguments))), list(workers), dict[int, Worker]()
    while waiting or busy:
        while waiting and idle:
            i, worker = waiting.pop(0), idle.pop()
            worker.begin(function, *arguments[i], seconds=seconds)
            busy[i] = worker
        places = {i: worker.waits_for for i, worker in busy.items()}
        first = min(until for _, until in places.values())
        ready = set(wait([c for c, _ in places.values()], max(0.0, first - time.monotonic())))
        for i, (connection, until) in places.items():
            if connection in ready or time.monotonic() >= until:
                worker = busy.pop(i)
                outcomes[i] = worker.end()
                idle.append(worker)
                if on_done is not None:
                    on_done(i, outcomes[i])
    return [outcomes[i] for i in range(len(arguments))]


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"left with status {code}"


def _serve(connection: Connection, environment: dict[str, str], parent: int) -> None:
    """Run the calls that come, until the parent is gone; in a group of processes of its own."""
    os.setsid()
    os.dup2(2, 1)  # the tuner's standard output is for results
    os.environ.update(environment)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    connection.send(None)
    while True:
        try:
            call = connection.recv_bytes()
        except EOFError:
            return
        try:
            function, arguments = pickle.loads(call)
            connection.send(Outcome(status="ok", value=function(*arguments)))
        except Exception as error:  # whatever a candidate raises is a record of it, with type, text and place
            connection.send(Outcome(status="failed", reason=_raised(error)))


def _raised(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


def _follow(parent: int) -> None:
    """End this process and its group once the parent is gone, whatever else it is doing."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.killpg(0, signal.SIGKILL)
