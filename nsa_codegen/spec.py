"""`NSASpec`: every symbol of Native Sparse Attention, with the seed and paper presets, as one frozen value.

A spec is turned into a `Program` by `program()`; nothing below the declaration reads a spec.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, fields, replace
from typing import Any

from .errors import SpecError, UnknownOptionError, nearest
from .index_sets import SCORES, complete, everything, require_choice, top_k, window
from .program import PHI_METHODS, Path, Phi, Program, Tokens, require_group, require_score_windows
from .sizes import require_size

GATES = ("scalar", "sigmoid")
PATHS = ("compressed", "selected", "window")

_SIZES = (
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "value_dim",
    "window_size",
    "block_size",
    "num_selected_blocks",
    "num_local_blocks",
    "compression_kernel",
    "compression_stride",
)


@dataclass(frozen=True, kw_only=True)
class NSASpec:
    """Native Sparse Attention with its three paths: compressed, selected, window (NSA 2025, eq. 5-12).

    `num_heads` query heads share `num_kv_heads` key/value heads (by default as many), keys of `head_dim` and values of
    `value_dim` (by default the same). A query sees the last `window_size` tokens; `num_selected_blocks` blocks of
    `block_size` tokens, the first `num_initial_blocks` and the `num_local_blocks` up to its own among them; and tokens
    compressed from windows of `compression_kernel` every `compression_stride`, which `compression_ratio` sets together.

    `compression` is how (`mean`, `conv`, `mlp`), `selection` what scores blocks (`mean_key`, `compressed`), `gate` what
    combines the paths: one gate each (`scalar`), or one per token and head (`sigmoid`). `kv_per_path` gives each path
    keys and values of its own, `pool_queries` pools the compressed path's queries. The defaults are the seed's. Raises
    `SpecError`.
    """

    num_heads: int = 8
    num_kv_heads: int | None = None
    head_dim: int = 32
    value_dim: int | None = None
    window_size: int = 64
    block_size: int = 16
    num_selected_blocks: int = 8
    num_initial_blocks: int = 0
    num_local_blocks: int = 1
    compression_kernel: int | None = None
    compression_stride: int | None = None
    compression: str = "mean"
    selection: str = "mean_key"
    gate: str = "scalar"
    kv_per_path: bool = False
    causal: bool = True
    pool_queries: bool = False
    compression_ratio: InitVar[int | None] = None

    def __post_init__(self, compression_ratio: int | None) -> None:
        self._fill_defaults(compression_ratio)
        for name in _SIZES:
            require_size("NSASpec", name, getattr(self, name))
        require_size("NSASpec", "num_initial_blocks", self.num_initial_blocks, least=0)
        require_group("NSASpec", self.num_heads, self.kv_heads)
        require_choice("NSASpec", "compression", self.compression, PHI_METHODS)
        require_choice("NSASpec", "selection", self.selection, SCORES)
        require_choice("NSASpec", "gate", self.gate, GATES)
        for flag in ("kv_per_path", "causal", "pool_queries"):
            if not isinstance(getattr(self, flag), bool):
                raise SpecError(f"NSASpec.{flag} = {getattr(self, flag)!r} is not allowed: it must be True or False")
        self._require_combination()
        object.__setattr__(self, "_program", self._make_program())  # made once: layers ask for it at every call

    def _fill_defaults(self, compression_ratio: int | None) -> None:
        given = [name for name in ("compression_kernel", "compression_stride") if getattr(self, name) is not None]
        for name in given:  # before one is taken for the other, so that the one given is the one named
            require_size("NSASpec", name, getattr(self, name))
        if compression_ratio is not None:
            require_size("NSASpec", "compression_ratio", compression_ratio)
            if given and (self.compression_kernel, self.compression_stride) != (compression_ratio,) * 2:
                raise SpecError(
                    f"NSASpec.compression_ratio = {compression_ratio} is not allowed together with compression_kernel "
                    f"= {self.compression_kernel} and compression_stride = {self.compression_stride}: give the ratio, "
                    f"or kernel and stride"
                )
        ratio = 4 if compression_ratio is None else compression_ratio
        kernel = self.compression_kernel if self.compression_kernel is not None else self.compression_stride
        stride = self.compression_stride if self.compression_stride is not None else self.compression_kernel
        defaults = {
            "compression_kernel": ratio if kernel is None else kernel,
            "compression_stride": ratio if stride is None else stride,
            "num_kv_heads": self.num_heads if self.num_kv_heads is None else self.num_kv_heads,
            "value_dim": self.head_dim if self.value_dim is None else self.value_dim,
        }
        for name, value in defaults.items():
            object.__setattr__(self, name, value)

    def _require_combination(self) -> None:
        forced = self.num_initial_blocks + self.num_local_blocks
        if self.num_selected_blocks < forced:
            raise SpecError(
                f"NSASpec.num_selected_blocks = {self.num_selected_blocks} is not allowed: num_initial_blocks = "
                f"{self.num_initial_blocks} and num_local_blocks = {self.num_local_blocks} are forced and count "
                f"toward it; use at least {forced}"
            )
        if self.selection == "compressed":
            names = ("compression_kernel", "compression_stride", "block_size")
            require_score_windows("NSASpec", self.kernel, self.stride, self.block_size, names)
        if self.kernel < self.stride:
            raise SpecError(
                f"NSASpec.compression_kernel = {self.kernel} is not allowed with compression_stride = {self.stride}: "
                f"tokens between windows would be lost; use a kernel >= the stride"
            )
        if self.pool_queries and (self.causal or self.kernel != self.stride):
            raise SpecError(
                f"NSASpec.pool_queries = True is not allowed with causal = {self.causal}, compression_kernel = "
                f"{self.kernel}, compression_stride = {self.stride}: a pooled query mixes later tokens into earlier "
                f"rows and is repeated over its window; use causal=False and one compression_ratio"
            )

    @classmethod
    def seed(cls, **overrides: Any) -> NSASpec:
        """Return the seed preset: `l = d = 4`, blocks of 16, 8 selected, window 64, 8 heads of 32."""
        return cls(**checked_options(overrides))

    @classmethod
    def paper(cls, **overrides: Any) -> NSASpec:
        """Return the paper's preset: `l = 32, d = 16`, blocks of 64, 16 selected, window 512, 64 heads in 4 groups."""
        preset: dict[str, Any] = {
            "num_heads": 64,
            "num_kv_heads": 4,
            "head_dim": 192,
            "value_dim": 128,
            "window_size": 512,
            "block_size": 64,
            "num_selected_blocks": 16,
            "num_initial_blocks": 1,
            "num_local_blocks": 2,
            "compression_kernel": 32,
            "compression_stride": 16,
            "compression": "mlp",
            "selection": "compressed",
            "gate": "sigmoid",
            "kv_per_path": True,
        }
        given = checked_options(overrides)
        if "compression_ratio" in given:
            del preset["compression_kernel"], preset["compression_stride"]
        return cls(**{**preset, **given})

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, `Hkv`."""
        assert self.num_kv_heads is not None
        return self.num_kv_heads

    @property
    def dv(self) -> int:
        """Value head dim, `Dv`."""
        assert self.value_dim is not None
        return self.value_dim

    @property
    def kernel(self) -> int:
        """Compression window `l`."""
        assert self.compression_kernel is not None
        return self.compression_kernel

    @property
    def stride(self) -> int:
        """Compression stride `d`."""
        assert self.compression_stride is not None
        return self.compression_stride

    @property
    def group(self) -> int:
        """Query heads per key/value head, `G`."""
        return self.num_heads // self.kv_heads

    def replace(self, **changes: Any) -> NSASpec:
        """Return the spec with some fields changed; raises what the constructor raises."""
        if "compression_ratio" in checked_options(changes):
            changes = {"compression_kernel": None, "compression_stride": None, **changes}
        return replace(self, **changes)

    def program(self) -> Program:
        """Return the three paths and their combination as a `Program`."""
        made: Program = self.__dict__["_program"]
        return made

    def _make_program(self) -> Program:
        phi = Phi(method=self.compression, kernel=self.kernel, stride=self.stride)
        selected = top_k(
            self.selection,
            n=self.num_selected_blocks,
            block=self.block_size,
            initial=self.num_initial_blocks,
            local=self.num_local_blocks,
            causal=self.causal,
        )
        compressed = complete(phi.kernel, phi.stride) if self.causal else everything()
        return Program(
            name="nsa",
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            combine=self.gate,
            paths=(
                Path(name="compressed", keys=phi, visible=compressed, pool_queries=self.pool_queries),
                Path(name="selected", keys=Tokens(), visible=selected),
                Path(name="window", keys=Tokens(), visible=window(self.window_size)),
            ),
        )


OPTIONS = (*(f.name for f in fields(NSASpec)), "compression_ratio")


def checked_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return `given`; raise `UnknownOptionError` with the nearest valid name if a key is no field of `NSASpec`."""
    for name in given:
        if name not in OPTIONS:
            raise UnknownOptionError(f"NSASpec has no option {name!r}: {nearest(name, OPTIONS)}")
    return given
