"""Products over pairs of bfloat16 numbers: by what multiplies them where there is one, and as any machine can."""

from __future__ import annotations

import ctypes
import dataclasses
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import canaries, draw, drawn, make_inputs, nan_filled, widened
from hypothesis import given
from hypothesis import strategies as st
from judges import assert_accurate, assert_selected, gradients, term_of
from torch import Tensor

from nsa_codegen.build import Artifact
from nsa_codegen.compiler import compile_assembly
from nsa_codegen.desc import KernelDesc
from nsa_codegen.index_sets import causal, complete, window
from nsa_codegen.needed import backward_descs, backward_pack_descs
from nsa_codegen.ops import OPS, Sizes
from nsa_codegen.schedule import CpuSchedule
from nsa_codegen.store import KernelStore
from nsa_codegen.target import CPU_TARGETS, CpuTarget, runs_here
from nsa_codegen.templates.cpu.common import prelude

WIDTH = 37  # numbers of a row: fills neither a tile nor vectors
ENTRIES = f"""
extern "C" void opened() {{ nsa::open_tiles(); }}
extern "C" void closed() {{ nsa::close_tiles(); }}
extern "C" void product(float *C, int ldc, const void *A, int64_t a_row, const uint32_t *B, int ldb, int rows,
                        int columns, int depth, int added) {{
  if (added)
    nsa::pair_product<true>(C, ldc, A, a_row, B, ldb, rows, columns, depth);
  else
    nsa::pair_product<false>(C, ldc, A, a_row, B, ldb, rows, columns, depth);
}}
extern "C" void packed(uint32_t *dst, const uint16_t *src, int64_t stride, int rows, int padded, uint32_t flip) {{
  nsa::pack_pairs<1>(dst, 32, src, stride, 0, rows, {WIDTH}, padded, flip);
}}
extern "C" void paired(uint32_t *dst, const uint16_t *src, int64_t stride, int rows, int padded) {{
  nsa::pair_rows<1>(dst, 48, src, stride, 0, rows, padded, {WIDTH}, 0);
}}
extern "C" void transposed(uint16_t *dst, const uint16_t *src, int64_t stride, int rows, int padded) {{
  nsa::transpose_rows<{WIDTH}>(dst, padded, src, stride, rows, padded);
}}
extern "C" void softmax(float *S, uint32_t *P, int rows, int padded, float units, float *m, float *l, float *alpha) {{
  nsa::softmax_step_pairs<64, true>(S, P, rows, padded, units, m, l, alpha);
}}
"""
TEXT = f"{prelude(paired=True)}\n{ENTRIES}"
HERE = [t for t in CPU_TARGETS.values() if runs_here(t)]
# The text for pairs as any machine compiles it.
BY_NUMBERS = dataclasses.replace(next(t for t in HERE if not t.pairs), pairs="numbers")
UNITS = [BY_NUMBERS, *(t for t in HERE if t.pairs)]
targets = pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
units = pytest.mark.parametrize("target", UNITS, ids=lambda t: t.pairs)
counts = st.integers(1, 32)


Library = Callable[[str, CpuTarget], ctypes.CDLL]


def passed(*values: Any) -> list[Any]:
    """Return tensors by address, and integers in the 64 bits that every argument has room for."""
    as_c = {Tensor: lambda x: ctypes.c_void_p(x.data_ptr()), float: ctypes.c_float, int: ctypes.c_int64}
    return [as_c[type(v)](v) for v in values]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def in_pairs(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return x [rows, columns], padded by zeros, with rows two by two: [pairs, columns, 2]."""
    padded = torch.zeros(rows, columns, dtype=x.dtype)
    padded[: x.shape[0], : x.shape[1]] = x
    return padded.unflatten(0, (-1, 2)).transpose(1, 2).contiguous()


@targets
@pytest.mark.parametrize("added", [0, 1])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 16, 32), (16, 32, 64), (48, 48, 96), (70, 80, 32)])
def test_a_product_is_that_of_float64(
    target: CpuTarget, added: int, rows: int, columns: int, depth: int, library: Library
) -> None:
    a, b = numbers(rows + 16, depth + 32), numbers(depth, columns, seed=1)
    c = torch.randn(rows + 16, columns)
    wanted = added * c[:rows].double() + a[:rows, :depth].double() @ b.double()
    entries = library(TEXT, target)
    entries.opened()
    pairs = in_pairs(b, depth, columns)
    entries.product(*passed(c, columns, a, depth + 32, pairs, columns, rows, columns, depth, added))
    entries.closed()
    # A sum of n products in any order errs by at most n * 2^-24 times the sum of their absolute values.
    bound = (depth + 1) * 2.0**-24 * (a[:rows, :depth].double().abs() @ b.double().abs() + added * c[:rows].abs())
    assert bool(((c[:rows] - wanted).abs() <= bound + 1e-6 * added).all())


@targets
@given(rows=counts, flip=st.sampled_from([0, 0x80008000]))
@drawn(12)
def test_rows_are_laid_out_in_pairs_and_transposed(target: CpuTarget, rows: int, flip: int, library: Library) -> None:
    """What lies between rows, behind them, and in the result before is NaN."""
    entries, nan = library(TEXT, target), float("nan")
    x = torch.full((rows, WIDTH + 5), nan, dtype=torch.bfloat16)
    x[:, :WIDTH] = numbers(rows, WIDTH, seed=rows)
    kept = x[:, :WIDTH]
    columns, by_rows, across = (torch.full(s, nan, dtype=torch.bfloat16) for s in ((32, 32, 2), (16, 48, 2), (48, 32)))
    entries.packed(*passed(columns, x, WIDTH + 5, rows, 64, flip))
    entries.paired(*passed(by_rows, x, WIDTH + 5, rows, 32))
    entries.transposed(*passed(across, x, WIDTH + 5, rows, 32))
    wanted = in_pairs(kept.T, 64, 32)
    signed = (wanted if not flip else torch.where(wanted == 0, wanted, -wanted)).contiguous()
    assert torch.equal(columns, signed)
    assert torch.equal(by_rows, in_pairs(kept, 32, 48))
    assert torch.equal(across[:WIDTH, :rows], kept.T) and not bool(across[:, rows:].any())
    assert not bool(across[WIDTH:].any())


@targets
@given(rows=counts, units=st.sampled_from([0.01, 1.0, 30.0]))
@drawn(12)
def test_a_softmax_in_pairs_is_that_of_float64(target: CpuTarget, rows: int, units: float, library: Library) -> None:
    """In two steps, the second of which has greater scores in some lanes; one lane sees nothing, one meets NaN."""
    steps, lanes = [torch.randn(rows, 64), 3 * torch.randn(rows, 64)], 64
    for s in steps:
        s[:, 5] = -torch.inf
    steps[1][0, 9] = torch.nan
    top, total, alpha = torch.full((lanes,), -torch.inf), torch.zeros(lanes), torch.zeros(lanes)
    found, exact = [], torch.cat(steps).double() * units
    for s in steps:
        given_s, pairs = s.clone(), torch.full((16, lanes, 2), torch.nan, dtype=torch.bfloat16)
        library(TEXT, target).softmax(*passed(given_s, pairs, rows, 32, units, top, total, alpha))
        unpaired = pairs.transpose(1, 2).flatten(0, 1)
        assert not bool(unpaired[rows:].any())
        assert torch.equal(unpaired[:rows].isnan(), given_s.isnan())
        good = ~given_s.isnan()
        assert torch.equal(unpaired[:rows][good], given_s.bfloat16()[good]), "weights in pairs are those kept, rounded"
        found = [*(x * alpha.double() for x in found), given_s.double()]
    weights = torch.cat(found)
    assert top[5] == -torch.inf and total[5] == 0 and not bool(weights[:, 5].any()) and bool(total[9].isnan())
    seen = [lane for lane in range(lanes) if lane not in (5, 9)]
    scores = exact[:, seen] * math.log(2)
    bound = 1e-6 * (1 + float(scores.abs().max()))  # exponents are rounded as float32
    assert (weights[:, seen] / total[seen] - torch.softmax(scores, dim=0)).abs().max() < bound
    assert ((top + total.log2())[seen] * math.log(2) - torch.logsumexp(scores, dim=0)).abs().max() < bound


def test_clang_takes_products_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", shlex.join([sys.executable, "-m", "ziglang", "c++"]))
    words = {
        "x86_64_amx": ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "vcvtne2ps2bf16"),
        "x86_64_v4_bf16": ("vdpbf16ps", "vcvtne2ps2bf16"),
    }
    texts = {name: compile_assembly(TEXT, CPU_TARGETS[name]) for name in words}
    assert all(f"\t{word}\t" in texts[name] for name, found in words.items() for word in found)


def samples() -> list[KernelDesc]:
    """Descs with products over pairs: ragged and whole tiles, groups that fill tiles and such that don't."""
    found = []
    for group, dk, dv in ((16, 64, 64), (3, 80, 50), (20, 32, 128)):
        dims = {"group": group, "dk": dk, "dv": dv}
        for visible in (window(40), causal(), complete(8, 4)):
            found.append(KernelDesc.of("stream_attention", "bfloat16", visible=visible, **dims))
        for source, block in (("plain", 16), ("pairs", 48)):
            chosen = {"reach": "causal", "source": source, "block": block, "n": 3, **dims}
            found.append(KernelDesc.of("gather_attention", "bfloat16", **chosen))
        scored = {"method": "compressed", "block": 16, "n": 4, "initial": 1, "local": 2, "kernel": 8, "stride": 4}
        found.append(KernelDesc.of("scored_attention", "bfloat16", **scored, **dims))
    return found


def launched(target: CpuTarget, desc: KernelDesc, kernels: Path, **values: Any) -> list[Tensor]:
    """Return the outputs of a kernel, computed by one thread and by two: the same bits, and nothing beside them."""
    op, schedule = OPS[desc.op], CpuSchedule(query_lanes=32, key_tile=32, register_rows=4, register_vectors=2)
    artifact = Artifact.load(desc, schedule, target, store=KernelStore(kernels))
    prepare, outputs = op.prepare if desc.direction == "fwd" else op.prepare_backward, []
    for threads in (1, 2):
        with nan_filled():
            launch = prepare(desc, schedule, threads, **values)
        named, found, unharmed = canaries(launch)
        flat = [
            x.data_ptr() if isinstance(x, Tensor) else x
            for x in (named[a.name] for a in artifact.entry.manifest.arguments)
        ]
        artifact.launch(launch.tasks, *flat, threads=threads)
        unharmed()
        outputs.append(found)
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), "the number of threads changes no bit"
    return outputs[0]


@units
@pytest.mark.parametrize("desc", samples(), ids=lambda d: f"{d.op}-{d.readable}-{d.visible}")
@given(tokens=st.integers(1, 90), late=st.integers(0, 40), scale=st.sampled_from([0.1, -0.3, 0.0]))
@drawn(5)
def test_kernels_over_pairs_agree_with_float64(
    target: CpuTarget, desc: KernelDesc, tokens: int, late: int, scale: float, kernels: Path
) -> None:
    op = OPS[desc.op]
    keys = (tokens + late) // 4 if desc.op == "scored_attention" else tokens + late
    values = {
        **make_inputs(desc, Sizes(batch=2, tokens=tokens, keys=keys, kv_heads=2, q_start=late), tokens),
        "scale": scale,
    }
    outputs = launched(target, desc, kernels, **values)
    eager, exact = op.reference(desc, **values), op.reference(desc, **widened(values))
    for name, *triple in zip(op.outputs, outputs, eager, exact, strict=True):
        if name != "indices":
            assert_accurate(*triple, f"{desc} {tokens} {late}: {name}", term=float(name == "lse"))
        else:  # products of bfloat16 numbers are exact, and their sums and the softmax are as float32 rounds them
            windows = desc.size("kernel"), desc.size("stride")
            terms = desc.size("block") // windows[1] * (windows[0] // windows[1]) * desc.size("group")
            assert_selected(
                triple[0], values["q"], values["k"], terms, method="compressed", block_size=desc.size("block"),
                num_selected=desc.size("n"), num_initial=desc.size("initial"), num_local=desc.size("local"),
                kernel=windows[0], stride=windows[1], scale=scale, q_start=late,
            )  # fmt: skip


@units
@pytest.mark.parametrize(
    "desc", [d for d in samples() if backward_descs(d) and ("source", "plain") not in d.dims], ids=lambda d: d.readable
)
@given(tokens=st.integers(1, 90), late=st.integers(0, 40), scale=st.sampled_from([0.1, -0.3, 0.0]))
@drawn(5)
def test_backwards_over_pairs_agree_with_float64(
    target: CpuTarget, desc: KernelDesc, tokens: int, late: int, scale: float, kernels: Path
) -> None:
    op, (by_runs, by_sums) = OPS[desc.op], backward_descs(desc)
    sizes = Sizes(batch=2, tokens=tokens, keys=tokens + late, kv_heads=2, q_start=late)
    values = {**make_inputs(desc, sizes, tokens), "scale": scale}
    found = []
    for given_values in (values, widened(values)):
        leaves = {name: given_values[name].clone().requires_grad_() for name in "qkv"}
        outputs = op.reference(desc, **{**given_values, **leaves})
        found.append(gradients(outputs, leaves.values(), 7, (torch.bfloat16, torch.float32)))
    lse = op.reference(desc, **widened(values))[1].float().contiguous()
    out_shape = (*values["q"].shape[:3], values["v"].shape[3])
    douts = {"dout": draw(*out_shape, seed=7, dtype=torch.bfloat16), "dlse": draw(*lse.shape, seed=8)}
    shared = {name: values[name] for name in ("q", "k", "v", "q_start")}
    by_lists: dict[str, Any] = {}
    if desc.op == "gather_attention":
        packs = backward_pack_descs(desc).items()
        by_lists = {name: OPS["pack_blocks"].reference(d, x=values[name[0]])[0] for name, d in packs}
        by_lists["block_indices"] = values["block_indices"]
    grad_q, parts_k, parts_v = launched(target, by_runs, kernels, **shared, scale=scale, lse=lse, **douts, **by_lists)
    grads = launched(target, by_sums, kernels, **shared, parts_k=parts_k, parts_v=parts_v, scale=scale)
    largest = max(float(x.abs().max()) for x in found[1])
    for name, *triple in zip("qkv", (grad_q, *grads), *found, strict=True):
        assert_accurate(*triple, f"{desc} {tokens} {late}: d{name}", term=term_of(triple[-1], largest))
