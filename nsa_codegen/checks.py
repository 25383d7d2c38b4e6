"""Checks of tensors handed to the public functions: one message says what was given, what is allowed, what to do."""

from __future__ import annotations

import functools
import logging
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_gradtrackingtensor,
    peek_interpreter_stack,
)
from torch.autograd import forward_ad

from .desc import DTYPES, KernelDesc
from .device import device_target, emulated_target
from .errors import ForwardDerivativeError, InputError, ScheduleError, TargetError, TransformError
from .index_sets import RangeSet, TopK, require_choice
from .program import Phi, Program
from .reference.precision import arithmetic_dtype
from .selection import select
from .sizes import MAX_POSITION
from .spec import NSASpec
from .target import GpuTarget

_NOT_EMPTY = ("H", "Hkv", "Dk", "Dv", "D")  # axes of at least 1
HEAD_DIM_STEP = 16  # what matrix instructions of GPUs take at a time
MAX_PATHS = 4
LARGEST_FLOAT, LARGEST_FLOAT32 = sys.float_info.max, torch.finfo(torch.float32).max
IMPLS = ("auto", "compiled", "reference")
_log = logging.getLogger("nsa_codegen")
_logged: set[str] = set()
MAX_PASSED = 4096
_passed: set[Any] = set()  # what was checked: programs with shapes, dtypes and devices, on which alone checks depend


def require_tensor(call: str, name: str, x: Any, axes: str) -> None:
    """Raise `InputError` unless `x` is a dense floating tensor with as many dimensions as `axes` has words.

    Batch rows and positions may be none; heads and dims may not.
    """
    rank = axes.count(" ") + 1
    require_dense(call, name, x, axes)
    if x.dim() != rank:
        raise InputError(f"{call}: {name} has shape {list(x.shape)}, rank {x.dim()}; give rank {rank}, [{axes}]")
    if not x.is_floating_point():
        raise InputError(f"{call}: {name} has dtype {x.dtype}; give a floating-point tensor")
    if 0 in x.shape:
        for axis, size in zip(axes.split(), x.shape, strict=True):
            if axis in _NOT_EMPTY and size == 0:
                raise InputError(
                    f"{call}: {name} has shape {list(x.shape)}, with no {axis} of [{axes}]; give at least 1"
                )


def require_dense(call: str, name: str, x: Any, axes: str) -> None:
    """Raise `InputError` unless `x` is a dense tensor."""
    if not isinstance(x, Tensor):
        raise InputError(f"{call}: {name} is {type(x).__name__}; give a tensor [{axes}]")
    if not _is_dense(x):
        layout = "nested" if x.is_nested else x.layout
        raise InputError(f"{call}: {name} has layout {layout}; give a dense tensor [{axes}]")


def _is_dense(x: object) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested


def require_alike(call: str, **tensors: Tensor) -> None:
    """Raise `InputError` unless all tensors have one dtype, one device and one batch size."""
    (first, lead), *others = tensors.items()
    for name, x in others:
        if x.dtype != lead.dtype:
            raise InputError(f"{call}: {name} has dtype {x.dtype} and {first} {lead.dtype}; convert one with .to()")
        if x.device != lead.device:
            raise InputError(f"{call}: {name} is on {x.device} and {first} on {lead.device}; move one with .to()")
        if x.shape[0] != lead.shape[0]:
            raise InputError(f"{call}: {name} has batch {x.shape[0]} and {first} {lead.shape[0]}; they must be equal")


def require_heads(call: str, q: Tensor, **keys: Tensor) -> None:
    """Raise `InputError` unless q's heads are a multiple of those of every tensor of keys or values."""
    heads, given = q.shape[2], [x.shape[2] for x in keys.values()]
    kv_heads = given[0]
    if given.count(kv_heads) < len(given):
        raise InputError(f"{call}: key/value heads differ: {dict(zip(keys, given, strict=True))}; they must be equal")
    if kv_heads == 0 or heads % kv_heads:
        raise InputError(
            f"{call}: q has {heads} heads and {next(iter(keys))} {kv_heads}; the query heads must be a multiple "
            f"of the key/value heads"
        )


def require_attention(call: str, q: Tensor, k: Tensor, v: Tensor, k_name: str = "k", v_name: str = "v") -> None:
    """Raise `InputError` unless q [B, T, H, Dk], k [B, S, Hkv, Dk] and v [B, S, Hkv, Dv] fit together."""
    require_tensor(call, "q", q, "B T H Dk")
    require_tensor(call, k_name, k, "B S Hkv Dk")
    require_tensor(call, v_name, v, "B S Hkv Dv")
    require_alike(call, q=q, **{k_name: k, v_name: v})
    require_heads(call, q, **{k_name: k, v_name: v})
    require_key_dim(call, q, k, k_name)
    if k.shape[1] != v.shape[1]:
        raise InputError(f"{call}: {k_name} has {k.shape[1]} keys and {v_name} {v.shape[1]}; they must be equal")


def require_key_dim(call: str, q: Tensor, k: Tensor, k_name: str = "k") -> None:
    """Raise `InputError` unless q and k have the same head dim."""
    if q.shape[3] != k.shape[3]:
        raise InputError(f"{call}: q has head dim {q.shape[3]} and {k_name} {k.shape[3]}; they must be equal")


def require_outputs(outs: Sequence[Tensor], gates: Tensor) -> None:
    """Raise `InputError` unless there are 1 to 4 outputs [B, T, H, Dv], all alike, and gates that fit them."""
    if not isinstance(outs, (list, tuple)):
        raise InputError(f"combine: outs is {type(outs).__name__}; give a list of outputs")
    for number, out in enumerate(outs):
        require_tensor("combine", f"outs[{number}]", out, "B T H Dv")
    kinds = [(list(out.shape), out.dtype, str(out.device)) for out in outs]
    if any(kind != kinds[0] for kind in kinds):
        raise InputError(f"combine: outputs differ: {kinds}; they must be alike")
    require_gates(len(outs), list(outs[0].shape[:3]) if outs else [], gates, outs[0].device if outs else gates.device)


def require_gates(paths: int, lead: list[int], gates: Tensor, device: torch.device) -> None:
    """Raise `InputError` unless there are 1 to 4 outputs [*lead, Dv] on `device`, and gates that fit them."""
    if not 1 <= paths <= MAX_PATHS:
        raise InputError(f"combine: {paths} outputs are given; 1 to {MAX_PATHS} are combined")
    require_dense("combine", "gates", gates, "P or B T H P")
    if list(gates.shape) not in ([paths], [*lead, paths]):
        raise InputError(
            f"combine: gates have shape {list(gates.shape)}; give [{paths}] or {[*lead, paths]}, one gate per path"
        )
    if not gates.is_floating_point() or gates.device != device:
        raise InputError(f"combine: gates are {gates.dtype} on {gates.device}; give floating gates on {device}")


def checked_paths(
    program: Program, q: Tensor, kv: Mapping[str, tuple[Tensor, Tensor]], gates: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values in the order of the paths; checks all tensors, if none like them were checked before.

    Raises `InputError`.
    """
    call = f"attention({program.name})"
    pairs = _pairs(call, program, kv)
    tensors = [q, *(x for pair in pairs for x in pair), *(() if gates is None else (gates,))]
    seen: Any = None
    if not torch.compiler.is_compiling() and all(_is_dense(x) for x in tensors):
        seen = (program.declared, tuple((x.shape, x.dtype, x.device) for x in tensors))
        if seen in _passed:
            return pairs
    for path, (k, v) in zip(program.paths, pairs, strict=True):
        of_path = f"attention({program.name}.{path.name})"
        require_attention(of_path, q, k, v)
        require_declared(of_path, q, k, v, program)
        if isinstance(path.visible, RangeSet):
            require_reach(of_path, path.visible, k.shape[1])
    if program.combine == "none":
        if gates is not None:
            raise InputError(f"{call}: gates are given, but the program has one path; leave them out")
    elif gates is None:
        raise InputError(f"{call}: no gates are given; give [{len(pairs)}] or [B, T, H, {len(pairs)}]")
    else:
        require_gates(len(pairs), list(q.shape[:3]), gates, q.device)
    if seen is not None and len(_passed) < MAX_PASSED:
        _passed.add(seen)
    return pairs


def _pairs(call: str, program: Program, kv: Mapping[str, tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    if not isinstance(kv, Mapping):
        raise InputError(f"{call}: kv is {type(kv).__name__}; give a dict of keys and values by path")
    if missing := [p.name for p in program.paths if p.name not in kv]:
        raise InputError(f"{call}: kv has no entry for {missing}; give keys and values for each path")
    for name in (p.name for p in program.paths):
        pair = kv[name]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            given = (
                f"a {type(pair).__name__} of {len(pair)}" if isinstance(pair, (tuple, list)) else type(pair).__name__
            )
            raise InputError(f"{call}: kv[{name!r}] is {given}; give two tensors, keys and values")
    return [(kv[p.name][0], kv[p.name][1]) for p in program.paths]


def checked_means(
    call: str,
    program: Program,
    q: Tensor,
    kv: Mapping[str, tuple[Tensor, Tensor]],
    block_means: Mapping[str, Tensor],
    start: int,
) -> list[Tensor]:
    """Return the means in the order of the paths that are scored by them, or none if not all are given."""
    if not isinstance(block_means, Mapping):
        raise InputError(f"{call}: block_means is {type(block_means).__name__}; give a dict of means by path")
    listed = [(p.name, p.visible) for p in program.paths if isinstance(p.visible, TopK)]
    scored = {name: visible.block for name, visible in listed if visible.score == "mean_key"}
    if unknown := sorted(set(block_means) - set(scored)):
        raise InputError(f"{call}: block_means has {unknown}; the paths scored by mean keys are {sorted(scored)}")
    for name, means in block_means.items():
        require_tensor(call, f"block_means[{name!r}]", means, "B N Hkv Dk")
        k, least = kv[name][0], (start + q.shape[1] - 1) // scored[name]
        shape, dtype = [k.shape[0], max(least, means.shape[1]), *k.shape[2:]], arithmetic_dtype(k)
        if list(means.shape) != shape or means.dtype != dtype or means.device != k.device:
            raise InputError(
                f"{call}: block_means[{name!r}] has shape {list(means.shape)}, {means.dtype} on {means.device}; give "
                f"{shape}, {dtype} on {k.device}: what block_means() makes of all blocks before the last query's"
            )
    return [block_means[name] for name in scored] if len(block_means) == len(scored) else []


def last_start(
    program: Program, q: Tensor, kv: Mapping[str, tuple[Tensor, Tensor]], block_means: Mapping[str, Tensor]
) -> int:
    """Return the last position of the first query that `checked_position`, `checked_start`, `checked_means` allow."""
    ends = [MAX_POSITION, *(kv[p.name][0].shape[1] for p in program.paths if not isinstance(p.keys, Phi))]
    for path in program.paths:
        if path.name in block_means and isinstance(path.visible, TopK):
            ends.append((block_means[path.name].shape[1] + 1) * path.visible.block)
    return min(ends) - q.shape[1]


def require_lists(call: str, lists: Tensor, q: Tensor, k: Tensor) -> None:
    """Raise `InputError` unless the lists of blocks are integers [B, T, Hkv, n] that lie where q does."""
    require_dense(call, "block_indices", lists, "B T Hkv n")
    lead = [q.shape[0], q.shape[1], k.shape[2]]
    if lists.dim() != 4 or list(lists.shape[:3]) != lead or lists.shape[3] == 0:
        raise InputError(f"{call}: block_indices has shape {list(lists.shape)}; give {[*lead, 'n >= 1']}")
    if lists.dtype not in (torch.int32, torch.int64):
        raise InputError(f"{call}: block_indices has dtype {lists.dtype}; give torch.int32 or torch.int64")
    if lists.device != q.device:
        raise InputError(f"{call}: block_indices is on {lists.device} and q on {q.device}; move one with .to()")


def require_declared(call: str, q: Tensor, k: Tensor, v: Tensor, declared: NSASpec | Program) -> None:
    """Raise `InputError` unless q, k and v have the heads and dims of a spec or a program."""
    kind, change = ("spec", "spec.replace(") if isinstance(declared, NSASpec) else ("program", "replace(program, ")
    found = {"num_heads": q.shape[2], "num_kv_heads": k.shape[2], "head_dim": q.shape[3], "value_dim": v.shape[3]}
    for name, value in found.items():
        if value != getattr(declared, name):
            raise InputError(
                f"{call}: the tensors have {name} = {value} and the {kind} {getattr(declared, name)}; "
                f"use {change}{name}={value}), or tensors of the {kind}'s shape"
            )


def checked_start(call: str, q_start: int | None, q: Tensor, keys: int) -> int:
    """Return the position of the first query: given, or such that the last query is at the last key."""
    start = keys - q.shape[1] if q_start is None else _whole(call, q_start)
    if keys > MAX_POSITION:
        raise InputError(f"{call}: {keys} keys are given; at most {MAX_POSITION} positions are addressed")
    if start < 0 or start + q.shape[1] > keys:
        raise InputError(
            f"{call}: {q.shape[1]} queries from position {start} do not fit {keys} keys; give at least as many keys "
            f"as the last query's position + 1"
        )
    return start


def checked_position(call: str, q_start: int | None, q: Tensor) -> int:
    """Return the position of the first query, 0 if None is given; raise `InputError` for one that does not exist."""
    q_start = 0 if q_start is None else _whole(call, q_start)
    if q_start < 0 or q_start + q.shape[1] > MAX_POSITION:
        raise InputError(
            f"{call}: q_start = {q_start} is not allowed with {q.shape[1]} queries; give the first query's position, "
            f"such that all positions are from 0 to {MAX_POSITION}"
        )
    return q_start


def require_reach(call: str, visible: RangeSet, keys: int) -> None:
    """Raise `InputError` for keys of which the last is seen from no position that is addressed."""
    divisor = max(bound.divisor for span in visible.ranges for bound in (span.lo, span.hi))
    if divisor * keys > MAX_POSITION:
        raise InputError(
            f"{call}: {keys} keys are given, one for every {divisor} positions; at most {MAX_POSITION} positions are "
            f"addressed"
        )


def _whole(call: str, q_start: object) -> int:
    """Return an integer, or torch's symbol of one."""
    if isinstance(q_start, (int, torch.SymInt)):
        return q_start  # type: ignore[return-value]
    try:
        return operator.index(q_start)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(
            f"{call}: q_start = {q_start!r} is not allowed; give an integer, the first query's position"
        ) from None


def checked_scale(call: str, scale: float | None, q: Tensor) -> float:
    """Return the factor on the scores: given, or `Dk ** -0.5`."""
    if scale is None:
        return 1.0 / math.sqrt(q.shape[3])
    most = LARGEST_FLOAT if q.dtype == torch.float64 else LARGEST_FLOAT32
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not -most <= scale <= most:
        raise InputError(
            f"{call}: scale = {scale!r} is not allowed; give a finite number, or None for Dk ** -0.5; numbers go up to "
            f"{most:.3g}"
        )
    return float(scale)


def use_compiled(call: str, impl: str, q: Tensor, needs: Callable[[], Iterable[KernelDesc]] = tuple) -> bool:
    """Return whether to run kernels: `"auto"` falls back to the reference and logs why, `"compiled"` never does.

    `needs` returns the descs of the call that a GPU may have no schedule for, its gradients' among them.
    """
    require_choice(call, "impl", impl, IMPLS)
    if impl == "reference":
        return False
    reason = None
    if q.device.type == "cuda" or _is_emulated():
        reason = _lacking_on_gpu(q, needs)
    elif q.device.type != "cpu":
        reason = f"tensors on {q.device} have no kernels (the CPU and CUDA devices have)"
    elif str(q.dtype).removeprefix("torch.") not in DTYPES:
        reason = f"dtype {q.dtype} has no kernels ({', '.join(DTYPES)} have)"
    if reason is None:
        return True
    if impl == "compiled":
        raise InputError(f"{call}: impl='compiled', but {reason}; use impl='reference' or 'auto', or convert")
    if not torch.compiler.is_compiling() and reason not in _logged:
        _logged.add(reason)
        _log.warning("%s runs the eager reference: %s", call, reason)
    return False


def refuse_transforms(call: str, tensors: Iterable[Tensor | None], *, lists: bool = False) -> None:
    """Raise for tensors of transforms that torch does not make of the kernels: forward mode, `torch.func`'s gradients.

    torch makes `vmap` of an op, row by row, unless the op takes `lists` of tensors. Raises `ForwardDerivativeError` if
    one has a tangent, or may hide one under a transform, and `TransformError`.
    """
    tensors = tuple(tensors)
    _refuse_forward_derivatives(call, tensors)
    if torch.compiler.is_compiling() or peek_interpreter_stack() is None:
        return
    wrapped = [level for x in tensors if x is not None for level in _levels(x)]
    if torch.is_grad_enabled() and any(is_gradtrackingtensor(x) and x.requires_grad for x in wrapped):
        raise TransformError(
            f"{call}: gradients by torch.func (grad, vjp, jacrev) are asked for, and kernels have those of backward() "
            f"and torch.autograd.grad; use these, or impl='reference', which has both"
        )
    if lists and any(is_batchedtensor(x) for x in wrapped):
        raise TransformError(
            f"{call}: torch.vmap is asked for, and kernels take all rows at once; give the rows as batch"
        )


def _levels(x: Tensor) -> Iterator[Tensor]:
    """Yield what the transforms of `torch.func` have made of a tensor, the last one first."""
    while is_functorch_wrapped_tensor(x):
        yield x
        x = get_unwrapped(x)


def _refuse_forward_derivatives(call: str, tensors: Iterable[Tensor | None]) -> None:
    if forward_ad._current_level < 0:
        return
    for x in tensors:
        if x is not None and (is_functorch_wrapped_tensor(x) or _tangent(x) is not None):
            raise ForwardDerivativeError(
                f"{call}: forward-mode derivatives (torch.func.jvp, torch.autograd.forward_ad) are asked for, and "
                f"kernels have reverse-mode derivatives only; use impl='reference', which has both, or backward()"
            )


def _tangent(x: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
    return tangent


def _is_emulated() -> bool:
    return not torch.compiler.is_compiling() and emulated_target() is not None


def _lacking_on_gpu(q: Tensor, needs: Callable[[], Iterable[KernelDesc]]) -> str | None:
    """Return why there are no kernels for `q` on its GPU, or None."""
    if torch.version.hip is not None:
        return "AMD GPUs have source only"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"dtype {q.dtype} has no GPU kernels (float16 and bfloat16 have)"
    if q.shape[3] % HEAD_DIM_STEP:
        return f"head dim {q.shape[3]} has no GPU kernels (multiples of {HEAD_DIM_STEP} have)"
    try:
        target = device_target(q.device) if q.is_cuda else emulated_target()
    except TargetError as error:
        return str(error)
    if torch.compiler.is_compiling() or target is None:  # rows of schedules are files
        return None
    return next((reason for desc in needs() if (reason := _lacks_schedule(desc, target)) is not None), None)


@functools.lru_cache(maxsize=1024)
def _lacks_schedule(desc: KernelDesc, target: GpuTarget) -> str | None:
    try:
        select(desc, target)
    except ScheduleError as error:
        return str(error)
    return None
