"""The opcodes of asynchronous work: mbarriers, bulk copies and their groups, wgmma, and the fences between."""

from __future__ import annotations

import re

from .encode import Encoded, Encoder
from .failures import NotModelledError
from .opcodes import Modifiers, handler, vector
from .ptx import Statement, split_operands

_KINDS = {"f16": 0, "bf16": 1, "tf32": 2, "e4m3": 3, "e5m2": 4, "s8": 5, "u8": 6}
_DEPTHS = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32}
_HERE = ("shared", "shared::cta", "shared::cluster", "cta", "cluster", "b64", "release", "acquire", "relaxed")
_POLICY = ("L2::cache_hint",)


@handler("mbarrier")
def _mbarrier(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    m.drop(*_HERE)
    action = m.take("init", "inval", "arrive", "expect_tx", "complete_tx", "try_wait", "test_wait")
    if action in ("try_wait", "test_wait"):
        parity = bool(m.take("parity"))
        row, wide, offset = e.address(s.operands[1])
        third = e.row(s.operands[2], 32 if parity else 64)
        return Encoded(name=f"mbarrier.{action}", operands=[e.row(s.operands[0], 1), row, third],
                       immediates=[0, offset, int(parity), wide])  # fmt: skip
    if action == "arrive":
        if m.take("noComplete"):
            raise NotModelledError(s.opcode)
        expects = bool(m.take("expect_tx"))
        operands = list(s.operands)
        has_state = not operands[0].startswith("[")
        state = [e.row(operands.pop(0), 64)] if has_state else []
        row, wide, offset = e.address(operands[0])
        counts = [e.row(operands[1], 32)] if len(operands) > 1 else []
        flags = (4 if expects else int(bool(counts))) | 2 * int(has_state)
        return Encoded(name="mbarrier.arrive", operands=[*state, row, *counts], immediates=[flags, offset, 0, wide],
                       writes=int(has_state))  # fmt: skip
    if action is None:
        raise NotModelledError(s.opcode)
    row, wide, offset = e.address(s.operands[0])
    counts = [e.row(o, 32) for o in s.operands[1:]]
    return Encoded(name=f"mbarrier.{action}", operands=[row, *counts], immediates=[0, offset, 0, wide], writes=0)


def bulk(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    """Return the encoded `cp.async.bulk...`, `cp.reduce.async.bulk...` or `cp.async.mbarrier.arrive`."""
    if m.take("mbarrier"):
        m.drop("arrive", *_HERE)
        noinc = bool(m.take("noinc"))
        row, wide, offset = e.address(s.operands[0])
        return Encoded(
            name="cp.async.mbarrier.arrive", operands=[row], immediates=[int(noinc), offset, 0, wide], writes=0
        )
    m.drop("bulk", *_POLICY)
    if m.take("commit_group"):
        return Encoded(name="bulk.commit")
    if m.take("wait_group"):
        m.drop("read")
        return Encoded(name="bulk.wait", immediates=[int(s.operands[0], 0)])
    reduction = bool(m.take("reduce"))
    if reduction and not m.take("add"):
        raise NotModelledError(s.opcode)
    order = [p for p in m.left if p.startswith("shared") or p == "global"]
    m.drop("global", "shared::cta", "shared::cluster", "mbarrier::complete_tx::bytes", "bulk_group", "tile", "weak")
    if "prefetch" in m.left or len(order) != 2 or order[0].startswith("shared") == order[1].startswith("shared"):
        raise NotModelledError(s.opcode)
    store = order[0] == "global"
    if m.take("tensor"):
        return _tensor(e, s, m, store, reduction)
    kinds = {"f32": 1, "f16": 2, "bf16": 3, "u32": 4, "s32": 4}
    kind = m.take(*kinds) if reduction else None
    m.drop("noftz")
    if reduction and kind is None:
        raise NotModelledError(s.opcode)
    target, source, size = s.operands[:3]
    shared, wide, offset = e.address(source if store else target)
    where, where_wide, where_offset = e.address(target if store else source)
    if not where_wide or where_offset:
        raise NotModelledError(s.opcode)
    head = int(store) | (kinds[kind] if kind else 0) << 16
    if store:
        return Encoded(
            name="bulk.linear", operands=[shared, where, e.row(size, 32)], immediates=[head, offset, 0, wide], writes=0
        )
    barrier, barrier_wide, barrier_offset = e.address(s.operands[3])
    return Encoded(name="bulk.linear", operands=[shared, where, e.row(size, 32), barrier], writes=0,
                   immediates=[head, offset, barrier_offset, wide | 2 * barrier_wide])  # fmt: skip


def _tensor(e: Encoder, s: Statement, m: Modifiers, store: bool, reduction: bool) -> Encoded:
    rank = int((m.take("1d", "2d", "3d", "4d", "5d") or "0")[0])
    tensor = s.operands[0] if store else s.operands[1]
    found = re.fullmatch(r"\[\s*([^,]+?)\s*,\s*\{(.*)\}\s*\]", tensor)
    if not found or not rank:
        raise NotModelledError(s.opcode)
    coordinates = split_operands(found[2])
    shared, wide, offset = e.address(s.operands[1] if store else s.operands[0])
    rows = [shared, e.row(found[1], 64), *(e.row(c, 32) for c in coordinates)]
    head = rank | int(store) << 8 | int(reduction) << 16
    if store:
        return Encoded(name="bulk.tensor", operands=rows, immediates=[head, offset, 0, wide], writes=0)
    barrier, barrier_wide, barrier_offset = e.address(s.operands[2])
    return Encoded(name="bulk.tensor", operands=[*rows, barrier], writes=0,
                   immediates=[head, offset, barrier_offset, wide | 2 * barrier_wide])  # fmt: skip


@handler("wgmma")
def _wgmma(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    m.drop("sync", "aligned")
    if m.take("fence"):
        return Encoded(name="wgmma.fence", own_registers=True)
    if m.take("commit_group"):
        return Encoded(name="wgmma.commit_group", own_registers=True)
    if m.take("wait_group"):
        return Encoded(name="wgmma.wait_group", immediates=[int(s.operands[0], 0)], own_registers=True)
    if not m.take("mma_async"):
        raise NotModelledError(s.opcode)
    m.drop("satfinite")
    if len(m.left) != 4:
        raise NotModelledError(s.opcode)
    b_type, a_type, d_type, shape = m.type(), m.type(), m.type(), m.type()
    found = re.fullmatch(r"m64n(\d+)k(\d+)", shape)
    if not found or a_type not in _KINDS or b_type not in _KINDS or int(found[2]) != _DEPTHS[a_type]:
        raise NotModelledError(s.opcode)
    accumulators = {"f32": 0, "f16": 1, "s32": 2}.get(d_type)
    n, depth = int(found[1]), int(found[2])
    if accumulators is None or n % 8 or not 8 <= n <= 256:
        raise NotModelledError(s.opcode)
    d, a, b, scale, *rest = s.operands
    registers = a.startswith("{")
    numbers = [e.value(x, 32) for x in rest]  # scale-a, scale-b, then the transpositions of 16-bit types
    scales, transposed = (*numbers, 1, 1)[:2], numbers[2:]
    flags = int(registers) | 2 * int(scales[0] < 0) | 4 * int(scales[1] < 0)
    if registers:
        flags |= 16 * int(bool(transposed and transposed[0]))
    elif len(transposed) == 2:
        flags |= 8 * transposed[0] | 16 * transposed[1]
    rows = [
        *(e.row(p, 32) for p in vector(d)),
        *([e.row(p, 32) for p in vector(a)] if registers else [e.row(a, 64)]),
        e.row(b, 64),
    ]
    how = 0
    if e.width(scale) == 1:
        rows.append(e.row(scale, 1))
    else:
        how = 1 if scale not in ("0", "false") else 2
    head = n | depth << 16 | _KINDS[a_type] << 24 | _KINDS[b_type] << 32 | accumulators << 40
    return Encoded(name="wgmma.mma_async", operands=rows, immediates=[head, flags, how], own_registers=True)


@handler("fence", "membar")
def _fence(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    parts = m.left
    m.left = []
    if ("proxy" in parts and "async" in parts) or any(p.startswith("async") for p in parts):
        return Encoded(name="fence.proxy.async")
    return Encoded(name="nop")


@handler("mapa")
def _mapa(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    bits = 64 if m.type() == "u64" else 32
    m.drop("shared::cluster")
    return Encoded(name=f"mov.{bits}", operands=[e.row(s.operands[0], bits), e.row(s.operands[1], bits)])
