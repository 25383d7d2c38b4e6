"""How well the cost model ranks, from the committed logs of measured runs; nothing is measured or built here.

    python benchmarks/honesty.py --write

Times are those that the runs predicted and measured. A kernel's figures are Spearman's correlation of the two, and the
measured time of the model's best over the measured best. `--write` keeps them, with medians and means by op and over
all, in results/honesty.json, and draws results/honesty.png. The same by processor of what the model predicts today:
it has learnt from these logs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nsa_codegen.ops import Sizes
from nsa_codegen.schedule import schedule_class
from nsa_codegen.target import parse_target
from nsa_codegen.tuning.cost_model import predict
from nsa_codegen.tuning.honesty import rankings, summaries
from nsa_codegen.tuning.records import DEVICE_FACTS, Log, Meta, Record, logs_folder, read_log

RESULTS = Path(__file__).parent / "results"
COMMAND = "python benchmarks/honesty.py --write"
DIGITS = 4


def main() -> None:
    """Print the figures, and keep them if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=Path, default=logs_folder(), help="folder of logs")
    parser.add_argument("--write", action="store_true", help="keep figures and picture")
    options = parser.parse_args()
    from nsa_codegen.cli.app import print_table

    logs = measured_logs(options.logs)
    result = figures(logs)
    columns = ("name", "descs", "candidates", "spearman", "loss", "worst")
    print_table("predicted against measured", [*result["ops"], *result["processors"], result["all"]], columns)
    print_table("as the model is today", result["today"], columns)
    if options.write:
        (RESULTS / "honesty.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(logs, result).savefig(RESULTS / "honesty.png", dpi=120)
        print(f"wrote honesty.json and honesty.png in {RESULTS}")


def measured_logs(folder: Path) -> list[Log]:
    """Return the logs below `folder` whose judge is the device, in the order of their paths."""
    return [log for log in map(read_log, sorted(folder.rglob("*.jsonl"))) if log.meta.judge == "measured"]


def figures(logs: Iterable[Log]) -> dict[str, Any]:
    """Return command and machines, and the figures: of each kernel, of each op and direction, and over all.

    Candidates are compared within one log. `spearman` of an op is the median of its kernels, None where all candidates
    of each are predicted or measured alike; `loss` is the geometric mean, `worst` the greatest.
    """
    found = list(logs)
    rows = [pair for log in found for pair in rankings(log.records)]
    *ops, every = [_rounded(s.to_json()) for s in summaries(rows)]
    return {
        "command": COMMAND,
        "times": "as the tuning runs predicted and measured them; finalists left out",
        "machines": _machines(found),
        "all": every,
        "processors": _by_processor((log.meta, log.records) for log in found),
        "today": _by_processor((log.meta, list(predicted_anew(log))) for log in found),
        "ops": ops,
        "kernels": [_rounded({k: v for k, v in row.to_json().items() if k != "descs"}) for _, row in rows],
    }


def draw(logs: Iterable[Log], result: dict[str, Any]) -> Any:
    """Return the picture: every candidate by measured and predicted time; one colour an op, hollow for a backward."""
    from matplotlib.figure import Figure

    from nsa_codegen.tuning.report_plots import marks, plain_logs

    points: dict[str, list[tuple[float, float]]] = {}
    for record in (r for log in logs for r in log.records):
        if record.status == "ok" and record.stage == "search" and record.measured and record.predicted:
            times = (1e3 * record.measured.median, 1e3 * record.predicted["seconds"])
            points.setdefault(record.desc.kind, []).append(times)
    by_name = {row["name"]: row for row in result["ops"]}
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    for kind, own in sorted(points.items()):
        ranked = by_name[kind]["spearman"] if kind in by_name else None
        label = f"{kind}, " + ("not ranked" if ranked is None else f"Spearman {ranked:.2f}")
        axes.plot(*zip(*own, strict=True), "o", markersize=5, alpha=0.6, label=label, **marks(kind))
    ends = [min(min(p) for own in points.values() for p in own), max(max(p) for own in points.values() for p in own)]
    axes.plot(ends, ends, color="black", linewidth=0.8, label="as predicted")
    every = result["all"]
    named = [f"{p['name']} {p['spearman']:.2f}" for p in result["processors"] if p["spearman"] is not None]
    machines = "\n".join(", ".join(named[i : i + 2]) for i in range(0, len(named), 2))  # two to a line fit the picture
    plain_logs(axes, "x", "y")
    lost = f"the model's best loses {100 * (every['loss'] - 1):.1f} %, at worst {100 * (every['worst'] - 1):.0f} %"
    axes.set(
        aspect="equal", xlabel="measured, ms", ylabel="predicted, ms",
        title=f"{every['candidates']} candidates of {every['descs']} kernels: {lost}\n"
        f"Spearman {every['spearman']:.2f}, median of kernels; by processor:\n{machines}",
    )  # fmt: skip
    axes.title.set_size(10)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def predicted_anew(log: Log) -> Iterator[Record]:
    """Yield the records of a log that were predicted, as the model predicts them today."""
    target = parse_target(log.meta.target)
    for record in log.records:
        if record.predicted is not None:
            schedule = schedule_class(target).parse(dict(record.schedule))
            found = predict(record.desc, schedule, target, Sizes(**record.sizes), record.resources)
            yield replace(record, predicted={**record.predicted, "seconds": found.seconds})


def _by_processor(logs: Iterable[tuple[Meta, Iterable[Record]]]) -> list[dict[str, Any]]:
    """Return the figures over all kernels, one row a processor: the model was fitted on one of them."""
    rows: dict[str, list[Any]] = {}
    for meta, records in logs:
        rows.setdefault(str(meta.environment.get("processor")), []).extend(rankings(records))
    return [{**_rounded(summaries(own)[-1].to_json()), "name": name} for name, own in sorted(rows.items()) if own]


def _machines(logs: Iterable[Log]) -> list[dict[str, Any]]:
    """Return the devices and compilers that the logs are of, each once."""
    facts = (*DEVICE_FACTS, "compiler", "os")
    found = [{name: e[name] for name in facts if e.get(name) is not None} for e in (x.meta.environment for x in logs)]
    return [one for i, one in enumerate(found) if one not in found[:i]]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in row.items()}


if __name__ == "__main__":
    main()
