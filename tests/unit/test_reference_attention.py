"""`stream_attention` and `gather_attention` of the reference against loops over queries and keys."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import attend, draw
from torch import Tensor

from nsa_codegen.errors import InputError
from nsa_codegen.index_sets import Bound, Range, RangeSet, causal, complete, everything, first, window
from nsa_codegen.reference import gather_attention, stream_attention, visible_mask

BLOCK = 4
SETS = [causal(), window(1), window(5), complete(4, 2), complete(6, 3), everything(), first(2) | window(3)]
GROUPS = st.sampled_from([(1, 1), (4, 1), (2, 2), (6, 2), (3, 3)])


def inputs(
    batch: int, queries: int, keys: int, heads: tuple[int, int] = (2, 1), *, seed: int = 0, dk: int = 3, dv: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    q = draw(batch, queries, heads[0], dk, seed=seed)
    return q, draw(batch, keys, heads[1], dk, seed=seed + 1), draw(batch, keys, heads[1], dv, seed=seed + 2)


def close(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    visible=st.sampled_from(SETS), queries=st.integers(1, 14), keys=st.integers(0, 16), heads=GROUPS,
    q_start=st.integers(0, 12), scale=st.sampled_from([None, 0.3, 2.0]),
)  # fmt: skip
def test_kf07_streaming_is_the_softmax_over_the_keys_seen(
    visible: RangeSet, queries: int, keys: int, heads: tuple[int, int], q_start: int, scale: float | None
) -> None:
    q, k, v = inputs(2, queries, keys, heads)
    got = stream_attention(q, k, v, visible, q_start=q_start, scale=scale)
    close(got, attend(q, k, v, lambda b, i, g, j: visible.sees(q_start + i, j, keys), scale))


@settings(max_examples=200, deadline=None)
@given(
    st.builds(Bound, offset=st.integers(-20, 20), divisor=st.integers(0, 4), cap=st.sampled_from([None, 0, 7, 30])),
    st.builds(Bound, offset=st.integers(-20, 20), divisor=st.integers(0, 4), cap=st.sampled_from([None, 0, 7, 30])),
    st.integers(0, 9),
)
def test_mask_is_sees(lo: Bound, hi: Bound, q_start: int) -> None:
    visible = RangeSet(ranges=(Range(lo=lo, hi=hi),))
    expected = [[visible.sees(q_start + i, j, 11) for j in range(11)] for i in range(13)]
    assert visible_mask(visible, 13, 11, q_start=q_start).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    keys=st.integers(1, 18), heads=GROUPS, slots=st.integers(1, 5), is_causal=st.booleans(), seed=st.integers(0, 999),
    data=st.data(),
)  # fmt: skip
def test_kf17_gathering_is_the_softmax_over_the_tokens_of_the_blocks(
    keys: int, heads: tuple[int, int], slots: int, is_causal: bool, seed: int, data: st.DataObject
) -> None:
    """Random lists: unsorted, with -1 anywhere, duplicates, and blocks after the query."""
    queries = data.draw(st.integers(1, keys))
    q_start = data.draw(st.integers(0, keys - queries))
    blocks = -(-keys // BLOCK)
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(-1, blocks, (2, queries, heads[1], slots), generator=generator, dtype=torch.int32)
    q, k, v = inputs(2, queries, keys, heads)
    rows = indices.tolist()

    def sees(b: int, i: int, g: int, j: int) -> bool:
        return any(s * BLOCK <= j < (s + 1) * BLOCK for s in rows[b][i][g]) and (j <= q_start + i or not is_causal)

    got = gather_attention(q, k, v, indices, block_size=BLOCK, causal=is_causal, q_start=q_start)
    close(got, attend(q, k, v, sees))


def test_kf17_padding_is_not_block_0() -> None:
    q, k, v = inputs(1, 12, 12)
    only = torch.full((1, 12, 1, 1), 2, dtype=torch.int32)
    padded = torch.cat([torch.full_like(only, -1), only, torch.full_like(only, -1)], dim=-1)
    for a, b in zip(
        gather_attention(q, k, v, padded, block_size=BLOCK),
        gather_attention(q, k, v, only, block_size=BLOCK),
        strict=True,
    ):
        assert torch.equal(a, b)
    nothing, lse = gather_attention(q, k, v, torch.full_like(only, -1), block_size=BLOCK, causal=False)
    assert torch.equal(nothing, torch.zeros_like(nothing))
    assert bool((lse == -math.inf).all())


def test_a_duplicate_counts_once_and_a_block_after_t_adds_nothing() -> None:
    q, k, v = inputs(1, 16, 16)
    once = torch.tensor([0, 1], dtype=torch.int32).expand(1, 16, 1, 2)
    messy = torch.tensor([1, 0, -1, 1, 3, 0], dtype=torch.int32).expand(1, 16, 1, 6)
    a = gather_attention(q, k, v, once, block_size=BLOCK)
    b = gather_attention(q, k, v, messy, block_size=BLOCK)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x[:, :12], y[:, :12])  # block 3 begins at 12
        assert not torch.equal(x[:, 12:], y[:, 12:])


@pytest.mark.parametrize("wrong", [-2, 3, 1 << 30])
def test_an_index_that_is_no_block_is_named(wrong: int) -> None:
    q, k, v = inputs(2, 11, 11)
    indices = torch.zeros(2, 11, 1, 2, dtype=torch.int32)
    indices[1, 7, 0, 1] = wrong
    with pytest.raises(InputError) as error:
        gather_attention(q, k, v, indices, block_size=BLOCK)
    assert f"block_indices[1, 7, 0, 1] = {wrong} is not a block: k has 3 blocks" in str(error.value)
    assert "from 0 to 2, and -1 marks an unused slot" in str(error.value)


def both_ways(q: Tensor, k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Attention where the first 3 queries see no key, streamed and gathered."""
    indices = torch.zeros(q.shape[0], q.shape[1], k.shape[2], 2, dtype=torch.int32)
    indices[:, :3] = -1
    return [
        stream_attention(q, k, v, complete(4, 2)),
        gather_attention(q, k, v, indices, block_size=BLOCK),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", [0, 1])
def test_kf06_empty_rows_are_zero_with_zero_gradients(dtype: torch.dtype, way: int) -> None:
    q, k, v = (x.to(dtype).requires_grad_() for x in inputs(2, 9, 9))
    out, lse = both_ways(q, k, v)[way]
    assert torch.equal(out[:, :3], torch.zeros_like(out[:, :3]))
    assert bool((lse[:, :3] == -math.inf).all())
    assert bool(lse[:, 3:].isfinite().all())
    # Gradients of the empty rows alone, through out and lse: all must be 0, which NaN would not be.
    gradients = torch.autograd.grad((out[:, :3].sum(), lse[:, :3].sum()), (q, k, v), retain_graph=True)
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))
    whole = torch.autograd.grad((out.sum(), lse[:, 3:].sum()), (q, k, v))
    assert all(bool(g.isfinite().all()) for g in whole)
    assert torch.equal(whole[0][:, :3], torch.zeros_like(whole[0][:, :3]))
    assert bool((whole[0][:, 3:] != 0).any())


def test_kf06_no_keys_at_all() -> None:
    q, k, v = (x.requires_grad_() for x in inputs(2, 5, 0))
    out, lse = stream_attention(q, k, v, complete(4, 2))
    assert out.shape == (2, 5, 2, 2)
    assert torch.equal(out, torch.zeros_like(out))
    assert bool((lse == -math.inf).all())
    (gradient,) = torch.autograd.grad(out.sum() + lse.sum(), q)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_kf06_large_scores_do_not_overflow() -> None:
    q, k, v = inputs(1, 6, 6)
    out, lse = stream_attention(q.float() * 1e4, k.float() * 1e4, v.float(), causal())
    assert bool(out.isfinite().all())
    assert bool(lse.isfinite().all())
    torch.testing.assert_close(out[0, 0, 0], v[0, 0, 0].float())


def test_gradcheck_of_outputs_and_lse() -> None:
    q, k, v = (x.requires_grad_() for x in inputs(1, 7, 7))
    assert torch.autograd.gradcheck(lambda *x: stream_attention(*x, first(1) | window(3)), (q, k, v))
    # Complete windows leave rows empty: their lse is -inf, which finite differences cannot take.
    assert torch.autograd.gradcheck(lambda *x: stream_attention(*x, complete(4, 2))[0], (q, k, v))


def test_kf04_gradients_of_a_key_that_many_queries_chose() -> None:
    """Several blocks a query, block 0 in every list, groups of two heads, values narrower than keys."""
    q, k, v = (x.requires_grad_() for x in inputs(1, 10, 10, (4, 2), dk=3, dv=2))
    indices = torch.tensor([[0, 2, 1], [2, -1, 0]], dtype=torch.int32).expand(1, 10, 2, 3)
    assert torch.autograd.gradcheck(lambda *x: gather_attention(*x, indices, block_size=BLOCK), (q, k, v))


@pytest.mark.parametrize("visible", [causal(), window(4), complete(4, 2), first(2) | window(3)])
def test_kf05_no_gradient_from_a_key_that_is_not_seen(visible: RangeSet) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(1, 12, 12, (1, 1)))
    out, lse = stream_attention(q, k, v, visible)
    for t in range(12):
        for leaf, target in ((k, lse[0, t]), (v, out[0, t])):
            (gradient,) = torch.autograd.grad(target.sum(), leaf, retain_graph=True)
            reached = set(gradient.abs().sum((0, 2, 3)).nonzero().flatten().tolist())
            assert reached == {j for j in range(12) if visible.sees(t, j, 12)}


def test_kf05_the_future_can_change_without_effect() -> None:
    q, k, v = inputs(1, 16, 16)
    indices = torch.arange(4, dtype=torch.int32).expand(1, 16, 1, 4)
    k2, v2 = k.clone(), v.clone()
    k2[:, 7:], v2[:, 7:] = 100.0, -3.0
    pairs = [
        (stream_attention(q, k, v, causal()), stream_attention(q, k2, v2, causal())),
        (gather_attention(q, k, v, indices, block_size=BLOCK), gather_attention(q, k2, v2, indices, block_size=BLOCK)),
    ]
    for before, after in pairs:
        for a, b in zip(before, after, strict=True):
            assert torch.equal(a[:, :7], b[:, :7])
            assert not torch.equal(a[:, 7:], b[:, 7:])


def test_kf18_the_window_holds_w_tokens() -> None:
    q, v = torch.zeros(1, 9, 1, 2, dtype=torch.float64), torch.eye(9, dtype=torch.float64)[None, :, None]
    out, lse = stream_attention(q, torch.zeros_like(q), v, window(4))
    for t in range(9):
        seen = range(max(0, t - 3), t + 1)
        expected = [1 / len(seen) if j in seen else 0.0 for j in range(9)]
        torch.testing.assert_close(out[0, t, 0], torch.tensor(expected, dtype=torch.float64))
        assert float(lse[0, t, 0]) == pytest.approx(math.log(len(seen)))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("way", [0, 1])
def test_kf06_one_batch_row_never_reaches_another_even_in_gradients(poison: float, way: int) -> None:
    clean = [x.float().requires_grad_() for x in inputs(3, 9, 9)]
    dirty = [x.detach().clone() for x in clean]
    for x in dirty:
        x[1] = poison
        x.requires_grad_()
    results = []
    for q, k, v in (clean, dirty):
        out, lse = both_ways(q, k, v)[way]
        gradients = torch.autograd.grad((out.sum(), lse[:, 3:].sum()), (q, k, v))
        results.append((out, lse, *gradients))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert not bool(results[1][0][1, 3:].isfinite().any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", [0, 1])
def test_half_types_are_computed_in_float32_and_rounded_once(dtype: torch.dtype, way: int) -> None:
    q, k, v = (x.to(dtype) for x in inputs(2, 9, 9))
    out, lse = both_ways(q, k, v)[way]
    wide_out, wide_lse = both_ways(q.float(), k.float(), v.float())[way]
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert torch.equal(out, wide_out.to(dtype))
    assert torch.equal(lse, wide_lse)


def test_lse_is_wide_for_wide_inputs() -> None:
    q, k, v = inputs(1, 4, 4)
    assert [x.dtype for x in stream_attention(q, k, v, causal())] == [torch.float64] * 2
    assert [x.dtype for x in stream_attention(q.float(), k.float(), v.float(), causal())] == [torch.float32] * 2


def test_heads_of_a_group_are_contiguous() -> None:
    """Heads 0, 1, 2 read key head 0, and 3, 4, 5 key head 1."""
    q, k, v = inputs(1, 5, 5, (6, 2))
    v = torch.tensor([10.0, 20.0], dtype=torch.float64).reshape(1, 1, 2, 1).expand(1, 5, 2, 1)
    out, _ = stream_attention(q, k, v, causal())
    torch.testing.assert_close(
        out[0, :, :, 0], torch.tensor([10.0, 10, 10, 20, 20, 20], dtype=torch.float64).expand(5, 6)
    )
