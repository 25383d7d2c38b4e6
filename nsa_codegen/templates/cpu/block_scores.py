"""What kernels that score blocks by compressed tokens share: sums of weights by block, and the lists made of them.

Per tile of compressed tokens, block sums are kept relative to the running maximum of that moment (`keep_sums`), and
normalised when all tokens have passed (`add_scores`): no second product, memory O(blocks) a worker.
"""

from dataclasses import dataclass
from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...index_sets import Bound, Range, complete
from ...schedule import Schedule
from ...tiling import RowTile, ScoreTile
from .common import call, scalar


@dataclass(frozen=True, kw_only=True)
class BlockScores:
    """The static facts of the scores: tiles, the range of tokens that a query sees, and names of primitives."""

    tile: RowTile
    scored: ScoreTile
    ranges: tuple[Range, ...]
    sum_blocks: str
    add_block_scores: str

    @property
    def seen(self) -> Bound:
        """The end of the tokens that a query sees."""
        return self.ranges[0].hi

    @classmethod
    def of(cls, desc: KernelDesc, schedule: Schedule) -> "BlockScores":
        """Return the facts for `desc` (`group`, `block`, `kernel`, `stride`)."""
        block, kernel, stride = desc.size("block"), desc.size("kernel"), desc.size("stride")
        tile, scored = RowTile.of(desc.size("group"), schedule.query_lanes), ScoreTile.of(desc, schedule)
        shape = f"{tile.lanes}, {tile.heads}, {tile.queries}, {scored.blocks}, {scored.spilled}"
        return cls(
            tile=tile,
            scored=scored,
            ranges=complete(kernel, stride).ranges,
            sum_blocks=f"block_sums<{tile.lanes}, {scored.tokens}, {block // stride}, {kernel // stride}>",
            add_block_scores=f"add_block_scores<{shape}>",
        )


def is_masked(tile: RowTile, group: int, is_seen_in_part: Any) -> Any:
    """Return whether the scores of a step are masked: if not all keys are seen, or if lanes of a chunk hold no head.

    A lane without a head would weigh all keys alike, and its weights be added to those of the group.
    """
    return True if group % tile.chunks else is_seen_in_part


@T.macro
def keep_sums(sums: Any, tops: Any, facts: Any, worker: Any, i: Any, s: Any, rows: Any, top: Any) -> None:
    """Keep the block sums of the weights `s` of tile `i`, and the maximum that they are relative to."""
    call(facts.sum_blocks, T.address_of(sums[worker, i, 0, 0]), s.data, rows)
    call("copy", T.address_of(tops[worker, i, 0]), top.data, facts.tile.lanes)


@T.macro
def add_scores(scores: Any, sums: Any, tops: Any, facts: Any, worker: Any, tiles: Any, top: Any, inverse: Any) -> None:
    """Add the normalised sums of the tile's heads, those of a query together, to its block scores."""
    for i in T.serial(tiles):
        call(f"rescale<{facts.tile.lanes}>", T.address_of(tops[worker, i, 0]), top.data)
    call(
        facts.add_block_scores,
        *(T.address_of(scores[worker, 0, 0]), T.int64(scores.shape[2]), T.address_of(sums[worker, 0, 0, 0])),
        *(T.address_of(tops[worker, 0, 0]), inverse.data, tiles),
        T.min(scores.shape[2], (tiles - 1) * facts.scored.blocks + facts.scored.spilled),
    )


@T.macro
def invert(total: Any, lanes: int) -> None:
    """Turn sums of weights into the factors that normalise them."""
    for lane in T.serial(lanes):
        total[lane] = scalar("inverse", total[lane])


@T.macro
def list_blocks(
    indices: Any, scores: Any, desc: Any, worker: Any, b: Any, t: Any, h: Any, row: Any, position: Any
) -> None:
    """Write the list of the query at `position`, whose scores are in row `row`."""
    call(
        "select_top",
        *(T.address_of(indices[b, t, h, 0]), T.address_of(scores[worker, row, 0])),
        *(T.truncdiv(position, desc.size("block")), desc.size("n"), desc.size("initial"), desc.size("local")),
    )
