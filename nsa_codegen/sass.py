"""SASS: a cubin disassembled by nvdisasm, and its instructions counted by class, over the kernel and its main part.

The main part is what lies in a loop or behind the first matrix instruction: the steps over tiles, unrolled or not,
without the loads that come once before them. A loop is a cycle of the control-flow graph, so that blocks which the
assembler moved behind the kernel's end belong where they run.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .compiler import SHOWN_LINES, run_command
from .errors import CompilerError
from .nvcc import find_nvcc

PACKAGE = "nvidia-cuda-nvdisasm"
# By the beginning of the opcode, up to a dot. Bulk copies name the destination first: .S.G loads, .G.S stores.
CLASSES: dict[str, re.Pattern[str]] = {
    name: re.compile(rf"(?:{beginnings})(?:\.|$)")
    for name, beginnings in {
        "matrix": r"\w*MMA",  # HMMA (mma), HGMMA (wgmma), UTCHMMA (tcgen05), and those of other types
        "async_copy": r"LDGSTS|UTMALDG|UBLKCP\.S",  # cp.async, TMA tiles, bulk copies
        "global_load": r"LDG|LD",
        "global_store": r"STG|ST|UTMASTG|UBLKCP\.G",
        "global_reduce": r"ATOM|ATOMG|RED|REDG|UTMAREDG|UBLKRED",
        "shared_load": r"LDS|LDSM",
        "shared_store": r"STS|STSM|ATOMS",
        "tensor_memory": r"LDTM|STTM|UTCCP",
        "local": r"LDL|STL",
        "barrier": r"BAR|SYNCS|ARRIVES|UCGABAR_ARV|UCGABAR_WAIT",
    }.items()
}
_LIMIT_SECONDS = 60.0
_INSTRUCTION_BYTES = 16
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """The instructions of a kernel as they stand in its code, each counted once.

    `opcodes` counts those of the classes of `CLASSES`, by full opcode; `main_opcodes` those of them in the main
    part; `total` counts all.
    """

    total: int
    opcodes: Mapping[str, int]
    main_opcodes: Mapping[str, int]

    def count(self, name: str, *, main: bool = False) -> int:
        """Return how many instructions of the class `name` there are, or how many of them are in the main part."""
        return sum(self.by_opcode(name, main=main).values())

    def by_opcode(self, name: str, *, main: bool = False) -> dict[str, int]:
        """Return the opcodes of the class `name` and how often each stands in the kernel, or in its main part."""
        opcodes = self.main_opcodes if main else self.opcodes
        return {opcode: number for opcode, number in opcodes.items() if opcode_class(opcode) == name}

    def loads_of(self, width_bytes: int, *, main: bool = False) -> int:
        """Return how many plain global loads bring `width_bytes` bytes a thread."""
        loads = self.by_opcode("global_load", main=main)
        return sum(number for opcode, number in loads.items() if access_bytes(opcode) == width_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain data: the total, by class, and by opcode."""
        classes = {name: self.count(name) for name in CLASSES}
        return {"total": self.total, **classes, "opcodes": dict(self.opcodes), "main_opcodes": dict(self.main_opcodes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Instructions:
        """Return the counts that `to_json` described."""
        return cls(total=data["total"], opcodes=dict(data["opcodes"]), main_opcodes=dict(data["main_opcodes"]))


def sum_instructions(counts: Iterable[Instructions]) -> Instructions:
    """Return the counts of several kernels together; the main part is that of those that multiply, if any do."""
    every, opcodes, main_opcodes = tuple(counts), Counter[str](), Counter[str]()
    multiplying = [count for count in every if count.count("matrix")]
    for count in every:
        opcodes.update(count.opcodes)
    for count in multiplying or every:
        main_opcodes.update(count.main_opcodes)
    return Instructions(total=sum(c.total for c in every), opcodes=dict(opcodes), main_opcodes=dict(main_opcodes))


def find_nvdisasm() -> Path | None:
    """Return PATH's nvdisasm, else the toolkit's, else that of PyPI's package; None if there is none."""
    on_path = shutil.which("nvdisasm")
    if on_path is not None:
        return Path(on_path)
    try:
        beside = find_nvcc().home / "bin" / "nvdisasm"
    except CompilerError:
        beside = None
    if beside is not None and beside.exists():
        return beside
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.name == "nvdisasm"), None)


def disassemble(cubin: Path) -> str:
    """Return the code of a cubin as SASS text; raises `CompilerError` if nvdisasm is missing or fails."""
    return _nvdisasm("--print-code", cubin)


def count_instructions(cubin: Path, kernel: str) -> Instructions:
    """Return the instruction counts of the function `kernel` of a cubin.

    Raises `CompilerError` if nvdisasm is missing or fails, or if the cubin has no such function.
    """
    text = _nvdisasm("--emit-json", cubin)
    functions = {f["function-name"]: f for f in json.loads(text)[1]}
    if kernel not in functions:
        raise CompilerError(f"{cubin.name} has no function {kernel!r}; it has {sorted(functions)}")
    code = functions[kernel]["sass-instructions"]
    main = main_part(code, functions[kernel]["start"])
    return Instructions(
        total=len(code),
        opcodes=_counted(i["opcode"] for i in code),
        main_opcodes=_counted(i["opcode"] for i, inside in zip(code, main, strict=True) if inside),
    )


def opcode_class(opcode: str) -> str | None:
    """Return the class of `CLASSES` that an opcode, modifiers and all, belongs to; None for arithmetic and the rest."""
    return next((name for name, pattern in CLASSES.items() if pattern.match(opcode)), None)


def access_bytes(opcode: str) -> int:
    """Return the bytes a thread that a load or store moves, as its modifiers say."""
    return next((_WIDTHS[m] for m in opcode.split(".")[1:] if m in _WIDTHS), 4)


def main_part(code: list[dict[str, Any]], start: int = 0) -> list[bool]:
    """Return for each instruction of a function, as nvdisasm's JSON has them, whether it is in the main part.

    `start` is the address of the first one, in bytes.
    """
    following = [list(_successors(code, i, start)) for i in range(len(code))]
    first = next((i for i, c in enumerate(code) if opcode_class(c["opcode"]) == "matrix"), len(code))
    inside = [i >= first for i in range(len(code))]
    for component in _components(following):
        if len(component) > 1 or component[0] in following[component[0]]:
            for i in component:
                inside[i] = True
    return inside


def _successors(code: list[dict[str, Any]], i: int, start: int) -> Iterator[int]:
    """Yield the instructions that may come after instruction `i`; a call comes back to the next one."""
    root, operands = code[i]["opcode"].partition(".")[0], code[i].get("operands", "")
    conditional = "predicate" in code[i] or "," in operands  # `BRA !UP0, target` and `BRA.DIV UR4, target`
    if root in ("BRA", "JMP"):
        target = (int(operands.rpartition(",")[2], 16) - start) // _INSTRUCTION_BYTES
        yield target
        ends = not conditional
    else:
        ends = root in ("EXIT", "RET", "KILL") and "predicate" not in code[i]
    if not ends and i + 1 < len(code):
        yield i + 1


def _components(following: list[list[int]]) -> Iterator[list[int]]:
    """Yield the strongly connected components of a graph (Tarjan's algorithm, without recursion)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    waiting: set[int] = set()
    for root in range(len(following)):
        if root in order:
            continue
        path = [(root, iter(following[root]))]
        order[root] = low[root] = len(order)
        stack.append(root)
        waiting.add(root)
        while path:
            node, rest = path[-1]
            successor = next(rest, None)
            if successor is None:
                path.pop()
                if path:
                    low[path[-1][0]] = min(low[path[-1][0]], low[node])
                if low[node] == order[node]:
                    component: list[int] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        waiting.discard(component[-1])
                    yield component
            elif successor not in order:
                order[successor] = low[successor] = len(order)
                stack.append(successor)
                waiting.add(successor)
                path.append((successor, iter(following[successor])))
            elif successor in waiting:
                low[node] = min(low[node], order[successor])


def _counted(opcodes: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(o for o in opcodes if opcode_class(o) is not None).items()))


def _nvdisasm(option: str, cubin: Path) -> str:
    tool = find_nvdisasm()
    if tool is None:
        raise CompilerError(
            f"nvdisasm is neither on PATH nor in the CUDA toolkit, and the Python package {PACKAGE} is not installed: "
            f"pip install 'nsa_codegen[gpu]'"
        )
    command = [str(tool), option, str(cubin)]
    status, output = run_command(command, None, _LIMIT_SECONDS)
    if status != 0:
        shown = "\n".join(output.strip().splitlines()[:SHOWN_LINES])
        raise CompilerError(f"{' '.join(command)} ended with status {status}:\n{shown}")
    return output
