"""A compiler for Native Sparse Attention: a declaration goes in, kernels and a torch model that runs them come out.

The public names are loaded at first use, so that `import nsa_codegen` imports neither torch nor a kernel library,
and writes and prints nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import functional as functional
    from .nn import NSA as NSA
    from .spec import NSASpec as NSASpec

__version__ = "0.1.0"
__all__ = ["NSA", "NSASpec", "__version__", "functional"]

_HOMES = {"NSA": "nn", "NSASpec": "spec"}


def __getattr__(name: str) -> Any:
    if name == "functional":
        return importlib.import_module(".functional", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    found = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found  # the next access finds it without this function
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
