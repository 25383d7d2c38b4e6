"""`Problem`: a kernel to tune, and the sizes at which it is judged; those of the presets, and of the head-dim grid.

A kernel of a backward runs after others of its attention, so a problem names the forward whose gradients take it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..conformance.check import has_backward
from ..desc import KernelDesc
from ..errors import InputError, nearest
from ..needed import attention_of, backward_descs, needed_descs, program_descs
from ..ops import Sizes
from ..program import Phi, Program
from ..spec import NSASpec
from ..target import Target
from ..tiling import ceil_div

GRID_DIMS = ((64, 64), (128, 128), (192, 128))  # key and value head dims
GRID_GROUPS = (1, 4, 16)
GRID = "grid"
# Batch and length. The kernels of a head are alike, so that a CPU takes a quarter of the paper's 64 query heads.
_CPU_SIZES = {"seed": (16, 256), "paper": (1, 4096)}
_GPU_SIZES = {"seed": (16, 256), "paper": (1, 16384)}
_CPU_HEADS, _GPU_HEADS = 16, 64
_CHECKED_TOKENS, _CHECKED_KEYS = 70, 700
_CHECKED_ROWS = 4  # of one batch row's draw the greatest error of eager torch, which bounds ours, can be small by luck


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A kernel, the forward kernel of whose op it is part (or which it is), and sizes.

    Times are of `sizes`; errors are looked for at `checks`, which end inside of tiles, blocks and windows.
    """

    desc: KernelDesc
    forward: KernelDesc
    sizes: Sizes
    checks: tuple[Sizes, ...]

    @property
    def sizes_json(self) -> dict[str, int]:
        """The sizes as a record keeps them."""
        return asdict(self.sizes)


def preset_problems(preset: str, target: Target, dtype: str, *, direction: str = "both") -> tuple[Problem, ...]:
    """Return the problems of the preset `seed` or `paper`; raises `SpecError` for an unknown direction."""
    spec: NSASpec = getattr(NSASpec, preset)()
    sizes = (_CPU_SIZES if target.kind == "cpu" else _GPU_SIZES)[preset]
    heads = spec.kv_heads if preset == "seed" or target.kind != "cpu" else _CPU_HEADS // spec.group
    return tuple(_problems(spec.program(), target, dtype, direction, *sizes, heads))


def grid_problems(target: Target, dtype: str, *, direction: str = "both") -> tuple[Problem, ...]:
    """Return the problems of the paper's preset with other head dims and groups: each desc once, the preset's not."""
    batch, tokens = (_CPU_SIZES if target.kind == "cpu" else _GPU_SIZES)["paper"]
    total = _CPU_HEADS if target.kind == "cpu" else _GPU_HEADS
    found: dict[KernelDesc, Problem] = {}
    preset = {p.desc for p in preset_problems("paper", target, dtype, direction=direction)}
    for dk, dv in GRID_DIMS:
        for group in GRID_GROUPS:
            heads = {"num_heads": total, "num_kv_heads": total // group}
            program = NSASpec.paper(**heads, head_dim=dk, value_dim=dv).program()
            for problem in _problems(program, target, dtype, direction, batch, tokens, total // group):
                if problem.desc not in preset:
                    found.setdefault(problem.desc, problem)
    return tuple(found.values())


def chosen_problems(problems: Iterable[Problem], ops: Iterable[str]) -> tuple[Problem, ...]:
    """Return the problems of the ops named, like `combine` or `combine_bwd`; all without names.

    Raises `InputError` for a name that no problem has.
    """
    given, names = tuple(problems), tuple(ops)
    allowed = tuple(dict.fromkeys(name for p in given for name in (p.desc.op, p.desc.kind)))
    for name in names:
        if name not in allowed:
            raise InputError(f"tune.op = {name!r} is no op that is tuned here: {nearest(name, allowed)}")
    return tuple(p for p in given if not names or {p.desc.op, p.desc.kind} & set(names))


def _problems(
    program: Program, target: Target, dtype: str, direction: str, batch: int, tokens: int, kv_heads: int
) -> Iterator[Problem]:
    forwards = _forwards(program, dtype, target)
    for desc in needed_descs(program, dtype, direction, target=target):
        forward = forwards.get(desc, desc)
        dims: dict[str, Any] = dict(forward.dims)
        queries = tokens
        if target.kind == "cpu" and ("source", "plain") in desc.dims:  # it serves so few queries that packing is a loss
            queries = max(1, 2 * ceil_div(tokens, dims["block"]) // dims["n"])
        timed = _sizes(program, desc, forward, batch=batch, tokens=queries, keys=tokens, kv_heads=kv_heads)
        keys = max(_CHECKED_KEYS, (dims.get("n", 0) + 3) * dims.get("block", 0) + 5)  # more blocks than are listed
        ragged = _sizes(program, desc, forward, batch=2, tokens=33, keys=33, kv_heads=2)
        late = _sizes(program, desc, forward, batch=_CHECKED_ROWS, tokens=_CHECKED_TOKENS, keys=keys, kv_heads=2)
        yield Problem(desc=desc, forward=forward, sizes=timed, checks=(ragged, late))


def _forwards(program: Program, dtype: str, target: Target) -> dict[KernelDesc, KernelDesc]:
    """Return the forward desc of each desc of a backward; the first of those that share it."""
    found: dict[KernelDesc, KernelDesc] = {}
    for forward in filter(has_backward, map(attention_of, program_descs(program, dtype, target))):
        for desc in backward_descs(forward, target.kind):
            found.setdefault(desc, forward)
    return found


def _sizes(
    program: Program, desc: KernelDesc, forward: KernelDesc, *, batch: int, tokens: int, keys: int, kv_heads: int
) -> Sizes:
    """Return sizes of the last `tokens` of `keys` positions; keys of an op that reads compressed tokens are those."""
    if desc.op == "combine":  # its rows are those of query heads
        kv_heads *= program.group
    start = keys - tokens
    for path in program.paths:
        if isinstance(path.keys, Phi) and forward.visible is not None and forward.visible == path.visible:
            keys = path.keys.length(keys)
    return Sizes(batch=batch, tokens=tokens, keys=keys, kv_heads=kv_heads, q_start=start)
