"""What TileLang 0.1.15 gets wrong, for GPUs unless it says CPU, each as small as it comes; docs/upstream.md lists them.

A test here fails when a later version has mended the fault: then its work-around can go. The pipelined loop that starts
at a block-dependent tile is in test_kernels.
"""

import contextlib
import re

import pytest
import tilelang
import tilelang.language as T
import torch
from tilelang import tvm

from nsa_codegen import lowering_gpu
from nsa_codegen.executor import Executable
from nsa_codegen.executor.launch import execute, launch_facts
from nsa_codegen.lowering_gpu import LoweredGpu
from nsa_codegen.target import GPU_TARGETS
from nsa_codegen.workarounds import corrected_pipelines, without_integer_proofs

TILE = 64


def lower(function, arch):
    target = tvm.target.Target({"kind": "cuda", "arch": arch})
    with target, tvm.transform.PassContext(opt_level=3):
        return tilelang.lower(function, target=target)


def run(artifact, arch, cache, arguments, order="forward", seed=0):
    text = artifact.source.text if isinstance(artifact, LoweredGpu) else artifact.kernel_source
    (report,) = execute(Executable.of(text, arch, cache), launch_facts(artifact), arguments, order=order, seed=seed)
    return report


def lower_ours(function, *, mended=True, specialized=True):
    """Return the function lowered as ours are for sm_90a, with or without what is mended in the device module."""
    with pytest.MonkeyPatch.context() as patch:
        if not mended:
            for name in ("single_warp_copies", "fenced_products"):
                patch.setattr(lowering_gpu, name, lambda module: module)
        return lowering_gpu.lower_gpu(function, GPU_TARGETS["sm_90a"], "a reproduction", specialized=specialized)


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


def exact_products():
    """Return q, k, v for `chained_products`, integers below 2048, and what it makes of them."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randint(-2, 3, (200, TILE), generator=generator).half() for _ in range(3))
    block = torch.arange(200) // TILE
    return q, k, v, ((q.double() @ k.double().T) * (block[None] <= block[:, None])) @ v.double()


def test_the_epilogue_of_a_loop_of_two_copies_has_an_extent_that_nobody_simplifies(cache):
    """sm_80: it is such as `n + 2 - n`; the wait counts of a loop that is not unrolled can't be printed."""
    with pytest.raises(Exception, match=r"Downcast from tirx\.Sub to ir\.IntImm failed"):
        lower(chained_products(), "sm_80")
    with corrected_pipelines():
        artifact = lower(chained_products(), "sm_80")
    assert "cp_async" in artifact.kernel_source
    q, k, v, exact = exact_products()
    for order in ("forward", "reverse", "random"):
        o = torch.full((200, TILE), torch.nan)
        report = run(artifact, "sm_80", cache, [q, k, v, o], order)
        assert report.passed, str(report)
        assert torch.equal(o.double(), exact)


def listed_products(*, synchronised=True, named=False, shared=True, depth=TILE):
    """o = sum over listed tiles of (q k^T) v; all threads store q and, if `shared`, the list before the loop."""
    size = T.dynamic("size")

    @T.macro
    def load(x, staged, listing, kk):
        if named:
            first = listing[kk] * TILE
            T.copy(x[first : first + TILE, :], staged)
        else:
            T.copy(x[listing[kk] * TILE : listing[kk] * TILE + TILE, :], staged)

    @T.prim_func
    def products(
        listing: T.Tensor((TILE,), "int32"),
        q: T.Tensor((size, depth), "float16"),
        k: T.Tensor((size, depth), "float16"),
        v: T.Tensor((size, TILE), "float16"),
        o: T.Tensor((size, TILE), "float32"),
    ):
        with T.Kernel(T.ceildiv(size, TILE), threads=128) as x:
            qs = T.alloc_shared((TILE, depth), "float16")
            ks = T.alloc_shared((TILE, depth), "float16")
            vs = T.alloc_shared((TILE, TILE), "float16")
            listed = T.alloc_shared((TILE,), "int32")
            s = T.alloc_fragment((TILE, TILE), "float32")
            p = T.alloc_fragment((TILE, TILE), "float16")
            acc = T.alloc_fragment((TILE, TILE), "float32")
            for i in T.Parallel(TILE):
                listed[i] = listing[i]
            for i, c in T.Parallel(TILE, depth):
                qs[i, c] = q[T.min(x * TILE + i, size - 1), c]
            if synchronised:
                T.sync_threads()
            T.clear(acc)
            for kk in T.Pipelined(3, num_stages=2):
                load(k, ks, listed if shared else listing, kk)
                T.clear(s)
                T.gemm(qs, ks, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.copy(s, p)
                load(v, vs, listed if shared else listing, kk)
                T.gemm(p, vs, acc, policy=T.GemmWarpPolicy.FullRow)
            T.copy(acc, o[x * TILE : (x + 1) * TILE, :])

    return products


def run_listed(artifact, cache, depth=TILE, **how):
    """Return the report and whether the results are right."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randint(-2, 3, (200, d), generator=generator).half() for d in (depth, depth, TILE))
    listing, o = torch.zeros(TILE, dtype=torch.int32), torch.full((200, TILE), torch.nan)
    listing[:3] = torch.tensor([2, 0, 2])
    report = run(artifact, "sm_90a", cache, [listing, q, k, v, o], **how)
    exact = torch.zeros(200, TILE, dtype=torch.float64)
    for tile in (2, 0, 2):
        rows = slice(tile * TILE, (tile + 1) * TILE)
        exact += (q.double() @ k[rows].double().T) @ v[rows].double()
    return report, torch.equal(o.double(), exact)


def test_consumers_do_not_wait_for_what_all_threads_stored_before_the_loop(cache):
    """sm_90a: where producers read what was stored, only they meet after the stores; `T.sync_threads()` mends it."""
    report, _ = run_listed(lower(listed_products(synchronised=False), "sm_90a"), cache)
    assert {f.kind for f in report.findings} == {"race"}, str(report)
    lines = lower(listed_products(synchronised=False), "sm_90a").kernel_source.splitlines()
    assert all("wgmma" in lines[f.line - 1] for f in report.findings), [lines[f.line - 1] for f in report.findings]
    report, right = run_listed(lower(listed_products(), "sm_90a"), cache)
    assert report.passed, str(report)
    assert right


def test_a_shared_list_puts_a_barrier_before_every_part_of_a_copy():
    """sm_80: what a copy reads of shared memory counts as what the next copy writes; a list in memory mends it."""
    apart = r"\{\s*__syncthreads\(\);\s*tl::cp_async_gs"
    shared, memory = (lower(listed_products(shared=shared), "sm_80").kernel_source for shared in (True, False))
    assert shared.count("tl::cp_async_gs") == memory.count("tl::cp_async_gs") == 6
    assert len(re.findall(apart, shared)) == 6
    assert not re.findall(apart, memory)


def test_a_name_in_a_macro_is_used_before_its_definition():
    """sm_90a: a macro, used twice in a pipelined loop, binds a name to an index that it reads from a buffer."""
    with pytest.raises(Exception, match="variable first has been used before definition"):
        lower(listed_products(named=True), "sm_90a")


def test_a_late_warp_of_the_copying_group_waits_for_a_phase_that_never_comes(cache):
    """sm_90a: four warps wait for a free tile, one copies; a wait that comes a phase late finds the wrong parity."""
    q, k, v, exact = exact_products()
    for mended in (False, True):
        artifact, reports = lower_ours(chained_products(), mended=mended), []
        for seed in range(1, 61):
            o = torch.full((200, TILE), torch.nan)
            reports.append(run(artifact, "sm_90a", cache, [q, k, v, o], "random", seed))
            assert not reports[-1].passed or torch.equal(o.double(), exact)
        kinds = {f.kind for report in reports for f in report.findings}
        assert kinds == (set() if mended else {"deadlock"}), [str(r) for r in reports if not r.passed]
        assert any(report.passed for report in reports), "it is a matter of timing"


def test_a_barrier_of_the_copying_group_stands_where_one_thread_copies(cache):
    """sm_90a: a tile of more than 64 columns is copied in parts, and a barrier of 128 threads gets between them."""
    theirs, ours = (lower_ours(listed_products(depth=128), mended=mended) for mended in (False, True))
    report, _ = run_listed(theirs, cache, depth=128)
    assert {f.kind for f in report.findings} == {"deadlock"}, str(report)
    for order in ("forward", "reverse", "random"):
        report, right = run_listed(ours, cache, depth=128, order=order)
        assert report.passed, str(report)
        assert right


STEPS = 4


def summed_products():
    """o = x w^T in steps of 64 columns: a pipelined loop of copies and a product."""

    @T.prim_func
    def products(
        x: T.Tensor((TILE, STEPS * TILE), "float16"),
        w: T.Tensor((TILE, STEPS * TILE), "float16"),
        o: T.Tensor((TILE, TILE), "float32"),
    ):
        with T.Kernel(1, threads=128) as _:
            xs = T.alloc_shared((TILE, TILE), "float16")
            ws = T.alloc_shared((TILE, TILE), "float16")
            acc = T.alloc_fragment((TILE, TILE), "float32")
            T.clear(acc)
            for step in T.Pipelined(STEPS, num_stages=2):
                T.copy(x[:, step * TILE : (step + 1) * TILE], xs)
                T.copy(w[:, step * TILE : (step + 1) * TILE], ws)
                T.gemm(xs, ws, acc, transpose_B=True)
            T.copy(acc, o)

    return products


def test_the_last_copies_of_a_loop_are_not_fenced_from_the_products_that_read_them(cache):
    """sm_90a: behind a loop not split over warps, `wgmma` reads what `cp.async` wrote, without a fence between."""
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randint(-2, 3, (TILE, STEPS * TILE), generator=generator).half() for _ in range(2))
    for mended in (False, True):
        o = torch.full((TILE, TILE), torch.nan)
        report = run(lower_ours(summed_products(), mended=mended, specialized=False), "sm_90a", cache, [x, w, o])
        assert {f.kind for f in report.findings} == (set() if mended else {"proxy fence"}), str(report)
        assert torch.equal(o.double(), x.double() @ w.double().T)


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


def stored_either_way():
    """Rows up to a limit go to one tensor, the others to one of 16 bits."""
    size = T.dynamic("size")

    @T.prim_func
    def store(
        x: T.Tensor((size, TILE), "float32"),
        wide: T.Tensor((size, TILE), "float32"),
        narrow: T.Tensor((size, TILE), "float16"),
        limit: T.int32,
    ):
        with T.Kernel(size, threads=32) as row:
            held = T.alloc_fragment((TILE,), "float32")
            T.copy(x[row, :], held)
            for c in T.Parallel(TILE):
                if row < limit:
                    wide[row, c] = held[c]
                else:
                    narrow[row, c] = held[c]

    return store


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_an_else_of_stores_with_a_conversion_is_lost(cache, arch):
    """A loop with a conversion in it: both branches store whatever the condition, one of them what it never set."""
    x, wide, narrow = torch.ones(4, TILE), torch.full((4, TILE), -1.0), torch.full((4, TILE), -1.0, dtype=torch.half)
    artifact = lower(stored_either_way(), arch)
    run(artifact, arch, cache, [x, wide, narrow, 2])
    assert torch.equal(wide[:2], x[:2]) and torch.equal(narrow[2:], x[2:].half())
    assert not torch.equal(wide[2:], torch.full_like(wide[2:], -1.0))
    assert not torch.equal(narrow[:2], torch.full_like(narrow[:2], -1.0))


def row_sums(columns):
    """sums of rows of products, in a tile of so many columns."""
    size = T.dynamic("size")

    @T.prim_func
    def sums(x: T.Tensor((size, columns), "float16"), y: T.Tensor((size,), "float32")):
        with T.Kernel(T.ceildiv(size, 32), threads=128) as b:
            products = T.alloc_fragment((32, columns), "float32")
            found = T.alloc_fragment((32,), "float32")
            for i, c in T.Parallel(32, columns):
                row = T.min(b * 32 + i, size - 1)
                products[i, c] = T.cast(x[row, c], "float32") * T.cast(x[row, c], "float32")
            T.reduce_sum(products, found, dim=1)
            for i in T.Parallel(32):
                if b * 32 + i < size:
                    y[b * 32 + i] = found[i]

    return sums


@pytest.mark.parametrize("columns, lowers", [(48, False), (64, True), (96, False), (192, False)])
def test_rows_are_summed_over_a_power_of_two_of_columns_only(columns, lowers):
    if lowers:
        lower(row_sums(columns), "sm_80")
        return
    with pytest.raises(Exception, match="no available layout found"):
        lower(row_sums(columns), "sm_80")


def filled_by_parts(columns):
    """o = q k^T, where half of the tile of k comes from either end of `k`."""
    size = T.dynamic("size")

    @T.prim_func
    def products(
        q: T.Tensor((TILE, columns), "float16"),
        k: T.Tensor((size, columns), "float16"),
        o: T.Tensor((TILE, 32), "float32"),
    ):
        with T.Kernel(1, threads=128) as _:
            qs = T.alloc_shared((TILE, columns), "float16")
            ks = T.alloc_shared((32, columns), "float16")
            s = T.alloc_fragment((TILE, 32), "float32")
            T.copy(q, qs)
            T.clear(s)
            for kk in T.Pipelined(T.ceildiv(size, 32), num_stages=2):
                T.copy(k[kk * 16 : kk * 16 + 16, :], ks[0:16, :])
                T.copy(k[size - 16 - kk * 16 : size - kk * 16, :], ks[16:32, :])
                T.gemm(qs, ks, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
            T.copy(s, o)

    return products


@pytest.mark.parametrize("columns, lowers", [(48, False), (64, True), (128, False)])
def test_a_wide_tile_is_not_filled_by_parts_with_tensor_copies(columns, lowers):
    if lowers:
        lower(filled_by_parts(columns), "sm_90a")
        return
    with pytest.raises(Exception, match="plain SMEM layout is not a bijection"):
        lower(filled_by_parts(columns), "sm_90a")


@pytest.mark.parametrize(("stride", "lowers"), [(16384, True), (32768, False), (65536, True), (98304, False)])
def test_a_constant_stride_is_taken_for_a_number_of_lanes(stride, lowers):
    """CPU: all but one index of the address are constants; what is left of the stride in 16 bits is held for lanes."""
    rows = T.dynamic("rows")

    @T.prim_func
    def kernel(x: T.Tensor((rows, stride), "float32"), i: T.int32):
        with T.Kernel(1, prelude="void first(float *);") as _:
            T.call_extern("handle", "first", T.address_of(x[i, 0]))

    if lowers:
        assert "first(" in tilelang.lower(kernel, target=tvm.target.Target("c")).kernel_source
    else:
        with pytest.raises(Exception, match="Can't fetch the lanes of a scalable vector"):
            tilelang.lower(kernel, target=tvm.target.Target("c"))


@pytest.mark.parametrize("by", ["loop", "macro"])
def test_another_name_of_an_argument_becomes_its_name(by):
    """CPU: a loop, or a macro's parameter, that binds a name to an argument renames it in the kernel's signature."""

    @T.macro
    def put(x, position):
        x[0] = position

    @T.prim_func
    def kernel(x: T.Tensor((4,), "int32"), start: T.int32):
        with T.Kernel(1) as _:
            if by == "macro":
                put(x, start)
            else:
                for position in (start,):
                    x[0] = position

    with tvm.target.Target("c"):
        text = tilelang.lower(kernel, target=tvm.target.Target("c")).kernel_source
    assert "int32_t position)" in text and "start" not in text


def test_the_last_simplification_learns_nothing_of_z3():
    """It takes most of the time of kernels with many masks. The text is the same without, and other passes keep it."""

    def is_proved():
        analyzer, i = tvm.arith.Analyzer(), tvm.tirx.Var("i", "int32")
        analyzer.bind(i, tvm.ir.Range(0, 64))
        return analyzer.can_prove_equal(i // 8, (i - i % 8 // 2 * 2) // 8)

    assert is_proved()
    with pytest.raises(LookupError), without_integer_proofs():
        assert not is_proved()
        raise LookupError
    assert is_proved()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering_gpu, "without_integer_proofs", contextlib.nullcontext)
        asked = lower_ours(chained_products())
    assert lower_ours(chained_products()).source == asked.source
