"""What the tests of compiled kernels share: inputs, kernels by name, and specs; the judges are in `judges`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from nsa_codegen import functional
from nsa_codegen.conformance.check import nan_filled as uninitialised_is_nan
from nsa_codegen.conformance.check import widened as widened
from nsa_codegen.desc import KernelDesc
from nsa_codegen.needed import attention_of, backward_descs, backward_pack_descs, pack_descs, program_descs
from nsa_codegen.ops import OPS, Sizes
from nsa_codegen.ops.base import Launch
from nsa_codegen.program import Program
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import native_target

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Sizes at which tiles, blocks and windows end, as well as any others.
LENGTHS = st.one_of(st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 300]), st.integers(1, 300))
ROWS = st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 3), (2, 2)])  # batch, key/value heads


def drawn(examples: int) -> settings:
    """Return settings for `examples` examples, the same ones in every run."""
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers that depend on `shape` and `seed` alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


def draw_exact(*shape: int, seed: int) -> Tensor:
    """Return multiples of 1/4 in -1 .. 1: sums of products of some thousands of them are exact in float32."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float() / 4


def guarded(x: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Return a copy of x in the middle of a larger buffer that holds `fill` on both sides, and the buffer."""
    room = 1 << 14
    buffer = torch.full((x.numel() + 2 * room,), fill, dtype=x.dtype)
    inside = buffer[room : room + x.numel()].view(x.shape)
    inside.copy_(x)
    return inside, buffer


def canaries(launch: Launch) -> tuple[dict[str, Any], list[Tensor], Callable[[], None]]:
    """Return the values of a launch whose outputs are NaN amid canaries, these outputs, and what raises if one died."""
    values, buffers = dict(launch.values), []
    returned = [next(name for name, value in values.items() if value is output) for output in launch.outputs]
    for name, value in launch.values.items():
        if name in (*returned, "grad_gates"):
            values[name], buffer = guarded(
                torch.full_like(value, math.nan if value.is_floating_point() else -1), 12345.0
            )
            buffers.append((buffer, value.numel()))

    def unharmed() -> None:
        for buffer, size in buffers:
            room = (buffer.numel() - size) // 2
            assert bool((buffer[:room] == 12345.0).all()), "written before an output"
            assert bool((buffer[room + size :] == 12345.0).all()), "written past an output"

    return values, [values[name] for name in returned], unharmed


@contextlib.contextmanager
def nan_filled() -> Iterator[None]:
    """Inside, what torch would leave uninitialised holds NaN, or the greatest integer; and it is seen that it does."""
    with uninitialised_is_nan():
        assert bool(torch.empty(3).isnan().all())
        yield


def with_backward(descs: Iterable[KernelDesc]) -> list[KernelDesc]:
    """Return `descs` with what they need to run: packing, and their backward."""
    found: list[KernelDesc] = []
    for desc in descs:
        found += [desc, *backward_descs(attention_of(desc))]
        if desc.op == "gather_attention":
            found += [*pack_descs(desc), *backward_pack_descs(desc).values()]
    return list(dict.fromkeys(found))


def kernels_of(program: Program, dtype: torch.dtype, *, backward: bool = True) -> list[KernelDesc]:
    """Return the descs of everything that `program` runs on tensors of `dtype`."""
    name = str(dtype).removeprefix("torch.")
    forward = program_descs(program, name, native_target())
    return with_backward(forward) if backward else list(forward)


def make_inputs(desc: KernelDesc, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Return what the op's own maker draws."""
    return OPS[desc.op].make_inputs(desc, sizes, torch.Generator().manual_seed(seed))


# Group sizes, head dims, dtypes and options of NSA, each of their values once or more.
SPECS: dict[str, tuple[NSASpec, torch.dtype]] = {
    "g1-f32": (
        NSASpec.seed(num_heads=2, head_dim=192, value_dim=128, window_size=20, block_size=16, num_selected_blocks=3),
        torch.float32,
    ),
    "g2-f16": (
        NSASpec.paper(
            num_heads=4, num_kv_heads=2, head_dim=32, value_dim=64, window_size=33, block_size=8, num_selected_blocks=4,
            compression_kernel=8, compression_stride=4, compression="conv",
        ),
        torch.float16,
    ),
    "g3-bf16": (
        NSASpec.seed(
            num_heads=3, num_kv_heads=1, head_dim=80, value_dim=8, window_size=1, block_size=12, num_selected_blocks=2,
            selection="compressed", compression_ratio=4,
        ),
        torch.bfloat16,
    ),
    "g4-f32": (
        NSASpec.paper(
            num_heads=4, num_kv_heads=1, head_dim=64, window_size=40, block_size=16, num_selected_blocks=5,
            compression_kernel=16, compression_stride=8, compression="mlp",
        ),
        torch.float32,
    ),
    "g8-f16": (
        NSASpec.seed(
            num_heads=16, num_kv_heads=2, head_dim=8, value_dim=80, window_size=7, block_size=5, num_selected_blocks=6,
            compression="conv", compression_ratio=3, num_initial_blocks=1, gate="sigmoid",
        ),
        torch.float16,
    ),
    "g16-bf16": (
        NSASpec.paper(
            num_heads=16, num_kv_heads=1, head_dim=128, value_dim=192, window_size=64, block_size=32,
            num_selected_blocks=4, compression_kernel=32, compression_stride=16, compression="mean",
        ),
        torch.bfloat16,
    ),
}  # fmt: skip
# Two small models. Modules that need just some model take these, and share their kernels.
SMALL_MODELS: dict[str, dict[str, Any]] = {
    "seed": {"num_heads": 2, "head_dim": 16, "window_size": 9, "block_size": 8, "num_selected_blocks": 3},
    "paper": {
        "preset": "paper", "num_heads": 6, "num_kv_heads": 2, "head_dim": 16, "value_dim": 8, "window_size": 9,
        "block_size": 8, "num_selected_blocks": 4, "compression_kernel": 8, "compression_stride": 4,
    },
}  # fmt: skip


def model_spec(options: dict[str, Any]) -> NSASpec:
    """Return the specification of a model of these options."""
    given_options = dict(options)
    return {"seed": NSASpec.seed, "paper": NSASpec.paper}[given_options.pop("preset", "seed")](**given_options)


SEED, PAPER = (model_spec(SMALL_MODELS[name]) for name in ("seed", "paper"))
MEANS = dataclasses.replace(PAPER, compression="mean")
SPEC_KERNELS = [desc for spec, dtype in SPECS.values() for desc in kernels_of(spec.program(), dtype)]


def qkv(
    spec: NSASpec, dtype: torch.dtype, tokens: int, *, batch: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Return random q, k and v; short sequences in many rows, since eager's error on few numbers may be 0 by luck."""
    batch = batch or max(2, 256 // tokens)
    return {
        "q": draw(batch, tokens, spec.num_heads, spec.head_dim, seed=seed, dtype=dtype),
        "k": draw(batch, tokens, spec.kv_heads, spec.head_dim, seed=seed + 1, dtype=dtype),
        "v": draw(batch, tokens, spec.kv_heads, spec.dv, seed=seed + 2, dtype=dtype),
    }


def weights(spec: NSASpec, dtype: torch.dtype, dim: int, seed: int) -> dict[str, Tensor]:
    """Return the weights of the spec's phi over `dim` channels, by name."""
    if spec.compression == "conv":
        return {
            "weight": draw(spec.kernel, spec.kv_heads, dim, seed=seed, dtype=dtype) / spec.kernel,
            "bias": draw(spec.kv_heads, dim, seed=seed + 1, dtype=dtype),
        }
    if spec.compression == "mlp":
        wide = spec.kernel * dim
        return {
            "position": draw(spec.kernel, dim, seed=seed, dtype=dtype),
            "w1": draw(2 * dim, wide, seed=seed + 1, dtype=dtype) / wide**0.5,
            "w2": draw(dim, 2 * dim, seed=seed + 2, dtype=dtype) / (2 * dim) ** 0.5,
            "b1": draw(2 * dim, seed=seed + 3, dtype=dtype),
            "b2": draw(dim, seed=seed + 4, dtype=dtype),
        }
    return {}


def compress(spec: NSASpec, impl: str, x: Tensor, w: dict[str, Tensor]) -> Tensor:
    arguments: dict[str, Any] = dict(w)
    if spec.compression == "mlp":
        arguments = {"weight": (w["position"], w["w1"], w["w2"]), "bias": (w["b1"], w["b2"])}
    return functional.compress(
        x, kernel=spec.kernel, stride=spec.stride, method=spec.compression, impl=impl, **arguments
    )


def nsa(spec: NSASpec, x: dict[str, Tensor], w: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None) -> Tensor:
    """Return compiled NSA with the compression of `spec`; `x` holds q, k, v and gates, `w` phi's weights of each."""
    dtype = x["q"].dtype
    if w is None:
        w = weights(spec, dtype, spec.head_dim, 100), weights(spec, dtype, spec.dv, 200)
    k_cmp, v_cmp = compress(spec, "compiled", x["k"], w[0]), compress(spec, "compiled", x["v"], w[1])
    return functional.nsa_attention(**x, spec=spec, k_cmp=k_cmp, v_cmp=v_cmp, impl="compiled")


def nsa_inputs(name: str, tokens: int, *, batch: int = 2, seed: int = 0) -> tuple[NSASpec, dict[str, Tensor]]:
    """Return the spec called `name`, and q, k, v and gates for `nsa`."""
    spec, dtype = SPECS[name]
    x = qkv(spec, dtype, tokens, batch=batch, seed=seed)
    shape = (3,) if spec.gate == "scalar" else (batch, tokens, spec.num_heads, 3)
    return spec, {**x, "gates": draw(*shape, seed=seed + 3).sigmoid().to(dtype)}
