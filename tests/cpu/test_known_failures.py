"""One test per class of failure that other NSA implementations are known for (kf01 .. kf18), on compiled kernels.

Short and direct; the wide tests of the same things are in the files beside this one. Class 3, offsets past 2^31, and
class 8, memory, are in test_memory.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cases import SPEC_KERNELS, SPECS, kernels_of, nsa, nsa_inputs, qkv, with_backward
from torch import Tensor

from nsa_codegen import functional
from nsa_codegen.desc import KernelDesc
from nsa_codegen.index_sets import causal
from nsa_codegen.lowering import lower
from nsa_codegen.needed import compress_desc
from nsa_codegen.program import Path as AttentionPath
from nsa_codegen.program import Program
from nsa_codegen.selection import select
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import CPU_TARGETS
from nsa_codegen.tiling import RowTile

SPEC, DTYPE = SPECS["g4-f32"]
PAPER_SELECTION = KernelDesc.of(
    "select_blocks", "float32", method="compressed", group=1, dk=2, block=64, n=2, initial=0, local=1, kernel=32,
    stride=16,
)  # fmt: skip
DENSE = Program(
    name="dense", num_heads=4, num_kv_heads=1, head_dim=64, value_dim=SPEC.dv,
    paths=(AttentionPath(name="all", visible=causal()),),
)  # fmt: skip
MEAN = compress_desc("mean", "float32", kernel=SPEC.kernel, stride=SPEC.stride, dim=64)
KERNELS = [*SPEC_KERNELS, PAPER_SELECTION, *kernels_of(DENSE, torch.float32), *with_backward([MEAN])]
HERE = Path(__file__).parent


def naive(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention of one key head in float64, `seen` [T, S]."""
    scores = torch.einsum("bthd,bsd->bhts", q.double(), k[:, :, 0].double()) * q.shape[3] ** -0.5
    return torch.einsum("bhts,bsd->bthd", scores.masked_fill(~seen, -math.inf).softmax(-1), v[:, :, 0].double())


def run_python(code: str, kernels: Path, **environment: str) -> str:
    """Run `code` in a fresh process that may load kernels but not build any; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(HERE)],
        env={**os.environ, "NSA_CODEGEN_HOME": str(kernels), "NSA_CODEGEN_NO_BUILD": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("group", [1, 2, 3, 4, 8, 16])
def test_kf01_small_groups_are_neither_refused_nor_padded(group: int) -> None:
    """Elsewhere groups below 16 heads are refused, or padded to 16 at up to 16 times the work."""
    tile = RowTile.of(group, 64)
    assert tile.queries * tile.heads * tile.chunks >= 0.9 * 64
    name = next(n for n, (spec, _) in SPECS.items() if spec.group == group)
    spec, x = nsa_inputs(name, 20)
    assert nsa(spec, x).shape == (2, 20, spec.num_heads, spec.dv)


def test_kf02_the_cost_counts_scoring_and_is_below_dense_attention() -> None:
    """Elsewhere benchmarks leave out block scores and top-k, and NSA is slower than dense attention."""
    for tokens, counted in ((8192, 2048), (16384, 2560), (32768, 3584), (65536, 5632)):
        program = NSASpec.paper().program()
        at_end = sum(p.visible.count(tokens - 1, p.keys.length(tokens)) for p in program.paths)
        # The paper counts s / d windows and whole blocks; exactly it is one window, and the rest of t's block, less.
        assert counted - 1 - 64 <= at_end <= counted
    by_path = {c.path: c for c in NSASpec.paper().program().cost(16384)}
    attended = 2 * 64 * by_path["selected"].pairs * (192 + 128)
    assert by_path["selected"].operations - attended == 2 * 64 * by_path["compressed"].pairs * 192
    dense = Program(
        name="dense", num_heads=64, num_kv_heads=4, head_dim=192, value_dim=128,
        paths=(AttentionPath(name="all", visible=causal()),),
    ).cost(16384)  # fmt: skip
    assert 2 * sum(c.operations for c in by_path.values()) < dense[0].operations


def test_kf04_later_keys_with_greater_scores_rescale_what_was_summed() -> None:
    """Elsewhere decode never rescales its accumulator: right only while the maximum comes first."""
    x = qkv(SPEC, DTYPE, 300, batch=1)
    k, v = x["k"], x["v"]
    k = k / k.norm(dim=-1, keepdim=True) + torch.arange(300).view(1, -1, 1, 1) * 0.05
    q = torch.ones_like(x["q"][:, -1:])
    blocks = torch.arange(5, dtype=torch.int32).view(1, 1, 1, 5) * 4 + 2
    seen = torch.zeros(1, 300, dtype=torch.bool)
    for j in blocks.flatten().tolist():
        seen[0, j * 16 : j * 16 + 16] = True
    for order in (blocks, blocks.flip(-1)):
        out, _ = functional.selected_attention(q, k, v, order, block_size=16, impl="compiled")
        torch.testing.assert_close(out.double(), naive(q, k, v, seen), rtol=1e-4, atol=1e-5)
    dense = functional.attention(DENSE, q, {"all": (k, v)}, impl="compiled")
    torch.testing.assert_close(
        dense.double(), naive(q, k, v, torch.ones(1, 300, dtype=torch.bool)), rtol=1e-4, atol=1e-5
    )


def test_kf05_a_compressed_token_is_seen_from_its_last_token_on() -> None:
    """Elsewhere windows are seen before they are complete, and the loss falls to 0 since the future leaks."""
    x = qkv(SPEC, DTYPE, 60, batch=1)
    length = (60 - SPEC.kernel) // SPEC.stride + 1
    v = torch.eye(length, SPEC.dv).view(1, length, 1, SPEC.dv)
    out, _ = functional.compressed_attention(
        x["q"], x["k"][:, :length], v, kernel=SPEC.kernel, stride=SPEC.stride, impl="compiled"
    )
    for t in range(60):
        weights = out[0, t, :, :length]
        for i in range(length):
            assert bool((weights[:, i] > 0).all()) == (i * SPEC.stride + SPEC.kernel - 1 <= t), (t, i)


def test_kf06_a_low_score_is_not_mistaken_for_a_masked_one() -> None:
    """Elsewhere finite sentinels leak weight to masked keys, and rows without keys are NaN."""
    x = qkv(SPEC, DTYPE, 40, batch=1)
    q = torch.full_like(x["q"], 1e4)
    k = torch.where(torch.arange(40).view(1, -1, 1, 1) < 20, -1e10, 1e10).expand_as(x["k"]).contiguous()
    out, lse = functional.window_attention(q, k, x["v"], window_size=SPEC.window_size, impl="compiled")
    seen = torch.ones(40, 40, dtype=torch.bool).tril()
    torch.testing.assert_close(out.double(), naive(q, k, x["v"], seen), rtol=1e-4, atol=1e-5)
    assert bool(lse.isfinite().all())


def test_kf07_fewer_queries_than_keys() -> None:
    """Elsewhere a query length other than the key length crashes or is taken from position 0."""
    x = qkv(SPEC, DTYPE, 77, batch=2)
    q, k, v = x["q"][:, -5:], x["k"], x["v"]
    t, j = torch.arange(72, 77)[:, None], torch.arange(77)[None, :]
    out, _ = functional.window_attention(q, k, v, window_size=SPEC.window_size, impl="compiled")
    seen = (j <= t) & (j > t - SPEC.window_size)
    torch.testing.assert_close(out.double(), naive(q, k, v, seen), rtol=1e-5, atol=1e-5)
    out = functional.attention(DENSE, q, {"all": (k, v)}, impl="compiled")
    torch.testing.assert_close(out.double(), naive(q, k, v, j <= t), rtol=1e-5, atol=1e-5)


def test_kf09_equal_runs_give_equal_bits_on_many_threads() -> None:
    """Elsewhere atomics and unstable top-k make two trainings differ."""
    torch.set_num_threads(4)
    spec, x = nsa_inputs("g4-f32", 200)
    leaves = {name: value.requires_grad_() for name, value in x.items()}
    runs = []
    for _ in range(3):
        out = nsa(spec, leaves)
        runs.append([out, *torch.autograd.grad(out.square().sum(), list(leaves.values()))])
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_kf10_sequences_shorter_than_every_block(name: str, tokens: int) -> None:
    """Elsewhere they crash, as do more selected blocks than there are."""
    spec, x = nsa_inputs(name, tokens)
    leaves = [value.requires_grad_() for value in x.values()]
    out = nsa(spec, x)
    assert bool(out.isfinite().all())
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(out.sum(), leaves))


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_kf11_every_processor_has_its_text_from_any_machine(target: str) -> None:
    """Elsewhere there is one GPU generation, and no CPU at all."""
    desc = KernelDesc.of("stream_attention", "float32", visible=causal(), group=2, dk=16, dv=16)
    source = lower(desc, select(desc, CPU_TARGETS[target]).schedule, CPU_TARGETS[target])
    assert source.entry in source.text
    assert f"target {target}" in source.text


def test_kf12_backward_takes_a_few_times_the_forward() -> None:
    """Elsewhere it is ten times and more. Its products are 2.5 times the forward's; processor time, best of three."""
    x = qkv(SPEC, DTYPE, 2048, batch=1)
    leaves = [value.requires_grad_() for value in x.values()]
    blocks = torch.randint(0, 128, (1, 2048, 1, 5), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    for path in ("selected", "window"):
        times = []
        for _ in range(4):
            start = time.process_time()
            if path == "window":
                out, _ = functional.window_attention(*leaves, window_size=SPEC.window_size, impl="compiled")
            else:
                out, _ = functional.selected_attention(*leaves, blocks, block_size=16, impl="compiled")
            middle = time.process_time()
            torch.autograd.grad(out.sum(), leaves)
            times.append((middle - start, time.process_time() - middle))
        forward, backward = (min(part) for part in zip(*times[1:], strict=True))
        assert backward < 8 * forward, path


COLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from cases import SPEC_KERNELS
from nsa_codegen import dispatch
import torch
dispatch.kernel(SPEC_KERNELS[0])
start = time.perf_counter()
for desc in SPEC_KERNELS[1:]:
    dispatch.kernel(desc)
print((time.perf_counter() - start) / (len(SPEC_KERNELS) - 1))
print([m for m in ("tilelang", "tvm", "triton") if m in sys.modules])
"""


def test_kf13_a_second_process_loads_in_milliseconds_and_builds_nothing(kernels: Path) -> None:
    """Elsewhere every process compiles and tunes again, for minutes. Building is forbidden here."""
    seconds, modules = run_python(COLD, kernels).splitlines()
    assert float(seconds) < 0.02
    assert modules == "[]"


LIGHT = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"tilelang", "tvm", "tvm_ffi", "triton", "flash_attn", "einops", "transformers"}:
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
from cases import SPECS, nsa, nsa_inputs
import torch
for name in SPECS:
    spec, x = nsa_inputs(name, 40)
    leaves = [value.requires_grad_() for value in x.values()]
    grads = torch.autograd.grad(nsa(spec, x).sum(), leaves)
print("ran")
"""


def test_kf14_built_kernels_run_without_tilelang_triton_or_flash_attn(kernels: Path) -> None:
    """Elsewhere the import fails without a heavy package that one path needs, or with a newer version of it."""
    assert run_python(LIGHT, kernels).strip() == "ran"


def test_kf15_fakes_say_what_kernels_return() -> None:
    """Elsewhere an op's fake has another shape or dtype, and compiled models break."""
    ops, x = torch.ops.nsa_codegen, qkv(SPEC, DTYPE, 20, batch=2)
    q, k, v = (value.requires_grad_() for value in x.values())
    seen = SPEC.program().path("window").visible
    lists = torch.zeros(2, 20, 1, SPEC.num_selected_blocks, dtype=torch.int32)
    outs = [torch.randn(2, 20, 4, SPEC.dv, requires_grad=True) for _ in range(3)]
    gates = torch.rand(2, 20, 4, 3, requires_grad=True)
    sizes = ("compressed", 16, 5, 1, 2, SPEC.kernel, SPEC.stride)
    calls = {
        "stream_attention": (q, k, v, seen.text, 0, 0.1),
        "gather_attention": (q, k, v, lists, 16, True, 0, 0.1),
        "select_blocks": (q.detach(), k.detach(), *sizes, 0.1, 0),
        "combine": (outs, gates),
        "compress": (k, "mean", SPEC.kernel, SPEC.stride, *[None] * 7),
    }
    for op, arguments in calls.items():
        torch.library.opcheck(getattr(ops, op).default, arguments)


@pytest.mark.parametrize("position", [0, 31, 32, 63, 64, 100, 127, 128, 159])
def test_kf16_a_query_that_matches_one_window_chooses_its_block(position: int) -> None:
    """Elsewhere the paper's 1-based equation is read as 0-based, and the chosen blocks are one off."""
    tokens, window = 400, position // 16
    k = torch.zeros(1, (tokens - 32) // 16 + 1, 1, 2)
    k[0, window, 0, 0] = 1000.0
    q = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    chosen = functional.select_blocks(
        q, k, method="compressed", block_size=64, num_selected=2, kernel=32, stride=16, q_start=tokens - 1,
        impl="compiled",
    )  # fmt: skip
    overlap = [len(set(range(64 * j, 64 * j + 64)) & set(range(16 * window, 16 * window + 32))) for j in range(6)]
    best = max(range(6), key=lambda j: (overlap[j], -j))
    assert chosen.flatten().tolist() == [best, (tokens - 1) // 64]


def test_kf17_padding_is_not_block_0() -> None:
    """Elsewhere -1 in a list is read as block 0."""
    x = qkv(SPEC, DTYPE, 64, batch=1)
    v = x["v"].clone()
    v[:, :16] = 1e6
    lists = torch.full((1, 64, 1, SPEC.num_selected_blocks), -1, dtype=torch.int32)
    lists[..., 2] = torch.arange(64).view(1, 64, 1) // 16
    out, _ = functional.selected_attention(x["q"], x["k"], v, lists, block_size=16, impl="compiled")
    assert bool((out[:, 16:].abs() < 100).all())
    assert bool((out[:, :16] > 1e5).all())


@pytest.mark.parametrize("name", ["g4-f32", "g8-f16", "g3-bf16"])
def test_kf18_a_window_of_w_is_w_tokens_with_the_query_itself(name: str) -> None:
    """Elsewhere it is w + 1. Equal keys weigh equally, so the weights count the tokens; values tell which they are."""
    spec, dtype = SPECS[name]
    x, w = qkv(spec, dtype, 60, batch=1), spec.window_size
    v = torch.zeros_like(x["v"])
    for t in (w - 1, w, 59):
        for j, inside in ((t, True), (t - w + 1, True), (t - w, False), (t + 1, False)):
            if 0 <= j < 60:
                v.zero_()[:, j] = 1.0
                out, _ = functional.window_attention(
                    x["q"], torch.zeros_like(x["k"]), v, window_size=w, impl="compiled"
                )
                expected = 1 / min(w, t + 1) if inside else 0.0
                assert out[0, t].float().flatten().tolist() == pytest.approx(
                    [expected] * (spec.num_heads * spec.dv), rel=torch.finfo(dtype).eps
                )
