"""Plots of a result: time against length with fitted exponents, speed-up over dense, roofline, memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .machine import peak_for
from .suite import Result

_ORDER = ("nsa", "sdpa", "reference")
_TIMED = ("forward", "backward")
# Against FlashAttention-2 on an A100 (paper, figure 6): what the speed-ups here are held to.
_PAPER = {
    "forward": {8192: 2.1, 16384: 3.8, 32768: 6.3, 65536: 9.0},
    "backward": {8192: 1.1, 16384: 2.0, 32768: 3.4, 65536: 6.0},
}


def write_plots(result: Result, folder: Path, stem: str) -> list[Path]:
    """Write `<stem>-<plot>.png` into `folder` for every plot that `result` has data for, and return the files.

    Raises `ImportError` without matplotlib (`pip install 'nsa_codegen[bench]'`).
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw, wanted in (
        ("time", _draw_time, _has(result, *_TIMED)),
        ("speedup", _draw_speedup, _has(result, *_TIMED)),
        ("roofline", _draw_roofline, _has(result, "steps forward", "steps backward")),
        ("memory", _draw_memory, bool(result["memory"])),
    ):
        if wanted:
            figure = Figure(figsize=(9, 4.2), layout="constrained")
            _draw(draw, figure, result)
            path = folder / f"{stem}-{name}.png"
            figure.savefig(path, dpi=120)
            written.append(path)
    return written


def _draw(draw: Callable[[Any, Result], None], figure: Any, result: Result) -> None:
    draw(figure, result)
    s, machine = result["settings"], result["machine"]
    threads = f"{s['threads']} thread{'s' if s['threads'] > 1 else ''}"
    heads = f"H {s['num_heads']}, Hkv {s['num_kv_heads']}, D {s['head_dim']}, {s['dtype']}"
    figure.suptitle(f"{machine['name']}, {threads}: {heads}, torch {machine['torch']}", fontsize=9)


def _has(result: Result, *names: str) -> bool:
    return any(c["contenders"] for c in result["comparisons"] if c["name"] in names)


def _lines(result: Result, name: str) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Return for each contender of the comparison `name` its rows by length."""
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for comparison in result["comparisons"]:
        if comparison["name"] == name:
            for row in comparison["contenders"]:
                found.setdefault(row["name"], []).append((comparison["tokens"], row))
    order = sorted(found, key=lambda n: (_ORDER.index(n) if n in _ORDER else len(_ORDER), n))
    return {n: sorted(found[n], key=lambda point: point[0]) for n in order}


def _by_tokens(axes: Any, tokens: set[int], title: str, unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(tokens), [f"{t // 1024}k" if t % 1024 == 0 else str(t) for t in sorted(tokens)])
    axes.minorticks_off()
    axes.set(title=title, xlabel="tokens T", ylabel=unit)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=8)


def _draw_time(figure: Any, result: Result) -> None:
    powers = {(e["comparison"], e["name"]): e["exponent"] for e in result["exponents"]}
    shown = [name for name in _TIMED if _has(result, name)]
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        tokens: set[int] = set()
        found = [(name, who, points) for who, points in _lines(result, name).items()]
        # The eager definition is timed apart, since it would slow down the rounds of the others.
        found += [(e, w, p) for e in (f"eager {name}",) for w, p in _lines(result, e).items() if w == "reference"]
        for comparison, who, points in found:
            fitted = f"{who}: T^{powers[comparison, who]:.2f}" if (comparison, who) in powers else who
            _with_quartiles(axes, points, "seconds", fitted)
            tokens |= {t for t, _ in points}
        axes.set_yscale("log")
        _by_tokens(axes, tokens, name, "seconds")


def _draw_speedup(figure: Any, result: Result) -> None:
    axes, tokens = figure.subplots(), set()
    for name, colour in zip(_TIMED, ("tab:blue", "tab:orange"), strict=True):
        points = _lines(result, name).get("nsa", [])
        if points:
            _with_quartiles(axes, points, "speedup", name, color=colour)
            tokens |= {t for t, _ in points}
        paper = {t: ratio for t, ratio in _PAPER[name].items() if t in tokens and points}
        if paper:
            label = f"{name}, the paper's on an A100"
            axes.plot(list(paper), list(paper.values()), "x--", color=colour, alpha=0.6, label=label)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_yscale("log", base=2)
    _by_tokens(axes, tokens, "speed-up over torch SDPA, dense causal", "times")
    low, high = axes.get_ylim()
    ticks = [2.0**power for power in range(-6, 8) if low <= 2.0**power <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _with_quartiles(axes: Any, points: list[tuple[int, dict[str, Any]]], field: str, label: str, **style: Any) -> None:
    x, y = [t for t, _ in points], [row[field]["median"] for _, row in points]
    low = [row[field]["median"] - row[field]["q1"] for _, row in points]
    high = [row[field]["q3"] - row[field]["median"] for _, row in points]
    axes.errorbar(x, y, yerr=[low, high], marker="o", markersize=4, capsize=2, label=label, **style)


def _draw_roofline(figure: Any, result: Result) -> None:
    """Draw each step at its longest length: operations per byte across, operations per second up."""
    axes, limits = figure.subplots(), result["limits"]
    bound = peak_for(limits, result["settings"]["dtype"])
    peak, copied = limits[bound], limits["copy_bytes"]
    intensities = []
    for name, marker in (("steps forward", "o"), ("steps backward", "s")):
        for who, points in _lines(result, name).items():
            tokens, row = points[-1]
            if who != "nsa" and row.get("operations"):
                intensity = row["operations"] / row["bytes"]
                intensities.append(intensity)
                label = f"{who}, {name.removeprefix('steps ')}, {tokens}"
                axes.plot([intensity], [row["operations"] / row["seconds"]["median"] / 1e9], marker, label=label)
    low, high = min(intensities) / 2, max(2 * max(intensities), 4 * peak / copied)
    ridge = peak / copied
    axes.plot([low, ridge, high], [low * copied / 1e9, peak / 1e9, peak / 1e9], color="black", linewidth=1)
    if bound == "fma_all" and (fed := limits.get("fed_all")):
        label = f"fed from the first cache: {fed / 1e9:.0f} GFLOP/s"
        axes.plot([fed / copied, high], [fed / 1e9] * 2, "--", color="gray", linewidth=1, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    unit = "products of pairs" if bound == "pairs_all" else "FMA"
    roof = f"roof: {peak / 1e9:.0f} GFLOP/s of {unit}, {copied / 1e9:.1f} GB/s of copying"
    axes.set(title=roof, xlabel="operations per byte", ylabel="GFLOP/s")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_memory(figure: Any, result: Result) -> None:
    shown = [d for d in _TIMED if any(m["direction"] == d for m in result["memory"])]
    for axes, direction in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        rows = [m for m in result["memory"] if m["direction"] == direction and "error" not in m]
        for who in dict.fromkeys(m["who"] for m in rows):
            points = sorted((m["tokens"], m["bytes"] / 1e6) for m in rows if m["who"] == who)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=who)
        operands = sorted((m["tokens"], m["operands_bytes"] / 1e6) for m in rows if m["who"] == "nsa")
        if operands:
            axes.plot(*zip(*operands, strict=True), "--", color="black", label="inputs and outputs of nsa")
        axes.set_yscale("symlog", linthresh=1.0)
        _by_tokens(axes, {m["tokens"] for m in rows}, direction, "MB beyond inputs and outputs")
