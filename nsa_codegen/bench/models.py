"""Whole models and modules that are timed: ours, their twins around torch's dense attention, and one from PyPI."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import NSA, PRESETS, NSAAttention, NSAModel
from ..ops import Work
from ..spec import NSASpec
from . import works
from .contenders import Inputs, dense, quiet
from .measure import Contender

RIVAL, RIVAL_VERSION = "native-sparse-attention-pytorch", "0.2.3"
_RIVAL_FIRST_TOKENS = 128  # of a first call, which prepares its einsums
_MORE_POSITIONS = 4096  # that a decoding benchmark has room for


class DenseAttention(nn.Module):
    """The twin of an `NSAAttention` with shared keys and values: the same projections around torch's attention."""

    def __init__(self, twin: NSAAttention) -> None:
        super().__init__()
        self.spec, self.hidden_size = twin.spec, twin.hidden_size
        self.q_proj, self.o_proj = twin.q_proj, twin.o_proj
        self.k_proj, self.v_proj = (next(iter(p.values())) for p in (twin.k_proj, twin.v_proj))

    def forward(self, x: Tensor, cache: DenseCache | None = None) -> Tensor:
        """Return the attention's output `[B, T, hidden]` for `x [B, T, hidden]`; with a `cache`, for one position."""
        heads = (self.spec.num_heads, self.spec.kv_heads, self.spec.kv_heads)
        q, k, v = (
            project(x).unflatten(-1, (h, -1)).transpose(1, 2)
            for project, h in zip((self.q_proj, self.k_proj, self.v_proj), heads, strict=True)
        )
        if cache is not None:
            k, v = cache.extended(k, v)
        result: Tensor = self.o_proj(dense(q, k, v, causal=cache is None).transpose(1, 2).flatten(start_dim=2))
        return result


class DenseCache:
    """Keys and values of dense attention, `[B, Hkv, positions, dim]`, with room for more."""

    def __init__(self, k: Tensor, v: Tensor, room: int) -> None:
        self.length = k.shape[2]
        self.buffers = tuple(torch.cat([x, x.new_zeros((*x.shape[:2], room, x.shape[3]))], dim=2) for x in (k, v))

    def extended(self, *new: Tensor) -> list[Tensor]:
        """Append one position, and return all keys and values."""
        for buffer, x in zip(self.buffers, new, strict=True):
            buffer[:, :, self.length : self.length + 1] = x
        self.length += 1
        return [buffer[:, :, : self.length] for buffer in self.buffers]


def with_dense_attention(made: NSAModel) -> NSAModel:
    """Return `made` with torch's attention in place of its own, and the same projections."""
    for block in made.blocks:
        block.attention = DenseAttention(block.attention)  # type: ignore[arg-type]
    return made


def model(*, train: bool, embed_dim: int = 64, tokens: int = 256, batch: int = 16) -> list[Contender]:
    """Return `NSA.build`'s default model, and its twin with dense attention: forward, or forward and backward."""
    torch.manual_seed(0)
    mine = NSA.build(embed_dim=embed_dim, dropout=0.0, impl="compiled", seq_len=tokens)
    twin = with_dense_attention(copy.deepcopy(mine))
    x = torch.randn((batch, tokens, embed_dim), generator=torch.Generator().manual_seed(0))

    def step(net: NSAModel) -> Callable[[], object]:
        def run() -> object:
            net.zero_grad()
            net(x).square().mean().backward()
            return None

        return run if train else quiet(lambda: net(x))

    return [Contender(name="nsa", run=step(mine)), Contender(name="sdpa", run=step(twin))]


def decode(preset: str, options: dict[str, Any], dtype: str, keys: int) -> list[Contender]:
    """Return a step of decoding of a two-layer model of the preset with `options`, and of its dense twin.

    It comes after `keys` drawn positions. Every call appends one to its caches, and there are some hundred calls.
    """
    spec, layers = PRESETS[preset](**options), 2
    hidden = spec.num_heads * spec.head_dim
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embed_dim": hidden, "hidden_size": hidden, "num_layers": layers, "dropout": 0.0}
    mine = NSA.build(**sizes, preset=preset, impl="compiled", kv_per_path=False, **options)
    mine.to(getattr(torch, dtype)).eval()
    twin = with_dense_attention(copy.deepcopy(mine))
    x, held = mine.new_cache(), Inputs.draw(spec, dtype, queries=1, keys=keys)
    attentions = [module for module in mine.modules() if isinstance(module, NSAAttention)]
    with torch.no_grad():
        for attention, layer in zip(attentions, x.layers, strict=True):
            layer.extend([held.k], [held.v], (attention.k_phi, attention.v_phi))
    _, k, v = held.heads_first()
    caches = [DenseCache(k, v, _MORE_POSITIONS) for _ in range(layers)]
    token = torch.randn((1, 1, hidden), generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))

    def dense_step() -> object:
        y = token
        for block, cache in zip(twin.blocks, caches, strict=True):
            y = block(y, cache)
        return twin.norm(y[:, -1])

    return [
        Contender(name="nsa", run=quiet(lambda: mine(token, x))),
        Contender(name="sdpa", run=quiet(dense_step)),
    ]


def missing_rival() -> str | None:
    """Return why the module from PyPI can't take part, or None if it can."""
    try:
        found = importlib.metadata.version(RIVAL)
    except importlib.metadata.PackageNotFoundError:
        return f"{RIVAL} is not installed; pip install 'nsa_codegen[bench]'"
    return None if found == RIVAL_VERSION else f"{RIVAL} is {found}, and {RIVAL_VERSION} is what is compared"


def module(spec: NSASpec, dtype: str, tokens: int) -> list[Contender]:
    """Return `NSAAttention`, its dense twin, and the module from PyPI if it is there: whole modules, forward.

    Of the last, whose attention is defined otherwise, the work is not known.
    """
    hidden = spec.num_heads * spec.head_dim
    torch.manual_seed(0)
    mine = NSAAttention(hidden, spec.replace(kv_per_path=False), impl="compiled").to(getattr(torch, dtype))
    twin = DenseAttention(mine)
    x = torch.randn((1, tokens, hidden), generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    ours = works.whole_work(spec, dtype, batch=1, queries=tokens, keys=tokens)
    theirs = works.dense_work(spec, dtype, batch=1, queries=tokens, keys=tokens)
    found = [
        Contender(name="nsa", run=quiet(lambda: mine(x)), work=_with_projections(ours, mine, x)),
        Contender(name="sdpa", run=quiet(lambda: twin(x)), work=_with_projections(theirs, twin, x)),
    ]
    if missing_rival() is None:
        rival = _rival(spec, hidden).to(getattr(torch, dtype))
        quiet(lambda: rival(x[:, :_RIVAL_FIRST_TOKENS]))()
        found.append(Contender(name=RIVAL, run=quiet(lambda: rival(x))))
    return found


def _with_projections(attention: Work, net: nn.Module, x: Tensor) -> Work:
    """Return the work of `net` on x `[B, T, hidden]`: `attention` and products with weights; operands count once."""
    weights = sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, nn.Linear))
    return Work(
        operations=attention.operations + 2 * x.shape[0] * x.shape[1] * weights,
        bytes=x.element_size() * (weights + 2 * x.numel()),
    )


def _rival(spec: NSASpec, hidden: int) -> nn.Module:
    from native_sparse_attention_pytorch import SparseAttention

    made: nn.Module = SparseAttention(
        dim=hidden,
        dim_head=spec.head_dim,
        heads=spec.num_heads,
        kv_heads=spec.kv_heads,
        sliding_window_size=spec.window_size,
        compress_block_size=spec.kernel,
        compress_block_sliding_stride=spec.stride,
        selection_block_size=spec.block_size,
        # There the query's own block comes on top.
        num_selected_blocks=spec.num_selected_blocks - 1,
        causal=True,
    )
    return made.eval()
