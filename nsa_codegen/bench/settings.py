"""`Settings`: what the suite is asked to measure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..desc import DTYPES
from ..errors import SpecError
from ..index_sets import require_choice, require_size
from ..spec import NSASpec

PARTS = (
    "forward", "backward", "ops", "ops_backward", "decode", "seed", "variants", "model", "module", "flex", "memory",
    "start",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes, type, threads and limits of time of one run; attention is the paper's preset with mean compression.

    `tokens` and `backward_tokens` are the lengths; `module_tokens` and `reference_tokens` are the longest at which
    the PyPI module and the eager definition are run, since both take quadratic memory. `flex_most` is the longest for
    flex_attention, which is compiled for each length, within `flex_seconds` in all. Raises `SpecError`.
    """

    tokens: tuple[int, ...]
    backward_tokens: tuple[int, ...]
    num_heads: int = 16
    num_kv_heads: int = 1
    head_dim: int = 64
    dtype: str = "float32"
    threads: int
    seconds: float = 20.0
    flex_seconds: float = 120.0
    module_tokens: int = 4096
    reference_tokens: int = 2048
    flex_most: int = 4096
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        require_choice("bench", "dtype", self.dtype, DTYPES)
        require_size("bench", "threads", self.threads)
        for part in self.parts:
            require_choice("bench", "part", part, PARTS)
        if not self.parts:
            raise SpecError(
                f"bench.parts is empty: every part of --only is left out by --skip; parts are {list(PARTS)}"
            )
        if not self.tokens:
            raise SpecError("bench.tokens is empty: min-tokens is above max-tokens; give min-tokens <= max-tokens")

    @property
    def spec(self) -> NSASpec:
        """The attention that is measured."""
        return NSASpec.paper(**self.options)

    @property
    def options(self) -> dict[str, Any]:
        """What `NSASpec.paper` takes to make it, for processes that start anew."""
        heads = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}
        return {**heads, "head_dim": self.head_dim, "value_dim": self.head_dim, "compression": "mean"}

    @property
    def flex_tokens(self) -> tuple[int, ...]:
        """The lengths at which flex_attention is run."""
        return tuple(t for t in self.tokens if t <= self.flex_most)

    @property
    def label(self) -> str:
        """What sets this attention apart from the default's, as a suffix of a file's name."""
        parts = [f"{self.num_heads}h"] if self.num_heads != 16 else []
        parts += [f"{self.num_kv_heads}kv"] if self.num_kv_heads != 1 else []
        parts += [f"d{self.head_dim}"] if self.head_dim != 64 else []
        parts += [self.dtype] if self.dtype != "float32" else []
        return "".join(f"-{part}" for part in (*parts, f"{self.threads}t"))

    def leaves_out(self, other: dict[str, Any]) -> dict[str, list[Any]]:
        """Return what a run of the settings `other`, as plain data, has measured and this one does not, by name."""
        own, named = self.to_json(), ("parts", "tokens", "backward_tokens")
        return {n: left for n in named if (left := [x for x in other[n] if x not in own[n]])}

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def powers_of_two(least: int, most: int) -> tuple[int, ...]:
    """Return the powers of two from `least` to `most`, and `most` itself."""
    found = {1 << i for i in range(40) if least <= 1 << i <= most}
    return tuple(sorted(found | ({most} if most >= least else set())))
