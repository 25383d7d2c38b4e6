"""The thread pool: every task once, real concurrency, callers that meet, forks, exits, and equal bits.

The kernels are written by hand; `rendezvous` ends well only if as many workers as it has tasks run at the same time.
"""

from __future__ import annotations

import array
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nsa_codegen.build import Artifact
from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import KernelFailedError
from nsa_codegen.schedule import CpuSchedule
from nsa_codegen.source import Argument, KernelSource
from nsa_codegen.store import KernelStore
from nsa_codegen.target import TARGETS

GENERIC = TARGETS["generic"]
TEXT = r"""
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdint>
#include <thread>
typedef int32_t (*nsa_task_fn)(void* context, int32_t lo, int32_t hi, int32_t worker);
typedef int32_t (*nsa_parallel_fn)(nsa_task_fn task, void* context, int32_t tasks, int32_t threads);

struct Context {
  int32_t* worker_of;
  int32_t* runs;
  float* out;
  int32_t mode, number;
  nsa_parallel_fn parallel;
};
static std::atomic<int32_t> present{0};

static bool wait_until_present(int32_t wanted) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (present.load() < wanted) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

static int32_t inner(void* context, int32_t lo, int32_t hi, int32_t) {
  for (int32_t i = lo; i < hi; ++i) *static_cast<std::atomic<int32_t>*>(context) += 2;
  return 0;
}

// mode 0: count; 1: task `number` fails with status 1000 + number; 2: rendezvous of `number` tasks;
// 3: wait until runs[-1] is set; 4: a parallel loop of `number` tasks inside each task.
static int32_t body(void* context, int32_t lo, int32_t hi, int32_t worker) {
  const Context& a = *static_cast<const Context*>(context);
  for (int32_t i = lo; i < hi; ++i) {
    a.worker_of[i] = worker;
    if (a.mode == 1 && i == a.number) return 1000 + i;
    if (a.mode == 2) {
      ++present;
      if (!wait_until_present(a.number)) return 7;
    }
    if (a.mode == 3)
      while (!reinterpret_cast<std::atomic<int32_t>*>(a.runs)[-1].load()) std::this_thread::yield();
    if (a.mode == 4) {
      std::atomic<int32_t> done{0};
      a.parallel(inner, &done, a.number, 2);
      if (done.load() != 2 * a.number) return 9;
    }
    volatile float one = 1.0f, divisor = 3.0f + static_cast<float>(i % 7);
    a.out[i] = one / divisor;
    __atomic_fetch_add(&a.runs[i], 1, __ATOMIC_RELAXED);
  }
  return 0;
}

union nsa_value { void* pointer; int32_t int32; float float32; };
extern "C" int32_t nsa_probe(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, const nsa_value* a) {
  int32_t* const runs = (int32_t*)a[1].pointer;
  Context context{(int32_t*)a[0].pointer, runs, (float*)a[2].pointer, a[3].int32, a[4].int32, parallel};
  const int32_t rounding = a[5].int32;
  present.store(0);
  const int before = fegetround();
  if (rounding) fesetround(FE_DOWNWARD);
  const int32_t status = parallel(body, &context, tasks, threads);
  fesetround(before);
  return status;
}
"""
COUNT, FAIL, RENDEZVOUS, WAIT, NESTED = range(5)
POINTERS, NUMBERS = ("worker_of", "runs", "out"), ("mode", "number", "rounding")


class Run:
    """One launch of the probe and what it left: which worker ran each task, how often, and the task's float."""

    def __init__(self, probe: Artifact, tasks: int) -> None:
        self.probe, self.tasks = probe, tasks
        self.worker_of = array.array("i", [-1] * max(tasks, 1))
        self.flag_and_runs = array.array("i", [0] * (max(tasks, 1) + 1))
        self.out = array.array("f", [0.0] * max(tasks, 1))

    def launch(self, *, threads: int, mode: int = COUNT, number: int = 0, rounding: int = 0) -> Run:
        runs = self.flag_and_runs.buffer_info()[0] + 4
        pointers = (self.worker_of.buffer_info()[0], runs, self.out.buffer_info()[0])
        self.probe.launch(self.tasks, *pointers, mode, number, rounding, threads=threads)
        return self

    @property
    def runs(self) -> list[int]:
        return list(self.flag_and_runs)[1:]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    kinds = {**dict.fromkeys(POINTERS, "pointer"), **dict.fromkeys(NUMBERS, "int32")}
    return built(tmp_path_factory.mktemp("pool"), "probe", TEXT, **kinds)


def built(folder: Path, name: str, text: str, **kinds: str) -> Artifact:
    """Return the kernel `nsa_<name>` of a text, with arguments of these kinds."""
    arguments = tuple(Argument(name=argument, kind=kind) for argument, kind in kinds.items())
    source = KernelSource(text=text, entry=f"nsa_{name}", arguments=arguments)
    return Artifact.build(
        KernelDesc.of(name, "float32"), CpuSchedule(), GENERIC, store=KernelStore(folder), lower=lambda *_: source
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 32])
@pytest.mark.parametrize("tasks", [1, 2, 3, 31, 32, 33, 1000])
def test_every_task_runs_once_on_a_worker_below_threads(probe: Artifact, tasks: int, threads: int) -> None:
    for _ in range(20):
        run = Run(probe, tasks).launch(threads=threads)
        assert run.runs == [1] * tasks
        assert set(run.worker_of) <= set(range(min(threads, tasks)))


@pytest.mark.parametrize("tasks", [0, -3])
def test_no_tasks_is_no_work(probe: Artifact, tasks: int) -> None:
    run = Run(probe, tasks).launch(threads=4)
    assert run.runs == [0] and list(run.worker_of) == [-1]


@pytest.mark.parametrize("threads", [0, 1, -1])
def test_one_thread_is_the_caller(probe: Artifact, threads: int) -> None:
    assert set(Run(probe, 50).launch(threads=threads).worker_of) == {0}


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_run_at_the_same_time(probe: Artifact, workers: int) -> None:
    for _ in range(10):
        run = Run(probe, workers).launch(threads=workers, mode=RENDEZVOUS, number=workers)
        assert sorted(run.worker_of) == list(range(workers))


def test_sleeping_workers_are_woken(probe: Artifact) -> None:
    for _ in range(3):
        time.sleep(0.05)  # well past the spin
        Run(probe, 4).launch(threads=4, mode=RENDEZVOUS, number=4)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells threads where to run")
def test_a_worker_that_sleeps_is_kept_off_the_callers_processor(probe: Artifact) -> None:
    """Woken there it would wait for milliseconds; a caller that is bound to one processor keeps its worker with it."""
    everywhere = os.sched_getaffinity(0)
    for bound in (False, True):
        child = os.fork()
        if child == 0:
            if bound:
                os.sched_setaffinity(0, {min(everywhere)})
            for _ in range(2):
                Run(probe, 2).launch(threads=2, mode=RENDEZVOUS, number=2)
                time.sleep(0.05)
            allowed = [os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()]
            fewer = sum(len(x) == len(everywhere) - 1 for x in allowed)
            os._exit(fewer)
        fewer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert fewer == (1 if len(everywhere) > 1 and not bound else 2 if len(everywhere) == 2 else 0)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("failing", [0, 57, 199])
def test_a_status_reaches_the_caller_and_the_pool_goes_on(probe: Artifact, failing: int, threads: int) -> None:
    with pytest.raises(KernelFailedError, match=rf"nsa_probe returned status {1000 + failing} "):
        Run(probe, 200).launch(threads=threads, mode=FAIL, number=failing)
    assert Run(probe, 200).launch(threads=threads).runs == [1] * 200


def test_a_second_caller_runs_its_tasks_itself(probe: Artifact) -> None:
    first = Run(probe, 2)
    owner = threading.Thread(target=lambda: first.launch(threads=2, mode=WAIT))
    owner.start()
    until(lambda: set(first.worker_of) == {0, 1})  # the pool is in use, and stays so
    second = Run(probe, 100).launch(threads=2)
    assert second.runs == [1] * 100
    assert set(second.worker_of) == {0}
    assert owner.is_alive(), "the interpreter's lock was free while the kernel ran"
    first.flag_and_runs[0] = 1
    owner.join(10)
    assert first.runs == [1, 1]


def test_many_callers_at_once(probe: Artifact) -> None:
    wrong = []

    def caller() -> None:
        for tasks in range(1, 300):
            if Run(probe, tasks).launch(threads=3).runs != [1] * tasks:
                wrong.append(tasks)

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert not any(thread.is_alive() for thread in callers)
    assert wrong == []


def test_a_task_may_call_the_pool(probe: Artifact) -> None:
    assert Run(probe, 20).launch(threads=2, mode=NESTED, number=30).runs == [1] * 20


def test_the_bits_do_not_depend_on_the_threads(probe: Artifact) -> None:
    results = {Run(probe, 333).launch(threads=threads).out.tobytes() for threads in (1, 2, 3, 8)}
    assert len(results) == 1


def test_workers_round_as_their_caller_does(probe: Artifact) -> None:
    nearest = Run(probe, 3).launch(threads=3, mode=RENDEZVOUS, number=3)
    downward = Run(probe, 3).launch(threads=3, mode=RENDEZVOUS, number=3, rounding=1)
    alone = Run(probe, 3).launch(threads=1, rounding=1)
    again = Run(probe, 3).launch(threads=3, mode=RENDEZVOUS, number=3)
    assert downward.out == alone.out != nearest.out
    assert again.out == nearest.out


def test_a_forked_child_has_workers_of_its_own(probe: Artifact) -> None:
    Run(probe, 3).launch(threads=3, mode=RENDEZVOUS, number=3)
    assert fork_and(lambda: Run(probe, 3).launch(threads=3, mode=RENDEZVOUS, number=3).runs == [1, 1, 1])
    Run(probe, 3).launch(threads=3, mode=RENDEZVOUS, number=3)


def test_a_fork_while_the_pool_is_in_use(probe: Artifact) -> None:
    busy = Run(probe, 2)
    owner = threading.Thread(target=lambda: busy.launch(threads=2, mode=WAIT))
    owner.start()
    until(lambda: set(busy.worker_of) == {0, 1})
    assert fork_and(lambda: Run(probe, 3).launch(threads=3, mode=RENDEZVOUS, number=3).runs == [1, 1, 1])
    busy.flag_and_runs[0] = 1
    owner.join(10)
    assert busy.runs == [1, 1]


def test_worker_threads_take_no_signals(probe: Artifact) -> None:
    Run(probe, 3).launch(threads=3, mode=RENDEZVOUS, number=3)
    blocked = [
        int(line.split()[1], 16) >> (signal.SIGINT - 1) & 1
        for task in Path("/proc/self/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("SigBlk")
    ]
    assert sum(blocked) >= 2


@pytest.mark.parametrize("ending", ["pass", "threading.Thread(target=for_ever, daemon=True).start(); time.sleep(0.1)"])
def test_the_process_exits_cleanly(probe: Artifact, ending: str) -> None:
    library = probe.entry.library
    (pool_library,) = (probe.entry.folder.parents[1] / "thread_pool_fwd").glob("*/*.so")
    script = f"""
import array, ctypes, struct, threading, time
pool = ctypes.cast(ctypes.CDLL({str(pool_library)!r}).nsa_parallel, ctypes.c_void_p)
probe = ctypes.CDLL({str(library)!r}).nsa_probe
probe.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p]
arrays = [array.array("i", [0] * 500) for _ in range(3)]
def call(*, tasks=500, mode=0, number=0):
    arguments = struct.pack("<QQQi4xi4xi4x", *[a.buffer_info()[0] for a in arrays], mode, number, 0)
    assert probe(pool, 3, tasks, arguments) == 0
def for_ever():
    while True:
        call()
call(tasks=3, mode=2, number=3)
{ending}
print("end")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.001)


def fork_and(check: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Return whether `check` holds in a forked child, within `seconds`."""
    child = os.fork()
    if child == 0:
        passed = False
        try:
            passed = check()
        finally:
            os._exit(0 if passed else 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


MEETING = r"""
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
typedef int32_t (*nsa_task_fn)(void* context, int32_t lo, int32_t hi, int32_t worker);
typedef int32_t (*nsa_parallel_fn)(nsa_task_fn task, void* context, int32_t tasks, int32_t threads);
union nsa_value { void* pointer; int32_t int32; float float32; };

// Task i adds 1 to runs[i], and ends well once `wanted` tasks of all kernels have begun; with status 7 after a second.
static int32_t meet(void* context, int32_t lo, int32_t hi, int32_t) {
  const nsa_value* a = static_cast<const nsa_value*>(context);
  auto& present = *static_cast<std::atomic<int32_t>*>(a[0].pointer);
  for (int32_t i = lo; i < hi; ++i) {
    ++static_cast<int32_t*>(a[2].pointer)[i];
    ++present;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
    while (present.load() < a[1].int32) {
      if (std::chrono::steady_clock::now() > end) return 7;
      std::this_thread::yield();
    }
  }
  return 0;
}
extern "C" int32_t nsa_meet(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, const nsa_value* a) {
  return parallel(meet, (void*)a, tasks, threads);
}
"""


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return built(tmp_path_factory.mktemp("meeting"), "meet", MEETING, present="pointer", wanted="int32", runs="pointer")


def run_in_order(
    kernel: Artifact, tasks: list[int], beside: list[bool], wanted: int, threads: int
) -> tuple[int, list[int]]:
    """Return the status of a sequence of `kernel` with so many tasks each, and how often each of all tasks ran."""
    present, runs = array.array("i", [0]), array.array("i", [0] * sum(tasks))
    bases = array.array("q", [0, present.buffer_info()[0], runs.buffer_info()[0]])
    numbers = array.array("q")
    for i, count in enumerate(tasks):
        first = 4 * sum(tasks[:i])
        numbers.extend([kernel.address, count, 3, beside[i], 1, 0, 0, 0, 0, wanted, 0, 0, 2, first, 0, 0])
    status = kernel.pool.sequence(numbers.buffer_info()[0], bases.buffer_info()[0], len(tasks), 1, threads)
    return status, list(runs)


def test_kernels_side_by_side_share_the_threads(meeting: Artifact) -> None:
    """One task each: they meet if they run at once, and wait in vain one after the other."""
    assert run_in_order(meeting, [1, 1], [False, True], wanted=2, threads=2) == (0, [1, 1])
    assert run_in_order(meeting, [1, 1], [False, False], wanted=2, threads=2) == (7, [1, 0])
    assert run_in_order(meeting, [1, 1, 1], [False, False, True], wanted=0, threads=3) == (0, [1] * 3)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_of_kernels_side_by_side_runs_once(meeting: Artifact, threads: int) -> None:
    for tasks in ([1, 1], [3, 0, 40], [0, 5], [0, 0], [17, 2, 9, 1]):
        for beside in ([True] * len(tasks), [False] * len(tasks), [i % 2 == 1 for i in range(len(tasks))]):
            assert run_in_order(meeting, tasks, beside, wanted=0, threads=threads) == (0, [1] * sum(tasks))


def test_a_failing_kernel_ends_the_sequence_after_those_beside_it(meeting: Artifact) -> None:
    status, runs = run_in_order(meeting, [1, 1, 1], [False, True, False], wanted=99, threads=2)
    assert status == 7 and runs == [1, 1, 0]
