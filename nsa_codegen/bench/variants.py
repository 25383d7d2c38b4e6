"""The same attention with other threads and types, beside itself: how it scales, and what halves cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import functional
from ..desc import DTYPES
from ..spec import NSASpec
from .contenders import Inputs, backward_of, quiet
from .measure import Contender

BASELINES = {"threads": "1 thread", "dtypes": DTYPES[0]}  # of each variant the contender that others are held to
MOST_TOKENS = 16384  # longer sequences tell nothing new


def contenders(spec: NSASpec, dtype: str, tokens: int, *, what: str, direction: str, threads: int) -> list[Contender]:
    """Return `what`, a key of `BASELINES`, of one direction: one thread and all, or the types."""
    if what == "dtypes":
        return [Contender(name=name, run=_call(spec, name, tokens, direction)) for name in DTYPES]
    run = _call(spec, dtype, tokens, direction)
    counts = {BASELINES["threads"]: 1} | ({f"{threads} threads": threads} if threads > 1 else {})
    return [Contender(name=name, run=_on_threads(n, threads, run)) for name, n in counts.items()]


def _call(spec: NSASpec, dtype: str, tokens: int, direction: str) -> Callable[[], object]:
    backward = direction == "backward"
    x = Inputs.draw(spec, dtype, queries=tokens, keys=tokens, grad=backward)

    def attend() -> Tensor:
        return functional.nsa_attention(x.q, x.k, x.v, x.gates, spec, impl="compiled")

    return backward_of(attend(), (x.q, x.k, x.v, x.gates)) if backward else quiet(attend)


def _on_threads(count: int, after: int, run: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        torch.set_num_threads(count)
        try:
            return run()
        finally:
            torch.set_num_threads(after)

    return call
