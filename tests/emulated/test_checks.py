"""What hardware would punish is found, with kind, line of the source, block, thread and address."""

import pytest
import torch

from nsa_codegen.executor import Executable, LaunchError, PTXError

BUFFER = ".shared .align 16 .b8 buf[1024];"


def only(report, kind):
    """The one finding of this kind; there must be no others."""
    assert {f.kind for f in report.findings} == {kind}, str(report)
    return report.findings[0]


def test_global_bounds(ptx):
    x = torch.zeros(40)
    report = ptx(
        "mad.wide.u32 %d1, %r0, 4, %d0;\nst.global.f32 [%d1+32], 0f3F800000;", x, clean=False, source_lines=True
    )
    assert report.passed
    report = ptx(
        "mad.wide.u32 %d1, %r0, 4, %d0;\nst.global.f32 [%d1+64], 0f3F800000;", x, clean=False, source_lines=True
    )
    finding = only(report, "global out of bounds")
    assert (finding.line, finding.lane, finding.count) == (2, 24, 8)
    assert "160 bytes from the start of argument 0, which has 160" in finding.text
    assert x[16:].sum() == 24


def test_a_block_is_named(ptx):
    body = "mov.u32 %r1, %ctaid.x;\nmul.wide.u32 %d1, %r1, 4;\nadd.u64 %d1, %d0, %d1;\nst.global.u32 [%d1], 0;"
    report = ptx(body, torch.zeros(2), grid=(3, 1, 1), clean=False)
    assert only(report, "global out of bounds").block == (2, 0, 0)


def test_null_and_misaligned(ptx):
    assert only(ptx("mov.u64 %d1, 0;\nld.global.u32 %r1, [%d1];", torch.zeros(1), clean=False), "global out of bounds")
    assert only(ptx("ld.global.u32 %r1, [%d0+2];", torch.zeros(8), clean=False), "misaligned").lane == 0
    assert only(ptx("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d0+8];", torch.zeros(8), clean=False), "misaligned")


def test_shared_bounds(ptx):
    report = ptx("mov.u32 %r1, buf;\nst.shared.u32 [%r1+1024], 1;", shared=BUFFER, clean=False)
    assert only(report, "shared out of bounds").address == 1024


def test_unset_registers_and_shared_memory_are_nan(ptx):
    out = torch.zeros(64)
    body = "mad.wide.u32 %d1, %r0, 4, %d0;\nst.global.f32 [%d1], %f9;\n"
    ptx(f"{body}ld.shared.f32 %f1, [buf];\nst.global.f32 [%d1+128], %f1;", out, shared=BUFFER)
    assert bool(out.isnan().all())


COPY = "mov.u32 %r1, buf;\nmad.lo.u32 %r2, %r0, 16, %r1;\nmad.wide.u32 %d2, %r0, 16, %d0;\n"
COPY += "cp.async.cg.shared.global [%r2], [%d2], 16;\n"
READ = "ld.shared.f32 %f1, [%r2];\nmad.wide.u32 %d3, %r0, 4, %d1;\nst.global.f32 [%d3], %f1;\n"


def test_cp_async_arrives_at_its_wait(ptx):
    x, y = torch.randn(128), torch.zeros(32)
    ptx(f"{COPY}cp.async.commit_group;\ncp.async.wait_group 0;\n{READ}", x, y, shared=BUFFER)
    assert torch.equal(y, x[::4])


def test_cp_async_without_a_wait(ptx):
    x, y = torch.randn(128), torch.zeros(32)
    report = ptx(
        f"{COPY}cp.async.commit_group;\n{READ}cp.async.wait_all;", x, y, shared=BUFFER, clean=False, source_lines=True
    )
    assert only(report, "read in flight").line == 6
    assert bool(y.isnan().all())


def test_cp_async_with_a_wait_for_another_group(ptx):
    x, y = torch.randn(256), torch.zeros(32)
    second = COPY.replace("[%d2]", "[%d2+512]").replace("[%r2]", "[%r2+512]")
    body = f"{COPY}cp.async.commit_group;\n{second}cp.async.commit_group;\ncp.async.wait_group 1;\n"
    body += f"{{}}{READ}cp.async.wait_all;"
    ptx(body.format(""), x, y, shared=BUFFER)
    assert torch.equal(y, x[:128:4])
    report = ptx(body.format("add.u32 %r2, %r2, 512;\n"), x, y, shared=BUFFER, clean=False)
    assert only(report, "read in flight")


def test_cp_async_fills_with_zeros(ptx):
    x, y = torch.randn(128), torch.ones(32)
    body = "setp.lt.u32 %p1, %r0, 10;\nselp.b32 %r5, 16, 0, %p1;\n" + COPY.replace("], 16;\n", "], 16, %r5;\n")
    ptx(f"{body}cp.async.wait_all;\n{READ}", x, y, shared=BUFFER)
    assert torch.equal(y, torch.where(torch.arange(32) < 10, x[::4], 0.0))


@pytest.mark.parametrize("size", [4, 8])
def test_small_copies_and_ignored_sources(ptx, size):
    x, y = torch.randn(64), torch.full((64,), torch.nan)
    body = f"""
        mov.u32 %r1, buf;
        mad.lo.u32 %r2, %r0, 8, %r1;
        mad.wide.u32 %d2, %r0, 8, %d0;
        setp.ge.u32 %p1, %r0, 20;
        cp.async.ca.shared.global [%r2], [%d2], {size}, %p1;
        cp.async.wait_all;
        ld.shared.v2.f32 {{%f1, %f2}}, [%r2];
        mad.wide.u32 %d3, %r0, 8, %d1;
        st.global.v2.f32 [%d3], {{%f1, %f2}};
    """
    ptx(body, x, y, shared=BUFFER)
    expected = torch.where(torch.arange(64) < 40, x, 0.0).view(32, 2)
    assert torch.equal(y.view(32, 2)[:, : size // 4], expected[:, : size // 4])
    assert bool(y.view(32, 2)[:, size // 4 :].isnan().all())


def test_local_memory_is_each_lane_s_own(ptx):
    out = torch.zeros(32, dtype=torch.int32)
    body = """
        mov.u64 %d1, spill;
        cvta.local.u64 %d2, %d1;
        st.local.u32 [%d1+8], %r0;
        ld.u32 %r1, [%d2+8];
        add.u32 %r1, %r1, 1;
        mad.wide.u32 %d3, %r0, 4, %d0;
        st.global.u32 [%d3], %r1;
        {more}
    """
    shared = ".local .align 16 .b8 spill[16];"
    ptx(body.format(more=""), out, shared=shared)
    assert out.tolist() == list(range(1, 33))
    assert only(
        ptx(body.format(more="st.local.u32 [%d1+16], 1;"), out, shared=shared, clean=False), "local out of bounds"
    )


def test_copies_pending_at_exit(ptx):
    report = ptx(f"{COPY}cp.async.commit_group;", torch.randn(128), shared=BUFFER, clean=False, source_lines=True)
    assert only(report, "pending at exit").line == 4


EXCHANGE = """
    mov.u32 %r1, buf;
    mad.lo.u32 %r2, %r0, 4, %r1;
    st.shared.u32 [%r2], %r0;
    {barrier}
    xor.b32 %r3, %r2, 128;
    ld.shared.u32 %r4, [%r3];
    {second}
    st.shared.u32 [%r2], %r4;
"""


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_races(ptx, order):
    base = {
        "threads": 64,
        "shared": BUFFER + "\n.shared .align 256 .b8 pad[256];",
        "clean": False,
        "source_lines": True,
        "order": order,
    }
    assert ptx(EXCHANGE.format(barrier="bar.sync 0;", second="bar.sync 0;"), **base).passed
    for barrier, second in (("", "bar.sync 0;"), ("bar.sync 0;", "")):
        report = ptx(EXCHANGE.format(barrier=barrier, second=second), **base)
        assert {f.kind for f in report.findings} == {"race"} and {f.line for f in report.findings} <= {3, 6, 8}, str(
            report
        )


def test_a_missing_warp_in_a_barrier_is_a_deadlock(ptx):
    body = "setp.ge.u32 %p1, %r0, 32;\n@%p1 bra B;\nbar.sync 1, 64;\nbra END;\nB:\nbar.sync 2, 64;\nEND:"
    report = ptx(body, threads=64, clean=False, source_lines=True)
    finding = only(report, "deadlock")
    assert (
        "warp 0 lanes ffffffff line 3: barrier 1" in finding.text
        and "warp 1 lanes ffffffff line 6: barrier 2" in finding.text
    )


def test_a_barrier_in_a_divergent_branch_is_found(ptx):
    report = ptx("setp.ge.u32 %p1, %r0, 16;\n@%p1 bra B;\nbar.sync 0;\nbra END;\nB:\nbar.sync 1;\nEND:", clean=False)
    assert only(report, "deadlock")


def test_barrier_counts_that_contradict(ptx):
    report = ptx(
        "setp.ge.u32 %p1, %r0, 32;\n@%p1 bra B;\nbar.sync 1, 64;\nbra END;\nB:\nbar.sync 1, 96;\nEND:",
        threads=64,
        clean=False,
    )
    assert "barrier" in {f.kind for f in report.findings}


def test_an_mbarrier_that_never_completes(ptx):
    wait = "W:\nmbarrier.try_wait.parity.shared::cta.b64 %p2, [bar], 0;\n@!%p2 bra W;\n"
    init = "setp.ne.u32 %p1, %r0, 0;\n@!%p1 mbarrier.init.shared::cta.b64 [bar], {count};\nbar.warp.sync 0xffffffff;\n"
    arrive = "mbarrier.arrive.shared::cta.b64 _, [bar];\n"
    shared = ".shared .align 8 .b64 bar;"
    ptx(init.format(count=32) + arrive + wait, shared=shared)
    finding = only(ptx(init.format(count=33) + arrive + wait, shared=shared, clean=False), "deadlock")
    assert "phase 0: 1 of 33 arrivals and 0 bytes missing" in finding.text
    report = ptx(init.format(count=32) + arrive + arrive + wait, shared=shared, clean=False)
    assert only(report, "deadlock")  # two phases have passed, so the parity is that of the running one again
    assert only(ptx(arrive, shared=shared, clean=False), "mbarrier")


def test_transactions_that_do_not_add_up(ptx):
    body = """
        setp.ne.u32 %p1, %r0, 0;
        @%p1 bra END;
        mbarrier.init.shared::cta.b64 [bar], 1;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {bytes};
        mov.u32 %r1, dyn;
        cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%d0], 128, [bar];
        W:
        mbarrier.try_wait.parity.shared::cta.b64 %p2, [bar], 0;
        @!%p2 bra W;
        END:
    """
    options = {"shared": ".shared .align 8 .b64 bar;", "shared_bytes": 256, "clean": False}
    assert ptx(body.format(bytes=128), torch.zeros(32), **options).passed
    assert only(ptx(body.format(bytes=144), torch.zeros(32), **options), "deadlock")


def test_reading_before_the_bulk_copy_has_arrived(ptx):
    body = """
        mov.u32 %r1, dyn;
        setp.ne.u32 %p1, %r0, 0;
        @%p1 bra READ;
        mbarrier.init.shared::cta.b64 [bar], 1;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 128;
        cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%d0], 128, [bar];
        READ:
        bar.sync 0;
        ld.shared.f32 %f1, [%r1];
    """
    for order in ("forward", "reverse", "random"):
        report = ptx(
            body,
            torch.zeros(32),
            threads=64,
            shared=".shared .align 8 .b64 bar;",
            shared_bytes=128,
            clean=False,
            order=order,
        )
        assert "read in flight" in {f.kind for f in report.findings} or "race" in {f.kind for f in report.findings}


def test_a_store_without_a_proxy_fence_and_a_source_overwritten(ptx):
    body = """
        mov.u32 %r1, dyn;
        mad.lo.u32 %r2, %r0, 4, %r1;
        st.shared.f32 [%r2], 0f3F800000;
        {fence}
        bar.sync 0;
        setp.ne.u32 %p1, %r0, 0;
        @%p1 bra END;
        cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 128;
        cp.async.bulk.commit_group;
        {early}
        cp.async.bulk.wait_group.read 0;
        END:
    """
    options = {"shared_bytes": 128, "clean": False}
    fence, overwrite = "fence.proxy.async;", "st.shared.f32 [%r1], 0f00000000;"
    assert ptx(body.format(fence=fence, early=""), torch.zeros(32), **options).passed
    assert only(ptx(body.format(fence="", early=""), torch.zeros(32), **options), "proxy fence")
    assert only(ptx(body.format(fence=fence, early=overwrite), torch.zeros(32), **options), "write in flight")


WGMMA = """
    mov.b64 %d21, 0x4000004000010000;
    {fence}
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{%f0, %f1, %f2, %f3}}, %d21, %d21, 0, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    {before}
    wgmma.wait_group.sync.aligned 0;
    add.f32 %f5, %f0, %f1;
"""


def test_wgmma_registers(ptx):
    options = {"threads": 128, "shared_bytes": 8192, "clean": False, "source_lines": True}
    fence = "wgmma.fence.sync.aligned;"
    assert ptx(WGMMA.format(fence=f"mov.f32 %f0, 0f00000000;{fence}", before=""), **options).passed
    assert only(ptx(WGMMA.format(fence=fence, before="add.f32 %f5, %f0, %f1;"), **options), "wgmma").line == 5
    late = f"{fence} add.f32 %f0, %f7, %f8;"
    assert only(ptx(WGMMA.format(fence=late, before=""), **options), "wgmma").line == 3
    no_wait = WGMMA.format(fence=fence, before="").split("wgmma.wait_group")[0]
    assert "pending at exit" in {f.kind for f in ptx(no_wait, **options).findings}


def test_an_endless_loop_uses_up_its_budget(ptx):
    assert "budget" in {f.kind for f in ptx("L:\nadd.u32 %r1, %r1, 1;\nbra L;", clean=False, budget=100_000).findings}


def test_what_has_no_model_is_not_executed(ptx):
    report = ptx("tanh.approx.f32 %f1, %f2;\nadd.f32 %f1, %f2, %f3;\ntcgen05.fence::before_thread_sync;", clean=False)
    assert report.status == "not executed: tcgen05.fence::before_thread_sync" and not report.passed
    report = ptx("add.rz.f32 %f1, %f2, %f3;", clean=False)
    assert report.status == "not executed: add.rz.f32"


def test_errors_of_the_caller(cache):
    text = (
        ".version 8.7\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a, .param .f32 b)\n{\nret;\n}\n"
    )
    executable = Executable.of_ptx(text, cache=cache)
    launch = {"grid": (1, 1, 1), "block": (32, 1, 1), "shared_bytes": 0}
    with pytest.raises(LaunchError, match="no kernel 'other'"):
        executable.run("other", arguments=[], **launch)
    with pytest.raises(LaunchError, match="takes 2 arguments"):
        executable.run("k", arguments=[torch.zeros(1)], **launch)
    with pytest.raises(LaunchError, match="contiguous CPU tensor"):
        executable.run("k", arguments=[torch.zeros(4, 4).T, 1.0], **launch)
    with pytest.raises(LaunchError, match="order 'sideways'"):
        executable.run("k", arguments=[torch.zeros(1), 1.0], order="sideways", **launch)
    with pytest.raises(PTXError, match="no kernel"):
        Executable.of_ptx("// nothing", cache=cache)


def test_blocks_that_write_one_address(ptx):
    store, add = "st.global.u32 [%d0], 1;", "red.global.add.u32 [%d0], 1;"
    assert only(ptx(store, torch.zeros(1), grid=(2, 1, 1), clean=False), "blocks conflict").block == (1, 0, 0)
    cell = torch.zeros(1, dtype=torch.int32)
    ptx(add, cell, grid=(5, 1, 1))
    assert cell.item() == 5 * 32
    assert only(
        ptx(f"ld.global.u32 %r1, [%d0];\n{store}", torch.zeros(1), grid=(2, 1, 1), clean=False), "blocks conflict"
    )
    assert ptx(
        "mov.u32 %r1, %ctaid.x;\nmad.wide.u32 %d1, %r1, 4, %d0;\nst.global.u32 [%d1], 1;",
        torch.zeros(3),
        grid=(3, 1, 1),
    ).passed


def test_atomics_on_shared_memory_are_no_race_among_themselves(ptx):
    body = """
        setp.ne.u32 %p1, %r0, 0;
        @!%p1 st.shared.u32 [cell], 0;
        {first}
        atom.shared.add.u32 %r1, [cell], 2;
        {second}
        ld.shared.u32 %r2, [cell];
        mad.wide.u32 %d1, %r0, 4, %d0;
        st.global.u32 [%d1], %r2;
    """
    out = torch.zeros(96, dtype=torch.int32)
    options = {"threads": 96, "shared": ".shared .align 4 .u32 cell;", "clean": False}
    assert ptx(body.format(first="bar.sync 0;", second="bar.sync 0;"), out, **options).passed
    assert set(out.tolist()) == {192}
    assert only(ptx(body.format(first="", second="bar.sync 0;"), out, **options), "race")
    assert "race" in {f.kind for f in ptx(body.format(first="bar.sync 0;", second=""), out, **options).findings}


def test_lanes_of_one_warp_have_to_meet(ptx):
    body = """
        mov.u32 %r1, buf;
        mad.lo.u32 %r2, %r0, 4, %r1;
        st.shared.u32 [%r2], %r0;
        {first}
        xor.b32 %r3, %r2, 4;
        ld.shared.u32 %r4, [%r3];
        {second}
        st.shared.u32 [%r2], %r4;
    """
    options = {"shared": ".shared .align 128 .b8 buf[256];", "clean": False, "source_lines": True}
    meet = "bar.warp.sync 0xffffffff;"
    assert ptx(body.format(first=meet, second=meet), **options).passed
    finding = only(ptx(body.format(first="", second=meet), **options), "lanes conflict")
    assert (finding.line, finding.other_line) == (6, 3)
    assert only(ptx(body.format(first=meet, second=""), **options), "lanes conflict").line == 8
    own = body.replace("xor.b32 %r3, %r2, 4", "mov.u32 %r3, %r2")  # each lane its own place
    assert ptx(own.format(first="", second=""), **options).passed


def test_an_mbarrier_used_before_its_initialisation_is_seen(ptx):
    body = """
        setp.ne.u32 %p1, %r0, 0;
        @!%p1 mbarrier.init.shared::cta.b64 [bar], 64;
        {sync}
        mbarrier.arrive.shared::cta.b64 _, [bar];
        bar.sync 0;
    """
    options = {"threads": 64, "shared": ".shared .align 8 .b64 bar;", "clean": False}
    assert ptx(body.format(sync="bar.sync 0;"), **options).passed
    assert only(ptx(body.format(sync=""), **options), "race")
    assert only(ptx(body.format(sync=""), **options, order="reverse"), "mbarrier")
