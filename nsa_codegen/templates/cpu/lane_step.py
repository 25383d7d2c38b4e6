"""A step of a softmax over keys with queries in the lanes: what it holds, and its calls, by either kind of product.

Products of numbers take keys and values as float32, where they lie or converted. Those over pairs take bfloat16 keys as
they are, values transposed, and queries and weights in pairs (`tile/pairs.h`); scores lack what makes log2 units of
them until they become weights.
"""

from dataclasses import dataclass
from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...pairs import in_pairs
from ...schedule import Schedule
from ...target import Target
from ...tiling import padded
from .common import (
    FEW_LANES,
    call,
    columns_at,
    keys_ahead,
    lines_of,
    pack_lanes,
    position_stride,
    product,
    rows_at,
    scalar,
    stage_rows,
)

Local = tuple[tuple[int, ...], str]  # shape and type of what a task holds, for `T.alloc_local`


def flip_of(scale: Any) -> Any:
    """Return the bits that numbers in pairs exchange for the sign of `scale`."""
    return T.call_extern("uint32", "nsa::pair_flip", scale)


@dataclass(frozen=True, kw_only=True)
class LaneStep:
    """The static facts of a step of `keys` keys over `lanes` rows; `paired` where products are made over pairs."""

    dtype: str
    schedule: Schedule
    lanes: int
    keys: int
    dk: int
    dv: int
    paired: bool

    @classmethod
    def of(cls, desc: KernelDesc, schedule: Schedule, target: Target, *, lanes: int, keys: int) -> "LaneStep":
        """Return the step of `desc` on `target`."""
        dk, dv, paired = desc.size("dk"), desc.size("dv"), target.takes_pairs(desc.dtype)
        return cls(dtype=desc.dtype, schedule=schedule, lanes=lanes, keys=keys, dk=dk, dv=dv, paired=paired)

    def laid(self, dim: int) -> Local:
        """Rows of `dim` numbers, of queries or of gradients, in the lanes."""
        return ((in_pairs(dim) // 2, self.lanes), "uint32") if self.paired else ((dim, self.lanes), "float32")

    @property
    def pairs(self) -> Local:
        """Weights in pairs, if there are any."""
        return (in_pairs(self.keys) // 2 if self.paired else 1, self.lanes), "uint32"

    def summed(self, dim: int) -> Local:
        """Sums over keys, transposed: outputs, or gradients of queries."""
        return (padded(dim) if self.paired else dim, self.lanes), "float32"

    def staged(self, dim: int) -> Local:
        """Keys or values as scores take them, where they are not read as they lie."""
        if self.paired:
            return (padded(self.keys), in_pairs(dim)), "uint16"
        return (self.keys if self.dtype != "float32" else 1, dim), "float32"

    def transposed(self, dim: int) -> Local:
        """Values or keys as sums over them take them, where they are not read as they lie."""
        return ((padded(dim), in_pairs(self.keys)), "uint16") if self.paired else self.staged(dim)

    def units(self, scale: Any) -> Any:
        """Return how many log2 units one of the scores is."""
        return scalar("pair_units", scale) if self.paired else T.float32(1)

    def lay(self, dst: Any, x: Any, heads: int, rows: Any, scale: Any, *index: Any) -> Any:
        """Return the call that lays `rows` rows of `x` in the lanes of `dst` (`common.pack_lanes`).

        They are queries of a `scale`, or without one numbers as they are.
        """
        if not self.paired:
            factor = T.float32(1) if scale is None else scalar("log2_units", scale)
            return pack_lanes(self.dtype, dst, x, heads, rows, factor, *index)
        dim, source = int(x.shape[-1]), (T.address_of(x[(*index, 0)]), position_stride(x))
        flip = T.uint32(0) if scale is None else flip_of(scale)
        return call(f"pack_pairs<{heads}>", dst.data, self.lanes, *source, dim, rows, dim, in_pairs(dim), flip)

    def ahead(
        self, x: Any, rows: Any, at: tuple[Any, ...], tile: Any, heads: int, filled: Any, share: tuple[Any, Any],
        index: tuple[Any, ...], *, read: bool,
    ) -> Any:  # fmt: skip
        """Return what a product asks memory for: the `rows` keys or values of `x` of the next step, from `at` on.

        Tiles of more lanes ask for their `share` of `filled` rows of `tile` instead, from `index` on: of those of the
        next tile, to be `read`, or of this one's, to be written.
        """
        if self.lanes <= FEW_LANES:
            return keys_ahead(self.dtype, x, rows, *at)
        return lines_of(self.dtype, tile, heads, filled, share, *index, ahead=read)

    def score(self, s: Any, x: Any, staged: Any, laid: Any, rows: Any, ahead: Any, *index: Any) -> Any:
        """Return the call that makes products of `rows` keys or values from `index` on with the rows that are `laid`.

        They go to the address `s`, [rows, lanes]; the call asks memory for `ahead`.
        """
        dim = int(x.shape[-1])
        if self.paired:
            keys = (staged.data, T.address_of(x[(*index, 0)]), position_stride(x))
            return call(f"score_lanes<{self.lanes}, {dim}>", s, *keys, laid.data, rows, ahead)
        sides = (s, self.lanes, *rows_at(self.dtype, x, staged, *index), laid.data)
        return call(product(self.lanes, self.schedule, "ZERO"), *sides, rows, dim, laid.data, ahead)

    def weigh(
        self, s: Any, pairs: Any, rows: Any, scale: Any, top: Any, total: Any, alpha: Any, *, kept: bool = False
    ) -> Any:
        """Return the call that makes weights of scores, those of `pairs` in `s` as well only if they are `kept`."""
        if self.paired:
            name = f"softmax_step_pairs<{self.lanes}, {'true' if kept else 'false'}>"
            made = (s.data, pairs.data, rows, in_pairs(rows), self.units(scale))
            return call(name, *made, top.data, total.data, alpha.data)
        return call(f"softmax_step<{self.lanes}>", s.data, rows, top.data, total.data, alpha.data)

    def add(
        self, o: Any, v: Any, staged: Any, s: Any, pairs: Any, rows: Any, alpha: Any, ahead: Any, *index: Any
    ) -> Any:
        """Return the call that rescales outputs `o` [dims, lanes], and adds `rows` values from `index` on, weighted."""
        if self.paired:
            sides = (o.data, staged.data, T.int64(in_pairs(self.keys)), pairs.data)
            return call(f"rescaled_product<{self.lanes}>", *sides, o.shape[0], in_pairs(rows), alpha.data, ahead)
        sides = (o.data, self.lanes, *columns_at(self.dtype, v, staged, *index), s.data)
        return call(product(self.lanes, self.schedule, "RESCALE"), *sides, self.dv, rows, alpha.data, ahead)


def transpose(x: Any, to: Any, rows: Any, *index: Any) -> Any:
    """Return the call that transposes `rows` positions of `x`, from `index` on, as products over pairs sum them."""
    source = (T.address_of(x[(*index, 0)]), position_stride(x))
    return call(f"transpose_rows<{int(x.shape[-1])}>", to.data, to.shape[1], *source, rows, in_pairs(rows))


@T.macro
def stage_step(step, k, k_up, v, v_up, rows, b, j0, h):
    """Bring values, and keys that are converted, into the form that the products of `step` read."""
    if step.paired:
        transpose(v, v_up, rows, b, j0, h)
    elif step.dtype != "float32":
        stage_rows(step.dtype, k, k_up, rows, b, j0, h)
        stage_rows(step.dtype, v, v_up, rows, b, j0, h)


@T.macro
def open_tiles(paired):
    """Set up the tiles of a matrix unit, if one multiplies pairs."""
    if paired:
        call("open_tiles")


@T.macro
def close_tiles(paired):
    """Give them back."""
    if paired:
        call("close_tiles")
