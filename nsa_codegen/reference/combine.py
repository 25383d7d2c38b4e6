"""The gated sum of the paths' outputs (paper eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import InputError
from .precision import arithmetic_dtype


def combine(outs: Sequence[Tensor], gates: Tensor) -> Tensor:
    """Return `sum_p gates[..., p] * outs[p]`, `[B, T, H, Dv]` in the dtype of `outs` (paper eq. 5).

    `gates` is `[P]` or `[B, T, H, P]`, already through softmax or sigmoid. Raises `InputError` for another shape.
    """
    if not outs:
        raise InputError("combine: outs is empty; give the output of at least one path")
    allowed = ([len(outs)], [*outs[0].shape[:3], len(outs)])
    if list(gates.shape) not in allowed:
        raise InputError(
            f"combine: gates of shape {list(gates.shape)} do not fit; allowed: {allowed[0]} or {allowed[1]}"
        )
    dtype = arithmetic_dtype(outs[0])
    total = outs[0].new_zeros(outs[0].shape, dtype=dtype)
    for gate, out in zip(gates.to(dtype).unbind(dim=-1), outs, strict=True):
        total = total + (gate[..., None] if gate.dim() else gate) * out.to(dtype)
    return total.to(outs[0].dtype)
