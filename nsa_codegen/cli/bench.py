"""`nsa-codegen bench`: the benchmark suite on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..desc import DTYPES
from ..errors import InputError
from ..outputs import require_file
from .app import AsJson, console, print_json, print_table

if TYPE_CHECKING:
    from ..bench.settings import Settings
    from ..bench.suite import Result

_COLUMNS = (
    "tokens", "who", "median", "quartiles", "rounds", "speed-up", "quartiles ", "share", "GFLOP/s", "of limit",
)  # fmt: skip
_PARTS_OF_A_WHOLE = ("steps forward", "steps backward", "decode steps")


def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Run this part only; may be given more than once: forward, backward, ops, ops_backward, decode, "
            "seed, variants, model, module, flex, memory, start."
        ),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Leave this part out; may be given more than once.")] = None,
    min_tokens: Annotated[int, typer.Option(min=1, help="Shortest length.")] = 1024,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest length; powers of two in between.")] = 65536,
    max_backward_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest length of a backward; --max-tokens by default.")
    ] = None,
    num_heads: Annotated[int, typer.Option(help="Query heads, H.")] = 16,
    num_kv_heads: Annotated[int, typer.Option(help="Key/value heads, Hkv.")] = 1,
    head_dim: Annotated[int, typer.Option(help="Head dim of queries, keys and values, D.")] = 64,
    dtype: Annotated[str, typer.Option(help=f"Type of the tensors: {', '.join(DTYPES)}.")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's number by default.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Time for each comparison; at least one round.")] = 20.0,
    flex_seconds: Annotated[float, typer.Option(min=0.0, help="Time for flex_attention to compile.")] = 120.0,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File of the results, replaced if it is there. By default one named after the machine, replaced if "
            "this run measures all parts and lengths that it has."
        ),
    ] = None,
    plots: Annotated[bool, typer.Option(help="Whether to write plots beside the results.")] = True,
    as_json: AsJson = False,
) -> None:
    """Time NSA beside torch's dense attention and others, turn by turn in one process, and write results and plots.

    Results go to benchmarks/results of a checkout, else to the working directory; until the run ends, to a file beside
    it whose name ends in -unfinished.
    """
    import torch

    from ..bench.plots import write_plots
    from ..bench.settings import PARTS, Settings, powers_of_two
    from ..bench.suite import run_suite
    from ..index_sets import require_choice

    for part in (*(only or ()), *(skip or ())):
        require_choice("bench", "part", part, PARTS)
    settings = Settings(
        tokens=powers_of_two(min_tokens, max_tokens),
        backward_tokens=powers_of_two(min_tokens, min(max_tokens, max_backward_tokens or max_tokens)),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        threads=threads or torch.get_num_threads(),
        seconds=seconds,
        flex_seconds=flex_seconds,
        parts=tuple(dict.fromkeys(p for p in (only or PARTS) if p not in (skip or ()))),
    )
    _require_processors(settings.threads)
    path = output or _default_output(settings.label)
    if output is None:
        _require_replaceable(path, settings)
    require_file("bench.output", path)
    unfinished = path.with_name(f"{path.stem}-unfinished.json")
    out = console(stderr=True)
    result = run_suite(
        settings,
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        report=lambda line: out.print(line, markup=False),
        on_result=lambda so_far: write_result(so_far, unfinished),
    )
    write_result(result, path)
    unfinished.unlink(missing_ok=True)
    written = [path]
    if plots and importlib.util.find_spec("matplotlib") is None:
        out.print("no plots: matplotlib is not installed; pip install 'nsa_codegen[bench]'", markup=False)
    elif plots:
        written += write_plots(result, path.parent, path.stem)
    if as_json:
        print_json(result)
    else:
        print_result(result)
    for file in written:
        out.print(f"wrote {file}", markup=False, soft_wrap=True)


def write_result(result: Result, path: Path) -> None:
    """Write the result as JSON, replacing an older file at once."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)


def _default_output(label: str) -> Path:
    from ..bench.machine import machine_facts

    checkout = Path(__file__).parents[2] / "benchmarks"
    folder = checkout / "results" if checkout.is_dir() else Path.cwd()
    return folder / f"{machine_facts()['slug']}{label}.json"


def _require_processors(threads: int) -> None:
    """Raise `InputError` for more threads than processors: most would wait for those that compute."""
    processors = os.cpu_count() or 1
    if threads > processors:
        raise InputError(
            f"bench.threads = {threads} is more than the {processors} processors here; give --threads {processors} or "
            f"fewer"
        )


def _require_replaceable(path: Path, settings: Settings) -> None:
    """Raise `InputError` if the file has parts or lengths that this run would not measure again."""
    from ..bench.suite import read_result

    if not path.exists():
        return
    lost = settings.leaves_out(read_result(path)["settings"])
    if lost:
        what = ", ".join(f"{name} {' '.join(map(str, values))}" for name, values in lost.items())
        raise InputError(
            f"bench: {path} also holds what this run does not measure ({what}), and would be replaced; name another "
            f"file with --output, or this one if that is meant"
        )


def print_result(result: Result) -> None:
    """Print a table per comparison, then limits, exponents and memory."""
    limits = result["limits"]
    threads = f"{limits['threads']} thread(s)"
    rates = {
        "fma_one": "FMA, one thread",
        "fma_all": f"FMA, {threads}",
        "fed_all": f"FMA fed from the first cache, {threads}",
        "pairs_all": f"products of bfloat16 pairs, {threads}",
    }
    rows = [{"limit": rates[n], "value": f"{limits[n] / 1e9:.1f} GFLOP/s"} for n in rates if limits.get(n)]
    rows.append({"limit": "copy, read and written", "value": f"{limits['copy_bytes'] / 1e9:.1f} GB/s"})
    if limits.get("clock_fed"):
        clocks = f"{limits['clock_fma'] / 1e9:.2f} and {limits['clock_fed'] / 1e9:.2f} GHz"
        rows.append({"limit": "clock after FMA, and after FMA fed from the first cache", "value": clocks})
    print_table(f"limits of {result['machine']['name']}, measured in this run", rows, ("limit", "value"))
    for name in dict.fromkeys(c["name"] for c in result["comparisons"]):
        chosen = [c for c in result["comparisons"] if c["name"] == name]
        timed = [_row(c, row) for c in chosen for row in c["contenders"]]
        if timed:
            columns = [c for c in _COLUMNS if any(row[c] is not None for row in timed)]
            print_table(f"{name} (against {chosen[0]['baseline']})", timed, columns)
        for skipped in {(s["name"], s["reason"]) for c in chosen for s in c["skipped"]}:
            console().print(f"{name}: without {skipped[0]}: {skipped[1]}", markup=False, soft_wrap=True)
    if result["exponents"]:
        print_table("time = c * T^p", result["exponents"], ("comparison", "name", "exponent"))
    if result["start"]:
        started = [
            {"what": row["name"], "median": _time(row["seconds"]["median"]), "samples": len(row["samples"])}
            for row in result["start"]
        ]
        print_table("starting", started, ("what", "median", "samples"))
    if result["memory"]:
        memory = [_memory_row(m) for m in result["memory"]]
        print_table("peak memory beyond inputs and outputs", memory, ("direction", "tokens", "who", "MB", "operands"))


def _row(comparison: Result, row: Result) -> dict[str, Any]:
    seconds, faster, steps = row["seconds"], row.get("speedup"), comparison["name"] in _PARTS_OF_A_WHOLE
    flops = row.get("operations", 0) / seconds["median"] / 1e9
    return {
        "tokens": comparison["tokens"],
        "who": row["name"],
        "median": _time(seconds["median"]),
        "quartiles": f"{_time(seconds['q1'])} .. {_time(seconds['q3'])}",
        "rounds": f"{len(row['samples'])}{'' if comparison['warm'] else ' (cold)'}",
        "speed-up": None if faster is None or steps else f"{faster['median']:.3g}x",
        "quartiles ": None if faster is None or steps else f"{faster['q1']:.3g} .. {faster['q3']:.3g}",
        "share": f"{100 / faster['median']:.1f} %" if faster is not None and steps else None,
        "GFLOP/s": flops or None,
        "of limit": None if "of_limit" not in row else f"{100 * row['of_limit']:.0f} %",
    }


def _memory_row(row: Result) -> dict[str, Any]:
    kept = {name: row[name] for name in ("direction", "tokens", "who")}
    if "error" in row:
        return {**kept, "MB": row["error"]}
    size = f"{row['bytes'] / 1e6:.1f}"
    return {**kept, "MB": size if row["exact"] else f"at most {size}", "operands": f"{row['operands_bytes'] / 1e6:.1f}"}


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
