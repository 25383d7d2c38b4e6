"""`nsa-codegen list`: the kernels in the store."""

from __future__ import annotations

from typing import Any

from ..store import Entry, KernelStore
from .app import AsJson, print_json, print_table


def list_kernels(as_json: AsJson = False) -> None:
    """List the kernels in the store; `verify` checks their contents."""
    store = KernelStore()
    rows = [_row(entry) for entry in store.entries()]
    if as_json:
        print_json(rows)
        return
    print_table(
        f"{len(rows)} kernels in {store.root}", rows, ("architecture", "kernel", "name", "built", "bytes", "created")
    )


def _row(entry: Entry) -> dict[str, Any]:
    binary = entry.manifest.binary
    return {
        "architecture": entry.key.arch,
        "kernel": f"{entry.key.op}_{entry.key.direction}",
        "name": entry.folder.name,
        "key": entry.key.digest,
        "built": "yes" if entry.library is not None else "source only" if binary is None else "no",
        "bytes": 0 if binary is None else binary.size,
        "created": entry.manifest.created,
        "compiler": "none: source only" if binary is None else binary.compiler_version,
        "processor": None if binary is None else binary.processor,
        "folder": str(entry.folder),
    }
