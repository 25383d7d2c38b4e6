"""Groups of more heads than a tile has lanes: the last lanes of their last chunk hold no head, and are not counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nsa_codegen import dispatch
from nsa_codegen.desc import KernelDesc
from nsa_codegen.ops import OPS, Sizes
from nsa_codegen.schedule import CpuSchedule
from nsa_codegen.selection import select
from nsa_codegen.target import native_target
from nsa_codegen.tiling import RowTile

GROUPS = (71, 131)
DIMS: dict[str, Any] = {"dk": 16, "block": 16, "n": 4, "initial": 0, "local": 1, "kernel": 8, "stride": 4}


def in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    return {n: x.double() if torch.is_tensor(x) and x.is_floating_point() else x for n, x in inputs.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("op", ["scored_attention", "select_blocks"])
def test_lanes_without_a_head_score_no_block(op: str, group: int, dtype: str) -> None:
    """All heads have one query, so that what they score alike is decided by them alone, and no tie by rounding."""
    desc = KernelDesc.of(op, dtype, method="compressed", group=group, **DIMS, **({"dv": 16} if op[1] == "c" else {}))
    schedule = select(desc, native_target()).schedule
    assert isinstance(schedule, CpuSchedule)
    tile = RowTile.of(group, schedule.query_lanes)
    assert tile.chunks > 1 and group % tile.chunks
    sizes = Sizes(batch=1, tokens=200, keys=200, kv_heads=1)
    inputs = OPS[op].make_inputs(desc, sizes, torch.Generator().manual_seed(0))
    inputs["q"] = inputs["q"][:, :, :1].expand(-1, -1, group, -1).contiguous()
    found, wanted = dispatch.run(desc, **inputs)[-1], OPS[op].reference(desc, **in_float64(inputs))[-1]
    if dtype == "float32":
        assert torch.equal(found, wanted)
    else:  # scores that differ by less than a product's rounding may change places
        assert (found != wanted).any(-1).float().mean() < 0.02
