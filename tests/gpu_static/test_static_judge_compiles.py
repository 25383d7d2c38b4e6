"""The static judge with nvcc: a candidate ends in the scratch store, and its figures in the record."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsa_codegen.desc import KernelDesc
from nsa_codegen.ops import Sizes
from nsa_codegen.schedule import GpuSchedule
from nsa_codegen.store import KernelStore
from nsa_codegen.target import GPU_TARGETS
from nsa_codegen.tuning.static import judge_static


@pytest.mark.parametrize("name", ["sm_80", "sm_90a"])
def test_a_kernel_is_compiled_into_the_scratch_store_with_its_figures(name: str, tmp_path: Path) -> None:
    desc = KernelDesc.of("combine", "bfloat16", paths=3, dv=32, gates="scalar")
    sizes = Sizes(batch=1, tokens=1024, kv_heads=8)
    schedule = GpuSchedule(rows=32, key_tile=16, stages=1, threads=128)
    judged = judge_static(desc, schedule, GPU_TARGETS[name], sizes, store=KernelStore(tmp_path))
    assert judged.status == "ok", judged.reason
    assert judged.resources is not None and judged.resources["spill_bytes"] == 0
    assert judged.resources["registers"] > 0 and judged.resources["sha256"]
    assert any(judged.key in p.name for p in tmp_path.glob("*/*/*"))
