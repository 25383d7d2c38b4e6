"""The cost model: what physics demands of it, on every target; and the counts it rests on, against loops in Python."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import ScheduleError
from nsa_codegen.index_sets import RangeSet, causal, complete, everything, first, window
from nsa_codegen.needed import backward_descs, needed_descs
from nsa_codegen.occupancy import max_registers
from nsa_codegen.ops import OPS, Sizes
from nsa_codegen.schedule import CpuSchedule, GpuSchedule, Schedule, ScheduleSpace
from nsa_codegen.selection import schedules_folder, select
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import CPU_TARGETS, GPU_TARGETS, TARGETS, GpuTarget, Target
from nsa_codegen.tuning import counts
from nsa_codegen.tuning.cost_gpu import predicted_registers
from nsa_codegen.tuning.cost_model import predict
from nsa_codegen.tuning.gpu_facts import FACTS, clock_hz, matrix_flops
from nsa_codegen.tuning.gpu_loops import launches
from nsa_codegen.tuning.honesty import loss, spearman

ATTENTION: dict[str, Any] = {"group": 16, "dk": 192, "dv": 128}
CAUSAL = KernelDesc.of("stream_attention", "bfloat16", visible=causal(), **ATTENTION)
WINDOW = KernelDesc.of("stream_attention", "bfloat16", visible=window(512), **ATTENTION)
LONG = Sizes(batch=1, tokens=16384, keys=16384, kv_heads=4)


def descs(target: Target) -> list[KernelDesc]:
    dtype = "float32" if target.kind == "cpu" else "bfloat16"
    programs = [NSASpec.seed().program(), NSASpec.paper().program()]
    return [d for p in programs for d in needed_descs(p, dtype, target=target)]


def sizes_at(desc: KernelDesc, tokens: int, batch: int = 1) -> Sizes:
    keys = tokens
    if desc.visible is not None and desc.visible.ranges[0].hi.divisor > 1:
        keys = max(1, (tokens - 32) // 16 + 1)
    return Sizes(batch=batch, tokens=tokens, keys=keys, kv_heads=4)


def seconds(desc: KernelDesc, schedule: Schedule, target: Target, sizes: Sizes = LONG) -> float:
    return predict(desc, schedule, target, sizes).seconds


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_every_kernel_of_the_presets_has_a_finite_time_whose_parts_it_covers(target: Target) -> None:
    for desc in descs(target):
        schedule = select(desc, target).schedule
        found = predict(desc, schedule, target, sizes_at(desc, 2048))
        assert 0 < found.seconds < 10 and found.bound
        assert {"compute", "memory", "latency"} <= found.parts.keys()
        assert all(math.isfinite(v) and v >= 0 for v in found.to_json().values())
        for name, part in found.parts.items():
            if name not in ("latency", "products", "passes"):
                assert part <= found.seconds * (1 + 1e-9), (desc, name)
        assert found.to_json()["seconds"] == found.seconds


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_a_longer_sequence_takes_longer(target: Target) -> None:
    for desc in descs(target):
        schedule = select(desc, target).schedule
        times = [seconds(desc, schedule, target, sizes_at(desc, tokens)) for tokens in (512, 2048, 8192, 32768)]
        assert times == sorted(times), desc
        batches = [
            seconds(desc, schedule, target, sizes_at(desc, 2048, batch)) for batch in (1, 4, 16, 512)
        ]  # small ones leave a card idle
        assert batches == sorted(batches) and batches[0] < batches[-1], desc


@pytest.mark.parametrize("target", GPU_TARGETS.values(), ids=lambda t: t.name)
@pytest.mark.parametrize("op", ["stream_attention", "gather_attention", "select_blocks", "combine", "compress"])
def test_no_gpu_kernel_beats_the_data_sheet(target: GpuTarget, op: str) -> None:
    """Operations at the card's matrix rate, and all operands once at its memory's rate, take at least as long."""
    for desc in (d for d in descs(target) if d.op == op and d.direction == "fwd"):
        sizes = sizes_at(desc, 4096)
        work = OPS[op].work(desc, sizes)
        least = max(work.operations / 1e12 / target.rates.matrix_tflops, work.bytes / 1e9 / target.rates.dram_gbs)
        for schedule in ScheduleSpace.candidates(desc, target):
            assert seconds(desc, schedule, target, sizes) >= least, schedule


@pytest.mark.parametrize("target", GPU_TARGETS.values(), ids=lambda t: t.name)
def test_more_stages_never_take_less_shared_memory(target: GpuTarget) -> None:
    for desc in (d for d in descs(target) if d.op.endswith("attention") or d.op == "select_blocks"):
        for schedule in ScheduleSpace.candidates(desc, target):
            assert isinstance(schedule, GpuSchedule)
            more = replace(schedule, stages=schedule.stages + 1)
            shared = [max(x.shared for x in launches(desc, s, target, sizes_at(desc, 1024))) for s in (schedule, more)]
            assert shared[0] < shared[1]


def test_stages_hide_latency_until_they_cost_occupancy() -> None:
    """One tile waits for its copy, two in flight wait less; and as tiles get more, thread blocks get fewer."""
    target = GPU_TARGETS["sm_90a"]
    one, two, four = (GpuSchedule(rows=64, key_tile=64, stages=s, threads=128) for s in (1, 2, 4))
    found = [predict(WINDOW, s, target, LONG) for s in (one, two, four)]
    assert found[1].seconds < found[0].seconds
    blocks = [f.facts["blocks_per_processor"] for f in found]
    assert blocks == sorted(blocks, reverse=True) and blocks[2] < blocks[1]


def test_occupancy_that_shared_memory_limits_shows_in_the_bound() -> None:
    target = GPU_TARGETS["sm_120a"]  # 99 KB of a block
    wide = replace(WINDOW, dims=(("dk", 64), ("dv", 64), ("group", 16)))
    tight = GpuSchedule(rows=64, key_tile=64, stages=4, threads=128)
    loose = GpuSchedule(rows=64, key_tile=64, stages=1, threads=128)
    assert "shared memory" in predict(wide, tight, target, LONG).bound
    assert predict(wide, tight, target, LONG).facts["blocks_per_processor"] == 1
    assert predict(wide, loose, target, LONG).facts["blocks_per_processor"] > 1


def test_a_warp_group_that_only_copies_takes_places_of_those_that_compute() -> None:
    """Its threads have as many registers as others, so that more thread blocks fit without it."""
    desc = replace(WINDOW, dims=(("dk", 128), ("dv", 128), ("group", 16)))
    for name in ("sm_90a", "sm_100a"):
        target = GPU_TARGETS[name]
        apart = GpuSchedule(rows=64, key_tile=32, stages=2, threads=128)
        joint = replace(apart, specialized=0)
        found = [predict(desc, s, target, LONG) for s in (apart, joint)]
        assert found[1].facts["blocks_per_processor"] > found[0].facts["blocks_per_processor"]
        assert found[1].seconds < found[0].seconds
        assert found[1].parts["instructions"] == found[0].parts["instructions"]  # one thread starts a tile's copy


def test_weights_that_warps_keep_pass_through_no_shared_memory() -> None:
    keys = next(d for d in backward_descs(WINDOW, "cuda") if d.word("part") == "keys")
    schedule, narrow = (GpuSchedule(rows=r, key_tile=64, stages=2, threads=2 * r) for r in (64, 32))
    of = {s.rows: launches(keys, s, GPU_TARGETS["sm_90a"], LONG)[0] for s in (schedule, narrow)}
    assert of[64].staged == 0 and of[32].staged > 0
    assert [p.stored for p in of[64].products] == [True, True, False, False]
    assert all(p.stored for p in of[32].products)
    assert launches(keys, schedule, GPU_TARGETS["sm_80"], LONG)[0].staged > 0


def test_a_target_with_wgmma_prefers_tiles_of_64_rows() -> None:
    hopper, ampere = GPU_TARGETS["sm_90a"], GPU_TARGETS["sm_80"]
    for desc in (WINDOW, CAUSAL):
        full = GpuSchedule(rows=64, key_tile=64, stages=2, threads=128)
        half = GpuSchedule(rows=32, key_tile=64, stages=2, threads=64)
        quarter = GpuSchedule(rows=16, key_tile=64, stages=2, threads=32)
        assert seconds(desc, full, hopper) < seconds(desc, half, hopper) < seconds(desc, quarter, hopper)
        best = min(ScheduleSpace.candidates(desc, hopper), key=lambda s: seconds(desc, s, hopper))
        assert isinstance(best, GpuSchedule) and best.rows >= 64 and best.threads >= 128
        # The same step costs more where warps make the products, beyond what the cards' rates explain.
        tiles = {t.name: predict(desc, half, t, LONG) for t in (hopper, ampere)}
        assert tiles["sm_90a"].parts["matrix"] * matrix_flops(hopper) * hopper.processors * clock_hz(hopper) > (
            1.3 * tiles["sm_80"].parts["matrix"] * matrix_flops(ampere) * ampere.processors * clock_hz(ampere)
        )


def test_targets_that_differ_in_hardware_prefer_different_schedules() -> None:
    best = {}
    for name in ("sm_80", "sm_90a", "sm_120a"):
        target = GPU_TARGETS[name]
        best[name] = min(ScheduleSpace.candidates(WINDOW, target), key=lambda s: seconds(WINDOW, s, target))
    assert best["sm_90a"] != best["sm_80"] and best["sm_90a"] != best["sm_120a"]


def test_compiled_resources_replace_what_is_guessed() -> None:
    target = GPU_TARGETS["sm_90a"]
    schedule = GpuSchedule(rows=64, key_tile=64, stages=2, threads=128)
    guessed = predict(WINDOW, schedule, target, LONG)
    opcodes = {"UTMALDG.4D": 4, "HGMMA": 16}
    counted = {"total": 100, "opcodes": opcodes, "main_opcodes": opcodes}
    taken = {
        "registers": 128, "threads": 256, "shared_bytes": 107520, "spill_store_bytes": 0, "spill_load_bytes": 0,
        "instructions": counted,
    }  # fmt: skip
    same = predict(WINDOW, schedule, target, LONG, taken)
    assert same.facts["registers"] == 128 and same.facts["spilled_bytes"] == 0
    crowded = predict(WINDOW, schedule, target, LONG, taken | {"registers": 240})
    assert crowded.facts["blocks_per_processor"] == 1 and crowded.seconds > same.seconds
    spilling = predict(WINDOW, schedule, target, LONG, taken | {"spill_store_bytes": 400, "spill_load_bytes": 400})
    assert spilling.seconds > same.seconds and spilling.facts["spilled_bytes"] == 800
    plain = taken | {"instructions": counted | {"main_opcodes": {"LDG.E.128": 8, "HGMMA": 16}}}
    assert predict(WINDOW, schedule, target, LONG, plain).seconds > same.seconds
    assert guessed.seconds == pytest.approx(same.seconds, rel=0.3)


def test_a_prediction_takes_less_than_a_millisecond() -> None:
    for target in (GPU_TARGETS["sm_90a"], CPU_TARGETS["x86_64_v4"]):
        for desc in (WINDOW, KernelDesc.of("gather_attention", "bfloat16", reach="causal", source="packed", block=64,
                                           n=16, **ATTENTION)):  # fmt: skip
            schedules = list(ScheduleSpace.candidates(desc, target))
            for s in schedules:  # counts are kept from here on
                predict(desc, s, target, LONG)
            begin = time.process_time()
            for s in schedules:
                predict(desc, s, target, LONG)
            assert (time.process_time() - begin) / len(schedules) < 1e-3


def test_a_schedule_of_the_other_family_is_refused() -> None:
    with pytest.raises(ScheduleError, match="a CpuSchedule is not for cuda targets; use a GpuSchedule"):
        predict(WINDOW, CpuSchedule(), GPU_TARGETS["sm_80"], LONG)


def test_every_gpu_target_has_facts_with_a_source() -> None:
    assert FACTS.keys() == GPU_TARGETS.keys()
    for name, facts in FACTS.items():
        assert facts.source and facts.l2_latency < facts.dram_latency, name
        assert 500 <= matrix_flops(GPU_TARGETS[name]) <= 8200, name  # operations a clock and multiprocessor
        assert 1e9 < clock_hz(GPU_TARGETS[name]) < 3e9, name


INDEX_SETS = (causal(), window(1), window(7), first(4) | window(9), complete(8, 4), complete(4, 4), everything())


@settings(max_examples=300, deadline=None)
@given(
    visible=st.sampled_from(INDEX_SETS),
    tokens=st.integers(1, 60),
    keys=st.integers(1, 70),
    q_start=st.sampled_from((0, 3, 50)),
    queries=st.sampled_from((1, 4, 16)),
    width=st.sampled_from((4, 16)),
)
def test_counted_steps_are_those_of_the_loops(
    visible: RangeSet, tokens: int, keys: int, q_start: int, queries: int, width: int
) -> None:
    where: dict[str, int] = {"tokens": tokens, "keys": keys, "q_start": q_start}
    steps, passed = counts.steps_over_keys(visible, queries=queries, width=width, **where)
    found = list(walk_keys(visible, tokens, keys, q_start, queries, width))
    assert (steps.tiles, steps.total) == (len(found), sum(n for n, _ in found))
    assert steps.longest == max(n for n, _ in found) and passed == sum(p for _, p in found)
    assert passed * queries >= sum(visible.count(q_start + t, keys) for t in range(tokens))
    over = counts.steps_over_queries(visible, wide=width, queries=queries, **where)
    least = sum(
        -(-(seen[-1] - seen[0] + 1) // queries)
        for j0 in range(0, keys, width)
        if (seen := [t for t in range(tokens) if sees_any(visible, q_start + t, j0, min(j0 + width, keys), keys)])
    )
    assert least <= over.total


@settings(max_examples=200, deadline=None)
@given(
    visible=st.sampled_from(INDEX_SETS),
    tokens=st.integers(1, 60),
    keys=st.integers(1, 70),
    q_start=st.sampled_from((0, 3, 50)),
    queries=st.sampled_from((1, 4, 16)),
    run=st.sampled_from((3, 8, 64)),
)
def test_counted_steps_of_runs_are_those_of_the_loops(
    visible: RangeSet, tokens: int, keys: int, q_start: int, queries: int, run: int
) -> None:
    where: dict[str, int] = {"tokens": tokens, "keys": keys, "q_start": q_start, "run": run}
    steps, passed = counts.steps_over_keys(visible, queries=queries, width=4, **where)
    found = [
        list(walk_keys(visible, min(run, tokens - start), keys, q_start + start, queries, 4))
        for start in range(0, tokens, run)
    ]
    tiles = [tile for tiles in found for tile in tiles]
    assert (steps.tiles, steps.total) == (len(tiles), sum(n for n, _ in tiles))
    assert passed == sum(p for _, p in tiles)
    assert steps.longest == max(sum(n for n, _ in tiles) for tiles in found)
    seen = 0
    for start in range(q_start, q_start + tokens, run):
        last = min(start + run, q_start + tokens) - 1
        end = max(span.hi.at(last, keys) for span in visible.ranges)
        seen += max(0, end - visible.ranges[0].lo.at(start, keys))
    assert counts.keys_of_runs(visible, **where) == seen


def sees_any(visible: RangeSet, position: int, begin: int, end: int, keys: int) -> bool:
    return any(visible.sees(position, key, keys) for key in range(begin, end))


def walk_keys(
    visible: RangeSet, tokens: int, keys: int, q_start: int, queries: int, width: int
) -> Iterator[tuple[int, int]]:
    for t0 in range(0, tokens, queries):
        begin, end, steps, passed = 0, 0, 0, 0
        last = q_start + min(t0 + queries, tokens) - 1
        for span in visible.ranges:
            begin = max(end, span.lo.at(q_start + t0, keys))
            end = max(begin, span.hi.at(last, keys))
            steps, passed = steps + -(-(end - begin) // width), passed + end - begin
        yield steps, passed


@pytest.mark.parametrize("queries", [1, 4, 16])
def test_listed_blocks_are_those_of_lists_drawn_at_random(queries: int) -> None:
    generator, tokens, block, n = np.random.default_rng(0), 512, 16, 4
    distinct = []
    for t0 in range(0, tokens, queries):
        lists = [generator.permutation((t0 + queries - 1) // block + 1)[:n] for _ in range(queries)]
        distinct.append(len(set(np.concatenate(lists).tolist())))
    expected = counts.listed_blocks(
        tokens=tokens, q_start=0, block=block, n=n, queries=queries, causal=True, keys=tokens
    )
    assert expected.total == pytest.approx(sum(distinct), rel=0.05)


def test_listing_queries_counts_every_entry_of_the_lists() -> None:
    steps, pieces = counts.listing_queries(tokens=4096, keys=4096, q_start=0, block=64, queries=1, piece=4096)
    entries = sum(min(counts.NOMINAL_LISTED, t // 64 + 1) for t in range(4096))
    assert steps.tiles == 64 and steps.total == pytest.approx(entries, rel=0.02)
    longest = 1024 + sum(16 / (t // 64 + 1) for t in range(1024, 4096))
    assert pieces == 0 and steps.longest == pytest.approx(longest, rel=0.01)


def test_long_lists_are_cut_into_pieces() -> None:
    whole, _ = counts.listing_queries(tokens=4096, keys=4096, q_start=0, block=64, queries=4, piece=4096)
    steps, pieces = counts.listing_queries(tokens=4096, keys=4096, q_start=0, block=64, queries=4, piece=1200)
    assert pieces > 0 and steps.tiles == 64 + pieces  # a list that is cut leaves an empty one
    assert steps.longest == 300 and steps.total == whole.total


def test_spearman_is_the_correlation_of_ranks() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [9, 7, 5, 3]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(0.8660254)  # equal values share the mean of their ranks
    assert spearman([1, 1, 1], [1, 2, 3]) is None and spearman([1], [2]) is None


def test_loss_is_what_the_models_best_costs() -> None:
    assert loss([(1.0, 3.0), (2.0, 2.0), (3.0, 4.0)]) == pytest.approx(1.5)
    assert loss([(1.0, 3.0), (1.0, 5.0), (3.0, 2.0)]) == pytest.approx(2.0)  # the mean of what the model holds equal


def test_registers_are_those_of_the_committed_kernels() -> None:
    """What is guessed without a compiler, against what ptxas reported of every committed GPU kernel with products."""
    errors = []
    for path in sorted((schedules_folder().parent / "generated").glob("sm_*/*/*/manifest.json")):
        manifest, key = json.loads(path.read_text()), json.loads(path.with_name("key.json").read_text())
        desc, target = KernelDesc.from_json(key["desc"]), GPU_TARGETS[key["arch"]]
        found = [
            x for x in launches(desc, GpuSchedule.parse(key["schedule"]), target, sizes_at(desc, 4096)) if x.products
        ]
        if not found:
            continue
        taken = manifest["resources"]
        assert max(x.threads + x.copiers for x in found) == taken["threads"], path
        most = max_registers(target, threads=taken["threads"])
        guessed = max(min(predicted_registers(x, target), most) for x in found)
        errors.append(abs(guessed - taken["registers"]) / taken["registers"])
    assert len(errors) >= 100
    assert float(np.median(errors)) < 0.1 and max(errors) < 0.5
