"""`nsa-codegen demo`: the main job on real text, from nothing to a trained model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .app import AsJson, console, print_json


def demo(
    seconds: Annotated[float, typer.Option(min=1.0, help="Train for about this long.")] = 30.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Train for this many steps, however long it takes.")] = None,
    impl: Annotated[str, typer.Option(help="What computes attention: compiled or reference.")] = "compiled",
    save: Annotated[Path | None, typer.Option(help="Keep the trained model in this .safetensors file.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the text it writes; 0: the likeliest bytes.")] = 0.7,
    as_json: AsJson = False,
) -> None:
    """Build kernels, train a byte-level language model on Python's own sources, check it, save it, let it write."""
    # Before torch is imported: its threads would spin between operators, on the cores that our threads then need.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from ..demo import run_demo

    # With --json, stdout is for the results: the story goes to stderr.
    out = console(stderr=as_json)
    result = run_demo(seconds=seconds, steps=steps, impl=impl, save=save, temperature=temperature, out=out)
    if as_json:
        print_json(result.to_json())
    if not result.agrees:
        raise typer.Exit(1)
