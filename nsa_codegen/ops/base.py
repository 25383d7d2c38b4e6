"""What an op declares, once, for everyone who iterates over ops: build, dispatch, tests, benchmarks, docs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..desc import KernelDesc

Values = dict[str, Any]  # tensors and numbers by argument name


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The run-time sizes of a problem; `q_start` is the position of the first query."""

    batch: int = 1
    tokens: int = 64
    keys: int = 64
    kv_heads: int = 1
    q_start: int = 0


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations (multiplications and additions) and compulsory bytes of one call."""

    operations: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One call of a kernel: independent tasks, the values of its entry's arguments, and what it returns."""

    tasks: int
    values: Values
    outputs: tuple[Tensor, ...]


class Extent(NamedTuple):
    """What the sizes of a call make of a kernel of the CPU: tasks, the entry's integers, and float32 working memory.

    `scratch` are numbers of elements by argument name.
    """

    tasks: int
    sizes: dict[str, Any]
    scratch: dict[str, int]

    def launch(self, values: Values, outputs: tuple[Tensor, ...]) -> Launch:
        """Return the launch over these sizes, with `values` for the other arguments."""
        memory = {name: scratch(elements) for name, elements in self.scratch.items()}
        return Launch(tasks=self.tasks, values={**values, **self.sizes, **memory}, outputs=outputs)


class Call(NamedTuple):
    """The sizes of a call: threads, `batch` rows of the `rows` that all calls like it take together, and what each has.

    `heads` are key/value heads, or what has a row of its own in the op, and `group` the query heads of each. `q_start`
    is the position of the first query.
    """

    workers: int
    batch: int
    tokens: int
    keys: int
    heads: int
    q_start: int
    rows: int
    group: int = 1

    @classmethod
    def over(cls, workers: int, q: Tensor, k: Tensor, q_start: int) -> Call:
        """Return the sizes of a call over these queries and keys."""
        (batch, tokens, heads, _), (keys, kv_heads) = q.shape, k.shape[1:3]
        return cls(workers, batch, tokens, keys, kv_heads, q_start, batch, heads // kv_heads)

    @property
    def entry(self) -> dict[str, int]:
        """What the entry of an attention or a selection is given of these sizes."""
        _, batch, tokens, keys, kv_heads, q_start, *_ = self
        return {"batch": batch, "tokens": tokens, "keys": keys, "kv_heads": kv_heads, "q_start": q_start}


ExtentOf = Callable[[Call], Extent]


@dataclass(frozen=True, kw_only=True)
class OpDef:
    """One op.

    `inputs` and `outputs` name tensors and their axes, spelled with the letters of `AXES`. `samples` are descs
    that tests and benchmarks use, `make_inputs(desc, sizes, generator)` draws arguments for one, `reference(desc,
    **arguments)` is its meaning, `prepare(desc, schedule, workers, **arguments)` allocates and lays out one launch,
    and `work(desc, sizes)` counts. `prepare_backward` lays out one launch of a desc of the backward, and
    `prepare_gpu(desc, schedule, **arguments)` one of either direction on a GPU, where the grid follows from the tensors
    and a launch of no tasks is left out. `extent(desc, schedule)` is the part of `prepare` and `prepare_backward` that
    takes no tensors, for callers that lay out several launches at once.
    """

    name: str
    summary: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    samples: tuple[KernelDesc, ...]
    make_inputs: Callable[[KernelDesc, Sizes, torch.Generator], Values]
    reference: Callable[..., tuple[Tensor, ...]]
    prepare: Callable[..., Launch]
    work: Callable[[KernelDesc, Sizes], Work]
    prepare_backward: Callable[..., Launch] | None = None
    prepare_gpu: Callable[..., Launch] | None = None
    extent: Callable[[KernelDesc, Any], ExtentOf] | None = None


AXES = {
    "B": "batch",
    "T": "queries",
    "S": "keys",
    "N": "compressed tokens",
    "H": "query heads",
    "Hkv": "key/value heads",
    "Dk": "key dim",
    "Dv": "value dim",
    "D": "channels",
    "n": "selected blocks",
    "M": "blocks",
    "P": "paths",
    "R": "rows",
}


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype called `name`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def draw(generator: torch.Generator, dtype: str, *shape: int) -> Tensor:
    """Return standard normal numbers of `dtype`."""
    return torch.randn(shape, generator=generator, dtype=torch.float32).to(torch_dtype(dtype))


def element_bytes(dtype: str) -> int:
    """Return the bytes of one element of `dtype`."""
    return torch_dtype(dtype).itemsize


def scratch(*shape: int) -> Tensor:
    """Return uninitialised float32 working memory of the CPU, whatever torch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
