"""Emitted GPU kernels on the executor: values and gradients against float64, and what must hold bit for bit.

Nothing here runs on a GPU; docs/executor.md says what a pass means. Every launch raises `ExecutionError` if the
executor finds anything. This is the quick part of `make conformance`, with properties beyond it.
"""

import math

import pytest
import torch
from cases import nan_filled, widened
from judges import assert_accurate, assert_selected, compare_gradients

from nsa_codegen import dispatch, functional
from nsa_codegen.conformance import CASES, ORDERS, TARGETS, check, run_op
from nsa_codegen.conformance.cases import LATE, LONG_COMPRESSED, LONG_LISTS, RAGGED, SHIPPED, TILES
from nsa_codegen.conformance.check import has_backward
from nsa_codegen.conformance.on_gpu import row_of
from nsa_codegen.conformance.results import merged
from nsa_codegen.desc import KernelDesc, takes_lse
from nsa_codegen.device import emulated
from nsa_codegen.errors import InputError
from nsa_codegen.index_sets import complete
from nsa_codegen.needed import backward_descs
from nsa_codegen.ops import OPS
from nsa_codegen.splits import is_split, piece_of, splits_of
from nsa_codegen.target import GPU_TARGETS

ARCHES = ("sm_80", "sm_90a", "sm_120a")
ATTENTIONS = ("stream_attention", "gather_attention")
GROUP_4 = [case for case in CASES if case.desc.op in ATTENTIONS and case.desc.size("group") == 4]
WINDOW = GROUP_4[0].desc
GATHER = next(case.desc for case in GROUP_4 if case.desc.op == "gather_attention")


def chosen():
    """The first case of every op on each architecture; each of the others on one, in turn."""
    found, seen_ops, turn = [], set(), 0
    for case in CASES:
        desc = case.desc
        if desc.op not in seen_ops:
            arches = ARCHES
        else:
            arches, turn = ARCHES[turn % 3 : turn % 3 + 1], turn + 1
        seen_ops.add(desc.op)
        found += [pytest.param(case, arch, id=f"{desc.op}-{desc.readable}-{arch}") for arch in arches]
    return found


@pytest.fixture
def on(cache):
    """Return `emulated` by the name of the target, with the tests' cache."""
    return lambda arch, **options: emulated(GPU_TARGETS[arch], cache=cache, **options)


def draw_inputs(desc, sizes, seed=0):
    return OPS[desc.op].make_inputs(desc, sizes, torch.Generator().manual_seed(seed))


def drawn_gradients(outputs, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=generator).to(x.dtype) for x in outputs]


def attend(desc, values, gradients=None):
    """Return out, lse and the gradients of q, k and v for `gradients` of out and lse, or drawn ones."""
    leaves = {name: values[name].clone().requires_grad_() for name in ("q", "k", "v")}
    with nan_filled():
        out, lse = run_op(desc, {**values, **leaves})
        given = gradients or drawn_gradients((out, lse))
        grads = torch.autograd.grad((out, lse), list(leaves.values()), given)
    return out.detach(), lse.detach(), *grads


def assert_same_bits(one, other):
    for i, (x, y) in enumerate(zip(one, other, strict=True)):
        assert torch.equal(x, y), f"output {i} differs in {int((x != y).sum())} of {x.numel()} places"


def test_the_cases_cover_what_issue_5_lists():
    attentions = [case for case in CASES if case.desc.op in ATTENTIONS]
    for op in ATTENTIONS:
        assert {c.desc.size("group") for c in attentions if c.desc.op == op} >= {1, 4, 16}
        assert any(c.desc.size("dk") != c.desc.size("dv") for c in attentions if c.desc.op == op)
    assert {case.desc.op for case in CASES} == {op.name for op in OPS.values() if op.prepare_gpu is not None}
    assert {case.desc.dtype for case in CASES} == {"float16", "bfloat16"}
    assert {"sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"} == set(TARGETS)
    assert len(ORDERS) == 5
    sizes = {s for case in CASES for s in case.sizes}
    assert {1, 33, 70} <= {s.tokens for s in sizes} and {1, 2} == {s.batch for s in sizes}
    assert any(s.q_start > 0 for s in sizes)


@pytest.mark.parametrize("case, arch", chosen())
def test_values_and_gradients_agree_with_float64(on, case, arch):
    """Against kf01 (small groups), kf04 (wrong numbers), kf07 (fewer queries than keys), kf10 (short sequences)."""
    desc = case.desc
    for seed, sizes in enumerate(case.sizes):
        values, (order, number) = draw_inputs(desc, sizes, seed), ORDERS[seed % len(ORDERS)]
        with on(arch, order=order, seed=number) as emulation:
            if desc.op == "select_blocks":
                with nan_filled():
                    (got,) = run_op(desc, values)
                compare_selection(desc, sizes, values, got)
            elif not has_backward(desc):
                with nan_filled():
                    (got,) = run_op(desc, values)
                (eager,), (exact,) = (OPS[desc.op].reference(desc, **v) for v in (values, widened(values)))
                assert_accurate(got, eager, exact, f"{desc} {sizes}")
            else:
                compare(desc, sizes, values)
        ran = {launch.desc for launch in emulation.launches}
        assert ran == {desc, *(backward_descs(desc, "cuda") if has_backward(desc) else ())}


def compare(desc, sizes, values):
    """Require accurate outputs and gradients, whatever the values are that have gradients."""
    flat = dict(values)
    if desc.op == "combine":
        flat = {**{f"o{i}": o for i, o in enumerate(values["outs"])}, "gates": values["gates"]}

    def run(impl, given):
        if desc.op == "combine":
            given = {"outs": [x for name, x in given.items() if name.startswith("o")], "gates": given["gates"]}
        return run_op(desc, given) if impl == "compiled" else OPS[desc.op].reference(desc, **given)

    compare_gradients(run, flat, f"{desc} {sizes}")


def compare_selection(desc, sizes, values, got):
    """Require the blocks `got` to be those of the desc's selection, but for scores that are equal or nearly so."""
    q, k, block = values["q"], values["k"], desc.size("block")
    if desc.word("method") == "mean_key":  # keys whose block means are k
        missing = sizes.keys - k.shape[1] * block
        k = torch.cat([k.repeat_interleave(block, dim=1), k.new_zeros(k.shape[0], missing, *k.shape[2:])], dim=1)
        windows, terms = {}, 2
    else:
        windows = {"kernel": desc.size("kernel"), "stride": desc.size("stride")}
        terms = block // desc.size("stride") * (desc.size("kernel") // desc.size("stride")) * desc.size("group")
    assert_selected(
        got, q, k, terms, method=desc.word("method"), block_size=block, num_selected=desc.size("n"),
        num_initial=desc.size("initial"), num_local=desc.size("local"), scale=values["scale"],
        q_start=sizes.q_start, **windows,
    )  # fmt: skip


def test_a_program_lists_blocks_by_the_weights_of_its_attention(on):
    """The selection takes the log-sum-exp that the attention over compressed tokens left, and passes over them once."""
    desc = next(case.desc for case in CASES if takes_lse(case.desc))
    values = draw_inputs(desc, TILES, 5)
    q, k, v, scale = values["q"], values["k"], values["k"].flip(1), values["scale"]
    sizes = (desc.size(name) for name in ("block", "n", "initial", "local", "kernel", "stride"))
    with on("sm_90a", order="random", seed=2) as emulation, nan_filled():
        *got, indices = torch.ops.nsa_codegen.scored_attention(q, k, v, *sizes, scale, 0)
    visible = complete(desc.size("kernel"), desc.size("stride"))
    attention = KernelDesc.of("stream_attention", desc.dtype, visible=visible, group=4, dk=32, dv=32)
    assert [launch.desc for launch in emulation.launches] == [attention, desc]
    compare_selection(desc, TILES, values, indices)
    eager, exact = (
        OPS["stream_attention"].reference(attention, q=x["q"], k=x["k"], v=x["k"].flip(1), q_start=0, scale=scale)
        for x in (values, widened(values))
    )
    for name, *triple in zip(("out", "lse"), got, eager, exact, strict=True):
        assert_accurate(*triple, f"{name} of {attention}")


def test_wide_heads_are_copied_in_parts(on):
    """The forward of the paper's selected attention on sm_90a: a tile of 192 columns takes three bulk copies."""
    desc = next(c.desc for c in SHIPPED if c.desc.op == "gather_attention" and c.desc.size("dk") == 192)
    values = draw_inputs(desc, TILES)
    for order, seed in (("forward", 0), ("random", 1)):
        with on("sm_90a", order=order, seed=seed), nan_filled():
            got = run_op(desc, values)
        eager, exact = (OPS[desc.op].reference(desc, **v) for v in (values, widened(values)))
        for name, *triple in zip(("out", "lse"), got, eager, exact, strict=True):
            assert_accurate(*triple, f"{name} of {desc}, {order}")


def test_rows_that_run_again_take_the_place_of_their_former_ones():
    kept = [{"target": t, "desc": d, "run": 1} for t in ("sm_80", "sm_90a") for d in ("a", "b")]
    found = [{"target": "sm_90a", "desc": "a", "run": 2}, {"target": "sm_89", "desc": "a", "run": 2}]
    rows = [(row["target"], row["desc"], row["run"]) for row in merged(kept, found)]
    assert rows == [("sm_80", "a", 1), ("sm_80", "b", 1), ("sm_89", "a", 2), ("sm_90a", "b", 1), ("sm_90a", "a", 2)]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("desc", [WINDOW, GATHER], ids=lambda d: d.op)
def test_equal_bits_in_every_order_and_batch_row(on, desc, arch):
    """Against kf09: atomics, or sums whose order depends on who comes first, make two trainings differ."""
    values = draw_inputs(desc, RAGGED, 11)
    with on(arch):
        first = attend(desc, values)
    for order, seed in (("reverse", 0), ("random", 5), ("random", 6)):
        with on(arch, order=order, seed=seed):
            assert_same_bits(attend(desc, values), first)
    swapped = {n: x.flip(0) if isinstance(x, torch.Tensor) else x for n, x in values.items()}
    for name in ("q", "k", "v"):
        assert not torch.equal(values[name][0], values[name][1])
    doubled = {n: x[:1].repeat(2, 1, 1, 1) if isinstance(x, torch.Tensor) else x for n, x in values.items()}
    with on(arch):
        out, lse = run_op(desc, swapped)
        assert_same_bits((out.flip(0), lse.flip(0)), first[:2])
        twice = run_op(desc, doubled)
        assert_same_bits([x[1] for x in twice], [x[0] for x in twice])
        assert_same_bits([x[0] for x in twice], [x[0] for x in first[:2]])


@pytest.mark.parametrize("sizes", [LONG_COMPRESSED, LONG_LISTS], ids=["compressed", "lists"])
def test_gradients_of_keys_that_many_share_have_equal_bits_in_every_order_and_batch_row(on, sizes):
    """Against kf09 and kf12: thread blocks share the queries that see a key, and their sums are added in one order."""
    desc = next(case.desc for case in CASES if sizes in case.sizes)
    values = draw_inputs(desc, sizes, 11)
    if desc.op == "gather_attention":
        piece = piece_of(listed=desc.size("n"), block=desc.size("block"), group=desc.size("group"))
        lists = values["block_indices"]
        assert all(int((lists == j).any(dim=-1).sum()) > piece for j in range(3))
    else:
        assert is_split(desc.streamed)
        assert splits_of(tokens=sizes.tokens, keys=sizes.keys, group=desc.size("group")) > 2
    with on("sm_90a"):
        first = attend(desc, values)
    for order, seed in (("reverse", 0), ("random", 5)):
        with on("sm_90a", order=order, seed=seed):
            assert_same_bits(attend(desc, values), first)
    alone = {n: x[:1] if isinstance(x, torch.Tensor) else x for n, x in values.items()}
    with on("sm_90a"):
        row = attend(desc, alone, [x[:1] for x in drawn_gradients(first[:2])])
    assert_same_bits(row, [x[:1] for x in first])


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("desc", [WINDOW, GATHER], ids=lambda d: d.op)
def test_a_later_token_changes_nothing_before_it(on, desc, arch):
    """Against kf05: the future leaks. Tokens from 40 on get infinite keys and large values; none has a gradient.

    Infinite values are left out: 0 times infinity is NaN, in eager torch as well.
    """
    values = draw_inputs(desc, TILES, 12)
    changed = {n: x.clone() if isinstance(x, torch.Tensor) else x for n, x in values.items()}
    changed["k"][:, 40:] = math.inf
    changed["v"][:, 40:] = draw_inputs(desc, TILES, 13)["v"][:, 40:] * 100
    with on(arch):
        leaves = {n: values[n].clone().requires_grad_() for n in ("q", "k", "v")}
        out, lse = run_op(desc, {**values, **leaves})
        grads = torch.autograd.grad((out[:, :40].float().sum() + seen(lse[:, :40]).sum()), list(leaves.values()))
        for x in grads:
            assert bool((x[:, 40:] == 0).all())
            assert bool((x[:, :40] != 0).any())
        other = run_op(desc, changed)
        assert_same_bits([x[:, :40] for x in other], [x[:, :40].detach() for x in (out, lse)])
        assert not torch.equal(other[0][:, 40:], out[:, 40:])


def seen(lse):
    return torch.where(lse.isfinite(), lse, 0.0)


@pytest.mark.parametrize("arch", ARCHES)
def test_a_query_without_keys_gives_zero_and_takes_no_gradient(on, arch):
    """Against kf06 (NaN in empty rows) and kf17 (-1 read as block 0)."""
    values = draw_inputs(GATHER, RAGGED, 14)
    lists = values["block_indices"]
    lists[:, 5] = -1
    lists[:, 6] = 2  # begins after its query
    with on(arch):
        out, lse, dq, dk, dv = attend(GATHER, values)
        rest = [t for t in range(33) if t not in (5, 6)]
        for x in (out, dq):
            assert bool((x[:, 5:7] == 0).all())
        assert bool((lse[:, 5:7] == -math.inf).all())
        assert not any(bool(x.isnan().any()) for x in (out, lse, dq, dk, dv))
        # The same as if these queries were not there: no part of their gradients reaches the keys.
        dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).half()
        dlse = torch.zeros_like(lse)
        options = (GATHER.size("block"), True, 0, values["scale"])
        tensors = (*(values[n] for n in ("q", "k", "v", "block_indices")), out, lse)
        backward = torch.ops.nsa_codegen.gather_attention_backward
        one = backward(*tensors, dout, dlse, *options)
        dout[:, 5:7] = 1000
        two = backward(*tensors, dout, dlse, *options)
        assert_same_bits(one, two)
        dout[:, rest] *= 2
        assert not torch.equal(backward(*tensors, dout, dlse, *options)[1], one[1])


@pytest.mark.parametrize("arch", ARCHES)
def test_indices_out_of_range_and_duplicates_add_nothing(on, arch):
    """Against kf03 and kf17. Checking indices would wait for a GPU; there, what is no block has to add nothing."""
    values = draw_inputs(GATHER, RAGGED, 15)
    plain = values["block_indices"]
    plain[:, :, :, 1:] = -1
    blocks = -(-RAGGED.keys // GATHER.size("block"))
    wild = plain.long()  # the greatest of them are 0 if they are cut to 32 bits
    wild[:, 0::3, :, 1] = blocks
    wild[:, 1::3, :, 2] = 2**32
    wild[:, 2::3, :, 3] = -(2**32)
    doubled = plain.clone()
    doubled[:, 1::2, :, 2] = plain[:, 1::2, :, 0]
    doubled[:, :, :, 3] = plain[:, :, :, 0]
    with on(arch):
        found = [attend(GATHER, {**values, "block_indices": lists}) for lists in (plain, wild, doubled)]
    assert bool((found[0][0] != 0).any())
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


def test_in_debug_mode_an_index_out_of_range_is_an_error(on, monkeypatch):
    """Also the number of blocks itself, and on the CPU in any mode."""
    values = draw_inputs(GATHER, RAGGED, 15)
    blocks = -(-RAGGED.keys // GATHER.size("block"))
    monkeypatch.setattr(dispatch, "DEBUG", True)
    for bad in (blocks, -2):
        values["block_indices"][1, 7, 0, 2] = bad
        message = f"block_indices holds {bad}; allowed are -1 .no block. and 0 .. {blocks - 1}"
        with on("sm_80"), pytest.raises(InputError, match=message):
            run_op(GATHER, values)
        with pytest.raises(InputError, match=message):
            run_op(GATHER, values)
    monkeypatch.setattr(dispatch, "DEBUG", False)
    with pytest.raises(InputError, match=message):
        run_op(GATHER, values)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_window_of_w_is_w_tokens(on, arch):
    """Against kf18: w+1 tokens. With equal keys a value that stands out adds 1/w of itself, for w queries."""
    q, k = torch.zeros(1, 70, 4, 32).half(), torch.zeros(1, 70, 1, 32).half()
    v = torch.zeros(1, 70, 1, 16).half()
    v[:, 30] = 1
    with on(arch):
        out, _ = functional.window_attention(q, k, v, window_size=20, impl="compiled")
    expected = torch.zeros(70)
    expected[30:50] = 1 / 20
    torch.testing.assert_close(out[0, :, 0, 0].float(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_late_queries_are_the_last_of_all(on, arch):
    """Against kf07: 5 queries at the end of 83 keys give what they give among all."""
    values = draw_inputs(WINDOW, LATE, 16)
    q = torch.cat([draw_inputs(WINDOW, LATE, 17)["q"][:, :1].repeat(1, 78, 1, 1), values["q"]], dim=1)
    with on(arch):
        late = run_op(WINDOW, values)
        whole = run_op(WINDOW, {**values, "q": q, "q_start": 0})
    for x, y in zip(late, whole, strict=True):
        torch.testing.assert_close(x, y[:, 78:], rtol=2e-3, atol=2e-3)


def test_the_check_of_conformance_sees_wrong_results(cache, monkeypatch):
    """Not every check passes: an output off by one part in a hundred, NaN or a lost gradient is seen."""
    desc = next(case.desc for case in CASES if case.desc.op == "combine")
    target = GPU_TARGETS["sm_90a"]
    assert check(desc, RAGGED, target, cache=cache).passed
    real = dispatch._run_gpu

    def damaged(factor):
        def run(desc, *arguments, **options):
            outputs = real(desc, *arguments, **options)
            return tuple(x * factor if x.dtype == torch.float16 else x for x in outputs)

        return run

    for factor in (1.01, math.nan, 0.0):
        monkeypatch.setattr(dispatch, "_run_gpu", damaged(factor))
        outcome = check(desc, RAGGED, target, cache=cache)
        assert outcome.failure is None and not outcome.passed
        assert {a.kind for a in outcome.accuracies if not a.passed} == {"combine_fwd", "combine_bwd"}


def test_the_run_on_a_gpu_sees_what_the_executor_sees(on, monkeypatch):
    """Here over tensors of the CPU: an output that is not written, and bits that differ from run to run."""
    case, cpu = next(case for case in CASES if case.desc.op == "combine"), torch.device("cpu")
    real, calls = dispatch._run_gpu, []

    def damaged(change):
        def run(desc, *arguments, **options):
            calls.append(desc)
            return tuple(change(x) for x in real(desc, *arguments, **options))

        return run

    def another_bit(x):
        return torch.where(x == x.max(), x * (1 + 2**-10), x) if len(calls) > 2 else x

    with on("sm_90a"):
        row = row_of(case, RAGGED, cpu)
        assert row["passed"] and row["same_bits"]
        monkeypatch.setattr(dispatch, "_run_gpu", damaged(torch.empty_like))
        assert not row_of(case, RAGGED, cpu)["passed"]
        calls.clear()
        monkeypatch.setattr(dispatch, "_run_gpu", damaged(another_bit))
        row = row_of(case, RAGGED, cpu)
        assert not row["passed"] and not row["same_bits"]
        assert all(error <= allowed for error, _, allowed in row["errors"].values())
