"""Kernels as TileLang emits them, whole: results against float64, a known fault of TileLang, and mutants."""

import json

import pytest
import tilelang
import tilelang.language as T
import torch
from tilelang import tvm

from nsa_codegen.executor import Executable, LaunchError
from nsa_codegen.executor.launch import bind, evaluate, execute, launch_facts
from nsa_codegen.executor.mutants import executable_of, sample_of

ORDERS = [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2), ("random", 3)]
WINDOW = 128
LOG2E = 1.4426950408889634


def window(constant_extent):
    """Sliding-window attention forward; the pipelined loop's extent is constant, or its start is the block's own."""
    m = n = d = 64
    w = WINDOW
    batch, length, heads = (T.dynamic(name) for name in ("batch", "length", "heads"))

    @T.prim_func
    def attention(
        q: T.Tensor((batch, length, heads, d), "float16"),
        k: T.Tensor((batch, length, heads, d), "float16"),
        v: T.Tensor((batch, length, heads, d), "float16"),
        o: T.Tensor((batch, length, heads, d), "float16"),
        scale: T.float32,
    ):
        with T.Kernel(T.ceildiv(length, m), heads, batch, threads=128) as (bx, h, b):
            qs = T.alloc_shared((m, d), "float16")
            ks = T.alloc_shared((n, d), "float16")
            vs = T.alloc_shared((n, d), "float16")
            s = T.alloc_fragment((m, n), "float32")
            p = T.alloc_fragment((m, n), "float16")
            acc = T.alloc_fragment((m, d), "float32")
            top = T.alloc_fragment((m,), "float32")
            before = T.alloc_fragment((m,), "float32")
            shrink = T.alloc_fragment((m,), "float32")
            part = T.alloc_fragment((m,), "float32")
            total = T.alloc_fragment((m,), "float32")
            T.copy(q[b, bx * m : (bx + 1) * m, h, :], qs)
            T.fill(acc, 0)
            T.fill(total, 0)
            T.fill(top, -1e30)
            first = T.max(0, (bx * m - w) // n)
            for kk in T.Pipelined(
                0 if constant_extent else first, (w + m) // n + 1 if constant_extent else bx + 1, num_stages=2
            ):
                start = (first + kk) * n if constant_extent else kk * n
                T.copy(k[b, start : start + n, h, :], ks)
                T.clear(s)
                T.gemm(qs, ks, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                for i, j in T.Parallel(m, n):
                    s[i, j] = T.if_then_else(
                        T.And(start + j <= bx * m + i, start + j > bx * m + i - w),
                        s[i, j] * scale,
                        -T.infinity("float32"),
                    )
                T.copy(top, before)
                T.reduce_max(s, top, dim=1, clear=False)
                for i in T.Parallel(m):
                    shrink[i] = T.exp2(before[i] - top[i])
                for i, j in T.Parallel(m, n):
                    s[i, j] = T.exp2(s[i, j] - top[i])
                T.reduce_sum(s, part, dim=1)
                for i in T.Parallel(m):
                    total[i] = total[i] * shrink[i] + part[i]
                T.copy(s, p)
                for i, j in T.Parallel(m, d):
                    acc[i, j] *= shrink[i]
                T.copy(v[b, start : start + n, h, :], vs)
                T.gemm(p, vs, acc, policy=T.GemmWarpPolicy.FullRow)
            for i, j in T.Parallel(m, d):
                acc[i, j] /= total[i]
            T.copy(acc, o[b, bx * m : (bx + 1) * m, h, :])

    return attention


def product(dtype, threads):
    """C = A B + A Bt^T through shared memory, and the same added to a float32 tensor by atomics."""
    m = n = 128
    step, depth = 32, 72
    rows, columns = T.dynamic("rows"), T.dynamic("columns")

    @T.prim_func
    def gemm(
        a: T.Tensor((rows, depth), dtype),
        b: T.Tensor((depth, columns), dtype),
        bt: T.Tensor((columns, depth), dtype),
        c: T.Tensor((rows, columns), dtype),
        sums: T.Tensor((rows, columns), "float32"),
    ):
        with T.Kernel(T.ceildiv(columns, n), T.ceildiv(rows, m), threads=threads) as (bx, by):
            left = T.alloc_shared((m, step), dtype)
            right = T.alloc_shared((step, n), dtype)
            right_t = T.alloc_shared((n, step), dtype)
            out = T.alloc_shared((m, n), dtype)
            acc = T.alloc_fragment((m, n), "float32")
            T.clear(acc)
            for kk in T.Pipelined(T.ceildiv(depth, step), num_stages=2):
                T.copy(a[by * m, kk * step], left)
                T.copy(b[kk * step, bx * n], right)
                T.copy(bt[bx * n, kk * step], right_t)
                T.gemm(left, right, acc)
                T.gemm(left, right_t, acc, transpose_B=True)
            T.copy(acc, out)
            T.copy(out, c[by * m, bx * n])
            for i, j in T.Parallel(m, n):
                if by * m + i < rows and bx * n + j < columns:
                    T.atomic_add(sums[by * m + i, bx * n + j], acc[i, j])

    return gemm


def lower(function, arch):
    target = tvm.target.Target({"kind": "cuda", "arch": arch})
    with target, tvm.transform.PassContext(opt_level=3):
        return tilelang.lower(function, target=target)


def attention_inputs(length):
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, length, 2, 64, generator=generator).half() for _ in range(3))
    qd, kd, vd = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = qd @ kd.transpose(-1, -2) * 64**-0.5
    t = torch.arange(length)
    visible = (t[None] <= t[:, None]) & (t[None] > t[:, None] - WINDOW)
    exact = (scores.masked_fill(~visible, -torch.inf).softmax(-1) @ vd).transpose(1, 2)
    eager = (scores.float().masked_fill(~visible, -torch.inf).softmax(-1).half() @ v.transpose(1, 2)).transpose(1, 2)
    bound = 3 * float((eager.double() - exact).abs().max()) + 2 * 2.0**-11 * float(exact.abs().max())
    return (q, k, v), exact, bound


@pytest.fixture(scope="module")
def attention(cache):
    made = {}

    def of(arch):
        if arch not in made:
            artifact = lower(window(True), arch)
            made[arch] = Executable.of(artifact.kernel_source, arch, cache), launch_facts(artifact)
        return made[arch]

    return of


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120a"])
def test_window_attention(attention, arch):
    executable, facts = attention(arch)
    for length in (1, 200, 256):
        (q, k, v), exact, bound = attention_inputs(length)
        for order, seed in ORDERS:
            o = torch.full_like(q, torch.nan)
            (report,) = execute(executable, facts, [q, k, v, o, 64**-0.5 * LOG2E], order=order, seed=seed)
            assert report.passed, str(report)
            assert float((o.double() - exact).abs().max()) <= bound, (length, order)


@pytest.mark.parametrize(
    "arch, dtype, threads", [("sm_80", "bfloat16", 128), ("sm_90a", "float16", 256), ("sm_90a", "bfloat16", 128)]
)
def test_products_with_bulk_stores_and_atomics(cache, arch, dtype, threads):
    artifact = lower(product(dtype, threads), arch)
    executable, facts = Executable.of(artifact.kernel_source, arch, cache), launch_facts(artifact)
    torch.manual_seed(0)
    a, b, bt = (torch.randn(s).to(getattr(torch, dtype)) for s in ((200, 72), (72, 136), (136, 72)))
    exact = a.double() @ b.double() + a.double() @ bt.double().T
    for order, seed in ORDERS:
        c, sums = torch.full((200, 136), torch.nan).to(a.dtype), torch.zeros(200, 136)
        (report,) = execute(executable, facts, [a, b, bt, c, sums], order=order, seed=seed)
        assert report.passed, str(report)
        torch.testing.assert_close(sums.double(), exact, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(c.double(), exact, rtol=2 * torch.finfo(a.dtype).eps, atol=1e-4)


def test_tilelang_forgets_a_wait_when_a_pipeline_starts_at_a_block_dependent_tile(cache):
    """TileLang 0.1.15 for sm_80: tiles are read before their copies arrive, and copies are left at exit."""
    artifact = lower(window(False), "sm_80")
    executable, facts = Executable.of(artifact.kernel_source, "sm_80", cache), launch_facts(artifact)
    (q, k, v), _, _ = attention_inputs(300)
    for order in ("forward", "reverse", "random"):
        (report,) = execute(executable, facts, [q, k, v, torch.empty_like(q), 1.0], order=order)
        assert {f.kind for f in report.findings} >= {"read in flight", "pending at exit"}, str(report)
        lines = artifact.kernel_source.splitlines()
        early = [lines[f.line - 1] for f in report.findings if f.kind == "read in flight"]
        assert all("ldmatrix" in line or "ptx_ldmatrix" in line or "ldsm" in line for line in early), early
    artifact = lower(window(False), "sm_90a")
    executable, facts = Executable.of(artifact.kernel_source, "sm_90a", cache), launch_facts(artifact)
    (report,) = execute(executable, facts, [q, k, v, torch.empty_like(q), 1.0])
    assert report.passed, str(report)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_mutants_are_caught_or_change_nothing(attention, arch):
    """Every damaged wait and synchronisation, and a sample of masks and indices.

    A mutant counts as redundant only if no order finds anything and the output is bit for bit the original's.
    """
    executable, facts = attention(arch)
    (q, k, v), exact, bound = attention_inputs(300)
    kernel = facts["launches"][0]["kernel"]

    def outcome(candidate):
        same = True
        for order, seed in ORDERS[:3]:
            o = torch.full_like(q, torch.nan)
            (report,) = execute(
                candidate, facts, [q, k, v, o, 64**-0.5 * LOG2E], order=order, seed=seed, budget=500_000
            )
            assert not report.status.startswith("not executed"), report.status
            if not report.passed or not float((o.double() - exact).abs().max()) <= bound:
                return "caught"
            same &= torch.equal(o, original)
        return "redundant" if same else "missed"

    original = torch.full_like(q, torch.nan)
    execute(executable, facts, [q, k, v, original, 64**-0.5 * LOG2E])
    assert outcome(executable) == "redundant"
    found = {"caught": [], "redundant": [], "missed": []}
    for mutant in sample_of(executable.kernels[kernel], seed=0, mask=20, index=20):
        found[outcome(executable_of(mutant, executable))].append(mutant)
    effective = len(found["caught"]) + len(found["missed"])
    assert effective >= 35
    assert len(found["caught"]) >= 0.95 * effective, [(m.line, m.what) for m in found["missed"]]
    untouched = [m for m in found["redundant"] if m.family in ("synchronisation", "wait")]
    # sm_80: a barrier that another one follows before the first read. sm_90a: one of the two barriers at the start, and
    # the producers' first waits of each of the four buffers, which nobody has filled yet.
    assert len(untouched) <= (1 if arch == "sm_80" else 6), [(m.line, m.what) for m in untouched]


def test_launch_facts_are_plain_data(attention):
    _, facts = attention("sm_90a")
    assert json.loads(json.dumps(facts)) == facts
    assert [a["name"] for a in facts["arguments"]] == ["q", "k", "v", "o", "scale"]
    q = torch.zeros(3, 100, 2, 64, dtype=torch.float16)
    names = bind(facts, [q, q, q, q, 1.0])
    (launch,) = facts["launches"]
    assert [evaluate(x, names) for x in launch["grid"]] == [2, 2, 3]
    maps = {p["map"]["tensor"]: p["map"] for p in launch["parameters"] if "map" in p}
    assert set(maps) == {"q", "k", "v"}
    assert [evaluate(x, names) for x in maps["k"]["strides"]] == [256, 128, 25600]
    assert [evaluate(x, names) for x in maps["k"]["box"]] == [64, 64, 1, 1]
    with pytest.raises(LaunchError, match=r"argument v: a size is 99"):
        bind(facts, [q, q, q[:, :99].contiguous(), q, 1.0])
    for other in (q.float(), q.bfloat16(), q.mT.contiguous().mT):
        with pytest.raises(LaunchError, match="argument v must be a contiguous float16 tensor, not torch"):
            bind(facts, [q, q, other, q, 1.0])
