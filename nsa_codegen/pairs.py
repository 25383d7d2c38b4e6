"""Sizes of products over pairs of bfloat16 numbers, as some CPUs make them: for their templates and others."""

from __future__ import annotations

from typing import Any

from .desc import KernelDesc
from .tiling import RowTile, ceil_div, padded

PAIR_QUANTUM = 32  # numbers that one instruction of a matrix unit sums
PAIR_ROWS = 16  # rows and columns that it takes, all of which it reads and writes


def in_pairs(size: Any) -> Any:
    """Return `size`, a number or an expression, rounded up to what one instruction sums."""
    return (size + PAIR_QUANTUM - 1) // PAIR_QUANTUM * PAIR_QUANTUM


def packed_block(layout: str, block: int, dim: int) -> tuple[tuple[int, int], bool]:
    """Return rows and columns of a packed block, and whether its rows lie two by two, a pair as one.

    `columns` and `column_pairs` hold a block transposed, [dim, padded block], so that a query's product runs along
    contiguous keys; `rows` and `row_pairs` hold it as it is, [block, padded dim].
    """
    rows, columns = (block, padded(dim)) if layout.startswith("row") else (dim, padded(block))
    paired = layout.endswith("_pairs")
    return (in_pairs(rows) // 2 if paired else rows, columns), paired


def rows_behind(dtype: str) -> int:
    """Return how many rows behind the last one products of `dtype` may write: a matrix unit writes whole tiles."""
    return PAIR_ROWS - 1 if dtype == "bfloat16" else 0


def members_kept(desc: KernelDesc, tile: RowTile) -> int:
    """Return the queries by block whose scores a tile of a gathered attention has room for, the most that there are."""
    return tile.queries * desc.size("n") + ceil_div(rows_behind(desc.dtype), tile.heads)
