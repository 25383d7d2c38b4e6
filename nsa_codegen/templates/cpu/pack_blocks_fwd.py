"""Packing of keys or values by block, once per sequence, with zeros where a tail is short (`packing`)."""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...pairs import packed_block
from ...schedule import Schedule
from ...target import Target
from .common import STORAGE, prelude
from .packing import HELD, pack_block


def get_pack_blocks_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`block`, `dim`, `layout`): x -> packed."""
    dtype, block, dim, layout = desc.dtype, desc.size("block"), desc.size("dim"), desc.word("layout")
    shape, paired = packed_block(layout, block, dim)
    batch, keys, kv_heads, blocks = (T.dynamic(x) for x in ("batch", "keys", "kv_heads", "blocks"))

    @T.prim_func
    def pack_blocks(
        x: T.Tensor((batch, keys, kv_heads, dim), STORAGE[dtype]),
        packed: T.Tensor((batch, kv_heads, blocks, *shape), HELD[paired]),
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(paired=paired)) as _:
            b, h, j, rows = (T.alloc_var("int32") for _ in range(4))
            for task in T.serial(task_lo, task_hi):
                j = T.truncmod(task, blocks)
                h = T.truncmod(T.truncdiv(task, blocks), kv_heads)
                b = T.truncdiv(task, blocks * kv_heads)
                rows = T.min(block, keys - j * block)
                pack_block(layout, dtype, T.address_of(packed[b, h, j, 0, 0]), x, block, rows, b, j * block, h)

    return pack_blocks
