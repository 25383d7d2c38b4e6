"""The ops, each declared once; and which kernels a program needs."""

from __future__ import annotations

from typing import Any

from ..desc import KernelDesc
from ..index_sets import TopK
from ..program import Path, Phi, Program
from .base import AXES, Launch, OpDef, Sizes, Values, Work
from .combine import COMBINE
from .compress import COMPRESS, compress_desc
from .gather_attention import GATHER_ATTENTION, pack_descs
from .pack_blocks import PACK_BLOCKS
from .select_blocks import SELECT_BLOCKS
from .stream_attention import STREAM_ATTENTION

OPS: dict[str, OpDef] = {
    op.name: op for op in (COMPRESS, STREAM_ATTENTION, SELECT_BLOCKS, PACK_BLOCKS, GATHER_ATTENTION, COMBINE)
}

__all__ = ["AXES", "OPS", "Launch", "OpDef", "Sizes", "Values", "Work", "pack_descs", "program_descs", "select_desc"]


def program_descs(program: Program, dtype: str) -> tuple[KernelDesc, ...]:
    """Return the descs of every kernel that running `program` on tensors of `dtype` takes, each once."""
    found: list[KernelDesc] = []
    for path in program.paths:
        found += path_descs(program, path, dtype)
    if program.combine != "none":
        gates = "scalar" if program.combine == "scalar" else "sigmoid"
        found.append(KernelDesc.of("combine", dtype, paths=len(program.paths), dv=program.dv, gates=gates))
    return tuple(dict.fromkeys(found))


def path_descs(program: Program, path: Path, dtype: str) -> list[KernelDesc]:
    """Return the descs of the kernels that one path takes."""
    found = []
    if isinstance(path.keys, Phi):
        phi = path.keys
        widths = dict.fromkeys((program.head_dim, program.dv))
        found += [compress_desc(phi.method, dtype, kernel=phi.kernel, stride=phi.stride, dim=d) for d in widths]
        if path.pool_queries:
            found.append(compress_desc("mean", dtype, kernel=phi.kernel, stride=phi.stride, dim=program.head_dim))
    attention: dict[str, Any] = {"group": program.group, "dk": program.head_dim, "dv": program.dv}
    if not isinstance(path.visible, TopK):
        return [*found, KernelDesc.of("stream_attention", dtype, visible=path.visible, **attention)]
    visible, reach = path.visible, "causal" if path.visible.causal else "all"
    if visible.score == "mean_key":
        block = visible.block
        found.append(compress_desc("mean", dtype, kernel=block, stride=block, dim=program.head_dim, out="float32"))
    phi_of_scores = program.source_of(visible)
    windows = {} if phi_of_scores is None else {"kernel": phi_of_scores.kernel, "stride": phi_of_scores.stride}
    found.append(select_desc(visible, dtype, group=program.group, dk=program.head_dim, **windows))
    for source in ("packed", "plain"):
        dims = {**attention, "block": visible.block, "n": visible.n}
        gathered = KernelDesc.of("gather_attention", dtype, reach=reach, source=source, **dims)
        found += [*(pack_descs(gathered) if source == "packed" else ()), gathered]
    return found


def select_desc(visible: TopK, dtype: str, **dims: Any) -> KernelDesc:
    """Return the desc of the selection that `visible` asks for; `dims` are group, dk, and kernel, stride of phi."""
    return KernelDesc.of(
        "select_blocks",
        dtype,
        method=visible.score,
        block=visible.block,
        n=visible.n,
        initial=visible.initial,
        local=visible.local,
        **dims,
    )
