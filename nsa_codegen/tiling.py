"""How a desc is cut into tasks and tiles under a schedule: shared by the templates and by whoever launches them."""

from __future__ import annotations

from dataclasses import dataclass

from .desc import KernelDesc
from .schedule import CpuSchedule

LANE_QUANTUM = 16  # packed blocks are padded to this many elements: a whole number of vectors on every CPU target
SWIZZLED = (16, 32, 64)  # columns of 16 bits whose rows a GPU keeps in one piece of shared memory
MLP_RUN = 64  # windows whose outer products are summed before they are added to the mlp's weight gradients


def ceil_div(a: int, b: int) -> int:
    """Return `a / b` rounded up."""
    return -(-a // b)


def padded(size: int) -> int:
    """Return `size` rounded up to a whole number of vectors, the same on every CPU target."""
    return ceil_div(size, LANE_QUANTUM) * LANE_QUANTUM


@dataclass(frozen=True, kw_only=True)
class RowTile:
    """Rows (query, head of the group) laid in lanes: whole queries, so that a group's heads stay together.

    A group larger than the lanes is split into `chunks` of `heads` heads.
    """

    lanes: int
    queries: int
    heads: int
    chunks: int

    @classmethod
    def of(cls, group: int, lanes: int) -> RowTile:
        """Return the tile for groups of `group` heads in `lanes` lanes."""
        chunks = ceil_div(group, lanes)
        heads = ceil_div(group, chunks)
        return cls(lanes=lanes, queries=max(1, lanes // heads), heads=heads, chunks=chunks)


@dataclass(frozen=True, kw_only=True)
class ScoreTile:
    """A tile of compressed tokens in block selection: its tokens, its own blocks, and those with what spills over."""

    tokens: int
    blocks: int
    spilled: int

    @classmethod
    def of(cls, desc: KernelDesc, schedule: CpuSchedule) -> ScoreTile:
        """Return the tile of a `compressed` selection: a whole number of blocks near `key_tile` tokens."""
        per_block, overlap = desc.size("block") // desc.size("stride"), desc.size("kernel") // desc.size("stride")
        blocks = max(1, schedule.key_tile // per_block)
        tokens = blocks * per_block
        return cls(tokens=tokens, blocks=blocks, spilled=(tokens + overlap - 2) // per_block + 1)


@dataclass(frozen=True, kw_only=True)
class BlockTile:
    """How listed key blocks are laid in the streamed tile of a GPU kernel.

    A step takes `together` blocks of `wide` rows each, of which the first keys are the block's; a block larger than
    the tile takes `parts` steps. A tile of `queries` queries lists at most `capacity` blocks. Several blocks share a
    tile only where its columns are a power of two up to 64: TMA lays wider ones in parts of 64, so that rows of a tile
    are no one piece of shared memory.
    """

    wide: int
    together: int
    parts: int
    capacity: int

    @classmethod
    def of(cls, desc: KernelDesc, queries: int, key_tile: int) -> BlockTile:
        """Return the layout of the blocks of `desc` for tiles of `queries` queries and of `key_tile` keys."""
        block, n = desc.size("block"), desc.size("n")
        parts = ceil_div(block, key_tile)
        wide = min(padded(block), key_tile)
        shared = parts == 1 and all(desc.size(name) in SWIZZLED for name in ("dk", "dv"))
        together = max(1, key_tile // wide) if shared else 1
        return cls(wide=wide, together=together, parts=parts, capacity=ceil_div(queries * n, together) * together)

    @property
    def rows(self) -> int:
        """Rows of the streamed tile."""
        return self.wide * self.together
