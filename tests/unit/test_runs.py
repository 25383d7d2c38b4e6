"""Runs of queries in a CPU's backward: they cover all queries, their places hold all keys that they see, and fit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_codegen.index_sets import RangeSet, causal, complete, everything, first, window
from nsa_codegen.runs import ENOUGH_RUNS, FEW_RUNS, LEAST_PARTS, MOST_RUNS, Runs, keys_passed

SETS = (causal(), everything(), window(7), window(100), first(4) | window(9), complete(8, 4))
sets = st.sampled_from(SETS)
where = {"tokens": st.integers(1, 300), "keys": st.integers(0, 300), "q_start": st.integers(0, 300)}


@settings(deadline=None)
@given(
    visible=sets,
    rows=st.integers(1, 40),
    width=st.sampled_from((32, 200_000)),
    room=st.sampled_from((0, 1 << 24)),
    **where,
)
def test_places_of_runs_hold_what_their_queries_see(
    visible: RangeSet, rows: int, width: int, room: int, tokens: int, keys: int, q_start: int
) -> None:
    runs = Runs.of(visible, tokens=tokens, keys=keys, q_start=q_start, rows=rows, width=width, room=room)
    assert (runs.count - 1) * runs.queries < tokens <= runs.count * runs.queries
    assert runs.count <= max(1, min(MOST_RUNS, ENOUGH_RUNS // rows))
    most = max(LEAST_PARTS, room)
    if FEW_RUNS < rows * runs.count <= 2 * FEW_RUNS:
        most = max(2 * LEAST_PARTS, room)
    assert runs.count == 1 or rows * width * runs.count * runs.reach <= most
    for start in range(0, tokens, runs.queries):
        positions = range(q_start + start, q_start + min(start + runs.queries, tokens))
        seen = [key for key in range(keys) if any(visible.sees(t, key, keys) for t in positions)]
        if seen:
            begin = visible.ranges[0].lo.at(positions[0], keys)
            assert begin <= seen[0] and seen[-1] < begin + runs.reach


@settings(deadline=None)
@given(visible=sets, queries=st.sampled_from((1, 4, 5, 64)), run=st.sampled_from((64, 128)), **where)
def test_a_tile_passes_over_no_more_keys_than_are_kept(
    visible: RangeSet, queries: int, run: int, tokens: int, keys: int, q_start: int
) -> None:
    kept = keys_passed(visible, tokens=tokens, keys=keys, q_start=q_start, queries=queries, run=run)
    most = 0
    for start in range(0, tokens, run):
        for tile in range(start, min(start + run, tokens), queries):
            positions = range(q_start + tile, q_start + min(tile + queries, start + run, tokens))
            most = max(most, sum(any(visible.sees(t, key, keys) for t in positions) for key in range(keys)))
    assert most <= kept <= keys


@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (64, 1), (65, 2), (4096, 64), (16384, 64)])
def test_a_long_sequence_of_one_head_gets_many_runs(tokens: int, count: int) -> None:
    runs = Runs.of(window(512), tokens=tokens, keys=tokens, q_start=0, rows=1, width=128, room=tokens * 2048)
    assert runs.count == count


@pytest.mark.parametrize(("tokens", "count"), [(1024, 16), (4096, 16), (8192, 16), (16384, 8), (65536, 1)])
def test_a_reach_of_all_keys_leaves_tasks_enough_and_takes_little_memory(tokens: int, count: int) -> None:
    """In the last places of few runs one thread works and the others wait; many take much memory for each."""
    room = tokens * 1024 if tokens < 65536 else 0
    assert Runs.of(causal(), tokens=tokens, keys=tokens, q_start=0, rows=1, width=128, room=room).count == count


def test_many_heads_need_no_runs() -> None:
    assert Runs.of(causal(), tokens=256, keys=256, q_start=0, rows=128, width=64, room=1 << 24).count == 1
