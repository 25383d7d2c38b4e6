"""PTX text as data: a module's kernels, and each kernel's statements with the source line they come from.

Inline assembly opens scopes of its own, with registers and labels that the text reuses; names are made unique here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .failures import PTXError

_BITS = {"pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "b32": 32, "u32": 32,
         "s32": 32, "f32": 32, "b64": 64, "u64": 64, "s64": 64, "f64": 64, "b128": 128, "f16x2": 32, "bf16": 16,
         "bf16x2": 32, "f32x2": 64}  # fmt: skip
_LABEL = re.compile(r"([A-Za-z_$%][\w$]*)\s*:(?!:)")
_ENTRY = re.compile(r"(?:\.visible\s+|\.weak\s+)?\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{;]*)\{")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?")
_POINTER = re.compile(r"\.ptr(?:\s+\.(?:global|shared|const|local))?(?:\s+\.align\s+\d+)?")
_VARIABLE = re.compile(r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)((?:\[\d*\])*)")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A kernel's parameter: its PTX type, size in bytes and offset in the parameter space."""

    name: str
    type: str
    bytes: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A variable in shared or local memory; `bytes` is None for the one whose size the launch gives."""

    name: str
    space: str
    bytes: int | None
    align: int


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One instruction: guard register, `!` before it or not, opcode with its modifiers, operands, source line."""

    guard: str | None
    negated: bool
    opcode: str
    operands: tuple[str, ...]
    line: int


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel of a module: parameters, variables, registers (name to bits), statements, labels (name to index)."""

    name: str
    parameters: tuple[Parameter, ...]
    variables: tuple[Variable, ...]
    registers: dict[str, int]
    statements: tuple[Statement, ...]
    labels: dict[str, int]


def parse_module(text: str, *, source_name: str) -> dict[str, Kernel]:
    """Return the kernels in PTX `text` by name; lines are those of the file that ends with `source_name`.

    Raises `PTXError` for text that is not PTX as nvcc writes it.
    """
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    files = {int(n): path for n, path in _FILE.findall(text)}
    main = next((n for n, path in files.items() if path.endswith(source_name)), 1)
    text = re.sub(r"//[^\n]*", "", text)
    shared = _module_variables(text)
    kernels = {}
    for found in _ENTRY.finditer(text):
        body = text[found.end() : _closing(text, found.end())]
        parser = _Body(body, main)
        parser.parse()
        kernels[found[1]] = Kernel(
            name=found[1], parameters=_parameters(found[2]), variables=(*shared, *parser.variables),
            registers=parser.registers, statements=tuple(parser.statements), labels=parser.labels,
        )  # fmt: skip
    if not kernels:
        raise PTXError("the PTX text holds no kernel (.entry); give the text that `nvcc -ptx` wrote")
    return kernels


def type_bits(name: str) -> int:
    """Return the width in bits of a PTX type such as `u32`; raises `PTXError` if there is no such type."""
    if name not in _BITS:
        raise PTXError(f"unknown PTX type .{name}; known: {', '.join(sorted(_BITS))}")
    return _BITS[name]


def split_operands(text: str) -> tuple[str, ...]:
    """Return the operands of an instruction: split at commas outside braces and brackets."""
    parts, depth, start = [], 0, 0
    for k, c in enumerate(text):
        if c in "{[(":
            depth += 1
        elif c in "}])":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:k].strip())
            start = k + 1
    last = text[start:].strip()
    return (*parts, last) if last else tuple(parts)


class _Body:
    """The scanner of one kernel's body."""

    def __init__(self, text: str, main_file: int) -> None:
        self.text, self.main = text, main_file
        self.registers: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.statements: list[Statement] = []
        self.variables: list[Variable] = []
        self.scopes: list[dict[str, str]] = [{}]
        self.scope_ids = [0]
        self.scope_count = 0
        self.line = 0
        self.inlined: dict[tuple[str, str, str], tuple[str, str, str]] = {}

    def parse(self) -> None:
        text, at = self.text, 0
        scoped_labels = _labels_by_scope(text)
        while at < len(text):
            c = text[at]
            if c.isspace() or c == ";":
                at += 1
            elif c == "{":
                self.scope_count += 1
                names = scoped_labels.get(self.scope_count, set())
                self.scopes.append({n: f"{n}@{self.scope_count}" for n in names})
                self.scope_ids.append(self.scope_count)
                at += 1
            elif c == "}":
                self.scopes.pop()
                self.scope_ids.pop()
                at += 1
            elif text.startswith((".loc ", ".loc\t"), at):
                end = text.find("\n", at)
                end = len(text) if end < 0 else end
                self.locate(text[at:end])
                at = end
            else:
                label = _LABEL.match(text, at)
                if label:
                    self.labels[self.name(label[1])] = len(self.statements)
                    at = label.end()
                    continue
                end = text.find(";", at)
                if end < 0:
                    raise PTXError(f"a statement without an end: {text[at : at + 60]!r}")
                self.statement(" ".join(text[at:end].split()))
                at = end + 1

    def locate(self, text: str) -> None:
        found = _LOC.match(text)
        if not found:
            return
        here = (found[1], found[2], found[3])
        if found[4]:
            self.inlined[here] = (found[4], found[5], found[6])
        for _ in range(64):
            if int(here[0]) == self.main:
                self.line = int(here[1])
                return
            if here not in self.inlined:
                return
            here = self.inlined[here]

    def name(self, raw: str) -> str:
        for scope in reversed(self.scopes):
            if raw in scope:
                return scope[raw]
        return raw

    def statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self.declare_registers(text)
        elif text.startswith((".shared", ".local")):
            space, rest = text.split(None, 1)
            self.variables.append(_variable(rest, space[1:]))
        elif text.startswith((".pragma", ".callprototype", ".branchtargets")):
            return
        elif text.startswith("."):
            raise PTXError(f"a directive that is not modelled: {text[:80]!r}")
        else:
            self.instruction(text)

    def declare_registers(self, text: str) -> None:
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text).groups()  # type: ignore[union-attr]
        width = type_bits(kind)
        for raw in names.split(","):
            raw = raw.strip()
            many = re.match(r"(.*)<(\d+)>", raw)
            singles = [f"{many[1]}{k}" for k in range(int(many[2]))] if many else [raw]
            for single in singles:
                scope = self.scope_ids[-1]
                unique = single if scope == 0 else f"{single}@{scope}"
                self.scopes[-1][single] = unique
                self.registers[unique] = width

    def instruction(self, text: str) -> None:
        guard, negated = None, False
        found = re.match(r"@(!?)\s*([%\w$]+)\s+(.*)", text)
        if found:
            negated, guard, text = bool(found[1]), self.name(found[2]), found[3]
        opcode, _, rest = text.partition(" ")
        while rest.startswith("."):  # inline assembly may put a space before a modifier
            more, _, rest = rest.partition(" ")
            opcode += more
        if len(self.scopes) > 1:
            rest = re.sub(r"[%$A-Za-z_][\w$]*(?:\.[xyzw])?", lambda m: self.name(m[0]), rest)
        self.statements.append(
            Statement(guard=guard, negated=negated, opcode=opcode, operands=split_operands(rest), line=self.line)
        )


def _labels_by_scope(text: str) -> dict[int, set[str]]:
    """Return the labels that each scope of a body defines, scopes numbered in the order in which they open."""
    labels: dict[int, set[str]] = {}
    count, stack, start = 0, [0], True
    at = 0
    while at < len(text):
        c = text[at]
        if c.isspace():
            at += 1
            continue
        if start and c == "{":
            count += 1
            stack.append(count)
        elif start and c == "}":
            stack.pop()
        elif text.startswith((".loc ", ".loc\t"), at) and start:
            at = text.find("\n", at)
            if at < 0:
                break
        elif start:
            label = _LABEL.match(text, at)
            if label:
                labels.setdefault(stack[-1], set()).add(label[1])
                at = label.end()
                continue
            end = text.find(";", at)
            if end < 0:
                break
            at = end
        at += 1
    labels.pop(0, None)
    return labels


def _closing(text: str, start: int) -> int:
    depth = 1
    for k in range(start, len(text)):
        if text[k] == "{":
            depth += 1
        elif text[k] == "}":
            depth -= 1
            if depth == 0:
                return k
    raise PTXError("a kernel's body has no closing brace")


def _parameters(text: str) -> tuple[Parameter, ...]:
    out, offset = [], 0
    for part in (p for p in text.split(",") if p.strip()):
        found = _PARAMETER.search(_POINTER.sub("", part))
        if not found:
            raise PTXError(f"a parameter that is not understood: {part.strip()!r}")
        size = type_bits(found[2]) // 8 * int(found[4] or 1)
        align = int(found[1] or type_bits(found[2]) // 8)
        offset = -(-offset // align) * align
        out.append(Parameter(name=found[3], type=found[2], bytes=size, offset=offset))
        offset += size
    return tuple(out)


def _variable(text: str, space: str) -> Variable:
    found = _VARIABLE.match(text)
    if not found:
        raise PTXError(f"a variable that is not understood: {text!r}")
    unit = type_bits(found[2]) // 8
    counts = re.findall(r"\[(\d*)\]", found[4])
    size: int | None = unit
    for count in counts:
        size = None if count == "" or size is None else size * int(count)
    return Variable(name=found[3], space=space, bytes=size, align=int(found[1] or unit))


def _module_variables(text: str) -> list[Variable]:
    found = re.findall(r"^\s*(?:\.(?:extern|visible|weak)\s+)?\.shared\s+([^;]*);", _outside_bodies(text), re.MULTILINE)
    return [_variable(" ".join(f.split()), "shared") for f in found]


def _outside_bodies(text: str) -> str:
    parts, at = [], 0
    for found in _ENTRY.finditer(text):
        parts.append(text[at : found.start()])
        at = _closing(text, found.end())
    return "".join((*parts, text[at:]))
