"""`stream_attention`: softmax attention over the ranges of an index set, keys streamed tile by tile."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..desc import KernelDesc
from ..index_sets import RangeSet, causal, complete, everything, first, window
from ..pairs import rows_behind
from ..runs import KEYS_PER_TASK, Runs, keys_passed
from ..schedule import CpuSchedule, GpuSchedule
from ..splits import is_split, splits_of
from ..tiling import RowTile, ceil_div, padded
from ..together import most_together, shared_evenly
from .base import Call, Extent, ExtentOf, Launch, OpDef, Sizes, Values, Work, draw, element_bytes, scratch


def make_inputs(desc: KernelDesc, sizes: Sizes, generator: torch.Generator) -> Values:
    """Return random q, k, v and the scalars of a call."""
    group, dk, dv = desc.size("group"), desc.size("dk"), desc.size("dv")
    return {
        "q": draw(generator, desc.dtype, sizes.batch, sizes.tokens, sizes.kv_heads * group, dk),
        "k": draw(generator, desc.dtype, sizes.batch, sizes.keys, sizes.kv_heads, dk),
        "v": draw(generator, desc.dtype, sizes.batch, sizes.keys, sizes.kv_heads, dv),
        "q_start": sizes.q_start,
        "scale": dk**-0.5,
    }


def run_reference(
    desc: KernelDesc, *, q: Tensor, k: Tensor, v: Tensor, q_start: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return out and lse by the eager definition."""
    return reference.stream_attention(q, k, v, desc.streamed, q_start=q_start, scale=scale)


def prepare(
    desc: KernelDesc,
    schedule: CpuSchedule,
    workers: int,
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_start: int,
    scale: float,
    into: tuple[Tensor, Tensor] | None = None,
) -> Launch:
    """Return the launch; `into` are the out and lse to be written, new ones by default."""
    out, lse = into or attention_outputs(q, v)
    found = extent(desc, schedule)(Call.over(workers, q, k, q_start))
    return found.launch({"q": q, "k": k, "v": v, "out": out, "lse": lse, "scale": scale}, (out, lse))


def extent(desc: KernelDesc, schedule: CpuSchedule) -> ExtentOf:
    """Return the extent by sizes: one task per tile of queries, chunk of heads, key/value head and batch row.

    Where one tile holds all queries of a head, a task has some heads `together`. Of the backward: one per run of
    queries, key/value head and batch row, or per `KEYS_PER_TASK` keys.
    """
    if desc.direction == "bwd":
        return run_sums_extent(desc, desc.streamed) if desc.word("part") == "sums" else _runs_extent(desc, schedule)
    tile, most = RowTile.of(desc.size("group"), schedule.query_lanes), most_together(desc, schedule)

    def of(call: Call) -> Extent:
        tiles = call.batch * call.heads * ceil_div(call.tokens, tile.queries) * tile.chunks
        is_one = call.tokens <= tile.queries and tile.chunks == 1
        together = shared_evenly(tiles, most, call.workers) if is_one and tiles else 1
        return Extent(ceil_div(tiles, together), {**call.entry, "together": together}, {})

    return of


def _runs_extent(desc: KernelDesc, schedule: CpuSchedule) -> ExtentOf:
    tile, visible = RowTile.of(desc.size("group"), schedule.query_lanes), desc.streamed

    def of(call: Call) -> Extent:
        runs = runs_of(desc, visible, call)
        passed = keys_passed(
            visible, tokens=call.tokens, keys=call.keys, q_start=call.q_start, queries=tile.queries, run=runs.queries
        )
        passed += rows_behind(desc.dtype)
        sizes = {**call.entry, **sizes_of_runs(runs), "passed": passed, "workers": call.workers}
        scratch = {"kept": 2 * call.workers * passed * tile.lanes}
        return Extent(call.batch * call.heads * runs.count, sizes, scratch)

    return of


def attention_outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return out and lse of an attention, not yet computed."""
    return q.new_empty((*q.shape[:3], v.shape[3])), q.new_empty(q.shape[:3], dtype=torch.float32)


def work(desc: KernelDesc, sizes: Sizes) -> Work:
    """Return the two products' operations, and q, k, v, out and lse once."""
    group, dk, dv = desc.size("group"), desc.size("dk"), desc.size("dv")
    pairs = sum(desc.streamed.count(sizes.q_start + i, sizes.keys) for i in range(sizes.tokens))
    per_head = sizes.tokens * group * (dk + dv) + sizes.keys * (dk + dv)
    rows = sizes.batch * sizes.kv_heads
    return Work(
        operations=2 * rows * group * pairs * (dk + dv),
        bytes=rows * (per_head * element_bytes(desc.dtype) + sizes.tokens * group * 4),
    )


def prepare_backward(
    desc: KernelDesc, schedule: CpuSchedule, workers: int, *, q: Tensor, k: Tensor, v: Tensor, q_start: int, **rest: Any
) -> Launch:
    """Return the launch of one part.

    `runs` gives dq, and what each run of queries adds to dk and dv, from q, k, v, lse, dout and dlse; `sums` gives dk
    and dv from those, and from the shapes of q, k and v.
    """
    found = extent(desc, schedule)(Call.over(workers, q, k, q_start))
    if desc.word("part") == "sums":
        return run_sums(found, k=k, v=v, **rest)
    return run_queries(found, {"q": q, "k": k, "v": v, **rest}, q=q, k=k, v=v)


def run_queries(found: Extent, values: Values, *, q: Tensor, k: Tensor, v: Tensor) -> Launch:
    """Return the launch of runs of queries of an attention by itself, to dq and what each run adds to dk and dv."""
    outputs = (torch.empty_like(q), *run_parts(found, k=k, v=v))
    named = dict(zip(("dq", "parts_k", "parts_v"), outputs, strict=True))
    ungated = {
        "gates": scratch(1).fill_(1),
        "grad_gates": scratch(*q.shape[:3]),
        **gate_of(path=0, paths=1, shared=True),
    }
    return found.launch({**values, **named, **ungated}, outputs)


def gate_of(*, path: int, paths: int, shared: bool) -> dict[str, int]:
    """Return what runs of queries are told of gates, `shared` by all rows or [.., paths]: the first path begins dq."""
    return {"column": path, "paths": paths, "gate_step": 0 if shared else 1}


def runs_of(desc: KernelDesc, visible: RangeSet, call: Call) -> Runs:
    """Return the runs of queries of a part of the backward of an attention: the same if batch rows come one by one."""
    sizes = {"batch": call.rows, "kv_heads": call.heads, "group": call.group, "tokens": call.tokens, "keys": call.keys}
    found = Runs.of_attention(visible, **sizes, q_start=call.q_start, dk=desc.size("dk"), dv=desc.size("dv"))
    return dataclasses.replace(found, reach=found.reach + rows_behind(desc.dtype))


def sizes_of_runs(runs: Runs) -> dict[str, int]:
    """Return what entries are given of runs."""
    return {"runs": runs.count, "reach": runs.reach, "run": runs.queries}


def run_sums_extent(desc: KernelDesc, visible: RangeSet) -> ExtentOf:
    """Return the extent by sizes of what adds up runs: one task per `KEYS_PER_TASK` keys, their head and batch row."""

    def of(call: Call) -> Extent:
        sizes = {**call.entry, **sizes_of_runs(runs_of(desc, visible, call))}
        return Extent(call.batch * call.heads * ceil_div(call.keys, KEYS_PER_TASK), sizes, {})

    return of


def run_parts(found: Extent, *, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return memory for the gradients of keys and values that each run leaves, float32 [B, Hkv, runs, reach, dim]."""
    shape = (k.shape[0], k.shape[2], found.sizes["runs"], found.sizes["reach"])
    return scratch(*shape, padded(k.shape[3])), scratch(*shape, padded(v.shape[3]))


def run_sums(found: Extent, *, k: Tensor, v: Tensor, parts_k: Tensor, parts_v: Tensor, scale: float) -> Launch:
    """Return the launch that adds up what runs left, to dk, times `scale`, and dv."""
    outputs = torch.empty_like(k), torch.empty_like(v)
    parts = {"parts_k": parts_k, "parts_v": parts_v, "grad_k": outputs[0], "grad_v": outputs[1]}
    return found.launch({**parts, "scale": scale}, outputs)


def prepare_gpu(desc: KernelDesc, schedule: GpuSchedule, *, q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Launch:
    """Return the launch of the forward or of one part of the backward; without keys nothing is left to compute."""
    values: Values = {"q": q, "k": k, "v": v, **rest}
    if desc.direction == "bwd" and desc.word("part") == "keys" and is_split(desc.streamed):
        splits = splits_of(tokens=q.shape[1], keys=k.shape[1], group=desc.size("group"))
        values |= shared_parts(splits, k.shape[1], k=k, v=v)
    return attention_launch(desc, values, q=q, k=k, v=v)


def shared_parts(parts: int, rows: int, *, k: Tensor, v: Tensor) -> Values:
    """Return memory for what thread blocks leave of gradients of `rows` keys, float32 [parts, B, rows, Hkv, dim]."""
    shapes = {f"parts_{name}": (parts, x.shape[0], rows, *x.shape[2:]) for name, x in (("k", k), ("v", v))}
    return {name: torch.empty(shape, dtype=torch.float32, device=k.device) for name, shape in shapes.items()}


def attention_launch(desc: KernelDesc, values: Values, *, q: Tensor, k: Tensor, v: Tensor) -> Launch:
    """Return the launch on a GPU of any attention, or of one part of its backward: `values` and its outputs."""
    if desc.direction == "fwd":
        outputs = empty_attention(q, v)
        values |= dict(zip(("out", "lse"), outputs, strict=True))
    elif desc.word("part") == "queries":
        outputs = empty_query_gradients(q, k)
        values |= dict(zip(("dq", "delta"), outputs, strict=True))
    else:
        outputs = empty_key_gradients(q, k, v)
        values |= dict(zip(("grad_k", "grad_v"), outputs, strict=True))
    return Launch(tasks=min(q.numel(), k.numel()), values=values, outputs=outputs)


def empty_attention(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return out and lse of an attention, not yet computed; without keys, as they will stay."""
    out, lse = attention_outputs(q, v)
    return (out, lse) if v.shape[1] else (out.zero_(), lse.fill_(-torch.inf))


def empty_query_gradients(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return dq and delta, not yet computed; without keys, as they will stay."""
    grad_q = torch.empty_like(q)
    delta = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    return (grad_q, delta) if k.shape[1] else (grad_q.zero_(), delta.zero_())


def empty_key_gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return dk and dv, not yet computed; without queries, as they will stay."""
    grads = torch.empty_like(k), torch.empty_like(v)
    return grads if q.shape[1] else (grads[0].zero_(), grads[1].zero_())


_SETS = (causal(), window(7), first(4) | window(9), complete(8, 4), everything())

STREAM_ATTENTION = OpDef(
    name="stream_attention",
    summary="softmax(scale * q . k) v over a union of index ranges; with log-sum-exp",
    inputs={"q": "B T H Dk", "k": "B S Hkv Dk", "v": "B S Hkv Dv"},
    outputs={"out": "B T H Dv", "lse": "B T H"},
    samples=tuple(
        KernelDesc.of("stream_attention", dtype, group=g, dk=dk, dv=dv, visible=visible)
        for visible in _SETS
        for dtype, g, dk, dv in (("float32", 1, 32, 32), ("bfloat16", 3, 80, 64), ("float16", 16, 8, 128))
    ),
    make_inputs=make_inputs,
    reference=run_reference,
    prepare=prepare,
    extent=extent,
    work=work,
    prepare_backward=prepare_backward,
    prepare_gpu=prepare_gpu,
)
