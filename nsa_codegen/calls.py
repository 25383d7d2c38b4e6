"""The descs that a call of the torch functions needs schedules for on a GPU; those of its backward if it may follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .desc import PLAIN, KernelDesc, with_lse
from .dispatch import dtype_name, gather_desc, stream_desc
from .index_sets import TopK, complete
from .needed import backward_descs, select_desc
from .program import Phi

Descs = tuple[KernelDesc, ...]


def streamed(q: Tensor, k: Tensor, v: Tensor, visible: str) -> Descs:
    """Return the descs of a streamed attention over the index set that `RangeSet.text` spells."""
    return _with_gradients(stream_desc(visible, dtype_name(q), *_dims(q, k, v)), q, k, v)


def gathered(q: Tensor, k: Tensor, v: Tensor, lists: Tensor, block: int, causal: bool) -> Descs:
    """Return the descs of an attention over listed blocks."""
    dims = *_dims(q, k, v), block, lists.shape[3]
    return _with_gradients(gather_desc(dtype_name(q), *dims, causal, PLAIN), q, k, v)


def selected(q: Tensor, k: Tensor, visible: TopK, kernel: int | None, stride: int | None) -> Descs:
    """Return the desc of a selection of blocks; with `kernel` and `stride` by compressed tokens."""
    windows: dict[str, Any] = {} if kernel is None else {"kernel": kernel, "stride": stride}
    return (select_desc(visible, dtype_name(q), group=q.shape[2] // k.shape[2], dk=q.shape[3], **windows),)


def scored(q: Tensor, k: Tensor, v: Tensor, phi: Phi, visible: TopK) -> Descs:
    """Return the descs of an attention over compressed tokens, and of the selection by its weights."""
    attention = streamed(q, k, v, complete(phi.kernel, phi.stride).text)
    return *attention, *(with_lse(desc) for desc in selected(q, k, visible, phi.kernel, phi.stride))


def _dims(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int]:
    return q.shape[2] // k.shape[2], q.shape[3], v.shape[3]


def _with_gradients(desc: KernelDesc, *tensors: Tensor) -> Descs:
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in tensors):
        return (desc,)
    return desc, *backward_descs(desc, "cuda")
