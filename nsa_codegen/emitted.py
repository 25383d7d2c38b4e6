"""A GPU kernel ready for the executor: its emitted text and launch facts, kept by key so that it is lowered once."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from .desc import KernelDesc
from .executor import Executable
from .executor.launch import Facts, launch_facts
from .executor.native import cache_folder, write_atomically
from .manifest import RequestKey
from .schedule import Schedule
from .target import GpuTarget


def executable_of(
    desc: KernelDesc, schedule: Schedule, target: GpuTarget, cache: Path | None = None
) -> tuple[Executable, Facts]:
    """Return the executable of a kernel and the facts of its launch.

    Text, facts and PTX are kept under `cache`, by default in the user's cache directory; the key covers everything that
    decides the text. Raises what lowering and `Executable.of` raise.
    """
    folder = cache_folder(cache) / "emitted"
    place = folder / f"{RequestKey.of(desc, schedule, target).digest}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of processes that want the same kernel one lowers it
        kept = json.loads(place.read_text()) if place.exists() else _lower(desc, schedule, target)
        if not place.exists():
            write_atomically(place, json.dumps(kept).encode())
        return Executable.of(kept["text"], target.name, cache), kept["facts"]


def _lower(desc: KernelDesc, schedule: Schedule, target: GpuTarget) -> dict[str, Any]:
    from .lowering import lowered_gpu

    lowered = lowered_gpu(desc, schedule, target)
    return {"text": lowered.source.text, "facts": launch_facts(lowered)}
