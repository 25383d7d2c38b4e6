"""A GPU kernel ready for the executor: its emitted text and launch facts, kept by key so that it is lowered once."""

from __future__ import annotations

import json
from pathlib import Path

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
    place = cache_folder(cache) / "emitted" / f"{RequestKey.of(desc, schedule, target).digest}.json"
    if place.exists():
        kept = json.loads(place.read_text())
    else:
        from .lowering import lowered_gpu

        lowered = lowered_gpu(desc, schedule, target)
        kept = {"text": lowered.source.text, "facts": launch_facts(lowered)}
        write_atomically(place, json.dumps(kept).encode())
    return Executable.of(kept["text"], target.name, cache), kept["facts"]
