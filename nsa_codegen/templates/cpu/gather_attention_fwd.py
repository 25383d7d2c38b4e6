"""Gathered attention, forward: softmax over the tokens of each query's list of blocks (paper eq. 12, selected path).

One task is a tile of queries of one key/value head. Block by block, the rows (query, head) of those that list it meet
its keys in one product, so that a block is read once for all of them; scores are kept, keys in the lanes, until a row
has all of its own. Blocks are read from packed copies, or, when few queries make packing a whole sequence a waste,
packed one by one, or, where few rows list one, as they are. Products over pairs take packed pairs, and queries
and weights as bfloat16 in rows (`packing`, `tile/pairs.h`).
"""

from typing import Any

import tilelang.language as T

from ...desc import LAYOUTS, PAIRS, PLAIN, KernelDesc
from ...pairs import PAIR_ROWS, in_pairs, members_kept, packed_block
from ...schedule import Schedule
from ...target import Target
from ...tiling import LANE_QUANTUM, RowTile, padded
from .common import (
    NEG_INF,
    STORAGE,
    call,
    decode_task,
    down_row,
    lines_at,
    members_at,
    prelude,
    product,
    rows_at,
    scalar,
    stage_rows,
    up_row,
)
from .few_rows import FEW_ROWS, rows_ahead
from .gathered_pairs import score_members, sum_members
from .lane_step import close_tiles, flip_of, open_tiles
from .packing import HELD, pack_block


def get_gather_attention_fwd_kernel(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the kernel for `desc` (`group`, `dk`, `dv`, `block`, `n`, `reach`, `source`)."""
    dtype, group, dk, dv = desc.dtype, desc.size("group"), desc.size("dk"), desc.size("dv")
    block, n, causal = desc.size("block"), desc.size("n"), desc.word("reach") == "causal"
    storage, packed = STORAGE[dtype], desc.word("source") != PLAIN
    paired = desc.word("source") == PAIRS or (not packed and target.takes_pairs(dtype))
    layouts = LAYOUTS[paired]
    (keys_block, _), (values_block, _) = packed_block(layouts[0], block, dk), packed_block(layouts[1], block, dv)
    held = HELD[paired]
    converted = dtype != "float32"
    tile, width, columns = RowTile.of(group, schedule.query_lanes), padded(block), padded(dv)
    queries, heads, chunks = tile.queries, tile.heads, tile.chunks
    batch, tokens, keys, kv_heads, blocks, workers = (
        T.dynamic(x) for x in ("batch", "tokens", "keys", "kv_heads", "blocks", "workers")
    )
    k_shape = (batch, kv_heads, blocks, *keys_block) if packed else (batch, keys, kv_heads, dk)
    v_shape = (batch, kv_heads, blocks, *values_block) if packed else (batch, keys, kv_heads, dv)
    query_row, behind = in_pairs(dk) // 2 if paired else dk, PAIR_ROWS if paired else 0  # a query in numbers of 4 bytes

    @T.macro
    def load_queries(q, q_up, taken, b, t0, h, chunk, scale):
        for i in T.serial(taken):
            if paired:
                call(
                    "copy_rows",
                    *(T.address_of(q_up[i * heads, 0]), 2 * query_row, T.address_of(q[b, t0 + i, h, chunk * heads, 0])),
                    *(T.int64(dk), T.min(heads, group - chunk * heads), heads, dk, flip_of(scale)),
                )
            else:
                for g in T.serial(heads):
                    if chunk * heads + g < group:
                        up_row(
                            *(dtype, T.address_of(q_up[i * heads + g, 0])),
                            *(T.address_of(q[b, t0 + i, h, chunk * heads + g, 0]), dk),
                        )
                        call("scale_row", T.address_of(q_up[i * heads + g, 0]), scalar("log2_units", scale), dk)
                    else:
                        call("fill", T.address_of(q_up[i * heads + g, 0]), T.float32(0), dk)

    def end_of(t, length, q_start):
        """The end of the keys that query `t` may see."""
        return T.min(length, q_start + t + 1) if causal else length

    def keys_of(k, k_t, b, h, j):
        return T.address_of(k[b, h, j, 0, 0]) if packed else k_t.data

    def values_of(v, v_up, b, h, j):
        return T.address_of(v[b, h, j, 0, 0]) if packed else v_up.data

    def next_block(x, b, h, listed, u, found, elements):
        """What a product asks memory for: the block that the next one reads."""
        if not packed:
            return ()
        return (lines_at(T.address_of(x[b, h, listed[T.min(u + 1, found - 1)], 0, 0]), elements),)

    def unpacked(rows):
        """Whether so many rows meet a block as it is."""
        return False if packed or paired or min(dk, dv) < LANE_QUANTUM else rows <= FEW_ROWS

    def length_of(j):
        """How many keys a block has."""
        return T.min(block, keys - j * block)

    def following(x, b, h, listed, u, found):
        """What few rows ask memory for: the block that the next ones read, or nothing."""
        j = listed[T.min(u + 1, found - 1)]
        return rows_ahead(dtype, x, T.if_then_else(u + 1 < found, length_of(j), 0), b, j * block, h)

    def stage_block(which, x, to, b, h, j):
        """Pack one block."""
        return pack_block(layouts[which], dtype, to.data, x, block, length_of(j), b, j * block, h)

    def kept_of(kept, worker, first):
        """Where the scores and weights of a member are, by its number from `first` on."""
        return lambda x: T.address_of(kept[worker, first + x, 0, 0])

    @T.macro
    def store_outputs(out, lse, o, top, total, taken, b, t0, h, chunk):
        for i in T.serial(taken):
            for g in T.serial(heads):
                if chunk * heads + g < group:
                    down_row(
                        *(dtype, T.address_of(out[b, t0 + i, h, chunk * heads + g, 0])),
                        *(T.address_of(o[i * heads + g, 0]), dv, scalar("inverse", total[i * heads + g])),
                    )
                    lse[b, t0 + i, h, chunk * heads + g] = scalar(
                        "log_sum_exp", top[i * heads + g], total[i * heads + g]
                    )

    @T.prim_func
    def gather_attention(
        q: T.Tensor((batch, tokens, kv_heads, group, dk), storage),
        k: T.Tensor(k_shape, held if packed else storage),
        v: T.Tensor(v_shape, held if packed else storage),
        block_indices: T.Tensor((batch, tokens, kv_heads, n), "int32"),
        out: T.Tensor((batch, tokens, kv_heads, group, dv), storage),
        lse: T.Tensor((batch, tokens, kv_heads, group), "float32"),
        kept: T.Tensor((workers, members_kept(desc, tile), heads, width), "float32"),  # scores, then weights, by member
        marks: T.Tensor((workers, blocks, 2), "int32"),
        length: T.int32,
        q_start: T.int32,
        scale: T.float32,
        worker: T.int32,
        task_lo: T.int32,
        task_hi: T.int32,
    ):
        with T.Kernel(1, prelude=prelude(n, paired=paired)) as _:
            q_up = T.alloc_local(
                (queries * heads + max(behind, padded(dk) // dk), query_row), "uint32" if paired else "float32"
            )
            o = T.alloc_local((queries * heads, columns), "float32")
            rows = T.alloc_local((queries * heads + max(behind, 1), max(padded(query_row), columns)), "float32")
            top = T.alloc_local((queries * heads,), "float32")
            total = T.alloc_local((queries * heads,), "float32")
            limits = T.alloc_local((queries,), "int32")
            counts = T.alloc_local((queries,), "int32")
            listed = T.alloc_local((queries * n,), "int32")
            begins = T.alloc_local((queries * n + 1,), "int32")
            members = T.alloc_local((queries * n,), "int32")
            places = T.alloc_local((queries, n), "int32")
            k_t = T.alloc_local((keys_block[0], 1 if packed else width), held)
            v_up = T.alloc_local((1 if packed else values_block[0], columns), held)
            b, h, t0 = (T.alloc_var("int32") for _ in range(3))
            taken, found, j, first, many, seen = (T.alloc_var("int32") for _ in range(6))
            call("fill_rows", T.address_of(marks[worker, 0, 0]), blocks, 2)
            open_tiles(paired)
            for task in T.serial(task_lo, task_hi):
                b, h, t0, _ = decode_task(task, T.ceildiv(tokens, queries), kv_heads, 1, queries)
                taken = T.min(queries, tokens - t0)
                for i in T.serial(taken):
                    limits[i] = T.ceildiv(end_of(t0 + i, length, q_start), block)
                found = T.call_extern(
                    "int32",
                    "nsa::group_blocks",
                    *(listed.data, begins.data, members.data, places.data, counts.data),
                    *(T.address_of(marks[worker, 0, 0]), T.address_of(block_indices[b, t0, h, 0])),
                    *(T.int64(kv_heads) * n, limits.data, taken, n),
                )
                for chunk in T.serial(chunks):
                    load_queries(q, q_up, taken, b, t0, h, chunk, scale)
                    for u in T.serial(found):
                        j = listed[u]
                        first = begins[u]
                        many = begins[u + 1] - first
                        if unpacked(many * heads):
                            if converted:
                                stage_rows(dtype, k, k_t, length_of(j), b, j * block, h)
                            call(
                                f"score_rows<{dk}>",
                                *(T.address_of(kept[worker, first, 0, 0]), width),
                                *(members_at("member_rows", rows, q_up, heads, members, first, many), many * heads),
                                *(*rows_at(dtype, k, k_t, b, j * block, h)[:2], length_of(j)),
                                following(k, b, h, listed, u, found),
                            )
                        else:
                            if not packed:
                                stage_block(0, k, k_t, b, h, j)
                            if paired:
                                score_members(
                                    *(heads, kept_of(kept, worker, first), q_up, rows, members, first, many),
                                    *(lambda: keys_of(k, k_t, b, h, j), width),
                                )
                            else:
                                call(
                                    product(width, schedule, "ZERO"),
                                    *(T.address_of(kept[worker, first, 0, 0]), width),
                                    *(members_at("member_rows", rows, q_up, heads, members, first, many), dk, 1),
                                    *(keys_of(k, k_t, b, h, j), many * heads, dk, rows.data),
                                    *next_block(k, b, h, listed, u, found, dk * width),
                                )
                        if end_of(t0 + members[first], length, q_start) < j * block + width or block < width:
                            for x in T.serial(many):
                                seen = T.min(block, end_of(t0 + members[first + x], length, q_start) - j * block)
                                for g in T.serial(heads):
                                    for lane in T.serial(seen, width):
                                        kept[worker, first + x, g, lane] = NEG_INF
                    first = 0  # a variable: TileLang takes the stride of what is left for a number of lanes, in 16 bits
                    for i in T.serial(taken):
                        for g in T.serial(heads):
                            call(
                                f"softmax_pieces_pairs<{width}>" if paired else f"softmax_pieces<{width}>",
                                *(T.address_of(kept[worker, first, g, 0]), T.address_of(places[i, 0]), counts[i]),
                                *(T.int64(heads * width), *((scalar("pair_units", scale),) if paired else ())),
                                *(T.address_of(top[i * heads + g]), T.address_of(total[i * heads + g])),
                            )
                    call("fill_rows", o.data, taken * heads, columns)
                    for u in T.serial(found):
                        j = listed[u]
                        first = begins[u]
                        many = begins[u + 1] - first
                        seen = T.min(block, end_of(t0 + members[first + many - 1], length, q_start) - j * block)
                        if unpacked(many * heads):
                            if converted:
                                stage_rows(dtype, v, v_up, seen, b, j * block, h)
                            call(
                                f"weigh_rows<{dv}>",
                                *(members_at("member_sums", rows, o, heads, members, first, many), columns),
                                *(T.address_of(kept[worker, first, 0, 0]), width, many * heads),
                                *(*rows_at(dtype, v, v_up, b, j * block, h)[:2], seen),
                                following(v, b, h, listed, u, found),
                            )
                        else:
                            if not packed:
                                stage_block(1, v, v_up, b, h, j)
                            if paired:
                                sum_members(
                                    *(heads, o, rows, kept_of(kept, worker, first), 2 * width),
                                    *(members, first, many, lambda: values_of(v, v_up, b, h, j), seen),
                                )
                            else:
                                call(
                                    product(columns, schedule, "SUM"),
                                    *(members_at("member_sums", rows, o, heads, members, first, many), columns),
                                    *(T.address_of(kept[worker, first, 0, 0]), width, 1),
                                    *(values_of(v, v_up, b, h, j), many * heads, seen, rows.data),
                                    *next_block(v, b, h, listed, u, found, block * columns),
                                )
                        if not paired:
                            call("add_spare", o.data, rows.data, T.address_of(members[first]), many, heads * columns)
                    store_outputs(out, lse, o, top, total, taken, b, t0, h, chunk)
            close_tiles(paired)

    return gather_attention
