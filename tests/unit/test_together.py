"""Heads that pass over keys together."""

from hypothesis import given
from hypothesis import strategies as st

from nsa_codegen.tiling import ceil_div
from nsa_codegen.together import shared_evenly


@given(heads=st.integers(1, 300), most=st.integers(1, 8), workers=st.integers(1, 70))
def test_heads_that_pass_over_keys_together_leave_no_worker_out(heads: int, most: int, workers: int) -> None:
    """Workers have no more rounds than heads at their most together take, and heads are spread over all of these."""
    together = shared_evenly(heads, most, workers)
    assert 1 <= together <= most
    rounds = ceil_div(heads, most * workers)
    assert ceil_div(ceil_div(heads, together), workers) <= rounds
    assert together * rounds * workers < heads + rounds * workers
