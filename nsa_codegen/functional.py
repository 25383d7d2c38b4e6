"""The public functions: torch tensors in, torch tensors out, `[batch, seq, heads, dim]`.

Each checks its arguments and runs the compiled kernels (`impl="compiled"`), the eager definition
(`impl="reference"`), or the former where they exist (`impl="auto"`). `q_start` is the position of the first query;
by default the last query stands at the last key, so that decoding with a cache needs no argument.

Queries, keys and values of a call are dense, of one floating dtype and on one device. The CPU has kernels of float32,
bfloat16 and float16, GPUs of the last two; `"auto"` takes the definition for others. Outputs have that dtype; `lse` is
a natural logarithm, float32, and float64 of float64. `scale` defaults to `Dk ** -0.5`. Kernels raise
`ForwardDerivativeError` and `SecondDerivativeError` for derivatives that they do not have. One that is not stored is
built, or raises what keeps it from that: `LoweringError`, `CompilerError`, `BuildForbiddenError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from operator import index
from typing import Any

import torch
from torch import Tensor

from . import autograd as _gradients  # noqa: F401 - registers the gradients of the ops
from . import calls, inference, reference, training
from .checks import (
    checked_means,
    checked_paths,
    checked_position,
    checked_scale,
    checked_start,
    last_start,
    refuse_transforms,
    require_alike,
    require_attention,
    require_declared,
    require_heads,
    require_key_dim,
    require_lists,
    require_outputs,
    require_reach,
    require_tensor,
    use_compiled,
)
from .errors import InputError
from .index_sets import SCORES, RangeSet, TopK, complete, everything, require_choice, window
from .program import Path, Phi, Program, require_score_windows
from .reference.compress import Weights
from .reference.whole import pooled_start, spread
from .repeated import Given, Starts, first, repeated
from .sizes import require_numbers, require_size
from .spec import NSASpec

_ops = torch.ops.nsa_codegen


def compress(
    x: Tensor,
    *,
    kernel: int,
    stride: int,
    method: str = "mean",
    weight: Weights = None,
    bias: Weights = None,
    impl: str = "auto",
) -> Tensor:
    """Return the compressed tokens `phi(x[i*stride : i*stride + kernel])`, `[B, N, Hkv, D]` (paper eq. 7).

    x is `[B, S, Hkv, D]`; weights are of any floating dtype. `"mean"` takes none. `"conv"`: weight `[kernel, Hkv, D]`,
    bias `[Hkv, D]` or None. `"mlp"`: weight is `(position [kernel, D], w1 [E, kernel*D], w2 [D, E])`, bias
    `(b1 [E], b2 [D])`. A last partial window forms no token. Raises `InputError` and `SpecError`.
    """
    require_tensor("compress", "x", x, "B T Hkv D")
    Phi(method=method, kernel=kernel, stride=stride)
    reference.check_weights(x, kernel=kernel, method=method, weight=weight, bias=bias)
    if not use_compiled("compress", impl, x):
        return reference.compress(x, kernel=kernel, stride=stride, method=method, weight=weight, bias=bias)
    conv: tuple[Any, ...] = (weight, bias) if method == "conv" else (None, None)
    mlp: tuple[Any, ...] = (None,) * 5
    if method == "mlp":
        assert weight is not None and bias is not None  # checked above
        (position, w1, w2), (b1, b2) = weight, bias
        mlp = (position, w1, b1, w2, b2)
    refuse_transforms("compress", (x, *conv, *mlp))
    out: Tensor = _ops.compress(x, method, kernel, stride, *conv, *mlp)
    return out


def compressed_attention(
    q: Tensor,
    k_cmp: Tensor,
    v_cmp: Tensor,
    *,
    kernel: int,
    stride: int,
    causal: bool = True,
    scale: float | None = None,
    q_start: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return out `[B, T, H, Dv]` and lse `[B, T, H]` over the compressed tokens complete at each query (paper eq. 5).

    `out_t = sum_i p_ti v_cmp_i`, `p_t = softmax(scale * q_t . k_cmp)`, with q `[B, T, H, Dk]`, k_cmp `[B, N, Hkv, Dk]`,
    v_cmp `[B, N, Hkv, Dv]`. Token `i` is seen at `t` if `i*stride + kernel - 1 <= t`; with `causal=False` all are. A
    query that sees none gets 0 and -inf. `q_start` defaults to 0. Raises `InputError` and `SpecError`.
    """
    call = "compressed_attention"
    require_attention(call, q, k_cmp, v_cmp, "k_cmp", "v_cmp")
    for name, value in (("kernel", kernel), ("stride", stride)):
        require_size(call, name, value)
    # `index` makes numbers of the symbols that torch.compile may have: a kernel is made for numbers.
    visible = complete(index(kernel), index(stride)) if causal else everything()
    return _stream(call, q, k_cmp, v_cmp, visible, scale=scale, q_start=q_start, impl=impl)


def select_blocks(
    q: Tensor,
    k: Tensor,
    *,
    method: str,
    block_size: int,
    num_selected: int,
    num_initial: int = 0,
    num_local: int = 1,
    kernel: int | None = None,
    stride: int | None = None,
    scale: float | None = None,
    q_start: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """Return the blocks each query attends to, int32 `[B, T, Hkv, n]`, ascending, -1 in the tail (paper eq. 8-11).

    q is `[B, T, H, Dk]`; scores are those of `reference.block_scores`. `"mean_key"`: k is the keys `[B, S, Hkv, Dk]`.
    `"compressed"`: k is the compressed keys `[B, N, Hkv, Dk]`, with `kernel` and `stride`, and `q_start` defaults to 0.
    Forced blocks come first, ties go to the lower block. Not differentiable. Raises `InputError` and `SpecError`.
    """
    call = "select_blocks"
    require_choice(call, "method", method, SCORES)
    visible = TopK(score=method, n=num_selected, block=block_size, initial=num_initial, local=num_local)
    require_numbers(call, visible)
    require_tensor(call, "q", q, "B T H Dk")
    require_tensor(call, "k", k, "B S Hkv Dk")
    require_alike(call, q=q, k=k)
    require_heads(call, q, k=k)
    require_key_dim(call, q, k)
    factor = checked_scale(call, scale, q)
    if method == "compressed":
        for name, value in (("kernel", kernel), ("stride", stride)):
            require_size(call, name, value)
        assert kernel is not None and stride is not None
        require_score_windows(call, kernel, stride, block_size, ("kernel", "stride", "block_size"))
        start = checked_position(call, q_start, q)
    else:
        kernel = stride = None
        start = checked_start(call, q_start, q, k.shape[1])
    q, k = q.detach(), k.detach()
    if use_compiled(call, impl, q, lambda: calls.selected(q, k, visible, kernel, stride)):
        sizes = (block_size, num_selected, num_initial, num_local, kernel or 0, stride or 0)
        indices: Tensor = _ops.select_blocks(q, k, method, *sizes, factor, start)
        return indices
    return reference.select_blocks(
        q,
        k,
        method=method,
        block_size=block_size,
        num_selected=num_selected,
        num_initial=num_initial,
        num_local=num_local,
        kernel=kernel,
        stride=stride,
        scale=factor,
        q_start=start,
    )


def block_means(k: Tensor, *, block_size: int, impl: str = "auto") -> Tensor:
    """Return the means of the complete blocks of keys `[B, S, Hkv, Dk]`, `[B, S // block_size, Hkv, Dk]`.

    They are float32, and float64 of float64; `"mean_key"` scores blocks by them (`attention`'s `block_means`). Not
    differentiable. Raises `InputError` and `SpecError`.
    """
    require_tensor("block_means", "k", k, "B S Hkv Dk")
    require_size("block_means", "block_size", block_size)
    k = k.detach()
    if use_compiled("block_means", impl, k):
        means: Tensor = _ops.block_means(k, block_size)
        return means
    return reference.block_means(k, block_size)


def selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_indices: Tensor,
    *,
    block_size: int,
    causal: bool = True,
    scale: float | None = None,
    q_start: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return out `[B, T, H, Dv]` and lse `[B, T, H]` over the tokens `<= t` of the listed blocks (paper eq. 12).

    `out_t = sum_i p_ti v_i`, `p_t = softmax(scale * q_t . k)`, with q `[B, T, H, Dk]`, k `[B, S, Hkv, Dk]`, v
    `[B, S, Hkv, Dv]`. `block_indices` is int32 or int64 `[B, T, Hkv, n]` in any order: -1 and blocks that start after
    `t` add nothing, a duplicate counts once. With `causal=False` all tokens of the listed blocks count. A query that
    sees none gets 0 and -inf. An index outside `-1 .. blocks-1` adds nothing on a GPU, where only
    `NSA_CODEGEN_DEBUG=1` looks for one. Raises `InputError`, on the CPU for such an index as well, and `SpecError`.
    """
    call = "selected_attention"
    require_attention(call, q, k, v)
    require_size(call, "block_size", block_size)
    require_lists(call, block_indices, q, k)
    factor = checked_scale(call, scale, q)
    start = checked_start(call, q_start, q, k.shape[1]) if causal else checked_position(call, q_start, q)
    if use_compiled(call, impl, q, lambda: calls.gathered(q, k, v, block_indices, block_size, causal)):
        refuse_transforms(call, (q, k, v))
        out, lse = _ops.gather_attention(q, k, v, block_indices, block_size, causal, start, factor)
        return out, lse
    return reference.gather_attention(
        q, k, v, block_indices, block_size=block_size, causal=causal, scale=factor, q_start=start
    )


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window_size: int,
    scale: float | None = None,
    q_start: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return out `[B, T, H, Dv]` and lse `[B, T, H]` over the last `window_size` tokens, `t` included.

    `out_t = sum_i p_ti v_i`, `p_t = softmax(scale * q_t . k)` over `t - window_size + 1 <= i <= t` (the paper's sliding
    window), with q `[B, T, H, Dk]`, k `[B, S, Hkv, Dk]`, v `[B, S, Hkv, Dv]`. Raises `InputError` and `SpecError`.
    """
    call = "window_attention"
    require_attention(call, q, k, v)
    start = checked_start(call, q_start, q, k.shape[1])
    require_size(call, "window_size", window_size)
    visible = window(index(window_size))
    return _stream(call, q, k, v, visible, scale=scale, q_start=start, impl=impl)


def nsa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    spec: NSASpec,
    *,
    k_cmp: Tensor | None = None,
    v_cmp: Tensor | None = None,
    k_win: Tensor | None = None,
    v_win: Tensor | None = None,
    q_start: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """Return `g_c*O_c + g_s*O_s + g_w*O_w`, `[B, T, H, Dv]` (paper eq. 5).

    q is `[B, T, H, Dk]`, k `[B, S, Hkv, Dk]`, v `[B, S, Hkv, Dv]`, with the heads and head dims of `spec`. `k_cmp`,
    `v_cmp` are compressed tokens `[B, N, Hkv, D]`, needed unless `spec.compression` is `"mean"`; `k_win`, `v_win` are
    the window path's tokens, by default k and v. `gates` is `[3]` or `[B, T, H, 3]`, already through softmax or
    sigmoid, in the order compressed, selected, window. Raises `InputError`.
    """
    call = "nsa_attention"
    if (k_cmp is None) != (v_cmp is None) or (k_win is None) != (v_win is None):
        names = ("k_cmp", "v_cmp") if (k_cmp is None) != (v_cmp is None) else ("k_win", "v_win")
        raise InputError(f"{call}: only one of {names[0]} and {names[1]} is given; give both or neither")
    if not isinstance(spec, NSASpec):
        raise InputError(f"{call}: spec is {type(spec).__name__}; give an NSASpec, or give a Program to attention()")
    program, given = spec.program(), None
    of_window = (k, v) if k_win is None or v_win is None else (k_win, v_win)
    if k_cmp is not None and v_cmp is not None and not torch.compiler.is_compiling():
        given = Given.of((program.declared, impl), q_start, q, gates, ((k_cmp, v_cmp), (k, v), of_window))
        if (out := repeated(given)) is not None:
            return out
    require_attention(call, q, k, v)
    require_declared(call, q, k, v, spec)
    if k_cmp is None or v_cmp is None:
        if spec.compression != "mean":
            raise InputError(
                f"{call}: spec.compression = {spec.compression!r} has weights; pass k_cmp and v_cmp, made by "
                f"compress(), or use a spec with compression='mean'"
            )
        k_cmp = compress(k, kernel=spec.kernel, stride=spec.stride, impl=impl)
        v_cmp = compress(v, kernel=spec.kernel, stride=spec.stride, impl=impl)
    kv = {"compressed": (k_cmp, v_cmp), "selected": (k, v), "window": of_window}
    if given is None:  # the compressed tokens were made here: what is left may be like a call before
        return attention(program, q, kv, gates, q_start=q_start, impl=impl)
    return _attention(program, q, kv, gates, None, given, scale=None, q_start=q_start, impl=impl)


def attention(
    program: Program,
    q: Tensor,
    kv: Mapping[str, tuple[Tensor, Tensor]],
    gates: Tensor | None = None,
    *,
    block_means: Mapping[str, Tensor] | None = None,
    scale: float | None = None,
    q_start: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """Return what any `program` computes, `[B, T, H, Dv]`, of tensors with its heads and head dims.

    That is `sum_p gates_p * O_p` over its paths (paper eq. 5), or its only path's output. `kv[path.name]` holds a
    path's keys and values: tokens, or compressed tokens where its keys go through phi. `gates`, for a program that
    combines two to four paths, is `[P]` or `[B, T, H, P]` in their order.

    `block_means[path.name]` may hold what `block_means` makes of a path's keys, as a cache does: at least those of all
    blocks before the last query's. Else they are made anew, of all keys; so they are where gradients are recorded, in
    a compiled graph, on a GPU, and by the reference. Raises `InputError`.
    """
    if not isinstance(program, Program):
        raise InputError(f"attention: program is {type(program).__name__}; give a Program, as NSASpec.program() makes")
    given, names = None, [path.name for path in program.paths]
    if gates is not None and not torch.compiler.is_compiling():
        try:
            pairs = [kv[name] for name in names]
            means = [block_means[name] for name in names if name in block_means] if block_means else ()
            words = program.declared, tuple(block_means or ()), scale, impl
            given = Given.of(words, q_start, q, gates, pairs, means)
        except (TypeError, ValueError, LookupError):
            given = None  # something else than was asked for, which is refused below
        if given is not None and (out := repeated(given)) is not None:
            return out
    return _attention(program, q, kv, gates, block_means, given, scale=scale, q_start=q_start, impl=impl)


def _attention(
    program: Program,
    q: Tensor,
    kv: Mapping[str, tuple[Tensor, Tensor]],
    gates: Tensor | None,
    block_means: Mapping[str, Tensor] | None,
    given: Given | None,
    *,
    scale: float | None,
    q_start: int | None,
    impl: str,
) -> Tensor:
    """Return what `attention` does of a call unlike all before; `given` is that call, if more like it may come."""
    call = f"attention({program.name})"
    pairs = checked_paths(program, q, kv, gates)
    tokens = [k.shape[1] for path, (k, _) in zip(program.paths, pairs, strict=True) if not isinstance(path.keys, Phi)]
    start = checked_start(call, q_start, q, min(tokens)) if tokens else checked_position(call, q_start, q)
    factor = checked_scale(call, scale, q)
    means = checked_means(call, program, q, kv, block_means, start) if block_means else []
    if inference.runs_as_one(program, q, pairs, gates, impl):
        if given and len(means) == len(block_means or ()):  # with some means only, none are read
            starts = Starts(min(tokens) - q.shape[1] if tokens else 0, last_start(program, q, kv, block_means or {}))
            if (out := first(given, program, scale=factor, q_start=start, starts=starts)) is not None:
                return out
        return inference.as_one(program, q, pairs, gates, means, scale=factor, q_start=start)
    if gates is not None and training.trains_as_one(program, q, impl):
        return training.attention_with_gradients(program, q, pairs, gates, scale=factor, q_start=start)
    options: dict[str, Any] = {"scale": factor, "q_start": start, "impl": impl}
    made: dict[str, Tensor] = {}
    for path in program.paths:
        if (listed := program.lists_of(path)) is None:
            continue
        if use_compiled(call, impl, q, partial(_scored_descs, path, listed, q, kv)):
            made[path.name], made[listed.name] = _scored_path(program, path, listed, q, kv, **options)
    outs = [made[p.name] if p.name in made else _path(program, p, q, kv, **options) for p in program.paths]
    return outs[0] if gates is None else combine(outs, gates, impl=impl)


def combine(outs: list[Tensor], gates: Tensor, *, impl: str = "auto") -> Tensor:
    """Return `sum_p gates[..., p] * outs[p]` for outs `[B, T, H, Dv]` and gates `[P]` or `[B, T, H, P]` (paper eq. 5).

    There are one to four outputs; gates are of any floating dtype. Raises `InputError`.
    """
    require_outputs(outs, gates)
    if use_compiled("combine", impl, outs[0]):
        refuse_transforms("combine", (*outs, gates), lists=True)
        out: Tensor = _ops.combine(outs, gates)
        return out
    return reference.combine(outs, gates)


def _stream(
    call: str, q: Tensor, k: Tensor, v: Tensor, visible: RangeSet, *, scale: float | None, q_start: int, impl: str
) -> tuple[Tensor, Tensor]:
    factor = checked_scale(call, scale, q)
    q_start = checked_position(call, q_start, q)
    require_reach(call, visible, k.shape[1])
    if use_compiled(call, impl, q, lambda: calls.streamed(q, k, v, visible.text)):
        refuse_transforms(call, (q, k, v))
        out, lse = _ops.stream_attention(q, k, v, visible.text, q_start, factor)
        return out, lse
    return reference.stream_attention(q, k, v, visible, q_start=q_start, scale=factor)


def _path(
    program: Program,
    path: Path,
    q: Tensor,
    kv: Mapping[str, tuple[Tensor, Tensor]],
    *,
    scale: float,
    q_start: int,
    impl: str,
) -> Tensor:
    (k, v), call = kv[path.name], f"attention({program.name}.{path.name})"
    if isinstance(path.visible, RangeSet):
        if not path.pool_queries:
            return _stream(call, q, k, v, path.visible, scale=scale, q_start=q_start, impl=impl)[0]
        assert isinstance(path.keys, Phi)
        stride = path.keys.stride
        first_window = pooled_start(q_start, stride)
        pooled = compress(q, kernel=stride, stride=stride, impl=impl)
        rows = _stream(call, pooled, k, v, path.visible, scale=scale, q_start=first_window, impl=impl)[0]
        return spread(rows, stride, q.shape[1])
    visible, phi = path.visible, program.source_of(path.visible)
    indices = select_blocks(
        q,
        k if phi is None else kv[visible.source][0],
        method=visible.score,
        block_size=visible.block,
        num_selected=visible.n,
        num_initial=visible.initial,
        num_local=visible.local,
        kernel=None if phi is None else phi.kernel,
        stride=None if phi is None else phi.stride,
        scale=scale,
        q_start=q_start,
        impl=impl,
    )
    return selected_attention(
        q, k, v, indices, block_size=visible.block, causal=visible.causal, scale=scale, q_start=q_start, impl=impl
    )[0]


def _scored_descs(path: Path, listed: Path, q: Tensor, kv: Mapping[str, tuple[Tensor, Tensor]]) -> calls.Descs:
    assert isinstance(path.keys, Phi) and isinstance(listed.visible, TopK)
    return calls.scored(q, *kv[path.name], path.keys, listed.visible)


def _scored_path(
    program: Program,
    path: Path,
    listed: Path,
    q: Tensor,
    kv: Mapping[str, tuple[Tensor, Tensor]],
    *,
    scale: float,
    q_start: int,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Return the outputs of `path`, over compressed tokens, and of `listed`, whose blocks its weights score."""
    (k, v), phi, visible = kv[path.name], path.keys, listed.visible
    assert isinstance(phi, Phi) and isinstance(visible, TopK)
    refuse_transforms(f"attention({program.name}.{path.name})", (q, k, v))
    sizes = (visible.block, visible.n, visible.initial, visible.local, phi.kernel, phi.stride)
    out, _, indices = _ops.scored_attention(q, k, v, *sizes, scale, q_start)
    options: dict[str, Any] = {"scale": scale, "q_start": q_start, "impl": impl}
    return out, selected_attention(
        q, *kv[listed.name], indices, block_size=visible.block, causal=visible.causal, **options
    )[0]
