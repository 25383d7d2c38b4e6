"""Each PTX opcode in terms of the engine's operations; modifiers without a model are refused, never ignored."""

from __future__ import annotations

from collections.abc import Callable

from .encode import PARAMETER_BASE, Encoded, Encoder
from .failures import NotModelledError
from .ptx import Statement, split_operands, type_bits

SPACES = {"global": 1, "shared": 2, "shared::cta": 2, "shared::cluster": 2, "local": 3, "param": 4}
BASES = {"global": 0, "shared": 0x1 << 60, "local": 0x2 << 60, "param": PARAMETER_BASE}
ROUNDINGS = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rna": 4, "rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}
_RELATIONS = ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
_UNSIGNED_RELATIONS = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_CACHE_HINTS = ("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::no_allocate", "L1::evict_last", "L1::evict_first",
                "L2::64B", "L2::128B", "L2::256B", "relaxed", "volatile", "weak", "gpu", "sys", "cta", "cluster",
                "acquire", "release", "acq_rel", "noftz", "mmio", "L2::cache_hint")  # fmt: skip
_Handler = Callable[[Encoder, Statement, "Modifiers"], Encoded]
HANDLERS: dict[str, _Handler] = {}


class Modifiers:
    """The parts of an opcode after the first; what no one takes is an error at the end."""

    def __init__(self, opcode: str) -> None:
        self.opcode = opcode
        self.left = [p for p in opcode.split(".")[1:] if p]

    def take(self, *allowed: str) -> str | None:
        """Return and remove the first modifier that is one of `allowed`."""
        for k, part in enumerate(self.left):
            if part in allowed:
                return self.left.pop(k)
        return None

    def drop(self, *allowed: str) -> None:
        """Remove all modifiers of `allowed`: those that change nothing here."""
        self.left = [p for p in self.left if p not in allowed]

    def type(self) -> str:
        """Return and remove the last modifier, the type."""
        if not self.left:
            raise NotModelledError(self.opcode)
        return self.left.pop()

    def flags(self) -> int:
        """Return the engine's flags of arithmetic: 1 ftz, 2 sat, 4 NaN, 8 relu."""
        return sum(value for name, value in (("ftz", 1), ("sat", 2), ("NaN", 4), ("relu", 8)) if self.take(name))

    def finish(self) -> None:
        """Raise `NotModelledError` if a modifier is left."""
        if self.left:
            raise NotModelledError(self.opcode)


def handler(*names: str) -> Callable[[_Handler], _Handler]:
    """Register a function as the encoder of these opcodes."""

    def register(function: _Handler) -> _Handler:
        for name in names:
            HANDLERS[name] = function
        return function

    return register


def encode_statement(encoder: Encoder, statement: Statement) -> Encoded:
    """Return the encoded statement; raises `NotModelledError` if its opcode or a modifier has no model."""
    base = statement.opcode.split(".")[0]
    if base not in HANDLERS:
        raise NotModelledError(statement.opcode)
    modifiers = Modifiers(statement.opcode)
    encoded = HANDLERS[base](encoder, statement, modifiers)
    modifiers.finish()
    return encoded


def sized(encoder: Encoder, operands: tuple[str, ...], *bits: int, kind: str = "int") -> list[int]:
    """Return the rows of `operands`, each read as wide as `bits` says."""
    return [encoder.row(o, b, kind=kind) for o, b in zip(operands, bits, strict=True)]


def vector(operand: str) -> tuple[str, ...]:
    """Return the parts of `{a, b}`, or the operand alone."""
    return split_operands(operand[1:-1]) if operand.startswith("{") else (operand,)


@handler("add", "sub", "mul", "fma", "min", "max", "div", "rem", "mad", "neg", "abs", "sqrt", "rcp", "rsqrt", "ex2",
         "lg2", "sin", "cos", "tanh", "copysign")  # fmt: skip
def _arithmetic(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    base, kind = s.opcode.split(".")[0], m.type()
    count = len(s.operands)
    if kind[0] == "f" or kind.startswith("bf16"):
        m.drop("rn", "approx", "full")
        name = "fma" if base == "mad" else base
        if count == 4 and base in ("min", "max"):
            name = f"{base}3"
        bits = type_bits(kind)
        return Encoded(
            name=f"{name}.{kind}", immediates=[m.flags()], operands=sized(e, s.operands, *[bits] * count, kind="float")
        )
    bits = type_bits(kind)
    if base in ("mul", "mad"):
        part = m.take("lo", "hi", "wide") or "lo"
        if part == "wide":
            widths = [2 * bits, bits, bits, 2 * bits][:count]
            return Encoded(name=f"{base}.wide.{kind}", operands=sized(e, s.operands, *widths))
        name = f"{base}.lo.{bits}" if part == "lo" else f"{base}.hi.{kind}"
        return Encoded(name=name, operands=sized(e, s.operands, *[bits] * count))
    sign = f"{kind[0]}" if base in ("min", "max", "div", "rem") else ""
    return Encoded(name=f"{base}.{sign}{bits}", operands=sized(e, s.operands, *[bits] * count))


@handler("and", "or", "xor", "not", "cnot", "popc", "clz", "brev", "bfind", "shl", "shr")
def _bitwise(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    base, kind = s.opcode.split(".")[0], m.type()
    if kind == "pred":
        rows = [
            e.row(o, 1) if not o.lstrip("-").isdigit() else e.constant(-int(o) & 0xFFFFFFFF, 32) for o in s.operands
        ]
        return Encoded(name=f"{base}.pred", operands=rows)
    bits = type_bits(kind)
    if base in ("shl", "shr"):
        name = f"shl.{bits}" if base == "shl" else f"shr.{'s' if kind[0] == 's' else 'u'}{bits}"
        return Encoded(name=name, operands=sized(e, s.operands, bits, bits, 32))
    if base in ("popc", "clz", "bfind"):
        name = f"bfind.{kind}" if base == "bfind" else f"{base}.{bits}"
        return Encoded(name=name, operands=sized(e, s.operands, 32, bits))
    return Encoded(name=f"{base}.{bits}", operands=sized(e, s.operands, *[bits] * len(s.operands)))


@handler("bfe", "bfi", "shf", "prmt", "lop3", "selp", "slct")
def _fields(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    base, kind = s.opcode.split(".")[0], m.type()
    bits = type_bits(kind)
    if base == "bfe":
        return Encoded(name=f"bfe.{kind}", operands=sized(e, s.operands, bits, bits, 32, 32))
    if base == "bfi":
        return Encoded(name=f"bfi.{bits}", operands=sized(e, s.operands, bits, bits, bits, 32, 32))
    if base == "shf":
        way, mode = m.take("l", "r"), m.take("wrap", "clamp")
        return Encoded(name=f"shf.{way}.{mode}", operands=sized(e, s.operands, 32, 32, 32, 32))
    if base == "prmt":
        return Encoded(name="prmt", operands=sized(e, s.operands, 32, 32, 32, 32))
    if base == "lop3":
        return Encoded(
            name="lop3", operands=sized(e, s.operands[:4], 32, 32, 32, 32), immediates=[e.value(s.operands[4], 32)]
        )
    if base == "slct":
        m.type()
        return Encoded(name=f"slct.{bits}.{kind}", operands=sized(e, s.operands, bits, bits, bits, 32))
    float_kind = "float" if kind[0] == "f" else "int"
    return Encoded(
        name=f"selp.{bits}",
        operands=[*sized(e, s.operands[:3], bits, bits, bits, kind=float_kind), e.row(s.operands[3], 1)],
    )


@handler("setp", "set")
def _compare(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    base, kind = s.opcode.split(".")[0], m.type()
    m.drop("ftz")
    result = m.type() if base == "set" else ""
    relation = m.take(*_RELATIONS, *_UNSIGNED_RELATIONS)
    combine = m.take("and", "or", "xor")
    relation = _UNSIGNED_RELATIONS.get(relation or "", relation)
    if relation is None:
        raise NotModelledError(s.opcode)
    bits = type_bits(kind)
    view = kind.replace("b", "u", 1) if kind[0] == "b" and not kind.startswith("bf") else kind
    float_kind = "float" if kind[0] == "f" else "int"
    number = _RELATIONS.index(relation)
    if base == "set":
        if combine or result not in ("u32", "s32", "f32"):
            raise NotModelledError(s.opcode)
        name = f"set.{'f32' if result == 'f32' else 'u32'}.{view}"
        rows = sized(e, s.operands[1:3], bits, bits, kind=float_kind)
        return Encoded(name=name, operands=[e.row(s.operands[0], 32), *rows],
                       immediates=[number])  # fmt: skip
    first, *rest = s.operands
    targets = [e.row(t.strip(), 1) for t in first.split("|")]
    rows = [*targets, *sized(e, (rest[0], rest[1]), bits, bits, kind=float_kind)]
    negate = 0
    if combine:
        third = rest[2]
        negate = int(third.startswith("!"))
        rows.append(e.row(third.lstrip("! "), 1))
    code = 0 if combine is None else ("and", "or", "xor").index(combine) + 1
    return Encoded(name=f"setp.{view}", operands=rows, immediates=[number, code, negate, int(len(targets) == 2)],
                   writes=len(targets))  # fmt: skip


@handler("mov")
def _move(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    kind = m.type()
    target, source = s.operands
    if kind == "pred":
        return Encoded(name="mov.pred", operands=[e.row(target, 1), e.row(source, 1)])
    bits = type_bits(kind)
    if target.startswith("{"):
        parts = vector(target)
        rows = [*(e.row(p, 32) for p in parts), e.row(source, bits)]
        return Encoded(name="unpack", operands=rows, immediates=[bits // len(parts)],
                       writes=len(parts))  # fmt: skip
    if source.startswith("{"):
        parts = vector(source)
        return Encoded(name="pack", operands=[e.row(target, bits), *(e.row(p, bits // len(parts)) for p in parts)],
                       immediates=[bits // len(parts)])  # fmt: skip
    if source.startswith("%clock") or source.startswith("%globaltimer"):
        return Encoded(name=f"mov.{bits}", operands=[e.row(target, bits), e.constant(0, bits)])
    if bits == 64 and source.startswith(("%tid", "%ctaid", "%ntid", "%nctaid")):
        raise NotModelledError(s.opcode)
    float_kind = "float" if kind[0] == "f" else "int"
    return Encoded(name=f"mov.{bits}", operands=[e.row(target, bits), e.row(source, bits, kind=float_kind)])


@handler("cvt")
def _convert(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    rounding = m.take(*ROUNDINGS)
    flags = m.flags()
    m.drop("satfinite")
    if len(m.left) != 2:
        raise NotModelledError(s.opcode)
    source, target = m.type(), m.type()
    wide = {"f16x2": 32, "bf16x2": 32, "e4m3x2": 16, "e5m2x2": 16, "tf32": 32}
    widths = [wide.get(target) or type_bits(target), *[wide.get(source) or type_bits(source)] * (len(s.operands) - 1)]
    both_float = target[0] == source[0] == "f" and target == source
    name = f"cvt{'i' if rounding in ('rni', 'rzi', 'rmi', 'rpi') and both_float else ''}.{target}.{source}"
    floating = target[0] in "f" or target.startswith(("bf", "tf"))
    if floating and source[0] in "us" and rounding not in (None, "rn"):
        raise NotModelledError(s.opcode)
    if target[0] in "us" and source[0] in "us" and flags:
        raise NotModelledError(s.opcode)
    rows = sized(e, s.operands, *widths)
    if target in ("s8", "s16") and source[0] in "us" and e.width(s.operands[0]) > type_bits(target):
        name = f"cvt.s{e.width(s.operands[0])}.{target}"  # sign-extended into the wider register
    read = name.rsplit(".", 1)[1]
    if e.width(s.operands[1]) == 64 and read in ("u8", "s8", "u16", "s16", "u32", "s32"):
        name = f"{name.removesuffix(read)}low.{read}"
    return Encoded(name=name, operands=rows, immediates=[ROUNDINGS[rounding or "rn"], flags])


@handler("cvta")
def _convert_address(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    kind, to = m.type(), m.take("to")
    space = m.take("global", "shared", "local", "param")
    if space is None or kind != "u64":
        raise NotModelledError(s.opcode)
    target, source = s.operands
    if to:
        return Encoded(name="cvta.to", operands=[e.row(target, 64), e.row(source, 64)], immediates=[BASES[space], 1, 1])
    return Encoded(name="cvta", operands=[e.row(target, 64), e.row(source, 64)], immediates=[BASES[space], 1])


@handler("ld", "ldu", "st")
def _memory(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    kind = m.type()
    m.drop(*_CACHE_HINTS)
    space = m.take(*SPACES)
    count = m.take("v2", "v4", "v8")
    size = type_bits(kind) // 8
    if size > 8:
        raise NotModelledError(s.opcode)
    store = s.opcode.startswith("st")
    where, values = (s.operands[0], s.operands[1]) if store else (s.operands[1], s.operands[0])
    parts = vector(values)
    base, wide, offset = e.address(where)
    wide_register = size == 8 or any(e.width(p) == 64 for p in parts)
    rows = [e.row(p, 64 if wide_register else 8 * size, kind="float" if kind[0] == "f" else "int") for p in parts]
    if count and int(count[1]) != len(parts):
        raise NotModelledError(s.opcode)
    head = (SPACES[space] if space else 0) | size << 8 | len(parts) << 16 | int(kind[0] == "s") << 24 | wide << 25
    head |= int(wide_register) << 26
    return Encoded(name="st" if store else "ld", operands=[*rows, base], immediates=[head, offset],
                   writes=0 if store else len(parts))  # fmt: skip


@handler("testp", "isspacep", "createpolicy")
def _tests(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    base = s.opcode.split(".")[0]
    if base == "createpolicy":  # cache policies change no result
        m.left = []
        return Encoded(name="mov.64", operands=[e.row(s.operands[0], 64), e.constant(0, 64)])
    if base == "isspacep":
        space = m.take(*BASES, "shared::cta", "shared::cluster") or ""
        return Encoded(name="isspacep", operands=[e.row(s.operands[0], 1), e.row(s.operands[1], 64)],
                       immediates=[BASES[space.split("::")[0]]])  # fmt: skip
    kinds = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    how = m.take(*kinds)
    if m.type() != "f32" or how is None:
        raise NotModelledError(s.opcode)
    return Encoded(
        name="testp.f32", operands=[e.row(s.operands[0], 1), e.row(s.operands[1], 32)], immediates=[kinds.index(how)]
    )


@handler("bra")
def _branch(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    m.drop("uni")
    return Encoded(name="bra", target=s.operands[0])


@handler("ret", "exit")
def _exit(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    m.drop("uni")
    return Encoded(name="exit")


@handler("nop", "trap", "nanosleep", "prefetch", "prefetchu", "discard", "setmaxnreg", "griddepcontrol", "pmevent",
         "brkpt")  # fmt: skip
def _without_effect(e: Encoder, s: Statement, m: Modifiers) -> Encoded:
    m.left = []
    base = s.opcode.split(".")[0]
    return Encoded(name={"trap": "trap", "brkpt": "trap", "nanosleep": "yield"}.get(base, "nop"))


from . import opcodes_async, opcodes_warp  # noqa: E402, F401  (they register their handlers)
