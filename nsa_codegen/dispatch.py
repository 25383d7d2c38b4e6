"""`torch.library` ops over the compiled kernels: schemas, CPU and CUDA implementations, fakes.

A kernel is looked up, and if need be built, at its first call. Implementations take contiguous copies of what is not
contiguous; argument checks that need no data are `functional`'s.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .build import Artifact
from .desc import PACKED, PAIRS, PLAIN, KernelDesc, with_lse
from .device import ExecutedKernel, GpuArtifact, device_target, emulated_target, executed_kernel, load_artifact
from .errors import InputError
from .index_sets import RangeSet, TopK
from .needed import attention_of, compress_desc, pack_descs, scored_desc, select_desc
from .ops import OPS
from .ops.stream_attention import attention_outputs
from .pages import in_large_pages, keep_freed_memory
from .schedule import GpuSchedule, Schedule, has_few, lanes_of_one_query, narrowed
from .selection import select
from .target import GpuTarget, native_target
from .tiling import ceil_div

F = TypeVar("F", bound=Callable[..., Any])
NAMESPACE = "nsa_codegen"
DEBUG = os.environ.get("NSA_CODEGEN_DEBUG", "") not in ("", "0")
MAX_TASKS = 2**31 - 1
ALIGNMENT = 16  # bytes
Instead = Callable[[dict[str, Any]], tuple[Tensor, ...]]
_INSTEAD: dict[KernelDesc, Instead] = {}
LIBRARY: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A loaded kernel of a desc, the schedule it was made with, and the names of its arguments in order."""

    desc: KernelDesc
    artifact: Artifact
    schedule: Schedule
    names: tuple[str, ...]


def kernel(desc: KernelDesc, *, few: bool = False) -> Kernel:
    """Return the kernel of `desc` for this machine, building it if the store has none.

    With `few`, that for few queries, where a kernel of its own serves them.
    """
    return _kernel(desc, few and has_few(desc))


def load_kernels(descs: Iterable[KernelDesc], *, few: bool) -> None:
    """Load these kernels, as `kernel` does, on all cores: what the store lacks is compiled side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(functools.partial(kernel, few=few), dict.fromkeys(descs)))


@functools.cache
def _kernel(desc: KernelDesc, few: bool) -> Kernel:
    target = native_target()
    schedule = select(desc, target).schedule
    if few:
        schedule = narrowed(schedule, desc, target)
    artifact = Artifact.load(desc, schedule, target)
    keep_freed_memory()
    names = tuple(a.name for a in artifact.entry.manifest.arguments)
    return Kernel(desc=desc, artifact=artifact, schedule=schedule, names=names)


@functools.cache
def few_queries(group: int) -> int:
    """Return how many queries of a batch row are few: their heads fill no more lanes than those of one do."""
    return lanes_of_one_query(group, native_target()) // group


@functools.cache
def gpu_kernel(desc: KernelDesc, target: GpuTarget, *, executed: bool) -> tuple[GpuArtifact | ExecutedKernel, Schedule]:
    """Return the kernel of `desc` for a GPU, built if the store has none, or for the executor; and its schedule."""
    schedule = select(desc, target).schedule
    made = executed_kernel(desc, schedule, target) if executed else load_artifact(desc, schedule, target)
    return made, schedule


def gpu_of(x: Tensor) -> GpuTarget | None:
    """Return the target whose GPU kernels serve the device of `x`; None for the CPU's own kernels."""
    return device_target(x.device) if x.is_cuda else emulated_target()


def run(desc: KernelDesc, **arguments: Any) -> tuple[Tensor, ...]:
    """Run the kernel of `desc` on contiguous tensors and return its outputs."""
    if _INSTEAD and desc in _INSTEAD:
        return _run_instead(desc, arguments)
    lead: Tensor = arguments["outs"][0] if "outs" in arguments else arguments["x" if "x" in arguments else "q"]
    gpu = gpu_of(lead)
    if gpu is not None:
        return _run_gpu(desc, gpu, lead, **arguments)
    few = has_few(desc) and lead.shape[1] <= few_queries(desc.size("group"))
    return launch(kernel(desc, few=few), **arguments)


@contextlib.contextmanager
def in_place_of(desc: KernelDesc, instead: Instead) -> Iterator[None]:
    """Inside, every `run` of `desc` in this process, on any device, is `instead(arguments)`.

    While `instead` runs, `run` of `desc` is the kernel itself again. An inner use for the same desc hides an outer one.
    """
    outer = _INSTEAD.get(desc)
    _INSTEAD[desc] = instead
    try:
        yield
    finally:
        _put_back(desc, outer)


def _run_instead(desc: KernelDesc, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    instead = _INSTEAD.pop(desc)
    try:
        return instead(arguments)
    finally:
        _put_back(desc, instead)


def _put_back(desc: KernelDesc, instead: Instead | None) -> None:
    if instead is None:
        _INSTEAD.pop(desc, None)
    else:
        _INSTEAD[desc] = instead


def _run_gpu(desc: KernelDesc, target: GpuTarget, lead: Tensor, **arguments: Any) -> tuple[Tensor, ...]:
    found, schedule = gpu_kernel(desc, target, executed=not lead.is_cuda)
    prepare = OPS[desc.op].prepare_gpu
    assert prepare is not None and isinstance(schedule, GpuSchedule)
    launch = prepare(desc, schedule, **{name: _aligned(value) for name, value in arguments.items()})
    if launch.tasks:
        with torch.cuda.device(lead.device) if lead.is_cuda else contextlib.nullcontext():
            found.launch(launch.values)
    return launch.outputs


def _aligned(value: Any) -> Any:
    """Return an argument, or a copy of what does not begin where vector loads and tensor maps need it."""
    if isinstance(value, list):
        return [_aligned(x) for x in value]
    return value.clone() if isinstance(value, Tensor) and value.data_ptr() % ALIGNMENT else value


def launch(found: Kernel, **arguments: Any) -> tuple[Tensor, ...]:
    """Run a kernel of the CPU on contiguous tensors and return its outputs; `into` names where to write them."""
    op, threads = OPS[found.desc.op], torch.get_num_threads()
    prepare = op.prepare if found.desc.direction == "fwd" else op.prepare_backward
    assert prepare is not None
    made = prepare(found.desc, found.schedule, threads, **arguments)
    if made.tasks > MAX_TASKS:
        raise InputError(f"{op.name}: {made.tasks} tasks are more than the {MAX_TASKS} of one call; split the batch")
    if made.tasks:
        for x in made.outputs:
            in_large_pages(x)
        values = [made.values[name] for name in found.names]
        addresses = [v.data_ptr() if isinstance(v, Tensor) else v for v in values]
        found.artifact.launch(made.tasks, *addresses, threads=threads)
    return made.outputs


@functools.cache
def _visible(text: str) -> RangeSet:
    return RangeSet.from_json(json.loads(text))


def dtype_name(x: Tensor) -> str:
    """Return the name of x's dtype as descs spell it."""
    return str(x.dtype).removeprefix("torch.")


@functools.lru_cache(maxsize=1024)
def stream_desc(text: str, dtype: str, group: int, dk: int, dv: int) -> KernelDesc:
    """Return the desc of a streamed attention over the index set that `RangeSet.text` spells."""
    return KernelDesc.of("stream_attention", dtype, visible=_visible(text), group=group, dk=dk, dv=dv)


@functools.lru_cache(maxsize=1024)
def gather_desc(dtype: str, group: int, dk: int, dv: int, block: int, n: int, causal: bool, source: str) -> KernelDesc:
    """Return the desc of a gathered attention."""
    reach = "causal" if causal else "all"
    dims: dict[str, Any] = {"group": group, "dk": dk, "dv": dv, "block": block, "n": n}
    return KernelDesc.of("gather_attention", dtype, reach=reach, source=source, **dims)


@functools.cache
def packed_source(dtype: str) -> str:
    """Return how this machine's kernels of `dtype` read blocks that are packed."""
    return PAIRS if native_target().takes_pairs(dtype) else PACKED


def define_op(schema: str, *, devices: tuple[str, ...] = ("CPU", "CUDA")) -> Callable[[F], F]:
    """Define the op of `schema`, implemented on `devices` by the function below it."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema)

    def register(implementation: F) -> F:
        for device in devices:
            LIBRARY.impl(name, implementation, device)
        return implementation

    return register


def fake_op(name: str) -> Callable[[F], F]:
    """Register the function below as what `torch.compile` and the meta device run for the op `name`."""
    decorate: Callable[[F], F] = torch.library.register_fake(f"{NAMESPACE}::{name}", lib=LIBRARY)
    return decorate


@define_op(
    "compress(Tensor x, str method, int kernel, int stride, Tensor? weight, Tensor? bias, Tensor? position, "
    "Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2) -> Tensor"
)
def _compress(x: Tensor, method: str, kernel: int, stride: int, *weights: Tensor | None) -> Tensor:
    names = ("weight", "bias", "position", "w1", "b1", "w2", "b2")
    given = {name: w.contiguous() for name, w in zip(names, weights, strict=True) if w is not None}
    if method == "conv" and "bias" not in given:
        given["bias"] = x.new_zeros(x.shape[2:])
    desc = compress_desc(method, dtype_name(x), kernel=kernel, stride=stride, dim=x.shape[3])
    if method == "mlp":
        desc = desc.replace(hidden=given["w1"].shape[0])
    return run(desc, x=x.contiguous(), **given)[0]


@fake_op("compress")
def _compress_fake(x: Tensor, method: str, kernel: int, stride: int, *weights: Tensor | None) -> Tensor:
    windows = (x.shape[1] - kernel) // stride + 1 if x.shape[1] >= kernel else 0
    return x.new_empty((x.shape[0], windows, x.shape[2], x.shape[3]))


@define_op(
    "stream_attention(Tensor q, Tensor k, Tensor v, str visible, SymInt q_start, float scale) -> (Tensor, Tensor)"
)
def _stream_attention(q: Tensor, k: Tensor, v: Tensor, visible: str, q_start: int, scale: float) -> tuple[Tensor, ...]:
    desc = stream_desc(visible, dtype_name(q), q.shape[2] // k.shape[2], q.shape[3], v.shape[3])
    return run(desc, q=q.contiguous(), k=k.contiguous(), v=v.contiguous(), q_start=q_start, scale=scale)


@fake_op("stream_attention")
def _stream_attention_fake(q: Tensor, k: Tensor, v: Tensor, visible: str, q_start: int, scale: float) -> Any:
    return attention_outputs(q, v)


@define_op("block_means(Tensor k, int block) -> Tensor")
def _block_means(k: Tensor, block: int) -> Tensor:
    means = compress_desc("mean", dtype_name(k), kernel=block, stride=block, dim=k.shape[3], out="float32")
    return run(means, x=k.contiguous())[0]


@fake_op("block_means")
def _block_means_fake(k: Tensor, block: int) -> Tensor:
    return k.new_empty((k.shape[0], k.shape[1] // block, k.shape[2], k.shape[3]), dtype=torch.float32)


@define_op(
    "select_blocks(Tensor q, Tensor k, str method, int block, int n, int initial, int local, int kernel, int stride, "
    "float scale, SymInt q_start) -> Tensor"
)
def _select_blocks(
    q: Tensor,
    k: Tensor,
    method: str,
    block: int,
    n: int,
    initial: int,
    local: int,
    kernel: int,
    stride: int,
    scale: float,
    q_start: int,
) -> Tensor:
    k, dk = k.contiguous(), q.shape[3]
    windows = {"kernel": kernel, "stride": stride}
    if method == "mean_key":
        k, windows = _block_means(k, block), {}
    visible = TopK(score=method, n=n, block=block, initial=initial, local=local)
    desc = select_desc(visible, dtype_name(q), group=q.shape[2] // k.shape[2], dk=dk, **windows)
    return run(desc, q=q.contiguous(), k=k, q_start=q_start, scale=scale)[0]


@fake_op("select_blocks")
def _select_blocks_fake(q: Tensor, k: Tensor, method: str, block: int, n: int, *rest: Any) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[1], k.shape[2], n), dtype=torch.int32)


@define_op(
    "scored_attention(Tensor q, Tensor k, Tensor v, int block, int n, int initial, int local, int kernel, int stride, "
    "float scale, SymInt q_start) -> (Tensor, Tensor, Tensor)"
)
def _scored_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    n: int,
    initial: int,
    local: int,
    kernel: int,
    stride: int,
    scale: float,
    q_start: int,
) -> tuple[Tensor, ...]:
    dims = {"group": q.shape[2] // k.shape[2], "dk": q.shape[3], "kernel": kernel, "stride": stride}
    visible = TopK(score="compressed", n=n, block=block, initial=initial, local=local)
    desc = scored_desc(visible, dtype_name(q), **dims, dv=v.shape[3])
    shared = {"q": q.contiguous(), "k": k.contiguous(), "q_start": q_start, "scale": scale}
    if gpu_of(q) is None:
        return run(desc, **shared, v=v.contiguous())
    out, lse = run(attention_of(desc), **shared, v=v.contiguous())
    return out, lse, *run(with_lse(select_desc(visible, dtype_name(q), **dims)), **shared, lse=lse)


@fake_op("scored_attention")
def _scored_attention_fake(q: Tensor, k: Tensor, v: Tensor, block: int, n: int, *rest: Any) -> Any:
    return *attention_outputs(q, v), _select_blocks_fake(q, k, "compressed", block, n)


@define_op(
    "gather_attention(Tensor q, Tensor k, Tensor v, Tensor block_indices, int block, bool causal, SymInt q_start, "
    "float scale) -> (Tensor, Tensor)"
)
def _gather_attention(
    q: Tensor, k: Tensor, v: Tensor, block_indices: Tensor, block: int, causal: bool, q_start: int, scale: float
) -> tuple[Tensor, ...]:
    blocks, n = ceil_div(k.shape[1], block), block_indices.shape[3]
    gpu = gpu_of(q) is not None
    if not gpu or DEBUG:  # on a GPU a check would wait for it; there an index out of range adds nothing
        require_block_range(block_indices, blocks)  # before the conversion, which would cut a 64-bit index
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    source = packed_source(dtype_name(q)) if not gpu and pays_to_pack(q.shape[1], n, blocks) else PLAIN
    desc = gather_desc(dtype_name(q), q.shape[2] // k.shape[2], q.shape[3], v.shape[3], block, n, causal, source)
    if gpu:  # lists of any integer type: what the kernel reads is made of them
        return run(desc, q=q, k=k, v=v, block_indices=block_indices, q_start=q_start, scale=scale)
    block_indices = block_indices.to(torch.int32).contiguous()
    packed = None
    if source != PLAIN:
        by_keys, by_values = pack_descs(desc)
        packed = (run(by_keys, x=k)[0], run(by_values, x=v)[0])
    return run(desc, q=q, k=k, v=v, block_indices=block_indices, q_start=q_start, scale=scale, packed=packed)


@fake_op("gather_attention")
def _gather_attention_fake(q: Tensor, k: Tensor, v: Tensor, block_indices: Tensor, *rest: Any) -> Any:
    return attention_outputs(q, v)


@define_op("combine(Tensor[] outs, Tensor gates) -> Tensor")
def _combine(outs: list[Tensor], gates: Tensor) -> Tensor:
    words = "scalar" if gates.dim() == 1 else "sigmoid"
    desc = KernelDesc.of("combine", dtype_name(outs[0]), paths=len(outs), dv=outs[0].shape[-1], gates=words)
    return run(desc, outs=[o.contiguous() for o in outs], gates=gates)[0]


@fake_op("combine")
def _combine_fake(outs: list[Tensor], gates: Tensor) -> Tensor:
    return outs[0].new_empty(outs[0].shape)


def pays_to_pack(tokens: int, n: int, blocks: int) -> bool:
    """Return whether packing every block once costs less than packing each listed block by itself; same results."""
    return tokens > 1 and tokens * n > 2 * blocks


def require_block_range(block_indices: Tensor, blocks: int) -> None:
    """Raise `InputError` naming an index outside `-1 .. blocks-1`."""
    if block_indices.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(block_indices))
    if low < -1 or high >= blocks:
        bad = low if low < -1 else high
        raise InputError(
            f"selected_attention: block_indices holds {bad}; allowed are -1 (no block) and 0 .. {blocks - 1}, the "
            f"{blocks} blocks of the keys"
        )
