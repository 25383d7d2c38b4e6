"""The cases of conformance: few kernels, each at the sizes where kernels go wrong, and the presets' own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..desc import KernelDesc, with_lse
from ..index_sets import causal, complete, window
from ..needed import compress_desc, needed_descs
from ..ops import Sizes
from ..spec import NSASpec
from ..target import GPU_TARGETS

TARGETS = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a")
ORDERS = (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2), ("random", 3))

# One query and one key; two rows of 33 with two key/value heads; 70 queries, more than a tile; 5 of them at the end.
ONE = Sizes(batch=2, tokens=1, keys=1, kv_heads=2)
RAGGED = Sizes(batch=2, tokens=33, keys=33, kv_heads=2)
TILES = Sizes(batch=1, tokens=70, keys=70, kv_heads=1)
LATE = Sizes(batch=1, tokens=5, keys=83, kv_heads=2, q_start=78)
SIZES = (ONE, RAGGED, TILES, LATE)
# So many queries that thread blocks share those that see a key: of causal keys, of compressed ones, of listed blocks.
LONG = Sizes(batch=1, tokens=200, keys=200, kv_heads=1)
LONG_COMPRESSED = Sizes(batch=2, tokens=200, keys=49, kv_heads=2)
LONG_LISTS = Sizes(batch=2, tokens=200, keys=19, kv_heads=2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A forward desc, whose backward is checked with it, and the sizes at which it runs."""

    desc: KernelDesc
    sizes: tuple[Sizes, ...] = SIZES


def _attentions(dtype: str, group: int, dk: int, dv: int) -> list[Case]:
    dims: dict[str, Any] = {"group": group, "dk": dk, "dv": dv}
    return [
        Case(desc=KernelDesc.of("stream_attention", dtype, visible=window(20), **dims)),
        Case(desc=KernelDesc.of("gather_attention", dtype, reach="causal", source="plain", block=16, n=4, **dims)),
    ]


def _compressions(dtype: str) -> list[Case]:
    descs = [compress_desc(method, dtype, kernel=8, stride=4, dim=32) for method in ("mean", "conv", "mlp")]
    descs.append(compress_desc("mean", dtype, kernel=16, stride=16, dim=32, out="float32"))
    return [Case(desc=d, sizes=(RAGGED, TILES)) for d in descs]


def _selections(dtype: str, group: int) -> list[Case]:
    dims: dict[str, Any] = {"group": group, "dk": 32, "block": 16, "n": 3, "initial": 1, "local": 1}
    by_weights = KernelDesc.of("select_blocks", dtype, method="compressed", kernel=8, stride=4, **dims)
    return [
        Case(desc=by_weights),
        Case(desc=KernelDesc.of("select_blocks", dtype, method="mean_key", **dims)),
        Case(desc=with_lse(by_weights)),
    ]


def _combinations(dtype: str) -> list[Case]:
    return [Case(desc=KernelDesc.of("combine", dtype, paths=3, dv=16, gates=g)) for g in ("scalar", "sigmoid")]


# The descs are shared by many sizes, since lowering one takes seconds. Groups of 1, 4 and 16, and one that divides no
# tile; value dims that differ from key dims; compressed keys, of which early queries see none; streamed causal keys.
CASES: tuple[Case, ...] = (
    *_attentions("float16", 4, 32, 16),
    *_attentions("bfloat16", 1, 64, 64),
    *_attentions("float16", 16, 32, 64),
    *_attentions("bfloat16", 4, 96, 48),
    Case(
        desc=KernelDesc.of("stream_attention", "float16", visible=complete(8, 4), group=4, dk=32, dv=16),
        sizes=(
            RAGGED,
            Sizes(batch=1, tokens=70, keys=16, kv_heads=1),
            Sizes(tokens=6, keys=20, q_start=80),
            LONG_COMPRESSED,
        ),
    ),
    Case(
        desc=KernelDesc.of("stream_attention", "bfloat16", visible=causal(), group=3, dk=64, dv=32),
        sizes=(*SIZES, LONG),
    ),
    Case(
        desc=KernelDesc.of(
            "gather_attention", "bfloat16", reach="all", source="plain", block=8, n=3, group=3, dk=32, dv=64
        ),
        sizes=(*SIZES, LONG_LISTS),
    ),
    *_selections("float16", 4),
    *_selections("bfloat16", 1),
    *_compressions("float16"),
    *_combinations("float16"),
    *_combinations("bfloat16"),
)


def _far(desc: KernelDesc, spec: NSASpec) -> tuple[Sizes, ...]:
    """Return 5 queries so late that blocks compete and windows leave keys behind; scores pass more tiles than stages.

    What takes no queries, or each row by itself, has none.
    """
    tokens, visible = 5, desc.visible
    if desc.op in ("compress", "combine"):
        return ()
    q_start = (spec.num_selected_blocks + 6) * spec.block_size + 3
    if desc.op == "select_blocks":
        scored = spec.block_size if desc.word("method") == "mean_key" else spec.stride
        q_start = max(q_start, 130 * scored + 3)
    keys = q_start + tokens
    if visible is not None and visible != window(spec.window_size):  # of compressed keys, the last is seen by none
        q_start = 262 * spec.stride + 3
        keys = visible.count(q_start + tokens - 1, q_start) + 1
    return (Sizes(tokens=tokens, keys=keys, q_start=q_start),)


# The kernels whose texts are in generated/: both presets, bfloat16. They take longer to lower, and run at few sizes.
SHIPPED: tuple[Case, ...] = tuple(
    Case(desc=desc, sizes=(TILES, LATE, *_far(desc, spec)))
    for spec in (NSASpec.seed(), NSASpec.paper())
    for desc in needed_descs(spec.program(), "bfloat16", "fwd", target=GPU_TARGETS["sm_90a"])
)
