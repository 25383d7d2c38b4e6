"""The ops, each declared once."""

from __future__ import annotations

from .base import AXES, Launch, OpDef, Sizes, Values, Work
from .combine import COMBINE
from .compress import COMPRESS
from .gather_attention import GATHER_ATTENTION
from .pack_blocks import PACK_BLOCKS
from .scored_attention import SCORED_ATTENTION
from .select_blocks import SELECT_BLOCKS
from .stream_attention import STREAM_ATTENTION

OPS: dict[str, OpDef] = {
    op.name: op
    for op in (
        COMPRESS,
        STREAM_ATTENTION,
        SELECT_BLOCKS,
        SCORED_ATTENTION,
        PACK_BLOCKS,
        GATHER_ATTENTION,
        COMBINE,
    )
}

__all__ = ["AXES", "OPS", "Launch", "OpDef", "Sizes", "Values", "Work"]
