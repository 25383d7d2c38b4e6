"""The rounding points: in which dtype the reference computes."""

from __future__ import annotations

import torch
from torch import Tensor


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """Return float64 for float64 tensors, float32 for every other."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """Return `x` in the dtype that it is computed with; exact, since that dtype is never narrower."""
    return x.to(arithmetic_dtype(x))
