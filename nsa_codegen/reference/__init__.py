"""The meaning of every op, in eager torch: the definition that kernels and tests are held against.

Nothing here is fast, and nothing imports a kernel library. Shapes are `[batch, seq, heads, dim]`; query `i`
stands at position `q_start + i`. Arithmetic is float64 for float64 inputs and float32 for all others; each
op rounds its output once, to the dtype of its input, and leaves log-sum-exps in the arithmetic's dtype.
"""

from .attention import gather_attention, stream_attention, visible_mask
from .combine import combine
from .compress import check_weights, compress
from .precision import arithmetic_dtype
from .selection import block_means, block_scores, select_blocks
from .whole import attention

__all__ = [
    "arithmetic_dtype",
    "attention",
    "block_means",
    "block_scores",
    "check_weights",
    "combine",
    "compress",
    "gather_attention",
    "select_blocks",
    "stream_attention",
    "visible_mask",
]
