"""The whole program as one op, for calls without gradients: bit-equal to the single ops, whatever its runs are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import MEANS, SEED, draw, drawn, kernels_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nsa_codegen import functional, inference, repeated, training
from nsa_codegen.errors import InputError
from nsa_codegen.program import Phi, Program

_FILE = Path(__file__).parents[2] / "examples" / "programs.py"
_SPEC = importlib.util.spec_from_file_location("programs", _FILE)
assert _SPEC is not None and _SPEC.loader is not None
programs = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(programs)

PROGRAMS = {
    "three heads in a group": MEANS.program(),
    "mean keys": SEED.program(),
    "one path": programs.moba(num_heads=2, num_kv_heads=1, head_dim=16, block=8, n=3),
}
KERNELS = [d for p in PROGRAMS.values() for d in kernels_of(p, torch.float32, backward=False)]


def keys_of(program: Program, batch: int, tokens: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return keys and values by path, compressed tokens where a path has them."""
    found = {}
    for number, path in enumerate(program.paths):
        pair = [
            draw(batch, tokens, program.kv_heads, dim, seed=10 * number + part)
            for part, dim in enumerate((program.head_dim, program.dv))
        ]
        if isinstance(path.keys, Phi):
            pair = [functional.compress(x, kernel=path.keys.kernel, stride=path.keys.stride) for x in pair]
        found[path.name] = (pair[0], pair[1])
    return found


def gates_of(program: Program, *lead: int) -> Tensor | None:
    if program.combine == "none":
        return None
    paths = len(program.paths)
    return draw(*((paths,) if program.combine == "scalar" else (*lead, paths)), seed=5).sigmoid()


def both(program: Program, batch: int, queries: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return the output of the one op, and that of the single ops, which long calls with gradients take."""
    q = draw(batch, queries, program.num_heads, program.head_dim, seed=3)
    kv, gates = keys_of(program, batch, tokens), gates_of(program, batch, queries, program.num_heads)
    one = functional.attention(program, q, kv, gates, impl="compiled")
    assert one.grad_fn is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "trains_as_one", lambda *_: False)
        single = functional.attention(program, q.requires_grad_(), kv, gates, impl="compiled")
    assert single.grad_fn is not None
    return one, single.detach()


@pytest.mark.parametrize("name", PROGRAMS)
def test_equal_to_the_single_ops(name: str, kernels: Path) -> None:
    @drawn(12)
    @given(
        batch=st.integers(1, 4), tokens=st.integers(1, 300), missing=st.integers(0, 40), elements=st.integers(1, 40_000)
    )
    def check(batch: int, tokens: int, missing: int, elements: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inference, "RUN_ELEMENTS", elements)
            patch.setattr(repeated, "_calls", {})
            one, single = both(PROGRAMS[name], batch, max(1, tokens - missing), tokens)
        assert torch.equal(one, single)

    check()


@pytest.mark.parametrize("name", ["three heads in a group", "mean keys"])
def test_few_queries_take_the_kernels_in_one_go(name: str, kernels: Path, sequences: list[Any]) -> None:
    """As in decoding: equal to the single ops, bit for bit."""
    program = PROGRAMS[name]

    @drawn(20)
    @given(batch=st.integers(1, 3), queries=st.integers(1, 5), before=st.integers(0, 200))
    def check(batch: int, queries: int, before: int) -> None:
        one, single = both(program, batch, queries, before + queries)
        assert torch.equal(one, single)

    check()
    assert min(tokens for _, tokens, _ in sequences) == 1
    assert {batch for batch, _, by_row in sequences if not by_row} >= {1}
    sequences.clear()
    both(program, 1, 5, 5)  # so few keys that all are packed
    assert not sequences


@pytest.mark.parametrize("name", ["three heads in a group", "mean keys"])
def test_threads_take_batch_rows_of_their_own(name: str, kernels: Path, sequences: list[Any]) -> None:
    """Where rows are small: equal to the single ops, bit for bit, for any number of threads, packed keys or not."""
    before = torch.get_num_threads()

    @drawn(16)
    @given(
        batch=st.integers(2, 9),
        tokens=st.integers(1, 120),
        missing=st.integers(0, 60),
        threads=st.sampled_from([1, 2, 3]),
    )
    def check(batch: int, tokens: int, missing: int, threads: int) -> None:
        sequences.clear()
        torch.set_num_threads(threads)
        queries = max(1, tokens - missing)
        one, single = both(PROGRAMS[name], batch, queries, tokens)
        assert torch.equal(one, single)
        if batch % threads == 0 or batch >= 4 * threads:
            assert sequences == [(batch, queries, True)]

    try:
        check()
    finally:
        torch.set_num_threads(before)


def test_rows_that_threads_cannot_share_take_runs(kernels: Path, sequences: list[Any]) -> None:
    program, before = PROGRAMS["mean keys"], torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        both(program, 3, 90, 90)
        assert not sequences  # one thread would get twice as many rows as the other
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inference, "RUN_ELEMENTS", 89 * 2 * 16)
            patch.setattr(repeated, "_calls", {})
            both(program, 4, 90, 90)
        assert not sequences  # rows are longer than runs
        both(program, 4, 90, 90)
        assert len(sequences) == 1
    finally:
        torch.set_num_threads(before)


def test_runs_cover_every_query_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[tuple[int, int, int, int]] = []
    runs = inference._runs

    def noted(*sizes: int) -> Any:
        for lead, part in runs(*sizes):
            cut.append((lead.start, lead.stop, part.start, part.stop))
            yield lead, part

    monkeypatch.setattr(inference, "_runs", noted)
    monkeypatch.setattr(inference, "RUN_ELEMENTS", 100)
    monkeypatch.setattr(repeated, "_calls", {})
    both(PROGRAMS["three heads in a group"], 3, 700, 700)
    assert len(cut) > 3
    seen = torch.zeros(3, 700, dtype=torch.int32)
    for a, b, c, d in cut:
        seen[a:b, c:d] += 1
    assert bool((seen == 1).all())


@pytest.mark.parametrize("name", PROGRAMS)
def test_opcheck(name: str, kernels: Path) -> None:
    program = PROGRAMS[name]
    kv, gates = keys_of(program, 2, 40), gates_of(program, 2, 40, program.num_heads)
    q = draw(2, 40, program.num_heads, program.head_dim, seed=3)
    keys, values = ([kv[p.name][i] for p in program.paths] for i in (0, 1))
    arguments = (q, keys, values, gates, [], program.text, 0, 0.25)
    torch.library.opcheck(torch.ops.nsa_codegen.attention.default, arguments)


def test_gradients_still_flow_where_they_are_asked_for(kernels: Path) -> None:
    program = PROGRAMS["mean keys"]
    kv, gates = keys_of(program, 1, 30), gates_of(program)
    assert gates is not None
    q = draw(1, 30, 2, 16, seed=3)
    for asked in (q, gates, kv["window"][1], kv["compressed"][0]):
        asked.requires_grad_()
        out = functional.attention(program, q, kv, gates, impl="compiled")
        (grad,) = torch.autograd.grad(out.sum(), asked)
        assert bool(grad.abs().max() > 0)
        asked.requires_grad_(False)
    with torch.no_grad():
        assert functional.attention(program, q.requires_grad_(), kv, gates, impl="compiled").grad_fn is None


def test_bad_arguments_are_refused_again_after_good_ones(kernels: Path) -> None:
    program = PROGRAMS["mean keys"]
    kv, gates = keys_of(program, 1, 30), gates_of(program)
    q = draw(1, 30, 2, 16, seed=3)
    functional.attention(program, q, kv, gates)
    short = {**kv, "window": (kv["window"][0], kv["window"][1][:, :29])}
    with pytest.raises(InputError, match=r"window.*v 29; they must be equal"):
        functional.attention(program, q, short, gates)
    with pytest.raises(InputError, match="gates have shape"):
        functional.attention(program, q, kv, torch.ones(2))
    with pytest.raises(InputError, match="scale = nan"):
        functional.attention(program, q, kv, gates, scale=float("nan"))
    with pytest.raises(InputError, match=r"position 1 do not fit"):
        functional.attention(program, q, kv, gates, q_start=1)


def test_means_that_are_given_change_no_bit(kernels: Path) -> None:
    """Few queries, rows for each thread, and runs; with room behind the means, or none for the last query's block."""
    program = PROGRAMS["mean keys"]

    @drawn(40)
    @given(
        batch=st.integers(1, 4), before=st.integers(0, 150), queries=st.integers(1, 60), room=st.integers(0, 9),
        elements=st.sampled_from([1, 1000, 1 << 20]),
    )  # fmt: skip
    def check(batch: int, before: int, queries: int, room: int, elements: int) -> None:
        tokens = before + queries
        kv, gates = keys_of(program, batch, tokens), gates_of(program)
        q = draw(batch, queries, 2, 16, seed=3)
        wanted = functional.attention(program, q, kv, gates)
        means = functional.block_means(kv["selected"][0], block_size=8)[:, : (tokens - 1) // 8]
        means = torch.cat([means, means.new_full((batch, room, 2, 16), 7.0)], dim=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inference, "RUN_ELEMENTS", elements)
            patch.setattr(repeated, "_calls", {})
            for _ in range(2):
                found = functional.attention(program, q, kv, gates, block_means={"selected": means})
                assert torch.equal(found, wanted)

    check()


def test_means_are_what_blocks_are_scored_by(kernels: Path) -> None:
    program = PROGRAMS["mean keys"]
    kv, gates = keys_of(program, 1, 90), gates_of(program)
    q = draw(1, 1, 2, 16, seed=3)
    means = functional.block_means(kv["selected"][0], block_size=8)
    exact = functional.block_means(kv["selected"][0].double(), block_size=8)
    assert exact.dtype == torch.float64
    assert torch.allclose(means.double(), exact, atol=1e-6)
    found, other = (functional.attention(program, q, kv, gates, block_means={"selected": m}) for m in (means, -means))
    assert not torch.equal(found, other)


def test_means_that_do_not_fit_are_refused(kernels: Path) -> None:
    program = PROGRAMS["mean keys"]
    kv, gates = keys_of(program, 1, 90), gates_of(program)
    q = draw(1, 1, 2, 16, seed=3)
    means = functional.block_means(kv["selected"][0], block_size=8)
    for bad in (means[:, :10], means[..., :8], means.half(), means.repeat(2, 1, 1, 1)):
        with pytest.raises(
            InputError, match=r"block_means\['selected'\] has shape .* give \[1, 11, 2, 16\], torch.float32"
        ):
            functional.attention(program, q, kv, gates, block_means={"selected": bad})
    functional.attention(program, q, kv, gates, block_means={"selected": means})
    with pytest.raises(
        InputError, match=r"block_means has \['window'\]; the paths scored by mean keys are \['selected'\]"
    ):
        functional.attention(program, q, kv, gates, block_means={"selected": means, "window": means})


def test_compiled_without_gradients(kernels: Path) -> None:
    program = PROGRAMS["three heads in a group"]
    kv, gates = keys_of(program, 1, 50), gates_of(program, 1, 50, 6)
    q = draw(1, 50, 6, 16, seed=3)
    call = torch.compile(lambda q: functional.attention(program, q, kv, gates), fullgraph=True)
    with torch.no_grad():
        assert torch.equal(call(q), functional.attention(program, q, kv, gates))


def test_attention_that_lists_blocks_gives_what_two_ops_give(kernels: Path) -> None:
    """Bit for bit, since the schedules of all three take the tokens by 64."""
    sizes = {"kernel": 8, "stride": 4}

    @drawn(20)
    @given(tokens=st.integers(1, 700), first=st.integers(0, 200), seed=st.integers(0, 1 << 16))
    def check(tokens: int, first: int, seed: int) -> None:
        q, x = draw(2, tokens, 6, 16, seed=seed), draw(2, first + tokens, 2, 24, seed=seed + 1)
        both = functional.compress(x, **sizes)
        k, v = both[..., :16].contiguous(), both[..., 16:].contiguous()
        got = torch.ops.nsa_codegen.scored_attention(q, k, v, 8, 4, 1, 2, 8, 4, 0.25, first)
        lists = functional.select_blocks(
            q, k, method="compressed", block_size=8, num_selected=4, num_initial=1, num_local=2, **sizes, q_start=first
        )
        wanted = *functional.compressed_attention(q, k, v, **sizes, q_start=first), lists
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))

    check()
