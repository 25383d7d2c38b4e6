"""`select_blocks`: scores of key blocks and the list of the best `n` per query and group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..desc import KernelDesc, takes_lse
from ..index_sets import complete
from ..program import Phi
from ..schedule import CpuSchedule, GpuSchedule
from ..tiling import RowTile, ScoreTile, ceil_div
from .base import Call, Extent, ExtentOf, Launch, OpDef, Sizes, Values, Work, draw, element_bytes


def make_inputs(desc: KernelDesc, sizes: Sizes, generator: torch.Generator) -> Values:
    """Return random q and k: compressed tokens, or for `mean_key` the float32 means of the complete blocks.

    Where the desc takes it, `lse` is that of the attention over them.
    """
    group, dk = desc.size("group"), desc.size("dk")
    mean_key = desc.word("method") == "mean_key"
    if mean_key:
        length = sizes.keys // desc.size("block")
    else:
        length = Phi(kernel=desc.size("kernel"), stride=desc.size("stride")).length(sizes.keys)
    values: Values = {
        "q": draw(generator, desc.dtype, sizes.batch, sizes.tokens, sizes.kv_heads * group, dk),
        "k": draw(generator, "float32" if mean_key else desc.dtype, sizes.batch, length, sizes.kv_heads, dk),
        "q_start": sizes.q_start,
        "scale": dk**-0.5,
    }
    if takes_lse(desc):
        visible = complete(desc.size("kernel"), desc.size("stride"))
        _, lse = reference.stream_attention(v=values["k"], visible=visible, **values)
        values["lse"] = lse.contiguous()
    return values


def run_reference(
    desc: KernelDesc, *, q: Tensor, k: Tensor, q_start: int, scale: float, lse: Tensor | None = None
) -> tuple[Tensor]:
    """Return the indices by the eager definition, whatever `lse` is; block means stand for blocks of one key each."""
    if desc.word("method") == "mean_key":  # a block of equal keys has them as its mean
        k = k.repeat_interleave(desc.size("block"), dim=1)
        tail = q_start + q.shape[1] - k.shape[1]
        k = torch.cat([k, k.new_zeros((k.shape[0], max(0, tail), *k.shape[2:]))], dim=1)
        windows: dict[str, int] = {}
    else:
        windows = {"kernel": desc.size("kernel"), "stride": desc.size("stride")}
    indices = reference.select_blocks(
        q,
        k,
        method=desc.word("method"),
        block_size=desc.size("block"),
        num_selected=desc.size("n"),
        num_initial=desc.size("initial"),
        num_local=desc.size("local"),
        scale=scale,
        q_start=q_start,
        **windows,
    )
    return (indices,)


def prepare(
    desc: KernelDesc, schedule: CpuSchedule, workers: int, *, q: Tensor, k: Tensor, q_start: int, scale: float
) -> Launch:
    """Return the launch."""
    indices = q.new_empty((*q.shape[:2], k.shape[2], desc.size("n")), dtype=torch.int32)
    found = extent(desc, schedule)(Call.over(workers, q, k, q_start))
    return found.launch({"q": q, "k": k, "indices": indices, "scale": scale}, (indices,))


def extent(desc: KernelDesc, schedule: CpuSchedule) -> ExtentOf:
    """Return the extent by sizes: one task per tile of queries; working memory is O(blocks) per worker."""
    by_means, block = desc.word("method") == "mean_key", desc.size("block")
    queries = schedule.query_lanes
    if not by_means:
        tile, scored = RowTile.of(desc.size("group"), schedule.query_lanes), ScoreTile.of(desc, schedule)
        queries = tile.queries

    def of(call: Call) -> Extent:
        workers, batch, tokens, keys, kv_heads, q_start, *_ = call
        blocks = ceil_div(q_start + tokens, block)
        sizes = {**call.entry, "blocks": blocks}
        scratch = {"scores": workers * queries * blocks}
        if not by_means:
            steps = max(1, ceil_div(keys, scored.tokens))
            sizes["steps"] = steps
            scratch |= {"sums": workers * steps * scored.spilled * tile.lanes, "tops": workers * steps * tile.lanes}
        return Extent(batch * kv_heads * ceil_div(tokens, queries), sizes, scratch)

    return of


def prepare_gpu(
    desc: KernelDesc,
    schedule: GpuSchedule,
    *,
    q: Tensor,
    k: Tensor,
    q_start: int,
    scale: float,
    lse: Tensor | None = None,
) -> Launch:
    """Return the launch, with the `lse` of the attention over k where the desc takes it; it takes no working memory.

    Without tokens to score, one of zeros stands for them: all blocks are then alike, but for the first, which ties
    are resolved to anyway.
    """
    batch, tokens, _, dim = q.shape
    if not k.shape[1]:
        k = k.new_zeros((batch, 1, k.shape[2], dim))
    shape = (batch, tokens, k.shape[2], desc.size("n"))
    indices = torch.empty(shape, dtype=torch.int32, device=q.device)
    values: Values = {"q": q, "k": k, "lse": lse, "indices": indices, "q_start": q_start, "scale": scale}
    return Launch(tasks=indices.numel(), values=values, outputs=(indices,))


def work(desc: KernelDesc, sizes: Sizes) -> Work:
    """Return the score product's operations, and q, k and the indices once."""
    group, dk = desc.size("group"), desc.size("dk")
    positions = range(sizes.q_start, sizes.q_start + sizes.tokens)
    if desc.word("method") == "mean_key":
        length, rows = sizes.keys // desc.size("block"), 1
        pairs = sum(t // desc.size("block") for t in positions)
    else:
        phi = Phi(kernel=desc.size("kernel"), stride=desc.size("stride"))
        length, rows = phi.length(sizes.keys), group
        pairs = sum(complete(phi.kernel, phi.stride).count(t, length) for t in positions)
    heads = sizes.batch * sizes.kv_heads
    moved = (sizes.tokens * group + length) * dk * element_bytes(desc.dtype) + sizes.tokens * desc.size("n") * 4
    return Work(operations=2 * heads * rows * pairs * dk, bytes=heads * moved)


def _compressed(dtype: str, **dims: Any) -> KernelDesc:
    return KernelDesc.of("select_blocks", dtype, method="compressed", **dims)


def _mean_key(dtype: str, **dims: Any) -> KernelDesc:
    return KernelDesc.of("select_blocks", dtype, method="mean_key", **dims)


SELECT_BLOCKS = OpDef(
    name="select_blocks",
    summary="top-n blocks per query and group under mean-key or compressed-softmax scores, forced blocks first",
    inputs={"q": "B T H Dk", "k": "B N Hkv Dk"},
    outputs={"indices": "B T Hkv n"},
    samples=(
        _compressed("float32", group=1, dk=32, block=8, n=4, initial=1, local=2, kernel=8, stride=4),
        _compressed("float32", group=3, dk=16, block=8, n=3, initial=0, local=1, kernel=16, stride=4),
        _compressed("bfloat16", group=16, dk=80, block=4, n=5, initial=2, local=1, kernel=4, stride=4),
        _mean_key("float32", group=2, dk=32, block=16, n=3, initial=0, local=1),
        _mean_key("float16", group=1, dk=64, block=5, n=4, initial=1, local=2),
    ),
    make_inputs=make_inputs,
    reference=run_reference,
    prepare=prepare,
    extent=extent,
    prepare_gpu=prepare_gpu,
    work=work,
)
