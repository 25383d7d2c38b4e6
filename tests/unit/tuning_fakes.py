"""Stand-ins for what a tuner runs in other processes, a small space, and a tuner with them as a process of its own.

`python tuning_fakes.py FOLDER TRIALS` tunes with its log in FOLDER, and its study there or in $TUNING_FAKES_STORAGE.
What a candidate does depends on its schedule; one that is judged leaves a line in FOLDER/judged.txt, and takes
$TUNING_FAKES_SLOW seconds if judged slowly. It begins once there are $TUNING_FAKES_TOGETHER such processes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nsa_codegen.desc import KernelDesc
from nsa_codegen.schedule import CpuSchedule
from nsa_codegen.target import CPU_TARGETS
from nsa_codegen.tuning.records import Judged, Meta, Spread

TARGET = CPU_TARGETS["x86_64_v4"]
DESC = KernelDesc.of("combine", "float32", paths=2, dv=16, gates="scalar")
DEFAULT = CpuSchedule()
TILES, LANES = (8, 16, 32, 64), (16, 32, 64)
META = Meta(run="r", target=TARGET.name, judge="measured", command="test", environment={"processor": "p", "cores": 2})


def small_space(desc: KernelDesc = DESC, target: Any = TARGET, shipped: Any = None) -> Any:
    """Return a space of twelve legal schedules and twelve that are refused; the default is among the legal."""
    from nsa_codegen.tuning.space import Space

    axes = {name: (value,) for name, value in DEFAULT.to_json().items()}
    axes |= {"key_tile": TILES, "query_lanes": LANES, "register_vectors": (4, 40)}
    legal = [DEFAULT.to_json() | {"key_tile": t, "query_lanes": q} for t in TILES for q in LANES]
    return Space(
        desc=desc, target=target, axes=axes, raw=24, legal=tuple(CpuSchedule.parse(x) for x in legal),
        refused={"too many registers": 12}, default=DEFAULT, shipped=shipped,
    )  # fmt: skip


@dataclass(frozen=True)
class LightSizes:
    """As `ops.Sizes`, in a module that takes no torch, so that processes begin at once."""

    batch: int = 1
    tokens: int = 8
    keys: int = 8
    kv_heads: int = 1
    q_start: int = 0


@dataclass(frozen=True)
class LightProblem:
    """As `problems.Problem`, in such a module."""

    desc: KernelDesc = DESC
    forward: KernelDesc = DESC
    sizes: LightSizes = LightSizes()
    checks: tuple[LightSizes, ...] = ()

    @property
    def sizes_json(self) -> dict[str, int]:
        return asdict(self.sizes)


def build(desc: Any, schedule: Any, target: Any, root: Path, known: frozenset[str]) -> Any:
    """Texts of tiles of 32 and 64 keys are one; what has 16 lanes and 32 keys does not build."""
    if (schedule.query_lanes, schedule.key_tile) == (16, 32):
        raise ValueError("no text for it")
    code = f"{schedule.query_lanes}-{min(schedule.key_tile, 32)}"
    return SimpleNamespace(code=code, same=code in known, key="k" * 12, resources={"sha256": code})


def build_apart(desc: Any, schedule: Any, target: Any, root: Path, known: frozenset[str]) -> Any:
    code = f"{schedule.query_lanes}-{schedule.key_tile}"
    return SimpleNamespace(code=code, same=code in known, key="", resources={})


def nothing(*_: Any) -> tuple[()]:
    return ()


def judge(problem: Any, schedule: Any, target: Any, default: Any, seconds: float) -> Judged:
    """Of 16 lanes, 8 keys crash, 16 hang, 64 raise; of 32 lanes 8 keys are wrong; the rest is faster with fewer."""
    with (Path(os.environ["NSA_CODEGEN_HOME"]).parent / "judged.txt").open("a") as file:
        file.write(f"{schedule.query_lanes} {schedule.key_tile} {os.getppid()}\n")
    match schedule.query_lanes, schedule.key_tile:
        case 16, 8:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 16, 16:
            time.sleep(60)
        case 16, _:
            raise RuntimeError("the kernel returned 7")
        case 32, 8:
            return Judged(status="wrong", reason="out is off", error=9.0)
    return Judged(status="ok", error=1.0, measured=_spread(schedule.key_tile), default=_spread(default.key_tile))


def slow_judge(problem: Any, schedule: Any, target: Any, default: Any, seconds: float) -> Judged:
    with (Path(os.environ["NSA_CODEGEN_HOME"]).parent / "judged.txt").open("a") as file:
        file.write(f"{schedule.query_lanes} {schedule.key_tile} {os.getppid()}\n")
    time.sleep(float(os.environ.get("TUNING_FAKES_SLOW", "0")))
    return Judged(status="ok", error=1.0, measured=_spread(schedule.key_tile), default=_spread(default.key_tile))


def finals(problem: Any, schedules: Any, target: Any, default: Any, seconds: float) -> tuple[Judged, ...]:
    """A final round, whose time of the default is its own."""
    base = replace(_spread(default.key_tile), high=99.0 + time.monotonic())
    return tuple(Judged(status="ok", measured=_spread(s.key_tile), default=base) for s in schedules)


def slow_finals(problem: Any, schedules: Any, target: Any, default: Any, seconds: float) -> tuple[Judged, ...]:
    """A final round that takes more than a candidate may, as long as each contender takes less."""
    time.sleep(0.9 * (len(schedules) + 1))
    return finals(problem, schedules, target, default, seconds)


def finals_of_several(problem: Any, schedules: Any, target: Any, default: Any, seconds: float) -> tuple[Judged, ...]:
    """A final round that fails if it has one candidate."""
    if len(schedules) == 1:
        raise RuntimeError("the kernel returned 7")
    return finals(problem, schedules, target, default, seconds)


def lucky_finals(problem: Any, schedules: Any, target: Any, default: Any, seconds: float) -> tuple[Judged, ...]:
    """A final round in which one of several is always faster, but no one by itself."""
    gain = 1.2 if len(schedules) > 1 else 0.99
    turns = Spread(median=gain, low=gain, high=gain, samples=9)
    return tuple(replace(judged, gain=turns) for judged in finals(problem, schedules, target, default, seconds))


def unsure_finals(problem: Any, schedules: Any, target: Any, default: Any, seconds: float) -> tuple[Judged, ...]:
    """A final round whose turns went either way."""
    either = Spread(median=1.1, low=0.9, high=1.3, samples=9)
    return tuple(replace(judged, gain=either) for judged in finals(problem, schedules, target, default, seconds))


def static(problem: Any, schedule: Any, target: Any, root: Path) -> Judged:
    """Everything with fewer than 64 keys spills, but for those of 16 lanes; those of 32 do not compile."""
    if schedule.query_lanes == 32:
        raise RuntimeError("nvcc refused it")
    spills = 8 * (schedule.key_tile < 64 and schedule.query_lanes != 16)
    seconds = schedule.key_tile * 1e-3
    resources = {"spill_bytes": spills, "registers": 64}
    return Judged(status="ok", predicted={"seconds": seconds}, resources=resources, key="k" * 12)


def _spread(tile: int) -> Spread:
    return Spread(median=tile * 1e-3, low=tile * 0.9e-3, high=tile * 1.1e-3, samples=3)


def options_in(folder: Path, **given: Any) -> Any:
    from nsa_codegen.tuning.options import Options

    storage = os.environ.get("TUNING_FAKES_STORAGE", f"journal:///{folder / 'study'}")
    defaults = {"meta": META, "storage": storage, "trials": 12, "seconds": 20.0}
    return Options(**{"target": TARGET, "logs": folder / "logs", "scratch": folder / "scratch", **defaults, **given})


def tune_as_a_process(folder: Path, trials: int) -> None:
    from nsa_codegen.tuning import kernel_search
    from nsa_codegen.tuning.options import Tools
    from nsa_codegen.tuning.search import Tuner

    kernel_search.Space.of = small_space  # type: ignore[method-assign]
    tools = Tools(build=build_apart, prepare=nothing, judge=slow_judge, finals=finals, prerequisites=nothing)
    (folder / f"ready-{os.getpid()}").touch()
    while len(list(folder.glob("ready-*"))) < int(os.environ.get("TUNING_FAKES_TOGETHER", "1")):
        time.sleep(0.01)
    with Tuner(options_in(folder, trials=trials), tools=tools) as tuner:
        tuner.tune(LightProblem())


if __name__ == "__main__":
    tune_as_a_process(Path(sys.argv[1]), int(sys.argv[2]))
