"""The declaration: a `Program` is a few `Path`s over keys and values, and how their outputs are combined.

A path says which keys it has (tokens, or tokens through `phi`) and which of them a query sees (an index
set). Loops, masks, gathering, operation counts and bytes follow from that; nothing here mentions them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import SpecError
from .index_sets import (
    IndexSet,
    RangeSet,
    TopK,
    causal,
    complete,
    everything,
    first,
    require_choice,
    window,
)
from .sizes import require_numbers, require_size

for _set in (causal, complete, everything, first, window):
    # torch.compile then calls them with the numbers it sees, and does not trace how a set spells itself. It is what
    # torch.compiler.assume_constant_result does, without torch.
    _set._dynamo_marked_constant = True  # type: ignore[union-attr]

PHI_METHODS = ("mean", "conv", "mlp")
COMBINES = ("none", "scalar", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The keys are the tokens themselves."""

    def length(self, tokens: int) -> int:
        """Return the number of keys that `tokens` tokens give."""
        return tokens

    def __str__(self) -> str:
        return "tokens"


@dataclass(frozen=True, kw_only=True)
class Phi:
    """Compressed tokens: key `i` is `phi(K[i*stride : i*stride + kernel])`; a partial window forms none.

    Raises `SpecError`.
    """

    method: str = "mean"
    kernel: int
    stride: int

    def __post_init__(self) -> None:
        require_choice("Phi", "method", self.method, PHI_METHODS)
        require_size("Phi", "kernel", self.kernel)
        require_size("Phi", "stride", self.stride)

    def length(self, tokens: int) -> int:
        """Return the number of complete windows in `tokens` tokens."""
        return 0 if tokens < self.kernel else (tokens - self.kernel) // self.stride + 1

    def __str__(self) -> str:
        return f"phi_{self.method}(l={self.kernel}, d={self.stride})"


@dataclass(frozen=True, kw_only=True)
class Path:
    """One softmax attention of the program: its keys, and which of them a query sees. Raises `SpecError`."""

    name: str
    visible: IndexSet
    keys: Tokens | Phi = field(default_factory=Tokens)
    pool_queries: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise SpecError(f"Path.name = {self.name!r} is not allowed: it must be a Python identifier")
        if not isinstance(self.visible, (RangeSet, TopK)):
            raise SpecError(
                f"Path.visible = {self.visible!r} is not allowed: give an index set, as window() or top_k() makes"
            )
        if not isinstance(self.keys, (Tokens, Phi)):
            raise SpecError(f"Path.keys = {self.keys!r} is not allowed: give Tokens(), or Phi(kernel=..., stride=...)")
        require_numbers(f"Path {self.name!r}", self.visible)
        if isinstance(self.visible, TopK) and isinstance(self.keys, Phi):
            raise SpecError(
                f"Path.keys = {self.keys} is not allowed with {self.visible}: blocks are gathered from tokens; "
                f"use keys=Tokens()"
            )
        if self.pool_queries and not (isinstance(self.keys, Phi) and self.keys.kernel == self.keys.stride):
            raise SpecError(
                f"Path.pool_queries = True is not allowed with keys {self.keys}: queries are pooled like keys, and "
                f"each output row is repeated over the positions it came from, so kernel and stride must be equal"
            )

    def __str__(self) -> str:
        pooled = ", queries pooled" if self.pool_queries else ""
        return f"{self.name}: softmax over {self.keys} in {self.visible}{pooled}"


@dataclass(frozen=True, kw_only=True)
class PathCost:
    """Work of one path for one sequence of `tokens` tokens and all heads.

    `pairs` counts (query, key) pairs per head; `operations` counts multiplications and additions of the
    two products and of the block scores; `bytes` is the compulsory traffic: inputs and outputs once.
    """

    path: str
    pairs: int
    operations: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """A sparse attention: heads, paths, and how the paths' outputs become one.

    `num_heads` query heads share `num_kv_heads` key/value heads in contiguous groups of
    `G = num_heads / num_kv_heads`. `combine` is `"none"` (one path), `"scalar"` (one gate per path) or
    `"sigmoid"` (one gate per token, head and path). `num_kv_heads` defaults to `num_heads`, `value_dim` to `head_dim`.
    Raises `SpecError`.
    """

    name: str
    num_heads: int
    head_dim: int
    paths: tuple[Path, ...]
    num_kv_heads: int | None = None
    value_dim: int | None = None
    combine: str = "none"
    _listed: dict[str, str] = field(init=False, repr=False, compare=False)  # see `lists_of`

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_kv_heads", self.num_heads if self.num_kv_heads is None else self.num_kv_heads)
        object.__setattr__(self, "value_dim", self.head_dim if self.value_dim is None else self.value_dim)
        for size in ("num_heads", "num_kv_heads", "head_dim", "value_dim"):
            require_size("Program", size, getattr(self, size))
        require_group("Program", self.num_heads, self.kv_heads)
        require_choice("Program", "combine", self.combine, COMBINES)
        if not isinstance(self.paths, (tuple, list)) or not all(isinstance(p, Path) for p in self.paths):
            raise SpecError(f"Program.paths = {self.paths!r} is not allowed: give a tuple of Path")
        object.__setattr__(self, "paths", tuple(self.paths))  # of a list, which has no hash
        names = [p.name for p in self.paths]
        if not names or len(set(names)) != len(names):
            raise SpecError(f"Program.paths = {names} is not allowed: give at least one path, each with its own name")
        if (self.combine == "none") != (len(names) == 1):
            raise SpecError(
                f"Program.combine = {self.combine!r} is not allowed with {len(names)} path(s): "
                f"one path takes 'none', several take 'scalar' or 'sigmoid'"
            )
        for path in self.paths:
            if isinstance(path.visible, TopK) and path.visible.score == "compressed":
                self._require_source(path, path.visible)
        object.__setattr__(self, "_listed", dict(self._listings()))

    def _listings(self) -> Iterator[tuple[str, str]]:
        for path in reversed(self.paths):  # of several the first is kept
            source = self.source_path(path.visible) if isinstance(path.visible, TopK) else None
            if source is None or not isinstance(source.keys, Phi) or source.pool_queries:
                continue
            if source.visible == complete(source.keys.kernel, source.keys.stride):
                yield source.name, path.name

    def _require_source(self, path: Path, visible: TopK) -> None:
        source = next((p for p in self.paths if p.name == visible.source), None)
        if source is None or not isinstance(source.keys, Phi):
            phis = [p.name for p in self.paths if isinstance(p.keys, Phi)]
            raise SpecError(
                f"TopK.source = {visible.source!r} is not allowed in path {path.name!r}: compressed scores need a path "
                f"with keys through phi; this program has {phis or 'none'}"
            )
        require_score_windows(
            "Program", source.keys.kernel, source.keys.stride, visible.block, ("kernel", "stride", "block")
        )

    @functools.cached_property
    def text(self) -> str:
        """The paths as the string that the op `attention` takes: what kernels do, and not all that checks depend on."""
        names = [p.name for p in self.paths]
        rows: list[dict[str, Any]] = []
        for number, path in enumerate(self.paths):
            if isinstance(path.visible, RangeSet):
                rows.append({"ranges": path.visible.to_json()})
                if (listed := self.lists_of(path)) is not None:
                    assert isinstance(path.keys, Phi) and isinstance(listed.visible, TopK)
                    windows = {"kernel": path.keys.kernel, "stride": path.keys.stride}
                    rows[-1] |= {"top_k": asdict(listed.visible), "windows": windows, "lists": names.index(listed.name)}
                continue
            phi = self.source_of(path.visible)
            windows = {} if phi is None else {"kernel": phi.kernel, "stride": phi.stride}
            scored_by = number if phi is None else names.index(path.visible.source)
            rows.append({"top_k": asdict(path.visible), "scored_by": scored_by, "windows": windows})
        return json.dumps(rows, separators=(",", ":"))

    @functools.cached_property
    def declared(self) -> str:
        """All that was declared: two programs are equal if and only if this is."""
        return repr(self)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        assert self.num_kv_heads is not None
        return self.num_kv_heads

    @property
    def group(self) -> int:
        """Query heads per key/value head, `G`."""
        return self.num_heads // self.kv_heads

    @property
    def dv(self) -> int:
        """Value head dim."""
        assert self.value_dim is not None
        return self.value_dim

    def path(self, name: str) -> Path:
        """Return the path called `name`."""
        for p in self.paths:
            if p.name == name:
                return p
        raise SpecError(f"Program {self.name!r} has no path {name!r}; it has {[p.name for p in self.paths]}")

    def source_of(self, visible: TopK) -> Phi | None:
        """Return the `phi` whose compressed tokens score the blocks of `visible`, if any."""
        source = self.source_path(visible)
        if source is None:
            return None
        assert isinstance(source.keys, Phi)
        return source.keys

    def source_path(self, visible: TopK) -> Path | None:
        """Return the path whose compressed tokens score the blocks of `visible`, if any."""
        return self.path(visible.source) if visible.score == "compressed" else None

    def lists_of(self, path: Path) -> Path | None:
        """Return the path whose blocks the attention of `path` can score with its own weights, or None.

        They see the same compressed tokens: `path` those that are complete, one output row per query. Of several paths
        it is the first.
        """
        name = self._listed.get(path.name)
        return None if name is None else self.path(name)

    def cost(self, tokens: int, *, element_bytes: int = 4) -> tuple[PathCost, ...]:
        """Return operations and bytes of each path for one sequence of `tokens` tokens."""
        require_size("cost", "tokens", tokens)
        return tuple(self._path_cost(p, tokens, element_bytes) for p in self.paths)

    def _path_cost(self, path: Path, tokens: int, element_bytes: int) -> PathCost:
        keys = path.keys.length(tokens)
        queries = keys if path.pool_queries else tokens
        pairs = sum(path.visible.count(t, keys) for t in range(queries))
        operations = 2 * self.num_heads * pairs * (self.head_dim + self.dv)
        if isinstance(path.visible, TopK):
            operations += self._score_operations(path.visible, tokens)
        read = queries * self.num_heads * self.head_dim + keys * self.kv_heads * (self.head_dim + self.dv)
        written = tokens * self.num_heads * self.dv
        return PathCost(path=path.name, pairs=pairs, operations=operations, bytes=element_bytes * (read + written))

    def _score_operations(self, visible: TopK, tokens: int) -> int:
        phi = self.source_of(visible)
        if phi is None:  # one product per group: the heads' queries are summed first
            blocks = sum(t // visible.block for t in range(tokens))
            return 2 * self.kv_heads * blocks * self.head_dim
        source = self.path(visible.source)
        assert isinstance(source.visible, RangeSet)
        pairs = sum(source.visible.count(t, phi.length(tokens)) for t in range(tokens))
        return 2 * self.num_heads * pairs * self.head_dim

    def __str__(self) -> str:
        heads = f"{self.num_heads} heads on {self.num_kv_heads} key/value heads (G={self.group})"
        lines = [f"program {self.name}: {heads}, Dk={self.head_dim}, Dv={self.dv}"]
        lines += [f"  path {p}" for p in self.paths]
        terms = " + ".join(f"g_{p.name}*O_{p.name}" for p in self.paths)
        gates = {"scalar": "one gate per path", "sigmoid": "one gate per token, head and path"}
        if self.combine != "none":
            lines.append(f"  combine O = {terms}  ({gates[self.combine]})")
        return "\n".join(lines)


def require_group(owner: str, num_heads: int, num_kv_heads: int) -> None:
    """Raise `SpecError` unless the group size `num_heads / num_kv_heads` is whole."""
    if num_heads % num_kv_heads:
        small = [h for h in range(1, math.isqrt(num_heads) + 1) if num_heads % h == 0]
        divisors = sorted({*small, *(num_heads // h for h in small)})
        raise SpecError(
            f"{owner}.num_kv_heads = {num_kv_heads} is not allowed with num_heads = {num_heads}: the group size must "
            f"be whole; use one of {divisors}"
        )


def require_score_windows(owner: str, kernel: int, stride: int, block: int, names: tuple[str, str, str]) -> None:
    """Raise `SpecError` unless `stride` divides `kernel` and `block`, as the block scores need (paper eq. 9)."""
    for name, value in ((names[0], kernel), (names[2], block)):
        if value % stride:
            raise SpecError(
                f"{owner}.{name} = {value} is not allowed with {names[1]} = {stride}: block scores from compressed "
                f"tokens need {names[1]} to divide it; use a multiple of {stride}"
            )
