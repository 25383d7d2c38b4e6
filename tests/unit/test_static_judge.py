"""The static judge: what is refused, failed or fit, and that compiled figures reach the prediction and the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nsa_codegen.build import Built
from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import CompilerError
from nsa_codegen.index_sets import window
from nsa_codegen.manifest import RequestKey
from nsa_codegen.ops import Sizes
from nsa_codegen.schedule import GpuSchedule
from nsa_codegen.store import KernelStore
from nsa_codegen.target import GPU_TARGETS
from nsa_codegen.tuning import static
from nsa_codegen.tuning.cost_model import predict
from nsa_codegen.tuning.static import judge_resources, judge_static

H100 = GPU_TARGETS["sm_90a"]
DESC = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), group=16, dk=192, dv=128)
GOOD = GpuSchedule(rows=64, key_tile=64, stages=2, threads=128)
SIZES = Sizes(batch=1, tokens=16384, keys=16384, kv_heads=4)
TAKEN: dict[str, Any] = {
    "registers": 128, "threads": 256, "shared_bytes": 107520, "spill_store_bytes": 0, "spill_load_bytes": 0,
    "spill_bytes": 0, "blocks_per_processor": 2, "limited_by": ["registers"], "instructions": None,
}  # fmt: skip


def test_an_illegal_schedule_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    bad = GpuSchedule(rows=64, key_tile=64, stages=4, threads=512)
    judged = judge_static(DESC, bad, H100, SIZES, store=KernelStore(tmp_path))
    assert judged.status == "illegal" and "16 warps need 256 rows" in judged.reason and judged.predicted is None
    assert list(tmp_path.iterdir()) == []


def test_without_compiling_the_model_alone_judges(tmp_path: Path) -> None:
    judged = judge_static(DESC, GOOD, H100, SIZES, store=KernelStore(tmp_path), compile=False)
    assert judged.status == "ok" and judged.resources is None
    assert judged.predicted == predict(DESC, GOOD, H100, SIZES).to_json()
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_compile_failed_with_the_compilers_words(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(requests: Any, **_: Any) -> tuple[Built, ...]:
        return tuple(Built(request=r, how="failed", seconds=1.0, error=CompilerError("nvcc: no")) for r in requests)

    monkeypatch.setattr(static, "build_all", refuse)
    judged = judge_static(DESC, GOOD, H100, SIZES, store=KernelStore(tmp_path))
    assert (judged.status, judged.reason) == ("failed", "nvcc: no")
    assert judged.key == RequestKey.of(DESC, GOOD, H100).key12


def test_compiled_figures_are_kept_and_change_the_prediction() -> None:
    def judged(**changes: Any) -> static.Judged:
        return judge_resources(DESC, GOOD, H100, SIZES, TAKEN | changes, sha256="ab", key="cd")

    fine = judged()
    assert fine.status == "ok" and fine.resources == TAKEN | {"sha256": "ab"} and fine.key == "cd"
    assert fine.predicted is not None and fine.predicted["registers"] == 128
    spilling = judged(spill_store_bytes=512, spill_load_bytes=512, spill_bytes=1024)
    assert spilling.status == "ok" and spilling.resources is not None and spilling.resources["spill_bytes"] == 1024
    assert spilling.predicted is not None and spilling.predicted["seconds"] > fine.predicted["seconds"]
    huge = judged(blocks_per_processor=0, limited_by=["registers", "shared memory"])
    assert huge.status == "failed" and "not one thread block of it fits" in huge.reason
    assert huge.reason.endswith("by registers and shared memory")


def test_a_target_without_a_compiler_is_judged_by_the_model() -> None:
    judged = judge_resources(DESC, GOOD, H100, SIZES, None, sha256="ab", key="cd")
    assert judged.status == "ok" and judged.resources == {"sha256": "ab"}
    assert judged.predicted == predict(DESC, GOOD, H100, SIZES).to_json()
