"""The two ways of attending: over keys streamed in ranges, and over keys gathered by block."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..index_sets import Bound, RangeSet
from .softmax import masked_attention


def stream_attention(
    q: Tensor, k: Tensor, v: Tensor, visible: RangeSet, *, q_start: int = 0, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return softmax attention over the keys that `visible` shows the query at position `t = q_start + i`.

    q `[B, T, H, Dk]`, k `[B, S, Hkv, Dk]`, v `[B, S, Hkv, Dv]` -> out `[B, T, H, Dv]`, lse `[B, T, H]`. Serves
    compressed (`complete`), window and causal attention alike. A query that sees no key gets 0 and -inf.
    """
    mask = visible_mask(visible, q.shape[1], k.shape[1], q_start=q_start, device=q.device)
    return masked_attention(q, k, v, mask, scale)


def gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_indices: Tensor,
    *,
    block_size: int,
    causal: bool = True,
    scale: float | None = None,
    q_start: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return softmax attention over the tokens of the blocks that `block_indices` lists (paper eq. 12).

    q `[B, T, H, Dk]`, k `[B, S, Hkv, Dk]`, v `[B, S, Hkv, Dv]`, block_indices int `[B, T, Hkv, n]` in any order ->
    out `[B, T, H, Dv]`, lse `[B, T, H]`. Block `j` holds the tokens `j*block_size .. (j+1)*block_size - 1`. -1 adds
    nothing and a duplicate counts once; when causal, tokens after `t = q_start + i` are hidden. An index outside
    -1 .. blocks-1 raises `InputError` on the CPU and adds nothing elsewhere, where a check would synchronise.
    """
    keys = k.shape[1]
    blocks = -(-keys // block_size)
    if block_indices.device.type == "cpu" and not torch.compiler.is_compiling():
        _require_blocks(block_indices, blocks)
    index = torch.arange(blocks, device=q.device)
    chosen = (block_indices[..., None].to(q.device) == index).any(dim=-2)  # [B, T, Hkv, blocks]
    token = torch.arange(keys, device=q.device)
    mask = chosen[..., token // block_size]  # [B, T, Hkv, S]
    if causal:
        mask = mask & (token <= _positions(q.shape[1], q_start, q.device)[:, None])[:, None, :]
    return masked_attention(q, k, v, mask.permute(0, 2, 1, 3)[:, :, None], scale)


def visible_mask(
    visible: RangeSet, queries: int, keys: int, *, q_start: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Return `[queries, keys]` bool: whether the query at position `q_start + i` sees key `j`."""
    t = _positions(queries, q_start, device)[:, None]
    key = torch.arange(keys, device=device)
    mask = torch.zeros(queries, keys, dtype=torch.bool, device=device)
    for r in visible.ranges:
        mask |= (key >= _bound_at(r.lo, t, keys)) & (key < _bound_at(r.hi, t, keys))
    return mask


def _bound_at(bound: Bound, t: Tensor, keys: int) -> Tensor:
    """Return `bound.at` for every position of `t`."""
    if bound.divisor == 0:
        value = torch.full_like(t, keys)
    else:
        value = torch.div(t + bound.offset, bound.divisor, rounding_mode="floor")
    return value.clamp(max=keys if bound.cap is None else min(bound.cap, keys)).clamp(min=0)


def _positions(queries: int, q_start: int, device: torch.device | str) -> Tensor:
    return torch.arange(q_start, q_start + queries, device=device)


def _require_blocks(block_indices: Tensor, blocks: int) -> None:
    wrong = (block_indices < -1) | (block_indices >= blocks)
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise InputError(
            f"block_indices{place} = {int(block_indices[tuple(place)])} is not a block: "
            f"k has {blocks} blocks, so indices run from 0 to {blocks - 1}, and -1 marks an unused slot"
        )
