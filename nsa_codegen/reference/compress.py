"""Compression: `phi` over strided windows of time (paper eq. 7), as mean, depthwise convolution or MLP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from ..errors import InputError, nearest
from ..program import PHI_METHODS
from .precision import widen

Weights = Tensor | Sequence[Tensor] | None


def compress(
    x: Tensor,
    *,
    kernel: int,
    stride: int,
    method: str = "mean",
    weight: Weights = None,
    bias: Weights = None,
) -> Tensor:
    """Return the compressed tokens `out_i = phi(x[i*stride : i*stride + kernel])`, `[B, N, Hkv, D]`, paper eq. 7.

    `N = (T - kernel) // stride + 1`, and 0 when `T < kernel`: a last partial window forms no token. By method:

    - `"mean"`: `sum_u x[i*stride + u] / kernel`; no weights.
    - `"conv"`: `bias[h, c] + sum_u weight[u, h, c] * x[i*stride + u, h, c]`; weight `[kernel, Hkv, D]`, bias
      `[Hkv, D]` or None.
    - `"mlp"`: `w2 @ gelu(w1 @ flatten(window + position) + b1) + b2`, exact-erf GELU, one for all heads, flattened
      as `(u, c)`; weight is `(position [kernel, D], w1 [E, kernel*D], w2 [D, E])`, bias `(b1 [E], b2 [D])`.

    The output is rounded once to x's dtype. Raises `InputError` for a method or weights that do not fit.
    """
    check_weights(x, kernel=kernel, method=method, weight=weight, bias=bias)
    windows = _windows(widen(x), kernel, stride)
    if method == "mean":
        out = windows.mean(dim=2)
    elif method == "conv":
        out = _convolved(windows, weight, bias)
    else:
        out = _through_mlp(windows, weight, bias)
    return out.to(x.dtype)


def check_weights(x: Tensor, *, kernel: int, method: str, weight: Weights, bias: Weights) -> None:
    """Raise `InputError` unless `weight` and `bias` are those that `method` takes for x `[B, T, Hkv, D]`."""
    heads, dim = x.shape[2:]
    if method == "mean":
        if weight is not None or bias is not None:
            raise InputError("compress: method 'mean' takes no weight and no bias; leave them out or use 'conv'")
    elif method == "conv":
        _require_weight(x, method, "weight", weight, (kernel, heads, dim))
        if bias is not None:
            _require_weight(x, method, "bias", bias, (heads, dim))
    elif method == "mlp":
        if not (_is_tuple_of(3, weight) and _is_tuple_of(2, bias)):
            raise InputError(
                f"compress: method 'mlp' takes weight = (position, w1, w2) and bias = (b1, b2), all tensors; "
                f"got {_described(weight)} and {_described(bias)}"
            )
        (position, w1, w2), (b1, b2) = weight, bias  # type: ignore[misc]
        hidden = max(1, w1.shape[0] if w1.dim() else 0)
        _require_weight(x, method, "position", position, (kernel, dim))
        _require_weight(x, method, "w1", w1, (hidden, kernel * dim))
        _require_weight(x, method, "w2", w2, (dim, hidden))
        _require_weight(x, method, "b1", b1, (hidden,))
        _require_weight(x, method, "b2", b2, (dim,))
    else:
        raise InputError(f"compress: method = {method!r} is not allowed: {nearest(str(method), PHI_METHODS)}")


def _windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Return the complete windows of `x` as `[B, N, kernel, Hkv, D]`."""
    tokens = x.shape[1]
    count = 0 if tokens < kernel else (tokens - kernel) // stride + 1
    starts = torch.arange(count, device=x.device) * stride
    return x[:, starts[:, None] + torch.arange(kernel, device=x.device)]


def _convolved(windows: Tensor, weight: Weights, bias: Weights) -> Tensor:
    assert isinstance(weight, Tensor)  # check_weights
    out = (windows * weight.to(windows.dtype)).sum(dim=2)
    return out + bias.to(windows.dtype) if isinstance(bias, Tensor) else out


def _through_mlp(windows: Tensor, weight: Weights, bias: Weights) -> Tensor:
    assert weight is not None and bias is not None  # check_weights
    position, w1, w2 = (w.to(windows.dtype) for w in weight)
    b1, b2 = (b.to(windows.dtype) for b in bias)
    encoded = windows + position[:, None, :]
    flat = encoded.permute(0, 1, 3, 2, 4).flatten(start_dim=3)
    return linear(gelu(linear(flat, w1, b1)), w2, b2)


def _require_weight(x: Tensor, method: str, name: str, value: Weights, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        raise InputError(
            f"compress: {name} of method {method!r} must be a tensor of shape {list(shape)}; got {_described(value)}"
        )
    if not value.is_floating_point() or value.device != x.device or value.layout != torch.strided:
        raise InputError(
            f"compress: {name} of method {method!r} is {value.dtype}, {value.layout} on {value.device}; give a dense "
            f"floating-point tensor on {x.device}, where x is"
        )


def _is_tuple_of(count: int, value: Weights) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == count and all(isinstance(w, Tensor) for w in value)


def _described(value: Weights) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"{len(value)} values" if isinstance(value, (tuple, list)) else repr(value)
