"""What must hold exactly: causality, invariance to batch, threads and length, empty rows, ties, and determinism."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SPEC_KERNELS, SPECS, draw, draw_exact, make_inputs, nsa, nsa_inputs
from judges import assert_accurate
from torch import Tensor

from nsa_codegen import dispatch, functional, reference
from nsa_codegen.desc import KernelDesc
from nsa_codegen.index_sets import causal, first, window
from nsa_codegen.needed import pack_descs
from nsa_codegen.ops import Sizes
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import TARGETS, runs_here

ODD = {"dk": 20, "dv": 36}  # dims that fill no vectors
SINK = first(5) | window(30)


def odd_descs(group: int) -> list[KernelDesc]:
    """Return two streamed attentions, a gathered one, and one that scores blocks."""
    streamed = [dispatch.stream_desc(visible.text, "float32", group, **ODD) for visible in (causal(), SINK)]
    gathered = dispatch.gather_desc("float32", group, **ODD, block=12, n=3, causal=True, source="plain")
    scored = {"method": "compressed", "block": 12, "n": 3, "initial": 1, "local": 1, "kernel": 8, "stride": 4}
    return [*streamed, gathered, KernelDesc.of("scored_attention", "float32", group=group, **ODD, **scored)]


KERNELS = [*SPEC_KERNELS, *odd_descs(1), *odd_descs(3)]
specs = pytest.mark.parametrize("name", SPECS)
TOKENS = 130
CUTS = (0, 1, 15, 16, 31, 47, 64, 100, TOKENS - 1)


def with_gradients(spec: NSASpec, x: dict[str, Tensor], dout: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in x.items()}
    out = nsa(spec, leaves)
    dout = draw(*out.shape, seed=9, dtype=out.dtype) if dout is None else dout
    return out.detach(), list(torch.autograd.grad(out, list(leaves.values()), dout))


def same(one: Any, other: Any) -> bool:
    """Return whether two tensors, or lists of them, are equal bit for bit."""
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    return all(same(a, b) for a, b in zip(one, other, strict=True))


@specs
def test_kf05_later_inputs_have_no_gradient_from_earlier_outputs(name: str) -> None:
    """Exactly 0, at positions inside and at the ends of blocks and windows."""
    spec, x = nsa_inputs(name, TOKENS)
    for t in CUTS:
        dout = torch.zeros(2, TOKENS, spec.num_heads, spec.dv, dtype=x["q"].dtype)
        dout[:, t] = draw(2, spec.num_heads, spec.dv, seed=4).to(dout.dtype)
        _, (dq, dk, dv, _) = with_gradients(spec, x, dout)
        assert not bool(dq[:, t + 1 :].any())
        assert not bool(dq[:, :t].any())
        assert not bool(dk[:, t + 1 :].any())
        assert not bool(dv[:, t + 1 :].any())
        assert bool(dv[:, t].any())


@specs
def test_kf05_later_inputs_do_not_change_earlier_outputs(name: str) -> None:
    """Bit for bit, selection included: other values, great values, and another number of positions after t."""
    spec, x = nsa_inputs(name, TOKENS)
    before = nsa(spec, x)
    for t in CUTS[:-1]:
        for factor in (1.0, 1000.0):
            changed = dict(x)
            for part in ("q", "k", "v"):
                tail = draw(*x[part][:, t + 1 :].shape, seed=77, dtype=x[part].dtype) * factor
                changed[part] = torch.cat([x[part][:, : t + 1], tail], dim=1)
            assert torch.equal(nsa(spec, changed)[:, : t + 1], before[:, : t + 1]), t


@specs
def test_a_longer_sequence_starts_with_the_shorter_ones_outputs(name: str) -> None:
    spec, x = nsa_inputs(name, TOKENS)
    whole = nsa(spec, x)
    for t in (1, 2, 16, 17, 63, 64, 65, 100):
        short = {part: value if part == "gates" and value.dim() == 1 else value[:, :t] for part, value in x.items()}
        assert torch.equal(nsa(spec, short), whole[:, :t]), t


@specs
def test_a_batch_row_does_not_depend_on_the_others(name: str) -> None:
    """Outputs and gradients of a row alone equal its part of a batch bit for bit; shared gates' gradients are sums."""
    spec, x = nsa_inputs(name, TOKENS, batch=3)
    out, grads = with_gradients(spec, x)
    dout = draw(*out.shape, seed=9, dtype=out.dtype)
    for b in range(3):
        row = {part: value if value.dim() == 1 else value[b : b + 1] for part, value in x.items()}
        alone, alone_grads = with_gradients(spec, row, dout[b : b + 1])
        assert torch.equal(alone, out[b : b + 1])
        for part, one, all_rows in zip(x, alone_grads, grads, strict=True):
            assert (part == "gates" and one.dim() == 1) or torch.equal(one, all_rows[b : b + 1]), part


@specs
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_stay_in_their_batch_row(name: str, bad: float) -> None:
    spec, x = nsa_inputs(name, 50, batch=3)
    out, grads = with_gradients(spec, x)
    for part in ("q", "k", "v"):
        spoilt = {**x, part: x[part].clone()}
        spoilt[part][1] = bad
        got, got_grads = with_gradients(spec, spoilt)
        for b in (0, 2):
            assert torch.equal(got[b], out[b])
            for one, other in zip(got_grads, grads, strict=True):
                assert one.dim() == 1 or torch.equal(one[b], other[b])


@specs
def test_kf09_two_runs_are_equal_bit_for_bit(name: str) -> None:
    spec, x = nsa_inputs(name, TOKENS)
    torch.set_num_threads(2)
    assert same(with_gradients(spec, x), with_gradients(spec, x))


@specs
def test_kf09_the_number_of_threads_does_not_matter(name: str) -> None:
    spec, x = nsa_inputs(name, TOKENS)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(with_gradients(spec, x))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@specs
def test_saving_for_backward_changes_no_bit(name: str) -> None:
    spec, x = nsa_inputs(name, TOKENS)
    with torch.no_grad():
        plain = nsa(spec, x)
    assert torch.equal(plain, with_gradients(spec, x)[0])


Attention = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def attentions(spec: NSASpec, tokens: int) -> dict[str, Attention]:
    """Return the three paths as functions of q, k, v and the position of the first query."""
    n = spec.num_selected_blocks
    lists = torch.randint(
        -1, -(-tokens // spec.block_size), (2, tokens, spec.kv_heads, n), generator=torch.Generator().manual_seed(3)
    )

    def compressed(q: Tensor, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        return functional.compressed_attention(
            q, k, v, kernel=spec.kernel, stride=spec.stride, q_start=start, impl="compiled"
        )

    def selected(q: Tensor, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        chosen = lists[:, start : start + q.shape[1]]
        return functional.selected_attention(
            q, k, v, chosen, block_size=spec.block_size, q_start=start, impl="compiled"
        )

    def window(q: Tensor, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        return functional.window_attention(q, k, v, window_size=spec.window_size, q_start=start, impl="compiled")

    return {"compressed": compressed, "selected": selected, "window": window}


@specs
@pytest.mark.parametrize("path", ["compressed", "selected", "window"])
def test_kf07_decoding_with_a_cache_equals_the_row_of_the_full_run(name: str, path: str) -> None:
    """One query at a time, or a few: bit-equal where keys are taken from their beginning or by block.

    The window of a lone query starts at another key than that of its tile, so its sums are cut elsewhere: it agrees to
    rounding.
    """
    spec, x = nsa_inputs(name, TOKENS)
    attend = attentions(spec, TOKENS)[path]
    full = attend(x["q"], x["k"], x["v"], 0)
    for t, count in ((0, 1), (1, 2), (17, 1), (19, 3), (64, 1), (70, 4), (99, 5), (TOKENS - 1, 1)):
        rows = attend(x["q"][:, t : t + count], x["k"], x["v"], t)
        for few, other in zip(rows, full, strict=True):
            if path == "window":
                unit = torch.finfo(few.dtype).eps
                torch.testing.assert_close(few, other[:, t : t + count], rtol=4 * unit, atol=16 * unit)
            else:
                assert torch.equal(few, other[:, t : t + count]), (t, count)


@pytest.mark.parametrize(("group", "kv_heads"), [(1, 9), (3, 2)])
def test_kf07_few_queries_of_dims_that_fill_no_vectors(group: int, kv_heads: int, kernels: Path) -> None:
    """Bit-equal to those of a full run; over two ranges, where sums are cut elsewhere, as near to float64.

    With nine heads in each of two batch rows some pass over their keys together, also of both rows.
    """
    heads = group * kv_heads
    q, k, v = (draw(2, TOKENS, n, d, seed=i) for i, (n, d) in enumerate(((heads, 20), (kv_heads, 20), (kv_heads, 36))))
    lists = torch.randint(-1, 11, (2, TOKENS, kv_heads, 3), generator=torch.Generator().manual_seed(5)).int()
    streamed, sink, gathered, scored = odd_descs(group)

    def run(t: int, count: int) -> tuple[tuple[Tensor, ...], ...]:
        given = {"q": q[:, t : t + count].contiguous(), "k": k, "v": v, "q_start": t, "scale": 0.3}
        listed = lists[:, t : t + count].contiguous()
        plain, other = (dispatch.run(desc, **given) for desc in (streamed, sink))
        by_block = dispatch.run(gathered, **given, block_indices=listed)
        return (*plain, *by_block, *dispatch.run(scored, **given)), other

    whole, _ = run(0, TOKENS)
    eager, exact = (
        reference.stream_attention(*(x.to(dtype) for x in (q, k, v)), SINK, q_start=0, scale=0.3)
        for dtype in (torch.float32, torch.float64)
    )
    for t in range(0, TOKENS - 7, 7):
        for count in (1, 2, 4, 7):
            few, other = run(t, count)
            assert same(few, tuple(x[:, t : t + count] for x in whole)), (t, count)
            for got, near, wanted in zip(other, eager, exact, strict=True):
                assert_accurate(got, near[:, t : t + count], wanted[:, t : t + count], f"{t}, {count}", term=1.0)


@specs
def test_kf07_selection_of_one_query_equals_the_row_of_the_full_run(name: str) -> None:
    spec, x = nsa_inputs(name, TOKENS)
    options: dict[str, Any] = {
        "method": spec.selection, "block_size": spec.block_size, "num_selected": spec.num_selected_blocks,
        "num_initial": spec.num_initial_blocks, "num_local": spec.num_local_blocks, "impl": "compiled",
    }  # fmt: skip
    k = x["k"]
    if spec.selection == "compressed":
        options |= {"kernel": spec.kernel, "stride": spec.stride}
        k = k[:, : (TOKENS - spec.kernel) // spec.stride + 1]
    full = functional.select_blocks(x["q"], k, q_start=0, **options)
    for t in (0, 1, 17, 64, 99, TOKENS - 1):
        row = functional.select_blocks(x["q"][:, t : t + 1], k, q_start=t, **options)
        assert torch.equal(row, full[:, t : t + 1]), t


@specs
def test_kf06_rows_that_see_nothing_give_zero_and_minus_infinity(name: str) -> None:
    """And no gradient, also where lse, which is -inf, is given one: compressed before the first window, lists of -1."""
    spec, x = nsa_inputs(name, 40)
    length = (40 - spec.kernel) // spec.stride + 1
    lists = torch.full((2, 40, spec.kv_heads, spec.num_selected_blocks), -1, dtype=torch.int32)
    lists[:, 30:, :, 1] = 0
    first = {"compressed": spec.kernel - 1, "selected": 30}
    for path, begin in first.items():
        q, k, v = (x[part].detach().clone().requires_grad_() for part in ("q", "k", "v"))
        if path == "compressed":
            k, v = (y.detach()[:, :length].clone().requires_grad_() for y in (k, v))
            out, lse = functional.compressed_attention(q, k, v, kernel=spec.kernel, stride=spec.stride, impl="compiled")
        else:
            out, lse = functional.selected_attention(q, k, v, lists, block_size=spec.block_size, impl="compiled")
        assert not bool(out[:, :begin].any())
        assert bool((lse[:, :begin] == -math.inf).all())
        assert bool(lse[:, begin:].isfinite().all())
        given = (torch.ones_like(out), torch.ones_like(lse))
        grads = torch.autograd.grad((out, lse), (q, k, v), given, retain_graph=True)
        assert all(bool(g.isfinite().all()) for g in grads)
        assert not bool(grads[0][:, :begin].any())
        dlse = torch.ones_like(lse)
        dlse[:, :begin] = 0
        wanted = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), dlse), retain_graph=True)
        for unwanted in (math.nan, math.inf, -math.inf):  # as merging with an empty part of other keys gives
            dlse[:, :begin] = unwanted
            grads = torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), dlse), retain_graph=True)
            assert all(torch.equal(one, other) for one, other in zip(grads, wanted, strict=True)), unwanted
        only = torch.zeros_like(out)
        only[:, :begin] = 1
        out, lse = (
            functional.compressed_attention(q, k, v, kernel=spec.kernel, stride=spec.stride, impl="compiled")
            if path == "compressed"
            else functional.selected_attention(q, k, v, lists, block_size=spec.block_size, impl="compiled")
        )
        for g in torch.autograd.grad(out, (q, k, v), only):
            assert not bool(g.any())


@specs
def test_kf10_no_compressed_token_at_all(name: str) -> None:
    spec, x = nsa_inputs(name, min(5, SPECS[name][0].kernel - 1))
    q, k, v = (x[part].detach().requires_grad_() for part in ("q", "k", "v"))
    out, lse = functional.compressed_attention(
        q, k[:, :0], v[:, :0], kernel=spec.kernel, stride=spec.stride, impl="compiled"
    )
    assert not bool(out.any())
    assert bool((lse == -math.inf).all())
    (dq,) = torch.autograd.grad(out.sum(), q)
    assert not bool(dq.any())


@specs
def test_kf09_ties_go_to_the_lower_block(name: str) -> None:
    """All keys equal: every past block has the same score, or, with windows that cross blocks, those of the middle."""
    spec, x = nsa_inputs(name, TOKENS)
    options: dict[str, Any] = {
        "method": spec.selection, "block_size": spec.block_size, "num_selected": spec.num_selected_blocks,
        "num_initial": spec.num_initial_blocks, "num_local": spec.num_local_blocks,
    }  # fmt: skip
    if spec.selection == "compressed":
        options |= {"kernel": spec.kernel, "stride": spec.stride, "q_start": 0}
        k = torch.ones_like(x["k"])[:, : (TOKENS - spec.kernel) // spec.stride + 1]
    else:
        k = torch.ones_like(x["k"])
    got = functional.select_blocks(x["q"], k, impl="compiled", **options)
    room = spec.num_selected_blocks - spec.num_initial_blocks - spec.num_local_blocks
    for t in range(TOKENS):
        own = t // spec.block_size
        forced = {j for j in range(own + 1) if j < spec.num_initial_blocks or j > own - spec.num_local_blocks}
        free = [j for j in range(own) if j not in forced]
        scores = dict.fromkeys(free, 0)
        if spec.selection == "compressed":  # strides of the block's tokens that visible windows cover
            seen = [i for i in range(k.shape[1]) if i * spec.stride + spec.kernel - 1 <= t]
            for j in free:
                tokens = set(range(j * spec.block_size, (j + 1) * spec.block_size))
                scores[j] = sum(len(tokens & set(range(i * spec.stride, i * spec.stride + spec.kernel))) for i in seen)
        best = sorted(free, key=lambda j: (-scores[j], j))[: max(0, room)]
        assert [j for j in got[0, t, 0].tolist() if j >= 0] == sorted(forced | set(best)), t


@specs
def test_kf04_a_key_that_every_query_chose_gathers_all_gradients(name: str) -> None:
    """Every list holds block 0, first, last or in the middle: its keys' gradients are the sum over the queries."""
    spec, x = nsa_inputs(name, TOKENS)
    n, blocks = spec.num_selected_blocks, -(-TOKENS // spec.block_size)
    lists = torch.randint(1, blocks, (2, TOKENS, spec.kv_heads, n), generator=torch.Generator().manual_seed(1))
    lists[:, torch.arange(TOKENS), :, torch.arange(TOKENS) % n] = 0
    dout = draw(2, TOKENS, spec.num_heads, spec.dv, seed=2, dtype=x["q"].dtype)

    def grads(begin: int, end: int) -> list[Tensor]:
        q, k, v = (x[part].detach().clone().requires_grad_() for part in ("q", "k", "v"))
        out, _ = functional.selected_attention(q, k, v, lists, block_size=spec.block_size, impl="compiled")
        masked = torch.zeros_like(dout)
        masked[:, begin:end] = dout[:, begin:end]
        return [g.double() for g in torch.autograd.grad(out, (k, v), masked)]

    whole = grads(0, TOKENS)
    parts = [grads(t, t + 1) for t in range(TOKENS)]
    for i, total in enumerate(whole):
        summed, absolute = sum(p[i] for p in parts), sum(p[i].abs() for p in parts)
        eps = torch.finfo(x["q"].dtype).eps  # of the parts as they were rounded, and of a float32 sum in any order
        error = (total - summed).abs()[:, : spec.block_size]
        assert bool((error <= (eps + TOKENS * 2.0**-24) * absolute[:, : spec.block_size] + 2.0**-24).all())
    assert all(bool(dv[:, 0].any()) for _, dv in parts), "a query without its part in key 0"


@specs
def test_gradients_of_keys_that_nobody_sees_are_exactly_zero(name: str) -> None:
    spec, x = nsa_inputs(name, TOKENS)
    block = spec.block_size
    chosen = [0, 2]
    lists = torch.full((2, TOKENS, spec.kv_heads, spec.num_selected_blocks), -1, dtype=torch.int32)
    lists[..., 0], lists[..., 1] = 2, 0
    q, k, v = (x[part].detach().clone().requires_grad_() for part in ("q", "k", "v"))
    out, lse = functional.selected_attention(q, k, v, lists, block_size=block, impl="compiled")
    grads = torch.autograd.grad((out, lse), (k, v), (torch.ones_like(out), torch.ones_like(lse)))
    held = torch.tensor([j // block in chosen for j in range(TOKENS)])
    for g in grads:
        assert not bool(g[:, ~held].any())
        assert bool(g[:, held].abs().flatten(2).amax(-1).bool().all())


@specs
def test_packed_and_plain_sources_are_equal_bit_for_bit(name: str) -> None:
    spec, dtype = SPECS[name]
    dims = {
        "group": spec.group, "dk": spec.head_dim, "dv": spec.dv, "block": spec.block_size,
        "n": spec.num_selected_blocks,
    }  # fmt: skip
    descs = [
        KernelDesc.of("gather_attention", str(dtype)[6:], reach="causal", source=source, **dims)
        for source in (dispatch.packed_source(str(dtype)[6:]), "plain")
    ]
    values = make_inputs(descs[0], Sizes(batch=2, tokens=TOKENS, keys=TOKENS + 5, kv_heads=2, q_start=5), 0)
    by_keys, by_values = pack_descs(descs[0])
    packed = (dispatch.run(by_keys, x=values["k"])[0], dispatch.run(by_values, x=values["v"])[0])
    assert same(dispatch.run(descs[0], **values, packed=packed), dispatch.run(descs[1], **values))


NARROW = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from cases import SPECS, draw, qkv
from judges import assert_accurate, compare_gradients
from nsa_codegen import dispatch, functional
from nsa_codegen.target import native_target
torch.set_num_threads(1)
for name in ("g4-f32", "g8-f16", "g3-bf16"):
    spec, dtype = SPECS[name]
    x = qkv(spec, dtype, 61)
    def window(impl, x):
        return functional.window_attention(x["q"], x["k"], x["v"], window_size=spec.window_size, impl=impl)
    compare_gradients(window, x, name)
    lists = torch.randint(-1, 61 // spec.block_size, (len(x["q"]), 61, spec.kv_heads, spec.num_selected_blocks))
    def selected(impl, x):
        return functional.selected_attention(x["q"], x["k"], x["v"], lists, block_size=spec.block_size, impl=impl)
    compare_gradients(selected, x, name)
    mean = functional.compress(x["k"], kernel=spec.kernel, stride=spec.stride, impl="reference")
    exact = functional.compress(x["k"].double(), kernel=spec.kernel, stride=spec.stride, impl="reference")
    if spec.compression == "mean":
        got = functional.compress(x["k"], kernel=spec.kernel, stride=spec.stride, impl="compiled")
        assert_accurate(got, mean, exact, name)
kernels = dispatch._kernel.cache_info().currsize
print(native_target().name, kernels)
"""


@pytest.mark.parametrize("target", ["x86_64_v3", "generic", "aarch64"])
def test_kf11_narrow_vectors_agree_with_float64(target: str, kernels: Path) -> None:
    """The same kernels for targets of another vector width, where this machine runs them."""
    if not runs_here(TARGETS[target]):
        pytest.skip(f"this machine does not run {target}")
    environment = {**os.environ, "NSA_CODEGEN_TARGET": target, "NSA_CODEGEN_HOME": str(kernels)}
    done = subprocess.run(
        [sys.executable, "-c", NARROW, str(Path(__file__).parent)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    name, count = done.stdout.split()
    assert name == target
    assert int(count) > 20


def test_nan_scores_rank_last() -> None:
    """As in the reference: a block of NaN keys does not keep later blocks out."""
    spec, _ = SPECS["g1-f32"]
    q = torch.ones(1, 200, spec.num_heads, spec.head_dim)
    k = torch.arange(200.0).view(1, 200, 1, 1).expand(1, 200, spec.num_heads, spec.head_dim).clone()
    k[:, :16] = math.nan
    sizes = {"method": "mean_key", "block_size": spec.block_size, "num_selected": spec.num_selected_blocks}
    got, wanted = (functional.select_blocks(q, k, impl=impl, **sizes) for impl in ("compiled", "reference"))
    assert torch.equal(got, wanted)


def test_ties_and_nan_among_many_blocks_rank_as_in_the_reference() -> None:
    """More blocks than are compared each with each; scores are exact, so that many are equal, and some are NaN."""
    tokens, block = 1300, 8
    q, k = draw_exact(1, tokens, 2, 16, seed=0), draw_exact(1, tokens, 2, 16, seed=1)
    k[:, 40:48], k[:, 777:790] = math.nan, math.nan
    sizes = {"method": "mean_key", "block_size": block, "num_selected": 7, "num_initial": 1}
    got, wanted = (functional.select_blocks(q, k, impl=impl, **sizes) for impl in ("compiled", "reference"))
    assert torch.equal(got, wanted)
    assert len(got[0, -1].unique()) > 7, "heads list blocks of their own"


def test_ties_go_to_the_lower_block_also_across_tiles_of_scores() -> None:
    """All keys equal and many tiles of compressed tokens: every block of the middle has the same score."""
    spec, _ = SPECS["g4-f32"]
    tokens = 1500
    q = draw(1, tokens, spec.num_heads, spec.head_dim, seed=0)
    k = torch.ones(1, (tokens - spec.kernel) // spec.stride + 1, 1, spec.head_dim)
    got = functional.select_blocks(
        q, k, method="compressed", block_size=spec.block_size, num_selected=spec.num_selected_blocks, num_initial=1,
        num_local=2, kernel=spec.kernel, stride=spec.stride, q_start=0, impl="compiled",
    )  # fmt: skip
    for t in range(200, tokens):
        own = t // spec.block_size
        assert got[0, t, 0].tolist() == [0, 1, 2, own - 1, own], t
