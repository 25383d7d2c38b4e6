"""What TileLang 0.1.15 gets wrong and is set right here, around a lowering; `docs/upstream.md` has the reports.

A pipelined loop that loads two operands, with an extent known at run time only, gets an epilogue whose extent is an
expression such as `n + 2 - n`. It is never unrolled, and its wait counts, which hang on its variable, can't be printed.

Where copies have a warp group of their own, its four warps wait for free tiles, and one of them starts the copies. A
wait tells phases by their parity, and nothing holds the copies back for the other three: one that is late by a phase
waits for another, which may never come. And barriers of the group get between the copies, into what one thread does.

Products by `wgmma` read shared memory through another proxy than asynchronous copies write it. TileLang fences the two
in a loop, where copies are started, and not in the steps behind it, where the last of them arrive.

The last simplification of device code asks Z3 about every term of every mask, for a third of the time, and learns
nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import math
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


_THEORY = "smt.arith.solver"  # of Z3: what a new solver knows of integers; with 0 nothing, and it gives up at once


@contextlib.contextmanager
def without_integer_proofs() -> Iterator[None]:
    """Let TileLang's analyzer do without Z3 while the context is open, which has to be within `corrected_pipelines`.

    What Z3 then proves holds for any integers. It is of the process: the lock keeps other lowerings out, whose tile
    operators do need proofs.
    """
    import z3

    theory = z3.get_param(_THEORY)
    z3.set_param(_THEORY, 0)
    try:
        yield
    finally:
        z3.set_param(_THEORY, theory)


_COPYING_WARP = 32  # threads: the first warp of the group is the one that `tl_shuffle_elect` elects from
_BARRIER = "tirx.tvm_storage_sync"
_BY_ALL = ("ptx_cp_async", "ptx_arrive_barrier", "cp_async_barrier")  # what every thread of the group does itself


def single_warp_copies(module: Any) -> Any:
    """Return a module of device functions in which one warp of a group that copies does so, and the others end."""
    from tilelang import tvm

    tirx = tvm.tirx

    def narrowed(branch: Any) -> Any:
        threads = _copying_threads(tirx, branch)
        if threads is None:
            return None
        transform = tirx.stmt_functor.ir_transform
        body = transform(branch.then_case, None, lambda node: _without_barriers(tirx, node), ["tirx.IfThenElse"])
        body = transform(body, None, _narrow_barrier(tirx, threads), ["tirx.Evaluate"])
        statements = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
        grouped = [s for s in statements if _called(tirx, s) == "tl.set_max_nreg"]  # the whole group has to
        rest = [s for s in statements if not any(s.same_as(g) for g in grouped)]
        alone = tirx.IfThenElse(branch.condition.a < _COPYING_WARP, _sequence(tirx, rest), None)
        return tirx.IfThenElse(branch.condition, _sequence(tirx, [*grouped, alone]), branch.else_case)

    def rewrite(function: Any, mod: Any, context: Any) -> Any:
        return function.with_body(tirx.stmt_functor.ir_transform(function.body, None, narrowed, ["tirx.IfThenElse"]))

    return tirx.transform.prim_func_pass(rewrite, opt_level=0, name="nsa.SingleWarpCopies")(module)


def _copying_threads(tirx: Any, branch: Any) -> int | None:
    """Return the threads of `if threadIdx.x < threads: copy, else: compute` where one thread starts all copies."""
    test = branch.condition
    if branch.else_case is None or not isinstance(test, tirx.LT) or not isinstance(test.b, tirx.IntImm):
        return None
    elected: list[Any] = []
    names: list[str] = []

    def visit(node: Any) -> bool:
        if isinstance(node, tirx.IfThenElse) and _called(tirx, node.condition) == "tl.tl_shuffle_elect":
            elected.append(node.condition.args[0])
            return False  # what one thread does is fine
        if isinstance(node, tirx.Call):
            names.append(_called(tirx, node))
        return True

    tirx.stmt_functor.pre_order_visit(branch.then_case, visit)
    if not elected or any(int(extent) != int(test.b) for extent in elected):
        return None
    return None if any(word in name for name in names for word in _BY_ALL) else int(test.b)


_COMMIT, _WAIT = "tirx.ptx_commit_group", "tirx.ptx_wait_group"
_FENCE, _PRODUCTS = "tl.fence_proxy_async", "tl.warpgroup_arrive"


def fenced_products(module: Any) -> Any:
    """Return a module of device functions whose `wgmma` have a fence behind the last wait for asynchronous copies."""
    from tilelang import tvm

    tirx = tvm.tirx

    def rewrite(function: Any, mod: Any, context: Any) -> Any:
        unfenced, at = _unfenced_products(tirx, function.body), itertools.count()

        def fence(statement: Any) -> Any:
            if _called(tirx, statement) != _PRODUCTS or next(at) not in unfenced:
                return None
            return tirx.SeqStmt([statement, tirx.Evaluate(tirx.call_intrin("handle", tvm.ir.Op.get(_FENCE)))])

        return function.with_body(tirx.stmt_functor.ir_transform(function.body, None, fence, ["tirx.Evaluate"]))

    return tirx.transform.prim_func_pass(rewrite, opt_level=0, name="nsa.FencedProducts")(module)


def _unfenced_products(tirx: Any, body: Any) -> set[int]:
    """Return which groups of products, counted from 0, come after a wait for copies and before a fence.

    A wait that leaves as many groups of copies under way as there are is none. Steps of a loop begin with as many each.
    """
    found: set[int] = set()
    groups, arrived, under_way = 0, False, math.inf

    def visit(node: Any) -> bool:
        nonlocal groups, arrived, under_way
        name = _called(tirx, node) if isinstance(node, tirx.Call) else ""
        if name == _COMMIT:
            under_way += 1
        elif name == _WAIT:
            left = int(node.args[0])
            arrived, under_way = arrived or left < under_way, min(left, under_way)
        elif name == _FENCE:
            arrived = False
        elif name == _PRODUCTS:
            groups += 1
        elif name.startswith("tl.ptx_wgmma") and arrived:
            found.add(groups - 1)
        return True

    tirx.stmt_functor.pre_order_visit(body, visit)
    return found


def _sequence(tirx: Any, statements: list[Any]) -> Any:
    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def _without_barriers(tirx: Any, branch: Any) -> Any:
    """Return what one elected thread does, without barriers that the others would have to join; None for the rest."""
    if _called(tirx, branch.condition) != "tl.tl_shuffle_elect":
        return None

    def drop(statement: Any) -> Any:
        return tirx.Evaluate(0) if _called(tirx, statement) == _BARRIER else None

    body = tirx.stmt_functor.ir_transform(branch.then_case, None, drop, ["tirx.Evaluate"])
    return tirx.IfThenElse(branch.condition, body, branch.else_case)


def _narrow_barrier(tirx: Any, threads: int) -> Any:
    """Return the rewriting that makes barriers of `threads` threads barriers of the warp that copies."""

    def narrow(statement: Any) -> Any:
        if _called(tirx, statement) != _BARRIER or len(statement.value.args) < 3:
            return None
        scope, number, count = statement.value.args[:3]
        assert int(count) == threads, f"a barrier of {count} threads among the {threads} that copy"
        return tirx.Evaluate(tirx.call_intrin("int32", _BARRIER, scope, number, _COPYING_WARP))

    return narrow


def _called(tirx: Any, node: Any) -> str:
    """Return the name of the op that an expression or a statement calls, or nothing."""
    call = node.value if isinstance(node, tirx.Evaluate) else node
    return str(call.op.name) if isinstance(call, tirx.Call) and hasattr(call.op, "name") else ""
