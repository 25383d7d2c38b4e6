"""Calls like one before: nothing is checked or laid out again, and torch is not asked to hand the arguments on.

The kernels of one decoded token take a few microseconds, as long as a handful of Python calls, and a model makes the
same call in each of its layers, token after token. So a call that was checked is kept by all that its checks and its
layout depend on, for every position that they allow.
Where anything between torch and an op would see the call - a mode, a transform, a tracer, the profiler - it goes there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import inference
from .device import emulated_target
from .program import Program
from .sequence import Ready

MOST = 256  # calls that are kept; one more, and all are dropped
_Key, _KeySet = torch._C.DispatchKey, torch._C.DispatchKeySet
_PLAIN = (Tensor, torch.nn.Parameter)
# What torch looks at in every thread, outside and inside inference mode. A key that is not among these stands for
# someone who looks as well, as would one of a later torch.
_USUAL = (
    (_KeySet(_Key.BackendSelect) | _KeySet(_Key.ADInplaceOrView)).raw_repr(),
    _KeySet(_Key.BackendSelect).raw_repr(),
)


class Given(NamedTuple):
    """A call as it was given: all but its tensors, each of these once, and which of them each argument of `ready` is.

    `words` tell it from all calls that other checks are made of, but for `start`, the position of its first query.
    """

    words: tuple[Hashable, ...]
    start: int | None
    tensors: Sequence[Tensor]
    order: tuple[int, ...]

    @classmethod
    def of(
        cls,
        words: tuple[Hashable, ...],
        start: int | None,
        q: Tensor,
        gates: Tensor,
        pairs: Iterable[tuple[Tensor, Tensor]],
        means: Iterable[Tensor] = (),
    ) -> Given:
        """Return a call; a pair of keys and values may be that of the path before."""
        tensors, order, before_k, before_v = [q, gates], [0, 1], None, None
        for k, v in pairs:
            if k is not before_k or v is not before_v:
                order += (len(tensors), len(tensors) + 1)
                tensors += (k, v)
            else:
                order += order[-2:]
            before_k, before_v = k, v
        for x in means:
            order.append(len(tensors))
            tensors.append(x)
        return cls(words, start, tensors, tuple(order))


class Starts(NamedTuple):
    """Where the first query may stand in tensors of some sizes: from 0 to `last`, and where it does if nobody says."""

    default: int
    last: int


class _Call(NamedTuple):
    """The kernels for tensors of some sizes, the shape of their output unless it is the queries', and its positions."""

    kernels: Ready
    shape: tuple[int, ...] | None
    starts: Starts


_calls: dict[tuple[Any, ...], _Call] = {}


def repeated(given: Given) -> Tensor | None:
    """Return what the call computes if there was one like it and nobody is to see it, else None."""
    if not _are_plain(given.tensors):
        return None
    try:
        call = _calls.get(_sizes(given))
    except (TypeError, RuntimeError):  # of a word without a hash, or a tensor without sizes: no checked call has one
        return None
    if call is None or _is_watched() or emulated_target() is not None:
        return None
    default, last = call.starts
    start = default if given.start is None else given.start
    if type(start) is not int or not 0 <= start <= last:
        return None
    return _run(call, given, start)


def first(given: Given, program: Program, *, scale: float, q_start: int, starts: Starts) -> Tensor | None:
    """Return what a checked call computes and keep it, or None if it is none that is kept."""
    if not _are_plain(given.tensors) or _is_watched():
        return None
    arguments = [given.tensors[i] for i in given.order]
    kernels = inference.ready(program, arguments, scale=scale, q_start=starts.last)
    if kernels is None:
        return None
    if len(_calls) >= MOST:
        _calls.clear()
    q, values = arguments[0], arguments[3]
    shape = (*q.shape[:3], values.shape[3])
    call = _calls[_sizes(given)] = _Call(kernels, None if shape == q.shape else shape, starts)
    return _run(call, given, q_start)


def _run(call: _Call, given: Given, start: int) -> Tensor:
    tensors = given.tensors
    q = tensors[0]
    out = torch.empty_like(q) if call.shape is None else q.new_empty(call.shape)  # the former takes half the time
    call.kernels([*[tensors[i] for i in given.order], out], start)
    return out


def _sizes(given: Given) -> tuple[Any, ...]:
    """Return all that the checks of a call and its layout depend on but its position."""
    words, _, tensors, order = given
    return (words, order, torch.get_num_threads(), *[x.shape for x in tensors], *[x.dtype for x in tensors])


def _are_plain(tensors: Iterable[Tensor]) -> bool:
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
