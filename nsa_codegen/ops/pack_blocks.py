"""`pack_blocks`: keys or values laid out by block for the gathered attention, as float32 or in pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..desc import KernelDesc
from ..pairs import packed_block
from ..schedule import CpuSchedule
from ..tiling import ceil_div
from .base import Call, Extent, ExtentOf, Launch, OpDef, Sizes, Values, Work, draw, element_bytes


def packed_shape(desc: KernelDesc) -> tuple[int, ...]:
    """Return the last dimensions of the packed blocks: rows and columns, and of pairs both numbers behind them."""
    shape, paired = packed_block(desc.word("layout"), desc.size("block"), desc.size("dim"))
    return (*shape, 2) if paired else shape


def of_pairs(desc: KernelDesc) -> bool:
    """Return whether blocks are packed in pairs, and then as they are stored, not as float32."""
    return len(packed_shape(desc)) == 3


def packed_bytes(desc: KernelDesc) -> int:
    """Return the bytes of a packed block."""
    return math.prod(packed_shape(desc)) * (element_bytes(desc.dtype) if of_pairs(desc) else 4)


def make_inputs(desc: KernelDesc, sizes: Sizes, generator: torch.Generator) -> Values:
    """Return random x."""
    return {"x": draw(generator, desc.dtype, sizes.batch, sizes.keys, sizes.kv_heads, desc.size("dim"))}


def run_reference(desc: KernelDesc, *, x: Tensor) -> tuple[Tensor]:
    """Return the packed blocks by padding, reshaping and transposing."""
    block, dim, shape = desc.size("block"), desc.size("dim"), packed_shape(desc)
    blocks = ceil_div(x.shape[1], block)
    wide = x if x.dtype == torch.float64 or of_pairs(desc) else x.float()
    wide = torch.nn.functional.pad(wide, (0, 0, 0, 0, 0, blocks * block - x.shape[1]))
    wide = wide.reshape(x.shape[0], blocks, block, x.shape[2], dim).permute(0, 3, 1, 2, 4)
    if desc.word("layout").startswith("column"):
        wide = wide.transpose(-1, -2)
    rows, columns = (2 * shape[0], shape[1]) if of_pairs(desc) else shape
    wide = torch.nn.functional.pad(wide, (0, columns - wide.shape[-1], 0, rows - wide.shape[-2]))
    if of_pairs(desc):
        wide = wide.reshape(*wide.shape[:-2], -1, 2, columns).transpose(-1, -2)
    return (wide.contiguous(),)


def prepare(desc: KernelDesc, schedule: CpuSchedule, workers: int, *, x: Tensor) -> Launch:
    """Return the launch."""
    batch, keys, kv_heads, _ = x.shape
    packed = x.new_empty(
        (batch, kv_heads, ceil_div(keys, desc.size("block")), *packed_shape(desc)),
        dtype=x.dtype if of_pairs(desc) else torch.float32,
    )
    found = extent(desc, schedule)(Call(workers, batch, keys, keys, kv_heads, 0, batch))
    return found.launch({"x": x, "packed": packed}, (packed,))


def extent(desc: KernelDesc, schedule: CpuSchedule) -> ExtentOf:
    """Return the extent by sizes: one task per block, key/value head and batch row."""
    block = desc.size("block")

    def of(call: Call) -> Extent:
        blocks = ceil_div(call.keys, block)
        sizes = {"batch": call.batch, "keys": call.keys, "kv_heads": call.heads, "blocks": blocks}
        return Extent(call.batch * call.heads * blocks, sizes, {})

    return of


def work(desc: KernelDesc, sizes: Sizes) -> Work:
    """Return no operations, and x and the packed blocks once."""
    read = sizes.keys * desc.size("dim") * element_bytes(desc.dtype)
    written = ceil_div(sizes.keys, desc.size("block")) * packed_bytes(desc)
    return Work(operations=0, bytes=sizes.batch * sizes.kv_heads * (read + written))


PACK_BLOCKS = OpDef(
    name="pack_blocks",
    summary="keys (transposed) or values by block, as float32 or in pairs, zero-padded",
    inputs={"x": "B S Hkv D"},
    outputs={"packed": "B Hkv M ..."},
    samples=tuple(
        KernelDesc.of("pack_blocks", dtype, block=block, dim=dim, layout=layout)
        for layout in ("columns", "rows")
        for dtype, block, dim in (("float32", 16, 32), ("bfloat16", 5, 80), ("float16", 64, 8))
    )
    + tuple(
        KernelDesc.of("pack_blocks", "bfloat16", block=block, dim=dim, layout=layout)
        for layout in ("column_pairs", "row_pairs")
        for block, dim in ((64, 64), (5, 83))
    ),
    make_inputs=make_inputs,
    reference=run_reference,
    prepare=prepare,
    work=work,
    extent=extent,
)
