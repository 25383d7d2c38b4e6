"""flex_attention, compiled, with the masks of a window and of causal attention; forward, since a CPU has no other.

Compiling takes long and can't be interrupted, so a process of its own does it first, within a limit of time; the
one that measures then finds the code in torch's cache.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import torch

from .. import functional
from ..spec import NSASpec
from . import works
from .contenders import Inputs, dense, quiet
from .measure import Contender
from .settings import Settings

MASKS = ("window", "causal")


def contenders(spec: NSASpec, dtype: str, tokens: int, mask: str) -> list[Contender]:
    """Return flex with `mask`, and what computes the same otherwise: our window, or torch's dense attention."""
    x = Inputs.draw(spec, dtype, queries=tokens, keys=tokens)
    q, k, v = x.heads_first()
    reach = spec.window_size if mask == "window" else None
    work = works.dense_work(spec, dtype, batch=1, queries=tokens, keys=tokens, reach=reach)
    found = [Contender(name="flex", run=_flex(q, k, v, reach), work=work)]
    if mask == "causal":
        return [*found, Contender(name="sdpa", run=quiet(lambda: dense(q, k, v)), work=work)]
    mine = quiet(lambda: functional.window_attention(x.q, x.k, x.v, window_size=spec.window_size, impl="compiled"))
    return [*found, Contender(name="nsa window", run=mine, work=work)]


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, reach: int | None) -> Callable[[], object]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(b: torch.Tensor, h: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return s <= t if reach is None else (s <= t) & (s > t - reach)

    mask = create_block_mask(visible, None, None, q.shape[2], k.shape[2], device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    call = quiet(lambda: compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1]))
    call()  # compiles
    return call


def compile_ahead(settings: Settings) -> str | None:
    """Compile every case within `settings.flex_seconds`; return why flex can't take part, or None if it can."""
    given = {"options": settings.options, "dtype": settings.dtype, "threads": settings.threads}
    text = json.dumps({**given, "tokens": settings.flex_tokens})
    command = [sys.executable, "-m", __name__, text]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=settings.flex_seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # its compilers too
            process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            limit = f"{settings.flex_seconds:g} s"
            return f"flex_attention took more than {limit} to compile; allow it more with --flex-seconds"
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return f"flex_attention did not compile: {last}" if process.returncode else None


def _main(text: str) -> None:
    given = json.loads(text)
    torch.set_num_threads(given["threads"])
    spec = NSASpec.paper(**given["options"])
    for tokens in given["tokens"]:
        for mask in MASKS:
            contenders(spec, given["dtype"], tokens, mask)


if __name__ == "__main__":
    _main(sys.argv[1])
