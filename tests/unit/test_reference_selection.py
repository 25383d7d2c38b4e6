"""`select_blocks` and `block_scores` of the reference against loops, and against the geometry of blocks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import choose, compressed_scores, draw, mean_key_scores, softmax
from torch import Tensor

from nsa_codegen.errors import InputError
from nsa_codegen.reference import block_scores, compress, select_blocks

GROUPS = st.sampled_from([(1, 1), (4, 1), (2, 2), (6, 2)])
WINDOWS = st.sampled_from([(4, 4, 8), (8, 4, 8), (8, 4, 16), (2, 2, 2), (16, 4, 8), (6, 2, 4), (1, 1, 4)])


@settings(max_examples=40, deadline=None)
@given(
    keys=st.integers(1, 40), heads=GROUPS, block=st.integers(1, 9), initial=st.integers(0, 2), local=st.integers(1, 3),
    spare=st.integers(0, 6), data=st.data(),
)  # fmt: skip
def test_kf10_mean_key_selection_is_the_loops(
    keys: int, heads: tuple[int, int], block: int, initial: int, local: int, spare: int, data: st.DataObject
) -> None:
    """Also with more slots than blocks, and lengths that end inside a block."""
    queries = data.draw(st.integers(1, keys))
    q_start = data.draw(st.integers(0, keys - queries))
    n = initial + local + spare
    q, k = draw(2, queries, heads[0], 3, seed=0), draw(2, keys, heads[1], 3, seed=1)
    forced = {"num_initial": initial, "num_local": local, "q_start": q_start}
    got = select_blocks(q, k, method="mean_key", block_size=block, num_selected=n, **forced)
    scores, candidates = block_scores(q, k, method="mean_key", block_size=block, **forced)
    assert (got.dtype, got.shape) == (torch.int32, (2, queries, heads[1], n))
    for b in range(2):
        for i in range(queries):
            own = (q_start + i) // block
            for g in range(heads[1]):
                expected = mean_key_scores(q, k, b, i, g, own, block)
                assert got[b, i, g].tolist() == choose(expected, own, n, initial, local)
                free = {j for j in range(own) if j >= initial and own - j >= local}
                assert set(candidates[i].nonzero().flatten().tolist()) == free
                for j in free:
                    assert float(scores[b, i, g, j]) == pytest.approx(expected[j], rel=1e-11, abs=1e-11)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40), heads=GROUPS, sizes=WINDOWS, initial=st.integers(0, 1), local=st.integers(1, 2),
    spare=st.integers(0, 3), scale=st.sampled_from([None, 3.0]), data=st.data(),
)  # fmt: skip
def test_kf16_compressed_selection_is_equation_9_in_loops(
    tokens: int, heads: tuple[int, int], sizes: tuple[int, int, int], initial: int, local: int, spare: int,
    scale: float | None, data: st.DataObject,
) -> None:  # fmt: skip
    kernel, stride, block = sizes
    queries = data.draw(st.integers(1, tokens))
    q_start = data.draw(st.integers(0, tokens - queries))
    n = initial + local + spare
    q = draw(1, queries, heads[0], 4, seed=0)
    k = compress(draw(1, tokens, heads[1], 4, seed=1), kernel=kernel, stride=stride)
    options: dict[str, Any] = {
        "method": "compressed", "block_size": block, "num_initial": initial, "num_local": local, "kernel": kernel,
        "stride": stride, "scale": scale, "q_start": q_start,
    }  # fmt: skip
    got = select_blocks(q, k, num_selected=n, **options)
    scores, candidates = block_scores(q, k, **options)
    used = 0.5 if scale is None else scale  # 4 ** -0.5
    for i in range(queries):
        t = q_start + i
        for g in range(heads[1]):
            expected = compressed_scores(q, k, 0, i, g, t, block=block, kernel=kernel, stride=stride, scale=used)
            for j in candidates[i].nonzero().flatten().tolist():
                assert float(scores[0, i, g, j]) == pytest.approx(expected[j], rel=1e-11, abs=1e-13)
            # Sums of the same terms in another order differ by rounding: settle near-ties by the score given.
            same = {j: float(scores[0, i, g, j]) for j in expected}
            assert got[0, i, g].tolist() == choose(same, t // block, n, initial, local)


@settings(max_examples=20, deadline=None)
@given(sizes=WINDOWS, t=st.integers(0, 60))
def test_kf16_a_block_scores_by_its_overlap_with_the_windows(sizes: tuple[int, int, int], t: int) -> None:
    """Equation 9 counts each window once per stride of tokens that it shares with the block.

    This meaning does not mention the indices of the formula, so it tells their 0-based form from the 1-based one.
    """
    kernel, stride, block = sizes
    k = compress(draw(1, t + 1, 1, 4, seed=1), kernel=kernel, stride=stride)
    q = draw(1, 1, 1, 4, seed=2)
    scores, _ = block_scores(q, k, method="compressed", block_size=block, kernel=kernel, stride=stride, q_start=t)
    if k.shape[1] == 0:
        assert not bool(scores.any())
        return
    p = softmax([0.5 * float(q[0, 0, 0] @ k[0, i, 0]) for i in range(k.shape[1])])
    for j in range(t // block):
        tokens = set(range(j * block, (j + 1) * block))
        shares = [len(tokens & set(range(i * stride, i * stride + kernel))) / stride for i in range(len(p))]
        expected = math.fsum(w * share for w, share in zip(p, shares, strict=True))
        assert float(scores[0, 0, 0, j]) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("position", [0, 17, 31, 32, 63, 64, 100, 127, 128, 159])
def test_kf16_a_query_that_matches_one_window_chooses_the_block_that_holds_it(position: int) -> None:
    """Paper sizes: window `i` covers tokens `16 i .. 16 i + 31`, blocks are of 64."""
    tokens, i = 400, position // 16
    k = torch.zeros(1, (tokens - 32) // 16 + 1, 1, 2, dtype=torch.float64)
    k[0, i, 0, 0] = 1000.0
    q = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    scores, _ = block_scores(
        q, k, method="compressed", block_size=64, kernel=32, stride=16, q_start=tokens - 1
    )  # fmt: skip
    held = [min(32, max(0, min(64 * (j + 1), 16 * i + 32) - max(64 * j, 16 * i))) // 16 for j in range(6)]
    assert scores[0, 0, 0, :6].tolist() == pytest.approx(held)
    chosen = select_blocks(
        q, k, method="compressed", block_size=64, num_selected=2, kernel=32, stride=16, q_start=tokens - 1
    )
    assert chosen.flatten().tolist() == [held.index(max(held)), 6]


@pytest.mark.parametrize("method", ["mean_key", "compressed"])
def test_kf09_ties_go_to_the_lower_block(method: str) -> None:
    """Equal keys give equal scores: exactly, so that the order of sums cannot hide the tie."""
    tokens, block = 64, 8
    q = torch.ones(1, tokens, 2, 4)
    k = torch.zeros(1, tokens, 1, 4)
    if method == "compressed":  # windows of one block each; the softmax is uniform over those complete
        options: dict[str, Any] = {"kernel": block, "stride": block}
        k = k[:, :: options["stride"]]
    else:
        options = {}
    got = select_blocks(q, k, method=method, block_size=block, num_selected=4, **options)
    for t in range(tokens):
        own = t // block
        expected = sorted([*range(min(own, 3)), own])
        assert got[0, t, 0].tolist() == expected + [-1] * (4 - len(expected))
    assert torch.equal(got, select_blocks(q, k, method=method, block_size=block, num_selected=4, **options))


def test_kf09_a_tie_at_the_last_slot_is_broken_by_index_wherever_the_winner_stands() -> None:
    """Block scores 1, 5, 3, 5, 3, 3: the best two are 1 and 3, the third slot is a tie of 2, 4 and 5."""
    block, by_block = 2, [1.0, 5.0, 3.0, 5.0, 3.0, 3.0, 0.0]
    k = torch.tensor(by_block).repeat_interleave(block).reshape(1, -1, 1, 1)
    q = torch.ones(1, 1, 1, 1)
    got = select_blocks(q, k, method="mean_key", block_size=block, num_selected=4, q_start=13)
    assert got.flatten().tolist() == [1, 2, 3, 6]


def test_forced_blocks_count_toward_n_and_come_first() -> None:
    q, k = draw(1, 70, 1, 4, seed=0), draw(1, 70, 1, 4, seed=1)
    got = select_blocks(q, k, method="mean_key", block_size=8, num_selected=3, num_initial=1, num_local=2)
    for t in range(70):
        own = t // 8
        forced = sorted({0, max(own - 1, 0), own})
        # At blocks 0 to 2 forced blocks coincide or leave no other block, so nothing else can be taken.
        assert got[0, t, 0].tolist() == forced + [-1] * (3 - len(forced))


def test_slots_that_coinciding_forced_blocks_leave_are_free() -> None:
    """At block 3 with 3 initial and 3 local, forced are 0 to 3; later slots stay unused."""
    q, k = draw(1, 32, 1, 4, seed=0), draw(1, 32, 1, 4, seed=1)
    got = select_blocks(q, k, method="mean_key", block_size=4, num_selected=6, num_initial=3, num_local=3)
    assert got[0, 13, 0].tolist() == [0, 1, 2, 3, -1, -1]
    assert got[0, 31, 0].tolist() == [0, 1, 2, 5, 6, 7]


def test_all_heads_of_a_group_share_the_list_of_the_summed_scores() -> None:
    """Head 0 prefers block 0 by 4, head 1 prefers block 2 by 6: together block 2 wins."""
    k = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).reshape(1, 4, 1, 2)
    q = torch.tensor([[4.0, 0.0], [0.0, 6.0]]).reshape(1, 1, 2, 2)
    got = select_blocks(q, k, method="mean_key", block_size=1, num_selected=2, q_start=3)
    assert got.flatten().tolist() == [2, 3]


def test_compressed_scores_of_a_group_are_summed_after_the_softmax() -> None:
    """Head 0 is sure of window 0; heads 1 and 2 lean to window 2. Summing scores first would choose window 0."""
    k = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).reshape(1, 4, 1, 2)
    q = torch.tensor([[100.0, 0.0], [0.0, 5.0], [0.0, 5.0]]).reshape(1, 1, 3, 2)
    got = select_blocks(
        q, k, method="compressed", block_size=1, kernel=1, stride=1, num_selected=2, q_start=3, scale=1.0
    )
    assert got.flatten().tolist() == [2, 3]


@pytest.mark.parametrize("method", ["mean_key", "compressed"])
def test_kf05_selection_does_not_look_ahead(method: str) -> None:
    q, k = draw(1, 48, 2, 4, seed=0), draw(1, 48, 1, 4, seed=1)
    options: dict[str, Any] = {"method": method, "block_size": 8, "num_selected": 3}
    changed = k.clone()
    changed[:, 29:] *= -50

    def select(keys: Tensor) -> Tensor:
        if method == "mean_key":
            return select_blocks(q, keys, **options)
        return select_blocks(q, compress(keys, kernel=4, stride=2), **options, kernel=4, stride=2)

    before, after = select(k), select(changed)
    assert torch.equal(before[:, :29], after[:, :29])
    assert not torch.equal(before[:, 29:], after[:, 29:])
    own = torch.arange(48) // 8
    assert bool((before <= own[None, :, None, None]).all())


@pytest.mark.parametrize("method", ["mean_key", "compressed"])
def test_kf07_decoding_chooses_what_prefill_chose(method: str) -> None:
    q, k = draw(2, 37, 2, 4, seed=0), draw(2, 37, 1, 4, seed=1)
    options: dict[str, Any] = {"method": method, "block_size": 4, "num_selected": 4}
    if method == "compressed":
        k = compress(k, kernel=4, stride=2)
        options.update(kernel=4, stride=2)
    whole = select_blocks(q, k, **options)
    for t in (0, 3, 4, 20, 36):
        assert torch.equal(select_blocks(q[:, t : t + 1], k, **options, q_start=t), whole[:, t : t + 1])


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["mean_key", "compressed"])
def test_kf06_poison_stays_in_its_batch_row_and_choices_stay_valid(poison: float, method: str) -> None:
    q, k = draw(3, 32, 2, 4, seed=0), draw(3, 32, 1, 4, seed=1)
    options: dict[str, Any] = {"method": method, "block_size": 4, "num_selected": 4, "num_initial": 1}
    if method == "compressed":
        options.update(kernel=1, stride=1)
    clean = select_blocks(q, k, **options)
    k[1, 6] = poison
    dirty = select_blocks(q, k, **options)
    assert torch.equal(clean[[0, 2]], dirty[[0, 2]])
    for t, row in enumerate(dirty[1, :, 0].tolist()):
        chosen = [j for j in row if j >= 0]
        assert chosen == sorted(set(chosen))
        assert {0, t // 4} <= set(chosen) <= set(range(t // 4 + 1))
        assert len(chosen) == min(4, t // 4 + 1)


def test_kf06_a_block_with_a_nan_score_ranks_last_but_can_fill_a_slot() -> None:
    k = torch.tensor([1.0, math.nan, 3.0, 2.0, 0.0]).reshape(1, 5, 1, 1)
    q = torch.ones(1, 1, 1, 1)
    for n, expected in ((3, [2, 3, 4]), (4, [0, 2, 3, 4]), (5, [0, 1, 2, 3, 4])):
        got = select_blocks(q, k, method="mean_key", block_size=1, num_selected=n, q_start=4)
        assert got.flatten().tolist() == expected


def test_selection_has_no_gradient() -> None:
    q, k = draw(1, 8, 1, 2, seed=0).requires_grad_(), draw(1, 8, 1, 2, seed=1).requires_grad_()
    scores, _ = block_scores(q, k, method="mean_key", block_size=2)
    assert not scores.requires_grad


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"method": "mean"}, ("method = 'mean'", "did you mean 'mean_key'?")),
        ({"method": "compressed"}, ("needs kernel and stride", "kernel = None")),
        ({"method": "compressed", "kernel": 6, "stride": 4}, ("stride = 4 must divide kernel = 6", "block_size = 8")),
        ({"method": "compressed", "kernel": 9, "stride": 3}, ("stride = 3 must divide", "block_size = 8")),
        ({"method": "mean_key", "q_start": 7}, ("position 16", "16 keys", "q_start of at most 6")),
    ],
)
def test_refusals_say_what_to_do(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        select_blocks(torch.ones(1, 10, 1, 2), torch.ones(1, 16, 1, 2), block_size=8, num_selected=2, **options)
    for part in parts:
        assert part in str(error.value)


def test_rows_are_listed_per_query_and_key_head() -> None:
    q, k = draw(2, 5, 4, 2, seed=0), draw(2, 5, 2, 2, seed=1)
    got = select_blocks(q, k, method="mean_key", block_size=2, num_selected=1)
    assert got.flatten(0, -2).tolist() == [[t // 2] for _ in range(2) for t in range(5) for _ in range(2)]
