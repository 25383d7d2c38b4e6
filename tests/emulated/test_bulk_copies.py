"""Tensor maps (bounds, zero fill, swizzles), linear bulk copies, stores and reductions, and mbarriers' phases."""

import pytest
import torch

from nsa_codegen.executor import TensorMap

WAIT = """
    {{
    .reg .pred done;
    WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 done, [bar], {parity};
    @done bra READY;
    bra WAIT;
    READY:
    }}
"""
BARRIER = ".shared .align 8 .b64 bar;"


def load(ptx, tensor_map, coordinates, size, rank, expect=None, **options):
    """Load one box to shared memory and return the bytes found there."""
    out = torch.zeros(size, dtype=torch.uint8)
    numbers = ", ".join(str(c) for c in coordinates)
    ptx(
        f"""
        setp.ne.u32 %p1, %r0, 0;
        mov.u32 %r1, dyn;
        @%p1 bra GO;
        mbarrier.init.shared::cta.b64 [bar], 1;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {expect or size};
        cp.async.bulk.tensor.{rank}d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%d0, {{{numbers}}}], [bar];
        GO:
        bar.sync 0;
        {WAIT.format(parity=0)}
        mov.u32 %r2, %r0;
        LOOP:
        setp.ge.u32 %p2, %r2, {size};
        @%p2 bra END;
        add.u32 %r3, %r1, %r2;
        ld.shared.u8 %r4, [%r3];
        cvt.u64.u32 %d2, %r2;
        add.u64 %d3, %d1, %d2;
        st.global.u8 [%d3], %r4;
        add.u32 %r2, %r2, 64;
        bra LOOP;
        END:
        """,
        tensor_map, out, threads=64, shared=BARRIER, shared_bytes=size, **options,
    )  # fmt: skip
    return out


def box_of(x, start, box):
    """The box of a tensor at `start` (outermost first), zeros where it is out of bounds."""
    out = torch.zeros(box, dtype=x.dtype)
    for index in torch.cartesian_prod(*(torch.arange(b) for b in box)):
        at = [int(s + i) for s, i in zip(start, index, strict=True)]
        if all(0 <= c < d for c, d in zip(at, x.shape, strict=True)):
            out[tuple(index.tolist())] = x[tuple(at)]
    return out


@pytest.mark.parametrize("start", [(0, 0, 0), (1, 3, 8), (-1, 6, 16), (2, -2, -8), (1, 2, 5)])
def test_boxes_with_bounds(ptx, start):
    x = torch.arange(3 * 8 * 24, dtype=torch.int16).add(1).view(3, 8, 24).view(torch.float16)
    tensor_map = TensorMap(tensor=x, shape=(24, 8, 3), strides=(48, 8 * 48), box=(16, 4, 2))
    found = load(ptx, tensor_map, reversed(start), 2 * 4 * 32, 3).view(torch.int16).view(2, 4, 16)
    assert torch.equal(found, box_of(x.view(torch.int16), start, (2, 4, 16)))


@pytest.mark.parametrize("swizzle", [32, 64, 128])
def test_swizzles_exchange_chunks_of_16_bytes(ptx, swizzle):
    columns = swizzle // 2
    x = torch.arange(40 * columns, dtype=torch.int16).view(40, columns).view(torch.float16)
    tensor_map = TensorMap(tensor=x, shape=(columns, 40), strides=(swizzle,), box=(columns, 32), swizzle=swizzle)
    found = load(ptx, tensor_map, (0, 4), 32 * swizzle, 2).view(torch.int16).view(32, swizzle // 16, 8)
    rows_per_pattern = 128 // swizzle
    for r in range(32):
        for chunk in range(swizzle // 16):
            place = chunk ^ (r // rows_per_pattern) % (swizzle // 16)
            assert torch.equal(found[r, place], x.view(torch.int16)[4 + r, 8 * chunk : 8 * chunk + 8]), (r, chunk)


def test_a_strided_view_and_rank_5(ptx):
    x = torch.randint(-100, 100, (2, 2, 3, 4, 16), dtype=torch.int16).view(torch.float16)
    strides = tuple(2 * s for s in reversed(x.stride()[:-1]))
    tensor_map = TensorMap(tensor=x, shape=tuple(reversed(x.shape)), strides=strides, box=(8, 2, 2, 1, 2))
    found = load(ptx, tensor_map, (8, 1, 1, 1, 0), 8 * 2 * 2 * 2 * 2, 5).view(torch.int16)
    assert torch.equal(found, x.view(torch.int16)[0:2, 1, 1:3, 1:3, 8:16].reshape(-1))


def test_floats_out_of_bounds_may_be_nan(ptx):
    x = torch.ones(4, 4)
    tensor_map = TensorMap(tensor=x, shape=(4, 4), strides=(16,), box=(4, 4), nan_fill=True)
    found = load(ptx, tensor_map, (0, 2), 64, 2).view(torch.float32).view(4, 4)
    assert bool((found[:2] == 1).all()) and bool(found[2:].isnan().all())


def test_store_and_reduction_leave_what_is_out_of_bounds(ptx):
    for reduce in (False, True):
        x = torch.full((6, 8), 2.0)
        tensor_map = TensorMap(tensor=x, shape=(8, 6), strides=(32,), box=(8, 4))
        verb = (
            "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group"
            if reduce
            else "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group"
        )
        ptx(
            f"""
            mov.u32 %r1, dyn;
            mad.lo.u32 %r2, %r0, 4, %r1;
            cvt.rn.f32.u32 %f1, %r0;
            st.shared.f32 [%r2], %f1;
            fence.proxy.async.shared::cta;
            bar.sync 0;
            setp.ne.u32 %p1, %r0, 0;
            @%p1 bra END;
            {verb} [%d0, {{0, 4}}], [%r1];
            cp.async.bulk.commit_group;
            cp.async.bulk.wait_group 0;
            END:
            """,
            tensor_map, shared_bytes=128,
        )  # fmt: skip
        expected = torch.full((6, 8), 2.0)
        expected[4:] = torch.arange(16.0).view(2, 8) + (2.0 if reduce else 0.0)
        assert torch.equal(x, expected)


def test_linear_bulk_copies(ptx):
    x, y = torch.randn(64), torch.zeros(64)
    ptx(
        f"""
        mov.u32 %r1, dyn;
        setp.ne.u32 %p1, %r0, 0;
        @%p1 bra END;
        mbarrier.init.shared::cta.b64 [bar], 1;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 256;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d0], 256, [bar];
        {WAIT.format(parity=0)}
        cp.async.bulk.global.shared::cta.bulk_group [%d1], [%r1], 256;
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group.read 0;
        END:
        """,
        x, y, shared=BARRIER, shared_bytes=256,
    )  # fmt: skip
    assert torch.equal(x, y)


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_phases_of_an_mbarrier(ptx, order):
    """Two warps take turns through two mbarriers: a ring of one place, filled and emptied eight times."""
    out = torch.zeros(8, dtype=torch.int32)
    body = f"""
        setp.ne.u32 %p1, %r0, 0;
        @%p1 bra READY0;
        mbarrier.init.shared::cta.b64 [full], 32;
        mbarrier.init.shared::cta.b64 [empty], 32;
        READY0:
        bar.sync 0;
        shr.u32 %r1, %r0, 5;
        and.b32 %r9, %r0, 31;
        mov.u32 %r2, 0;
        LOOP:
        and.b32 %r3, %r2, 1;
        xor.b32 %r4, %r3, 1;
        setp.ne.u32 %p2, %r1, 0;
        @%p2 bra CONSUMER;
        {WAIT.format(parity="%r4").replace("[bar]", "[empty]")}
        setp.eq.u32 %p3, %r9, 0;
        mul.lo.u32 %r5, %r2, 11;
        @%p3 st.shared.u32 [cell], %r5;
        bar.warp.sync 0xffffffff;
        mbarrier.arrive.shared::cta.b64 _, [full];
        bra NEXT;
        CONSUMER:
        {WAIT.format(parity="%r3").replace("[bar]", "[full]")}
        ld.shared.u32 %r6, [cell];
        setp.eq.u32 %p3, %r9, 5;
        mad.wide.u32 %d1, %r2, 4, %d0;
        @%p3 st.global.u32 [%d1], %r6;
        mbarrier.arrive.shared::cta.b64 _, [empty];
        NEXT:
        add.u32 %r2, %r2, 1;
        setp.lt.u32 %p4, %r2, 8;
        @%p4 bra LOOP;
    """
    shared = ".shared .align 8 .b64 full;\n.shared .align 8 .b64 empty;\n.shared .align 4 .u32 cell;"
    ptx(body, out, threads=64, shared=shared, order=order, seed=3)
    assert out.tolist() == [11 * k for k in range(8)]
