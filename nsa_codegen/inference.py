"""A whole program as one op on the CPU, for when nothing is to be differentiated: what decoding and prefill call.

Queries are taken in runs whose outputs by path stay in cache, so that only their combination goes to memory. A run is a
whole number of every kernel's tiles, so that the result is bit-equal to that of the single ops. Few queries, and batch
rows that are small each, take all kernels in one call (`sequence.py`).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import checked_scale, require_attention, require_gates, require_position, use_compiled
from .desc import KernelDesc
from .device import emulated_target
from .dispatch import (
    Kernel,
    define_op,
    dtype_name,
    fake_op,
    few_queries,
    gather_desc,
    kernel,
    launch,
    pays_to_pack,
    stream_desc,
)
from .index_sets import RangeSet, TopK
from .needed import compress_desc, pack_descs, scored_desc, select_desc
from .ops.base import element_bytes
from .ops.combine import gates_as_read
from .ops.pack_blocks import packed_shape
from .program import Program
from .schedule import CpuSchedule
from .sequence import QUERIES, Area, Step
from .sequence import Sequence as KernelSequence
from .tiling import RowTile, ceil_div

MAX_PASSED = 4096
RUN_ELEMENTS = 1 << 20  # of one path's output: 4 MB as float32
MANY_ROWS = 4  # batch rows for each thread, of which it hardly matters that one may get one more
Attention = tuple[Tensor, Tensor]  # out [B, T, H, Dv] and lse [B, T, H]


def serves(program: Program) -> bool:
    """Return whether the op takes `program`: each of its paths has one output row per query."""
    return not any(p.pool_queries for p in program.paths)


def runs_as_one(
    program: Program, q: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], gates: Tensor | None, impl: str
) -> bool:
    """Return whether one op may do all of `program`: on the CPU's kernels, and with nothing to be differentiated."""
    if q.device.type != "cpu" or torch.compiler.is_compiling():  # a graph holds the single ops, and fuses around them
        return False
    if not serves(program) or emulated_target() is not None:
        return False
    if torch.is_grad_enabled():
        if q.requires_grad or (gates is not None and gates.requires_grad):
            return False
        if any(k.requires_grad or v.requires_grad for k, v in pairs):
            return False
    return use_compiled("attention", impl, q)


_passed: set[Any] = set()  # what was checked: programs with shapes, dtypes and devices, on which alone checks depend


def as_one(
    program: Program,
    q: Tensor,
    pairs: Sequence[tuple[Tensor, Tensor]],
    gates: Tensor | None,
    *,
    scale: float | None,
    q_start: int,
) -> Tensor:
    """Return what `program` computes, by one op; checks what was not checked before. Raises `InputError`."""
    tensors = [q, *(x for pair in pairs for x in pair), *(() if gates is None else (gates,))]
    text = program.text
    seen = (text, tuple((x.shape, x.dtype, x.device) for x in tensors))
    if seen not in _passed:
        for path, (k, v) in zip(program.paths, pairs, strict=True):
            require_attention(f"attention({program.name}.{path.name})", q, k, v)
        if gates is not None:
            require_gates(len(pairs), list(q.shape[:3]), gates, q.device)
        if len(_passed) < MAX_PASSED:
            _passed.add(seen)
    require_position("attention", q_start, q)
    factor = checked_scale("attention", scale, q)
    out: Tensor = torch.ops.nsa_codegen.attention(
        q, [k for k, _ in pairs], [v for _, v in pairs], gates, text, q_start, factor
    )
    return out


@define_op(
    "attention(Tensor q, Tensor[] keys, Tensor[] values, Tensor? gates, str program, SymInt q_start, float scale) "
    "-> Tensor",
    devices=("CPU",),
)
def _attention(
    q: Tensor, keys: list[Tensor], values: list[Tensor], gates: Tensor | None, program: str, q_start: int, scale: float
) -> Tensor:
    q, keys, values = q.contiguous(), [k.contiguous() for k in keys], [v.contiguous() for v in values]
    batch, tokens, heads, dk = q.shape
    dv = values[0].shape[3]
    words = "none" if gates is None else "scalar" if gates.dim() == 1 else "sigmoid"
    group = heads // keys[0].shape[2]
    few = tokens <= few_queries(group)
    plan = _plan(program, dtype_name(q), group, dk, dv, words, few)
    out = q.new_empty((batch, tokens, heads, dv))
    if gates is not None and plan.combine is not None and out.numel():
        by_row, packs = _rows_are_shared(q, dv), plan.packs(tokens, keys)
        if (by_row and len(packs) <= 1) or (few and packs == {False} and out.numel() <= RUN_ELEMENTS):
            kernels = plan.packed if True in packs else plan.plain
            read = gates_as_read(gates, q.dtype)
            kernels(q, keys, values, read, q_start=q_start, scale=scale, out=out, by_row=by_row)
            return out
    scope = _Scope(q=q, keys=keys, values=values, q_start=q_start, scale=scale)
    if gates is None or plan.combine is None:
        lse = torch.empty((batch, tokens, heads), dtype=torch.float32)
        _attend(plan, 0, scope, q, slice(0, batch), 0, (out, lse), {})
        return out
    gates = gates.contiguous()
    rows, run = plan.run_shape(q, dv)
    held = [(q.new_empty((rows, run, heads, dv)), torch.empty((rows, run, heads))) for _ in plan.paths]
    for lead, part in _runs(batch, tokens, rows, run):
        chosen = _rows(q, lead, part)
        into = [(_cut(o, (*chosen.shape[:3], dv)), _cut(lse, chosen.shape[:3])) for o, lse in held]
        lists: dict[int, Tensor] = {}
        for number in plan.order:
            _attend(plan, number, scope, chosen, lead, part.start, into[number], lists)
        outs = [o for o, _ in into]
        of_run = gates if words == "scalar" else _rows(gates, lead, part)
        launch(plan.combine, outs=outs, gates=of_run, into=_rows(out, lead, part))
    return out


def _rows_are_shared(q: Tensor, dv: int) -> bool:
    """Return whether each thread takes batch rows of its own: none is longer than a run, and each gets as many."""
    batch, tokens, heads, dk = q.shape
    threads = torch.get_num_threads()
    even = batch % threads == 0 or batch >= MANY_ROWS * threads
    return batch > 1 and even and tokens * heads * max(dk, dv) <= RUN_ELEMENTS


@fake_op("attention")
def _attention_fake(q: Tensor, keys: list[Tensor], values: list[Tensor], *rest: Any) -> Tensor:
    return q.new_empty((*q.shape[:3], values[0].shape[3]))


@dataclass(frozen=True, kw_only=True)
class _Path:
    """The kernels of one path; a streamed one has `attend` alone, which may list the blocks of the path `lists`.

    `scored_by` is the number of the path whose keys score the blocks, and `means` what makes them of tokens, if need
    be. Blocks are listed by `select`, and read from copies that `packs` make (`packed`) or in place (`attend`).
    """

    attend: Kernel
    queries: int
    lists: int | None = None
    visible: TopK | None = None
    scored_by: int = 0
    means: Kernel | None = None
    select: Kernel | None = None
    packed: Kernel | None = None
    packs: tuple[Kernel, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The kernels of a program; `combine` is None for a program of one path."""

    paths: tuple[_Path, ...]
    combine: Kernel | None

    @functools.cached_property
    def order(self) -> list[int]:
        """The numbers of the paths, those that list blocks before those that attend to them."""
        return sorted(range(len(self.paths)), key=lambda number: self.paths[number].visible is not None)

    def packs(self, tokens: int, keys: Sequence[Tensor]) -> set[bool]:
        """Return, of the paths that read listed blocks, whether the blocks are packed."""
        both = zip(self.paths, keys, strict=True)
        return {_packs(p.visible, tokens, k) for p, k in both if p.visible is not None}

    @functools.cached_property
    def plain(self) -> KernelSequence:
        """The kernels in order, blocks read in place."""
        return _sequence(self, packed=False)

    @functools.cached_property
    def packed(self) -> KernelSequence:
        """The kernels in order, blocks read from packed copies."""
        return _sequence(self, packed=True)

    def run_shape(self, q: Tensor, dv: int) -> tuple[int, int]:
        """Return batch rows and queries of a run: whole sequences, or a part of one in whole tiles."""
        batch, tokens, heads, _ = q.shape
        of_sequence = max(1, tokens * heads * dv)
        if of_sequence <= RUN_ELEMENTS:
            return max(1, min(batch, RUN_ELEMENTS // of_sequence)), tokens
        tile = math.lcm(*(p.queries for p in self.paths))
        return 1, min(tokens, max(1, RUN_ELEMENTS // (heads * dv * tile)) * tile)


@functools.lru_cache(maxsize=256)
def _plan(program: str, dtype: str, group: int, dk: int, dv: int, gates: str, few: bool) -> _Plan:
    rows = json.loads(program)
    listed = {row["lists"] for row in rows if "lists" in row}
    paths = tuple(_path(row, dtype, group, dk, dv, few, listed=number in listed) for number, row in enumerate(rows))
    desc = KernelDesc.of("combine", dtype, paths=len(paths), dv=dv, gates=gates)
    return _Plan(paths=paths, combine=None if gates == "none" else kernel(desc))


def _sequence(plan: _Plan, *, packed: bool) -> KernelSequence:
    """Return the kernels of `plan` in order, and what lies between them."""
    steps, areas = [], []
    for number in plan.order:
        path, own = plan.paths[number], {"q": QUERIES, "k": f"keys {number}", "v": f"values {number}"}
        attend, keys = path.attend, f"keys {number}"
        if path.visible is not None:
            areas.append(Area(name=f"list {number}", bytes=4 * path.visible.n, lists=True))
            own["block_indices"] = f"list {number}"
            if path.select is not None:
                steps += _listing(path, number, areas)
            if packed:
                assert path.packed is not None
                attend = path.packed
                for name, pack in zip("kv", path.packs, strict=True):
                    blocks = Area(
                        name=f"packed {name} {number}", bytes=4 * math.prod(packed_shape(pack.desc)), keys=keys,
                        block=path.visible.block, complete=False,
                    )  # fmt: skip
                    areas.append(blocks)
                    steps.append(Step.of(pack, keys, x=own[name], packed=blocks.name))
                    own[name] = blocks.name
        own |= {"out": f"output {number}", "lse": f"lse {number}", "indices": f"list {path.lists}"}
        dv, dtype = attend.desc.size("dv"), attend.desc.dtype
        areas += [Area(name=own["out"], bytes=dv * element_bytes(dtype)), Area(name=own["lse"], bytes=4)]
        steps.append(Step.of(attend, keys, **own))
    assert plan.combine is not None
    outs = {f"o{number}": f"output {number}" for number in range(len(plan.paths))}
    steps.append(Step.of(plan.combine, QUERIES, **outs, gates="gates", out="out"))
    return KernelSequence(steps=tuple(steps), areas=tuple(areas))


def _listing(path: _Path, number: int, areas: list[Area]) -> list[Step]:
    """Return the kernels that list the blocks of a path, and add what lies between them to `areas`."""
    assert path.select is not None and path.visible is not None
    scored, steps = f"keys {path.scored_by}", []
    if path.means is not None:
        of_means = 4 * path.means.desc.size("dim")
        means = Area(name=f"means {number}", bytes=of_means, keys=scored, block=path.visible.block)
        areas.append(means)
        steps.append(Step.of(path.means, scored, x=scored, out=means.name))
        scored = means.name
    return [*steps, Step.of(path.select, scored, q=QUERIES, k=scored, indices=f"list {number}")]


def _path(row: Mapping[str, Any], dtype: str, group: int, dk: int, dv: int, few: bool, *, listed: bool) -> _Path:
    """Return the path of a row of `Program.text`; `listed` if another path lists its blocks."""
    if "ranges" in row:
        desc = stream_desc(RangeSet.from_json(row["ranges"]).text, dtype, group, dk, dv)
        if "lists" in row:
            desc = scored_desc(TopK(**row["top_k"]), dtype, group=group, dk=dk, dv=dv, **row["windows"])
        attend = kernel(desc, few=few)
        assert isinstance(attend.schedule, CpuSchedule)
        queries = RowTile.of(group, attend.schedule.query_lanes).queries
        return _Path(attend=attend, queries=queries, lists=row.get("lists"))
    visible = TopK(**row["top_k"])
    means = None
    if visible.score == "mean_key":
        block = visible.block
        means = kernel(compress_desc("mean", dtype, kernel=block, stride=block, dim=dk, out="float32"))
    by_source = [
        gather_desc(dtype, group, dk, dv, visible.block, visible.n, visible.causal, source)
        for source in ("plain", "packed")
    ]
    plain, packed = (kernel(d) for d in by_source)
    assert isinstance(packed.schedule, CpuSchedule)
    return _Path(
        attend=plain,
        packed=packed,
        packs=tuple(kernel(d) for d in pack_descs(packed.desc)),
        queries=RowTile.of(group, packed.schedule.query_lanes).queries,
        visible=visible,
        scored_by=row["scored_by"],
        means=means,
        select=None if listed else kernel(select_desc(visible, dtype, group=group, dk=dk, **row["windows"]), few=few),
    )


class _Scope:
    """The tensors of one call, and what its paths make of the keys once: block means and packed blocks."""

    def __init__(self, *, q: Tensor, keys: list[Tensor], values: list[Tensor], q_start: int, scale: float) -> None:
        self.q, self.keys, self.values, self.q_start, self.scale = q, keys, values, q_start, scale
        self._made: dict[tuple[str, int], tuple[Tensor, ...]] = {}

    def scored(self, path: _Path) -> Tensor:
        """Return the keys that score the blocks of `path`."""
        keys = self.keys[path.scored_by]
        if path.means is None:
            return keys
        where = ("means", path.scored_by)
        if where not in self._made:
            self._made[where] = launch(path.means, x=keys)
        return self._made[where][0]

    def packed(self, path: _Path, number: int) -> tuple[Tensor, ...] | None:
        """Return the packed keys and values of `path`, or None if packing them does not pay."""
        visible, keys = path.visible, self.keys[number]
        assert visible is not None
        if not _packs(visible, self.q.shape[1], keys):
            return None
        where = ("packed", number)
        if where not in self._made:
            both = zip(path.packs, (keys, self.values[number]), strict=True)
            self._made[where] = tuple(launch(pack, x=x)[0] for pack, x in both)
        return self._made[where]


def _packs(visible: TopK, tokens: int, keys: Tensor) -> bool:
    """Return whether the blocks of `keys` are packed once for so many queries."""
    return pays_to_pack(tokens, visible.n, ceil_div(keys.shape[1], visible.block))


def _attend(
    plan: _Plan,
    number: int,
    scope: _Scope,
    q: Tensor,
    lead: slice,
    first: int,
    into: Attention,
    lists: dict[int, Tensor],
) -> None:
    """Run one path over the queries `q`, the batch rows `lead` from query `first` on, into `into`.

    `lists` holds the blocks of paths that were listed with the attention of another, by number.
    """
    path, k, v = plan.paths[number], _rows(scope.keys[number], lead), _rows(scope.values[number], lead)
    where = {"q_start": scope.q_start + first, "scale": scope.scale}
    if path.visible is None:
        made = launch(path.attend, q=q, k=k, v=v, **where, into=into)
        if path.lists is not None:
            lists[path.lists] = made[2]
        return
    assert path.packed is not None
    if path.select is None:
        blocks = lists[number]
    else:
        blocks = launch(path.select, q=q, k=_rows(scope.scored(path), lead), **where)[0]
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
