"""TileLang kernels, the only place that imports `tilelang.language`; one file per op and direction."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ..desc import KernelDesc
from ..errors import LoweringError
from ..target import Target

KernelMaker = Callable[..., Any]


def kernel_maker(desc: KernelDesc, target: Target) -> KernelMaker:
    """Return `get_<op>_<direction>_kernel` of the family of `target`."""
    module = f"{__name__}.{'cpu' if target.kind == 'cpu' else 'cuda'}.{desc.kind}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise LoweringError(f"op {desc.op!r} has no {desc.direction} template for {target.kind} targets") from None
    maker: KernelMaker = getattr(found, f"get_{desc.kind}_kernel")
    return maker
