"""Index sets against their meaning in words, and `count` against counting."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_codegen.errors import SpecError
from nsa_codegen.index_sets import Bound, Range, RangeSet, TopK, causal, complete, everything, first, top_k, window

positions = st.integers(0, 300)
lengths = st.integers(0, 300)
sizes = st.integers(1, 70)
bounds = st.builds(
    Bound, offset=st.integers(-40, 40), divisor=st.integers(0, 5), cap=st.one_of(st.none(), st.integers(0, 60))
)


@st.composite
def range_sets(draw: st.DrawFn) -> RangeSet:
    ranges = tuple(draw(st.lists(st.builds(Range, lo=bounds, hi=bounds), min_size=1, max_size=3)))
    try:
        return RangeSet(ranges=ranges)
    except SpecError:  # not in ascending order: one range is always fine
        return RangeSet(ranges=ranges[:1])


def seen(visible: RangeSet, t: int, keys: int) -> set[int]:
    return {j for j in range(keys) if visible.sees(t, j, keys)}


@given(positions, lengths)
def test_causal_sees_the_past_and_itself(t: int, keys: int) -> None:
    assert seen(causal(), t, keys) == {j for j in range(keys) if j <= t}


@given(sizes, positions)
def test_kf18_window_sees_exactly_w_tokens_with_the_query_itself(w: int, t: int) -> None:
    got = seen(window(w), t, t + 10)
    assert got == set(range(max(0, t - w + 1), t + 1))
    assert len(got) == min(w, t + 1)


@given(sizes, sizes, positions, lengths)
def test_kf05_complete_sees_only_windows_that_have_ended(kernel: int, stride: int, t: int, keys: int) -> None:
    assert seen(complete(kernel, stride), t, keys) == {i for i in range(keys) if i * stride + kernel - 1 <= t}


@given(sizes, positions, lengths)
def test_first_sees_the_sink_tokens_that_have_come(n: int, t: int, keys: int) -> None:
    assert seen(first(n), t, keys) == {j for j in range(keys) if j < n and j <= t}


@given(positions, lengths)
def test_everything_sees_every_key(t: int, keys: int) -> None:
    assert seen(everything(), t, keys) == set(range(keys))


@given(sizes, sizes, positions, lengths)
def test_sinks_and_window_are_a_union_that_counts_overlaps_once(n: int, w: int, t: int, keys: int) -> None:
    both = first(n) | window(w)
    assert seen(both, t, keys) == seen(first(n), t, keys) | seen(window(w), t, keys)
    assert both.count(t, keys) == len(seen(both, t, keys))


@settings(max_examples=300)
@given(range_sets(), st.integers(0, 120), st.integers(0, 120))
def test_count_is_the_number_of_keys_seen(visible: RangeSet, t: int, keys: int) -> None:
    assert visible.count(t, keys) == len(seen(visible, t, keys))


@given(bounds, positions, lengths)
def test_bounds_never_fall_and_stay_within_the_keys(bound: Bound, t: int, keys: int) -> None:
    assert 0 <= bound.at(t, keys) <= bound.at(t + 1, keys) <= keys


@given(range_sets())
def test_json_gives_the_same_set_back(visible: RangeSet) -> None:
    assert RangeSet.from_json(visible.to_json()) == visible


@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 200), st.data())
def test_top_k_counts_tokens_of_its_blocks(n: int, block: int, keys: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(0, keys - 1))
    own = t // block
    # Which past blocks are chosen does not matter: each is whole. The query's own ends at t, or at its last key.
    past = list(range(own))[: n - 1]
    whole = [j for b in past for j in range(b * block, (b + 1) * block)]
    mine = [j for j in range(own * block, (own + 1) * block) if j < keys]
    assert top_k("mean_key", n=n, block=block, causal=False).count(t, keys) == len(whole + mine)
    assert top_k("mean_key", n=n, block=block).count(t, keys) == len(whole + [j for j in mine if j <= t])


@settings(max_examples=500)
@given(bounds, bounds)
def test_order_of_ranges_is_checked_at_every_position(before: Bound, after: Bound) -> None:
    """Offsets reach 40, caps 60, divisors 5: by position 60 * 5 + 40 every bound is at its cap, or grows steadily."""
    hi = Bound(offset=1, divisor=1)
    ordered = all(before.at(t, 1 << 40) <= after.at(t, 1 << 40) for t in [*range(1000), 1 << 30])
    try:
        RangeSet(ranges=(Range(lo=before, hi=hi), Range(lo=after, hi=hi)))
    except SpecError:
        assert not ordered
    else:
        assert ordered


def test_sets_print_as_formulas() -> None:
    assert str(first(4) | window(64)) == "[0, min(t+1, 4)) | [t-63, t+1)"
    assert str(complete(32, 16)) == "[0, (t-15)//16)"
    assert str(everything()) == "[0, end)"
    assert str(top_k("compressed", n=16, block=64, initial=1, local=2)) == (
        "top_k(compressed, n=16, block=64, 1 initial, 2 local)"
    )


TOP = top_k("mean_key", n=2, block=4)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: window(0), ("window.w = 0", "integer >= 1")),
        (lambda: window(True), ("window.w = True", "integer >= 1")),
        (lambda: first(-3), ("first.n = -3", "integer >= 1")),
        (lambda: complete(4, 0), ("complete.stride = 0", "integer >= 1")),
        (lambda: complete(4.0, 4), ("complete.kernel = 4.0", "integer >= 1")),
        (lambda: Bound(divisor=-1), ("Bound.divisor = -1", "integer >= 0")),
        (lambda: Bound(offset=1.5), ("Bound.offset = 1.5", "an integer")),
        (lambda: Bound(cap="x"), ("Bound.cap = 'x'", "an integer, or END")),
        (lambda: Bound(cap=True), ("Bound.cap = True", "an integer, or END")),
        (lambda: Range(lo=0, hi=Bound()), ("Range.lo = 0", "a Bound")),
        (lambda: RangeSet(ranges=window(3).ranges[0]), ("RangeSet.ranges = Range(", "a tuple of Range")),
        (lambda: RangeSet(ranges=(3,)), ("RangeSet.ranges = 3", "a tuple of Range")),
        (lambda: window(3) | 3, ("[t-2, t+1) | 3", "only range sets join")),
        (lambda: 3 | window(3), ("3 | [t-2, t+1)", "only range sets join")),
        (lambda: window(3) | TOP, ("[t-2, t+1) | top_k(", "a Path of its own")),
        (lambda: TOP | window(3), ("1 local) | [t-2, t+1)", "a Path of its own")),
        (lambda: TOP | TOP, ("1 local) | top_k(", "a Path of its own")),
        (lambda: RangeSet(ranges=()), ("RangeSet.ranges = ()", "at least one range")),
        (lambda: window(5) | first(2), ("RangeSet.ranges", "ascending order", "swap")),
        (lambda: top_k("mean_keys", n=2, block=4), ("TopK.score = 'mean_keys'", "'mean_key'")),
        (lambda: TopK(score="mean_key", n=0, block=4), ("TopK.n = 0", "integer >= 1")),
        (lambda: TopK(score="mean_key", n=2, block=0), ("TopK.block = 0", "integer >= 1")),
        (lambda: TopK(score="mean_key", n=2, block=4, local=0), ("TopK.local = 0", "integer >= 1")),
        (lambda: TopK(score="mean_key", n=2, block=4, causal=0), ("TopK.causal = 0", "True or False")),
        (lambda: TopK(score="compressed", n=2, block=4, source=3), ("TopK.source = 3", "the name of a path")),
        (lambda: TopK(score="mean_key", n=2, block=4, initial=1, local=2), ("TopK.n = 2", "n >= 3")),
    ],
)
def test_refusals_name_field_value_and_what_is_allowed(make: object, parts: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as error:
        make()  # type: ignore[operator]
    for part in parts:
        assert part in str(error.value)
