"""Processes that run candidates: whatever one does is an outcome, and the next call finds a process that works."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nsa_codegen.tuning.child import Worker, call_all


@pytest.fixture
def worker():
    found = Worker(environment={"A_VARIABLE_OF_THE_WORKER": "yes"})
    yield found
    found.close()


def test_a_value_an_exception_a_crash_an_exit_and_a_hang_are_outcomes(worker):
    assert worker.call(pow, 2, 5, seconds=20).value == 32
    failed = worker.call(int, "x", seconds=20)
    assert failed.status == "failed" and "ValueError: invalid literal" in failed.reason
    first = worker.call(os.getpid, seconds=20).value
    assert worker.call(os.getenv, "A_VARIABLE_OF_THE_WORKER", seconds=20).value == "yes" and worker.starts == 1
    crashed = worker.call(os.abort, seconds=20)
    assert (crashed.status, crashed.reason) == ("crashed", "ended by SIGABRT") and not worker.is_alive
    assert worker.call(os.getpid, seconds=20).value != first and worker.starts == 2
    left = worker.call(os._exit, 3, seconds=20)
    assert (left.status, left.reason) == ("crashed", "left with status 3")
    start = time.monotonic()
    hung = worker.call(time.sleep, 60, seconds=0.2)
    assert hung.status == "timeout" and "0.2 s" in hung.reason and time.monotonic() - start < 10
    assert worker.call(pow, 2, 5, seconds=20).value == 32


def test_what_a_hanging_call_started_ends_with_it(worker, tmp_path):
    command = f"sleep 60 & echo $! > {tmp_path / 'number'}; wait"
    assert worker.call(os.system, command, seconds=1.0).status == "timeout"
    assert _is_gone(int((tmp_path / "number").read_text()))


def test_calls_are_spread_over_workers_and_outcomes_keep_their_order():
    workers = [Worker(), Worker()]
    done = []
    try:
        outcomes = call_all(
            workers, time.sleep, [(0.3,), ("x",), (60,), (0.0,)], seconds=1.0, on_done=lambda i, _: done.append(i)
        )
    finally:
        for worker in workers:
            worker.close()
    assert [o.status for o in outcomes] == ["ok", "failed", "timeout", "ok"]
    assert sorted(done) == [0, 1, 2, 3] and done.index(1) < done.index(2)


def test_a_worker_ends_with_its_tuner_even_if_that_is_killed():
    code = (
        "import os, time; from nsa_codegen.tuning.child import Worker; w = Worker()\n"
        "if __name__ == '__main__':\n"
        "    print(w.call(os.getpid, seconds=20).value, flush=True)\n"
        "    w.begin(time.sleep, 60, seconds=60)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as tuner:
        child = int(tuner.stdout.readline())
        tuner.send_signal(signal.SIGKILL)
    assert _is_gone(child)


def _is_gone(process: int) -> bool:
    """Return whether a process ends within seconds; one that nobody waits for is a zombie."""
    for _ in range(100):
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False
