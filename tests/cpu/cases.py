"""What the tests of compiled kernels share: inputs, kernels by name, error bounds, and the check of a selection."""

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

from nsa_codegen import functional, reference
from nsa_codegen.desc import KernelDesc
from nsa_codegen.needed import attention_of, backward_descs, backward_pack_descs, pack_descs, program_descs
from nsa_codegen.ops import OPS, Sizes
from nsa_codegen.ops.base import Launch
from nsa_codegen.program import Program
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import native_target

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 2.0**-24  # half an ulp at 1: the error of one float32 rounding

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


def widened(values: Any) -> Any:
    """Return `values` with every floating tensor as float64."""
    if isinstance(values, Tensor):
        return values.double() if values.is_floating_point() else values
    if isinstance(values, dict):
        return {name: widened(value) for name, value in values.items()}
    return [widened(v) for v in values] if isinstance(values, (list, tuple)) else values


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
    """Inside, what torch would leave uninitialised holds NaN, or the greatest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert bool(torch.empty(3).isnan().all())
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def assert_accurate(got: Tensor, eager: Tensor, exact: Tensor, what: str, *, term: float = 0.0) -> None:
    """Require an error of at most 3x eager's, plus 2 ulp of the greatest output; infinities at the same places.

    `term` is the size of what cancels in the output, where that is known to be more than the output.
    """
    assert got.shape == exact.shape, f"{what}: shape {list(got.shape)}, not {list(exact.shape)}"
    assert got.dtype == eager.dtype, f"{what}: {got.dtype}, not {eager.dtype}"
    assert not bool(got.isnan().any()), f"{what}: NaN in {int(got.isnan().sum())} of {got.numel()} places"
    infinite = exact.isinf()
    assert torch.equal(got.double()[infinite], exact[infinite]), f"{what}: infinities differ"
    if exact.numel() == int(infinite.sum()):
        return
    unit = torch.finfo(eager.dtype).eps * max(term, float(exact[~infinite].abs().max()))
    error, allowed = ((x.double() - exact)[~infinite].abs().max() for x in (got, eager))
    allowed = 3 * allowed + 2 * unit
    assert error <= allowed, f"{what}: error {float(error):.3e}, allowed {float(allowed):.3e}, ulp {unit:.3e}"


def gradients(outputs: Any, inputs: Iterable[Tensor], seed: int, dtypes: Iterable[torch.dtype]) -> list[Tensor]:
    """Return the gradients of `outputs` to `inputs` for gradients of the outputs drawn in `dtypes`, lse's included."""
    douts = [
        draw(*o.shape, seed=seed + i, dtype=d).to(o.dtype) for i, (o, d) in enumerate(zip(outputs, dtypes, strict=True))
    ]
    return list(torch.autograd.grad(outputs, list(inputs), douts))


def compare_gradients(run: Any, values: dict[str, Any], what: str, *, seed: int = 7) -> None:
    """Compare the gradients of `run("compiled", values)` to every floating tensor of `values` with the reference's.

    `run(impl, values)` returns a tuple of outputs. The outputs are compared as well.
    """
    names = [n for n, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()]
    found = []
    for impl, given in (("compiled", values), ("reference", values), ("reference", widened(values))):
        leaves = {n: given[n].detach().clone().requires_grad_() for n in names}
        with nan_filled() if impl == "compiled" else contextlib.nullcontext():
            outputs = run(impl, {**given, **leaves})
            dtypes = [o.dtype for o in outputs] if not found else found[0][0]
            found.append((dtypes, [o.detach() for o in outputs], gradients(outputs, leaves.values(), seed, dtypes)))
    (_, got, got_grads), (_, eager, eager_grads), (_, exact, exact_grads) = found
    for i, triple in enumerate(zip(got, eager, exact, strict=True)):
        assert_accurate(*triple, f"{what}: output {i}")
    largest = max(float(g.abs().max()) for g in exact_grads if g.numel())
    for name, *triple in zip(names, got_grads, eager_grads, exact_grads, strict=True):
        term = term_of(triple[-1], largest)
        if name == "gates" and triple[-1].dim() == 1:
            term = norm_of_terms(exact[0], seed, dtypes[0])
        assert_accurate(*triple, f"{what}: gradient of {name}", term=term)


def norm_of_terms(out: Tensor, seed: int, dtype: torch.dtype) -> float:
    """Return the size of what cancels in the gradient of a gate that all rows share: a sum of dout * out over all.

    Terms of either sign add up to the size of their norm, and so do the errors of out in them, which are those of a
    softmax and a sum of its own: thrice a rounding.
    """
    return 3 * float((draw(*out.shape, seed=seed, dtype=dtype).double() * out.double()).norm())


def term_of(exact: Tensor, largest: float) -> float:
    """Return the size of what cancels in a gradient: `largest` of all gradients where this one is 0 but for rounding.

    So it is for what shifts all scores of a query alike, such as a bias of the keys, or the keys themselves if there is
    but one: parts of the size of other gradients add up to 0, exactly only by luck.
    """
    return largest if exact.numel() and float(exact.abs().max()) < 1e-12 * largest else 0.0


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


def margin_of_mean_key(q: Tensor, k_mean: Tensor, added: int) -> Tensor:
    """Bound the float32 error of mean-key scores, [B, T, Hkv, M], for float64 q and (absolute) means [B, M, Hkv, Dk].

    A sum of n products in any order errs by at most n * 2^-24 times the sum of their absolute values, to first order;
    the sums here are over Dk, over the group, and `added` terms for the means. Twice that, for the higher orders.
    """
    batch, tokens, heads, dk = q.shape
    group = heads // k_mean.shape[2]
    absolute = q.abs().reshape(batch, tokens, -1, group, dk).sum(dim=3)
    return 2 * (dk + group + added) * EPS * torch.einsum("bthd,bjhd->bthj", absolute, k_mean.abs())


def margin_of_compressed(q: Tensor, k: Tensor, scores: Tensor, *, scale: float, terms: int) -> Tensor:
    """Bound the float32 error of compressed-softmax scores `scores` [B, T, Hkv, M], for float64 q and k.

    An error of d in the exponent is a relative error of d in a weight and in the weights' sum; d is at most
    (Dk + 4) * 2^-24 times scale * sum |q||k|. The powers of two add 2e-7 each, and sums of n weights n * 2^-24, with N
    tokens in the softmax and `terms` weights in a block score. Weights below 2^-126 count as 0.
    """
    batch, tokens, heads, dk = q.shape
    length, kv_heads = k.shape[1:3]
    if length == 0:
        return torch.zeros_like(scores)
    absolute = q.abs().reshape(batch, tokens, kv_heads, heads // kv_heads, dk)
    largest = torch.einsum("bthgd,bshd->bthgs", absolute, k.abs()).amax(dim=(3, 4)) * scale
    relative = 2 * (dk + 4) * EPS * largest + (length + terms) * EPS + 4 * 2e-7
    return 2 * relative[..., None] * scores + terms * 2.0**-126


def assert_selected(got: Tensor, q: Tensor, k: Tensor, margin_terms: int, **options: Any) -> None:
    """Require the float64 selection, except between blocks whose float64 scores differ by less than float32 rounding.

    `q`, `k` and `options` are what `reference.select_blocks` takes; k is rounded as the kernel reads it.
    """
    q, k = q.double(), k.double()
    sizes = {name: value for name, value in options.items() if name != "num_selected"}
    scores, candidates = reference.block_scores(q, k, **sizes)
    exact = reference.select_blocks(q, k, **options)
    if options["method"] == "mean_key":
        whole, block = scores.shape[-1] - 1, options["block_size"]
        absolute = k[:, : whole * block].abs().reshape(k.shape[0], whole, block, *k.shape[2:]).mean(dim=2)
        margin = torch.nn.functional.pad(margin_of_mean_key(q, absolute, margin_terms), (0, 1))
    else:
        scale = options.get("scale") or q.shape[-1] ** -0.5
        margin = margin_of_compressed(q, k, scores, scale=scale, terms=margin_terms)
    assert got.shape == exact.shape
    assert got.dtype == torch.int32
    blocks = scores.shape[-1]
    assert bool(((got >= -1) & (got < blocks)).all()), "an index outside -1 .. blocks-1"
    filled = got >= 0
    assert torch.equal(filled, exact >= 0), "another number of blocks"
    rising = (got[..., 1:] > got[..., :-1]) | ~filled[..., 1:]
    assert bool(rising.all()), "indices do not ascend, or -1 is not in the tail"
    mine, theirs = (torch.zeros_like(scores).bool().flatten(0, 2) for _ in range(2))
    for mask, lists in ((mine, got), (theirs, exact)):
        rows = lists.flatten(0, 2).long()
        row, slot = (rows >= 0).nonzero(as_tuple=True)
        mask[row, rows[row, slot]] = True
    mine, theirs = mine.view(scores.shape), theirs.view(scores.shape)
    assert not bool((mine & ~theirs & ~candidates[:, None, :]).any()), "chosen, but neither forced nor a candidate"
    best_missed = (scores - margin).masked_fill(~(theirs & ~mine), -math.inf).amax(dim=-1)
    worst_taken = (scores + margin).masked_fill(~(mine & ~theirs), math.inf).amin(dim=-1)
    wrong = best_missed > worst_taken
    assert not bool(wrong.any()), f"wrong blocks at {wrong.nonzero()[0].tolist()}, in {int(wrong.sum())} rows"


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
