"""The kernels of a program on the CPU: those of each path, and all in the order in which one call runs them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .desc import PLAIN, KernelDesc
from .dispatch import Kernel, gather_desc, kernel, load_kernels, packed_source, pays_to_pack, stream_desc
from .index_sets import RangeSet, TopK
from .needed import (
    all_backward_descs,
    attention_of,
    backward_descs,
    backward_pack_descs,
    compress_desc,
    pack_descs,
    scored_desc,
    select_desc,
)
from .ops.base import element_bytes
from .ops.pack_blocks import packed_bytes
from .ops.stream_attention import gate_of, runs_of
from .runs import reach_of
from .schedule import CpuSchedule
from .sequence import QUERIES, SCALE, SUMS, Area, Step
from .sequence import Sequence as KernelSequence
from .tiling import RowTile, ceil_div, padded


@dataclass(frozen=True, kw_only=True)
class PathKernels:
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
class Plan:
    """The kernels of a program; `combine` is None for a program of one path."""

    paths: tuple[PathKernels, ...]
    combine: Kernel | None

    @functools.cached_property
    def order(self) -> list[int]:
        """The numbers of the paths, those that list blocks before those that attend to them."""
        return sorted(range(len(self.paths)), key=lambda number: self.paths[number].visible is not None)

    def packs(self, tokens: int, keys: Sequence[Tensor]) -> set[bool]:
        """Return, of the paths that read listed blocks, whether the blocks are packed."""
        both = zip(self.paths, keys, strict=True)
        return {packs_blocks(p.visible, tokens, k) for p, k in both if p.visible is not None}

    def forward(self, tokens: int, keys: Sequence[Tensor], *, means: bool = False) -> KernelSequence:
        """Return the kernels in order; blocks are packed where that pays for one of the paths.

        With `means`, those that score blocks are tensors of the call, `means N` by number of path.
        """
        which = True in self.packs(tokens, keys), means
        if which not in self._forwards:
            self._forwards[which] = _sequence(self, *which)
        return self._forwards[which]

    @functools.cached_property
    def _forwards(self) -> dict[tuple[bool, bool], KernelSequence]:
        return {}

    @functools.cached_property
    def by_means(self) -> list[int]:
        """The numbers of the paths whose blocks are scored by the means of their keys."""
        return [number for number, path in enumerate(self.paths) if path.means is not None]

    @functools.cached_property
    def backward(self) -> KernelSequence:
        """The kernels from the gradient of the output to those of queries, keys, values and gates."""
        return _backward_sequence(self, range(len(self.paths)))

    @functools.cached_property
    def backward_by_path(self) -> tuple[KernelSequence, ...]:
        """The same path by path, in this order: each takes its working memory for itself."""
        return tuple(_backward_sequence(self, [number]) for number in range(len(self.paths)))


@functools.lru_cache(maxsize=256)
def plan_of(program: str, dtype: str, group: int, dk: int, dv: int, gates: str, few: bool) -> Plan:
    """Return the kernels of a program (`Program.text`), those for few queries if `few`; gates may be `none`."""
    rows = json.loads(program)
    listed = {row["lists"] for row in rows if "lists" in row}
    parts = [_path_descs(row, dtype, group, dk, dv, listed=number in listed) for number, row in enumerate(rows)]
    combine = KernelDesc.of("combine", dtype, paths=len(rows), dv=dv, gates=gates) if gates != "none" else None
    load_kernels([*(d for part in parts for d in part.values()), *([combine] if combine else [])], few=few)
    paths = tuple(_path(row, descs, few) for row, descs in zip(rows, parts, strict=True))
    return Plan(paths=paths, combine=kernel(combine) if combine else None)


def _sequence(plan: Plan, packed: bool, means: bool) -> KernelSequence:
    """Return the kernels of `plan` in order, and what lies between them; with `means`, these are given."""
    steps: list[Step] = []
    attends: list[Step] = []
    areas: list[Area] = []
    for number in plan.order:
        path, own = plan.paths[number], {"q": QUERIES, "k": f"keys {number}", "v": f"values {number}"}
        attend, keys = path.attend, f"keys {number}"
        if path.visible is not None:
            areas.append(Area(name=f"list {number}", bytes=4 * path.visible.n, lists=True))
            own["block_indices"] = f"list {number}"
            if path.select is not None:
                steps += _listing(path, number, areas, given=means)
            if packed:
                assert path.packed is not None
                attend = path.packed
                for name, pack in zip("kv", path.packs, strict=True):
                    areas.append(_packed_area(f"packed {name} {number}", pack.desc, keys))
                    steps.append(Step.of(pack, keys, x=own[name], packed=areas[-1].name))
                    own[name] = areas[-1].name
        own |= {"out": f"output {number}", "lse": f"lse {number}", "indices": f"list {path.lists}"}
        dv, dtype = attend.desc.size("dv"), attend.desc.dtype
        areas += [Area(name=own["out"], bytes=dv * element_bytes(dtype)), Area(name=own["lse"], bytes=4)]
        (attends if path.lists is None else steps).append(Step.of(attend, keys, **own))
    # What only the combination needs comes last, side by side; listed blocks, which take longest, first.
    steps += [replace(step, beside=i > 0) for i, step in enumerate(reversed(attends))]
    assert plan.combine is not None
    outs = {f"o{number}": f"output {number}" for number in range(len(plan.paths))}
    steps.append(Step.of(plan.combine, QUERIES, **outs, gates="gates", out="out"))
    return KernelSequence(steps=tuple(steps), areas=tuple(areas))


def _listing(path: PathKernels, number: int, areas: list[Area], *, given: bool) -> list[Step]:
    """Return the kernels that list the blocks of a path, and add what lies between them to `areas`.

    With `given`, the means of its keys are among the tensors of the call.
    """
    assert path.select is not None and path.visible is not None
    scored, steps = f"keys {path.scored_by}", []
    if path.means is not None:
        means = f"means {number}"
        if not given:
            of_means = 4 * path.means.desc.size("dim")
            areas.append(Area(name=means, bytes=of_means, keys=scored, block=path.visible.block))
            steps.append(Step.of(path.means, scored, x=scored, out=means))
        scored = means
    return [*steps, Step.of(path.select, scored, q=QUERIES, k=scored, indices=f"list {number}")]


def _path_descs(
    row: Mapping[str, Any], dtype: str, group: int, dk: int, dv: int, *, listed: bool
) -> dict[str, KernelDesc]:
    """Return the descs of a row of `Program.text` by what they do; `listed` if another path lists its blocks."""
    if "lists" in row:
        return {"attend": scored_desc(TopK(**row["top_k"]), dtype, group=group, dk=dk, dv=dv, **row["windows"])}
    if "ranges" in row:
        return {"attend": stream_desc(RangeSet.from_json(row["ranges"]).text, dtype, group, dk, dv)}
    visible, found = TopK(**row["top_k"]), {}
    if visible.score == "mean_key":
        block = visible.block
        found["means"] = compress_desc("mean", dtype, kernel=block, stride=block, dim=dk, out="float32")
    if not listed:
        found["select"] = select_desc(visible, dtype, group=group, dk=dk, **row["windows"])
    for name, source in (("attend", PLAIN), ("packed", packed_source(dtype))):
        found[name] = gather_desc(dtype, group, dk, dv, visible.block, visible.n, visible.causal, source)
    found["pack k"], found["pack v"] = pack_descs(found["packed"])
    return found


def _path(row: Mapping[str, Any], descs: Mapping[str, KernelDesc], few: bool) -> PathKernels:
    """Return the path of a row of `Program.text`, whose descs these are."""
    found = {name: kernel(desc, few=few) for name, desc in descs.items()}
    tile = found.get("packed", found["attend"])
    assert isinstance(tile.schedule, CpuSchedule)
    queries = RowTile.of(tile.desc.size("group"), tile.schedule.query_lanes).queries
    if "ranges" in row:
        return PathKernels(attend=found["attend"], queries=queries, lists=row.get("lists"))
    return PathKernels(
        attend=found["attend"],
        packed=found["packed"],
        packs=(found["pack k"], found["pack v"]),
        queries=queries,
        visible=TopK(**row["top_k"]),
        scored_by=row["scored_by"],
        means=found.get("means"),
        select=found.get("select"),
    )


def _backward_sequence(plan: Plan, numbers: Iterable[int]) -> KernelSequence:
    """Return the kernels from `dout` to `grad keys N` and `grad values N` of the paths `numbers`.

    Each adds to `grad q`, which the first one begins, and writes its column of `grad gates`.
    """
    areas: list[Area] = []
    attends = [(plan.paths[number].packed or plan.paths[number].attend).desc for number in numbers]
    load_kernels([desc for attend in attends for desc in all_backward_descs(attend)], few=False)
    steps = [step for number in numbers for step in _path_backward(plan, number, areas)]
    return KernelSequence(steps=tuple(steps), areas=tuple(areas))


def _path_backward(plan: Plan, number: int, areas: list[Area]) -> list[Step]:
    """Return the kernels of the backward of a path, and add what lies between them to `areas`."""
    assert plan.combine is not None
    path, keys = plan.paths[number], f"keys {number}"
    desc = attention_of((path.packed or path.attend).desc)
    by_runs, by_sums = backward_descs(desc)
    own = {"q": QUERIES, "k": keys, "v": f"values {number}", "lse": f"lse {number}", "dout": "dout", "dlse": "dlse"}
    own |= {"dq": "grad q", "gates": "gates", "grad_gates": "grad gates", "block_indices": f"list {number}"}
    steps = []
    if path.visible is not None:
        for name, pack in backward_pack_descs(desc).items():
            own[name] = f"{name} {number}"
            areas.append(_packed_area(own[name], pack, keys))
            steps.append(Step.of(kernel(pack), keys, x=own[name[0]], packed=own[name]))
    runs = functools.partial(runs_of, by_runs, reach_of(by_runs) if path.visible is not None else by_runs.streamed)
    for name, dim in (("parts_k", desc.size("dk")), ("parts_v", desc.size("dv"))):
        own[name] = f"{name} {number}"
        areas.append(Area(name=own[name], bytes=4 * padded(dim), keys=keys, runs=runs))
    shared = plan.combine.desc.word("gates") == "scalar"
    numbers = gate_of(path=number, paths=len(plan.paths), shared=shared)
    steps.append(Step.of(kernel(by_runs), keys, numbers, **own))
    grads = {"grad_k": f"grad {keys}", "grad_v": f"grad values {number}"}
    scale = SCALE if path.visible is None else SUMS
    parts = {name: own[name] for name in ("parts_k", "parts_v")}
    return [*steps, Step.of(kernel(by_sums), keys, **parts, **grads, scale=scale)]


def _packed_area(name: str, pack: KernelDesc, keys: str) -> Area:
    return Area(name=name, bytes=packed_bytes(pack), keys=keys, block=pack.size("block"), complete=False)


def packs_blocks(visible: TopK, tokens: int, keys: Tensor) -> bool:
    """Return whether the blocks of `keys` are packed once for so many queries."""
    return pays_to_pack(tokens, visible.n, ceil_div(keys.shape[1], visible.block))
