"""The loops of attention and block selection on a CPU, read off their templates in `templates/cpu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..desc import KernelDesc
from ..index_sets import complete
from ..program import Phi
from ..schedule import CpuSchedule
from ..tiling import HEADS_PER_STEP, QUERIES_PER_TASK, RowTile, ScoreTile, ceil_div, padded
from .counts import listed_blocks, listing_queries, steps_over_keys, steps_over_queries
from .cpu_loop import DTYPE_BYTES, FLOAT, CpuLoop, Passes, Product, part_of, passes_of

if TYPE_CHECKING:
    from ..ops import Sizes


def _operands(desc: KernelDesc, sizes: Sizes, *, queries: int, keys: int) -> float:
    """Return the bytes of `queries` row vectors of the key and value dims for each query head, and `keys` of keys."""
    dims = desc.size("dk") + desc.size("dv")
    rows = sizes.tokens * desc.size("group") * queries + sizes.keys * keys
    return float(sizes.batch * sizes.kv_heads * rows * dims * DTYPE_BYTES[desc.dtype])


def stream_loop(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """Return the loop of a streamed attention, or of one part of its backward."""
    return _stream_keys(desc, schedule, sizes) if part_of(desc) == "keys" else _stream_rows(desc, schedule, sizes)


def _stream_rows(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """The forward, and the queries' part: queries in the lanes, keys pass by `key_tile` at a time."""
    dk, dv, group, lanes, step = (
        desc.size("dk"),
        desc.size("dv"),
        desc.size("group"),
        schedule.query_lanes,
        schedule.key_tile,
    )
    tile, heads, backward = RowTile.of(group, lanes), sizes.batch * sizes.kv_heads, part_of(desc) == "queries"
    steps, passed = steps_over_keys(
        desc.streamed, tokens=sizes.tokens, keys=sizes.keys, q_start=sizes.q_start, queries=tile.queries, width=step
    )
    times, tiles = heads * tile.chunks, heads * tile.chunks * steps.tiles
    full, stepped, scores = times * passed / step, times * steps.total, times * passed * lanes
    products = [Product(times=full, rows=step, lanes=lanes, depth=dk)]
    if backward:
        products.append(Product(times=full, rows=step, lanes=lanes, depth=dv))
    for _ in range(2 if backward else 1):
        products += _summed(full, stepped, rows=dk if backward else dv, lanes=lanes, depth=step)
    passes = passes_of(
        {
            "gradients" if backward else "weights": scores,
            "masked": scores * steps.partial,
            "packed": tiles * lanes * (dk + (2 * dv if backward else 0)),
            "unpacked": tiles * lanes * (dk if backward else dv),
            "filled": tiles * lanes * (2 * dk if backward else dv),
        }
    )
    if desc.dtype != "float32":
        passes["converted"] += times * passed * (dk + dv)
        passes["rounded"] += tiles * lanes * (dk if backward else dv)
    return CpuLoop(
        tasks=tiles,
        longest=steps.longest / steps.mean if steps.total else 1.0,
        products=tuple(products),
        passes=passes,
        streamed=times * passed * (dk + dv) * DTYPE_BYTES[desc.dtype],
        reach=sizes.keys * (dk + dv) * DTYPE_BYTES[desc.dtype],
        unique=_operands(desc, sizes, queries=2 if backward else 1, keys=1),
    )


def _summed(full: float, stepped: float, *, rows: int, lanes: int, depth: int) -> list[Product]:
    """Return the products that add up in memory: as much as `full` steps have, in `stepped` of them."""
    return [
        Product(times=full, rows=rows, lanes=lanes, depth=depth),
        Product(times=stepped, rows=rows, lanes=lanes, depth=0, sums=True),
    ]


def _stream_keys(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """The keys' part: keys in the lanes, the queries that see them pass by `key_tile` at a time, head by head."""
    dk, dv, group, lanes, step = (
        desc.size("dk"),
        desc.size("dv"),
        desc.size("group"),
        schedule.query_lanes,
        schedule.key_tile,
    )
    heads = sizes.batch * sizes.kv_heads
    steps = steps_over_queries(
        desc.streamed,
        tokens=sizes.tokens,
        keys=sizes.keys,
        q_start=sizes.q_start,
        wide=lanes,
        queries=step,
        joined=False,
    )
    times, tiles = heads * group * steps.total, heads * steps.tiles
    passes = _key_passes(times, tiles, rows=step, lanes=lanes, dk=dk, dv=dv)
    if desc.dtype != "float32":
        passes["converted"] += times * step * (dk + dv)
        passes["rounded"] += tiles * lanes * (dk + dv)
    return CpuLoop(
        tasks=tiles,
        longest=steps.longest / steps.mean if steps.total else 1.0,
        products=_key_products(
            times,
            rows=step,
            lanes=lanes,
            dk=dk,
            dv=dv,
            heads=sizes.kv_heads * group if desc.dtype == "float32" else 1,
        ),
        passes=passes,
        streamed=times * step * (dk + dv) * DTYPE_BYTES[desc.dtype],
        reach=steps.longest * step * group * (dk + dv) * DTYPE_BYTES[desc.dtype],
        unique=_operands(desc, sizes, queries=1, keys=2),
    )


def _key_products(times: float, *, rows: int, lanes: int, dk: int, dv: int, heads: int) -> tuple[Product, ...]:
    """Return scores, weights' gradients, and both sums, which read queries `heads` heads apart, down their rows."""
    shapes = ((rows, dk, FLOAT), (rows, dv, FLOAT), (dv, rows, FLOAT * heads * dv), (dk, rows, FLOAT * heads * dk))
    return tuple(Product(times=times, rows=r, lanes=lanes, depth=d, stride=stride) for r, d, stride in shapes)


def _key_passes(times: float, tiles: float, *, rows: int, lanes: int, dk: int, dv: int) -> Passes:
    return passes_of(
        {
            "gradients": times * rows * lanes,
            "added": times * (dk + dv) * lanes,
            "packed": tiles * lanes * (dk + dv),
            "unpacked": tiles * lanes * (dk + dv),
            "filled": tiles * lanes * (dk + dv),
        }
    )


def gather_loop(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """Return the loop of a gathered attention, or of one part of its backward."""
    return _gather_keys(desc, schedule, sizes) if part_of(desc) == "keys" else _gather_rows(desc, schedule, sizes)


def _gather_rows(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """The forward, and the queries' part: query by query, the heads of a group together, keys in the lanes."""
    dk, dv, group, block, n = (desc.size(name) for name in ("dk", "dv", "group", "block", "n"))
    backward, heads, width = part_of(desc) == "queries", min(group, HEADS_PER_STEP), padded(block)
    listed = listed_blocks(
        tokens=sizes.tokens, q_start=sizes.q_start, block=block, n=n, queries=1, causal=desc.word("reach") == "causal",
        keys=sizes.keys,
    )  # fmt: skip
    rows = sizes.batch * sizes.kv_heads * ceil_div(group, heads)
    blocks, queries = rows * listed.total, rows * sizes.tokens
    products = [Product(times=blocks, rows=heads, lanes=width, depth=dk)]
    if backward:
        products.append(Product(times=blocks, rows=heads, lanes=width, depth=dv))
    for _ in range(2 if backward else 1):
        columns = padded(dk if backward else dv)
        products.append(Product(times=blocks, rows=heads, lanes=columns, depth=block, sums=True))
    passes = passes_of(
        {
            "gradients" if backward else "weights": blocks * heads * width,
            "converted": queries * heads * (dk + (2 * dv if backward else 0)),
            "filled": queries * heads * (2 * dk if backward else dv),
            "added": queries * heads * (dk if backward else dv),
            "scalar": queries * n * 4,
        }
    )
    if not backward:  # what was summed before is rescaled at each run of blocks that have room side by side
        slots = max(1, min(n, schedule.key_tile * 16 // width))
        runs = max(1.0, listed.mean / slots)
        passes["added"] += queries * (runs - 1) * heads * padded(dv)
        passes["scalar"] += queries * runs * heads * 8
        if desc.word("source") == "plain":
            passes["packed"] += blocks * dk * width
            passes["converted"] += blocks * dv * block
    if desc.dtype != "float32":
        passes["rounded"] += queries * heads * (dk if backward else dv)
    read = FLOAT * width * (dk + dv + (dk if backward else 0))
    return CpuLoop(
        tasks=sizes.batch * sizes.kv_heads * ceil_div(sizes.tokens, QUERIES_PER_TASK),
        products=tuple(products),
        passes=passes,
        streamed=blocks * read,
        reach=FLOAT * sizes.keys * (dk + dv),
        unique=_operands(desc, sizes, queries=2 if backward else 1, keys=2 if desc.dtype != "float32" else 1),
    )


def _gather_keys(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """The keys' part: a block of keys in the lanes, the queries that list it pass by."""
    dk, dv, block = desc.size("dk"), desc.size("dv"), desc.size("block")
    tile, width, heads = RowTile.of(desc.size("group"), schedule.key_tile), padded(block), sizes.batch * sizes.kv_heads
    steps = listing_queries(
        tokens=sizes.tokens, keys=sizes.keys, q_start=sizes.q_start, block=block, queries=tile.queries
    )
    times, tiles, rows = heads * tile.chunks * steps.total, heads * steps.tiles, tile.queries * tile.heads
    passes = _key_passes(times, tiles, rows=rows, lanes=width, dk=dk, dv=dv)
    passes["converted"] += times * rows * (dk + dv) * 2
    return CpuLoop(
        tasks=tiles,
        longest=steps.longest / steps.mean if steps.total else 1.0,
        products=_key_products(times, rows=rows, lanes=width, dk=dk, dv=dv, heads=1),
        passes=passes,
        streamed=times * rows * (dk + dv) * DTYPE_BYTES[desc.dtype],
        reach=sizes.tokens * desc.size("group") * (dk + dv) * DTYPE_BYTES[desc.dtype],
        unique=_operands(desc, sizes, queries=1, keys=2),
    )


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
