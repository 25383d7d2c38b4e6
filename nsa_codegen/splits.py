"""How the keys' backward on a GPU shares out work: queries among thread blocks, a tile of keys among warps.

For its templates, for launches, and for the cost model.

Where every later query sees a key, one thread block for each tile of keys would be too few of them, and that of the
first keys would pass over the whole sequence. So some share a tile, and what each sums up is added in a second launch.
A listed block is shared so if many queries list it, as all do that come after a forced first one.
"""

from __future__ import annotations

from .index_sets import RangeSet
from .schedule import WARP_GROUP, WARP_GROUP_ROWS
from .target import GpuTarget
from .tiling import ceil_div

MOST_SPLITS = 16
LEAST_QUERIES = 64  # of a split, but the last
LEAST_ROWS = 4096  # rows of sums that may always be kept; else as many bytes as q and out have


def holds_weights(*, rows: int, threads: int, target: GpuTarget) -> bool:
    """Return whether each warp has rows of its own in a tile of `rows` keys, and keeps their weights in registers.

    `wgmma` reads its left side there, where a warp group has 64 rows. Else warps share a tile by rows and columns, and
    weights pass through shared memory.
    """
    groups, odd = divmod(threads, WARP_GROUP * target.warp)
    return target.matrix == "wgmma" and not odd and rows >= WARP_GROUP_ROWS * groups


def is_split(visible: RangeSet) -> bool:
    """Return whether the queries that see a key are the more, the longer the sequence: not where ranges move along."""
    return any(r.lo.divisor == 0 or r.lo.divisor != r.hi.divisor or r.lo.cap is not None for r in visible.ranges)


def splits_of(*, tokens: int, keys: int, group: int) -> int:
    """Return how many thread blocks share the queries of each tile of keys.

    It depends on a sequence's sizes alone, so that a batch row has the same sums in every batch.
    """
    room = max(LEAST_ROWS, tokens * group // 2)
    return max(1, min(MOST_SPLITS, ceil_div(tokens, LEAST_QUERIES), room // max(1, keys)))


def piece_of(*, listed: int, block: int, group: int) -> int:
    """Return how many of the queries that list a block one thread block takes, where each lists `listed` blocks.

    Twice as many as list one on average, or four times where a group has one head, so that sums of pieces, as
    `most_pieces` counts them, take no more bytes than q and out.
    """
    return max(LEAST_QUERIES, listed * block * max(2, ceil_div(4, group)))


def most_pieces(*, tokens: int, listed: int, piece: int) -> int:
    """Return how many pieces the lists of a head can have that are longer than one."""
    return 2 * tokens * listed // piece
