"""`nsa-codegen inspect`: one kernel at any stage between its description and its machine code."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..spec import NSASpec
from ..target import parse_target
from .app import AsJson, console, print_json, progress_bar
from .figures import (
    Measured,
    figures_json,
    print_occupancy,
    print_occupancy_difference,
    print_resource_difference,
    print_resources,
)
from .options import Dtype, TargetName, default_dtype, takes_spec
from .shown import Shown, find_kernels, other_kernel
from .stages import FIGURES, LANGUAGES, STAGES, kernel_resources, require_stage, stage_text

if TYPE_CHECKING:
    from ..program import Program

_STAGE_HELP = "What to show. " + "; ".join(f"{kind}: {', '.join(stages)}" for kind, stages in STAGES.items())
Pair = tuple[Shown, Shown | None]


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
    stage: Annotated[str | None, typer.Option(help=f"{_STAGE_HELP}. The emitted text by default.")] = None,
    target: TargetName = "cpu",
    dtype: Dtype = None,
    diff: Annotated[
        str | None,
        typer.Option(help="Compare with another target, or with changed fields of the schedule: rows=128,stages=3."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a kernel at one stage: its program, schedule, TileLang's TIR, emitted text, machine code, what it takes.

    Text is coloured in a terminal and plain in a pipe. An op of which the attention takes several kernels shows all.
    """
    program, asked = spec.program(), parse_target(target)
    kernels = find_kernels(kernel, program, dtype or default_dtype(asked), asked, only_there=target != "cpu")
    stage = require_stage(stage, kernels[0].target)
    pairs: list[Pair] = [(k, None if diff is None else other_kernel(k, diff)) for k in kernels]
    for _, other in pairs:
        if other is not None:
            require_stage(stage, other.target)
    if stage in FIGURES:
        _show_figures(stage, pairs, as_json)
    elif stage == "program":  # one text, whatever the kernels
        if diff is not None:
            raise InputError("inspect.stage = 'program' has no --diff: it is the same on every target and schedule")
        _show_texts(stage, pairs if as_json else pairs[:1], program, as_json)
    else:
        _show_texts(stage, pairs, program, as_json)


def _show_texts(stage: str, pairs: list[Pair], program: Program, as_json: bool) -> None:
    shown = []
    for kernel, other in _with_progress(stage, pairs):
        item: dict[str, Any] = {"kernel": str(kernel.desc), "stage": stage, "text": stage_text(stage, kernel, program)}
        if other is not None:
            item["diff"] = _unified(kernel, item["text"], other, stage_text(stage, other, program))
        shown.append(item)
    if as_json:
        print_json(shown)
        return
    for item in shown:
        if len(shown) > 1:
            print(f"== {item['kernel']}")
        if "diff" not in item:
            _print_code(item["text"], LANGUAGES.get(stage))
        else:
            _print_code(item["diff"] or "no difference", "diff")


def _show_figures(stage: str, pairs: list[Pair], as_json: bool) -> None:
    measured = [
        (_measure(kernel), None if other is None else _measure(other))
        for kernel, other in _with_progress(stage, pairs)
    ]  # fmt: skip
    if as_json:
        print_json([_figures_item(stage, one, other) for one, other in measured])
        return
    alone = [one for one, other in measured if other is None]
    if stage == "resources" and alone:
        print_resources(alone)
    elif alone:
        for one in alone:
            print_occupancy(one)
    for one, other in measured:
        if other is not None:
            show = print_resource_difference if stage == "resources" else print_occupancy_difference
            show(one, other)


def _figures_item(stage: str, one: Measured, other: Measured | None) -> dict[str, Any]:
    item = {"kernel": str(one.kernel.desc), "stage": stage} | figures_json(stage, one)
    return item if other is None else item | {"other": figures_json(stage, other)}


def _measure(kernel: Shown) -> Measured:
    return Measured(kernel=kernel, resources=kernel_resources(kernel))


def _with_progress(stage: str, pairs: list[Pair]) -> Iterable[Pair]:
    """Yield the pairs; with a bar where each may have to be lowered and compiled."""
    if len(pairs) == 1 or stage in ("program", "schedule", "manifest"):
        yield from pairs
        return
    with progress_bar() as bar:
        yield from bar.track(pairs, description=stage)


def _unified(kernel: Shown, text: str, other: Shown, other_text: str) -> str:
    """Return the unified diff of two texts, named by target and schedule; empty if they are the same."""
    old, new = (f"{k.target.name} {k.schedule}" for k in (kernel, other))
    lines = difflib.unified_diff(text.splitlines(), other_text.splitlines(), old, new, lineterm="")
    return "\n".join(lines)


def _print_code(text: str, language: str | None) -> None:
    if language is None or not sys.stdout.isatty():
        sys.stdout.write(text.rstrip("\n") + "\n")
        return
    from rich.syntax import Syntax

    console().print(Syntax(text, language, background_color="default", word_wrap=False))
