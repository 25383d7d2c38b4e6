"""Blocks of keys or values as products read them (`pairs.packed_block`): once per sequence, or one by one."""

from typing import Any

import tilelang.language as T

from ...pairs import in_pairs
from ...tiling import padded
from .common import ELEMENT, call, position_stride

HELD = {False: "float32", True: "uint32"}  # a number of a packed block, and a pair of bfloat16


def pack_block(layout: str, dtype: str, to: Any, x: Any, block: int, rows: Any, *index: Any) -> Any:
    """Return the call that packs `rows` positions of `x`, from `index` on, to the address `to`; others are 0."""
    dim, source = x.shape[-1], (T.address_of(x[(*index, 0)]), position_stride(x))
    if layout == "columns":
        return call(f"pack_lanes<{ELEMENT[dtype]}, 1>", to, padded(block), *source, dim, rows, dim, T.float32(1))
    if layout == "column_pairs":
        return call("pack_pairs<1>", to, padded(block), *source, dim, rows, dim, in_pairs(dim), T.uint32(0))
    if layout == "row_pairs":
        return call("pair_rows<1>", to, padded(dim), *source, dim, rows, in_pairs(block), dim, T.uint32(0))
    return call(f"up_rows<{ELEMENT[dtype]}>", to, padded(dim), *source, rows, block, dim)
