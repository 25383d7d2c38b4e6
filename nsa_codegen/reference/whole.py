"""The whole of any `Program`: its paths, each by its index set, and their combination."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import InputError
from ..index_sets import RangeSet, TopK
from ..program import Path, Phi, Program
from .attention import gather_attention, stream_attention
from .combine import combine
from .compress import compress
from .selection import select_blocks

KeysValues = Mapping[str, tuple[Tensor, Tensor]]


def attention(
    program: Program,
    q: Tensor,
    kv: KeysValues,
    gates: Tensor | None = None,
    *,
    scale: float | None = None,
    q_start: int = 0,
) -> Tensor:
    """Return what `program` computes, `[B, T, H, Dv]`: `sum_p gate_p * O_p` (paper eq. 5), or its only path's output.

    q is `[B, T, H, Dk]`; `kv[path.name]` is that path's `(k, v)`: tokens, or the compressed tokens of a path whose
    keys go through phi. `gates`, for a program that combines, is `[P]` or `[B, T, H, P]` in the order of its paths.
    Each path's output is rounded to q's dtype, and so is the sum. Raises `InputError` if `kv` or `gates` do not fit.
    """
    missing = [p.name for p in program.paths if p.name not in kv]
    if missing:
        raise InputError(f"attention: kv has no keys and values for the paths {missing}; it has {sorted(kv)}")
    outs = [_path_output(program, path, q, kv, scale, q_start) for path in program.paths]
    if program.combine == "none":
        if gates is not None:
            raise InputError(f"attention: program {program.name!r} has one path and takes no gates")
        return outs[0]
    if gates is None:
        raise InputError(f"attention: program {program.name!r} combines {len(outs)} paths; give gates, one per path")
    return combine(outs, gates)


def _path_output(program: Program, path: Path, q: Tensor, kv: KeysValues, scale: float | None, q_start: int) -> Tensor:
    k, v = kv[path.name]
    if isinstance(path.visible, TopK):
        chosen = _chosen_blocks(program, path, path.visible, q, kv, scale, q_start)
        block, causal = path.visible.block, path.visible.causal
        return gather_attention(q, k, v, chosen, block_size=block, causal=causal, scale=scale, q_start=q_start)[0]
    if path.pool_queries:
        return _pooled_output(path, path.visible, q, k, v, scale, q_start)
    return stream_attention(q, k, v, path.visible, scale=scale, q_start=q_start)[0]


def _chosen_blocks(
    program: Program, path: Path, top: TopK, q: Tensor, kv: KeysValues, scale: float | None, q_start: int
) -> Tensor:
    phi = program.source_of(top)
    return select_blocks(
        q,
        kv[path.name if phi is None else top.source][0],
        method=top.score,
        block_size=top.block,
        num_selected=top.n,
        num_initial=top.initial,
        num_local=top.local,
        kernel=None if phi is None else phi.kernel,
        stride=None if phi is None else phi.stride,
        scale=scale,
        q_start=q_start,
    )


def _pooled_output(
    path: Path, visible: RangeSet, q: Tensor, k: Tensor, v: Tensor, scale: float | None, q_start: int
) -> Tensor:
    """Attend with the means of windows of queries; each output row stands for its whole window.

    Pooled query `i` stands at the window's index, as a compressed key does. Positions in no whole window get 0.
    """
    assert isinstance(path.keys, Phi)  # Path refuses pool_queries on other keys
    stride = path.keys.stride
    first = pooled_start(q_start, stride)
    pooled = compress(q, kernel=stride, stride=stride)
    return spread(stream_attention(pooled, k, v, visible, scale=scale, q_start=first)[0], stride, q.shape[1])


def pooled_start(q_start: int, stride: int) -> int:
    """Return the index of the first window of queries, whose first stands at `q_start`. Raises `InputError`."""
    if q_start % stride:
        raise InputError(
            f"attention: q_start = {q_start} must be a multiple of {stride}, or windows of queries, which are pooled, "
            f"split; give one, or as many keys as queries"
        )
    return q_start // stride


def spread(rows: Tensor, stride: int, queries: int) -> Tensor:
    """Return the output of pooled queries at each of `queries` positions that they came from, and 0 at the others."""
    repeated = torch.repeat_interleave(rows, stride, dim=1)
    return pad(repeated, (0, 0, 0, 0, 0, queries - repeated.shape[1]))
