"""`scored_attention`: attention over compressed tokens, and the lists of blocks that its own weights make."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..desc import KernelDesc
from ..needed import attention_of
from ..program import Phi
from ..schedule import CpuSchedule
from . import select_blocks, stream_attention
from .base import Launch, OpDef, Sizes, Values, Work, draw, element_bytes


def make_inputs(desc: KernelDesc, sizes: Sizes, generator: torch.Generator) -> Values:
    """Return random q, and compressed keys and values."""
    values = select_blocks.make_inputs(desc, sizes, generator)
    shape = (*values["k"].shape[:3], desc.size("dv"))
    return {**values, "v": draw(generator, desc.dtype, *shape)}


def run_reference(desc: KernelDesc, *, v: Tensor, **arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, lse and indices by the eager definitions of the attention and of the selection."""
    attended = stream_attention.run_reference(attention_of(desc), v=v, **arguments)
    return *attended, *select_blocks.run_reference(desc, **arguments)


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
    """Return the launch of a selection with v; `into` are the out and lse to be written, new ones by default."""
    selected = select_blocks.prepare(desc, schedule, workers, q=q, k=k, q_start=q_start, scale=scale)
    out, lse = into or stream_attention.attention_outputs(q, v)
    values = {**selected.values, "v": v, "out": out, "lse": lse}
    return Launch(tasks=selected.tasks, values=values, outputs=(out, lse, *selected.outputs))


def work(desc: KernelDesc, sizes: Sizes) -> Work:
    """Return the two products' operations, and q, k, v, out, lse and the indices once."""
    length = Phi(kernel=desc.size("kernel"), stride=desc.size("stride")).length(sizes.keys)
    attended = stream_attention.work(attention_of(desc), dataclasses.replace(sizes, keys=length))
    listed = sizes.batch * sizes.kv_heads * sizes.tokens * desc.size("n") * element_bytes("int32")
    return Work(operations=attended.operations, bytes=attended.bytes + listed)


def _sample(dtype: str, **dims: Any) -> KernelDesc:
    return KernelDesc.of("scored_attention", dtype, method="compressed", **dims)


SCORED_ATTENTION = OpDef(
    name="scored_attention",
    summary="attention over compressed tokens, with the top-n blocks under its own weights: one product for both",
    inputs={"q": "B T H Dk", "k": "B N Hkv Dk", "v": "B N Hkv Dv"},
    outputs={"out": "B T H Dv", "lse": "B T H", "indices": "B T Hkv n"},
    samples=(
        _sample("float32", group=1, dk=32, dv=48, block=8, n=4, initial=1, local=2, kernel=8, stride=4),
        _sample("float16", group=3, dk=16, dv=80, block=8, n=3, initial=0, local=1, kernel=16, stride=4),
        _sample("bfloat16", group=16, dk=80, dv=64, block=4, n=5, initial=2, local=1, kernel=4, stride=4),
    ),
    make_inputs=make_inputs,
    reference=run_reference,
    prepare=prepare,
    extent=select_blocks.extent,
    work=work,
)
