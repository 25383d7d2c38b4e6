"""The pictures of a tuning report: best so far, predicted against measured, and where kernels lie under their roofs.

An op has one colour in all of them; forwards are full, backwards hollow or dashed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..ops import OPS
from ..target import GpuTarget, parse_target
from .cost_cpu import CLOCK, CORES, DRAM_RATE, FMA_BYTES
from .honesty import Honesty, pairs_by_desc

if TYPE_CHECKING:
    from .report import Study


def draw_plots(studies: Sequence[Study], figures: Mapping[str, Sequence[Honesty]]) -> Iterator[tuple[str, str, Any]]:
    """Yield a file name without its ending, a title, and a figure of matplotlib, for every picture that has data.

    `figures` are by architecture those of each kind and of all.
    """
    from matplotlib.figure import Figure

    for arch in dict.fromkeys(s.log.meta.target for s in studies):
        own = [s for s in studies if s.log.meta.target == arch]
        for name, title, draw in (
            ("best", f"{arch}: best so far", _draw_best),
            ("predicted", f"{arch}: predicted against measured", _draw_predicted),
            ("roofline", f"{arch}: roofline", _draw_roofline),
        ):
            figure = Figure(figsize=(10, 5), layout="constrained")
            if draw(figure.subplots(), own, figures.get(arch, ())):
                yield f"{arch}-{name}", title, figure


def marks(kind: str) -> dict[str, Any]:
    """Return how matplotlib draws points of a kind, like `combine_bwd`: the op's colour, and hollow for a backward."""
    colour = _colour(kind)
    return {"color": colour, "markerfacecolor": "none" if kind.endswith("_bwd") else colour}


def plain_logs(axes: Any, *names: str) -> None:
    """Make the axes named `x` or `y` logarithmic, with a few plain numbers beside them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in names:
        axes.set(**{f"{name}scale": "log"})
        low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
        axis = axes.xaxis if name == "x" else axes.yaxis
        subs = (1.0,) if high > 1e3 * low else (1.0, 2.0, 5.0) if high > 10 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _draw_best(axes: Any, studies: Sequence[Study], figures: Sequence[Honesty]) -> bool:
    """Draw for each kernel the best time so far in units of the default's; return whether there was any."""
    lines = [(s, *s.best_so_far()) for s in studies]
    lines = [line for line in lines if line[1]]
    if not lines:
        return False
    named = set()
    for study, at, times in sorted(lines, key=lambda line: line[0].desc.kind):
        kind = study.desc.kind
        axes.step(
            at, times, where="post", linestyle="--" if kind.endswith("_bwd") else "-", marker="o", markevery=[-1],
            markersize=4, label=None if kind in named else kind, alpha=0.8, **marks(kind),
        )  # fmt: skip
        named.add(kind)
    axes.axhline(1.0, color="black", linewidth=0.8)
    title = f"best so far, {_judged(studies)}; one line a kernel"
    axes.set(xlabel="candidates tried", ylabel="time / default's time", title=title)
    axes.set_ylim(bottom=0.9 * min(min(times) for _, _, times in lines))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True, alpha=0.3)
    _legend(axes)
    return True


def _draw_predicted(axes: Any, studies: Sequence[Study], figures: Sequence[Honesty]) -> bool:
    """Draw each candidate by predicted and measured time, both in units of the least of its kernel in its run."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for (desc, _), pairs in (item for s in studies for item in pairs_by_desc(s.records).items()):
        least = [min(values) for values in zip(*pairs, strict=True)]
        kinds.setdefault(desc.kind, []).extend((p / least[0], m / least[1]) for p, m in pairs)
    if not kinds:
        return False
    ranks = {f.name: f for f in figures}
    for kind, points in sorted(kinds.items()):
        said = ranks[kind].spearman if kind in ranks else None
        label = kind if said is None else f"{kind}, Spearman {said:.2f}"
        axes.plot(*zip(*points, strict=True), "o", markersize=4, alpha=0.6, label=label, **marks(kind))
    most = max(max(point) for points in kinds.values() for point in points)
    axes.plot([1, most], [1, most], color="black", linewidth=0.8)
    plain_logs(axes, "x", "y")
    every = ranks.get("all")
    title = "" if every is None or every.spearman is None else f"Spearman {every.spearman:.2f}, mean over kernels; "
    loss = "" if every is None else f"taking the model's best loses {100 * (every.loss - 1):.1f} %"
    axes.set(xlabel="predicted / least predicted", ylabel="measured / least measured", title=title + loss)
    axes.grid(visible=True, alpha=0.3)
    _legend(axes)
    return True


def _draw_roofline(axes: Any, studies: Sequence[Study], figures: Sequence[Honesty]) -> bool:
    """Draw each kernel's best candidate: operations per byte of its operands across, operations a second up."""
    points = []
    for study in studies:
        best = study.best
        facts, seconds = ({}, None) if best is None else (best.predicted or {}, best.seconds)
        if seconds and facts.get("operations") and facts.get("unique_bytes"):
            points.append((study.desc.kind, facts["operations"] / facts["unique_bytes"], facts["operations"] / seconds))
    if not points:
        return False
    peak, memory, of_roof = _roofs(studies[0].log.meta.target)
    unit, scale = ("TFLOP/s", 1e12) if peak > 1e13 else ("GFLOP/s", 1e9)
    for kind in sorted({kind for kind, _, _ in points}):
        own = [(x, y / scale) for k, x, y in points if k == kind]
        axes.plot(*zip(*own, strict=True), "o", markersize=6, alpha=0.8, label=kind, **marks(kind))
    ridge, last = peak / memory, max(4 * peak / memory, 2 * max(x for _, x, _ in points))
    first = min(ridge / 16, min(x for _, x, _ in points) / 2)
    axes.plot([first, ridge, last], [first * memory / scale, peak / scale, peak / scale], color="black", linewidth=1)
    plain_logs(axes, "x", "y")
    title = f"{of_roof}; times {_judged(studies)}"
    axes.set(xlabel="operations of its tiles per byte of operands", ylabel=unit, title=title)
    axes.grid(visible=True, alpha=0.3)
    _legend(axes)
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


def _judged(studies: Sequence[Study]) -> str:
    judges = {s.log.meta.judge for s in studies}
    if len(judges) > 1:
        return "of both judges"
    return "measured" if judges == {"measured"} else "predicted: compiled, not run"


def _colour(kind: str) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10"](sorted(OPS).index(kind.rpartition("_")[0]))


def _legend(axes: Any) -> None:
    """Put the legend beside the axes, where it hides nothing."""
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
