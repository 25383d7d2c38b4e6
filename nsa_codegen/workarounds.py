"""What TileLang 0.1.15 gets wrong and is set right here, around a lowering; `docs/upstream.md` has the reports.

A pipelined loop that loads two operands, with an extent known at run time only, gets an epilogue whose extent is an
expression such as `n + 2 - n`. It is never unrolled, and its wait counts, which hang on its variable, can't be printed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_lock = threading.RLock()


@contextlib.contextmanager
def corrected_pipelines() -> Iterator[None]:
    """Let TileLang unroll the epilogues of pipelined loops while the context is open."""
    import tilelang.transform as transform
    from tilelang import tvm

    inject = transform.InjectSoftwarePipeline

    def corrected() -> Any:
        return tvm.transform.Sequential([inject(), _unroll_epilogues(tvm)])

    with _lock:
        transform.InjectSoftwarePipeline = corrected
        try:
            yield
        finally:
            transform.InjectSoftwarePipeline = inject


def _unroll_epilogues(tvm: Any) -> Any:
    """Return the pass that gives unrolled loops the constant extent that theirs simplifies to, and expands them."""
    tirx, analyzer = tvm.tirx, tvm.arith.Analyzer()

    def expanded(loop: Any) -> Any:
        if loop.kind != tirx.ForKind.UNROLLED or isinstance(loop.extent, tirx.IntImm):
            return None
        extent = analyzer.simplify(loop.extent)
        if not isinstance(extent, tirx.IntImm):
            return None
        annotations = {**dict(loop.annotations), "pragma_unroll_explicit": True}
        return tirx.For(loop.loop_var, loop.min, extent, loop.kind, loop.body, annotations=annotations)

    def unroll(function: Any, mod: Any, context: Any) -> Any:
        return function.with_body(tirx.stmt_functor.ir_transform(function.body, None, expanded, ["tirx.For"]))

    return tirx.transform.prim_func_pass(unroll, opt_level=0, name="nsa.UnrollEpilogues")
