"""The meaning of each op as loops over positions in Python floats, written apart from `nsa_codegen.reference`.

Nothing is vectorised and no mask is formed: a sum runs over the keys that a predicate admits. Slow on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Sees = Callable[[int, int, int, int], bool]  # (batch, query index, key/value head, key) -> is it seen


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal numbers that depend on `shape` and `seed` alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def softmax(scores: Sequence[float]) -> list[float]:
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    total = math.fsum(weights)
    return [w / total for w in weights]


def attend(q: Tensor, k: Tensor, v: Tensor, sees: Sees, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query over the keys that `sees` admits; 0 and -inf where there is none."""
    batch, queries, heads, dim = q.shape
    keys, kv_heads, value_dim = k.shape[1], k.shape[2], v.shape[3]
    scale = dim**-0.5 if scale is None else scale
    ql, kl, vl = q.tolist(), k.tolist(), v.tolist()
    out = torch.zeros(batch, queries, heads, value_dim, dtype=torch.float64)
    lse = torch.full((batch, queries, heads), -math.inf, dtype=torch.float64)
    for b in range(batch):
        for i in range(queries):
            for h in range(heads):
                g = h * kv_heads // heads
                seen = [j for j in range(keys) if sees(b, i, g, j)]
                if not seen:
                    continue
                scores = [scale * dot(ql[b][i][h], kl[b][j][g]) for j in seen]
                p = softmax(scores)
                out[b, i, h] = torch.tensor(
                    [math.fsum(w * vl[b][j][g][c] for w, j in zip(p, seen, strict=True)) for c in range(value_dim)],
                    dtype=torch.float64,
                )
                lse[b, i, h] = max(scores) + math.log(math.fsum(math.exp(s - max(scores)) for s in scores))
    return out, lse


def windows(x: Tensor, kernel: int, stride: int) -> list[int]:
    """The starts of the windows that lie wholly inside `x`."""
    return [s for s in range(0, x.shape[1], stride) if s + kernel <= x.shape[1]]


def compress(x: Tensor, kernel: int, stride: int, phi: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`phi(window [kernel, D], head) -> [D]` applied to each window of each head."""
    batch, _, heads, dim = x.shape
    starts = windows(x, kernel, stride)
    out = torch.zeros(batch, len(starts), heads, dim, dtype=x.dtype)
    for b in range(batch):
        for n, s in enumerate(starts):
            for h in range(heads):
                out[b, n, h] = phi(x[b, s : s + kernel, h], h)
    return out


def choose(scores: dict[int, float], own: int, n: int, initial: int, local: int) -> list[int]:
    """The blocks of one query: forced ones, then the best of the past, lower index first among equals; -1 pads."""
    forced = [j for j in range(own + 1) if j < initial or own - j < local]
    rest = sorted((j for j in range(own) if j not in forced), key=lambda j: (-scores[j], j))
    chosen = sorted(forced + rest[: n - len(forced)])
    return chosen + [-1] * (n - len(chosen))


def mean_key_scores(q: Tensor, k: Tensor, b: int, i: int, g: int, own: int, block: int) -> dict[int, float]:
    """Scores of the past blocks of one query and key head: each head of the group against the mean of the keys."""
    group = q.shape[2] // k.shape[2]
    heads = range(g * group, (g + 1) * group)
    means = {j: [math.fsum(c) / block for c in zip(*k[b, j * block : (j + 1) * block, g].tolist(), strict=True)]
             for j in range(own)}  # fmt: skip
    return {j: math.fsum(dot(q[b, i, h].tolist(), mean) for h in heads) for j, mean in means.items()}


def compressed_scores(
    q: Tensor, k_cmp: Tensor, b: int, i: int, g: int, t: int, *, block: int, kernel: int, stride: int, scale: float
) -> dict[int, float]:
    """Paper eq. 9 in its 0-based form, term by term, for the past blocks of one query and key head."""
    group = q.shape[2] // k_cmp.shape[2]
    total = dict.fromkeys(range(t // block), 0.0)
    visible = [n for n in range(k_cmp.shape[1]) if n * stride + kernel - 1 <= t]
    if not visible:
        return total
    for h in range(g * group, (g + 1) * group):
        p = dict(zip(visible, softmax([scale * dot(q[b, i, h].tolist(), k_cmp[b, n, g].tolist()) for n in visible]),
                     strict=True))  # fmt: skip
        for j in total:
            for m in range(block // stride):
                for u in range(kernel // stride):
                    total[j] += p.get(block // stride * j + m - u, 0.0)
    return total
