"""How the keys' backward on a GPU shares out queries: which sets are shared, and that pieces of lists are the lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_codegen.index_sets import Bound, Range, RangeSet, causal, complete, everything, first, window
from nsa_codegen.ops.gather_attention import inverse_lists, list_pieces
from nsa_codegen.splits import (
    LEAST_QUERIES,
    LEAST_ROWS,
    MOST_SPLITS,
    holds_weights,
    is_split,
    most_pieces,
    piece_of,
    splits_of,
)
from nsa_codegen.target import GPU_TARGETS

HALF_BACK = RangeSet(ranges=(Range(lo=Bound(divisor=2), hi=Bound(offset=1, divisor=1)),))
STRIDED_WINDOW = RangeSet(ranges=(Range(lo=Bound(offset=-20, divisor=4), hi=Bound(offset=-3, divisor=4)),))
SETS = (causal(), everything(), window(7), first(4) | window(9), complete(8, 4), HALF_BACK, STRIDED_WINDOW)


@pytest.mark.parametrize("visible", SETS, ids=str)
def test_queries_are_shared_where_a_longer_sequence_has_more_of_them_for_a_key(visible: RangeSet) -> None:
    def most(tokens: int) -> int:
        return max(sum(visible.sees(t, key, tokens) for t in range(tokens)) for key in range(tokens))

    assert is_split(visible) == (most(400) > most(200))


@given(tokens=st.integers(1, 1 << 17), keys=st.integers(0, 1 << 17), group=st.sampled_from((1, 3, 4, 16)))
def test_sums_of_splits_take_no_more_bytes_than_q_and_out(tokens: int, keys: int, group: int) -> None:
    splits = splits_of(tokens=tokens, keys=keys, group=group)
    assert 1 <= splits <= MOST_SPLITS and (splits - 1) * LEAST_QUERIES < tokens
    assert splits == 1 or 4 * splits * keys <= max(4 * LEAST_ROWS, 2 * tokens * group)


def test_a_long_sequence_has_all_splits_of_its_compressed_tokens() -> None:
    assert splits_of(tokens=65536, keys=4095, group=16) == MOST_SPLITS
    assert splits_of(tokens=4096, keys=255, group=1) == MOST_SPLITS
    assert splits_of(tokens=65536, keys=65536, group=1) == 1


def test_warps_keep_weights_where_each_warp_group_has_its_64_rows() -> None:
    hopper = GPU_TARGETS["sm_90a"]
    kept = {(r, t): holds_weights(rows=r, threads=t, target=hopper) for r in (16, 64, 128) for t in (64, 128, 256)}
    assert [tile for tile, held in kept.items() if held] == [(64, 128), (128, 128), (128, 256)]
    assert not any(holds_weights(rows=64, threads=128, target=t) for t in GPU_TARGETS.values() if t.matrix != "wgmma")


@settings(deadline=None)
@given(
    tokens=st.integers(1, 90), block=st.sampled_from((1, 5, 16)), n=st.integers(1, 5), heads=st.integers(1, 2),
    blocks=st.integers(1, 6), piece=st.integers(1, 40), is_causal=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_pieces_are_the_lists_in_order(
    tokens: int, block: int, n: int, heads: int, blocks: int, piece: int, is_causal: bool, seed: int
) -> None:
    lists = torch.randint(-1, blocks, (2, tokens, heads, n), generator=torch.Generator().manual_seed(seed))
    starts, listing = inverse_lists(lists, block=block, blocks=blocks, q_start=0, causal=is_causal)
    slots = most_pieces(tokens=tokens, listed=n, piece=piece)
    pieces, shared = list_pieces(starts, piece=piece, slots=slots)
    assert pieces.shape == (2, heads, slots + blocks, 3) and shared.shape == (2, heads, blocks, 2)
    for b in range(2):
        for h in range(heads):
            rows, used = pieces[b, h].tolist(), 0
            for j in range(blocks):
                begin, end = starts[b, h, j].tolist()
                first_slot, many = shared[b, h, j].tolist()
                own = rows[first_slot : first_slot + many] if many else [rows[slots + j]]
                assert all(row[0] == j and row[2] - row[1] <= piece for row in own)
                taken = [t for row in own for t in listing[b, h, row[1] : row[2]].tolist()]
                assert taken == listing[b, h, begin:end].tolist()
                assert many == (-(-(end - begin) // piece) if end - begin > piece else 0)
                assert not many or rows[slots + j][1] == rows[slots + j][2]  # the whole list is left to its pieces
                used += many
            assert all(row[1] == row[2] for row in rows[used:slots])


@given(tokens=st.integers(1, 1 << 17), n=st.integers(1, 32), block=st.sampled_from((8, 16, 64)))
def test_sums_of_pieces_take_no_more_bytes_than_q_and_out(tokens: int, n: int, block: int) -> None:
    for group in (1, 2, 4, 16):
        piece = piece_of(listed=n, block=block, group=group)
        assert 4 * most_pieces(tokens=tokens, listed=n, piece=piece) * block <= 2 * tokens * group


def test_without_keys_there_are_no_pieces() -> None:
    starts, _ = inverse_lists(torch.full((1, 3, 2, 4), -1), block=16, blocks=0, q_start=0, causal=True)
    pieces, shared = list_pieces(starts, piece=64, slots=0)
    assert pieces.shape == (1, 2, 0, 3) and shared.shape == (1, 2, 0, 2)
