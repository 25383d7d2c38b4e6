"""Which blocks a query attends to: block scores, forced blocks, and the choice of the best `n`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import InputError, nearest
from ..index_sets import SCORES, complete
from .attention import visible_mask
from .precision import widen
from .softmax import masked_scores, softmax_with_empty_rows


@torch.no_grad()
def select_blocks(
    q: Tensor,
    k: Tensor,
    *,
    method: str,
    block_size: int,
    num_selected: int,
    num_initial: int = 0,
    num_local: int = 1,
    kernel: int | None = None,
    stride: int | None = None,
    scale: float | None = None,
    q_start: int = 0,
) -> Tensor:
    """Return the blocks each query attends to, int32 `[B, T, Hkv, n]`, ascending, -1 in the tail (paper eq. 8-11).

    For the query at `t` with its own block `c = t // block_size`, in this order until `num_selected` are taken: the
    forced blocks (`c - num_local + 1 .. c` and `0 .. num_initial - 1`, none after `c`), then the blocks `j < c`
    of highest score, the lower index first among equals; a NaN score ranks last. See `block_scores` for the rest.
    """
    scores, candidates = block_scores(
        q, k, method=method, block_size=block_size, num_initial=num_initial, num_local=num_local,
        kernel=kernel, stride=stride, scale=scale, q_start=q_start,
    )  # fmt: skip
    forced = _forced(q.shape[1], scores.shape[-1], block_size, num_initial, num_local, q_start, q.device)
    missing = num_selected - scores.shape[-1]
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    # Two stable sorts, the more significant one last: rank is 0 for forced blocks, 1 for candidates, 2 for others.
    by_score = scores.argsort(dim=-1, descending=True, stable=True)
    rank = (2 - candidates.int() - 2 * forced.int())[:, None, :].expand_as(scores)
    by_rank = rank.gather(-1, by_score).argsort(dim=-1, stable=True)
    order = by_score.gather(-1, by_rank)[..., :num_selected]
    no_block = scores.shape[-1]
    chosen = order.masked_fill(rank.gather(-1, order) == 2, no_block).sort(dim=-1).values
    chosen = chosen.masked_fill(chosen == no_block, -1)
    return pad(chosen, (0, max(0, missing)), value=-1).to(torch.int32)


@torch.no_grad()
def block_scores(
    q: Tensor,
    k: Tensor,
    *,
    method: str,
    block_size: int,
    num_initial: int = 0,
    num_local: int = 1,
    kernel: int | None = None,
    stride: int | None = None,
    scale: float | None = None,
    q_start: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return scores `[B, T, Hkv, blocks]` and the candidates' mask `[T, blocks]`; the scores are one per group.

    `blocks` counts up to the block of the last query. Candidates compete for the slots that forced blocks leave:
    every block that ends before the block of `t` and is not forced. Scores elsewhere mean nothing.

    - `"mean_key"`: k is the keys `[B, S, Hkv, Dk]`; score `(sum of the group's q_t) . mean(k of block j)`; a scale
      would not change the order and is not used.
    - `"compressed"`: k is the compressed keys `[B, N, Hkv, Dk]`; `p = softmax(scale * q_t . k)` over the windows
      complete at `t`, and score `= sum_heads sum_{m < l'/d} sum_{u < l/d} p[(l'/d)*j + m - u]`, terms outside the
      range being 0 (paper eq. 8-10, 0-based), with `l' = block_size`, `l = kernel`, `d = stride`.

    Raises `InputError` for an unknown method, missing or non-dividing sizes, or queries past the last key.
    """
    queries = q.shape[1]
    blocks = (q_start + max(queries, 1) - 1) // block_size + 1  # without queries, as with one
    if method == "mean_key":
        scores = _mean_key_scores(q, k, block_size, blocks, q_start)
    elif method == "compressed":
        kernel, stride = _score_windows(kernel, stride, block_size)
        scores = _compressed_scores(q, k, block_size, blocks, kernel, stride, scale, q_start)
    else:
        raise InputError(f"select_blocks: method = {method!r} is not allowed: {nearest(str(method), SCORES)}")
    own = _own_block(queries, block_size, q_start, q.device)
    past = torch.arange(blocks, device=q.device) < own
    return scores, past & ~_forced(queries, blocks, block_size, num_initial, num_local, q_start, q.device)


def block_means(k: Tensor, block_size: int) -> Tensor:
    """Return the means of the complete blocks of keys `[B, S, Hkv, Dk]`, unrounded `[B, S // block_size, Hkv, Dk]`."""
    whole = k.shape[1] // block_size
    blocks = widen(k[:, : whole * block_size]).reshape(k.shape[0], whole, block_size, *k.shape[2:])
    return blocks.mean(dim=2)


def _mean_key_scores(q: Tensor, k: Tensor, block_size: int, blocks: int, q_start: int) -> Tensor:
    batch, queries, heads, dim = q.shape
    keys, kv_heads = k.shape[1:3]
    if q_start + queries > keys:
        raise InputError(
            f"select_blocks: the last query stands at position {q_start + queries - 1}, but k has {keys} keys; "
            f"give the keys up to the last query, or a q_start of at most {keys - queries}"
        )
    means = block_means(k[:, : (blocks - 1) * block_size], block_size)  # that of the last query is nobody's past
    summed = widen(q).reshape(batch, queries, kv_heads, heads // kv_heads, dim).sum(dim=3)
    return pad(torch.einsum("bthd,bjhd->bthj", summed, means), (0, 1))


def _compressed_scores(
    q: Tensor, k: Tensor, block_size: int, blocks: int, kernel: int, stride: int, scale: float | None, q_start: int
) -> Tensor:
    queries, tokens = q.shape[1], k.shape[1]
    mask = visible_mask(complete(kernel, stride), queries, tokens, q_start=q_start, device=q.device)
    p, _ = softmax_with_empty_rows(masked_scores(q, k, mask, q.shape[-1] ** -0.5 if scale is None else scale))
    p = p.sum(dim=2).permute(0, 2, 1, 3)  # heads of the group: [B, T, Hkv, N]
    per_block, per_window = block_size // stride, kernel // stride
    before, after = per_window - 1, max(0, blocks * per_block - tokens)
    p = pad(p, (before, after))
    first = torch.arange(blocks, device=q.device) * per_block
    scores = p.new_zeros(*p.shape[:3], blocks)
    for m in range(per_block):
        for u in range(per_window):
            scores += p[..., before + first + m - u]
    return scores


def _own_block(queries: int, block_size: int, q_start: int, device: torch.device) -> Tensor:
    """Return the block that holds each query, `[T, 1]`."""
    return (torch.arange(q_start, q_start + queries, device=device) // block_size)[:, None]


def _forced(
    queries: int, blocks: int, block_size: int, num_initial: int, num_local: int, q_start: int, device: torch.device
) -> Tensor:
    """Return `[T, blocks]` bool: the initial and local blocks that have begun."""
    own = _own_block(queries, block_size, q_start, device)
    block = torch.arange(blocks, device=device)
    return (block <= own) & ((block < num_initial) | (block > own - num_local))


def _score_windows(kernel: int | None, stride: int | None, block_size: int) -> tuple[int, int]:
    if kernel is None or stride is None:
        raise InputError(
            f"select_blocks: method 'compressed' needs kernel and stride; got kernel = {kernel}, stride = {stride}"
        )
    if kernel % stride or block_size % stride:
        raise InputError(
            f"select_blocks: stride = {stride} must divide kernel = {kernel} and block_size = {block_size}: "
            f"block scores are sums over whole strides"
        )
    return kernel, stride
