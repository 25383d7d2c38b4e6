"""The options that describe an attention: `--preset`, and one for every field of `NSASpec`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from ..desc import DTYPES
from ..index_sets import require_choice
from ..spec import OPTIONS, NSASpec
from ..target import Target

PRESETS = ("seed", "paper")
SPEC_HELP = {
    "num_heads": (int, "Query heads, H."),
    "num_kv_heads": (int, "Key/value heads, Hkv; the query heads' number by default."),
    "head_dim": (int, "Head dim of queries and keys, Dk."),
    "value_dim": (int, "Head dim of values, Dv; Dk by default."),
    "window_size": (int, "Window w, in tokens."),
    "block_size": (int, "Selection block l', in tokens."),
    "num_selected_blocks": (int, "Selected blocks n per query, forced ones included."),
    "num_initial_blocks": (int, "First blocks that are always selected."),
    "num_local_blocks": (int, "Blocks up to the query's own that are always selected."),
    "compression_kernel": (int, "Compression window l, in tokens."),
    "compression_stride": (int, "Compression stride d, in tokens."),
    "compression": (str, "How tokens are compressed: mean, conv or mlp."),
    "selection": (str, "What scores blocks: mean_key or compressed."),
    "gate": (str, "How the paths are combined: scalar or sigmoid."),
    "kv_per_path": (bool, "Whether each path has keys and values of its own."),
    "causal": (bool, "Whether a query sees only what is not after it."),
    "pool_queries": (bool, "Whether the compressed path pools its queries too."),
    "compression_ratio": (int, "Sets compression_kernel and compression_stride together."),
}
Dtype = Annotated[
    str | None,
    typer.Option(help=f"Type of the tensors: {', '.join(DTYPES)}; by default float32, and bfloat16 on a GPU."),
]
TargetName = Annotated[str, typer.Option(help="Architecture; cpu is this machine's.")]


def default_dtype(target: Target) -> str:
    """Return the dtype of kernels for `target` where none is asked for."""
    return "float32" if target.kind == "cpu" else "bfloat16"


def takes_spec(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `spec` the options of `SPEC_HELP` and `--preset` in its place."""
    hints = get_type_hints(command, include_extras=True)
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "spec"]
    parameters = [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in own]
    parameters.append(_parameter("preset", str, "Where defaults come from: seed or paper.", "seed"))
    parameters += [_parameter(name, kind, text, None) for name, (kind, text) in SPEC_HELP.items()]

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        preset = given.pop("preset")
        require_choice("nsa-codegen", "preset", preset, PRESETS)
        options = {name: given.pop(name) for name in OPTIONS}
        chosen = {name: value for name, value in options.items() if value is not None}
        command(spec=getattr(NSASpec, preset)(**chosen), **given)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _parameter(name: str, kind: type, text: str, default: str | None) -> inspect.Parameter:
    option = typer.Option(help=text, rich_help_panel="Attention")
    annotation = Annotated[kind | None, option] if default is None else Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
