"""What is timed against what: this package's attention, torch's dense one, the eager definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .. import functional
from ..ops import Work
from ..spec import NSASpec
from . import works
from .measure import Contender


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tensors of one problem, `[batch, seq, heads, dim]`; the gates are as after a sigmoid."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor

    @classmethod
    def draw(cls, spec: NSASpec, dtype: str, *, batch: int = 1, queries: int, keys: int, grad: bool = False) -> Inputs:
        """Return random tensors of `spec`, the same in every process."""
        generator = torch.Generator().manual_seed(0)

        def make(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(getattr(torch, dtype))

        gates = (3,) if spec.gate == "scalar" else (batch, queries, spec.num_heads, 3)
        made = cls(
            q=make(batch, queries, spec.num_heads, spec.head_dim),
            k=make(batch, keys, spec.kv_heads, spec.head_dim),
            v=make(batch, keys, spec.kv_heads, spec.dv),
            gates=make(*gates).sigmoid(),
        )
        for x in (made.q, made.k, made.v, made.gates):
            x.requires_grad_(grad)
        return made

    def heads_first(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v as `[batch, heads, seq, dim]`, contiguous, as torch's attention likes them best."""
        grad = self.q.requires_grad
        q, k, v = (x.detach().transpose(1, 2).contiguous().requires_grad_(grad) for x in (self.q, self.k, self.v))
        return q, k, v


def quiet(function: Callable[[], object]) -> Callable[[], object]:
    """Return `function` without autograd."""

    def call() -> object:
        with torch.no_grad():
            return function()

    return call


def backward_of(out: Tensor, inputs: Sequence[Tensor]) -> Callable[[], object]:
    """Return a function that computes the gradients of `inputs` again at each call."""
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return lambda: torch.autograd.grad(out, tuple(inputs), dout, retain_graph=True)


def dense(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
    """Return torch's attention on `[batch, heads, seq, dim]`."""
    return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def forward(spec: NSASpec, dtype: str, tokens: int, *, batch: int = 1) -> list[Contender]:
    """Return the forward of nsa and of sdpa."""
    sizes: dict[str, Any] = {"batch": batch, "queries": tokens, "keys": tokens}
    x = Inputs.draw(spec, dtype, **sizes)
    q, k, v = x.heads_first()
    theirs = Contender(name="sdpa", run=quiet(lambda: dense(q, k, v)), work=works.dense_work(spec, dtype, **sizes))
    return [_whole_forward(spec, dtype, x, "nsa", "compiled"), theirs]


def eager(spec: NSASpec, dtype: str, tokens: int) -> list[Contender]:
    """Return the forward of nsa and of the eager definition."""
    x = Inputs.draw(spec, dtype, queries=tokens, keys=tokens)
    named = (("nsa", "compiled"), ("reference", "reference"))
    return [_whole_forward(spec, dtype, x, name, impl) for name, impl in named]


def _whole_forward(spec: NSASpec, dtype: str, x: Inputs, name: str, impl: str) -> Contender:
    work = works.whole_work(spec, dtype, batch=x.q.shape[0], queries=x.q.shape[1], keys=x.k.shape[1])
    run = quiet(lambda: functional.nsa_attention(x.q, x.k, x.v, x.gates, spec, impl=impl))
    return Contender(name=name, run=run, work=work)


def backward(spec: NSASpec, dtype: str, tokens: int, *, batch: int = 1) -> list[Contender]:
    """Return the backward alone of nsa and of sdpa."""
    sizes: dict[str, Any] = {"batch": batch, "queries": tokens, "keys": tokens}
    x = Inputs.draw(spec, dtype, **sizes, grad=True)
    q, k, v = x.heads_first()
    dense_work = works.backward(works.dense_work(spec, dtype, **sizes))
    theirs = Contender(name="sdpa", run=backward_of(dense(q, k, v), (q, k, v)), work=dense_work)
    return [_whole_backward(spec, dtype, x, sizes), theirs]


def _whole_backward(spec: NSASpec, dtype: str, x: Inputs, sizes: dict[str, Any]) -> Contender:
    out = functional.nsa_attention(x.q, x.k, x.v, x.gates, spec, impl="compiled")
    work = works.whole_backward_work(spec, dtype, **sizes)
    return Contender(name="nsa", run=backward_of(out, (x.q, x.k, x.v, x.gates)), work=work)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of one attention, each with its inputs at hand."""

    calls: dict[str, Callable[[], object]]
    inputs: dict[str, tuple[Tensor, ...]]


def steps_of(spec: NSASpec, x: Inputs) -> Steps:
    """Return the calls of which `nsa_attention` is made, with inputs that are leaves where x's are."""
    phi: dict[str, Any] = {"kernel": spec.kernel, "stride": spec.stride}
    start, grad = x.k.shape[1] - x.q.shape[1], x.q.requires_grad

    def leaf(y: Tensor) -> Tensor:
        return y.detach().requires_grad_(grad)

    def select() -> Tensor:
        return functional.select_blocks(
            x.q,
            k_cmp.detach() if spec.selection == "compressed" else x.k,
            method=spec.selection,
            block_size=spec.block_size,
            num_selected=spec.num_selected_blocks,
            num_initial=spec.num_initial_blocks,
            num_local=spec.num_local_blocks,
            q_start=start,
            impl="compiled",
            **(phi if spec.selection == "compressed" else {}),
        )

    def attend_and_select() -> Tensor:
        lists = (spec.block_size, spec.num_selected_blocks, spec.num_initial_blocks, spec.num_local_blocks)
        scale = spec.head_dim**-0.5
        made: tuple[Tensor, ...] = torch.ops.nsa_codegen.scored_attention(
            x.q, k_cmp, v_cmp, *lists, spec.kernel, spec.stride, scale, start
        )
        return made[0]

    def compress() -> tuple[Tensor, Tensor]:
        return functional.compress(x.k, **phi, impl="compiled"), functional.compress(x.v, **phi, impl="compiled")

    with torch.no_grad():
        k_cmp, v_cmp = (leaf(y) for y in compress())
        lists = select()
        calls: dict[str, Callable[[], object]] = {
            "compress": compress,
            "compressed_attention": lambda: functional.compressed_attention(
                x.q, k_cmp, v_cmp, **phi, q_start=start, impl="compiled"
            )[0],
            "select_blocks": select,
            "scored_attention": attend_and_select,
            "selected_attention": lambda: functional.selected_attention(
                x.q, x.k, x.v, lists, block_size=spec.block_size, impl="compiled"
            )[0],
            "window_attention": lambda: functional.window_attention(
                x.q, x.k, x.v, window_size=spec.window_size, impl="compiled"
            )[0],
        }
        outs = [leaf(calls[name]()) for name in works.ATTENTIONS]  # type: ignore[arg-type]
    calls["combine"] = lambda: functional.combine(outs, x.gates, impl="compiled")
    qkv = (x.q, x.k, x.v)
    inputs = {
        "compress": (x.k, x.v),
        "compressed_attention": (x.q, k_cmp, v_cmp),
        "selected_attention": qkv,
        "window_attention": qkv,
        "combine": (*outs, x.gates),
    }
    return Steps(calls=calls, inputs=inputs)


def ops_forward(spec: NSASpec, dtype: str, *, queries: int, keys: int) -> list[Contender]:
    """Return nsa's forward and each of its steps."""
    sizes: dict[str, Any] = {"batch": 1, "queries": queries, "keys": keys}
    x = Inputs.draw(spec, dtype, **sizes)
    found, counts = steps_of(spec, x).calls, works.op_works(spec, dtype, **sizes)
    whole = _whole_forward(spec, dtype, x, "nsa", "compiled")
    return [whole, *(Contender(name=n, run=quiet(found[n]), work=work) for n, work in counts.items())]


def ops_backward(spec: NSASpec, dtype: str, tokens: int) -> list[Contender]:
    """Return nsa's backward and that of each of its steps."""
    sizes: dict[str, Any] = {"batch": 1, "queries": tokens, "keys": tokens}
    x = Inputs.draw(spec, dtype, **sizes, grad=True)
    steps, counts = steps_of(spec, x), works.op_backward_works(works.op_works(spec, dtype, **sizes))
    found = [_whole_backward(spec, dtype, x, sizes)]
    for name in works.WITH_GRADIENT:
        out, inputs = steps.calls[name](), steps.inputs[name]
        if isinstance(out, tuple):  # compression: of keys, and of values
            one, other = (backward_of(o, (i,)) for o, i in zip(out, inputs, strict=True))
            run: Callable[[], object] = _both(one, other)
        else:
            assert isinstance(out, Tensor)
            run = backward_of(out, inputs)
        found.append(Contender(name=name, run=run, work=counts[name]))
    return found


def _both(one: Callable[[], object], other: Callable[[], object]) -> Callable[[], object]:
    return lambda: (one(), other())


def decode(spec: NSASpec, dtype: str, keys: int) -> list[Contender]:
    """Return one query against a cache of `keys` tokens, whose compressed tokens are cached as well."""
    sizes: dict[str, Any] = {"batch": 1, "queries": 1, "keys": keys}
    x = Inputs.draw(spec, dtype, **sizes)
    q, k, v = x.heads_first()
    phi: dict[str, Any] = {"kernel": spec.kernel, "stride": spec.stride}
    k_cmp, v_cmp = (functional.compress(y, **phi, impl="compiled") for y in (x.k, x.v))
    counts = works.op_works(spec, dtype, **sizes)
    # Of the cache only what is attended is read; there is nothing to compress.
    moved = counts["compressed_attention"].bytes
    read = spec.kv_heads * (spec.head_dim + spec.dv) * k.element_size()
    moved += read * min(keys, spec.num_selected_blocks * spec.block_size) + read * min(keys, spec.window_size)
    operations = sum(counts[name].operations for name in works.run_by(spec) if name != "compress")
    work = Work(operations=operations, bytes=moved)

    def attend() -> object:
        return functional.nsa_attention(x.q, x.k, x.v, x.gates, spec, k_cmp=k_cmp, v_cmp=v_cmp, impl="compiled")

    return [
        Contender(name="nsa", run=quiet(attend), work=work),
        Contender(
            name="sdpa",
            run=quiet(lambda: dense(q, k, v, causal=False)),
            work=works.dense_work(spec, dtype, **sizes),
        ),
    ]
