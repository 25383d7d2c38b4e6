"""What decoding keeps of the positions so far: keys, values and compressed tokens, by layer.

Buffers are handed to the kernels whole, with the position of the first query: what lies behind it is masked, so that it
only has to be finite. Hence they start as zeros, and what is dropped becomes zeros again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .errors import InputError
from .program import Phi
from .spec import PATHS, NSASpec

LEAST_POSITIONS = 256  # of a buffer, which doubles when it is full
Pair = tuple[Tensor, Tensor]  # keys and values


class AttentionCache:
    """Keys and values of one attention layer, `length` positions of them; empty at first, it grows as it is extended.

    Raises `InputError` for an attention in which a position sees later ones: all would have to be computed again.
    """

    def __init__(self, spec: NSASpec) -> None:
        if not spec.causal:
            raise InputError("a cache serves causal attention, and this spec has causal=False; run all positions anew")
        self.length = 0
        self._phi = Phi(method="mean", kernel=spec.kernel, stride=spec.stride)
        self._tokens: list[Pair] = []  # one pair shared by the paths, or one each
        self._compressed: list[Pair] = []

    def extend(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], compress: Sequence[Callable[[Tensor], Tensor]]
    ) -> None:
        """Append positions, `[B, T, Hkv, dim]` of each projection, and the compressed tokens that they complete.

        `compress` makes those of keys and those of values. Raises `InputError` if batch, dtype or device are not those
        of the positions before.
        """
        new = list(zip(keys, values, strict=True))
        if self._tokens:
            _require_alike(self._tokens[0][0], new[0][0])
        first, length = self.length, self.length + new[0][0].shape[1]
        self._tokens = _with(self._tokens, new, first)
        self.length = length
        try:
            self._compress(first, compress)
        except BaseException:
            self.crop(first)
            raise

    def _compress(self, first: int, compress: Sequence[Callable[[Tensor], Tensor]]) -> None:
        begin, end = self._phi.length(first), self._phi.length(self.length)
        if begin < end or not self._compressed:
            source = slice(begin * self._phi.stride, (end - 1) * self._phi.stride + self._phi.kernel)
            k, v = (made(x[:, source].contiguous()) for made, x in zip(compress, self._tokens[0], strict=True))
            self._compressed = _with(self._compressed, [(k, v)], begin)

    def crop(self, length: int) -> None:
        """Drop all positions from `length` on; raises `InputError` unless there are so many."""
        if not 0 <= length <= self.length:
            raise InputError(f"crop: {length} positions can't be kept of {self.length}; give 0 to {self.length}")
        for pairs, places in ((self._tokens, lambda n: n), (self._compressed, self._phi.length)):
            for buffer in (x for pair in pairs for x in pair):
                buffer[:, places(length) : places(self.length)] = 0
        self.length = length

    @property
    def paths(self) -> dict[str, Pair]:
        """The keys and values by path, with room for more behind `length`; those of `compressed` are compressed."""
        found = dict(zip(PATHS, self._tokens if len(self._tokens) > 1 else self._tokens * len(PATHS), strict=True))
        return {**found, "compressed": self._compressed[0]}


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


def require_no_gradients(call: str) -> None:
    """Raise `InputError` where gradients are recorded: what a cache holds has none."""
    if torch.is_grad_enabled():
        raise InputError(f"{call}: a cache holds values without their gradients; call it inside torch.no_grad()")


def _with(held: list[Pair], new: list[Pair], first: int) -> list[Pair]:
    """Return the buffers `held`, or longer ones, with `new` from position `first` on."""
    end = first + new[0][0].shape[1]
    if not held or held[0][0].shape[1] < end:
        room = max(LEAST_POSITIONS, end, 2 * held[0][0].shape[1] if held else 0)
        grown = [_zeros_like(k, room) for k, _ in new], [_zeros_like(v, room) for _, v in new]
        longer = list(zip(*grown, strict=True))
        for old, pair in zip(held, longer, strict=False):
            for x, y in zip(old, pair, strict=True):
                y[:, :first] = x[:, :first]
        held = longer
    for buffers, pair in zip(held, new, strict=True):
        for buffer, x in zip(buffers, pair, strict=True):
            buffer[:, first:end] = x
    return held


def _zeros_like(x: Tensor, positions: int) -> Tensor:
    return x.new_zeros((x.shape[0], positions, *x.shape[2:]))


def _require_alike(held: Tensor, new: Tensor) -> None:
    if (held.shape[0], held.dtype, held.device) != (new.shape[0], new.dtype, new.device):
        raise InputError(
            f"the cache holds batch {held.shape[0]}, {held.dtype} on {held.device}, and the new positions have batch "
            f"{new.shape[0]}, {new.dtype} on {new.device}; give them alike, or a new cache"
        )
