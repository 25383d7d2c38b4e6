"""Operations and bytes of what is timed, from the ops' own declarations.

A backward counts 2.5 times its attention's forward: five products for two, as is usual, since probabilities are
computed again; and twice the bytes: all operands of the forward once more, and the gradients.
"""

from __future__ import annotations

from typing import Any

from ..desc import KernelDesc
from ..index_sets import TopK, causal, complete, window
from ..needed import compress_desc, scored_desc, select_desc
from ..ops import OPS, Sizes, Work
from ..program import Phi
from ..spec import NSASpec

ATTENTIONS = ("compressed_attention", "selected_attention", "window_attention")
WITH_GRADIENT = ("compress", *ATTENTIONS, "combine")


def run_by(spec: NSASpec) -> tuple[str, ...]:
    """Return the steps of which a call is made: where attention over compressed tokens lists blocks, one for both."""
    program = spec.program()
    together = program.lists_of(program.path("compressed")) is not None
    first = ("scored_attention",) if together else ("compressed_attention", "select_blocks")
    return ("compress", *first, "selected_attention", "window_attention", "combine")


def op_works(spec: NSASpec, dtype: str, *, batch: int, queries: int, keys: int) -> dict[str, Work]:
    """Return the work of each step of an attention whose last `queries` positions of `keys` are queries.

    Steps that a call takes together are there as well as what they are made of.
    """
    phi = Phi(method=spec.compression, kernel=spec.kernel, stride=spec.stride)
    where: dict[str, int] = {"batch": batch, "kv_heads": spec.kv_heads, "q_start": keys - queries}
    tokens = Sizes(tokens=queries, keys=keys, **where)
    compressed = Sizes(tokens=queries, keys=phi.length(keys), **where)
    dims: dict[str, Any] = {"group": spec.group, "dk": spec.head_dim, "dv": spec.dv}
    visible = spec.program().path("selected").visible
    assert isinstance(visible, TopK)
    windows = {"kernel": spec.kernel, "stride": spec.stride} if spec.selection == "compressed" else {}
    compress = [
        _work(compress_desc(phi.method, dtype, kernel=phi.kernel, stride=phi.stride, dim=dim), tokens)
        for dim in (spec.head_dim, spec.dv)
    ]
    gather = KernelDesc.of(
        "gather_attention", dtype, reach="causal", source="packed", block=visible.block, n=visible.n, **dims
    )
    per_head = Sizes(batch=batch, tokens=queries, kv_heads=spec.num_heads)
    gates = "scalar" if spec.gate == "scalar" else "sigmoid"
    scored = {}
    if "scored_attention" in run_by(spec):
        scored["scored_attention"] = _work(scored_desc(visible, dtype, **dims, **windows), tokens)
    return {
        **scored,
        "compress": Work(operations=sum(w.operations for w in compress), bytes=sum(w.bytes for w in compress)),
        "compressed_attention": _stream(dtype, complete(spec.kernel, spec.stride), compressed, dims),
        "select_blocks": _work(select_desc(visible, dtype, group=spec.group, dk=spec.head_dim, **windows), tokens),
        "selected_attention": _work(gather, tokens),
        "window_attention": _stream(dtype, window(spec.window_size), tokens, dims),
        "combine": _work(KernelDesc.of("combine", dtype, paths=3, dv=spec.dv, gates=gates), per_head),
    }


def dense_work(spec: NSASpec, dtype: str, *, batch: int, queries: int, keys: int, reach: int | None = None) -> Work:
    """Return the work of dense causal attention, or of attention over the last `reach` tokens."""
    sizes = Sizes(batch=batch, tokens=queries, keys=keys, kv_heads=spec.kv_heads, q_start=keys - queries)
    dims = {"group": spec.group, "dk": spec.head_dim, "dv": spec.dv}
    return _stream(dtype, causal() if reach is None else window(reach), sizes, dims)


def whole_work(spec: NSASpec, dtype: str, *, batch: int, queries: int, keys: int) -> Work:
    """Return the operations of all steps, and the bytes of q, k, v and out once."""
    steps = op_works(spec, dtype, batch=batch, queries=queries, keys=keys)
    operands = dense_work(spec, dtype, batch=batch, queries=queries, keys=keys)
    return Work(operations=sum(steps[name].operations for name in run_by(spec)), bytes=operands.bytes)


def backward(work: Work) -> Work:
    """Return the work of the backward of an attention whose forward takes `work`."""
    return Work(operations=work.operations * 5 // 2, bytes=2 * work.bytes)


def op_backward_works(works: dict[str, Work]) -> dict[str, Work]:
    """Return the work of the backward of each step; compression and combination are sums, not products of tokens."""
    return {
        name: backward(works[name])
        if name.endswith("attention")
        else Work(operations=2 * works[name].operations, bytes=2 * works[name].bytes)
        for name in WITH_GRADIENT
    }


def whole_backward_work(spec: NSASpec, dtype: str, *, batch: int, queries: int, keys: int) -> Work:
    """Return the operations of all steps' backward, and twice the bytes of the forward's operands."""
    steps = op_backward_works(op_works(spec, dtype, batch=batch, queries=queries, keys=keys))
    operands = dense_work(spec, dtype, batch=batch, queries=queries, keys=keys)
    return Work(operations=sum(w.operations for w in steps.values()), bytes=2 * operands.bytes)


def _stream(dtype: str, visible: Any, sizes: Sizes, dims: dict[str, Any]) -> Work:
    return _work(KernelDesc.of("stream_attention", dtype, visible=visible, **dims), sizes)


def _work(desc: KernelDesc, sizes: Sizes) -> Work:
    return OPS[desc.op].work(desc, sizes)
