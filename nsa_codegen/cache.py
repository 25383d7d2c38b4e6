"""What decoding keeps of the positions so far: keys, values, compressed tokens and means of blocks, by layer.

Buffers are handed to the kernels whole, with the position of the first query: what lies behind it is masked, so that it
only has to be finite. Hence they start as zeros, and what is dropped becomes zeros again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TypeVar, cast

import torch
from torch import Tensor

from .errors import InputError
from .functional import block_means
from .program import Phi
from .spec import PATHS, NSASpec

LEAST_POSITIONS = 256  # of a buffer, which doubles when it is full
Pair = tuple[Tensor, Tensor]  # keys and values
Tensors = TypeVar("Tensors", Pair, tuple[Tensor])


class AttentionCache:
    """Keys and values of one attention layer, `length` positions of them; empty at first, it grows as it is extended.

    It serves the attention of `spec` and no other. Raises `InputError` for an attention in which a position sees later
    ones: all would have to be computed again.
    """

    def __init__(self, spec: NSASpec) -> None:
        if not spec.causal:
            raise InputError("a cache serves causal attention, and this spec has causal=False; run all positions anew")
        self.length, self.spec = 0, spec
        self._phi = Phi(method="mean", kernel=spec.kernel, stride=spec.stride)
        self._tokens: list[Pair] = []  # one pair shared by the paths, or one each
        self._compressed: list[Pair] = []
        self._scored_by_means, self._block = spec.selection == "mean_key", spec.block_size
        self._means: list[tuple[Tensor]] = []

    def require_spec(self, call: str, spec: NSASpec) -> None:
        """Raise `InputError` unless the cache serves `spec`; the message names the fields that differ."""
        pairs = [(f.name, getattr(self.spec, f.name), getattr(spec, f.name)) for f in fields(spec)]
        if differing := [f"{name} = {mine} and not {theirs}" for name, mine, theirs in pairs if mine != theirs]:
            raise InputError(
                f"{call}: the cache is for a spec with {', '.join(differing)}; use the cache that new_cache() of this "
                f"model makes"
            )
        self.spec = spec  # an equal one, as after a copy: the next call sees it at once

    def extend(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        compress: Sequence[Callable[[Tensor], Tensor]],
        *,
        impl: str = "auto",
    ) -> None:
        """Append positions, `[B, T, Hkv, dim]` of each projection, and the compressed tokens that they complete.

        `compress` makes those of keys and those of values, and `impl` the means of the blocks that they complete, if
        blocks are scored by them. Raises `InputError` if batch, dtype or device are not those of the positions before.
        """
        new = list(zip(keys, values, strict=True))
        if self._tokens:
            _require_alike(self._tokens[0][0], new[0][0])
        first = self.length
        self.length += new[0][0].shape[1]  # what is dropped if one of them fails
        try:
            self._tokens = _with(self._tokens, new, first)
            self._compress(first, compress)
            self._average(first, impl)
        except BaseException:
            self.crop(first)
            raise

    def _compress(self, first: int, compress: Sequence[Callable[[Tensor], Tensor]]) -> None:
        begin, end = self._phi.length(first), self._phi.length(self.length)
        if begin < end or not self._compressed:
            source = slice(begin * self._phi.stride, (end - 1) * self._phi.stride + self._phi.kernel)
            k, v = (made(x[:, source].contiguous()) for made, x in zip(compress, self._tokens[0], strict=True))
            self._compressed = _with(self._compressed, [(k, v)], begin)

    def _average(self, first: int, impl: str) -> None:
        begin, end = first // self._block, self.length // self._block
        if self._scored_by_means and (begin < end or not self._means):
            keys = self.paths["selected"][0][:, begin * self._block : end * self._block]
            self._means = _with(self._means, [(block_means(keys, block_size=self._block, impl=impl),)], begin)

    def crop(self, length: int) -> None:
        """Drop all positions from `length` on; raises `InputError` unless there are so many.

        Without any, it is as new: the next ones may be of another batch, dtype or device.
        """
        if not isinstance(length, int) or not 0 <= length <= self.length:
            raise InputError(f"crop: {length!r} positions can't be kept of {self.length}; give 0 to {self.length}")
        for held, places in (
            (self._tokens, lambda n: n),
            (self._compressed, self._phi.length),
            (self._means, lambda n: n // self._block),
        ):
            for buffer in (x for tensors in held for x in tensors):
                buffer[:, places(length) : places(self.length)] = 0
        self.length = length
        if not length:
            self._tokens, self._compressed, self._means = [], [], []

    @property
    def paths(self) -> dict[str, Pair]:
        """The keys and values by path, with room for more behind `length`; those of `compressed` are compressed."""
        found = dict(zip(PATHS, self._tokens if len(self._tokens) > 1 else self._tokens * len(PATHS), strict=True))
        return {**found, "compressed": self._compressed[0]}

    @property
    def block_means(self) -> dict[str, Tensor]:
        """The means of the selected path's complete blocks, with room for more, if blocks are scored by them."""
        return {"selected": self._means[0][0]} if self._means else {}


class ModelCache:
    """The caches of a model's attention layers, in order; all have the same length."""

    def __init__(self, spec: NSASpec, layers: int) -> None:
        self.layers = tuple(AttentionCache(spec) for _ in range(layers))

    @property
    def length(self) -> int:
        """The positions that every layer holds."""
        return min(layer.length for layer in self.layers)

    def crop(self, length: int) -> None:
        """Drop all positions from `length` on; raises `InputError` unless there are so many."""
        for layer in self.layers:
            layer.crop(length)


def require_cache(call: str, cache: object, kind: type[AttentionCache] | type[ModelCache]) -> None:
    """Raise `InputError` unless `cache` is of the `kind` that the `call` takes."""
    if not isinstance(cache, kind):
        ways = {
            AttentionCache: "an AttentionCache, such as one of a ModelCache's layers",
            ModelCache: "one of new_cache()",
        }
        raise InputError(f"{call}: cache is {type(cache).__name__}; give {ways[kind]}, or None")


def require_no_gradients(call: str) -> None:
    """Raise `InputError` where gradients are recorded: what a cache holds has none."""
    if torch.is_grad_enabled():
        raise InputError(f"{call}: a cache holds values without their gradients; call it inside torch.no_grad()")


def _with(held: list[Tensors], new: list[Tensors], first: int) -> list[Tensors]:
    """Return the buffers `held`, or longer ones, with `new` from position `first` on."""
    end = first + new[0][0].shape[1]
    if not held or held[0][0].shape[1] < end:
        room = max(LEAST_POSITIONS, end, 2 * held[0][0].shape[1] if held else 0)
        longer = [cast(Tensors, tuple(_zeros_like(x, room) for x in tensors)) for tensors in new]
        for old, tensors in zip(held, longer, strict=False):
            for x, y in zip(old, tensors, strict=True):
                y[:, :first] = x[:, :first]
        held = longer
    for buffers, tensors in zip(held, new, strict=True):
        for buffer, x in zip(buffers, tensors, strict=True):
            buffer[:, first:end] = x
    return held


def _zeros_like(x: Tensor, positions: int) -> Tensor:
    with torch.inference_mode(False):  # so that it may be written outside as well
        return x.new_zeros((x.shape[0], positions, *x.shape[2:]))


def _require_alike(held: Tensor, new: Tensor) -> None:
    if (held.shape[0], held.dtype, held.device) != (new.shape[0], new.dtype, new.device):
        raise InputError(
            f"the cache holds batch {held.shape[0]}, {held.dtype} on {held.device}, and the new positions have batch "
            f"{new.shape[0]}, {new.dtype} on {new.device}; give them alike, or a new cache"
        )
