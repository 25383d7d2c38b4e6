"""Instructions in which lanes exchange values, branches that diverge, and barriers."""

import pytest
import torch

LANES = torch.arange(32, dtype=torch.int32)


def shfl(mode, lane, b, c):
    """The source lane and the predicate by the pseudo code of the PTX manual's section on shfl."""
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    highest = (lane & segment) | (clamp & ~segment)
    lowest = lane & segment
    j = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": lowest | (b & ~segment)}[mode]
    valid = j >= highest if mode == "up" else j <= highest
    return (j if valid else lane), valid


@pytest.mark.parametrize(
    "mode, c",
    [("bfly", 0x1F), ("bfly", 0x181F), ("up", 0), ("up", 0x1800), ("down", 0x1F), ("idx", 0x1F), ("idx", 0x1C1F)],
)
@pytest.mark.parametrize("b", [1, 4, 16, 31])
def test_shuffles(map_lanes, mode, c, b):
    data = torch.randint(0, 1 << 30, (32,), dtype=torch.int32)
    found = map_lanes(f"shfl.sync.{mode}.b32 {{d}}|%p1, {{a}}, {b}, {c}, 0xffffffff", "b32", data)
    assert found.tolist() == [int(data[shfl(mode, lane, b, c)[0]]) for lane in range(32)]
    text = f"shfl.sync.{mode}.b32 %r90|%p1, {{a}}, {b}, {c}, -1;\nselp.b32 {{d}}, 1, 0, %p1"
    assert map_lanes(text, "b32", data).bool().tolist() == [shfl(mode, lane, b, c)[1] for lane in range(32)]


def test_votes(map_lanes):
    data = torch.tensor([k % 3 for k in range(32)], dtype=torch.int32)
    mask = sum(1 << k for k in range(32) if k % 3)
    head = "setp.ne.s32 %p1, {a}, 0;\n"
    found = map_lanes(head + "vote.sync.ballot.b32 {d}, %p1, 0xffffffff", "b32", data)
    assert {v & 0xFFFFFFFF for v in found.tolist()} == {mask}
    for how, expected in (("all", 0), ("any", 1), ("uni", 0)):
        found = map_lanes(head + f"vote.sync.{how}.pred %p2, %p1, 0xffffffff;\nselp.b32 {{d}}, 1, 0, %p2", "b32", data)
        assert set(found.tolist()) == {expected}
    found = map_lanes("match.any.sync.b32 {d}, {a}, 0xffffffff", "b32", data)
    assert found[1].item() & 0xFFFFFFFF == sum(1 << k for k in range(32) if k % 3 == 1)


def test_reductions_and_election(map_lanes):
    data = torch.randint(-1000, 1000, (32,), dtype=torch.int32)
    for how, expected in (("add.s32", data.sum()), ("min.s32", data.min()), ("max.s32", data.max())):
        assert set(map_lanes(f"redux.sync.{how} {{d}}, {{a}}, 0xffffffff", "b32", data).tolist()) == {int(expected)}
    text = "elect.sync {d}|%p1, 0xffffffff;\n@%p1 add.s32 {d}, {d}, 100"
    assert map_lanes(text, "b32", data).tolist() == [100] + [0] * 31


def test_the_elected_lane_depends_on_the_order_but_not_on_the_call(ptx):
    body = "elect.sync %r1|%p1, 0xfffffff0;\nelect.sync %r2|%p2, 0xfffffff0;\nsub.u32 %r3, %r1, %r2;\n"
    body = f"setp.lt.u32 %p4, %r0, 4;\n@%p4 bra END;\n{body}mad.wide.u32 %d1, %r0, 8, %d0;\n"
    body += "st.global.v2.u32 [%d1], {%r1, %r3};\nEND:"
    leaders = set()
    for order, seed in [("forward", 0), ("reverse", 0), *(("random", seed) for seed in range(5))]:
        out = torch.zeros(32, 2, dtype=torch.int32)
        ptx(body, out, order=order, seed=seed)
        assert set(out[4:, 1].tolist()) == {0} and len(set(out[4:, 0].tolist())) == 1
        leaders.add(out[4, 0].item())
    assert leaders >= {4, 31} and len(leaders) > 2 and min(leaders) >= 4


def test_divergence_and_reconvergence(ptx):
    """Each lane loops as often as its number says; the warp is whole again for the shuffle after the loop."""
    out = torch.zeros(32, dtype=torch.int32)
    ptx(
        """
        mov.u32 %r1, 0;
        mov.u32 %r2, 0;
        LOOP:
        setp.ge.u32 %p1, %r1, %r0;
        @%p1 bra AFTER;
        add.u32 %r1, %r1, 1;
        and.b32 %r3, %r1, 1;
        setp.eq.u32 %p2, %r3, 0;
        @%p2 bra LOOP;
        add.u32 %r2, %r2, 10;
        bra.uni LOOP;
        AFTER:
        shfl.sync.bfly.b32 %r4, %r2, 1, 31, 0xffffffff;
        mad.wide.u32 %d1, %r0, 4, %d0;
        st.global.u32 [%d1], %r4;
        """,
        out,
    )
    assert out.tolist() == [10 * (((lane ^ 1) + 1) // 2) for lane in range(32)]


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_block_barrier_and_named_barriers(ptx, order):
    """Warps 0, 1 and warps 2, 3 exchange values within their pair, by barriers of 64 threads with their own numbers."""
    out = torch.zeros(128, dtype=torch.int32)
    ptx(
        """
        shl.b32 %r1, %r0, 2;
        mov.u32 %r2, buf;
        add.u32 %r3, %r2, %r1;
        st.shared.u32 [%r3], %r0;
        shr.u32 %r4, %r0, 6;
        add.u32 %r4, %r4, 1;
        bar.sync %r4, 64;
        xor.b32 %r5, %r1, 128;
        add.u32 %r6, %r2, %r5;
        ld.shared.u32 %r7, [%r6];
        bar.sync 0;
        mad.wide.u32 %d1, %r0, 4, %d0;
        st.global.u32 [%d1], %r7;
        """,
        out, threads=128, shared=".shared .align 16 .b8 buf[512];", order=order,
    )  # fmt: skip
    assert out.tolist() == [t ^ 32 for t in range(128)]


def test_barrier_reduction(ptx):
    out = torch.zeros(64, dtype=torch.int32)
    ptx(
        """
        setp.lt.u32 %p1, %r0, 10;
        barrier.red.popc.aligned.u32 %r1, 0, %p1;
        barrier.red.or.aligned.pred %p2, 0, %p1;
        selp.b32 %r2, 100, 0, %p2;
        add.u32 %r1, %r1, %r2;
        mad.wide.u32 %d1, %r0, 4, %d0;
        st.global.u32 [%d1], %r1;
        """,
        out, threads=64,
    )  # fmt: skip
    assert set(out.tolist()) == {110}


ATOMICS = [
    ("add.u32", torch.int32, 5, lambda x: 5 + 64 * 3),
    ("max.s32", torch.int32, -7, lambda x: 3),
    ("exch.b32", torch.int32, 9, lambda x: 3),
]


@pytest.mark.parametrize("op, dtype, start, expected", ATOMICS, ids=[a[0] for a in ATOMICS])
def test_atomics(ptx, op, dtype, start, expected):
    cell = torch.tensor([start], dtype=dtype)
    ptx(f"mov.u32 %r1, 3;\natom.global.{op} %r2, [%d0], %r1;", cell, threads=64)
    assert cell.item() == expected(start)


def test_atomics_hand_out_distinct_values_and_add_floats(ptx):
    cell, seen, total = torch.zeros(1, dtype=torch.int32), torch.zeros(96, dtype=torch.int32), torch.zeros(2)
    halves = torch.zeros(2, dtype=torch.float16)
    body = """
        atom.global.inc.u32 %r1, [%d0], 1000;
        mad.wide.u32 %d4, %r1, 4, %d1;
        st.global.u32 [%d4], 1;
        red.global.add.f32 [%d2], 0f3F000000;
        mov.b32 %r2, 0x3C003800;
        red.global.add.noftz.f16x2 [%d3], %r2;
    """
    ptx(body, cell, seen, total, halves, threads=96)
    assert (cell.item(), seen.sum().item(), total.tolist(), halves.tolist()) == (96, 96, [48.0, 0.0], [48.0, 96.0])


def test_compare_and_swap(ptx):
    cell = torch.tensor([7], dtype=torch.int32)
    won = torch.zeros(32, dtype=torch.int32)
    ptx("atom.global.cas.b32 %r1, [%d0], 7, %r0;\nmad.wide.u32 %d2, %r0, 4, %d1;\nst.global.u32 [%d2], %r1;", cell, won)
    assert cell.item() == 0 and won.tolist().count(7) == 1
