"""Memory of large tensors on Linux: freed blocks are kept, and what is mapped anew is asked for in large pages.

The first touch of a page costs more than writing it: at 4 KB a page, an output of 32 MB takes longer to appear than a
window's attention takes to write it. Elsewhere than on Linux nothing is done, and all works as well.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

import torch
from torch import Tensor

MAPPED = 32 << 20  # bytes: glibc maps blocks from here on anew, unless its heap happens to have room for one
_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next call, some dozen megabytes of it, instead of giving it back.

    glibc maps large blocks anew each time, until one was freed: then it takes blocks up to that size, 32 MB at most,
    from its heap. So one is allocated here and freed untouched; and one more, that the heap grows in large pages.
    """
    for _ in range(2):
        block = torch.empty(MAPPED - (1 << 20), dtype=torch.uint8, device="cpu")
        _advise(block.data_ptr(), block.nbytes)
        del block


def in_large_pages(x: Tensor) -> Tensor:
    """Return `x`, a fresh tensor, once the system was asked to map its memory in large pages, if that is much."""
    if x.nbytes >= MAPPED and x.is_cpu:
        _advise(x.data_ptr(), x.nbytes)
    return x


def _advise(address: int, size: int) -> None:
    advise = _madvise()
    if advise is not None and _ADVICE is not None:
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, address + size - start, _ADVICE)  # refused where the kernel has no large pages: then it has none


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    found = getattr(ctypes.CDLL(None), "madvise", None)
    if found is not None:
        found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found
