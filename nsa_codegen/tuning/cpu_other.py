"""The loops of combination, compression and packing on a CPU, read off their templates in `templates/cpu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..desc import KernelDesc
from ..program import Phi
from ..schedule import CpuSchedule
from ..tiling import MLP_RUN, ceil_div, padded
from .cpu_loop import DTYPE_BYTES, FLOAT, CpuLoop, Product, part_of, passes_of

if TYPE_CHECKING:
    from ..ops import Sizes

ROWS_PER_TASK = 256


def combine_loop(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """Return the loop of a combination, forward or backward: rows by themselves."""
    rows, paths, dv = sizes.batch * sizes.tokens * sizes.kv_heads, desc.size("paths"), desc.size("dv")
    element, backward = DTYPE_BYTES[desc.dtype], desc.direction == "bwd"
    passes = passes_of(
        {"added": rows * dv * paths, "filled": rows * dv, "dotted": rows * dv * paths if backward else 0}
    )
    if desc.dtype != "float32":
        passes["rounded"] += rows * dv * (paths if backward else 1)
    tensors = 2 * paths + 1 if backward else paths + 1
    return CpuLoop(tasks=ceil_div(rows, ROWS_PER_TASK), passes=passes, unique=float(rows * dv * tensors * element))


def compress_loop(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """Return the loop of a compression, or of one part of its backward."""
    dim, kernel, stride = desc.size("dim"), desc.size("kernel"), desc.size("stride")
    windows, heads, part = (
        Phi(kernel=kernel, stride=stride).length(sizes.keys),
        sizes.batch * sizes.kv_heads,
        part_of(desc),
    )
    unique = float(heads * dim * (sizes.keys + windows) * DTYPE_BYTES[desc.dtype])
    if desc.word("method") == "mlp":
        return _mlp(desc, schedule, windows=windows, heads=heads, keys=sizes.keys, unique=unique)
    added = heads * dim * windows * kernel * (2 if part == "weights" else 1)
    made = heads * dim * (sizes.keys if part == "tokens" else windows)
    tasks = {"forward": sizes.batch * windows, "tokens": sizes.batch * sizes.keys, "weights": kernel * sizes.kv_heads}
    return CpuLoop(tasks=tasks[part], passes={"added": added, "filled": 3 * made}, unique=unique)


def _mlp(desc: KernelDesc, schedule: CpuSchedule, *, windows: int, heads: int, keys: int, unique: float) -> CpuLoop:
    dim, hidden, kernel, stride = (desc.size(name) for name in ("dim", "hidden", "kernel", "stride"))
    lanes, part = schedule.query_lanes, part_of(desc)
    weights, tiles = FLOAT * hidden * kernel * dim, heads * ceil_div(windows, lanes)
    kept = FLOAT * heads * windows * hidden
    if part in ("forward", "inner"):
        inner = tiles * hidden * lanes
        passes = {
            "scalar": tiles * lanes * dim * (kernel + 1) + (2 * inner if part == "inner" else 0),
            "added": inner * kernel,
            "gelu" if part == "forward" else "gelu_slope": inner,
        }
        second = (dim, hidden) if part == "forward" else (hidden, dim)
        products = (
            Product(times=tiles * kernel, rows=hidden, lanes=lanes, depth=dim),
            Product(times=tiles, rows=second[0], lanes=lanes, depth=second[1]),
        )
        moved = unique + weights + (2 * kept if part == "inner" else 0)
        return CpuLoop(
            tasks=tiles, products=products, passes=passes, streamed=tiles * weights, reach=weights, unique=moved
        )
    if part == "tokens":
        tiles = heads * ceil_div(ceil_div(keys, stride), lanes)
        uses = sum(ceil_div(kernel - r, stride) for r in range(stride))
        return CpuLoop(
            tasks=tiles,
            products=(
                Product(
                    times=tiles * uses, rows=dim, lanes=lanes, depth=hidden, sums=True, stride=FLOAT * kernel * dim
                ),
            ),
            passes={"scalar": tiles * lanes * (uses * hidden + stride * dim), "filled": tiles * lanes * stride * dim},
            streamed=tiles * weights,
            reach=weights,
            unique=unique + weights + kept,
        )
    runs, wide, columns = heads * ceil_div(windows, MLP_RUN), padded(hidden), padded(dim)
    return CpuLoop(
        tasks=kernel + 1,
        products=(
            Product(times=kernel * runs, rows=hidden, lanes=columns, depth=MLP_RUN),
            Product(times=runs, rows=dim, lanes=wide, depth=MLP_RUN),
        ),
        passes={"added": (kernel + 1) * runs * hidden * columns, "scalar": kernel * runs * MLP_RUN * columns},
        streamed=kernel * kept,
        reach=kept,
        unique=unique + 2 * kept + weights,
    )


def pack_loop(desc: KernelDesc, schedule: CpuSchedule, sizes: Sizes) -> CpuLoop:
    """Return the loop that packs blocks."""
    elements = sizes.batch * sizes.kv_heads * sizes.keys * desc.size("dim")
    tasks = sizes.batch * sizes.kv_heads * ceil_div(sizes.keys, desc.size("block"))
    name = "packed" if desc.word("layout") == "columns" else "converted"
    return CpuLoop(tasks=tasks, passes={name: elements}, unique=elements * (FLOAT + DTYPE_BYTES[desc.dtype]))
