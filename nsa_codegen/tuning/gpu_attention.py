"""The launches of attention and block selection on a GPU, read off their templates in `templates/cuda`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..desc import KernelDesc, takes_lse
from ..index_sets import complete
from ..program import Phi
from ..schedule import GpuSchedule, shared_bytes
from ..splits import is_split, piece_of, splits_of
from ..tiling import BlockTile, RowTile, ceil_div, padded
from .counts import (
    NOMINAL_LISTED,
    Array,
    Steps,
    listed_blocks,
    listing_queries,
    steps_over_keys,
    steps_over_queries,
)
from .gpu_launch import FLOAT, HALF, PLAIN_COPY, SEES, STEP, WEIGHT, GpuLaunch, Product, part_of, traffic

if TYPE_CHECKING:
    from ..ops import Sizes

DELTA_ROWS, DELTA_THREADS = 32, 128
ADDED_ROWS, ADDED_THREADS = 16, 128
NEIGHBOURS_SHARE = 0.5  # of a query's list that its tile's other queries have too: between chance and sameness
OFFER = 8  # instructions of a block that is offered to a list and not taken


def stream_launches(desc: KernelDesc, schedule: GpuSchedule, sizes: Sizes) -> Iterator[GpuLaunch]:
    """Yield the launches of a streamed attention, or of one part of its backward."""
    visible, part = desc.streamed, part_of(desc)
    lower = any(r.lo.divisor for r in visible.ranges)
    where = {"tokens": sizes.tokens, "keys": sizes.keys, "q_start": sizes.q_start}
    if part == "keys":
        tile = RowTile.of(desc.size("group"), schedule.key_tile)
        steps = steps_over_queries(visible, wide=schedule.rows, queries=tile.queries, **where)
        parts = 0.0
        if is_split(visible):
            splits = splits_of(tokens=sizes.tokens, keys=sizes.keys, group=desc.size("group"))
            steps = replace(steps, tiles=steps.tiles * splits, longest=-(-steps.longest // splits))
            parts = float(splits * sizes.keys)
        yield _over_queries(desc, schedule, sizes, steps, tile, rows=schedule.rows, lower=lower, parts=parts)
        if parts:
            yield _sums(desc, sizes, blocks=ceil_div(sizes.keys, ADDED_ROWS), rows=sizes.keys, parts=parts)
        return
    tile = RowTile.of(desc.size("group"), schedule.rows)
    steps, _ = steps_over_keys(visible, queries=tile.queries, width=schedule.key_tile, **where)
    yield from _over_keys(desc, schedule, sizes, steps, tile, width=schedule.key_tile, lower=lower)


def gather_launches(desc: KernelDesc, schedule: GpuSchedule, sizes: Sizes) -> Iterator[GpuLaunch]:
    """Yield the launches of a gathered attention, or of one part of its backward."""
    block, causal = desc.size("block"), desc.word("reach") == "causal"
    if part_of(desc) == "keys":
        tile = RowTile.of(desc.size("group"), schedule.key_tile)
        rows = min(padded(block), schedule.rows)
        piece = piece_of(listed=NOMINAL_LISTED, block=block, group=desc.size("group"))
        listing, pieces = listing_queries(
            tokens=sizes.tokens, keys=sizes.keys, q_start=sizes.q_start, block=block, queries=tile.queries, piece=piece
        )
        tiles, runs = ceil_div(block, rows), ceil_div(block, ADDED_ROWS)
        steps = replace(listing, tiles=listing.tiles * tiles, total=listing.total * tiles)
        parts = float(pieces * block)
        yield _over_queries(desc, schedule, sizes, steps, tile, rows=rows, lower=True, parts=parts)
        yield _sums(desc, sizes, blocks=ceil_div(sizes.keys, block) * runs, rows=min(sizes.keys, parts), parts=parts)
        return
    tile = RowTile.of(desc.size("group"), schedule.rows)
    blocks = BlockTile.of(desc, tile.queries, schedule.key_tile)
    listed = listed_blocks(
        tokens=sizes.tokens, q_start=sizes.q_start, block=block, n=desc.size("n"), queries=tile.queries,
        causal=causal, keys=sizes.keys, shared=NEIGHBOURS_SHARE,
    )  # fmt: skip
    per_block = blocks.parts / blocks.together
    steps = replace(listed, total=listed.total * per_block, longest=listed.longest * per_block)
    yield from _over_keys(desc, schedule, sizes, steps, tile, width=blocks.rows, lower=True, lists=8 * blocks.capacity)


def _over_keys(
    desc: KernelDesc,
    schedule: GpuSchedule,
    sizes: Sizes,
    steps: Steps,
    tile: RowTile,
    *,
    width: int,
    lower: bool,
    lists: int = 0,
) -> Iterator[GpuLaunch]:
    """Yield the launches of a loop over keys past a tile of (query, head) rows: the forward, or the queries' part."""
    part, dk, dv, group = part_of(desc), desc.size("dk"), desc.size("dv"), desc.size("group")
    rows, scores, heads = schedule.rows, schedule.rows * width, sizes.batch * sizes.kv_heads
    depth = dv if part == "forward" else dk
    read = min(sizes.keys, steps.total * width)  # few queries do not read all keys
    products = [Product(rows=rows, columns=width, depth=dk)]
    if part == "queries":
        products.append(Product(rows=rows, columns=width, depth=dv))
        yield _deltas(desc, sizes)
    products.append(Product(rows=rows, columns=depth, depth=width, stored=False))
    row_bytes = HALF * (dk if part == "forward" else dk + dv) + FLOAT * (0 if part == "forward" else 2)
    yield GpuLaunch(
        name=f"{desc.op} {part}",
        blocks=steps.tiles * tile.chunks * heads,
        steps=steps.mean,
        longest=steps.longest,
        threads=schedule.threads,
        products=tuple(products),
        exponentials=scores,
        instructions=(WEIGHT[part] + (SEES if lower else 0)) * scores
        + (rows * depth if part == "forward" else 0)  # what was summed before is rescaled
        + STEP * schedule.threads,
        copied=HALF * width * (dk + dv),
        barriers=2,
        head=rows * row_bytes + lists,
        tail=rows * (HALF * depth + FLOAT),
        unique=heads * (sizes.tokens * group * (row_bytes + HALF * depth + FLOAT) + read * HALF * (dk + dv)),
        reach=HALF * (dk + dv) * (sizes.keys if lists else steps.longest * width),
        row=steps.tiles * tile.chunks,
        shared=shared_bytes(replace(schedule, key_tile=width), desc) + lists,
        held=rows * depth / schedule.threads,
        passing=scores / schedule.threads * (1.5 if part == "forward" else 2.5),
        depth=dk,
    )


def _over_queries(
    desc: KernelDesc,
    schedule: GpuSchedule,
    sizes: Sizes,
    steps: Steps,
    tile: RowTile,
    *,
    rows: int,
    lower: bool,
    parts: float = 0.0,
) -> GpuLaunch:
    """Return the launch of a loop over (query, head) rows past a tile of keys: the keys' part.

    Of each head, `parts` rows of sums are left in float32.
    """
    dk, dv, width = desc.size("dk"), desc.size("dv"), schedule.key_tile
    scores, heads = rows * width, sizes.batch * sizes.kv_heads
    copied = width * (HALF * (dk + dv) + 2 * FLOAT)
    return GpuLaunch(
        name=f"{desc.op} keys",
        blocks=steps.tiles * heads,
        steps=steps.mean * tile.chunks,
        longest=steps.longest * tile.chunks,
        threads=schedule.threads,
        products=(
            Product(rows=rows, columns=width, depth=dk, square=True),
            Product(rows=rows, columns=width, depth=dv, square=True),
            Product(rows=rows, columns=dv, depth=width, square=True),
            Product(rows=rows, columns=dk, depth=width, square=True),
        ),
        exponentials=scores,
        instructions=(WEIGHT["keys"] + (SEES if lower else 0)) * scores
        + PLAIN_COPY * copied / 16
        + STEP * schedule.threads,
        staged=2 * HALF * scores,
        copied=copied,
        barriers=5,
        head=rows * HALF * (dk + dv),
        tail=rows * (FLOAT if parts else HALF) * (dk + dv),
        unique=heads
        * (
            sizes.tokens * desc.size("group") * (HALF * (dk + dv) + 2 * FLOAT)
            + (2 * HALF * sizes.keys + FLOAT * parts) * (dk + dv)
        ),
        shared=shared_bytes(replace(schedule, rows=rows), desc),
        held=rows * (dk + dv) / schedule.threads,
        passing=2.5 * scores / schedule.threads,
        depth=dk,
        plain=True,
    )


def _sums(desc: KernelDesc, sizes: Sizes, *, blocks: int, rows: float, parts: float) -> GpuLaunch:
    """Return the launch that adds up `parts` rows of sums to `rows` of gradients, in `blocks` thread blocks a head."""
    width = desc.size("dk") + desc.size("dv")
    return traffic(
        "sums",
        blocks * sizes.batch * sizes.kv_heads,
        width * (FLOAT * parts + HALF * rows) / max(blocks, 1),
        ADDED_THREADS,
        width * parts / max(blocks, 1),
        max(1.0, parts / max(rows, 1.0)),
    )


def _deltas(desc: KernelDesc, sizes: Sizes) -> GpuLaunch:
    """Return the launch that makes delta for the queries' part."""
    rows = sizes.tokens * sizes.kv_heads * desc.size("group")
    block_bytes = DELTA_ROWS * (2 * HALF * desc.size("dv") + 2 * FLOAT)
    return traffic(
        "delta",
        ceil_div(rows, DELTA_ROWS) * sizes.batch,
        block_bytes,
        DELTA_THREADS,
        2.0 * DELTA_ROWS * desc.size("dv"),
    )


def select_launches(desc: KernelDesc, schedule: GpuSchedule, sizes: Sizes) -> Iterator[GpuLaunch]:
    """Yield the launch of a block selection: a loop over what is scored, past a tile of queries."""
    yield (_mean_key if desc.word("method") == "mean_key" else _compressed)(desc, schedule, sizes)


def _scored(desc: KernelDesc, sizes: Sizes, queries: int) -> tuple[Array, Array]:
    """Return for each tile of queries the position of its last one, and how many blocks have to be scored for it."""
    last = np.minimum(np.arange(queries - 1, sizes.tokens + queries - 1, queries), sizes.tokens - 1) + sizes.q_start
    own = last // desc.size("block")
    return last, np.where(own < desc.size("n"), 0, own - desc.size("local") + 1)


def _compressed(desc: KernelDesc, schedule: GpuSchedule, sizes: Sizes) -> GpuLaunch:
    """Compressed tokens pass by for the scores of blocks; before, for maximum and sum of the softmax, if need be."""
    dk, group, rows, width = desc.size("dk"), desc.size("group"), schedule.rows, schedule.key_tile
    stride, kernel, heads = desc.size("stride"), desc.size("kernel"), sizes.batch * sizes.kv_heads
    tile, per_block = RowTile.of(group, rows), desc.size("block") // stride
    last, scored = _scored(desc, sizes, tile.queries)
    keys, in_tile = Phi(kernel=kernel, stride=stride).length(sizes.keys), ceil_div(width, per_block)
    (seen,) = complete(kernel, stride).ranges
    ends = np.clip((last + seen.hi.offset) // stride, 0, keys)
    given = takes_lse(desc)
    steps = -(-scored * per_block // width) + (0 if given else np.where(scored > 0, -(-ends // width), 0))
    line = tile.queries * (width + in_tile + per_block)
    return _selection(
        desc, schedule, sizes, steps,
        products=(Product(rows=rows, columns=width, depth=dk),),
        exponentials=rows * width,
        instructions=WEIGHT["select"] * rows * width + _offers(schedule, tile.queries, in_tile),
        staged=2 * FLOAT * (rows * width + line),
        copied=HALF * width * dk,
        tail=4 * tile.queries * desc.size("n"),
        unique=heads
        * (sizes.tokens * (group * (dk * HALF + FLOAT * given) + 4 * desc.size("n")) + keys * dk * HALF),
        shared=HALF * dk * (rows + schedule.stages * width) + FLOAT * (rows * (width + 8) + line),
    )  # fmt: skip


def _mean_key(desc: KernelDesc, schedule: GpuSchedule, sizes: Sizes) -> GpuLaunch:
    """The float32 means of blocks pass by, split into halves of 16 bits for the products."""
    dk, group, rows, width = desc.size("dk"), desc.size("group"), schedule.rows, schedule.key_tile
    heads, means = sizes.batch * sizes.kv_heads, sizes.keys // desc.size("block")
    _, scored = _scored(desc, sizes, rows)
    halves = 1 if group == 1 else 2  # of queries, which are summed over a group's heads first
    return _selection(
        desc, schedule, sizes, -(-np.minimum(scored, means) // width),
        products=(Product(rows=rows, columns=width, depth=dk),) * (2 if group == 1 else 3),
        instructions=5 * rows * width + 6 * width * dk + _offers(schedule, rows, width),
        staged=(2 * HALF + FLOAT) * width * dk + 2 * FLOAT * rows * width,
        copied=FLOAT * width * dk,
        tail=4 * rows * desc.size("n"),
        unique=heads * (sizes.tokens * (group * dk * HALF + 4 * desc.size("n")) + means * dk * FLOAT),
        shared=HALF * dk * (halves * rows + 2 * width) + FLOAT * (schedule.stages * width * dk + rows * (width + 1)),
    )  # fmt: skip


def _selection(
    desc: KernelDesc, schedule: GpuSchedule, sizes: Sizes, steps: Array, *, instructions: float, **rest: Any
) -> GpuLaunch:
    return GpuLaunch(
        name=f"select_blocks {desc.word('method')}",
        blocks=len(steps) * sizes.batch * sizes.kv_heads,
        steps=float(steps.mean()),
        longest=float(steps.max(initial=0)),
        threads=schedule.threads,
        instructions=instructions + STEP * schedule.threads,
        barriers=5,
        head=HALF * schedule.rows * desc.size("dk"),
        held=2.0 * max(1, desc.size("n") - desc.size("initial") - desc.size("local")),
        passing=(1.5 if "exponentials" in rest else 1.0) * schedule.rows * schedule.key_tile / schedule.threads,
        depth=desc.size("dk"),
        **rest,
    )


def _offers(schedule: GpuSchedule, queries: int, blocks: int) -> float:
    """Return the instructions of a step that offers `blocks` blocks to every query's list, one thread a list."""
    return float(OFFER * blocks * ceil_div(queries, schedule.threads) * schedule.threads)
