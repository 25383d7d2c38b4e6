"""Decoding with a cache: the same features as all positions at once, in whatever pieces they come; and its errors."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import draw
from test_nn import MODEL, OPTION_SETS, make

from nsa_codegen import functional
from nsa_codegen.cache import LEAST_POSITIONS, AttentionCache
from nsa_codegen.errors import InputError
from nsa_codegen.nn import NSA, NSAModel
from nsa_codegen.spec import NSASpec

CAUSAL = {name: options for name, options in OPTION_SETS.items() if name != "pooled"}
each = pytest.mark.parametrize("options", CAUSAL.values(), ids=CAUSAL.keys())


def exact(options: dict[str, Any]) -> NSAModel:
    """Return the model in float64 with weights of every kind, among them gates and compression, off their start."""
    model = make({**options, "output_mode": "all"}).double()
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model


@each
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(options: dict[str, Any]) -> None:
    model = exact(options)

    @settings(max_examples=15, deadline=None)
    @given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=8), batch=st.integers(1, 2))
    def check(pieces: list[int], batch: int) -> None:
        x = draw(batch, sum(pieces), options["embed_dim"], seed=7)
        cache = model.new_cache()
        parts = [model(part, cache) for part in x.split(pieces, dim=1)]
        assert cache.length == x.shape[1]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(x), rtol=1e-11, atol=1e-11)

    check()


@torch.no_grad()
def test_buffers_grow_and_nothing_in_them_is_lost() -> None:
    model = exact(CAUSAL["paper"])
    x = draw(1, 2 * LEAST_POSITIONS + 5, 12, seed=7)
    cache = model.new_cache()
    for part in (x[:, : LEAST_POSITIONS - 1], *x[:, LEAST_POSITIONS - 1 :].split(40, dim=1)):
        last = model(part, cache)
    torch.testing.assert_close(last[:, -1], model(x)[:, -1], rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_what_was_dropped_is_forgotten_even_if_it_was_not_a_number() -> None:
    model = exact(CAUSAL["own_kv"])
    x, other = draw(2, 20, 12, seed=7), draw(2, 20, 12, seed=8)
    other[:, 3:] = torch.nan
    cache = model.new_cache()
    model(x[:, :9], cache)
    model(other, cache)
    cache.crop(9)
    assert torch.equal(model(x[:, 9:], cache), model_of_pieces(model, x, 9))


@torch.no_grad()
def test_means_of_blocks_are_kept_as_they_become_complete() -> None:
    spec = NSASpec.seed(num_heads=2, head_dim=8, window_size=4, block_size=4, num_selected_blocks=2)
    cache, whole = AttentionCache(spec), draw(2, 22, 2, 8, seed=7)
    phi = [partial(functional.compress, kernel=spec.kernel, stride=spec.stride, impl="reference")] * 2

    def means_up_to(length: int) -> None:
        kept, blocks = cache.block_means["selected"], length // 4
        assert torch.equal(kept[:, :blocks], whole[:, : 4 * blocks].unflatten(1, (blocks, 4)).mean(dim=2))
        assert not kept[:, blocks:].any()

    for part in whole.split([1, 6, *[1] * 15], dim=1):
        cache.extend([part], [part], phi, impl="reference")
        means_up_to(cache.length)
    cache.crop(9)
    means_up_to(9)
    cache.extend([whole[:, 9:]], [whole[:, 9:]], phi, impl="reference")
    means_up_to(22)
    assert AttentionCache(NSASpec.paper()).block_means == {}


def model_of_pieces(model: NSAModel, x: torch.Tensor, cut: int) -> torch.Tensor:
    cache = model.new_cache()
    model(x[:, :cut], cache)
    out: torch.Tensor = model(x[:, cut:], cache)
    return out


@torch.no_grad()
def test_the_last_position_is_that_of_the_new_ones() -> None:
    model = make(MODEL).double()
    x = draw(1, 9, 12, seed=7)
    cache = model.new_cache()
    assert model(x[:, :5], cache).shape == (1, 16)
    torch.testing.assert_close(model(x[:, 5:], cache), model(x))


@torch.no_grad()
def test_an_exception_leaves_every_layer_as_it_was() -> None:
    model = make(MODEL).double()
    x, cache = draw(1, 9, 12, seed=7), model.new_cache()
    model(x[:, :5], cache)
    broken = model.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x[:, 5:], cache)
    broken.remove()
    assert [layer.length for layer in cache.layers] == [5, 5]
    torch.testing.assert_close(model(x[:, 5:], cache), model(x))


@torch.no_grad()
def test_a_cache_of_another_spec_is_refused_and_holds_what_it_held() -> None:
    model = make(MODEL).double()
    x, cache = draw(1, 9, 12, seed=7), model.new_cache()
    model(x[:, :5], cache)
    others = {"window_size": 3, "block_size": 2, "gate": "sigmoid", "compression": "conv", "num_initial_blocks": 1}
    for name, value in others.items():
        other = make({**MODEL, name: value}).double()
        mine = getattr(model.options.spec, name)
        with pytest.raises(InputError, match=f"for a spec with {name} = {mine} and not {value}; use the cache that"):
            other(x[:, 5:], cache)
    with pytest.raises(InputError, match=r"block_size = .* and not 2, num_initial_blocks = .* and not 1; use"):
        make({**MODEL, "block_size": 2, "num_initial_blocks": 1}).double()(x[:, 5:], cache)
    assert cache.length == 5
    torch.testing.assert_close(model(x[:, 5:], cache), model(x))


@torch.no_grad()
def test_a_copy_of_a_cache_serves_copies_of_its_model() -> None:
    model = make(MODEL).double()
    x, cache = draw(1, 9, 12, seed=7), model.new_cache()
    model(x[:, :5], cache)
    wanted = model_of_pieces(model, x, 5)
    for copied in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        twin = copy.deepcopy(model)
        twin(x[:, 5:7], copied)
        torch.testing.assert_close(twin(x[:, 7:], copied), wanted)
    assert cache.length == 5


@torch.no_grad()
def test_a_first_step_that_fails_leaves_the_cache_as_new() -> None:
    model = make(MODEL).double()
    x, cache = draw(2, 9, 12, seed=7), model.new_cache()
    broken = model.blocks[1].attention.o_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x[:1, :5], cache)
    broken.remove()
    model(x[:, :5], cache)
    torch.testing.assert_close(model(x[:, 5:], cache), model(x))
    cache.crop(0)
    torch.testing.assert_close(model.float()(x.float(), cache), model(x.float()))


def test_keys_that_do_not_fit_leave_no_trace() -> None:
    """A last projection of another shape fails when the positions of the others are written."""
    spec = NSASpec.seed(num_heads=2, head_dim=8, window_size=4, block_size=4, num_selected_blocks=2, kv_per_path=True)
    cache, k = AttentionCache(spec), draw(1, 5, 2, 8, seed=7)
    phi = [partial(functional.compress, kernel=spec.kernel, stride=spec.stride, impl="reference")] * 2
    cache.extend([k] * 3, [k] * 3, phi, impl="reference")
    with pytest.raises(RuntimeError):
        cache.extend([k.fill_(torch.nan), k, k[..., :3]], [k] * 3, phi, impl="reference")
    assert cache.length == 5
    assert not any(x[:, 5:].any() for pair in cache.paths.values() for x in pair)


@pytest.mark.parametrize("name", ["seed", "own_kv"])
def test_inference_mode_and_no_grad_take_turns(name: str) -> None:
    model = exact(CAUSAL[name])
    x, cache, parts = draw(1, 300, 12, seed=7), model.new_cache(), []
    for number, part in enumerate(x.split([100, 1, 9, 150, 40], dim=1)):
        with torch.inference_mode(number % 2 == 0), torch.no_grad():
            parts.append(model(part, cache).clone())
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(parts, dim=1), model(x), rtol=1e-11, atol=1e-11)
        cache.crop(20)
    with torch.inference_mode():
        cache.crop(10)
    assert cache.length == 10


def test_what_a_cache_does_not_serve_is_refused() -> None:
    model = make(MODEL).double()
    x, cache = draw(1, 5, 12, seed=7), model.new_cache()
    with pytest.raises(InputError, match=r"without their gradients; call it inside torch.no_grad\(\)"):
        model(x, cache)
    assert cache.length == 0
    with torch.no_grad():
        model(x, cache)
        with pytest.raises(
            InputError, match=r"holds batch 1, torch\.float64 on cpu, and the new positions have batch 2"
        ):
            model(draw(2, 5, 12, seed=7), cache)
        assert cache.length == 5
        with pytest.raises(InputError, match="the cache has 2 layers, and the model 1"):
            make({**MODEL, "num_layers": 1}).double()(x, cache)
        with pytest.raises(InputError, match=r"NSAModel: cache is AttentionCache; give one of new_cache\(\), or None"):
            model(x, cache.layers[0])
        with pytest.raises(
            InputError, match=r"NSAAttention: cache is ModelCache; give an AttentionCache, such as one of"
        ):
            model.blocks[0].attention(model.input(x), cache)
        with pytest.raises(InputError, match="output_mode='mean' is over all positions"):
            make({**MODEL, "output_mode": "mean"}).double()(x, cache)
    with pytest.raises(InputError, match="6 positions can't be kept of 5; give 0 to 5"):
        cache.crop(6)
    with pytest.raises(InputError, match=r"1\.5 positions can't be kept of 5; give 0 to 5"):
        cache.crop(1.5)
    with pytest.raises(InputError, match="this spec has causal=False"):
        AttentionCache(NSASpec.seed(causal=False))
    with pytest.raises(InputError, match="causal=False"):
        NSA.build(**{**MODEL, "causal": False}).new_cache()
