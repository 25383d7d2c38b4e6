"""Packing of keys or values by block, once per sequence, as float32 with zeros where a tail is short.

`columns` holds each block transposed, [dim, padded block], so that a query's product runs along contiguous keys;
`rows` holds it as it is, [block, padded dim].
"""

from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...schedule import Schedule
from ...target import Target
from ...tiling import padded
from .common import ELEMENT, STORAGE, call, prelude


def get_pack_blocks_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`block`, `dim`, `layout`): x -> packed."""
    dtype, block, dim, layout = desc.dtype, desc.size("block"), desc.size("dim"), desc.word("layout")
    element = ELEMENT[dtype]
    shape = (dim, padded(block)) if layout == "columns" else (block, padded(dim))
    batch, keys, kv_heads, blocks = (T.dynamic(x) for x in ("batch", "keys", "kv_heads", "blocks"))

    @T.prim_func
    def pack_blocks(
        x: T.Tensor((batch, keys, kv_heads, dim), STORAGE[dtype]),
        packed: T.Tensor((batch, kv_heads, blocks, *shape), "float32"),
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude()) as _:
            b, h, j, rows = (T.alloc_var("int32") for _ in range(4))
            for task in T.serial(task_lo, task_hi):
                j = T.truncmod(task, blocks)
                h = T.truncmod(T.truncdiv(task, blocks), kv_heads)
                b = T.truncdiv(task, blocks * kv_heads)
                rows = T.min(block, keys - j * block)
                if layout == "columns":
                    call(
                        f"pack_lanes<{element}, 1>",
                        *(T.address_of(packed[b, h, j, 0, 0]), padded(block)),
                        *(T.address_of(x[b, j * block, h, 0]), T.int64(kv_heads) * dim, dim, rows, dim, T.float32(1)),
                    )
                else:
                    call(
                        f"up_rows<{element}>",
                        *(T.address_of(packed[b, h, j, 0, 0]), padded(dim)),
                        *(T.address_of(x[b, j * block, h, 0]), T.int64(kv_heads) * dim, rows, block, dim),
                    )

    return pack_blocks
