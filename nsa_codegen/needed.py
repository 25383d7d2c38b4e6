"""Which kernels a program takes, forward and backward, as descs: declarations only, read without torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from .desc import LAYOUTS, PACKED, PAIRS, PLAIN, KernelDesc, with_lse
from .index_sets import TopK, complete, require_choice
from .program import Path, Phi, Program
from .target import Target

DIRECTIONS = ("fwd", "bwd", "both")
MLP_EXPANSION = 2  # hidden units of the mlp per channel


def needed_descs(program: Program, dtype: str, direction: str = "both", *, target: Target) -> tuple[KernelDesc, ...]:
    """Return the descs of the kernels that `direction` of `program` runs on tensors of `dtype`, each once.

    GPU kernels gather blocks from where they are, and take none that packs them; a CPU's are packed, in pairs where
    `target` multiplies those.

    `"bwd"` is what a backward pass runs beside the forward's kernels. Raises `SpecError`.
    """
    require_choice("needed_descs", "direction", direction, DIRECTIONS)
    forward, kind = program_descs(program, dtype, target), target.kind
    backward = tuple(
        b for desc in forward if _differentiated(desc, program, kind) for b in all_backward_descs(desc, kind)
    )
    chosen = {"fwd": forward, "bwd": backward, "both": (*forward, *backward)}[direction]
    return tuple(dict.fromkeys(chosen))


def program_descs(program: Program, dtype: str, target: Target) -> tuple[KernelDesc, ...]:
    """Return the descs of every kernel that running `program` on tensors of `dtype` takes on `target`, each once."""
    found: list[KernelDesc] = []
    for path in program.paths:
        found += path_descs(program, path, dtype, target)
    if program.combine != "none":
        gates = "scalar" if program.combine == "scalar" else "sigmoid"
        found.append(KernelDesc.of("combine", dtype, paths=len(program.paths), dv=program.dv, gates=gates))
    return tuple(dict.fromkeys(found))


def path_descs(program: Program, path: Path, dtype: str, target: Target) -> list[KernelDesc]:
    """Return the descs of the kernels that one path takes.

    On a CPU the attention that scores blocks lists them as well; on a GPU the selection takes its log-sum-exp.
    """
    found = []
    if isinstance(path.keys, Phi):
        phi = path.keys
        widths = dict.fromkeys((program.head_dim, program.dv))
        found += [compress_desc(phi.method, dtype, kernel=phi.kernel, stride=phi.stride, dim=d) for d in widths]
        if path.pool_queries:
            found.append(compress_desc("mean", dtype, kernel=phi.kernel, stride=phi.stride, dim=program.head_dim))
    attention: dict[str, Any] = {"group": program.group, "dk": program.head_dim, "dv": program.dv}
    if not isinstance(path.visible, TopK):
        listed = program.lists_of(path) if target.kind == "cpu" else None
        if listed is None:
            return [*found, KernelDesc.of("stream_attention", dtype, visible=path.visible, **attention)]
        assert isinstance(listed.visible, TopK) and isinstance(path.keys, Phi)
        windows = {"kernel": path.keys.kernel, "stride": path.keys.stride}
        return [*found, scored_desc(listed.visible, dtype, **attention, **windows)]
    visible, reach = path.visible, "causal" if path.visible.causal else "all"
    if visible.score == "mean_key":
        block = visible.block
        found.append(compress_desc("mean", dtype, kernel=block, stride=block, dim=program.head_dim, out="float32"))
    phi_of_scores = program.source_of(visible)
    windows = {} if phi_of_scores is None else {"kernel": phi_of_scores.kernel, "stride": phi_of_scores.stride}
    scoring = program.source_path(visible)
    is_listed = scoring is not None and program.lists_of(scoring) == path
    if target.kind != "cpu" or not is_listed:
        scores = select_desc(visible, dtype, group=program.group, dk=program.head_dim, **windows)
        found.append(with_lse(scores) if is_listed else scores)
    packed = PAIRS if target.takes_pairs(dtype) else PACKED
    for source in (packed, PLAIN) if target.kind == "cpu" else (PLAIN,):
        dims = {**attention, "block": visible.block, "n": visible.n}
        gathered = KernelDesc.of("gather_attention", dtype, reach=reach, source=source, **dims)
        found += [*(pack_descs(gathered) if source != PLAIN else ()), gathered]
    return found


def select_desc(visible: TopK, dtype: str, **dims: Any) -> KernelDesc:
    """Return the desc of the selection that `visible` asks for; `dims` are group, dk, and kernel, stride of phi."""
    return KernelDesc.of("select_blocks", dtype, **_listed(visible), **dims)


def scored_desc(visible: TopK, dtype: str, **dims: Any) -> KernelDesc:
    """Return the desc of the attention that lists blocks as well; `dims` are group, dk, dv, kernel and stride."""
    return KernelDesc.of("scored_attention", dtype, **_listed(visible), **dims)


def attention_of(desc: KernelDesc) -> KernelDesc:
    """Return the desc of a `scored_attention`'s attention alone, which has its gradients; any other desc as it is."""
    if desc.op != "scored_attention":
        return desc
    visible = complete(desc.size("kernel"), desc.size("stride"))
    dims: dict[str, Any] = {name: desc.size(name) for name in ("group", "dk", "dv")}
    return KernelDesc.of("stream_attention", desc.dtype, visible=visible, **dims)


def _listed(visible: TopK) -> dict[str, Any]:
    return {
        "method": visible.score, "block": visible.block, "n": visible.n, "initial": visible.initial,
        "local": visible.local,
    }  # fmt: skip


def compress_desc(method: str, dtype: str, *, kernel: int, stride: int, dim: int, out: str | None = None) -> KernelDesc:
    """Return the desc of phi `method` over channels `dim`; a mean may be written as another dtype, `out`."""
    if method == "mean":
        return KernelDesc.of("compress", dtype, method=method, kernel=kernel, stride=stride, dim=dim, out=out or dtype)
    if method == "conv":
        return KernelDesc.of("compress", dtype, method=method, kernel=kernel, stride=stride, dim=dim)
    hidden = MLP_EXPANSION * dim
    return KernelDesc.of("compress", dtype, method=method, kernel=kernel, stride=stride, dim=dim, hidden=hidden)


def pack_descs(desc: KernelDesc) -> tuple[KernelDesc, KernelDesc]:
    """Return the descs that pack the keys and the values of `desc`."""
    layouts = LAYOUTS[desc.word("source") == PAIRS]
    return tuple(
        KernelDesc.of("pack_blocks", desc.dtype, block=desc.size("block"), dim=desc.size(dim), layout=layout)
        for dim, layout in zip(("dk", "dv"), layouts, strict=True)
    )  # type: ignore[return-value]


def backward_pack_descs(desc: KernelDesc) -> dict[str, KernelDesc]:
    """Return the descs that pack for the backward of `desc`: keys both ways, values by columns."""
    block, dk, dv = desc.size("block"), desc.size("dk"), desc.size("dv")
    columns, rows = LAYOUTS[desc.word("source") == PAIRS]
    wanted = {"k_columns": (columns, dk), "k_rows": (rows, dk), "v_columns": (columns, dv)}
    return {
        name: KernelDesc.of("pack_blocks", desc.dtype, block=block, dim=dim, layout=layout)
        for name, (layout, dim) in wanted.items()
    }


@functools.lru_cache(maxsize=1024)
def backward_descs(desc: KernelDesc, kind: str = "cpu") -> tuple[KernelDesc, ...]:
    """Return the kernels of the backward of a forward desc, in the order in which they run; none where it has none.

    `kind` is that of the target. The backward of an attention on a GPU runs over queries, then over keys; on a CPU over
    runs of queries, then over what those left of the keys' gradients.
    """
    if desc.op == "compress":
        return _compress_backward(desc)
    if desc.op == "combine":
        return (_part(desc),)
    dims = {name: value for name, value in desc.dims if name != "source"}
    if desc.op not in ("stream_attention", "gather_attention"):
        return ()
    if kind != "cpu":
        by_keys = {name: value for name, value in dims.items() if name != "n"}
        return _part(desc, part="queries", **dims), _part(desc, part="keys", **by_keys)
    of_keys = {name: value for name, value in dims.items() if name in ("dk", "dv", "reach")}
    return _part(desc, part="runs", **dims), _part(desc, part="sums", **of_keys)


def _compress_backward(desc: KernelDesc) -> tuple[KernelDesc, ...]:
    """Return the parts: to the tokens, then to the weights; the mlp's inner layer comes first."""
    dims = {name: value for name, value in desc.dims if name != "out"}
    parts = {"mean": ("tokens",), "conv": ("tokens", "weights"), "mlp": ("inner", "tokens", "weights")}
    return tuple(_part(desc, part=part, **dims) for part in parts[desc.word("method")])


def _part(desc: KernelDesc, **dims: int | str) -> KernelDesc:
    """Return a backward desc of a forward desc; `dims` replace its own where given."""
    kept: dict[str, Any] = dims or dict(desc.dims)
    return KernelDesc.of(desc.op, desc.dtype, direction="bwd", visible=desc.visible, **kept)


def _differentiated(desc: KernelDesc, program: Program, kind: str) -> bool:
    """Return whether gradients pass through `desc`: not through the block means of a selection, nor twice a gather."""
    if desc.op == "gather_attention":
        return kind != "cpu" or desc.word("source") != PLAIN  # the backward of both sources is this one's
    if desc.op == "compress":
        return (desc.word("method"), desc.size("kernel"), desc.size("stride")) in set(_phis(program))
    return True


def _phis(program: Program) -> Iterator[tuple[str, int, int]]:
    for path in program.paths:
        if isinstance(path.keys, Phi):
            yield path.keys.method, path.keys.kernel, path.keys.stride
            if path.pool_queries:
                yield "mean", path.keys.kernel, path.keys.stride


def all_backward_descs(desc: KernelDesc, kind: str = "cpu") -> Iterator[KernelDesc]:
    """Yield the descs of all kernels that the backward of a forward desc runs, those that pack for it included."""
    yield from backward_descs(attention_of(desc), kind)
    if desc.op == "gather_attention" and kind == "cpu":
        yield from backward_pack_descs(desc).values()
