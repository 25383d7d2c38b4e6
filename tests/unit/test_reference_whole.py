"""`combine` and `attention` of the reference: whole programs against loops over their paths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import attend, choose, compressed_scores, draw, mean_key_scores
from torch import Tensor

from nsa_codegen.errors import InputError
from nsa_codegen.index_sets import RangeSet, TopK, causal, complete, everything, first, top_k, window
from nsa_codegen.program import Path, Phi, Program
from nsa_codegen.reference import attention, combine, compress, gather_attention, select_blocks, stream_attention
from nsa_codegen.spec import NSASpec

SMALL: dict[str, Any] = {
    "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "value_dim": 3, "window_size": 5, "block_size": 4,
    "num_selected_blocks": 3,
}  # fmt: skip
SEED = NSASpec.seed(**SMALL, compression_ratio=2)
# One slot more than the forced blocks take, so that scores decide something.
PAPER = NSASpec.paper(**{**SMALL, "num_selected_blocks": 4}, compression_kernel=4, compression_stride=2)
MOBA = Program(
    name="moba", num_heads=4, num_kv_heads=2, head_dim=4, value_dim=3,
    paths=(Path(name="blocks", visible=top_k("mean_key", n=3, block=4)),),
)  # fmt: skip
SINKS = Program(
    name="sinks", num_heads=4, num_kv_heads=2, head_dim=4, value_dim=3,
    paths=(Path(name="recent", visible=first(2) | window(5)),),
)  # fmt: skip
DENSE = Program(
    name="dense", num_heads=4, num_kv_heads=2, head_dim=4, value_dim=3, paths=(Path(name="all", visible=causal()),)
)
PROGRAMS = [SEED.program(), PAPER.program(), MOBA, SINKS, DENSE]
named = pytest.mark.parametrize("program", PROGRAMS, ids=["seed", "paper", "moba", "sinks", "dense"])
KV = dict[str, tuple[Tensor, Tensor]]


def tensors(program: Program, tokens: int, batch: int = 2) -> tuple[Tensor, KV, Tensor | None]:
    """Return q, keys and values of each path's own, and gates."""
    q = draw(batch, tokens, program.num_heads, program.head_dim, seed=0)
    kv: KV = {}
    for n, path in enumerate(program.paths):
        k = draw(batch, tokens, program.kv_heads, program.head_dim, seed=10 + n)
        v = draw(batch, tokens, program.kv_heads, program.dv, seed=20 + n)
        if isinstance(path.keys, Phi):
            size = {"kernel": path.keys.kernel, "stride": path.keys.stride}
            k, v = compress(k, **size), compress(v, **size)
        kv[path.name] = (k, v)
    if program.combine == "none":
        return q, kv, None
    shape = (3,) if program.combine == "scalar" else (batch, tokens, program.num_heads, 3)
    return q, kv, draw(*shape, seed=30).sigmoid()


def in_loops(program: Program, q: Tensor, kv: KV, gates: Tensor | None) -> Tensor:
    """The program query by query: `sees` where keys are streamed, `choose` where blocks are."""
    total = torch.zeros(*q.shape[:3], program.dv, dtype=torch.float64)
    for p, path in enumerate(program.paths):
        k, v = kv[path.name]
        visible = path.visible

        def sees(b: int, i: int, g: int, j: int, visible: Any = visible, k: Tensor = k) -> bool:
            if isinstance(visible, RangeSet):
                return visible.sees(i, j, k.shape[1])
            return j <= i and j // visible.block in chosen_blocks(program, visible, q, k, kv, b, i, g)

        out, _ = attend(q, k, v, sees)
        gate = torch.ones(1, dtype=torch.float64) if gates is None else gates[..., p, None]
        total += gate * out
    return total


def chosen_blocks(program: Program, top: TopK, q: Tensor, k: Tensor, kv: KV, b: int, i: int, g: int) -> list[int]:
    phi, own = program.source_of(top), i // top.block
    if phi is None:
        scores = mean_key_scores(q, k, b, i, g, own, top.block)
    else:
        scores = compressed_scores(
            q, kv[top.source][0], b, i, g, i, block=top.block, kernel=phi.kernel, stride=phi.stride,
            scale=q.shape[-1] ** -0.5,
        )  # fmt: skip
    return choose(scores, own, top.n, top.initial, top.local)


@settings(max_examples=15, deadline=None)
@given(program=st.sampled_from(PROGRAMS), tokens=st.integers(1, 26))
def test_kf10_every_program_is_its_loops_at_every_length(program: Program, tokens: int) -> None:
    q, kv, gates = tensors(program, tokens, batch=1)
    torch.testing.assert_close(
        attention(program, q, kv, gates), in_loops(program, q, kv, gates), rtol=1e-10, atol=1e-10
    )


@named
def test_kf07_decoding_token_by_token_is_prefill(program: Program) -> None:
    q, kv, gates = tensors(program, 19)
    whole = attention(program, q, kv, gates)
    for t in (0, 1, 7, 8, 18):
        gate = gates[:, t : t + 1] if gates is not None and gates.dim() > 1 else gates
        one = attention(program, q[:, t : t + 1], kv, gate, q_start=t)
        torch.testing.assert_close(one, whole[:, t : t + 1], rtol=1e-12, atol=1e-12)


@named
def test_kf05_no_gradient_from_the_future(program: Program) -> None:
    q, kv, gates = tensors(program, 19, batch=1)
    leaves = {name: (k.requires_grad_(), v.requires_grad_()) for name, (k, v) in kv.items()}
    out = attention(program, q, leaves, gates)
    for t in (0, 5, 10, 18):
        for path in program.paths:
            grads = torch.autograd.grad(out[0, t].sum(), leaves[path.name], retain_graph=True)
            for gradient in grads:
                reached = gradient.abs().sum((0, 2, 3)).nonzero().flatten().tolist()
                if isinstance(path.keys, Phi):
                    assert all(i * path.keys.stride + path.keys.kernel - 1 <= t for i in reached)
                else:
                    assert all(j <= t for j in reached)


@named
def test_gradients_are_those_of_finite_differences(program: Program) -> None:
    q, kv, gates = tensors(program, 9, batch=1)
    names = list(kv)
    flat = [x.requires_grad_() for name in names for x in kv[name]]

    def whole(q: Tensor, *flat: Tensor) -> Tensor:
        return attention(program, q, {n: (flat[2 * i], flat[2 * i + 1]) for i, n in enumerate(names)}, gates)

    assert torch.autograd.gradcheck(whole, (q.requires_grad_(), *flat))


@named
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_kf06_one_batch_row_never_reaches_another(program: Program, poison: float) -> None:
    q, kv, gates = tensors(program, 19, batch=3)
    clean = attention(program, q, kv, gates)
    for x in (q, *(x for pair in kv.values() for x in pair)):
        x[1] = poison
    assert torch.equal(attention(program, q, kv, gates)[[0, 2]], clean[[0, 2]])


def test_kf06_rows_that_see_nothing_in_a_path_are_the_other_paths_alone() -> None:
    """A program of complete windows of 4 alone: the first 3 queries see nothing and give 0."""
    program = Program(
        name="c", num_heads=4, num_kv_heads=2, head_dim=4, value_dim=3,
        paths=(Path(name="c", keys=Phi(kernel=4, stride=2), visible=complete(4, 2)),),
    )  # fmt: skip
    q, kv, _ = tensors(program, 7)
    out = attention(program, q, kv)
    assert torch.equal(out[:, :3], torch.zeros_like(out[:, :3]))
    assert bool((out[:, 3:] != 0).all())
    assert torch.equal(attention(program, q[:, :3], {"c": (kv["c"][0][:, :0], kv["c"][1][:, :0])}), out[:, :3])


def test_selection_reads_the_compressed_keys_of_its_source() -> None:
    """Changing the compressed keys moves the selected path's output, though it has keys of its own."""
    program = PAPER.program()
    q, kv, _ = tensors(program, 40)
    only_selected = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    before = attention(program, q, kv, only_selected)
    kv["compressed"] = (-kv["compressed"][0], kv["compressed"][1])
    assert not torch.equal(before, attention(program, q, kv, only_selected))


def test_whole_is_its_parts_each_rounded_to_the_inputs_dtype() -> None:
    program = SEED.program()
    q, kv, gates = tensors(program, 19)
    q, kv = q.bfloat16(), {name: (k.bfloat16(), v.bfloat16()) for name, (k, v) in kv.items()}
    chosen = select_blocks(q, kv["selected"][0], method="mean_key", block_size=4, num_selected=3)
    parts = [
        stream_attention(q, *kv["compressed"], complete(2, 2))[0],
        gather_attention(q, *kv["selected"], chosen, block_size=4)[0],
        stream_attention(q, *kv["window"], window(5))[0],
    ]
    assert gates is not None
    out = attention(program, q, kv, gates)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, combine(parts, gates))


def test_scale_reaches_every_path() -> None:
    pooled = NSASpec.seed(**SMALL, compression_ratio=3, causal=False, pool_queries=True).program()
    for program in [*PROGRAMS, pooled]:
        q, kv, gates = tensors(program, 19)
        scaled = attention(program, q * 3, kv, gates, scale=0.5 / 3)  # 0.5 is the default for 4 dims
        torch.testing.assert_close(scaled, attention(program, q, kv, gates), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(attention(program, q, kv, gates, scale=2.0), attention(program, q, kv, gates))


def test_without_causality_compressed_tokens_and_the_rest_of_the_chosen_blocks_are_seen() -> None:
    spec = SEED.replace(causal=False)
    q, kv, _ = tensors(spec.program(), 10, batch=1)
    out, _ = attend(q, *kv["compressed"], lambda b, i, g, j: True)
    first_gate = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(attention(spec.program(), q, kv, first_gate), out, rtol=1e-12, atol=1e-12)
    k = kv["selected"][0]

    def sees(b: int, i: int, g: int, j: int) -> bool:
        own = i // 4
        return j // 4 in choose(mean_key_scores(q, k, b, i, g, own, 4), own, 3, 0, 1)

    second_gate = torch.tensor([0, 1.0, 0], dtype=torch.float64)
    expected, _ = attend(q, *kv["selected"], sees)
    torch.testing.assert_close(attention(spec.program(), q, kv, second_gate), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tokens", [1, 2, 3, 9, 12])
def test_pooled_queries_give_each_window_one_row(tokens: int) -> None:
    """The seed document's literal form: pool queries by 3, attend to all, repeat; a ragged tail gets 0."""
    spec = NSASpec.seed(**SMALL, compression_ratio=3, causal=False, pool_queries=True)
    q, kv, _ = tensors(spec.program(), tokens)
    k, v = kv["compressed"]
    out = attention(spec.program(), q, kv, torch.tensor([1.0, 0, 0], dtype=torch.float64))
    whole = tokens // 3
    for n in range(whole):
        mean = (q[:, 3 * n] + q[:, 3 * n + 1] + q[:, 3 * n + 2]) / 3
        expected, _ = attend(mean[:, None], k, v, lambda b, i, g, j: True)
        for t in range(3 * n, 3 * n + 3):
            torch.testing.assert_close(out[:, t], expected[:, 0], rtol=1e-12, atol=1e-12)
    assert torch.equal(out[:, 3 * whole :], torch.zeros_like(out[:, 3 * whole :]))


def test_pooled_queries_start_at_a_window() -> None:
    pooled = Path(name="c", keys=Phi(kernel=3, stride=3), visible=everything(), pool_queries=True)
    program = Program(name="p", num_heads=4, num_kv_heads=2, head_dim=4, value_dim=3, paths=(pooled,))
    q, kv, _ = tensors(program, 12)
    assert torch.equal(attention(program, q[:, 6:], kv, q_start=6), attention(program, q, kv)[:, 6:])
    with pytest.raises(InputError, match=r"q_start = 4 must be a multiple of 3"):
        attention(program, q[:, 4:], kv, q_start=4)


def test_combine_is_the_gated_sum() -> None:
    outs = [draw(2, 3, 4, 5, seed=n) for n in range(3)]
    scalar, per_head = draw(3, seed=9), draw(2, 3, 4, 3, seed=10)
    for gates in (scalar, per_head):
        got = combine(outs, gates)
        for place in [(0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 2, 3)]:
            gate = gates if gates is scalar else gates[place[:3]]
            expected = sum(float(gate[p]) * float(outs[p][place]) for p in range(3))
            assert float(got[place]) == pytest.approx(expected, rel=1e-13)


def test_combine_rounds_once() -> None:
    outs = [draw(1, 2, 2, 8, seed=n, dtype=torch.bfloat16) for n in range(3)]
    gates = draw(3, seed=9, dtype=torch.float32)
    got = combine(outs, gates)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, combine([o.float() for o in outs], gates).bfloat16())


def test_combine_gradcheck() -> None:
    outs = [draw(1, 2, 2, 3, seed=n).requires_grad_() for n in range(2)]
    for gates in (draw(2, seed=9), draw(1, 2, 2, 2, seed=9)):
        assert torch.autograd.gradcheck(lambda a, b, g: combine([a, b], g), (*outs, gates.requires_grad_()))


@pytest.mark.parametrize("shape", [(2,), (1, 3), (2, 3, 4), (2, 3, 4, 2), (3, 2, 4, 3)])
def test_gates_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    outs = [torch.ones(2, 3, 4, 5)] * 3
    with pytest.raises(InputError, match=r"do not fit; allowed: \[3\] or \[2, 3, 4, 3\]"):
        combine(outs, torch.ones(shape))


def test_inputs_that_do_not_fit_the_program_are_named() -> None:
    program = SEED.program()
    q, kv, gates = tensors(program, 9)
    with pytest.raises(InputError, match=r"combines 3 paths; give gates"):
        attention(program, q, kv)
    with pytest.raises(InputError, match=r"'dense' has one path and takes no gates"):
        attention(DENSE, q, {"all": kv["window"]}, gates)
    with pytest.raises(InputError, match=r"no keys and values for the paths \['selected'\]; it has \['comp"):
        attention(program, q, {name: pair for name, pair in kv.items() if name != "selected"}, gates)
    with pytest.raises(InputError, match=r"outs is empty"):
        combine([], torch.ones(0))
