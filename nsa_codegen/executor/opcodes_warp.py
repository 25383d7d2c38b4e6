"""The opcodes in which lanes meet: atomics, barriers, shuffles, asynchronous copies, matrix instructions."""

from __future__ import annotations

from .encode import Encoded, Encoder
from .failures import NotModelledError
from .opcodes import _CACHE_HINTS, SPACES, Modifiers, handler, sized, vector
from .ptx import Statement, type_bits

_ATOMS = {"add": 0, "min": 1, "max": 2, "and": 3, "or": 4, "xor": 5, "exch": 6, "cas": 7, "inc": 8, "dec": 9}
_ATOM_TYPES = {"u32": 0, "b32": 0, "s32": 1, "u64": 2, "b64": 2, "s64": 3, "f32": 4, "f64": 5, "f16": 6, "bf16": 7,
               "f16x2": 8, "bf16x2": 9}  # fmt: skip
_KINDS = {"f16": 0, "bf16": 1, "tf32": 2, "e4m3": 3, "e5m2": 4, "s8": 5, "u8": 6}
_KIND_BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8}


@handler("atom", "red")
def _atomic(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    base = s.opcode.split(".")[0]
    if base == "red" and "async" in m.left:
        raise NotModelledError(s.opcode)
    kind = m.type()
    m.drop(*_CACHE_HINTS)
    space = m.take(*SPACES)
    op = m.take(*_ATOMS)
    count = m.take("v2", "v4", "v8")
    if op is None or kind not in _ATOM_TYPES:
        raise NotModelledError(s.opcode)
    bits = type_bits(kind)
    returns = base == "atom"
    first = 1 if returns else 0
    row, wide, offset = e.address(s.operands[first])
    floating = "float" if kind in ("f32", "f64") else "int"
    values = [e.row(p, bits, kind=floating) for o in s.operands[first + 1 :] for p in vector(o)]
    targets = [e.row(p, bits) for p in vector(s.operands[0])] if returns else []
    lanes = int(count[1]) if count else 1
    head = (SPACES[space] if space else 0) | bits // 8 << 8 | lanes << 16 | wide << 25
    code = _ATOMS[op] | _ATOM_TYPES[kind] << 8 | int(returns) << 16
    return Encoded(name="atom", operands=[*targets, *values, row], immediates=[head, offset, code], writes=len(targets))


@handler("bar", "barrier")
def _barrier(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    base = s.opcode.split(".")[0]
    if base == "barrier" and "cluster" in m.left:
        if m.take("arrive"):
            m.left = []
            return Encoded(name="nop")
        m.left = []
        return Encoded(name="nop")
    m.drop("cta")
    if m.take("warp"):
        m.drop("sync")
        return Encoded(name="bar.warp.sync", operands=sized(e, s.operands, 32))
    aligned = bool(m.take("aligned")) or base == "bar"
    name = "barrier" if aligned else "barrier.lanes"
    action = m.take("sync", "arrive", "red")
    if action == "red":
        m.drop("pred", "u32")
        how = m.take("popc", "and", "or")
        predicate = s.operands[-1]
        middle = s.operands[1:-1]
        code = {"popc": 2, "and": 3, "or": 4}[how or "popc"]
        rows = [e.row(s.operands[0], 32), *(e.row(o, 32) for o in middle), e.row(predicate.lstrip("! "), 1)]
        return Encoded(
            name=name,
            operands=rows,
            immediates=[code, int(len(middle) == 2), int(not aligned), int(predicate.startswith("!"))],
        )
    if action is None:
        raise NotModelledError(s.opcode)
    rows = [e.row(o, 32) for o in s.operands]
    return Encoded(
        name=name, operands=rows, immediates=[int(action == "arrive"), int(len(rows) == 2), int(not aligned)], writes=0
    )


@handler("shfl")
def _shuffle(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    m.drop("sync", "b32")
    mode = m.take("up", "down", "bfly", "idx")
    targets = [t.strip() for t in s.operands[0].split("|")]
    if len(s.operands) != 5:
        raise NotModelledError(s.opcode)
    rows = [e.row(targets[0], 32), *(e.row(t, 1) for t in targets[1:]), *sized(e, s.operands[1:], 32, 32, 32, 32)]
    code = ("up", "down", "bfly", "idx").index(mode or "")
    return Encoded(name="shfl.sync", operands=rows, mask_operand=len(rows) - 1, writes=len(targets),
                   immediates=[code, int(len(targets) == 2)])  # fmt: skip


@handler("vote", "match", "redux", "elect", "activemask")
def _vote(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    base = s.opcode.split(".")[0]
    m.drop("sync")
    if base == "activemask":
        m.drop("b32")
        return Encoded(name="activemask", operands=[e.row(s.operands[0], 32)])
    if base == "elect":
        d, p = (t.strip() for t in s.operands[0].split("|"))
        return Encoded(
            name="elect.sync", operands=[e.row(d, 32), e.row(p, 1), e.row(s.operands[1], 32)], mask_operand=2, writes=2
        )
    if base == "vote":
        vote = m.take("all", "any", "uni", "ballot") or ""
        m.drop("pred", "b32")
        source = s.operands[1]
        rows = [e.row(s.operands[0], 32), e.row(source.lstrip("! "), 1), e.row(s.operands[2], 32)]
        immediates = [("all", "any", "uni", "ballot").index(vote), int(source.startswith("!"))]
        return Encoded(name="vote.sync", operands=rows, immediates=immediates, mask_operand=2)
    if base == "match":
        if not m.take("any") or m.type() != "b32":
            raise NotModelledError(s.opcode)
        return Encoded(name="match.any.sync", operands=sized(e, s.operands, 32, 32, 32), mask_operand=2)
    kind, how = m.type(), m.take("add", "min", "max", "and", "or", "xor")
    if kind == "f32" or how is None:
        raise NotModelledError(s.opcode)
    code = {"add": 0, "min": 1, "max": 2, "and": 5, "or": 6, "xor": 7}[how] + (
        2 if how in ("min", "max") and kind == "s32" else 0
    )
    return Encoded(name="redux.sync", operands=sized(e, s.operands, 32, 32, 32), immediates=[code], mask_operand=2)


@handler("ldmatrix", "stmatrix")
def _tiles(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    base = s.opcode.split(".")[0]
    m.drop("sync", "aligned", "b16", "shared", "shared::cta")
    if m.take("m8n8") is None:
        raise NotModelledError(s.opcode)
    count = int((m.take("x1", "x2", "x4") or "x1")[1])
    trans = int(bool(m.take("trans")))
    registers, where = (s.operands[0], s.operands[1]) if base == "ldmatrix" else (s.operands[1], s.operands[0])
    row, wide, offset = e.address(where)
    rows = [*(e.row(p, 32) for p in vector(registers)), row]
    return Encoded(name=base, operands=rows, immediates=[count, offset, trans, wide],
                   writes=count if base == "ldmatrix" else 0)  # fmt: skip


@handler("mma")
def _mma(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    m.drop("sync", "aligned", "satfinite")
    if not (m.take("row") and m.take("col")) or len(m.left) < 5:
        raise NotModelledError(s.opcode)
    c_type, b_type, a_type, d_type = m.type(), m.type(), m.type(), m.type()
    shape = m.type()
    kinds = {"f32": 0, "f16": 1, "s32": 2}
    if (
        not shape.startswith("m16n8k")
        or a_type not in _KINDS
        or b_type not in _KINDS
        or c_type != d_type
        or c_type not in kinds
    ):
        raise NotModelledError(s.opcode)
    k = int(shape.removeprefix("m16n8k"))
    if m.take("kind::f8f6f4") and _KIND_BITS[a_type] != 8:
        raise NotModelledError(s.opcode)
    if k * _KIND_BITS[a_type] not in (128, 256) or _KIND_BITS[a_type] != _KIND_BITS[b_type]:
        raise NotModelledError(s.opcode)
    floating = "float" if c_type == "f32" else "int"
    rows = [e.row(p, 32, kind=floating) for o in s.operands for p in vector(o)]
    return Encoded(
        name="mma",
        operands=rows,
        immediates=[k | _KINDS[a_type] << 8 | _KINDS[b_type] << 16, kinds[c_type]],
        writes=len(vector(s.operands[0])),
    )


@handler("cp")
def _copy(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    from . import opcodes_async

    if m.take("async") is None:
        raise NotModelledError(s.opcode)
    if "bulk" in m.left or "mbarrier" in m.left:
        return opcodes_async.bulk(e, s, m)
    if m.take("commit_group"):
        return Encoded(name="cp.async.commit_group")
    if m.take("wait_group"):
        return Encoded(name="cp.async.wait_group", immediates=[int(s.operands[0])])
    if m.take("wait_all"):
        return Encoded(name="cp.async.wait_all")
    m.drop("ca", "cg", "shared", "global", "shared::cta", "L2::64B", "L2::128B", "L2::256B")
    target, wide, offset = e.address(s.operands[0])
    source, source_wide, source_offset = e.address(s.operands[1])
    if not source_wide:
        raise NotModelledError(s.opcode)
    rows, flags = [target, source], 4 * wide
    if len(s.operands) > 3:
        extra = s.operands[3]
        if e.width(extra) == 1:
            rows.append(e.row(extra, 1))
            flags |= 2
        else:
            rows.append(e.row(extra, 32))
            flags |= 1
    return Encoded(
        name="cp.async", operands=rows, immediates=[int(s.operands[2]), source_offset, offset, flags], writes=0
    )
