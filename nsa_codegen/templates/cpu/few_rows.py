"""What CPU kernels share where rows of queries are too few for the lanes: keys lie there, then dims (`tile/few.h`)."""

from typing import Any

import tilelang.language as T

from ...target import CpuTarget, Target
from ...tiling import padded
from .common import (
    ELEMENT,
    NEG_INF,
    bound_at,
    call,
    down_row,
    load_bounds,
    position_stride,
    rows_at,
    scalar,
    stage_rows,
    store_sums,
    up_row,
)

FEW_ROWS = 4  # for which keys and dims are laid in lanes; more rows are laid there themselves, which takes less time


def is_one_vector(lanes: int, target: Target) -> bool:
    """Return whether `lanes` lanes are one vector of `target`, as those of calls of few queries are."""
    return isinstance(target, CpuTarget) and lanes == target.lanes


def in_lanes(by_query: bool, lanes: int, filled: Any) -> Any:
    """Return whether the `filled` rows of a tile lie in its lanes; with `by_query` only if they are many."""
    return T.Not(are_few(lanes, filled)) if by_query else True


def are_few(lanes: int, filled: Any) -> Any:
    """Return whether `filled` rows are few of `lanes` lanes."""
    return filled <= min(lanes // 2, FEW_ROWS)


def rows_ahead(dtype: str, x: Any, rows: Any, *index: Any) -> Any:
    """Return the argument that has primitives of few rows ask for `rows` positions of a head of `x` from `index` on."""
    name = f"nsa::rows_ahead<{ELEMENT[dtype]}>"
    return T.call_extern("handle", name, T.address_of(x[(*index, 0)]), position_stride(x), rows)


@T.macro
def load_rows(dtype, q_r, at, q, tile, filled, scale, b, t0, h, chunk):
    """Lay a tile's queries side by side in q_r from row `at` on, times what makes scores of them in log2 units."""
    for r in T.serial(filled):
        up_row(
            *(dtype, T.address_of(q_r[at + r, 0])),
            T.address_of(q[b, t0 + T.truncdiv(r, tile.heads), h, chunk * tile.heads + T.truncmod(r, tile.heads), 0]),
            q.shape[-1],
        )
    call("scale_row", T.address_of(q_r[at, 0]), scalar("log2_units", scale), filled * q.shape[-1])


def attend_rows(
    dtype: str, sums: tuple[Any, Any, Any], s: Any, q: Any, at: Any, filled: Any, keys: Any, values: Any, lo: Any,
    hi: Any, b: Any, j0: Any, h: Any, rows: Any, following: Any,
) -> Any:  # fmt: skip
    """Return the call that takes `filled` rows of `q`, from `at` on, over `rows` keys from j0 on: a step of a softmax.

    It adds to these rows of `sums`, outputs, maxima and sums, and leaves the weights in `s`, [rows, keys]. `keys` and
    `values` are a tensor and its float32 copy each, of which `following` positions are read next; lo and hi
    [ranges, ..] bound what rows see.
    """
    (o, top, total), (k, k_up), (v, v_up), (ranges, wide) = sums, keys, values, lo.shape
    return call(
        f"attend_few<{s.shape[-1]}, {wide}, {ranges}, {k.shape[-1]}, {v.shape[-1]}, {ELEMENT[dtype]}>",
        *(T.address_of(x) for x in (o[at, 0], top[at], total[at], s[0, 0], q[at, 0])),
        filled,
        *rows_at(dtype, k, k_up, b, j0, h)[:2],
        *rows_at(dtype, v, v_up, b, j0, h)[:2],
        *(j0, rows, lo.data, hi.data),
        rows_ahead(dtype, k, following, b, j0 + rows, h),
        rows_ahead(dtype, v, following, b, j0 + rows, h),
    )


@T.macro
def store_rows(dtype, out, o, at, factors, tile, filled, b, t0, h, chunk):
    """Write a tile's rows of outputs, rows of `o` from `at` on, times their factors."""
    for r in T.serial(filled):
        down_row(
            dtype,
            T.address_of(out[b, t0 + T.truncdiv(r, tile.heads), h, chunk * tile.heads + T.truncmod(r, tile.heads), 0]),
            *(T.address_of(o[at + r, 0]), o.shape[-1], factors[at + r]),
        )


@T.macro
def attend_heads(dtype, ranges, tile, step, most, q, k, v, out, lse, q_start, scale, together, task_lo, task_hi):
    """Streamed attention of few rows each: the heads of a task, `most` or fewer, pass over their keys together.

    Heads of a position lie side by side in memory, one head of many positions far apart.
    """
    batch, tokens, kv_heads, _, dk = q.shape
    keys, dv, staged = k.shape[1], v.shape[-1], step if dtype != "float32" else 1
    q_r = T.alloc_local((most * FEW_ROWS, dk), "float32")
    s = T.alloc_local((FEW_ROWS, padded(step)), "float32")
    o = T.alloc_local((most * FEW_ROWS, dv), "float32")
    top = T.alloc_local((most * FEW_ROWS,), "float32")
    total = T.alloc_local((most * FEW_ROWS,), "float32")
    lo = T.alloc_local((len(ranges), FEW_ROWS), "int32")
    hi = T.alloc_local((len(ranges), FEW_ROWS), "int32")
    k_up = T.alloc_local((staged, dk), "float32")
    v_up = T.alloc_local((staged, dv), "float32")
    b, h = (T.alloc_local((most,), "int32") for _ in range(2))
    first, many, filled, begin, end, j0, rows = (T.alloc_var("int32") for _ in range(7))
    filled = tokens * tile.heads
    load_bounds(lo, hi, ranges, filled, 0, q_start, tile.heads, keys)
    for task in T.serial(task_lo, task_hi):
        first = task * together
        many = T.min(together, batch * kv_heads - first)
        call("fill", top.data, NEG_INF, most * FEW_ROWS)
        call("fill", total.data, T.float32(0), most * FEW_ROWS)
        call("fill_rows", o.data, many * FEW_ROWS, dv)
        for x in T.serial(many):
            b[x] = T.truncdiv(first + x, kv_heads)
            h[x] = T.truncmod(first + x, kv_heads)
            load_rows(dtype, q_r, x * FEW_ROWS, q, tile, filled, scale, b[x], 0, h[x], 0)
        end = 0
        for span in ranges:
            begin = T.max(end, bound_at(span.lo, q_start, keys))
            end = T.max(begin, bound_at(span.hi, q_start + tokens - 1, keys))
            for i in T.serial(T.ceildiv(end - begin, step)):
                j0 = begin + i * step
                rows = T.min(step, end - j0)
                for x in T.serial(many):
                    if dtype != "float32":
                        stage_rows(dtype, k, k_up, rows, b[x], j0, h[x])
                        stage_rows(dtype, v, v_up, rows, b[x], j0, h[x])
                    attend_rows(
                        *(dtype, (o, top, total), s, q_r, x * FEW_ROWS, filled, (k, k_up), (v, v_up), lo, hi),
                        *(b[x], j0, h[x], rows, T.min(step, end - j0 - rows)),
                    )
        for x in T.serial(many):
            store_sums(lse, top, total, x * FEW_ROWS, tile, filled, b[x], 0, h[x], 0)
            store_rows(dtype, out, o, x * FEW_ROWS, total, tile, filled, b[x], 0, h[x], 0)
