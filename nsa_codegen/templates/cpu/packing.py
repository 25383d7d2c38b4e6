"""Blocks of keys or values as products read them: once per sequence, or one by one.

`columns` holds a block transposed, [dim, padded block], so that a query's product runs along contiguous keys; `rows`
holds it as it is, [block, padded dim]. Both are float32. `column_pairs` and `row_pairs` are bfloat16, rows of these two
by two.
"""

from typing import Any

import tilelang.language as T

from ...pairs import in_pairs
from ...tiling import padded
from .common import ELEMENT, call, position_stride


def packed_block(layout: str, block: int, dim: int) -> tuple[tuple[int, int], str]:
    """Return the shape and type of a packed block; a pair is one number."""
    rows, columns = (block, padded(dim)) if layout.startswith("row") else (dim, padded(block))
    return ((in_pairs(rows) // 2, columns), "uint32") if layout.endswith("_pairs") else ((rows, columns), "float32")


def pack_block(layout: str, dtype: str, to: Any, x: Any, block: int, rows: Any, *index: Any) -> Any:
    """Return the call that packs `rows` positions of `x`, from `index` on, to the address `to`; others are 0."""
    dim, source = x.shape[-1], (T.address_of(x[(*index, 0)]), position_stride(x))
    if layout == "columns":
        return call(f"pack_lanes<{ELEMENT[dtype]}, 1>", to, padded(block), *source, dim, rows, dim, T.float32(1))
    if layout == "column_pairs":
        return call("pack_pairs<1>", to, padded(block), *source, dim, rows, dim, in_pairs(dim), T.uint32(0))
    if layout == "row_pairs":
        return call("pair_rows", to, padded(dim), *source, rows, in_pairs(block), dim)
    return call(f"up_rows<{ELEMENT[dtype]}>", to, padded(dim), *source, rows, block, dim)
