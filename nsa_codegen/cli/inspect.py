"""`nsa-codegen inspect`: one kernel at any stage between its description and its machine code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..compiler import compile_assembly
from ..desc import KernelDesc
from ..errors import CompilerError, InputError, StoreError, nearest
from ..index_sets import require_choice
from ..lowering import KernelSource, lower, primitive_function
from ..manifest import RequestKey
from ..schedule import Schedule
from ..spec import NSASpec
from ..store import Entry, KernelStore
from ..target import Target, parse_target
from .app import AsJson, console, print_json
from .options import Dtype, TargetName, takes_spec

if TYPE_CHECKING:
    from ..program import Program

STAGES = ("program", "schedule", "tir", "source", "asm", "manifest")
_LANGUAGES = {"tir": "python", "source": "cpp", "asm": "gas", "manifest": "json"}
_SHORTEST_KEY = 4


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One kernel to be shown: what it is, where its schedule is from, and its entry in the store, if it has one."""

    desc: KernelDesc
    schedule: Schedule
    origin: str
    target: Target
    entry: Entry | None

    @property
    def key(self) -> RequestKey:
        """The key under which the store has it, or would."""
        return RequestKey.of(self.desc, self.schedule, self.target)


@takes_spec
def inspect(
    *,
    kernel: Annotated[
        str,
        typer.Argument(
            help="An op (its forward), op_fwd or op_bwd of the attention that the options describe; or a stored "
            "kernel: its folder's name, or the beginning of its key."
        ),
    ],
    spec: NSASpec,
    stage: Annotated[str, typer.Option(help=f"What to show: {', '.join(STAGES)}.")] = "source",
    target: TargetName = "cpu",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Show a kernel at one stage: the program it belongs to, its schedule, TileLang's TIR, the emitted C++, assembly.

    Text is coloured in a terminal and plain in a pipe. An op of which the attention takes several kernels shows all.
    """
    require_choice("inspect", "stage", stage, STAGES)
    program = spec.program()
    kernels = _find(kernel, program, dtype, target)
    shown = [{"kernel": str(k.desc), "stage": stage, "text": _text(stage, k, program)} for k in kernels]
    if as_json:
        print_json(shown)
        return
    if stage == "program":  # one text, whatever the kernels
        shown = shown[:1]
    for item in shown:
        if len(shown) > 1:
            print(f"== {item['kernel']}")
        _print_code(item["text"], _LANGUAGES.get(stage))


def _find(name: str, program: Program, dtype: str, target_name: str) -> list[Shown]:
    from ..ops import OPS

    target, store = parse_target(target_name), KernelStore()
    kinds = {op: (op, "fwd") for op in OPS} | {f"{op}_fwd": (op, "fwd") for op in OPS}
    kinds |= {f"{op.name}_bwd": (op.name, "bwd") for op in OPS.values() if op.prepare_backward is not None}
    if name in kinds:
        return _of_program(kinds[name], program, dtype, target, store)
    entries = store.entries()
    matching = [e for e in entries if e.folder.name == name]
    if not matching and len(name) >= _SHORTEST_KEY:
        matching = [e for e in entries if e.key.digest.startswith(name)]
    if len(matching) > 1:
        raise InputError(f"inspect: {name!r} fits {[e.folder.name for e in matching]}; give more of the key")
    if matching:
        return [_of_entry(matching[0])]
    raise InputError(
        f"inspect: {name!r} is neither an op nor a stored kernel's folder or key: "
        f"{nearest(name, tuple(kinds))}; `nsa-codegen list` shows what is stored"
    )


def _of_program(kind: tuple[str, str], program: Program, dtype: str, target: Target, store: KernelStore) -> list[Shown]:
    from ..requests import needed_descs
    from ..selection import select

    descs = needed_descs(program, dtype)
    found = [d for d in descs if (d.op, d.direction) == kind]
    if not found:
        raise InputError(
            f"inspect: this attention takes no kernel {kind[0]}_{kind[1]}; it takes {sorted({d.kind for d in descs})}"
        )
    kernels = []
    for desc in found:
        selected = select(desc, target)
        entry = store.lookup(RequestKey.of(desc, selected.schedule, target))
        kernels.append(Shown(desc=desc, schedule=selected.schedule, origin=selected.source, target=target, entry=entry))
    return kernels


def _of_entry(entry: Entry) -> Shown:
    key = entry.key.to_json()
    desc, schedule = KernelDesc.from_json(key["desc"]), Schedule.from_json(key["schedule"])
    target = parse_target(entry.key.arch)
    return Shown(desc=desc, schedule=schedule, origin=f"stored in {entry.folder}", target=target, entry=entry)


def _text(stage: str, kernel: Shown, program: Program) -> str:
    if stage == "program":
        return f"{program}"
    if stage == "schedule":
        return f"{kernel.desc}\ntarget    {kernel.target}\nschedule  {kernel.schedule}\nfrom      {kernel.origin}"
    if stage == "tir":
        return str(primitive_function(kernel.desc, kernel.schedule, kernel.target).script())
    if stage == "source":
        return _source(kernel).text
    if stage == "asm":
        return _assembly(kernel)
    if kernel.entry is None:
        raise StoreError(
            f"{kernel.desc} is not built, so it has no manifest: {KernelStore().explain_miss(kernel.key)}\n"
            f"build it with `nsa-codegen build`"
        )
    return kernel.entry.manifest.text


def _source(kernel: Shown) -> KernelSource:
    if kernel.entry is not None:
        return kernel.entry.source
    return lower(kernel.desc, kernel.schedule, kernel.target)


def _assembly(kernel: Shown) -> str:
    """Return the built binary, disassembled; without a binary or objdump, what the compiler makes of the text."""
    objdump, library = shutil.which("objdump"), kernel.entry.library if kernel.entry is not None else None
    if objdump is None or library is None:
        return compile_assembly(_source(kernel).text, kernel.target)
    command = [objdump, "--disassemble", "--no-show-raw-insn", "--demangle", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompilerError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.strip()[:400]}")
    return done.stdout


def _print_code(text: str, language: str | None) -> None:
    if language is None or not sys.stdout.isatty():
        sys.stdout.write(text.rstrip("\n") + "\n")
        return
    from rich.syntax import Syntax

    console().print(Syntax(text, language, background_color="default", word_wrap=False))
