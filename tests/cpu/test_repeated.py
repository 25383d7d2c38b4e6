"""Calls like one before: the same bits without torch in between, and whoever looks at calls of ops still sees them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SEED, draw, drawn, kernels_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nsa_codegen import functional, repeated
from nsa_codegen.errors import InputError
from nsa_codegen.index_sets import causal, window
from nsa_codegen.program import Path as ProgramPath
from nsa_codegen.program import Phi, Program, Tokens

WINDOW = ("k_win", "v_win")
POOLED = SEED.replace(causal=False, pool_queries=True)


def two_paths(keys: Tokens | Phi) -> Program:
    """A window, and all keys up to the query's position."""
    paths = (ProgramPath(name="near", visible=window(4)), ProgramPath(name="far", keys=keys, visible=causal()))
    return Program(name="two", num_heads=2, head_dim=16, combine="scalar", paths=paths)


KERNELS = [
    d
    for p in (SEED.program(), POOLED.program(), two_paths(Tokens()))
    for d in kernels_of(p, torch.float32, backward=False)
]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the queries of each call that is run without torch; none is kept from another test."""
    found: list[tuple[int, ...]] = []
    run = repeated._run

    def noted(call: Any, given: repeated.Given, start: int) -> Tensor:
        found.append(tuple(given.tensors[0].shape))
        return run(call, given, start)

    monkeypatch.setattr(repeated, "_run", noted)
    monkeypatch.setattr(repeated, "_calls", {})
    return found


def inputs(keys: int = 40, *, batch: int = 1, seed: int = 0) -> list[Tensor]:
    """One query per row, keys, values, compressed ones, and gates."""
    q = draw(batch, 1, 2, 16, seed=seed)
    k, v = (draw(batch, keys, 2, 16, seed=seed + i) for i in (1, 2))
    k_cmp, v_cmp = (functional.compress(x, kernel=SEED.kernel, stride=SEED.stride) for x in (k, v))
    return [q, k, v, k_cmp, v_cmp, draw(3, seed=seed + 3).sigmoid()]


def attend(q: Tensor, k: Tensor, v: Tensor, k_cmp: Tensor, v_cmp: Tensor, gates: Tensor, **options: Any) -> Tensor:
    return functional.nsa_attention(q, k, v, gates, SEED, k_cmp=k_cmp, v_cmp=v_cmp, impl="compiled", **options)


def by_torch(q: Tensor, k: Tensor, v: Tensor, k_cmp: Tensor, v_cmp: Tensor, gates: Tensor) -> Tensor:
    keys, values = [k_cmp, k, k], [v_cmp, v, v]
    program = SEED.program().text
    out: Tensor = torch.ops.nsa_codegen.attention(q, keys, values, gates, [], program, k.shape[1] - 1, 0.25)
    return out


def test_a_repeated_call_has_the_bits_of_the_op(kernels: Path, runs: list[Any]) -> None:
    @drawn(20)
    @given(keys=st.integers(1, 90), batch=st.integers(1, 3), calls=st.integers(1, 3), inference=st.booleans())
    def check(keys: int, batch: int, calls: int, inference: bool) -> None:
        runs.clear()
        for seed in range(calls):
            with torch.inference_mode(inference):
                values = inputs(keys, batch=batch, seed=seed)
                found = attend(*values)
                assert torch.equal(found, by_torch(*values))
        if keys > 8:  # with fewer all blocks are packed, which takes runs
            assert runs == [(batch, 1, 2, 16)] * calls

    check()


def test_sizes_and_scales_have_calls_of_their_own(kernels: Path, runs: list[Any]) -> None:
    values = inputs(40)
    attend(*values)
    wanted = functional.nsa_attention(*values[:3], values[5], SEED, q_start=20, impl="reference")
    assert torch.allclose(attend(*values, q_start=20), wanted, atol=1e-5)
    program, kv = SEED.program(), dict.fromkeys(("selected", "window"), (values[1], values[2]))
    kv["compressed"] = (values[3], values[4])
    for scale in (None, 0.5, 0.5):
        wanted = functional.attention(program, values[0], kv, values[5], scale=scale, impl="reference")
        assert torch.allclose(functional.attention(program, values[0], kv, values[5], scale=scale), wanted, atol=1e-5)
    assert len(runs) == 5
    assert len(repeated._calls) == 3


def test_programs_that_differ_in_what_their_keys_are(kernels: Path, runs: list[Any]) -> None:
    """Positions follow from tokens, and not from compressed ones: the same tensors and ranges, another call."""
    tokens, compressed = two_paths(Tokens()), two_paths(Phi(kernel=4, stride=4))
    assert tokens.text == compressed.text
    q, gates = draw(2, 1, 2, 16, seed=0), draw(2, seed=5).sigmoid()
    near, far = ([draw(2, keys, 2, 16, seed=keys + i) for i in (1, 2)] for keys in (40, 10))
    kv = {"near": (near[0], near[1]), "far": (far[0], far[1])}
    for _ in range(2):
        for each in (tokens, compressed):
            wanted = functional.attention(each, q, kv, gates, impl="reference")
            assert torch.allclose(functional.attention(each, q, kv, gates, impl="compiled"), wanted, atol=1e-5)
    assert len(runs) == 4
    functional.attention(compressed, q, kv, gates, q_start=30)
    with pytest.raises(InputError, match="1 queries from position 30 do not fit 10 keys"):
        functional.attention(tokens, q, kv, gates, q_start=30)


def test_pooled_queries_are_no_call_of_others(kernels: Path, runs: list[Any]) -> None:
    plain = POOLED.replace(pool_queries=False)
    q, k, v = (draw(2, 40, 2, 16, seed=seed) for seed in range(3))
    k_cmp, v_cmp = (functional.compress(x, kernel=4, stride=4) for x in (k, v))
    gates = draw(3, seed=5).sigmoid()
    for spec in (plain, POOLED, plain):
        given = {"k_cmp": k_cmp, "v_cmp": v_cmp, "impl": "compiled"}
        wanted = functional.nsa_attention(q, k, v, gates, spec, **{**given, "impl": "reference"})
        assert torch.allclose(functional.nsa_attention(q, k, v, gates, spec, **given), wanted, atol=1e-5)


def test_one_call_serves_every_position(kernels: Path, runs: list[Any]) -> None:
    """In any order, and with none given; those that the keys do not hold are refused as if no call had been before."""
    q, k, v, _, _, gates = values = inputs(60)
    wanted = {t: functional.nsa_attention(q, k, v, gates, SEED, q_start=t, impl="reference") for t in range(60)}
    for t in (30, 59, 0, 1, 7, 8, 31, 58, None):
        found = attend(*values, q_start=t)
        assert torch.allclose(found, wanted[59 if t is None else t], atol=1e-5), t
    assert len(runs) == 9
    assert len(repeated._calls) == 1
    for bad in (-1, 60):
        with pytest.raises(InputError, match=f"1 queries from position {bad} do not fit 60 keys"):
            attend(*values, q_start=bad)
    with pytest.raises(InputError, match=r"q_start = 7\.0 is not allowed; give an integer"):
        attend(*values, q_start=7.0)
    assert len(runs) == 9


def test_means_are_given_of_all_blocks_before_the_query(kernels: Path, runs: list[Any]) -> None:
    """A call that was made of the same means at an earlier position does not let a later one read behind them."""
    q, k, v, k_cmp, v_cmp, gates = inputs(60)
    program, pair, few = SEED.program(), (k, v), 2
    means = {"selected": functional.block_means(k, block_size=SEED.block_size)[:, :few].contiguous()}
    kv = {"compressed": (k_cmp, v_cmp), "selected": pair, "window": pair}
    last = (few + 1) * SEED.block_size - 1
    for t in (last - 5, last):
        found = functional.attention(program, q, kv, gates, block_means=means, q_start=t, impl="compiled")
        wanted = functional.attention(program, q, kv, gates, q_start=t, impl="reference")
        assert torch.allclose(found, wanted, atol=1e-5)
    assert len(runs) == 2
    with pytest.raises(InputError, match=r"block_means\['selected'\] has shape"):
        functional.attention(program, q, kv, gates, block_means=means, q_start=last + 1, impl="compiled")


def test_a_window_of_its_own_tokens(kernels: Path, runs: list[Any]) -> None:
    """Tensors of the same sizes, given twice, or copies, or others: what is read is what was given."""
    q, k, v, k_cmp, v_cmp, gates = values = inputs(40)
    others = inputs(40, seed=7)[1:3]
    shared, copied, other = (
        attend(*values),
        {"k_win": k.clone(), "v_win": v.clone()},
        dict(zip(WINDOW, others, strict=True)),
    )
    for _ in range(2):
        assert torch.equal(attend(*values), shared)
        assert torch.equal(attend(*values, **copied), shared)
        found = attend(*values, **other)
        keys, tokens = [k_cmp, k, others[0]], [v_cmp, v, others[1]]
        text = SEED.program().text
        assert torch.equal(found, torch.ops.nsa_codegen.attention(q, keys, tokens, gates, [], text, 39, 0.25))
        assert not torch.equal(found, shared)
    assert len(runs) == 7
    assert len(repeated._calls) == 2


def test_tokens_that_the_call_compresses_itself(kernels: Path, runs: list[Any]) -> None:
    q, k, v, _, _, gates = values = inputs(40)
    for _ in range(2):
        found = functional.nsa_attention(q, k, v, gates, SEED, impl="compiled")
        assert torch.equal(found, by_torch(*values))
    assert len(runs) == 2


def test_calls_of_threads_at_once(kernels: Path, runs: list[Any]) -> None:
    """Each call has working memory of its own."""
    values = [inputs(40, seed=seed) for seed in range(4)]
    wanted = [attend(*x) for x in values]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: attend(*values[i % 4]), range(400)))
    assert all(torch.equal(x, wanted[i % 4]) for i, x in enumerate(found))
    assert len(runs) == 404


def test_no_more_calls_are_kept_than_some_hundred(
    kernels: Path, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated, "MOST", 4)
    for keys in range(10, 30):
        attend(*inputs(keys))
        assert 1 <= len(repeated._calls) <= 4


def _dispatch_mode(call: Callable[[], Tensor]) -> list[str]:
    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Mode():
        call()
    return seen


def _function_mode(call: Callable[[], Tensor]) -> list[str]:
    seen: list[str] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        call()
    return [name.replace(".", "::") for name in seen]


def _profiler(call: Callable[[], Tensor]) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return [event.key for event in profile.key_averages()]


def _trace(call: Callable[[], Tensor]) -> list[str]:
    traced = torch.jit.trace(lambda x: x + call(), torch.zeros(()), check_trace=False)
    return [node.kind() for node in traced.graph.nodes()]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("watch", [_dispatch_mode, _function_mode, _profiler, _trace])
def test_who_looks_at_ops_sees_a_repeated_call(
    watch: Callable[[Callable[[], Tensor]], list[str]], kernels: Path, runs: list[Any]
) -> None:
    values = inputs()
    attend(*values)
    assert len(runs) == 1
    seen = watch(lambda: attend(*values))
    assert any("nsa_codegen::attention" in name for name in seen), seen
    assert len(runs) == 1
    attend(*values)
    assert len(runs) == 2


def test_fake_tensors_stay_fake(kernels: Path, runs: list[Any]) -> None:
    values = inputs()
    attend(*values)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in values]
        assert isinstance(attend(*fake), FakeTensor)
    assert isinstance(attend(*fake), FakeTensor)
    assert len(runs) == 1


def test_gradients_flow_after_a_call_without(kernels: Path, runs: list[Any]) -> None:
    values = inputs()
    attend(*values)
    values[2].requires_grad_()
    attend(*values).sum().backward()
    assert values[2].grad is not None
    assert len(runs) == 1
    with torch.no_grad():
        assert attend(*values).grad_fn is None
    assert len(runs) == 2


def test_forward_derivatives_go_through_torch(kernels: Path, runs: list[Any]) -> None:
    values = inputs()
    attend(*values)
    with forward_ad.dual_level(), torch.no_grad():
        attend(*values)
    assert len(runs) == 1


def test_views_and_subclasses(kernels: Path, runs: list[Any]) -> None:
    """A negative view holds other numbers than it stands for, and one that is not contiguous lies otherwise."""

    class Mine(torch.Tensor):
        pass

    values = inputs()
    wanted, other = attend(*values), attend(-values[0], *values[1:])
    runs.clear()
    assert torch.equal(attend(torch._neg_view(values[0]), *values[1:]), other)
    across = values[0].transpose(2, 3).contiguous().transpose(2, 3)
    assert not across.is_contiguous()
    assert torch.equal(attend(across, *values[1:]), wanted)
    assert isinstance(attend(values[0].as_subclass(Mine), *values[1:]), Mine)
    assert not runs
    assert torch.equal(attend(torch.nn.Parameter(values[0], requires_grad=False), *values[1:]), wanted)
    assert len(runs) == 1
