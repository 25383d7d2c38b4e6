"""Products of the rows that list a block with that block in pairs: gathered attention, forward and backward."""

from collections.abc import Callable
from typing import Any

import tilelang.language as T

from ...pairs import PAIR_ROWS, in_pairs
from .common import call, members_at

Address = Callable[..., Any]


def by_member(heads: int) -> bool:
    """Return whether the rows of a query fill what a matrix unit takes: then they go query by query, where they lie."""
    return heads % PAIR_ROWS == 0


@T.macro
def score_members(heads, scores: Address, rows, spare, members, first, many, block: Address, width):
    """Set the `scores` of member first + x, for each of `many`, to the products of its rows with a block, [row, key].

    `rows` are [members * heads, pairs]. Addresses are functions, since TileLang would bind them to `void *`.
    """
    for x in T.serial(many if by_member(heads) else 1):
        call(
            "pair_product<false>",
            *(scores(x), width),
            T.address_of(rows[members[first + x] * heads, 0])
            if by_member(heads)
            else members_at("member_rows", spare, rows, heads, members, first, many),
            *(T.int64(2 * rows.shape[1]), block(), width),
            *(heads if by_member(heads) else many * heads, width, 2 * rows.shape[1]),
        )


@T.macro
def sum_members(heads, sums, spare, weights: Address, apart, members, first, many, block: Address, seen):
    """Add `seen` keys of a block, [key, column], to the rows of each member in `sums`.

    Their `weights` are those of member first + x, in bfloat16, rows `apart`.
    """
    for x in T.serial(many if by_member(heads) else 1):
        call(
            "pair_product<true>" if by_member(heads) else "pair_product<false>",
            *(T.address_of(sums[members[first + x] * heads, 0]) if by_member(heads) else spare.data, sums.shape[1]),
            *(weights(x), T.int64(apart), block(), sums.shape[1]),
            *(heads if by_member(heads) else many * heads, sums.shape[1], in_pairs(seen)),
        )
    if not by_member(heads):
        call("add_members", sums.data, spare.data, T.address_of(members[first]), many, heads * sums.shape[1])
