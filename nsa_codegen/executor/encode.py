"""Kernels as numbers: a parsed kernel becomes the tables of instructions, operands and constants for the engine."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

import numpy as np

from .failures import NotModelledError, PTXError
from .ptx import Kernel, Statement

SPECIALS = {"%tid.x": 0, "%tid.y": 1, "%tid.z": 2, "%ntid.x": 3, "%ntid.y": 4, "%ntid.z": 5, "%ctaid.x": 6,
            "%ctaid.y": 7, "%ctaid.z": 8, "%nctaid.x": 9, "%nctaid.y": 10, "%nctaid.z": 11, "%laneid": 12,
            "%warpid": 13, "%lanemask_eq": 14, "%lanemask_lt": 15, "%lanemask_le": 16, "%lanemask_gt": 17,
            "%lanemask_ge": 18, "%cluster_ctarank": 19, "%clusterid.x": 6, "%clusterid.y": 7, "%clusterid.z": 8,
            "%cluster_ctaid.x": 19, "%cluster_ctaid.y": 19, "%cluster_ctaid.z": 19, "%cluster_nctarank": 20,
            "%cluster_nctaid.x": 20, "%cluster_nctaid.y": 20, "%cluster_nctaid.z": 20, "%smid": 19,
            "%dynamic_smem_size": 21, "%total_smem_size": 21, "%nwarpid": 22}  # fmt: skip
PARAMETER_BASE = 0x3 << 60
FIELDS = 14


@dataclass(frozen=True, kw_only=True)
class Program:
    """What the engine needs of a kernel; `unmodelled` lists what it has no model of (it then can't run)."""

    kernel: Kernel
    instructions: np.ndarray  # [n, FIELDS] int64
    operands: np.ndarray  # int32: row numbers
    rows: int
    constants: np.ndarray  # [n, 3] int64: row, bytes, value
    specials: np.ndarray  # [n, 2] int64: row, which
    static_shared: int
    dynamic_offset: int
    local_bytes: int
    parameter_bytes: int
    unmodelled: tuple[str, ...]


@dataclass(kw_only=True)
class Encoded:
    """One encoded instruction: engine operation, operand rows, immediate numbers, and which operand is a lane mask."""

    name: str
    operands: list[int] = field(default_factory=list)
    immediates: list[int] = field(default_factory=list)
    target: str | None = None
    mask_operand: int = 0
    own_registers: bool = False
    writes: int = 1  # how many operands, from the first, are results


class Encoder:
    """Rows for registers and constants of one kernel, and addresses for its variables."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.rows = 0
        self.register_rows: dict[str, int] = {}
        self.constants: dict[tuple[int, int], int] = {}
        self.specials: dict[str, int] = {}
        self.addresses: dict[str, int] = {}
        self.static_shared = self.local_bytes = 0
        self._place_variables()
        for name, width in kernel.registers.items():
            self.register_rows[name] = self._new_row(width)
        self.parameters = {p.name: p for p in kernel.parameters}

    def _new_row(self, width: int) -> int:
        row = self.rows
        self.rows += max(1, width // 32)
        return row

    def _place_variables(self) -> None:
        dynamic_align = 16
        for v in self.kernel.variables:
            if v.bytes is None:
                dynamic_align = max(dynamic_align, v.align)
                continue
            size = "static_shared" if v.space == "shared" else "local_bytes"
            at = -(-getattr(self, size) // v.align) * v.align
            self.addresses[v.name] = at
            setattr(self, size, at + v.bytes)
        self.local_bytes = -(-self.local_bytes // 16) * 16
        self.dynamic_offset = -(-self.static_shared // dynamic_align) * dynamic_align
        for v in self.kernel.variables:
            if v.bytes is None:
                self.addresses[v.name] = self.dynamic_offset

    def width(self, operand: str) -> int:
        """Return the bits of a register operand; 0 for anything else."""
        return self.kernel.registers.get(operand, 0)

    def row(self, operand: str, bits: int, *, kind: str = "int") -> int:
        """Return the row of an operand read or written as `bits` wide; `_` is row -1."""
        if operand == "_":
            return -1
        if operand in self.register_rows:
            return self.register_rows[operand]
        if operand in SPECIALS:
            if operand not in self.specials:
                self.specials[operand] = self._new_row(32)
            return self.specials[operand]
        return self.constant(self.value(operand, bits, kind), bits)

    def constant(self, value: int, bits: int) -> int:
        """Return the row that holds `value` in every lane."""
        size = 8 if bits == 64 else 4
        masked = value & ((1 << (bits if bits in (8, 16, 64) else 32)) - 1)
        if (size, masked) not in self.constants:
            self.constants[size, masked] = self._new_row(size * 8)
        return self.constants[size, masked]

    def value(self, text: str, bits: int, kind: str = "int") -> int:
        """Return an immediate's or a variable's address's bit pattern; raises `PTXError` if it is neither."""
        if text in self.addresses:
            return self.addresses[text]
        if text in self.parameters:
            return self.parameters[text].offset
        found = re.fullmatch(r"([\w$]+)\s*\+\s*(-?\d+)", text)
        if found and (found[1] in self.addresses or found[1] in self.parameters):
            return self.value(found[1], bits) + int(found[2])
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return int(text[2:], 16)
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return int(text[2:], 16)
        if text == "WARP_SZ":
            return 32
        found = re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)[uU]?", text)
        if found and kind == "int":
            digits = found[2]
            magnitude = (
                int(digits, 0)
                if digits[:2].lower() in ("0x", "0b") or digits == "0"
                else (int(digits, 8) if digits.startswith("0") else int(digits))
            )
            return -magnitude if found[1] else magnitude
        try:
            number = float(text)
        except ValueError:
            raise NotModelledError(f"operand {text!r}") from None
        if bits == 64:
            return int.from_bytes(struct.pack("<d", number), "little")
        return int.from_bytes(struct.pack("<f", number), "little")

    def address(self, operand: str) -> tuple[int, int, int]:
        """Return (row, 1 if it is 64 bits wide, offset) of an address operand `[base+offset]`."""
        if not (operand.startswith("[") and operand.endswith("]")):
            raise PTXError(f"not an address: {operand!r}")
        inner = operand[1:-1].strip()
        found = re.fullmatch(r"([%\w$@]+)\s*(?:\+\s*(-?\w+))?", inner)
        if not found:
            raise PTXError(f"an address that is not understood: {operand!r}")
        offset = int(found[2], 0) if found[2] else 0
        base = found[1]
        if base in self.register_rows:
            return self.register_rows[base], int(self.width(base) == 64), offset
        return self.constant(self.value(base, 64), 64), 1, offset


def encode(kernel: Kernel, names: dict[str, int]) -> Program:
    """Return `kernel` encoded with the engine's operation numbers `names`."""
    from .opcodes import encode_statement

    encoder = Encoder(kernel)
    table: list[list[int]] = []
    operands: list[int] = []
    unmodelled: list[str] = []
    for statement in (*kernel.statements, _END):
        try:
            e = encode_statement(encoder, statement)
            if e.name not in names:
                raise NotModelledError(statement.opcode)
        except (NotModelledError, PTXError) as error:
            what = statement.opcode if str(error) == statement.opcode else f"{statement.opcode} ({error})"
            if what not in unmodelled:
                unmodelled.append(what)
            e = Encoded(name="nop")
        guard = encoder.register_rows[statement.guard] if statement.guard else -1
        target = kernel.labels.get(e.target, -1) if e.target else -1
        if e.target and target < 0:
            raise PTXError(f"kernel {kernel.name} branches to {e.target}, which is not among its labels")
        immediates = [_signed(v) for v in (*e.immediates, 0, 0, 0, 0)[:4]]
        table.append([names[e.name], guard, int(statement.negated), len(operands), len(e.operands), *immediates,
                      statement.line, target, e.mask_operand, int(e.own_registers),
                      min(e.writes, len(e.operands))])  # fmt: skip
        operands += e.operands
    last = kernel.parameters[-1] if kernel.parameters else None
    return Program(
        kernel=kernel, instructions=np.array(table, dtype=np.int64), operands=np.array(operands or [0], dtype=np.int32),
        rows=encoder.rows,
        constants=_table([[r, s, _signed(v)] for (s, v), r in encoder.constants.items()]),
        specials=_table([[r, SPECIALS[n]] for n, r in encoder.specials.items()]),
        static_shared=encoder.static_shared, dynamic_offset=encoder.dynamic_offset, local_bytes=encoder.local_bytes,
        parameter_bytes=last.offset + last.bytes if last else 0, unmodelled=tuple(unmodelled),
    )  # fmt: skip


_END = Statement(guard=None, negated=False, opcode="exit", operands=(), line=0)


def _table(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
