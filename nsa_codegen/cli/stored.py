"""`nsa-codegen list`: the kernels in the store."""

from __future__ import annotations

from typing import Any

import typer

from ..store import Entry, Finding, KernelStore
from .app import AsJson, print_error, print_json, print_table


def list_kernels(as_json: AsJson = False) -> None:
    """List the kernels in the store; `verify` checks their contents. The exit code is 1 if a folder holds no kernel."""
    store = KernelStore()
    entries, broken = store.survey()
    rows = [*(_row(entry) for entry in entries), *(_broken(found) for found in broken)]
    if as_json:
        print_json(rows)
    else:
        title = f"{len(entries)} kernels in {store.root}"
        print_table(title, rows, ("architecture", "kernel", "name", "built", "bytes", "created"))
    if broken:
        print_error(
            f"{len(broken)} of {len(rows)} folders are broken, {broken[0].folder}: {broken[0].reason}; `nsa-codegen "
            f"verify` says it of each, and building the kernels sets them aside"
        )
        raise typer.Exit(1)


def _broken(found: Finding) -> dict[str, Any]:
    architecture, kernel, name = found.folder.parts[-3:]
    nothing = dict.fromkeys(("key", "bytes", "created", "compiler", "processor"))
    place = {"architecture": architecture, "kernel": kernel, "name": name, "folder": str(found.folder)}
    return {**nothing, **place, "built": "broken", "reason": found.reason}


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
