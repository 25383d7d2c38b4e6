"""The launches of combination and compression on a GPU, read off their templates in `templates/cuda`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ..desc import KernelDesc
from ..program import Phi
from ..schedule import GpuSchedule, ceil_to
from ..tiling import ceil_div
from .gpu_launch import FLOAT, HALF, STEP, GpuLaunch, Product, part_of, traffic

if TYPE_CHECKING:
    from ..ops import Sizes

SHARES = 16  # windows that a block of a convolution's weights takes at once


def combine_launches(desc: KernelDesc, schedule: GpuSchedule, sizes: Sizes) -> Iterator[GpuLaunch]:
    """Yield the launch of a combination, which is all traffic."""
    paths, dv, rows = desc.size("paths"), desc.size("dv"), schedule.rows
    blocks = ceil_div(sizes.tokens * sizes.kv_heads, rows) * sizes.batch
    tensors = paths + 1 if desc.direction == "fwd" else 2 * paths + 1
    gates = 0 if desc.word("gates") == "scalar" else HALF * paths
    results = 0 if desc.direction == "fwd" else FLOAT * paths
    row_bytes, elements = dv * HALF * tensors + gates + results, float(rows * dv * tensors)
    yield traffic(f"combine {desc.direction}", blocks, rows * row_bytes, schedule.threads, elements)


def compress_launches(desc: KernelDesc, schedule: GpuSchedule, sizes: Sizes) -> Iterator[GpuLaunch]:
    """Yield the launches of a compression, or of one part of its backward."""
    if desc.word("method") == "mlp":
        yield from _Mlp(desc, schedule, sizes).launches()
        return
    dim, kernel, stride, rows = desc.size("dim"), desc.size("kernel"), desc.size("stride"), schedule.rows
    windows, heads = Phi(kernel=kernel, stride=stride).length(sizes.keys), sizes.batch * sizes.kv_heads
    part = part_of(desc)
    if part == "weights":
        runs = sizes.batch * ceil_div(windows, SHARES)
        elements = float(SHARES * dim * runs)
        blocks = (kernel + 1) * sizes.kv_heads
        yield traffic("compress weights", blocks, 2 * HALF * elements, schedule.threads, elements, runs)
        return
    loads = kernel if part == "forward" else ceil_div(kernel, stride)
    made = windows if part == "forward" else sizes.keys
    # Windows that overlap read a token again, out of the second cache.
    launch = traffic(
        f"compress {part}",
        ceil_div(made, rows) * heads,
        HALF * rows * dim * (loads + 1),
        schedule.threads,
        float(rows * dim * loads),
        loads,
    )
    yield replace(launch, unique=heads * dim * HALF * (windows + sizes.keys))


class _Mlp:
    """The mlp's launches: products over tiles of windows and of hidden units."""

    def __init__(self, desc: KernelDesc, schedule: GpuSchedule, sizes: Sizes) -> None:
        self.schedule, self.part = schedule, part_of(desc)
        self.dim, self.hidden, self.kernel, self.stride = (desc.size(n) for n in ("dim", "hidden", "kernel", "stride"))
        self.keys, self.heads = sizes.keys, sizes.batch * sizes.kv_heads
        self.windows = Phi(kernel=self.kernel, stride=self.stride).length(sizes.keys)
        self.units = schedule.rows if self.part == "weights" else schedule.key_tile
        self.unit_tiles, self.columns = ceil_div(self.hidden, self.units), ceil_to(self.dim, 16)
        self.weights, self.x = HALF * self.hidden * self.kernel * self.dim, HALF * self.heads * sizes.keys * self.dim
        self.kept, self.out = (HALF * self.heads * self.windows * width for width in (self.hidden, self.dim))

    def launches(self) -> Iterator[GpuLaunch]:
        """Yield the launches of the forward, or of the part."""
        makers = {"forward": self._forward, "inner": self._inner, "tokens": self._tokens, "weights": self._weights}
        yield from makers[self.part]()

    def _forward(self) -> Iterator[GpuLaunch]:
        yield self._first_layer(kept=1)
        rows = self.schedule.rows
        product = Product(rows=rows, columns=self.columns, depth=self.units)
        blocks = ceil_div(self.windows, rows) * self.heads
        yield self._launch("second layer", blocks, self.unit_tiles, (product,), unique=self.kept + self.out)

    def _inner(self) -> Iterator[GpuLaunch]:
        tiles = HALF * self.columns * (self.schedule.rows + self.units)  # of dout and w2, once a block
        launch = self._first_layer(kept=2)
        yield replace(launch, head=float(tiles), shared=max(launch.shared, tiles), held=2 * launch.held)

    def _first_layer(self, *, kept: int) -> GpuLaunch:
        rows, depth = self.schedule.rows, next((d for d in (64, 32, 16) if self.dim % d == 0), 16)
        blocks, steps = (
            ceil_div(self.windows, rows) * self.unit_tiles * self.heads,
            self.kernel * ceil_div(self.dim, depth),
        )
        product = Product(rows=rows, columns=self.units, depth=depth)
        return self._launch("first layer", blocks, steps, (product,), unique=self.x + self.weights + kept * self.kept)

    def _tokens(self) -> Iterator[GpuLaunch]:
        rows = self.schedule.rows
        blocks = ceil_div(ceil_div(self.keys, self.stride), rows) * self.stride * self.heads
        product = Product(rows=rows, columns=self.columns, depth=self.units)
        steps = ceil_div(self.kernel, self.stride) * self.unit_tiles
        yield self._launch("tokens", blocks, steps, (product,), unique=self.kept + self.weights + self.x)

    def _weights(self) -> Iterator[GpuLaunch]:
        depth, units = self.schedule.key_tile, self.units
        steps = ceil_div(self.windows, depth) * self.heads
        outer = Product(rows=units, columns=self.columns, depth=depth)
        counted = Product(rows=units, columns=16, depth=depth)
        unique = self.kept + self.x + 2 * self.weights
        yield self._launch(
            "weights, first layer", self.unit_tiles * self.kernel, steps, (outer, counted), unique=unique
        )
        yield self._launch("weights, second layer", self.unit_tiles, steps, (outer,), unique=self.kept + self.out)

    def _launch(
        self, name: str, blocks: int, steps: float, products: tuple[Product, ...], *, unique: float
    ) -> GpuLaunch:
        first, threads = products[0], self.schedule.threads
        copied, made = HALF * first.depth * (first.rows + first.columns), first.rows * first.columns
        return GpuLaunch(
            name=f"compress {name}",
            blocks=blocks,
            steps=steps,
            longest=steps,
            threads=threads,
            products=products,
            instructions=STEP * threads,
            copied=copied,
            barriers=2,
            tail=HALF * made,
            unique=unique,
            shared=self.schedule.stages * copied,
            held=made / threads,
            passing=made / threads / 4,
            depth=first.depth,
            known=self.part != "weights",
        )
