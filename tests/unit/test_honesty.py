"""The published figures of the cost model are those of the committed logs; medians and the worst are what they say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tuning_logs_made import record, write_log

from nsa_codegen.desc import KernelDesc
from nsa_codegen.schedule import CpuSchedule
from nsa_codegen.tuning.honesty import rankings, summaries
from nsa_codegen.tuning.records import logs_folder, read_log

ROOT = Path(__file__).parents[2]
KERNELS = [KernelDesc.of("combine", "float32", paths=3, dv=dv, gates="scalar") for dv in (16, 32, 64)]
TILES = (16, 32, 64)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_honesty", ROOT / "benchmarks" / "honesty.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def log_of(folder: Path, desc: KernelDesc, measured: tuple[float, ...], predicted: tuple[float, ...], run: str) -> Path:
    rows = [
        record(desc, CpuSchedule(key_tile=t), measured=m, predicted=p, stage="search")
        for t, m, p in zip(TILES, measured, predicted, strict=True)
    ]
    return write_log(folder, "x86_64_v4", *rows, run=run)


def test_the_committed_figures_are_those_of_the_committed_logs(script: ModuleType) -> None:
    """If this fails after new logs: python benchmarks/honesty.py --write."""
    committed = json.loads((ROOT / "benchmarks" / "results" / "honesty.json").read_text())
    made = script.figures(script.measured_logs(logs_folder()))
    assert made["all"]["descs"] == len(made["kernels"]) > 0
    same(made, committed)
    assert (ROOT / "benchmarks" / "results" / "honesty.png").read_bytes().startswith(b"\x89PNG")


def same(made: Any, committed: Any) -> None:
    """Everything alike; figures but for their last digit, which a processor may round otherwise."""
    if isinstance(made, dict):
        assert made.keys() == committed.keys()
        for name in made:
            same(made[name], committed[name])
    elif isinstance(made, list):
        assert len(made) == len(committed)
        for one, other in zip(made, committed, strict=True):
            same(one, other)
    else:
        assert made == (pytest.approx(committed, abs=2e-4) if isinstance(committed, float) else committed)


def test_an_op_has_the_median_and_the_worst_of_its_kernels(tmp_path: Path, script: ModuleType) -> None:
    log_of(tmp_path, KERNELS[0], (1.0, 2.0, 3.0), (1.0, 2.0, 3.0), "run")  # ranked well
    log_of(tmp_path, KERNELS[1], (1.0, 2.0, 3.0), (3.0, 2.0, 1.0), "run")  # the wrong way round, loses 3
    log_of(tmp_path, KERNELS[2], (2.0, 1.0, 3.0), (1.0, 2.0, 3.0), "run")  # loses 2
    found = script.figures(script.measured_logs(tmp_path))
    assert [row["loss"] for row in found["kernels"]] == [1.0, 3.0, 2.0]
    (op,) = found["ops"]
    assert (op["name"], op["descs"], op["candidates"], op["spearman"], op["worst"]) == ("combine_fwd", 3, 9, 0.5, 3.0)
    assert op["loss"] == pytest.approx(6 ** (1 / 3), abs=1e-4)
    assert found["all"] == op | {"name": "all"}
    assert found["machines"] == [{"processor": "Test Processor", "cores": 2, "compiler": "gcc 12"}]


def test_candidates_of_two_runs_are_not_compared(tmp_path: Path, script: ModuleType) -> None:
    for run, slower in (("first", 1.0), ("second", 10.0)):
        log_of(tmp_path, KERNELS[0], (slower, 2 * slower, 3 * slower), (1.0, 2.0, 3.0), run)
    found = script.figures(script.measured_logs(tmp_path))
    assert [row["candidates"] for row in found["kernels"]] == [3, 3] and found["all"]["loss"] == 1.0


def test_what_was_only_compiled_says_nothing(tmp_path: Path, script: ModuleType) -> None:
    path = write_log(tmp_path, "x86_64_v4", record(KERNELS[0], CpuSchedule(), predicted=1.0, spill_bytes=0))
    assert script.measured_logs(tmp_path) == []
    assert rankings(read_log(path).records) == () and summaries(()) == ()
