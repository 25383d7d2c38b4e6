"""Calls like one before: nothing is checked or laid out again, and torch is not asked to hand the arguments on.

The kernels of one decoded token take a few microseconds, as long as a handful of Python calls, and a model makes the
same call in each of its layers. So a call that was checked is kept by all that its checks and its layout depend on.
Where anything between torch and an op would see the call - a mode, a transform, a tracer, the profiler - it goes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import inference
from .device import emulated_target
from .program import Program
from .sequence import Ready

MOST = 256  # calls that are kept; one more, and all are dropped
Pairs = Sequence[tuple[Tensor, Tensor]]
_Key, _KeySet = torch._C.DispatchKey, torch._C.DispatchKeySet
_PLAIN = (Tensor, torch.nn.Parameter)
# What torch looks at in every thread, outside and inside inference mode. A key that is not among these stands for
# someone who looks as well, as would one of a later torch.
_USUAL = (
    (_KeySet(_Key.BackendSelect) | _KeySet(_Key.ADInplaceOrView)).raw_repr(),
    _KeySet(_Key.BackendSelect).raw_repr(),
)


class _Call(NamedTuple):
    """The kernels for tensors of some sizes, and the shape of their output."""

    kernels: Ready
    shape: tuple[int, ...]


_calls: dict[tuple[Any, ...], _Call] = {}


def repeated(
    program: Program,
    q: Tensor,
    kv: Mapping[str, tuple[Tensor, Tensor]],
    gates: Tensor | None,
    block_means: Mapping[str, Tensor] | None,
    *,
    scale: float | None,
    q_start: int | None,
    impl: str,
) -> Tensor | None:
    """Return what `program` computes if there was a call like this one and nobody is to see it, else None."""
    if gates is None or torch.compiler.is_compiling():
        return None
    tensors = [q, gates]
    for path in program.paths:
        if (pair := kv.get(path.name)) is None:
            return None
        tensors += pair
    if block_means:
        tensors += (means := [block_means[p.name] for p in program.paths if p.name in block_means])
        if len(means) < len(block_means):
            return None
    if not _are_plain(tensors):
        return None
    call = _calls.get(_sizes(program, tensors, scale, q_start, impl))
    if call is None or _is_watched() or emulated_target() is not None:
        return None
    return _run(call, tensors)


def first(
    program: Program,
    q: Tensor,
    pairs: Pairs,
    gates: Tensor | None,
    means: list[Tensor],
    *,
    given: tuple[float | None, int | None, str],
    scale: float,
    q_start: int,
) -> Tensor | None:
    """Return the same of a checked call and keep it, or None if it is none that is kept.

    `given` is what the call was given for scale, first position and implementation.
    """
    if gates is None:
        return None
    tensors = [q, gates, *(x for pair in pairs for x in pair), *means]
    if not _are_plain(tensors) or _is_watched():
        return None
    kernels = inference.ready(program, tensors, scale=scale, q_start=q_start)
    if kernels is None:
        return None
    if len(_calls) >= MOST:
        _calls.clear()
    call = _Call(kernels, (*q.shape[:3], pairs[0][1].shape[3]))
    _calls[_sizes(program, tensors, *given)] = call
    return _run(call, tensors)


def _run(call: _Call, tensors: list[Tensor]) -> Tensor:
    out = tensors[0].new_empty(call.shape)
    call.kernels([*tensors, out])
    return out


def _sizes(program: Program, tensors: list[Tensor], *given: object) -> tuple[Any, ...]:
    """Return all that the checks of a call and its layout depend on."""
    return (program.text, *given, torch.get_num_threads(), *[x.shape for x in tensors], *[x.dtype for x in tensors])


def _are_plain(tensors: list[Tensor]) -> bool:
    """Return whether all are tensors in memory as they stand, and none is to be differentiated."""
    grad = torch.is_grad_enabled()
    for x in tensors:
        if type(x) not in _PLAIN or not x.is_cpu or x.layout is not torch.strided or not x.is_contiguous():
            return False
        if (grad and x.requires_grad) or x.is_neg():
            return False
    return True


def _is_watched() -> bool:
    """Return whether anything sees the calls of ops."""
    return (
        torch._C._dispatch_tls_local_include_set().raw_repr() not in _USUAL
        or torch._C._len_torch_function_stack() > 0
        or forward_ad._current_level >= 0
        or torch._C._autograd._profiler_enabled()
    )
