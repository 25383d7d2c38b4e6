"""Softmax attention under a mask, with an answer for rows that see nothing.

Every attention of the package is this one with another mask, so the contract for empty rows lives here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import widen


def masked_scores(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return `scale * q . k`, -inf where `mask` is False, as `[B, Hkv, G, T, S]`.

    q is `[B, T, H, Dk]`, k `[B, S, Hkv, Dk]`; query head `h` reads key head `h // G`. `mask` broadcasts.
    """
    batch, queries, heads, dim = q.shape
    kv_heads = k.shape[2]
    grouped = widen(q).reshape(batch, queries, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("bthgd,bshd->bhgts", grouped, widen(k)) * scale
    return scores.masked_fill(~mask, -torch.inf)


def softmax_with_empty_rows(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax of the last axis and its log-sum-exp; a row of -inf gives zeros and -inf.

    Every operand of a division or logarithm is made safe before it, not after: a value that is selected away
    still takes part in the backward, where 0 * inf would be NaN.
    """
    rows = scores.shape[:-1]
    # The maximum only shifts; detached, its gradient (which would cancel) is never formed.
    top = scores.detach().amax(-1) if scores.shape[-1] else scores.new_full(rows, -torch.inf)
    empty = top == -torch.inf
    top = top.masked_fill(empty, 0.0)
    weights = torch.exp(scores - top[..., None])
    total = weights.sum(-1).masked_fill(empty, 1.0)
    lse = (torch.log(total) + top).masked_fill(empty, -torch.inf)
    return weights / total[..., None], lse


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """Return `out [B, T, H, Dv]` in q's dtype and `lse [B, T, H]` in the arithmetic's dtype.

    `out_t = sum_i p_ti v_i`, `p_t = softmax(scale * q_t . k)` over the keys where `mask`, which broadcasts to
    `[B, Hkv, G, T, S]`, is True. `scale` defaults to `Dk**-0.5`. A masked key weighs exactly 0, so a value of
    inf or NaN can reach other queries of its own batch row, as 0 * NaN, but no other batch row.
    """
    batch, queries, heads, dim = q.shape
    scores = masked_scores(q, k, mask, dim**-0.5 if scale is None else scale)
    weights, lse = softmax_with_empty_rows(scores)
    out = torch.einsum("bhgts,bshd->bthgd", weights, widen(v))
    return (
        out.reshape(batch, queries, heads, v.shape[-1]).to(q.dtype),
        lse.permute(0, 3, 1, 2).reshape(batch, queries, heads),
    )
