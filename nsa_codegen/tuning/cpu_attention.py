"""The loops of attention and block selection on a CPU, read off their templates in `templates/cpu`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..desc import KernelDesc
from ..index_sets import RangeSet, complete
from ..needed import attention_of
from ..program import Phi
from ..runs import KEYS_PER_TASK, Runs, keys_passed, reach_of
from ..schedule import CpuSchedule
from ..tiling import RowTile, ScoreTile, ceil_div, padded
from .counts import Steps, keys_of_runs, listed_blocks, steps_over_keys
from .cpu_loop import DTYPE_BYTES, FLOAT, CpuLoop, Product, part_of, passes_of

if TYPE_CHECKING:
    from ..ops import Sizes


NOMINAL_GROUP = 16  # heads of a group, where a desc does not say


def stream_loop(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """Return the loop of a streamed attention, or of one part of its backward."""
    if part_of(desc) == "sums":
        return _run_sums(desc, sizes, desc.streamed)
    return (_stream_rows if desc.direction == "fwd" else _stream_runs)(desc, schedule, sizes)


def gather_loop(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """Return the loop of a gathered attention, or of one part of its backward."""
    if part_of(desc) == "sums":
        return _run_sums(desc, sizes, reach_of(desc))
    return (_gather_rows if desc.direction == "fwd" else _gather_runs)(desc, schedule, sizes)


def _stream_rows(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """The forward: queries in the lanes, keys pass by `key_tile` at a time."""
    dk, dv, lanes, step = desc.size("dk"), desc.size("dv"), schedule.query_lanes, schedule.key_tile
    tile, heads = RowTile.of(desc.size("group"), lanes), sizes.batch * sizes.kv_heads
    steps, passed = steps_over_keys(
        desc.streamed, tokens=sizes.tokens, keys=sizes.keys, q_start=sizes.q_start, queries=tile.queries, width=step
    )
    times, tiles = heads * tile.chunks, heads * tile.chunks * steps.tiles
    full, scores = times * passed / step, times * passed * lanes
    passes = passes_of(
        {
            "weights": scores,
            "masked": scores * steps.partial,
            "packed": tiles * lanes * dk,
            "unpacked": tiles * lanes * dv,
            "filled": tiles * lanes * dv,
        }
    )
    if desc.dtype != "float32":
        passes["converted"] += times * passed * (dk + dv)
        passes["rounded"] += tiles * lanes * dv
    return CpuLoop(
        tasks=tiles,
        longest=steps.longest / steps.mean if steps.total else 1.0,
        products=(
            Product(times=full, rows=step, lanes=lanes, depth=dk),
            *_summed(full, times * steps.total, rows=dv, lanes=lanes, depth=step),
        ),
        passes=passes,
        streamed=times * passed * (dk + dv) * DTYPE_BYTES[desc.dtype],
        reach=sizes.keys * (dk + dv) * DTYPE_BYTES[desc.dtype],
        unique=_operands(desc, sizes, queries=(1, 1), keys=1),
    )


def _stream_runs(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """The backward over runs of queries: twice over the keys of each tile, scores and gradients are kept between."""
    dk, dv, group, visible = desc.size("dk"), desc.size("dv"), desc.size("group"), desc.streamed
    lanes, step, element = schedule.query_lanes, schedule.key_tile, DTYPE_BYTES[desc.dtype]
    tile, heads, wide_k, wide_v = RowTile.of(group, lanes), sizes.batch * sizes.kv_heads, padded(dk), padded(dv)
    runs = runs_at(desc, sizes, visible, group=group)
    where = {"tokens": sizes.tokens, "keys": sizes.keys, "q_start": sizes.q_start, "run": runs.queries}
    steps, passed = steps_over_keys(visible, queries=tile.queries, width=step, **where)
    times, tiles = heads * tile.chunks, heads * tile.chunks * steps.tiles
    full, scores, stepped = times * passed / step, times * passed * lanes, times * steps.total
    rows = heads * tile.chunks * tile.heads * sizes.tokens
    filled = round(rows / tiles) if tiles else 0
    parts = heads * keys_of_runs(visible, **where) * (wide_k + wide_v)
    passes = passes_of(
        {
            "gradients": scores,
            "added": scores + rows * dv,  # of the scores' gradients; dout by gates
            "masked": scores * steps.partial,
            "packed": tiles * lanes * (dk + dv),
            "unpacked": tiles * lanes * dk,
            "filled": tiles * lanes * dk + parts,
        }
    )
    passes["filled" if desc.dtype == "float32" else "converted"] += rows * (wide_k + wide_v)
    if desc.dtype != "float32":
        passes["converted"] += times * passed * (2 * dk + dv)
        passes["rounded"] += tiles * lanes * dk
    kept, keys_read, added = 2 * FLOAT * lanes, element * (dk + dv), FLOAT * (wide_k + wide_v)
    return CpuLoop(
        tasks=heads * runs.count,
        longest=steps.longest * runs.count / steps.total if steps.total else 1.0,
        products=(
            Product(times=full, rows=step, lanes=lanes, depth=dk),
            Product(times=full, rows=step, lanes=lanes, depth=dv),
            *_summed(
                full, stepped, rows=dk, lanes=lanes, depth=step,
                stride=FLOAT * dk * (sizes.kv_heads if desc.dtype == "float32" else 1),
            ),
            Product(times=full, rows=step, lanes=wide_k, depth=filled, sums=True),
            Product(times=full, rows=step, lanes=wide_v, depth=filled, sums=True),
        ),
        passes=passes,
        streamed=times * passed * (keys_read + element * dk + 2 * added + 2 * kept),  # 2: written and read
        reach=keys_passed(visible, queries=tile.queries, **where) * (keys_read + added + kept),
        unique=_operands(desc, sizes, queries=(2, 1), keys=1) + FLOAT * parts,
    )  # fmt: skip


def runs_at(desc: KernelDesc, sizes: Sizes, visible: RangeSet, *, group: int) -> Runs:
    """Return the runs of queries of a backward at run-time sizes, as the ops cut them."""
    return Runs.of_attention(visible, **dataclasses.asdict(sizes), group=group, dk=desc.size("dk"), dv=desc.size("dv"))


def _run_sums(desc: KernelDesc, sizes: Sizes, visible: RangeSet) -> CpuLoop:
    """What runs left, added up; a desc of it does not say how many heads a group has, and so how long runs are."""
    dk, dv, heads = desc.size("dk"), desc.size("dv"), sizes.batch * sizes.kv_heads
    wide = padded(dk) + padded(dv)
    run = runs_at(desc, sizes, visible, group=NOMINAL_GROUP).queries
    parts = heads * wide * keys_of_runs(visible, tokens=sizes.tokens, keys=sizes.keys, q_start=sizes.q_start, run=run)
    tasks, made = heads * ceil_div(sizes.keys, KEYS_PER_TASK), heads * sizes.keys * (dk + dv)
    passes = passes_of({"added": parts + made, "filled": tasks * KEYS_PER_TASK * wide})
    if desc.dtype != "float32":
        passes["rounded"] += made
    return CpuLoop(tasks=tasks, passes=passes, unique=float(FLOAT * parts + DTYPE_BYTES[desc.dtype] * made))


def _gather_rows(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """The forward: a tile of queries block by block, those that list it together, keys in the lanes."""
    dk, dv, group, block, n = (desc.size(name) for name in ("dk", "dv", "group", "block", "n"))
    tile, width, columns = RowTile.of(group, schedule.query_lanes), padded(block), padded(dv)
    heads, rows = tile.heads, sizes.batch * sizes.kv_heads * tile.chunks
    met = _Met.of(desc, sizes, tile)
    listed, blocks, queries = rows * met.listed, rows * met.blocks, rows * sizes.tokens
    times = listed * heads / met.rows
    passes = passes_of(
        {
            "weights": listed * heads * width,
            "converted": queries * heads * dk,
            "filled": queries * heads * dv,
            "added": queries * heads * dv,
            "scalar": queries * n * 4 + queries * heads * 8,
        }
    )
    if desc.word("source") == "plain":
        passes["packed"] += blocks * dk * width
        passes["converted"] += blocks * dv * block
    if desc.dtype != "float32":
        passes["rounded"] += queries * heads * dv
    return CpuLoop(
        tasks=sizes.batch * sizes.kv_heads * ceil_div(sizes.tokens, tile.queries),
        products=(
            Product(times=times, rows=met.rows, lanes=width, depth=dk),
            Product(times=times, rows=met.rows, lanes=columns, depth=block, sums=True),
        ),
        passes=passes,
        streamed=blocks * FLOAT * width * (dk + dv),
        reach=FLOAT * sizes.keys * (dk + dv),
        unique=_operands(desc, sizes, queries=(1, 1), keys=2 if desc.dtype != "float32" else 1),
    )


def _gather_runs(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """The backward over runs of queries: a tile of them passes twice over the blocks that some of them list."""
    dk, dv, group, block, n = (desc.size(name) for name in ("dk", "dv", "group", "block", "n"))
    tile, width, wide_k, wide_v = RowTile.of(group, schedule.query_lanes), padded(block), padded(dk), padded(dv)
    heads, met, step = sizes.batch * sizes.kv_heads, _Met.of(desc, sizes, tile), tile.heads
    listed, blocks = (heads * tile.chunks * count for count in (met.listed, met.blocks))
    rows, times = heads * tile.chunks * step * sizes.tokens, listed * step / met.rows
    runs = runs_at(desc, sizes, reach_of(desc), group=group)
    seen = keys_of_runs(reach_of(desc), tokens=sizes.tokens, keys=sizes.keys, q_start=sizes.q_start, run=runs.queries)
    parts = heads * seen * (wide_k + wide_v)
    passes = passes_of(
        {
            "gradients": listed * step * width,
            "added": listed * step * width + rows * (dk + dv),  # of the scores' gradients; dq, scaled; dout
            "converted": rows * (dk + dv),
            "filled": rows * (2 * wide_k + wide_v) + parts,
            "scalar": rows + heads * sizes.tokens * n * 4,  # who lists which block, once each
        }
    )
    if desc.dtype != "float32":
        passes["rounded"] += rows * dk
    read, added = FLOAT * (width * (dk + dv) + block * wide_k), FLOAT * block * (wide_k + wide_v)
    return CpuLoop(
        tasks=heads * runs.count,
        longest=min(runs.queries, sizes.tokens) * met.longest * runs.count / met.listed if met.listed else 1.0,
        products=(
            Product(times=times, rows=met.rows, lanes=width, depth=dk),
            Product(times=times, rows=met.rows, lanes=width, depth=dv),
            Product(times=times, rows=met.rows, lanes=wide_k, depth=block, sums=True),
            Product(times=times, rows=block, lanes=wide_k, depth=met.rows, sums=True, stride=FLOAT * width),
            Product(times=times, rows=block, lanes=wide_v, depth=met.rows, sums=True, stride=FLOAT * width),
        ),
        passes=passes,
        streamed=blocks * (read + 2 * added),  # 2: written and read
        reach=sizes.keys / block * (read + added),
        unique=_operands(desc, sizes, queries=(2, 1), keys=0)
        + heads * ceil_div(sizes.keys, block) * read
        + FLOAT * parts,
    )


@dataclass(frozen=True, kw_only=True)
class _Met:
    """How queries of one key/value head meet blocks: all entries of lists, the distinct ones of each tile, and rows.

    `rows` are those (query, head) that a block meets at a time, in the mean; `longest` is the longest list.
    """

    listed: float
    blocks: float
    rows: int
    longest: float

    @classmethod
    def of(cls, desc: KernelDesc, sizes: Sizes, tile: RowTile) -> _Met:
        one, together = _listed(desc, sizes, 1), _listed(desc, sizes, tile.queries)
        rows = max(1, round(one.total / together.total * tile.heads)) if together.total else tile.heads
        return cls(listed=one.total, blocks=together.total, rows=rows, longest=one.longest)


def _operands(desc: KernelDesc, sizes: Sizes, *, queries: tuple[int, int], keys: int) -> float:
    """Return the bytes of `keys` rows of both dims for each key, and of `queries` rows for each query head.

    Of these there are as many of the key dim and as many of the value dim: a forward has q and out, (1, 1), and a
    backward q, dq and dout, (2, 1).
    """
    dk, dv = desc.size("dk"), desc.size("dv")
    of_query = queries[0] * dk + queries[1] * dv
    rows = sizes.tokens * desc.size("group") * of_query + sizes.keys * keys * (dk + dv)
    return float(sizes.batch * sizes.kv_heads * rows * DTYPE_BYTES[desc.dtype])


def _summed(full: float, stepped: float, *, rows: int, lanes: int, depth: int, stride: int = FLOAT) -> list[Product]:
    """Return the products that add up in memory: as much as `full` steps have, in `stepped` of them."""
    return [
        Product(times=full, rows=rows, lanes=lanes, depth=depth, stride=stride),
        Product(times=stepped, rows=rows, lanes=lanes, depth=0, sums=True),
    ]


def _listed(desc: KernelDesc, sizes: Sizes, queries: int) -> Steps:
    """Return the blocks that tiles of `queries` queries of a gathered attention list, each once a tile."""
    causal = desc.word("reach") == "causal"
    return listed_blocks(
        tokens=sizes.tokens, q_start=sizes.q_start, block=desc.size("block"), n=desc.size("n"), queries=queries,
        causal=causal, keys=sizes.keys,
    )  # fmt: skip


def select_loop(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """Return the loop of a block selection."""
    dk, group, block = desc.size("dk"), desc.size("group"), desc.size("block")
    heads, element = sizes.batch * sizes.kv_heads, DTYPE_BYTES[desc.dtype]
    lanes, own = schedule.query_lanes, (sizes.q_start + np.arange(sizes.tokens)) // block
    offered, unique = heads * float(own.sum()), heads * sizes.tokens * (group * dk * element + 4 * desc.size("n"))
    if desc.word("method") == "mean_key":
        first = np.minimum(np.arange(lanes - 1, sizes.tokens + lanes - 1, lanes), sizes.tokens - 1)
        passed = float(np.minimum(own[first], sizes.keys // block).sum())
        tiles = heads * len(first)
        return CpuLoop(
            tasks=tiles,
            products=(
                Product(times=heads * passed / schedule.key_tile, rows=schedule.key_tile, lanes=lanes, depth=dk),
            ),
            passes={
                "packed": tiles * lanes * dk * group,
                "unpacked": heads * passed * lanes,
                "offered": offered,
                "listed": heads * sizes.tokens * desc.size("n"),
            },
            unique=unique + heads * (sizes.keys // block) * dk * FLOAT,
        )
    phi = Phi(kernel=desc.size("kernel"), stride=desc.size("stride"))
    keys, tile, scored = phi.length(sizes.keys), RowTile.of(group, lanes), ScoreTile.of(desc, schedule)
    steps, passed = steps_over_keys(
        complete(phi.kernel, phi.stride), tokens=sizes.tokens, keys=keys, q_start=sizes.q_start, queries=tile.queries,
        width=scored.tokens,
    )  # fmt: skip
    times = heads * tile.chunks
    scores, tiles = times * passed * lanes, heads * steps.tiles
    passes = passes_of(
        {
            "weights": scores,
            "masked": scores * steps.partial,
            "summed": scores * (phi.kernel // phi.stride + 1) / 2,
            "packed": tiles * tile.chunks * lanes * dk,
            "scalar": times * steps.total * lanes * 0.1 + 2 * offered * group,  # block sums, made whole and normalised
            "filled": offered,
            "offered": offered,
            "listed": heads * sizes.tokens * desc.size("n"),
            "converted": times * passed * dk if desc.dtype != "float32" else 0,
        }
    )
    return CpuLoop(
        tasks=tiles,
        longest=steps.longest / steps.mean if steps.total else 1.0,
        products=(Product(times=times * passed / scored.tokens, rows=scored.tokens, lanes=lanes, depth=dk),),
        passes=passes,
        streamed=times * passed * dk * element,
        reach=keys * dk * element,
        unique=unique + heads * keys * dk * element,
    )


def scored_loop(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """Return the loop of an attention that lists blocks: that of the attention, and what the lists take beside it."""
    width = ScoreTile.of(desc, schedule).tokens
    phi = Phi(kernel=desc.size("kernel"), stride=desc.size("stride"))
    over_tokens = dataclasses.replace(sizes, keys=phi.length(sizes.keys))
    attended = _stream_rows(attention_of(desc), dataclasses.replace(schedule, key_tile=width), over_tokens)
    listed = select_loop(desc, schedule, sizes)
    beside = {name: listed.passes.get(name, 0.0) for name in ("summed", "scalar", "offered", "listed")}
    filled = attended.passes.get("filled", 0.0) + listed.passes.get("filled", 0.0)
    return dataclasses.replace(
        attended, tasks=listed.tasks, passes=passes_of({**attended.passes, **beside, "filled": filled})
    )
