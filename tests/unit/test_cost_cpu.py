"""The cost model of CPU kernels: register tiles, the backward's runs and sums against their launches, the constants."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tuning_logs_made import record, spread

from nsa_codegen.desc import KernelDesc
from nsa_codegen.index_sets import RangeSet, causal, complete, everything, window
from nsa_codegen.needed import backward_descs, needed_descs
from nsa_codegen.ops import OPS, Sizes
from nsa_codegen.ops.base import Call
from nsa_codegen.ops.stream_attention import run_parts, run_sums_extent, runs_of
from nsa_codegen.schedule import CpuSchedule, ScheduleSpace
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import CPU_TARGETS, CpuTarget
from nsa_codegen.tuning import cost_cpu, fit
from nsa_codegen.tuning.cost_model import predict
from nsa_codegen.tuning.cpu_loop import Product
from nsa_codegen.tuning.cpu_loops import loop

V4 = CPU_TARGETS["x86_64_v4"]


def test_no_cpu_kernel_beats_the_machine_that_the_constants_are_of() -> None:
    peak = cost_cpu.CORES * cost_cpu.CLOCK * 2 * cost_cpu.FMA_BYTES / 4
    programs = [NSASpec.seed().program(), NSASpec.paper().program()]
    kernels = [d for p in programs for d in needed_descs(p, "float32", target=V4) if d.op.endswith("attention")]
    for desc in (d for d in kernels if "group" in dict(d.dims)):
        sizes = Sizes(batch=1, tokens=2048, keys=2048, kv_heads=4)
        for schedule in ScheduleSpace.candidates(desc, V4):
            found = predict(desc, schedule, V4, sizes)
            assert found.seconds >= found.facts["operations"] / peak
            if desc.op == "stream_attention":  # `work` is the forward's, whose products a backward makes, and more
                assert found.seconds >= OPS[desc.op].work(desc, sizes).operations / peak


def test_register_tiles_of_few_rows_or_ragged_rows_cost_more() -> None:
    def clocks(rows: int, vectors: int, *, of: int = 64) -> float:
        schedule = CpuSchedule(register_rows=rows, register_vectors=vectors)
        return cost_cpu.product_clocks(Product(times=1, rows=of, lanes=64, depth=64), schedule, V4)

    exact = 64 * 64 * 64 / 16  # a multiply-add of a vector a clock
    assert clocks(4, 4) == clocks(8, 2) == exact
    assert clocks(2, 4) > exact and clocks(2, 1) > clocks(2, 4)
    assert clocks(6, 4) == exact  # 64 is ten tiles of six rows, and one of four
    assert clocks(6, 4, of=63) > 63 / 64 * exact  # 63 is ten tiles of six rows, one of two and one of one
    # Five vectors: a tile of four, and single ones of four times the rows, not of twice.
    schedule = CpuSchedule(register_rows=2, register_vectors=4)
    assert cost_cpu.product_clocks(Product(times=1, rows=64, lanes=80, depth=64), schedule, V4) == pytest.approx(
        64 * 64 * (4 + 9 / 8 + cost_cpu.NARROW_ROW)
    )
    schedule = CpuSchedule(register_rows=1, register_vectors=4)
    two, six = (
        cost_cpu.product_clocks(Product(times=1, rows=64, lanes=lanes, depth=64), schedule, V4) for lanes in (32, 96)
    )
    assert two == pytest.approx(64 * 64 * (2 + cost_cpu.NARROW_ROW))  # tiles of two rows and two vectors
    assert six == pytest.approx(two + 64 * 64 * (5 + cost_cpu.NARROW_ROW))


def test_small_register_tiles_wait_for_their_operands() -> None:
    product = Product(times=1, rows=48, lanes=64, depth=64)

    def clocks(rows: int, vectors: int, target: CpuTarget) -> float:
        return cost_cpu.product_clocks(product, CpuSchedule(register_rows=rows, register_vectors=vectors), target)

    narrow = CPU_TARGETS["x86_64_v3"]
    exact = 48 * 64 * 64 / 16
    assert clocks(6, 2, narrow) == exact * 8 / 6  # six rows and two vectors for twelve multiply-adds, two a clock
    assert clocks(6, 2, narrow) < clocks(4, 2, narrow) < clocks(4, 1, narrow)
    assert clocks(4, 4, V4) == clocks(4, 2, V4) == exact  # one a clock, twice as wide
    assert clocks(8, 1, V4) == exact * 9 / 8


@pytest.mark.parametrize("visible", [window(512), causal(), complete(32, 16)], ids=str)
@pytest.mark.parametrize(("group", "lanes"), [(16, 64), (3, 16), (1, 128), (40, 16)])
def test_a_backward_of_runs_has_the_tasks_of_its_launch_and_five_products(
    visible: RangeSet, group: int, lanes: int
) -> None:
    forward = KernelDesc.of("stream_attention", "float32", visible=visible, group=group, dk=24, dv=40)
    schedule = CpuSchedule(query_lanes=lanes, key_tile=32)
    sizes = Sizes(batch=2, tokens=700, keys=43 if visible == complete(32, 16) else 700, kv_heads=2)
    by_runs, sums = backward_descs(forward, "cpu")
    check_runs_and_sums(by_runs, sums, schedule, sizes, visible, read=2 * 2 * sizes.keys * (24 + 40))
    found = loop(by_runs, schedule, sizes)
    assert len([p for p in found.products if p.depth]) == 5
    times = sum(p.times * p.rows * p.lanes * p.depth for p in found.products) / (3 * 24 + 2 * 40)
    pairs = 2 * 2 * group * sum(visible.count(t, sizes.keys) for t in range(sizes.tokens))
    assert times >= pairs  # dims, lanes and unions of ranges are padded
    assert predict(sums, schedule, V4, sizes).seconds < predict(by_runs, schedule, V4, sizes).seconds


@pytest.mark.parametrize(("reach", "group"), [("causal", 4), ("all", 20)])
def test_a_gathered_backward_of_runs_has_the_tasks_of_its_launch(reach: str, group: int) -> None:
    forward = KernelDesc.of(
        "gather_attention", "float32", reach=reach, source="packed", block=24, n=3, group=group, dk=24, dv=40
    )
    sizes = Sizes(batch=2, tokens=300, keys=300, kv_heads=2)
    by_runs, sums = backward_descs(forward, "cpu")
    visible = causal() if reach == "causal" else everything()
    packed = 2 * 2 * 13 * (24 * 32 + 40 * 32 + 24 * 32)  # blocks of 24 keys: k and v by columns, and k by rows
    check_runs_and_sums(by_runs, sums, CpuSchedule(), sizes, visible, read=packed)
    assert len(loop(by_runs, CpuSchedule(), sizes).products) == 5


def check_runs_and_sums(
    by_runs: KernelDesc, sums: KernelDesc, schedule: CpuSchedule, sizes: Sizes, visible: RangeSet, *, read: int
) -> None:
    """Hold both loops against what the ops launch on tensors of these sizes; of keys and values, `read` numbers are."""
    group, dk, dv = by_runs.size("group"), by_runs.size("dk"), by_runs.size("dv")
    q = torch.empty(sizes.batch, sizes.tokens, sizes.kv_heads * group, dk)
    k, v = (torch.empty(sizes.batch, sizes.keys, sizes.kv_heads, dim) for dim in (dk, dv))
    call = Call.over(1, q, k, 0)
    runs, launched = runs_of(by_runs, visible, call), run_sums_extent(sums, visible)(call)
    parts = run_parts(launched, k=k, v=v)
    found, added = loop(by_runs, schedule, sizes), loop(sums, schedule, sizes)
    assert found.tasks == sizes.batch * sizes.kv_heads * runs.count and 1 <= found.longest <= runs.count
    assert found.tasks == OPS[by_runs.op].extent(by_runs, schedule)(call).tasks
    assert added.tasks == launched.tasks and not added.products
    kept = sum(x.numel() for x in parts)
    moved = added.passes["added"] - k.numel() - v.numel()
    assert 0 < moved <= kept and added.unique == 4 * (moved + k.numel() + v.numel())
    assert found.unique == 4 * (2 * q.numel() + q.numel() // dk * dv + read + moved)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["x86_64_v4", "x86_64_v4_bf16", "x86_64_amx"])
def test_what_is_fitted_is_what_the_model_predicts(name: str, dtype: str) -> None:
    """Products of pairs are told from others by the target and the type, and go by tiles of their own."""
    target = CPU_TARGETS[name]
    desc = KernelDesc.of("stream_attention", dtype, visible=window(64), group=4, dk=64, dv=64)
    made = record(desc, CpuSchedule(), measured=1.0)
    parts = predict(desc, CpuSchedule(), target, Sizes(**made.sizes)).parts
    terms, constants = fit._terms(made, target), fit.constants()
    assert constants["products"] * terms["products"] == pytest.approx(parts["products"])
    passes = sum(constants[pass_] * terms[pass_] for pass_ in cost_cpu.PASSES)
    assert passes == pytest.approx(parts["passes"])


def test_constants_are_fitted_to_records_and_stay_where_nothing_tells_them_apart() -> None:
    target, truth = V4, {**fit.constants(), "products": 1.5, "weights": 0.6}
    desc = KernelDesc.of("stream_attention", "float32", visible=window(64), group=4, dk=64, dv=64)
    records = []
    for schedule in list(ScheduleSpace.candidates(desc, target))[::3]:
        made = record(desc, schedule, measured=1.0, stage="search")
        seconds_of = sum(truth[name] * term for name, term in fit._terms(made, target).items())
        records.append((replace(made, measured=spread(seconds_of)), target))
    found = fit.fitted(records, pull=1e-4)
    assert found["gelu"] == pytest.approx(fit.constants()["gelu"])  # not a pass of this kernel
    for made, _ in records:
        terms = fit._terms(made, target)
        assert made.measured is not None
        assert sum(found[n] * terms[n] for n in terms) == pytest.approx(made.measured.median, rel=0.03)
    assert fit.fitted([]) == fit.constants()
