"""`gather_attention`: softmax attention over the tokens of each query's list of blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..desc import PLAIN, KernelDesc
from ..needed import pack_descs
from ..pairs import members_kept
from ..runs import SUMS_SCALE, reach_of
from ..schedule import CpuSchedule, GpuSchedule
from ..splits import most_pieces, piece_of
from ..tiling import BlockTile, RowTile, ceil_div, padded
from .base import Call, Extent, ExtentOf, Launch, OpDef, Sizes, Values, Work, draw, element_bytes
from .pack_blocks import run_reference as pack
from .stream_attention import (
    attention_launch,
    attention_outputs,
    run_queries,
    run_sums,
    run_sums_extent,
    runs_of,
    shared_parts,
    sizes_of_runs,
)


def make_inputs(desc: KernelDesc, sizes: Sizes, generator: torch.Generator) -> Values:
    """Return random q, k, v and lists with -1, duplicates and blocks beyond the query among them."""
    group, dk, dv, block = desc.size("group"), desc.size("dk"), desc.size("dv"), desc.size("block")
    blocks = ceil_div(sizes.keys, block)
    shape = (sizes.batch, sizes.tokens, sizes.kv_heads, desc.size("n"))
    return {
        "q": draw(generator, desc.dtype, sizes.batch, sizes.tokens, sizes.kv_heads * group, dk),
        "k": draw(generator, desc.dtype, sizes.batch, sizes.keys, sizes.kv_heads, dk),
        "v": draw(generator, desc.dtype, sizes.batch, sizes.keys, sizes.kv_heads, dv),
        "block_indices": torch.randint(-1, blocks, shape, generator=generator, dtype=torch.int32),
        "q_start": sizes.q_start,
        "scale": dk**-0.5,
    }


def run_reference(
    desc: KernelDesc, *, q: Tensor, k: Tensor, v: Tensor, block_indices: Tensor, q_start: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return out and lse by the eager definition."""
    return reference.gather_attention(
        q,
        k,
        v,
        block_indices,
        block_size=desc.size("block"),
        causal=desc.word("reach") == "causal",
        q_start=q_start,
        scale=scale,
    )


def prepare(
    desc: KernelDesc,
    schedule: CpuSchedule,
    workers: int,
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_indices: Tensor,
    q_start: int,
    scale: float,
    packed: tuple[Tensor, Tensor] | None = None,
    into: tuple[Tensor, Tensor] | None = None,
) -> Launch:
    """Return the launch; `packed` holds what the descs of `pack_descs` made of k and v.

    `into` are the out and lse to be written, new ones by default. A desc whose source is not plain and that gets no
    `packed` packs by the eager definition, for tests.
    """
    out, lse = into or attention_outputs(q, v)
    found = extent(desc, schedule)(Call.over(workers, q, k, q_start))
    if desc.word("source") != PLAIN:
        if packed is None:
            by_keys, by_values = pack_descs(desc)
            packed = (pack(by_keys, x=k)[0], pack(by_values, x=v)[0])
        k, v = packed
    values = {"q": q, "k": k, "v": v, "block_indices": block_indices, "out": out, "lse": lse, "scale": scale}
    return found.launch(values, (out, lse))


def extent(desc: KernelDesc, schedule: CpuSchedule) -> ExtentOf:
    """Return the extent by sizes: one task per tile of queries, key/value head and batch row.

    Of the backward: one per run of queries, key/value head and batch row, or per `KEYS_PER_TASK` keys.
    """
    backward = desc.direction == "bwd"
    if backward and desc.word("part") == "sums":
        return run_sums_extent(desc, reach_of(desc))
    block, tile = desc.size("block"), RowTile.of(desc.size("group"), schedule.query_lanes)
    kept = kept_scores(desc, tile)

    def of(call: Call) -> Extent:
        workers, blocks = call.workers, ceil_div(call.keys, block)
        sizes = {**call.entry, "length": call.keys, "blocks": blocks, "workers": workers}
        scratch = {"kept": (2 if backward else 1) * workers * kept, "marks": 2 * workers * blocks}
        tasks = ceil_div(call.tokens, tile.queries)
        if backward:
            runs = runs_of(desc, reach_of(desc), call)
            sizes, tasks = {**sizes, **sizes_of_runs(runs)}, runs.count
        return Extent(call.batch * call.heads * tasks, sizes, scratch)

    return of


def kept_scores(desc: KernelDesc, tile: RowTile) -> int:
    """Return how many scores of its lists a tile of queries keeps at most, blocks padded to whole vectors."""
    return members_kept(desc, tile) * tile.heads * padded(desc.size("block"))


LOOKAHEAD = 128  # entries after the last of a row that a tile may read, and not use


def inverse_lists(
    block_indices: Tensor, *, block: int, blocks: int, q_start: int, causal: bool, lookahead: int = 0
) -> tuple[Tensor, Tensor]:
    """Return for each block the queries that list it, `starts` and `listing`.

    `starts` is int64 [B, Hkv, blocks, 2], begin and end in the row of `listing`, int32 [B, Hkv, T * n + lookahead],
    which ascends per block. The lists `[B, T, Hkv, n]` may hold anything; what adds nothing is left out. No values
    reach the host, so nothing waits for a GPU.
    """
    batch, _, kv_heads, n = block_indices.shape
    device = block_indices.device
    lists = block_indices.transpose(1, 2).sort(dim=-1).values.long()
    valid = _adds(lists, block=block, blocks=blocks, q_start=q_start, causal=causal)
    valid[..., 1:] &= lists[..., 1:] != lists[..., :-1]
    key = torch.where(valid, lists, blocks).flatten(2)
    order = torch.argsort(key, dim=-1, stable=True)
    counts = torch.zeros((batch, kv_heads, blocks + 1), dtype=torch.int64, device=device)
    counts = counts.scatter_add_(-1, key, torch.ones_like(key))[..., :-1]
    ends = counts.cumsum(-1)
    listing = torch.nn.functional.pad(order // max(n, 1), (0, lookahead)).to(torch.int32)
    return torch.stack([ends - counts, ends], dim=-1), listing


def list_pieces(starts: Tensor, *, piece: int, slots: int) -> tuple[Tensor, Tensor]:
    """Return what thread blocks take of `starts`, as `inverse_lists` gives them, and which pieces are a block's.

    The first, int32 [B, Hkv, slots + blocks, 3], has a block, begin and end each: first the pieces of lists longer than
    `piece`, of which there are `slots` at most, so that what takes longest begins; then the whole list of every block,
    empty if it is cut. The second, int32 [B, Hkv, blocks, 2], has each block's first piece and their number. No values
    reach the host.
    """
    (begins, ends), blocks = starts.unbind(-1), starts.shape[2]
    counts = ends - begins
    many = torch.where(counts > piece, (counts + piece - 1) // piece, 0)
    past = many.cumsum(-1)
    firsts = past - many
    own = torch.arange(blocks, device=starts.device).expand_as(begins)
    whole = torch.stack([own, begins, torch.where(many > 0, begins, ends)], dim=-1)
    slot = torch.arange(slots, device=starts.device).expand(*begins.shape[:2], slots).contiguous()
    block = torch.searchsorted(past, slot, right=True)
    used, block = block < blocks, block.clamp(max=blocks - 1)
    begin = begins.gather(-1, block) + (slot - firsts.gather(-1, block)) * piece
    end = torch.minimum(begin + piece, ends.gather(-1, block))
    cut = torch.stack([block, torch.where(used, begin, 0), torch.where(used, end, 0)], dim=-1)
    return torch.cat([cut, whole], dim=2).to(torch.int32), torch.stack([firsts, many], dim=-1).to(torch.int32)


def _adds(lists: Tensor, *, block: int, blocks: int, q_start: int, causal: bool) -> Tensor:
    """Return whether the entries of lists [B, Hkv, T, n] stand for blocks that their queries see something of."""
    valid = (lists >= 0) & (lists < blocks)
    if causal:
        position = torch.arange(q_start, q_start + lists.shape[2], device=lists.device)
        valid &= lists * block <= position[:, None]
    return valid


def tile_lists(
    block_indices: Tensor, tile: BlockTile, *, queries: int, block: int, blocks: int, q_start: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each tile of `queries` queries the blocks that some of them list: `steps`, `listing`, `members`.

    All int32: `steps` [B, Hkv, tiles] counts, `listing` [.., capacity] ascends, and bit i of `members` [.., capacity]
    is set if query i of the tile lists the block. The lists `[B, T, Hkv, n]` may hold anything; what adds nothing is
    left out. No values reach the host, so nothing waits for a GPU.
    """
    batch, tokens, kv_heads, n = block_indices.shape
    device, tiles = block_indices.device, ceil_div(tokens, queries)
    lists = block_indices.transpose(1, 2).long()
    valid = _adds(lists, block=block, blocks=blocks, q_start=q_start, causal=causal)
    lists = torch.where(valid, lists, blocks)
    lists = torch.nn.functional.pad(lists, (0, 0, 0, tiles * queries - tokens), value=blocks)
    values, order = lists.reshape(batch, kv_heads, tiles, queries * n).sort(dim=-1, stable=True)
    query = order // n
    listed = values < blocks
    first = listed.clone()
    first[..., 1:] &= values[..., 1:] != values[..., :-1]
    again = torch.zeros_like(listed)  # the same query lists the block once more
    again[..., 1:] = (values[..., 1:] == values[..., :-1]) & (query[..., 1:] == query[..., :-1])
    slot = torch.where(listed, first.cumsum(-1) - 1, tile.capacity)  # what is not listed goes to a column of its own
    shape = (batch, kv_heads, tiles, tile.capacity + 1)
    listing = torch.zeros(shape, dtype=torch.int64, device=device).scatter_(-1, slot, values)
    bits = torch.where(again, 0, 1 << query)
    members = torch.zeros(shape, dtype=torch.int64, device=device).scatter_add_(-1, slot, bits)
    kept = (first.sum(-1), listing[..., :-1], members[..., :-1])
    steps, listing, members = (x.to(torch.int32).contiguous() for x in kept)
    return steps, listing, members


def prepare_backward(
    desc: KernelDesc,
    schedule: CpuSchedule,
    workers: int,
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_start: int,
    scale: float,
    **rest: Any,
) -> Launch:
    """Return the launch of one part.

    `runs` gives dq, and what each run of queries adds to dk and dv, from packed blocks, lists, lse, dout and dlse;
    `sums` gives dk and dv from those, and from the shapes of q, k and v.
    """
    found = extent(desc, schedule)(Call.over(workers, q, k, q_start))
    if desc.word("part") == "sums":
        return run_sums(found, k=k, v=v, scale=SUMS_SCALE, **rest)
    return run_queries(found, {"q": q, "scale": scale, **rest}, q=q, k=k, v=v)


def prepare_gpu(
    desc: KernelDesc,
    schedule: GpuSchedule,
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_indices: Tensor,
    q_start: int,
    **rest: Any,
) -> Launch:
    """Return the launch of the forward or of one part of the backward, with the lists as its loops read them."""
    block, causal = desc.size("block"), desc.word("reach") == "causal"
    blocks = ceil_div(k.shape[1], block)
    values: Values = {"q": q, "k": k, "v": v, "q_start": q_start, **rest}
    if desc.direction == "fwd" or desc.word("part") == "queries":
        queries = RowTile.of(desc.size("group"), schedule.rows).queries
        tile = BlockTile.of(desc, queries, schedule.key_tile)
        lists = tile_lists(
            block_indices, tile, queries=queries, block=block, blocks=blocks, q_start=q_start, causal=causal
        )
        values.update(zip(("steps", "listing", "members"), lists, strict=True))
    else:
        starts, values["listing"] = inverse_lists(
            block_indices, block=block, blocks=blocks, q_start=q_start, causal=causal, lookahead=LOOKAHEAD
        )
        tokens, n = q.shape[1], block_indices.shape[3]
        piece = piece_of(listed=n, block=block, group=desc.size("group"))
        slots = max(1, most_pieces(tokens=tokens, listed=n, piece=piece)) if blocks else 0
        values["pieces"], values["shared"] = list_pieces(starts, piece=piece, slots=slots)
        values |= shared_parts(slots, block, k=k, v=v)
    return attention_launch(desc, values, q=q, k=k, v=v)


def work(desc: KernelDesc, sizes: Sizes) -> Work:
    """Return the two products' operations with every slot filled, and all operands once."""
    group, dk, dv = desc.size("group"), desc.size("dk"), desc.size("dv")
    chosen, rows = desc.size("n") * desc.size("block"), sizes.batch * sizes.kv_heads
    pairs = sum(min(chosen, sizes.q_start + i + 1) for i in range(sizes.tokens))
    moved = (sizes.tokens * group + sizes.keys) * (dk + dv) * element_bytes(desc.dtype)
    listed = sizes.tokens * (4 * desc.size("n") + 4 * group)
    return Work(operations=2 * rows * group * pairs * (dk + dv), bytes=rows * (moved + listed))


GATHER_ATTENTION = OpDef(
    name="gather_attention",
    summary="softmax attention over listed key blocks, shared by the heads of a group; with log-sum-exp",
    inputs={"q": "B T H Dk", "k": "B S Hkv Dk", "v": "B S Hkv Dv", "block_indices": "B T Hkv n"},
    outputs={"out": "B T H Dv", "lse": "B T H"},
    samples=tuple(
        KernelDesc.of("gather_attention", dtype, reach=reach, source=source, group=g, dk=dk, dv=dv, block=block, n=n)
        for source in ("packed", "plain")
        for reach, dtype, g, dk, dv, block, n in (
            ("causal", "float32", 1, 32, 32, 16, 4),
            ("causal", "bfloat16", 3, 80, 64, 5, 7),
            ("all", "float16", 16, 8, 128, 64, 2),
        )
    )
    + tuple(
        KernelDesc.of(
            "gather_attention", "bfloat16", reach=reach, source="pairs", group=g, dk=dk, dv=dv, block=block, n=n
        )
        for reach, g, dk, dv, block, n in (("causal", 3, 80, 50, 5, 7), ("all", 16, 64, 64, 64, 3))
    ),
    make_inputs=make_inputs,
    reference=run_reference,
    prepare=prepare,
    extent=extent,
    work=work,
    prepare_backward=prepare_backward,
    prepare_gpu=prepare_gpu,
)
