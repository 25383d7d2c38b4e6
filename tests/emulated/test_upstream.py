"""What TileLang 0.1.15 gets wrong for GPUs, each as small as it comes; docs/upstream.md has the table.

A test here fails when a later version has mended the fault: then its work-around can go. The pipelined loop that starts
at a block-dependent tile is in test_kernels.
"""

import re

import pytest
import tilelang
import tilelang.language as T
import torch
from tilelang import tvm

from nsa_codegen.executor import Executable
from nsa_codegen.executor.launch import execute, launch_facts
from nsa_codegen.workarounds import corrected_pipelines

TILE = 64


def lower(function, arch):
    target = tvm.target.Target({"kind": "cuda", "arch": arch})
    with target, tvm.transform.PassContext(opt_level=3):
        return tilelang.lower(function, target=target)


def run(artifact, arch, cache, arguments, order="forward"):
    executable = Executable.of(artifact.kernel_source, arch, cache)
    (report,) = execute(executable, launch_facts(artifact), arguments, order=order)
    return report


def chained_products():
    """o = (q k^T) v over the tiles up to the block's own: two copies in a loop whose extent is a variable."""
    size = T.dynamic("size")

    @T.prim_func
    def products(
        q: T.Tensor((size, TILE), "float16"),
        k: T.Tensor((size, TILE), "float16"),
        v: T.Tensor((size, TILE), "float16"),
        o: T.Tensor((size, TILE), "float32"),
    ):
        with T.Kernel(T.ceildiv(size, TILE), threads=128) as x:
            qs = T.alloc_shared((TILE, TILE), "float16")
            ks = T.alloc_shared((TILE, TILE), "float16")
            vs = T.alloc_shared((TILE, TILE), "float16")
            s = T.alloc_fragment((TILE, TILE), "float32")
            p = T.alloc_fragment((TILE, TILE), "float16")
            acc = T.alloc_fragment((TILE, TILE), "float32")
            steps = T.alloc_var("int32")
            steps = x + 1
            T.copy(q[x * TILE : (x + 1) * TILE, :], qs)
            T.clear(acc)
            for kk in T.Pipelined(steps, num_stages=2):
                T.copy(k[kk * TILE : (kk + 1) * TILE, :], ks)
                T.clear(s)
                T.gemm(qs, ks, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.copy(s, p)
                T.copy(v[kk * TILE : (kk + 1) * TILE, :], vs)
                T.gemm(p, vs, acc, policy=T.GemmWarpPolicy.FullRow)
            T.copy(acc, o[x * TILE : (x + 1) * TILE, :])

    return products


def test_the_epilogue_of_a_loop_of_two_copies_has_an_extent_that_nobody_simplifies(cache):
    """sm_80: it is such as `n + 2 - n`; the wait counts of a loop that is not unrolled can't be printed."""
    with pytest.raises(Exception, match=r"Downcast from tirx\.Sub to ir\.IntImm failed"):
        lower(chained_products(), "sm_80")
    with corrected_pipelines():
        artifact = lower(chained_products(), "sm_80")
    assert "cp_async" in artifact.kernel_source
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randint(-2, 3, (200, TILE), generator=generator).half() for _ in range(3))  # exact, below 2048
    block = torch.arange(200) // TILE
    exact = ((q.double() @ k.double().T) * (block[None] <= block[:, None])) @ v.double()
    for order in ("forward", "reverse", "random"):
        o = torch.full((200, TILE), torch.nan)
        report = run(artifact, "sm_80", cache, [q, k, v, o], order)
        assert report.passed, str(report)
        assert torch.equal(o.double(), exact)


def listed_products(*, synchronised=True, named=False):
    """o = sum over listed tiles of (q k^T) v, the list and q stored to shared memory by all threads before the loop."""
    size = T.dynamic("size")

    @T.macro
    def load(x, staged, listed, kk):
        if named:
            first = listed[kk] * TILE
            T.copy(x[first : first + TILE, :], staged)
        else:
            T.copy(x[listed[kk] * TILE : listed[kk] * TILE + TILE, :], staged)

    @T.prim_func
    def products(
        listing: T.Tensor((TILE,), "int32"),
        q: T.Tensor((size, TILE), "float16"),
        k: T.Tensor((size, TILE), "float16"),
        v: T.Tensor((size, TILE), "float16"),
        o: T.Tensor((size, TILE), "float32"),
    ):
        with T.Kernel(T.ceildiv(size, TILE), threads=128) as x:
            qs = T.alloc_shared((TILE, TILE), "float16")
            ks = T.alloc_shared((TILE, TILE), "float16")
            vs = T.alloc_shared((TILE, TILE), "float16")
            listed = T.alloc_shared((TILE,), "int32")
            s = T.alloc_fragment((TILE, TILE), "float32")
            p = T.alloc_fragment((TILE, TILE), "float16")
            acc = T.alloc_fragment((TILE, TILE), "float32")
            for i in T.Parallel(TILE):
                listed[i] = listing[i]
            for i, c in T.Parallel(TILE, TILE):
                qs[i, c] = q[T.min(x * TILE + i, size - 1), c]
            if synchronised:
                T.sync_threads()
            T.clear(acc)
            for kk in T.Pipelined(3, num_stages=2):
                load(k, ks, listed, kk)
                T.clear(s)
                T.gemm(qs, ks, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.copy(s, p)
                load(v, vs, listed, kk)
                T.gemm(p, vs, acc, policy=T.GemmWarpPolicy.FullRow)
            T.copy(acc, o[x * TILE : (x + 1) * TILE, :])

    return products


def run_listed(function, cache):
    """Return the report and whether the results are right."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randint(-2, 3, (200, TILE), generator=generator).half() for _ in range(3))
    listing, o = torch.zeros(TILE, dtype=torch.int32), torch.full((200, TILE), torch.nan)
    listing[:3] = torch.tensor([2, 0, 2])
    report = run(lower(function, "sm_90a"), "sm_90a", cache, [listing, q, k, v, o])
    exact = torch.zeros(200, TILE, dtype=torch.float64)
    for tile in (2, 0, 2):
        rows = slice(tile * TILE, (tile + 1) * TILE)
        exact += (q.double() @ k[rows].double().T) @ v[rows].double()
    return report, torch.equal(o.double(), exact)


def test_consumers_do_not_wait_for_what_all_threads_stored_before_the_loop(cache):
    """sm_90a: where producers read what was stored, only they meet after the stores; `T.sync_threads()` mends it."""
    report, _ = run_listed(listed_products(synchronised=False), cache)
    assert {f.kind for f in report.findings} == {"race"}, str(report)
    lines = lower(listed_products(synchronised=False), "sm_90a").kernel_source.splitlines()
    assert all("wgmma" in lines[f.line - 1] for f in report.findings), [lines[f.line - 1] for f in report.findings]
    report, right = run_listed(listed_products(), cache)
    assert report.passed, str(report)
    assert right


def test_a_name_in_a_macro_is_used_before_its_definition():
    """sm_90a: a macro, used twice in a pipelined loop, binds a name to an index that it reads from a buffer."""
    with pytest.raises(Exception, match="variable first has been used before definition"):
        lower(listed_products(named=True), "sm_90a")


def gathered_rows(index):
    """o = sum of the products of gathered rows with themselves, the first entry of each list in an `index` integer."""
    size, entries = T.dynamic("size"), T.dynamic("entries")

    @T.prim_func
    def gather(
        x: T.Tensor((size, TILE), "float16"),
        listing: T.Tensor((entries,), "int32"),
        begin: T.Tensor((1,), index),
        o: T.Tensor((TILE, TILE), "float32"),
    ):
        with T.Kernel(1, threads=128) as _:
            rows = T.alloc_shared((TILE, TILE), "float16")
            acc = T.alloc_fragment((TILE, TILE), "float32")
            first = T.alloc_var(index)
            first = begin[0]
            T.clear(acc)
            for kk in T.Pipelined(entries // TILE, num_stages=2):
                for i, c in T.Parallel(TILE, TILE):
                    rows[i, c] = x[listing[first + kk * TILE + i], c]
                T.gemm(rows, rows, acc, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
            T.copy(acc, o)

    return gather


def test_a_64_bit_index_makes_a_gather_scalar():
    """sm_80: the copy of gathered rows is one asynchronous copy of 16 bytes a thread, or one plain load per element."""
    with corrected_pipelines():
        narrow, wide = (lower(gathered_rows(t), "sm_80").kernel_source for t in ("int32", "int64"))
    assert re.search(r"cp_async_gs\w*<16>", narrow)
    assert not re.search(r"cp_async_gs\w*<16>", wide)
