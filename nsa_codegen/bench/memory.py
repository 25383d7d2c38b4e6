"""Peak resident memory of one call beyond its inputs and outputs, each measured in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..spec import NSASpec
from .contenders import Inputs, dense
from .settings import Settings

_WARM_TOKENS = 128
_LIMIT_SECONDS = 1800.0


def measure_peak(settings: Settings, *, who: str, direction: str, tokens: int) -> dict[str, Any]:
    """Return the peak of `who` (`"nsa"`, `"sdpa"`, `"reference"`) at `tokens`, from a fresh process.

    `bytes` is the peak beyond inputs and outputs, `operands_bytes` the size of these. `exact` is False where the
    system keeps the highest mark since the process began; `bytes` is then an upper bound. A process that fails gives
    `error` instead.
    """
    case = {"who": who, "direction": direction, "tokens": tokens}
    given = {**case, "options": settings.options, "dtype": settings.dtype, "threads": settings.threads}
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(given)],
        capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
        return {**case, "error": last}
    return {**case, **json.loads(done.stdout)}


def _main(text: str) -> None:
    given = json.loads(text)
    torch.set_num_threads(given["threads"])
    spec = NSASpec.paper(**given["options"])
    grad = given["direction"] == "backward"
    _call(given["who"], spec, _operands(given["who"], spec, given["dtype"], _WARM_TOKENS, grad), grad)
    inputs = _operands(given["who"], spec, given["dtype"], given["tokens"], grad)
    exact = _reset_peak()
    before = _resident()
    outputs = _call(given["who"], spec, inputs, grad)
    peak = _peak()
    written = _bytes(outputs)
    beyond = max(0, peak - before - written)
    print(json.dumps({"bytes": beyond, "operands_bytes": _bytes(inputs) + written, "exact": exact}))


def _operands(who: str, spec: NSASpec, dtype: str, tokens: int, grad: bool) -> tuple[Tensor, ...]:
    x = Inputs.draw(spec, dtype, queries=tokens, keys=tokens, grad=grad)
    return x.heads_first() if who == "sdpa" else (x.q, x.k, x.v, x.gates)


def _call(who: str, spec: NSASpec, inputs: tuple[Tensor, ...], grad: bool) -> tuple[Tensor, ...]:
    """Return what the call leaves behind: the output, and with `grad` its gradient and those of the inputs."""
    impl = "reference" if who == "reference" else "compiled"
    q, k, v, *gates = inputs
    out = dense(q, k, v) if who == "sdpa" else functional.nsa_attention(q, k, v, gates[0], spec, impl=impl)
    if not grad:
        return (out,)
    dout = torch.ones_like(out)
    return (out, dout, *torch.autograd.grad(out, inputs, dout))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _reset_peak() -> bool:
    """Set the system's highest mark to what is resident now; return whether that could be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _main(sys.argv[1])
