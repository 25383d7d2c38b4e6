"""Selection: which row serves, along the chain and in the generic lists, and what is said of a bad one."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import ScheduleError
from nsa_codegen.index_sets import window
from nsa_codegen.manifest import RequestKey
from nsa_codegen.needed import backward_descs
from nsa_codegen.requests import needed_requests
from nsa_codegen.schedule import CpuSchedule, GpuSchedule, ScheduleSpace, narrowed
from nsa_codegen.selection import schedules_folder, select
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import CPU_TARGETS, GPU_TARGETS, TARGETS, Target

V4, V3, GENERIC = (TARGETS[name] for name in ("x86_64_v4", "x86_64_v3", "generic"))
DESC = KernelDesc.of("stream_attention", "float32", group=4, dk=64, dv=64)
DESC16 = KernelDesc.of("stream_attention", "bfloat16", visible=window(64), group=4, dk=64, dv=64)
GPUS_WITH_KERNELS = [t for t in GPU_TARGETS.values() if t.kind == "cuda"]
FALLBACK = """
[chain]
x86_64_v4 = "x86_64_v3"
x86_64_v3 = "cpu"
[generic]
stream_attention_fwd = [
  { query_lanes = 64, key_tile = 64, register_rows = 4, register_vectors = 4 },
  { query_lanes = 32, key_tile = 16, register_rows = 2, register_vectors = 1 },
]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fallback.toml").write_text(FALLBACK)
    return tmp_path


def write_rows(folder: Path, arch: str, *rows: tuple[dict[str, Any], dict[str, int]], record: str = "run 1") -> None:
    path = folder / "stream_attention_fwd" / f"{arch}.json"
    path.parent.mkdir(exist_ok=True)
    data = [{"bucket": b, "schedule": s, "record": record, "environment": {}} for b, s in rows]
    path.write_text(json.dumps(data))


def schedule(key_tile: int) -> dict[str, int]:
    return CpuSchedule(key_tile=key_tile, register_vectors=2).to_json()


def test_without_rows_the_first_legal_generic_schedule_serves(folder: Path) -> None:
    found = select(DESC, V4, folder=folder)
    assert found.schedule == CpuSchedule(query_lanes=64, key_tile=64, register_rows=4, register_vectors=4)
    assert found.source == "fallback.toml generic.stream_attention_fwd choice 0"
    found = select(DESC, V3, folder=folder)  # sixteen registers do not hold the first one's tile
    assert found.schedule == CpuSchedule(query_lanes=32, key_tile=16, register_rows=2, register_vectors=1)
    assert found.source == "fallback.toml generic.stream_attention_fwd choice 1"


def test_only_tensor_copies_can_do_without_a_warp_group_of_their_own() -> None:
    spec = NSASpec.paper()
    for target in GPU_TARGETS.values():
        for request in needed_requests(spec.program(), "bfloat16", target):
            desc, joint = request.desc, GpuSchedule(rows=64, key_tile=16, stages=1, threads=128, specialized=0)
            reason = ScheduleSpace.check(joint, desc, target)
            copies = target.copy == "tma" and ("part", "keys") not in desc.dims and desc.op != "combine"
            assert (reason is None) == copies, (target.name, str(desc), reason)
            assert copies or "specialized = 0 is for loops with tensor copies" in str(reason)
            axes = ScheduleSpace.axes(desc, target, GpuSchedule())
            assert axes["specialized"] == ((0, 1) if copies else (1,))
    assert "must be 0 or 1" in str(ScheduleSpace.check(GpuSchedule(specialized=2), DESC16, GPU_TARGETS["sm_90a"]))


def test_warps_that_share_a_product_have_equal_parts_of_it() -> None:
    attention = replace(DESC16, dims=(("dk", 96), ("dv", 48), ("group", 4)))
    keys = next(d for d in backward_descs(attention, "cuda") if d.word("part") == "keys")

    def reason(rows: int, threads: int) -> str | None:
        schedule = GpuSchedule(rows=rows, key_tile=32, threads=threads)
        return ScheduleSpace.check(schedule, keys, GPU_TARGETS["sm_80"])

    assert reason(16, 128) == "4 warps can't share 16x48 evenly in pieces of 16x8"
    assert reason(16, 64) is None and reason(32, 128) is None


def test_plain_data_names_specialized_only_where_it_is_0() -> None:
    usual, joint = GpuSchedule(rows=32), GpuSchedule(rows=32, specialized=0)
    assert usual.to_json() == {"rows": 32, "key_tile": 64, "stages": 2, "threads": 128}
    assert joint.to_json() == {**usual.to_json(), "specialized": 0} and joint.values() == joint.to_json()
    assert all(GpuSchedule.parse(s.to_json()) == s for s in (usual, joint))
    assert str(joint) == f"{usual} specialized=0"
    keys = [RequestKey.of(DESC16, s, GPU_TARGETS["sm_90a"]) for s in (usual, joint)]
    assert keys[0].pass_options == "{}" and "disable_warp_specialized" in keys[1].pass_options


def test_a_choice_may_ask_for_room_for_several_thread_blocks(folder: Path) -> None:
    lists = """
[mma]
stream_attention_bwd = [
  { rows = 32, key_tile = 32, stages = 2, threads = 128, blocks = 2 },
  { rows = 32, key_tile = 16, stages = 2, threads = 128 },
]
"""
    (folder / "fallback.toml").write_text(FALLBACK + lists)
    keys = KernelDesc.of("stream_attention", "bfloat16", direction="bwd", part="keys", group=4, dk=128, dv=128)
    assert select(keys, GPU_TARGETS["sm_80"], folder=folder).schedule.to_json()["key_tile"] == 32
    found = select(keys, GPU_TARGETS["sm_86"], folder=folder)  # one of them would be legal there
    assert found.schedule.to_json()["key_tile"] == 16
    assert "choice 0: 2 thread blocks take 105472 bytes; a multiprocessor of sm_86 has 102400" in found.tried
    (folder / "fallback.toml").write_text(FALLBACK + lists.replace("blocks = 2", 'blocks = "two"'))
    with pytest.raises(ScheduleError, match=r"mma\.stream_attention_bwd choice 0: blocks = 'two' is not allowed"):
        select(keys, GPU_TARGETS["sm_86"], folder=folder)


def test_own_rows_come_before_those_along_the_chain(folder: Path) -> None:
    write_rows(folder, "cpu", ({}, schedule(16)))
    assert select(DESC, V4, folder=folder).source == "stream_attention_fwd/cpu.json row 0 {}"
    write_rows(folder, "x86_64_v3", ({"dk": 64}, schedule(32)), ({"dk": 128}, schedule(64)))
    assert select(DESC, V4, folder=folder).source == 'stream_attention_fwd/x86_64_v3.json row 0 {"dk": 64}'
    write_rows(folder, "x86_64_v4", ({"dk": 32}, schedule(64)), ({"dk": 64}, schedule(128)))
    found = select(DESC, V4, folder=folder)
    assert (found.schedule.key_tile, found.source) == (128, 'stream_attention_fwd/x86_64_v4.json row 1 {"dk": 64}')
    assert select(DESC, V3, folder=folder).schedule.key_tile == 32
    # `generic` has no chain here, and so none of these rows.
    assert select(DESC, GENERIC, folder=folder).source.startswith("fallback.toml")


def test_the_bucket_that_says_most_serves_and_the_first_of_equals(folder: Path) -> None:
    write_rows(
        folder,
        "x86_64_v4",
        ({}, schedule(16)),
        ({"dk": 64}, schedule(32)),
        ({"dk": 64, "dtype": "float32"}, schedule(64)),
        ({"dv": 64, "dtype": "float32"}, schedule(128)),
    )
    assert select(DESC, V4, folder=folder).schedule.key_tile == 64
    half = KernelDesc.of("stream_attention", "float16", group=4, dk=64, dv=64)
    assert select(half, V4, folder=folder).schedule.key_tile == 32
    wide = KernelDesc.of("stream_attention", "float16", group=4, dk=128, dv=64)
    assert select(wide, V4, folder=folder).schedule.key_tile == 16


def test_an_illegal_row_is_refused_with_its_place_and_reason(folder: Path) -> None:
    write_rows(folder, "x86_64_v3", ({}, CpuSchedule(register_rows=8, register_vectors=4).to_json()))
    with pytest.raises(
        ScheduleError, match=r"x86_64_v3\.json row 0.*is not legal.*needs 37 registers; x86_64_v3 has 16"
    ):
        select(DESC, V3, folder=folder)
    write_rows(folder, "x86_64_v3", ({}, {"key_tiles": 3}))
    with pytest.raises(ScheduleError, match=r"row 0 \{\}: CpuSchedule has no field 'key_tiles'"):
        select(DESC, V3, folder=folder)


@pytest.mark.parametrize("target", GPU_TARGETS.values(), ids=lambda t: t.name)
def test_float32_on_a_gpu_is_told_for_what_it_is_and_no_row_is_blamed(folder: Path, target: Target) -> None:
    write_rows(folder, target.name, ({}, GpuSchedule().to_json()))
    with pytest.raises(ScheduleError) as caught:
        select(DESC, target, folder=folder)
    assert str(caught.value) == (
        f"{DESC} on {target.name}: GPU kernels are of float16 and bfloat16, and float32 has none; ask for another "
        f"dtype, or for a CPU target"
    )
    assert "row" not in str(caught.value) and target.lacks_kernels("bfloat16") is None


def test_a_row_without_a_record_is_refused(folder: Path) -> None:
    write_rows(folder, "x86_64_v4", ({}, schedule(16)), record="")
    with pytest.raises(ScheduleError, match=r"x86_64_v4\.json row 0 must have .*a record that is not empty"):
        select(DESC, V4, folder=folder)


def test_bad_files_are_named(folder: Path) -> None:
    with pytest.raises(ScheduleError, match=r"generic\.compress_bwd in fallback\.toml there is none; add one"):
        select(KernelDesc.of("compress", "float32", direction="bwd"), V4, folder=folder)
    huge = KernelDesc.of("stream_attention", "float32", dk=100_000, dv=8)
    with pytest.raises(ScheduleError, match=r"none is legal: choice 0: tiles of .*; choice 1: tiles of"):
        select(huge, V4, folder=folder)
    (folder / "stream_attention_fwd").mkdir()
    (folder / "stream_attention_fwd" / "cpu.json").write_text("[")
    with pytest.raises(ScheduleError, match=r"cpu\.json is not JSON"):
        select(DESC, V4, folder=folder)
    (folder / "fallback.toml").write_text(FALLBACK.replace('"cpu"', '"x86_64_v4"'))
    with pytest.raises(ScheduleError, match="the chain x86_64_v4 -> x86_64_v3 -> x86_64_v4 has no end"):
        select(DESC, V4, folder=folder)
    (folder / "fallback.toml").write_text("[chain]")
    with pytest.raises(ScheduleError, match=r"has the tables \['chain'\]; it must have 'chain' and 'generic'"):
        select(DESC, V4, folder=folder)
    (folder / "fallback.toml").write_text("chain")
    with pytest.raises(ScheduleError, match="is not TOML"):
        select(DESC, V4, folder=folder)
    (folder / "fallback.toml").unlink()
    with pytest.raises(ScheduleError, match="install nsa_codegen with its schedules"):
        select(DESC, V4, folder=folder)


@pytest.mark.parametrize("target", CPU_TARGETS.values(), ids=lambda t: t.name)
def test_every_template_has_a_generic_schedule_for_every_cpu_target(target: Target) -> None:
    templates = Path(__file__).parents[2] / "nsa_codegen" / "templates" / "cpu"
    kinds = [p.stem for p in sorted(templates.glob("*_[fb]wd.py"))]
    assert "stream_attention_fwd" in kinds
    for kind in kinds:
        op, _, direction = kind.rpartition("_")
        for dk, dv in ((8, 8), (64, 64), (192, 128)):
            desc = KernelDesc.of(op, "float32", direction=direction, dk=dk, dv=dv)
            found = select(desc, target, folder=schedules_folder())
            assert ScheduleSpace.check(found.schedule, desc, target) is None


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.kind != "cpu"], ids=lambda t: t.name)
@pytest.mark.parametrize("preset", ["seed", "paper"])
def test_every_gpu_kernel_of_the_presets_has_a_generic_schedule(target: Target, preset: str) -> None:
    requests = needed_requests(getattr(NSASpec, preset)().program(), "bfloat16", target)
    assert {r.desc.op for r in requests} >= {"stream_attention", "gather_attention", "select_blocks", "compress"}
    for request in requests:
        assert ScheduleSpace.check(request.schedule, request.desc, target) is None


@pytest.mark.parametrize("target", GPUS_WITH_KERNELS, ids=lambda t: t.name)
@pytest.mark.parametrize("block", [16, 64])
def test_attention_of_every_head_dim_up_to_192_has_a_schedule_in_both_directions(target: Target, block: int) -> None:
    for dim, group in itertools.product(range(16, 193, 16), (1, 4, 16)):
        dims = {"group": group, "dk": dim, "dv": dim}
        for desc in (
            KernelDesc.of("stream_attention", "bfloat16", visible=window(64), **dims),
            KernelDesc.of("gather_attention", "bfloat16", reach="causal", source="plain", block=block, n=8, **dims),
        ):
            for part in (desc, *backward_descs(desc, "cuda")):
                assert ScheduleSpace.check(select(part, target).schedule, part, target) is None


@pytest.mark.parametrize("target", CPU_TARGETS.values(), ids=lambda t: t.name)
def test_what_a_workers_stack_would_not_hold_has_no_schedule(target: Target) -> None:
    lists = {"reach": "causal", "source": "packed", "group": 1, "dk": 16, "dv": 16, "block": 16}
    weights = {"method": "mlp", "part": "weights", "kernel": 2, "stride": 2}
    for fits, op, direction, dims in (
        (True, "gather_attention", "fwd", lists | {"n": 4096}),
        (False, "gather_attention", "fwd", lists | {"n": 1 << 16}),
        (True, "compress", "bwd", weights | {"dim": 256, "hidden": 1024}),
        (False, "compress", "bwd", weights | {"dim": 512, "hidden": 2048}),
    ):
        desc = KernelDesc.of(op, "float32", direction=direction, **dims)
        if fits:
            assert select(desc, target)
            continue
        with pytest.raises(ScheduleError, match="allowed on a worker's stack"):
            select(desc, target)


@pytest.mark.parametrize(("group", "lanes"), [(1, 16), (4, 16), (16, 16), (17, 32), (40, 64)])
def test_a_call_of_few_queries_has_as_many_lanes_as_one_query_fills(group: int, lanes: int) -> None:
    desc = KernelDesc.of("stream_attention", "float32", visible=window(9), group=group, dk=64, dv=64)
    usual = CpuSchedule(query_lanes=64, key_tile=32)
    assert narrowed(usual, desc, V4) == CpuSchedule(query_lanes=lanes, key_tile=32)
    backward = KernelDesc.of(
        "stream_attention", "float32", direction="bwd", visible=window(9), part="runs", group=group, dk=64, dv=64
    )
    assert narrowed(usual, backward, V4) == usual
    assert narrowed(CpuSchedule(query_lanes=16), desc, V4) == CpuSchedule(query_lanes=16)
    assert narrowed(GpuSchedule(), desc, GPU_TARGETS["sm_80"]) == GpuSchedule()


def test_kernels_for_few_queries_are_built_ahead() -> None:
    requests = needed_requests(NSASpec.paper().program(), "float32", V4, "fwd")
    lanes: dict[KernelDesc, set[int]] = {}
    for request in requests:
        lanes.setdefault(request.desc, set()).add(request.schedule.query_lanes)
    assert {desc.op for desc, found in lanes.items() if 16 in found and len(found) == 2} == {
        "stream_attention", "scored_attention",
    }  # fmt: skip
    assert len(set(requests)) == len(requests)
