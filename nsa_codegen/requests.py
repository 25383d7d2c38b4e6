"""Which kernels a program takes, forward and backward, each with its schedule: what is built ahead of use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .build import Request
from .desc import KernelDesc
from .index_sets import require_choice
from .ops import OPS, program_descs
from .ops.gather_attention import backward_pack_descs
from .program import Phi, Program
from .schedule import narrowed
from .selection import select
from .target import Target

DIRECTIONS = ("fwd", "bwd", "both")


def needed_descs(program: Program, dtype: str, direction: str = "both", *, kind: str = "cpu") -> tuple[KernelDesc, ...]:
    """Return the descs of the kernels that `direction` of `program` runs on tensors of `dtype`, each once.

    `kind` is that of the target: GPU kernels gather blocks from where they are, and take none that packs them.

    `"bwd"` is what a backward pass runs beside the forward's kernels. Raises `SpecError`.
    """
    require_choice("needed_descs", "direction", direction, DIRECTIONS)
    forward = program_descs(program, dtype)
    if kind != "cpu":
        forward = tuple(d for d in forward if d.op != "pack_blocks" and ("source", "packed") not in d.dims)
    backward = tuple(b for desc in forward if _differentiated(desc, program, kind) for b in _backward(desc, kind))
    chosen = {"fwd": forward, "bwd": backward, "both": (*forward, *backward)}[direction]
    return tuple(dict.fromkeys(chosen))


def needed_requests(program: Program, dtype: str, target: Target, direction: str = "both") -> tuple[Request, ...]:
    """Return the requests for `needed_descs` on `target`; raises `SpecError` and `ScheduleError`."""
    return requests_for(needed_descs(program, dtype, direction, kind=target.kind), target)


def requests_for(descs: Iterable[KernelDesc], target: Target) -> tuple[Request, ...]:
    """Return each desc with the schedule that is selected for it on `target`, and with that for few queries.

    Raises `ScheduleError`.
    """
    chosen = [(d, select(d, target).schedule) for d in descs]
    chosen += [(d, narrowed(schedule, d, target)) for d, schedule in chosen]
    return tuple(dict.fromkeys(Request(desc=d, schedule=s, target=target) for d, s in chosen))


def _differentiated(desc: KernelDesc, program: Program, kind: str) -> bool:
    """Return whether gradients pass through `desc`: not through the block means of a selection, nor twice a gather."""
    if desc.op == "gather_attention":
        return kind != "cpu" or desc.word("source") == "packed"  # the backward of both sources is this one's
    if desc.op == "compress":
        return (desc.word("method"), desc.size("kernel"), desc.size("stride")) in set(_phis(program))
    return True


def _phis(program: Program) -> Iterator[tuple[str, int, int]]:
    for path in program.paths:
        if isinstance(path.keys, Phi):
            yield path.keys.method, path.keys.kernel, path.keys.stride
            if path.pool_queries:
                yield "mean", path.keys.kernel, path.keys.stride


def _backward(desc: KernelDesc, kind: str) -> Iterator[KernelDesc]:
    yield from OPS[desc.op].backward_descs(desc)
    if desc.op == "gather_attention" and kind == "cpu":
        yield from backward_pack_descs(desc).values()
