"""The pictures of a tuning report: best so far, predicted against measured, and where kernels lie under their roofs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..target import GpuTarget, parse_target
from .cost_cpu import CLOCK, CORES, DRAM_RATE, FMA_BYTES
from .honesty import Honesty, pairs_by_desc

if TYPE_CHECKING:
    from .report import Study


def draw_plots(studies: Sequence[Study], figures: Sequence[Honesty]) -> Iterator[tuple[str, str, Any]]:
    """Yield a file name without its ending, a title, and a figure of matplotlib, for every picture that has data."""
    from matplotlib.figure import Figure

    for arch in dict.fromkeys(s.log.meta.target for s in studies):
        own = [s for s in studies if s.log.meta.target == arch]
        for name, title, draw in (
            ("best", f"{arch}: best so far", _draw_best),
            ("predicted", f"{arch}: predicted against measured", _draw_predicted),
            ("roofline", f"{arch}: roofline", _draw_roofline),
        ):
            figure = Figure(figsize=(9, 5), layout="constrained")
            if draw(figure.subplots(), own, figures):
                yield f"{arch}-{name}", title, figure


def _draw_best(axes: Any, studies: Sequence[Study], figures: Sequence[Honesty]) -> bool:
    """Draw for each kernel the best time so far in units of the default's; return whether there was any."""
    lines = [(s, *s.best_so_far()) for s in studies]
    lines = [line for line in lines if line[1]]
    colours = _colours(sorted({s.desc.kind for s, _, _ in lines}))
    named = set()
    for study, at, times in lines:
        kind = study.desc.kind
        axes.step(at, times, where="post", color=colours[kind], label=None if kind in named else kind, alpha=0.8)
        named.add(kind)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="candidates", ylabel="best so far / default")
    axes.set_ylim(bottom=0.9 * min((min(times) for _, _, times in lines), default=1.0))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    return bool(lines)


def _draw_predicted(axes: Any, studies: Sequence[Study], figures: Sequence[Honesty]) -> bool:
    """Draw each candidate by predicted and measured time, both in units of the least of its kernel."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for (desc, _), pairs in pairs_by_desc(r for s in studies for r in s.records).items():
        least = [min(values) for values in zip(*pairs, strict=True)]
        kinds.setdefault(desc.kind, []).extend((p / least[0], m / least[1]) for p, m in pairs)
    if not kinds:
        return False
    colours, ranks = _colours(sorted(kinds)), {f.name: f for f in figures}
    for kind, points in sorted(kinds.items()):
        said = ranks[kind].spearman if kind in ranks else None
        label = kind if said is None else f"{kind}, Spearman {said:.2f}"
        axes.plot(*zip(*points, strict=True), "o", markersize=3, alpha=0.6, color=colours[kind], label=label)
    most = max(max(point) for points in kinds.values() for point in points)
    axes.plot([1, most], [1, most], color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    every = ranks.get("all")
    title = "" if every is None or every.spearman is None else f"Spearman {every.spearman:.2f}, mean over kernels; "
    loss = "" if every is None else f"taking the model's best loses {100 * (every.loss - 1):.1f} %"
    axes.set(xlabel="predicted / least predicted", ylabel="measured / least measured", title=title + loss)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    return True


def _draw_roofline(axes: Any, studies: Sequence[Study], figures: Sequence[Honesty]) -> bool:
    """Draw each kernel's best candidate: operations per byte of its operands across, operations a second up."""
    points = []
    for study in studies:
        best = next((r for r in study.records if r.schedule == study.schedule and r.predicted), None)
        facts = {} if best is None else best.predicted or {}
        if study.best and facts.get("operations") and facts.get("unique_bytes"):
            points.append(
                (study.desc.kind, facts["operations"] / facts["unique_bytes"], facts["operations"] / study.best)
            )
    if not points:
        return False
    peak, memory, of_roof = _roofs(studies[0].log.meta.target)
    colours = _colours(sorted({kind for kind, _, _ in points}))
    for kind in colours:
        own = [(x, y / 1e9) for k, x, y in points if k == kind]
        axes.plot(*zip(*own, strict=True), "o", markersize=5, alpha=0.8, color=colours[kind], label=kind)
    ridge, last = peak / memory, max(4 * peak / memory, 2 * max(x for _, x, _ in points))
    first = min(ridge / 16, min(x for _, x, _ in points) / 2)
    axes.plot([first, ridge, last], [first * memory / 1e9, peak / 1e9, peak / 1e9], color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    judged = {s.log.meta.judge for s in studies}
    how = (
        "measured"
        if judged == {"measured"}
        else "predicted: compiled, not run"
        if judged == {"static"}
        else "both judges"
    )
    axes.set(xlabel="operations of its tiles per byte of operands", ylabel="GFLOP/s", title=f"{of_roof}; times {how}")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    return True


def _roofs(arch: str) -> tuple[float, float, str]:
    """Return operations and bytes a second at most, and what they are of."""
    target = parse_target(arch)
    if isinstance(target, GpuTarget):
        rates = target.rates
        said = f"{target.product}: {rates.matrix_tflops:g} TFLOP/s, {rates.dram_gbs} GB/s (data sheet)"
        return 1e12 * rates.matrix_tflops, 1e9 * rates.dram_gbs, said
    peak, memory = CORES * CLOCK * 2 * FMA_BYTES / 4, CORES * DRAM_RATE
    return peak, memory, f"{CORES} cores of the cost model: {peak / 1e9:.0f} GFLOP/s, {memory / 1e9:.0f} GB/s"


def _colours(kinds: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    table = colormaps["tab10" if len(kinds) <= 10 else "tab20"]
    return {kind: table(i % table.N) for i, kind in enumerate(kinds)}
