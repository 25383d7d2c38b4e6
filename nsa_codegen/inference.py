"""A whole program as one op on the CPU, for when nothing is to be differentiated: what decoding and prefill call.

Queries are taken in runs whose outputs by path stay in cache, so that only their combination goes to memory. A run is a
whole number of every kernel's tiles, so that the result is bit-equal to that of the single ops. Few queries, and batch
rows that are small each, take all kernels in one call (`sequence.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import refuse_transforms, use_compiled
from .device import emulated_target
from .dispatch import define_op, dtype_name, fake_op, few_queries, launch
from .ops.base import scratch
from .ops.combine import gates_as_read, read_as
from .pages import in_large_pages
from .plan import PathKernels, Plan, packs_blocks, plan_of
from .program import Program
from .sequence import QUERIES, Ready
from .sequence import Sequence as KernelSequence

RUN_ELEMENTS = 1 << 20  # of one path's output: 4 MB as float32
MANY_ROWS = 4  # batch rows for each thread, of which it hardly matters that one may get one more
Attention = tuple[Tensor, Tensor]  # out [B, T, H, Dv] and lse [B, T, H]


def serves(program: Program) -> bool:
    """Return whether the op takes `program`: each of its paths has one output row per query."""
    return not any(p.pool_queries for p in program.paths)


def serves_here(program: Program, q: Tensor) -> bool:
    """Return whether `program` may be one op for queries like these, on kernels of the CPU."""
    if q.device.type != "cpu" or torch.compiler.is_compiling():  # a graph holds the single ops, and fuses around them
        return False
    return serves(program) and emulated_target() is None


def runs_as_one(
    program: Program, q: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], gates: Tensor | None, impl: str
) -> bool:
    """Return whether one op may do all of `program`: on the CPU's kernels, and with nothing to be differentiated."""
    if not serves_here(program, q):
        return False
    if torch.is_grad_enabled():
        if q.requires_grad or (gates is not None and gates.requires_grad):
            return False
        if any(k.requires_grad or v.requires_grad for k, v in pairs):
            return False
    return use_compiled("attention", impl, q)


def as_one(
    program: Program,
    q: Tensor,
    pairs: Sequence[tuple[Tensor, Tensor]],
    gates: Tensor | None,
    means: list[Tensor],
    *,
    scale: float,
    q_start: int,
) -> Tensor:
    """Return what `program` computes of checked tensors, by one op; of blocks scored by means, these or none.

    Raises `ForwardDerivativeError` and `TransformError`.
    """
    keys, values = [k for k, _ in pairs], [v for _, v in pairs]
    refuse_transforms("attention", (q, gates, *keys, *values), lists=True)
    out: Tensor = torch.ops.nsa_codegen.attention(q, keys, values, gates, means, program.text, q_start, scale)
    return out


@define_op(
    "attention(Tensor q, Tensor[] keys, Tensor[] values, Tensor? gates, Tensor[] means, str program, SymInt q_start, "
    "float scale) -> Tensor",
    devices=("CPU",),
)
def _attention(
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    gates: Tensor | None,
    means: list[Tensor],
    program: str,
    q_start: int,
    scale: float,
) -> Tensor:
    q, (keys, values, means) = q.contiguous(), ([x.contiguous() for x in part] for part in (keys, values, means))
    batch, tokens, heads, _ = q.shape
    dv = values[0].shape[3]
    plan = plan_for(program, q, keys, values, gates)
    out = in_large_pages(q.new_empty((batch, tokens, heads, dv)))
    if gates is not None and (found := _in_one_call(plan, q, keys, dv, means=bool(means))) is not None:
        kernels, by_row = found
        given = {**named(q, keys, values, gates), **_named_means(plan, means), "out": out}
        kernels(given, q_start=q_start, scale=scale, by_row=by_row)
        return out
    of_paths = dict(zip(plan.by_means, means, strict=False))  # there may be none
    scope = Scope(q=q, keys=keys, values=values, q_start=q_start, scale=scale, means=of_paths)
    if gates is None or plan.combine is None:
        lse = scratch(batch, tokens, heads)
        _attend(plan, 0, scope, q, slice(0, batch), 0, (out, lse), {})
        return out
    by_runs(plan, scope, gates.contiguous(), out)
    return out


def _named_means(plan: Plan, means: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return means of blocks by the names that a `sequence.Sequence` has for them; there may be none."""
    return {f"means {number}": x for number, x in zip(plan.by_means, means, strict=False)}


def _in_one_call(
    plan: Plan, q: Tensor, keys: Sequence[Tensor], dv: int, *, means: bool
) -> tuple[KernelSequence, bool] | None:
    """Return the kernels that one call of the pool takes, and whether by batch row; None where runs of queries pay."""
    batch, tokens, heads, _ = q.shape
    elements = batch * tokens * heads * dv
    if plan.combine is None or not elements:
        return None
    by_row, packs = rows_are_shared(q, dv), plan.packs(tokens, keys)
    few = tokens <= few_queries(heads // keys[0].shape[2])
    if (by_row and len(packs) <= 1) or (few and packs == {False} and elements <= RUN_ELEMENTS):
        return plan.forward(tokens, keys, means=means), by_row
    return None


def ready(program: Program, tensors: Sequence[Tensor], *, scale: float, q_start: int) -> Ready | None:
    """Return the one call that computes `program` of plain tensors, if there is one.

    They are queries, gates, keys and values by path, and means of blocks, if any. It takes them in this order, and the
    output behind.
    """
    q, gates, *others = tensors
    if gates.dtype != read_as(gates, q.dtype):
        return None
    pairs, means = others[: 2 * len(program.paths)], others[2 * len(program.paths) :]
    keys, values = pairs[::2], pairs[1::2]
    plan = plan_for(program.text, q, keys, values, gates)
    if (found := _in_one_call(plan, q, keys, values[0].shape[3], means=bool(means))) is None:
        return None
    kernels, by_row = found
    given = {**named(q, keys, values, gates), **_named_means(plan, means)}
    given["out"] = torch.empty((*q.shape[:3], values[0].shape[3]), dtype=q.dtype, device="meta")
    return kernels.ready(given, q_start=q_start, scale=scale, by_row=by_row)


def by_runs(
    plan: Plan,
    scope: Scope,
    gates: Tensor,
    out: Tensor,
    *,
    lses: Sequence[Tensor] | None = None,
    listed: Mapping[int, Tensor] | None = None,
) -> None:
    """Write the combined output of all paths to `out` [B, T, H, Dv], run by run of queries.

    If given, log-sum-exps by path [B, T, H] are written to `lses`, and lists of blocks by number of path to `listed`.
    """
    assert plan.combine is not None
    batch, tokens, heads, dv = out.shape
    rows, run = _run_shape(plan, scope.q, dv)
    held = [scope.q.new_empty((rows, run, heads, dv)) for _ in plan.paths]
    kept = [] if lses is not None else [scratch(rows, run, heads) for _ in plan.paths]
    for lead, part in _runs(batch, tokens, rows, run):
        chosen = _rows(scope.q, lead, part)
        outs = [_cut(o, (*chosen.shape[:3], dv)) for o in held]
        if lses is None:
            sums = [_cut(lse, chosen.shape[:3]) for lse in kept]
        else:
            sums = [_rows(lse, lead, part) for lse in lses]
        lists: dict[int, Tensor] = {}
        for number in plan.order:
            _attend(plan, number, scope, chosen, lead, part.start, (outs[number], sums[number]), lists)
        for number, whole in (listed or {}).items():
            _rows(whole, lead, part).copy_(lists[number])
        of_run = gates if gates.dim() == 1 else _rows(gates, lead, part)
        launch(plan.combine, outs=outs, gates=of_run, into=_rows(out, lead, part))


def plan_for(program: str, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], gates: Tensor | None) -> Plan:
    """Return the kernels of a program (`Program.text`) over these tensors."""
    words = "none" if gates is None else "scalar" if gates.dim() == 1 else "sigmoid"
    group = q.shape[2] // keys[0].shape[2]
    few = q.shape[1] <= few_queries(group)
    return plan_of(program, dtype_name(q), group, q.shape[3], values[0].shape[3], words, few)


def named(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], gates: Tensor) -> dict[str, Tensor]:
    """Return contiguous tensors by the names that a `sequence.Sequence` has for them."""
    pairs = (x for pair in zip(keys, values, strict=True) for x in pair)
    return dict(zip(_names(len(keys)), (q, gates_as_read(gates, q.dtype), *pairs), strict=True))


@functools.cache
def _names(paths: int) -> tuple[str, ...]:
    return (QUERIES, "gates", *(f"{part} {n}" for n in range(paths) for part in ("keys", "values")))


def rows_are_small(q: Tensor, dv: int) -> bool:
    """Return whether no batch row is longer than a run."""
    _, tokens, heads, dk = q.shape
    return tokens * heads * max(dk, dv) <= RUN_ELEMENTS


def rows_are_shared(q: Tensor, dv: int) -> bool:
    """Return whether each thread takes batch rows of its own: small ones, of which each gets about as many."""
    batch, threads = q.shape[0], torch.get_num_threads()
    return batch > 1 and rows_are_small(q, dv) and (batch % threads == 0 or batch >= MANY_ROWS * threads)


def _run_shape(plan: Plan, q: Tensor, dv: int) -> tuple[int, int]:
    """Return batch rows and queries of a run: whole sequences, or a part of one in whole tiles."""
    batch, tokens, heads, _ = q.shape
    of_sequence = max(1, tokens * heads * dv)
    if of_sequence <= RUN_ELEMENTS:
        return max(1, min(batch, RUN_ELEMENTS // of_sequence)), max(1, tokens)
    tile = math.lcm(*(p.queries for p in plan.paths))
    return 1, min(tokens, max(1, RUN_ELEMENTS // (heads * dv * tile)) * tile)


@fake_op("attention")
def _attention_fake(q: Tensor, keys: list[Tensor], values: list[Tensor], *rest: Any) -> Tensor:
    return q.new_empty((*q.shape[:3], values[0].shape[3]))


class Scope:
    """The tensors of one call, and what its paths make of the keys once: packed blocks, and means that aren't given."""

    def __init__(
        self,
        *,
        q: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        q_start: int,
        scale: float,
        means: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.q, self.keys, self.values, self.q_start, self.scale = q, keys, values, q_start, scale
        self._made: dict[tuple[str, int], tuple[Tensor, ...]] = {("means", n): (x,) for n, x in (means or {}).items()}

    def scored(self, path: PathKernels) -> Tensor:
        """Return the keys that score the blocks of `path`."""
        keys = self.keys[path.scored_by]
        if path.means is None:
            return keys
        where = ("means", path.scored_by)
        if where not in self._made:
            self._made[where] = launch(path.means, x=keys)
        return self._made[where][0]

    def packed(self, path: PathKernels, number: int) -> tuple[Tensor, ...] | None:
        """Return the packed keys and values of `path`, or None if packing them does not pay."""
        visible, keys = path.visible, self.keys[number]
        assert visible is not None
        if not packs_blocks(visible, self.q.shape[1], keys):
            return None
        where = ("packed", number)
        if where not in self._made:
            both = zip(path.packs, (keys, self.values[number]), strict=True)
            self._made[where] = tuple(launch(pack, x=x)[0] for pack, x in both)
        return self._made[where]


def _attend(
    plan: Plan,
    number: int,
    scope: Scope,
    q: Tensor,
    lead: slice,
    first: int,
    into: Attention,
    lists: dict[int, Tensor],
) -> None:
    """Run one path over the queries `q`, the batch rows `lead` from query `first` on, into `into`.

    `lists` holds the blocks that were listed, by the number of the path that attends to them.
    """
    path, k, v = plan.paths[number], _rows(scope.keys[number], lead), _rows(scope.values[number], lead)
    where = {"q_start": scope.q_start + first, "scale": scope.scale}
    if path.visible is None:
        made = launch(path.attend, q=q, k=k, v=v, **where, into=into)
        if path.lists is not None:
            lists[path.lists] = made[2]
        return
    assert path.packed is not None
    if path.select is not None:
        lists[number] = launch(path.select, q=q, k=_rows(scope.scored(path), lead), **where)[0]
    blocks = lists[number]
    copies = scope.packed(path, number)
    if copies is None:
        launch(path.attend, q=q, k=k, v=v, block_indices=blocks, **where, into=into)
    else:
        packed = (_rows(copies[0], lead), _rows(copies[1], lead))
        launch(path.packed, q=q, k=k, v=v, block_indices=blocks, **where, packed=packed, into=into)


def _runs(batch: int, tokens: int, rows: int, run: int) -> Iterator[tuple[slice, slice]]:
    """Yield batch rows and queries of each run: both lie together in memory."""
    for b in range(0, batch, rows):
        for t in range(0, tokens, run):
            yield slice(b, min(b + rows, batch)), slice(t, min(t + run, tokens))


def _rows(x: Tensor, lead: slice, part: slice | None = None) -> Tensor:
    """Return batch rows of x, and of each the positions `part`; x itself, at no cost, if that is all of it."""
    if lead.stop - lead.start < x.shape[0]:
        x = x[lead]
    return x if part is None or part.stop - part.start == x.shape[1] else x[:, part]


def _cut(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the first elements of `buffer` in `shape`."""
    return buffer if buffer.shape == shape else buffer.view(-1)[: math.prod(shape)].view(shape)
