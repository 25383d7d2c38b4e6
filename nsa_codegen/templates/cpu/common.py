"""What every CPU kernel shares: the prelude, storage types, the tile of (query, head) rows, and task decoding."""

from pathlib import Path
from typing import Any

import tilelang.language as T

from ...desc import KernelDesc
from ...index_sets import Bound
from ...schedule import Schedule

NEG_INF = T.float32(float("-inf"))

# bfloat16 is refused by TileLang's C target, and its float16 goes through a slow software class: both are
# carried as their bits.
STORAGE = {"float32": "float32", "bfloat16": "uint16", "float16": "uint16"}
ELEMENT = {"float32": "nsa::f32", "bfloat16": "nsa::bf16", "float16": "nsa::f16"}

FEW_LANES = 16  # a tile of so few reads more of its keys than of its queries
# The primitives, each of which may call those before it.
TILE = ("vectors", "elements", "product", "softmax", "lanes", "few", "blocks")
PAIRS = ("pairs", "pair_softmax")  # those of products over pairs


def prelude(max_selected: int = 1, *, paired: bool = False) -> str:
    """Return the C++ text under a kernel; `max_selected` bounds the block lists that it handles.

    A `paired` one has its products made over pairs.
    """
    names = (*TILE, *PAIRS) if paired else TILE
    texts = (Path(__file__).with_name("tile").joinpath(f"{name}.h").read_text() for name in names)
    return f"#define NSA_MAX_SELECTED {max_selected}\n" + "\n".join(texts)


def up(dtype: str, value: Any) -> Any:
    """Return a stored element as float32."""
    return value if dtype == "float32" else T.call_extern("float32", f"{ELEMENT[dtype]}::up", value)


def down(dtype: str, value: Any) -> Any:
    """Return a float32 as it is stored."""
    return value if dtype == "float32" else T.call_extern("uint16", f"{ELEMENT[dtype]}::down", value)


def call(name: str, *arguments: Any) -> Any:
    """Return a call of a primitive of `tile/` that yields nothing."""
    return T.call_extern("handle", f"nsa::{name}", *arguments)


def scalar(name: str, *arguments: Any) -> Any:
    """Return a call of a primitive of `tile/` that yields a float32."""
    return T.call_extern("float32", f"nsa::{name}", *arguments)


def rows_at(dtype: str, x: Any, staged: Any, *index: Any) -> tuple[Any, Any, Any]:
    """Return address, row stride and column stride of a float32 matrix with one row per position.

    It is `x` from `index` (batch row, position, head, ...) on, or its copy `staged` where `x` has to be converted.
    """
    if dtype != "float32":
        return staged.data, x.shape[-1], 1
    return T.address_of(x[(*index, 0)]), position_stride(x), 1


def columns_at(dtype: str, x: Any, staged: Any, *index: Any) -> tuple[Any, Any, Any]:
    """Return what `rows_at` returns for the transposed matrix."""
    address, row, column = rows_at(dtype, x, staged, *index)
    return address, column, row


def stage_rows(dtype: str, x: Any, staged: Any, rows: Any, *index: Any) -> Any:
    """Return the call that converts `rows` positions of `x`, from `index` on, to float32 in `staged`."""
    dim = x.shape[-1]
    source = T.address_of(x[(*index, 0)])
    return call(f"up_rows<{ELEMENT[dtype]}>", staged.data, dim, source, position_stride(x), rows, rows, dim)


def position_stride(x: Any) -> Any:
    """Return the elements between two positions of `x`, [batch, positions, ..., dim], in 64 bits."""
    stride = T.int64(1)
    for size in x.shape[2:]:
        stride = stride * size
    return stride


def up_row(dtype: str, dst: Any, src: Any, n: int) -> Any:
    """Return the call that reads `n` elements at the address `src` as float32 to the address `dst`."""
    return call(f"up_row<{ELEMENT[dtype]}>", dst, src, n)


def down_row(dtype: str, dst: Any, src: Any, n: int, factor: Any = None) -> Any:
    """Return the call that writes `n` float32 at the address `src`, times `factor` if given, as elements at `dst`."""
    return call(f"down_row<{ELEMENT[dtype]}>", dst, src, n, T.float32(1) if factor is None else factor)


def pack_lanes(dtype: str, dst: Any, x: Any, heads: int, rows: Any, factor: Any, *index: Any) -> Any:
    """Return the call that lays rows of `x`, from `index` on, in the lanes of `dst` [dim, lanes], times `factor`.

    Rows are positions, or with a `heads` dimension in `x` [batch, positions, kv_heads, heads, dim] those of a position
    in order; `index` is that of the first row. Lanes past `rows` become 0.
    """
    name = f"pack_lanes<{ELEMENT[dtype]}, {heads}>"
    source = T.address_of(x[(*index, 0)])
    return call(name, dst.data, dst.shape[-1], source, position_stride(x), x.shape[-1], rows, x.shape[-1], factor)


def unpack_lanes(
    dtype: str, x: Any, src: Any, heads: int, rows: Any, factors: Any, *index: Any, added: bool = False
) -> Any:
    """Return the call that writes lanes of `src` [dim, lanes], times their factors, as rows of `x` (`pack_lanes`).

    If `added`, they are added to what the rows hold.
    """
    name = f"unpack_lanes<{ELEMENT[dtype]}, {heads}{', true' if added else ''}>"
    target = T.address_of(x[(*index, 0)])
    return call(name, target, position_stride(x), x.shape[-1], src.data, src.shape[-1], rows, x.shape[-1], factors.data)


def lines_of(
    dtype: str, x: Any, heads: int, rows: Any, share: tuple[Any, Any], *index: Any, ahead: bool = False
) -> Any:
    """Return the argument that has a product ask for the memory of rows of `x` (`pack_lanes`) while it computes.

    They are the `rows` rows from `index` on, to be written, or if `ahead` as many behind them, to be read: the next
    tile's. `share` is (part, parts): the part of them that this product asks for.
    """
    stride, width, count = position_stride(x), x.shape[-1] * heads, T.ceildiv(rows, heads)
    from_piece = count if ahead else 0
    name = f"nsa::lines<{ELEMENT[dtype]}, {'false' if ahead else 'true'}>"
    return T.call_extern("handle", name, T.address_of(x[(*index, 0)]), stride, from_piece, count, width, *share)


def keys_ahead(dtype: str, x: Any, rows: Any, *index: Any) -> Any:
    """Return the argument that has a product ask for `rows` positions of a head of `x`, from `index` on, to be read."""
    name = f"nsa::lines<{ELEMENT[dtype]}, false>"
    return T.call_extern("handle", name, T.address_of(x[(*index, 0)]), position_stride(x), 0, rows, x.shape[-1], 0, 1)


def lines_at(address: Any, elements: int, *, written: bool = False) -> Any:
    """Return the argument that has a product ask for the memory of so many float32 at `address` while it computes."""
    name = f"nsa::lines<nsa::f32, {'true' if written else 'false'}>"
    return T.call_extern("handle", name, address, T.int64(0), 0, 1, elements, 0, 1)


def members_at(name: str, spare: Any, rows: Any, heads: int, members: Any, first: Any, many: Any) -> Any:
    """Return the address that `member_rows` or `member_sums` has for the `heads` rows of each of some members.

    They are members[first] to members[first + many - 1]; `spare` is where rows go that do not adjoin.
    """
    which = T.address_of(members[first])
    return T.call_extern("handle", f"nsa::{name}", spare.data, rows.data, which, many, heads * rows.shape[-1])


def rows_of_tile(tile: Any, group: int, tokens: Any, t0: Any, chunk: Any) -> Any:
    """Return how many lanes of a tile of (query, head) rows hold one: the first ones."""
    if tile.chunks > 1:
        return T.min(tile.heads, group - chunk * tile.heads)
    return T.min(tile.queries, tokens - t0) * tile.heads


def product(lanes: int, schedule: Schedule, start: str) -> str:
    """Return the name of the register-tiled product over `lanes` lanes that starts from `start`."""
    return f"product<{lanes}, {schedule.register_rows}, {schedule.register_vectors}, nsa::{start}>"


def bound_at(bound: Bound, position: Any, keys: Any) -> Any:
    """Return the expression of `bound` for a query at `position`, clamped into `0 .. keys`.

    Division truncates in C: for a negative numerator that gives 0 at most, which the clamp gives as well.
    """
    if bound.divisor == 0:
        value = keys
    elif bound.divisor == 1:
        value = position + bound.offset
    else:
        value = T.truncdiv(position + bound.offset, bound.divisor)
    if bound.cap is not None:
        value = T.min(value, bound.cap)
    return T.max(0, T.min(value, keys))


@T.macro
def load_bounds(lo, hi, ranges, filled, t0, q_start, heads, keys):
    """Set the keys that the query of each row sees in each of `ranges`; rows past `filled`, without one, see none."""
    for row in T.serial(lo.shape[1]):
        for r, span in enumerate(ranges):
            lo[r, row] = 0
            hi[r, row] = 0
            if row < filled:
                lo[r, row] = bound_at(span.lo, q_start + t0 + T.truncdiv(row, heads), keys)
                hi[r, row] = bound_at(span.hi, q_start + t0 + T.truncdiv(row, heads), keys)


def decode_task(task: Any, tiles: Any, kv_heads: Any, chunks: int, queries: int) -> tuple[Any, Any, Any, Any]:
    """Return batch row, key/value head, first query of the tile, and chunk of the group's heads of a task."""
    chunk = T.truncmod(task, chunks)
    tile = T.truncmod(T.truncdiv(task, chunks), tiles)
    h = T.truncmod(T.truncdiv(task, chunks * tiles), kv_heads)
    return T.truncdiv(task, chunks * tiles * kv_heads), h, tile * queries, chunk


def decode_run(task: Any, runs: Any, kv_heads: Any) -> tuple[Any, Any, Any]:
    """Return batch row, key/value head, and run of queries of a task; later runs, which see more keys, come first."""
    row = T.truncdiv(task, runs)
    return T.truncdiv(row, kv_heads), T.truncmod(row, kv_heads), runs - 1 - T.truncmod(task, runs)


@T.macro
def store_sums(lse, top, total, at, tile, filled, b, t0, h, chunk):
    """Write each row's log-sum-exp, and make of its sum the factor that its output lacks; of no row, 0.

    They are `filled` rows of maxima `top` and sums `total`, from row `at` on.
    """
    for r in T.serial(filled):
        lse[b, t0 + T.truncdiv(r, tile.heads), h, chunk * tile.heads + T.truncmod(r, tile.heads)] = scalar(
            "log_sum_exp", top[at + r], total[at + r]
        )
        total[at + r] = scalar("inverse", total[at + r])


def token_product(desc: KernelDesc, schedule: Schedule) -> Any:
    """Return the macro that adds w1[:, u] times the windows' tokens at u to the mlp's inner layer, [hidden, lanes].

    Each token's sum is made first and then added: one running sum over the whole window would round more.
    """
    kernel, dim, hidden, lanes = desc.size("kernel"), desc.size("dim"), desc.size("hidden"), schedule.query_lanes

    @T.macro
    def add_token(inner, part, x_t, w1, u):
        call(
            product(lanes, schedule, "ZERO"),
            *(part.data, lanes, T.address_of(w1[0, u, 0]), kernel * dim, 1, x_t.data, hidden, dim, x_t.data),
        )
        call("add_row<nsa::f32>", inner.data, part.data, hidden * lanes)

    return add_token
