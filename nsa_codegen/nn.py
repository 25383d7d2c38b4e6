"""The torch model: `NSAAttention`, `NSABlock`, `NSAModel`, and `NSA`, which builds them from named options.

The modules hold parameters and shapes only; what they compute is in `functional`. Their `impl` is passed on
to it and may be changed at any time, also for a whole model: `model.impl = "reference"`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .cache import AttentionCache, ModelCache, require_cache, require_no_gradients
from .errors import InputError, SpecError, UnknownOptionError, nearest
from .index_sets import require_choice
from .reference.compress import Weights
from .sizes import require_size
from .spec import OPTIONS, PATHS, NSASpec

IMPLS = ("auto", "compiled", "reference")
OUTPUT_MODES = ("last", "all", "mean")
PRESETS = {"seed": NSASpec.seed, "paper": NSASpec.paper}


class Compressor(nn.Module):
    """The learnable `phi` of keys or of values (paper eq. 7): `[B, T, Hkv, dim] -> [B, N, Hkv, dim]`.

    `"mean"` has no parameters; `"conv"` starts as the mean; `"mlp"` has a position encoding and `2 * dim`
    hidden units.
    """

    def __init__(self, spec: NSASpec, dim: int, *, impl: str = "auto") -> None:
        super().__init__()
        self.method, self.kernel, self.stride, self.impl = spec.compression, spec.kernel, spec.stride, impl
        if self.method == "conv":
            self.weight = nn.Parameter(torch.full((self.kernel, spec.kv_heads, dim), 1.0 / self.kernel))
            self.bias = nn.Parameter(torch.zeros(spec.kv_heads, dim))
        elif self.method == "mlp":
            self.position = nn.Parameter(torch.randn(self.kernel, dim) * 0.02)
            self.expand = nn.Linear(self.kernel * dim, 2 * dim)
            self.project = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the compressed tokens of `x [B, T, Hkv, dim]`."""
        weight, bias = self._weights()
        out: Tensor = functional.compress(
            x, kernel=self.kernel, stride=self.stride, method=self.method, weight=weight, bias=bias, impl=self.impl
        )
        return out

    def _weights(self) -> tuple[Weights, Weights]:
        if self.method == "conv":
            return self.weight, self.bias
        if self.method == "mlp":
            return (self.position, self.expand.weight, self.project.weight), (self.expand.bias, self.project.bias)
        return None, None

    def extra_repr(self) -> str:
        """Return the method and sizes for `print(model)`."""
        return f"{self.method}, kernel={self.kernel}, stride={self.stride}"


class NSAAttention(nn.Module):
    """Native Sparse Attention with its projections, compression and gates: `[B, T, hidden] -> [B, T, hidden]`.

    `out = W_o (g_c*O_c + g_s*O_s + g_w*O_w)` (paper eq. 5). The three paths share one projection to keys and
    values, or have one each with `spec.kv_per_path`. Raises `InputError` for input of another shape.
    """

    def __init__(self, hidden_size: int, spec: NSASpec, *, impl: str = "auto") -> None:
        super().__init__()
        require_size("NSA", "hidden_size", hidden_size)
        require_choice("NSA", "impl", impl, IMPLS)
        if not isinstance(spec, NSASpec):
            raise SpecError(f"NSA.spec is {type(spec).__name__}; give an NSASpec")
        self.hidden_size, self.spec = hidden_size, spec
        names = PATHS if spec.kv_per_path else ("shared",)
        self.q_proj = nn.Linear(hidden_size, spec.num_heads * spec.head_dim, bias=False)
        self.k_proj = _projections(names, hidden_size, spec.kv_heads * spec.head_dim)
        self.v_proj = _projections(names, hidden_size, spec.kv_heads * spec.dv)
        self.o_proj = nn.Linear(spec.num_heads * spec.dv, hidden_size, bias=False)
        self.k_phi = Compressor(spec, spec.head_dim, impl=impl)
        self.v_phi = Compressor(spec, spec.dv, impl=impl)
        if spec.gate == "scalar":
            self.gate = nn.Parameter(torch.zeros(len(PATHS)))
        else:
            self.gate_proj = nn.Linear(hidden_size, len(PATHS) * spec.num_heads)
        self._impl = impl

    @property
    def impl(self) -> str:
        """Which implementation `functional` is asked for: `"auto"`, `"compiled"` or `"reference"`."""
        return self._impl

    @impl.setter
    def impl(self, value: str) -> None:
        require_choice("NSA", "impl", value, IMPLS)
        self._impl = self.k_phi.impl = self.v_phi.impl = value

    def gates(self, x: Tensor) -> Tensor:
        """Return the gates, order compressed, selected, window: `[3]` or `[B, T, H, 3]` for `x [B, T, hidden]`."""
        if self.spec.gate == "scalar":
            return torch.softmax(self.gate, dim=-1)
        return torch.sigmoid(_split(self.gate_proj(x), self.spec.num_heads))

    def forward(self, x: Tensor, cache: AttentionCache | None = None) -> Tensor:
        """Return the attention's output `[B, T, hidden]` for `x [B, T, hidden]`.

        With a `cache`, x are the positions after those that it holds; it holds them as well then.
        """
        _require_input("NSAAttention", x, self.hidden_size)
        spec = self.spec
        q = _split(self.q_proj(x), spec.num_heads)
        k = [_split(project(x), spec.kv_heads) for project in self.k_proj.values()]
        v = [_split(project(x), spec.kv_heads) for project in self.v_proj.values()]
        start, means = None, None
        if cache is None:
            (k_c, k_s, k_w), (v_c, v_s, v_w) = (k, v) if spec.kv_per_path else (k * 3, v * 3)
            paths = {"compressed": (self.k_phi(k_c), self.v_phi(v_c)), "selected": (k_s, v_s), "window": (k_w, v_w)}
        else:
            require_cache("NSAAttention", cache, AttentionCache)
            require_no_gradients("NSAAttention")
            if cache.spec is not spec:
                cache.require_spec("NSAAttention", spec)
            start = cache.length
            cache.extend(k, v, (self.k_phi, self.v_phi), impl=self.impl)
            paths, means = cache.paths, cache.block_means
        out = functional.attention(
            spec.program(), q, paths, self.gates(x), block_means=means, q_start=start, impl=self.impl
        )
        result: Tensor = self.o_proj(out.flatten(start_dim=2))
        return result


class NSABlock(nn.Module):
    """A pre-norm block, `[B, T, hidden]` both ways: `x += drop(NSA(LN(x)))`, then `x += drop(W2 gelu(W1 LN(x)))`.

    Raises `SpecError` for its options, and `InputError` for input of another shape.
    """

    def __init__(self, hidden_size: int, spec: NSASpec, *, dropout: float = 0.1, impl: str = "auto") -> None:
        super().__init__()
        _require_dropout(dropout)
        self.attention = NSAAttention(hidden_size, spec, impl=impl)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=1e-5)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=1e-5)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    @property
    def impl(self) -> str:
        """The implementation of the block's attention."""
        return self.attention.impl

    @impl.setter
    def impl(self, value: str) -> None:
        self.attention.impl = value

    def forward(self, x: Tensor, cache: AttentionCache | None = None) -> Tensor:
        """Return the block's output `[B, T, hidden]` for `x [B, T, hidden]`, the positions after those of a `cache`."""
        _require_input("NSABlock", x, self.attention.hidden_size)
        held = () if cache is None else (cache,)  # so that any module may stand for the attention
        x = x + self.dropout(self.attention(self.attention_norm(x), *held))
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options of a model beside those of its attention, `spec`. Raises `SpecError`.

    `seq_len` is only the length that kernels are specialised for first; every length is served.
    """

    embed_dim: int
    hidden_size: int = 256
    num_layers: int = 4
    dropout: float = 0.1
    seq_len: int = 256
    output_mode: str = "last"
    impl: str = "auto"
    spec: NSASpec

    def __post_init__(self) -> None:
        for name in ("embed_dim", "hidden_size", "num_layers", "seq_len"):
            require_size("NSA", name, getattr(self, name))
        _require_dropout(self.dropout)
        require_choice("NSA", "output_mode", self.output_mode, OUTPUT_MODES)
        require_choice("NSA", "impl", self.impl, IMPLS)


class NSAModel(nn.Module):
    """`num_layers` NSA blocks between an input projection and a final norm.

    `[B, T, embed_dim] -> [B, hidden]` with `output_mode` `"last"` (position) or `"mean"` (over positions), and
    `[B, T, hidden]` with `"all"`. Raises `InputError` for input of another rank, last dim, or no positions.
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        self.options, self.seq_len = options, options.seq_len
        hidden = options.hidden_size
        self.input: nn.Module = nn.Identity() if options.embed_dim == hidden else nn.Linear(options.embed_dim, hidden)
        self.blocks = nn.ModuleList(
            NSABlock(hidden, options.spec, dropout=options.dropout, impl=options.impl)
            for _ in range(options.num_layers)
        )
        self.norm = nn.LayerNorm(hidden, eps=1e-5)
        self._impl = options.impl

    @property
    def impl(self) -> str:
        """The implementation of every block's attention; setting it sets them all."""
        return self._impl

    @impl.setter
    def impl(self, value: str) -> None:
        for module in self.modules():
            if isinstance(module, NSAAttention):
                module.impl = value
        self._impl = value

    def new_cache(self) -> ModelCache:
        """Return an empty cache for decoding; raises `InputError` unless attention is causal."""
        return ModelCache(self.options.spec, len(self.blocks))

    def forward(self, x: Tensor, cache: ModelCache | None = None) -> Tensor:
        """Return features `[B, hidden]`, or `[B, T, hidden]` with `output_mode="all"`, for `x [B, T, embed_dim]`.

        With a `cache`, of `new_cache`, x are the positions after those that it holds, and features are of x; it holds
        them as well then, or after an exception none of them.
        """
        _require_input("NSAModel", x, self.options.embed_dim)
        if cache is not None:
            return self._decode(x, cache)
        return self._features(x, [None] * len(self.blocks))

    def _decode(self, x: Tensor, cache: ModelCache) -> Tensor:
        require_cache("NSAModel", cache, ModelCache)
        if self.options.output_mode == "mean":
            raise InputError("NSAModel: output_mode='mean' is over all positions, and a cache gives it new ones only")
        if len(cache.layers) != len(self.blocks):
            raise InputError(f"NSAModel: the cache has {len(cache.layers)} layers, and the model {len(self.blocks)}")
        held = cache.length
        try:
            return self._features(x, cache.layers)
        except BaseException:
            cache.crop(held)
            raise

    def _features(self, x: Tensor, caches: Sequence[AttentionCache | None]) -> Tensor:
        x = self.input(x)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache)
        if self.options.output_mode == "last":
            x = x[:, -1]
        x = self.norm(x)
        return x.mean(dim=1) if self.options.output_mode == "mean" else x


MODEL_OPTIONS = tuple(f.name for f in fields(ModelOptions) if f.name != "spec")


class NSA:
    """Builds attention layers, blocks and models from named options: those of `ModelOptions` and of `NSASpec`.

    `preset` (`"seed"` or `"paper"`) chooses the defaults of the attention's options. An unknown option raises
    `UnknownOptionError` with the nearest valid name; a value that is not allowed raises `SpecError`.
    """

    @staticmethod
    def build(embed_dim: int | None = None, hidden_size: int = 256, **options: Any) -> NSAModel:
        """Return the model `[B, T, embed_dim] -> [B, hidden_size]` (`"all"`: `[B, T, hidden_size]`).

        Options: `num_layers=4, dropout=0.1, seq_len=256, output_mode="last", impl="auto", preset="seed"` and those
        of `NSASpec`; `recommended_defaults()` lists them all. `embed_dim` has no default.
        """
        return NSAModel(_model_options("NSA.build", embed_dim, hidden_size, options))

    @staticmethod
    def build_nsa_attention(hidden_size: int = 256, *, impl: str = "auto", **options: Any) -> NSAAttention:
        """Return one attention layer, `[B, T, hidden_size]` both ways; options are `preset` and those of `NSASpec`."""
        spec = _spec("NSA.build_nsa_attention", options, ("hidden_size", "impl"))
        return NSAAttention(hidden_size, spec, impl=impl)

    @staticmethod
    def build_nsa_block(
        hidden_size: int = 256, *, dropout: float = 0.1, impl: str = "auto", **options: Any
    ) -> NSABlock:
        """Return one block, `[B, T, hidden_size]` both ways; options are `preset` and those of `NSASpec`."""
        spec = _spec("NSA.build_nsa_block", options, ("hidden_size", "dropout", "impl"))
        return NSABlock(hidden_size, spec, dropout=dropout, impl=impl)

    @staticmethod
    def output_size(embed_dim: int | None = None, hidden_size: int = 256, **options: Any) -> int:
        """Return the size of the last dimension of the output of `build(...)`; `embed_dim` does not change it."""
        embed_dim = hidden_size if embed_dim is None else embed_dim
        return _model_options("NSA.output_size", embed_dim, hidden_size, options).hidden_size

    @staticmethod
    def param_count(embed_dim: int | None = None, hidden_size: int = 256, **options: Any) -> int:
        """Return the number of parameters of `build(...)` with the same arguments; allocates none of them."""
        chosen = _model_options("NSA.param_count", embed_dim, hidden_size, options)
        with torch.device("meta"):
            return sum(p.numel() for p in NSAModel(chosen).parameters())

    @staticmethod
    def recommended_defaults() -> dict[str, Any]:
        """Return the default of every option of `build`; None means that it follows from another option.

        `num_kv_heads` follows `num_heads`, `value_dim` follows `head_dim`, and `compression_kernel` and
        `compression_stride` follow `compression_ratio`.
        """
        model = {f.name: f.default for f in fields(ModelOptions) if f.name in MODEL_OPTIONS and f.name != "embed_dim"}
        attention = {f.name: f.default for f in fields(NSASpec)}
        return {**model, **attention, "compression_ratio": NSASpec.seed().kernel, "preset": "seed"}


def _model_options(call: str, embed_dim: int | None, hidden_size: int, options: dict[str, Any]) -> ModelOptions:
    """Return the checked options of a model; `call` is named in errors."""
    given = dict(options)
    model = {name: given.pop(name) for name in MODEL_OPTIONS if name in given}
    spec = _spec(call, given, MODEL_OPTIONS)
    if embed_dim is None:
        raise SpecError(f"{call} needs embed_dim, the size of the last dimension of the input")
    return ModelOptions(embed_dim=embed_dim, hidden_size=hidden_size, spec=spec, **model)


def _spec(call: str, options: dict[str, Any], others: tuple[str, ...]) -> NSASpec:
    """Return the spec of `options`; `others` are the call's further options, for the nearest name in errors."""
    given = dict(options)
    preset = given.pop("preset", "seed")
    require_choice("NSA", "preset", preset, tuple(PRESETS))
    allowed = (*others, "preset", *OPTIONS)
    for name in given:
        if name not in OPTIONS:
            raise UnknownOptionError(f"{call} has no option {name!r}: {nearest(name, allowed)}")
    return PRESETS[preset](**given)


def _split(x: Tensor, heads: int) -> Tensor:
    """Return `x [B, T, heads * size]` as `[B, T, heads, size]`."""
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads)


def _projections(names: tuple[str, ...], hidden_size: int, size: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(hidden_size, size, bias=False) for name in names})


def _require_dropout(dropout: float) -> None:
    if (
        isinstance(dropout, bool)
        or not isinstance(dropout, (int, float))
        or not (0 <= dropout < 1)
        or math.isnan(dropout)
    ):
        raise SpecError(f"NSA.dropout = {dropout!r} is not allowed: it must be a number >= 0 and < 1")


def _require_input(owner: str, x: Tensor, features: int) -> None:
    """Raise `InputError` unless `x` is a floating tensor `[B, T >= 1, features]`."""
    if not isinstance(x, Tensor):
        raise InputError(f"{owner}: input is {type(x).__name__}; give a tensor [batch, sequence, {features}]")
    if x.dim() != 3:
        raise InputError(
            f"{owner}: input of shape {list(x.shape)} has rank {x.dim()}; give [batch, sequence, {features}]"
        )
    if x.shape[-1] != features:
        raise InputError(
            f"{owner}: input of shape {list(x.shape)} has {x.shape[-1]} features; its last dimension must be {features}"
        )
    if x.shape[1] == 0:
        raise InputError(f"{owner}: input of shape {list(x.shape)} has no positions; give a sequence of at least 1")
    if not x.is_floating_point():
        raise InputError(f"{owner}: input of dtype {x.dtype} is not allowed; give a floating-point tensor")
