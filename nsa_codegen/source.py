"""`KernelSource`: the emitted text of one kernel and how its entry is called."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import LoweringError

TILELANG_VERSION = "0.1.15"
CPU_PASS_OPTIONS: dict[str, Any] = {"tl.disable_safe_memory_legalize": True}


def gpu_pass_options(*, specialized: bool) -> dict[str, Any]:
    """Return the options of a GPU lowering; `specialized`: tensor copies have a warp group of their own."""
    return {} if specialized else {"tl.disable_warp_specialized": True}


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of a kernel's entry: its name, and `pointer`, `tensor`, `int32` or `float32`."""

    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class KernelLaunch:
    """One launch of a GPU entry: the kernel, the threads of a block, and the bytes of dynamic shared memory."""

    kernel: str
    threads: int
    shared_bytes: int


@dataclass(frozen=True, kw_only=True)
class KernelSource:
    """The emitted text of one kernel, and how its entry is called.

    On a CPU: `entry(parallel, threads, tasks, arguments) -> int32 status`, where `parallel` is the address of the
    thread pool's `nsa_parallel`, `tasks` the number of independent tasks, and `arguments` that of the values in
    order, eight bytes each. On a GPU the entry is that of the host code, `host`, which checks tensors and makes the
    `launches`, in order, on the current stream.
    """

    text: str
    entry: str
    arguments: tuple[Argument, ...]
    host: str = ""
    launches: tuple[KernelLaunch, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest keeps of the source beside its text."""
        return {"entry": self.entry, "arguments": [[a.name, a.kind] for a in self.arguments], "sha256": self.sha256}


def require_tilelang() -> None:
    """Raise `LoweringError` unless the pinned TileLang is installed; nothing is imported."""
    try:
        installed = importlib.metadata.version("tilelang")
    except importlib.metadata.PackageNotFoundError:
        raise LoweringError(
            f"TileLang is not installed, and a kernel has to be lowered: pip install tilelang=={TILELANG_VERSION}, or "
            f"bring kernels that are built already (NSA_CODEGEN_HOME)"
        ) from None
    if installed.partition("+")[0] != TILELANG_VERSION:
        raise LoweringError(
            f"TileLang {installed} is installed; what it emits is part of our behaviour, and version "
            f"{TILELANG_VERSION} is pinned: pip install tilelang=={TILELANG_VERSION}"
        )
