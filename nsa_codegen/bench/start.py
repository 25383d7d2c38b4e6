"""What starting costs: the import beyond torch's, the first calls of stored kernels, a cold build of all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..build import build_all
from ..requests import needed_requests
from ..store import KernelStore
from ..target import native_target
from .settings import Settings

_PROCESSES = 5
_CODE = """
import json, sys, time
import torch
given = json.loads(sys.argv[1])
torch.set_num_threads(given["threads"])
seconds, start = {}, time.perf_counter()
def lap(name):
    global start
    seconds[name] = time.perf_counter() - start
    start = time.perf_counter()
from nsa_codegen import NSA, NSASpec, functional
lap("import")
spec = NSASpec.paper(**given["options"])
shapes = [(1, 64, spec.num_heads, spec.head_dim)] + 2 * [(1, 64, spec.kv_heads, spec.head_dim)]
q, k, v = (torch.zeros(s, dtype=getattr(torch, given["dtype"])) for s in shapes)
gates = q.new_ones(1, 64, spec.num_heads, 3)
start = time.perf_counter()
functional.window_attention(q, k, v, window_size=spec.window_size, impl="compiled")
lap("first kernel")
functional.nsa_attention(q, k, v, gates, spec, impl="compiled")
lap("first attention, seven kernels more")
print(json.dumps(seconds))
"""


def measure_start(settings: Settings) -> list[dict[str, Any]]:
    """Return rows of raw seconds: from several fresh processes with stored kernels, and from one cold build.

    Raises `NSAError` if a kernel can't be built.
    """
    given = json.dumps({"options": settings.options, "dtype": settings.dtype, "threads": settings.threads})
    # With Python's bytecode, as an installed package has it: the first process writes what is missing.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", _CODE, given]
    found: list[dict[str, float]] = []
    for _ in range(1 + _PROCESSES):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.append(json.loads(done.stdout))
    del found[0]
    rows = [{"name": name, "samples": [f[name] for f in found]} for name in found[0]]
    with tempfile.TemporaryDirectory() as folder:
        wanted = needed_requests(settings.spec.program(), settings.dtype, native_target())
        start = time.perf_counter()
        outcomes = build_all(wanted, jobs=os.cpu_count(), store=KernelStore(Path(folder)))
        lasted = time.perf_counter() - start
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    name = f"cold build of {len(wanted)} kernels, both directions, {os.cpu_count()} at a time"
    return [*rows, {"name": name, "samples": [lasted]}]
