"""The page of tuning logs: winners against defaults, spaces, the model's honesty, and pictures, in one HTML file.

Each run is told by itself, as `replay` reads it. Pictures are drawn by matplotlib and stand in the page itself; beside
it they are kept as PNG files.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..desc import KernelDesc
from ..errors import MissingPackageError, NSAError, TuningLogError
from ..target import parse_target
from .honesty import Honesty, rankings, together
from .records import Log, Record, logs_folder, read_log
from .replay import STATIC
from .space import default_schedule
from .winners import Numbered, Verdict, schedule_text, verdict

PAGE = "report.html"
_KERNEL_COLUMNS = (
    "arch", "run", "kernel", "candidates", "not ok", "default ms", "best ms", "gain", "best schedule", "no row, since",
)  # fmt: skip
_STYLE = (
    "body{font:14px/1.45 sans-serif;margin:2em;max-width:76em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.2em .7em;text-align:left;border-bottom:1px solid #ddd}td.n,th.n{text-align:right}"
    "img{max-width:100%;margin:1em 0}"
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """All records of one desc in one log, in order, and what they decide.

    `default` is the default's seconds as the log's judge has them: in the turns of the best, if it was timed in turns.
    """

    log: Log
    desc: KernelDesc
    records: tuple[Record, ...]
    verdict: Verdict
    default: float | None

    @property
    def best(self) -> Record | None:
        """The candidate that wins, or came nearest to it; None if nothing is fit."""
        return None if self.verdict.best is None else self.verdict.best.record

    def best_so_far(self) -> tuple[list[int], list[float]]:
        """Return after how many candidates of the search the best time was what, in units of the default's.

        Where it is predicted, candidates that spill are counted and are no best.
        """
        at, times, best = [], [], float("inf")
        for count, record in enumerate((r for r in self.records if r.stage == "search"), start=1):
            if record.seconds is None or (record.judge == "static" and record.spills):
                continue
            gain = record.speedup or (None if self.default is None else self.default / record.seconds)
            if gain is not None:
                best = min(best, 1 / gain)
            if best < float("inf"):
                at.append(count)
                times.append(best)
        return at, times


def write_report(logs: Path | str | Iterable[Path], output: Path) -> Path:
    """Write the page of logs into the folder `output` and return its path.

    `logs` is one log, a folder with logs anywhere below it, or several of either; or the name of a run, whose logs are
    looked for in the folder of the committed ones. Raises `TuningLogError` for a damaged log or if there is none, and
    `MissingPackageError` without matplotlib.
    """
    _require_matplotlib()
    from .report_plots import draw_plots

    found = [read_log(path) for path in _paths(logs)]
    if not found:
        raise TuningLogError(f"there is no log in {logs}; `nsa-codegen tune` writes them")
    studies = [study for log in found for study in studies_of(log)]
    ranked = _ranked(found)
    figures = {arch: together((desc, row) for _, desc, row in rows) for arch, rows in ranked.items()}
    output.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, title, figure in draw_plots(studies, figures):
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=120, format="png")
        (output / f"{name}.png").write_bytes(buffer.getvalue())
        pictures.append(f'<h2>{html.escape(title)}</h2><img alt="{html.escape(title)}" src="{_inline(buffer)}">')
    parts = [
        "<h1>Tuning</h1>",
        _environments(found),
        "<h2>Kernels</h2>",
        "What each run decides. The gain is the default's time over the best's: in the last final round, turn by turn, "
        "where the judge is the device; else predicted, and without candidates that spill.",
        _table(_KERNEL_COLUMNS, _kernels(studies)),
        "<h2>Spaces</h2>",
        _table(("arch", "kernel", "raw", "legal", "refused, by reason"), _spaces(found)),
        *pictures,
        *_honesty_section(ranked, figures),
    ]
    page = output / PAGE
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title>nsa-codegen tuning</title><style>{_STYLE}</style>\n"
        + "\n".join(parts)
    )
    return page


def studies_of(log: Log) -> list[Study]:
    """Return the studies of a log, one a desc, in the order in which they began."""
    by_desc: dict[KernelDesc, list[Record]] = {}
    for record in log.records:
        by_desc.setdefault(record.desc, []).append(record)
    return [_study(log, desc, tuple(records)) for desc, records in by_desc.items()]


def _study(log: Log, desc: KernelDesc, records: tuple[Record, ...]) -> Study:
    target = parse_target(log.meta.target)
    numbered = [Numbered(line=n, record=r) for n, r in enumerate(log.records, start=1) if r.desc == desc]
    try:
        found = verdict(desc, target, numbered)
        values = default_schedule(desc, target).to_json()
    except NSAError as error:  # of a kernel that has no legal schedule any more
        return Study(
            log=log, desc=desc, records=records, default=None,
            verdict=Verdict(winner=None, reason=str(error), decided=False),
        )  # fmt: skip
    turns = None if found.best is None else found.best.record.default
    alone = next((r.seconds for r in records if r.seconds is not None and dict(r.schedule) == values), None)
    default = alone if turns is None else turns.median
    return Study(log=log, desc=desc, records=records, verdict=found, default=default)


def _ranked(logs: Iterable[Log]) -> dict[str, list[tuple[str, KernelDesc, Honesty]]]:
    """Return by architecture how well each run's candidates were ranked: its name, the desc and the figures."""
    found: dict[str, list[tuple[str, KernelDesc, Honesty]]] = {}
    for log in logs:
        rows = [(log.meta.run, desc, row) for desc, row in rankings(log.records)]
        found.setdefault(log.meta.target, []).extend(rows)
    return {arch: rows for arch, rows in found.items() if rows}


def _paths(logs: Path | str | Iterable[Path]) -> list[Path]:
    if isinstance(logs, str):
        logs = Path(logs) if Path(logs).exists() else sorted(logs_folder().rglob(f"{logs}.jsonl"))
    given = [logs] if isinstance(logs, Path) else list(logs)
    return [path for one in given for path in (sorted(one.rglob("*.jsonl")) if one.is_dir() else [one])]


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "the report's pictures need matplotlib, which is not installed: pip install 'nsa_codegen[bench]'"
        ) from error


def _environments(logs: Sequence[Log]) -> str:
    rows = []
    for log in logs:
        facts = ", ".join(f"{name} {value}" for name, value in sorted(log.meta.environment.items()) if value)
        static = "static: source only" if parse_target(log.meta.target).kind == "hip" else STATIC
        judge = log.meta.judge if log.meta.judge == "measured" else static
        rows.append((log.meta.target, f"{log.path.parent.name}/{log.path.name}", judge, log.meta.command, facts))
    return _table(("arch", "log", "judge", "command", "environment"), rows)


def _kernels(studies: Sequence[Study]) -> list[tuple[Any, ...]]:
    rows = []
    for study in sorted(studies, key=lambda s: (s.log.meta.target, str(s.desc))):
        failed = sum(r.status not in ("ok", "same") for r in study.records)
        meta, said, best = study.log.meta, study.verdict, study.best
        chosen = "" if best is None else schedule_text(best.schedule, parse_target(meta.target))
        seconds = (study.default, None if best is None else best.seconds)
        times = tuple("" if s is None else f"{1e3 * s:.4g}" for s in seconds)
        gain = "" if said.finite_gain is None else f"{said.finite_gain:.2f}"
        why = "" if said.winner is not None else "; ".join((said.reason, *said.refused))
        counts = (len(study.records), failed)
        rows.append((meta.target, meta.run, study.desc, *counts, *times, gain, chosen, why))
    return rows


def _spaces(logs: Sequence[Log]) -> list[tuple[Any, ...]]:
    rows = {}
    for log in logs:
        for desc, space in log.meta.space.items():
            refused = "; ".join(f"{count}: {reason}" for reason, count in space.get("refused", {}).items())
            rows[log.meta.target, desc] = (log.meta.target, desc, space.get("raw"), space.get("legal"), refused)
    return [rows[key] for key in sorted(rows)]


def _honesty_section(
    ranked: Mapping[str, Sequence[tuple[str, KernelDesc, Honesty]]], figures: Mapping[str, Sequence[Honesty]]
) -> list[str]:
    if not ranked:
        return [
            "<p>No candidate was both predicted and measured: nothing is known of how well the model ranks here.</p>"
        ]
    rows = []
    for arch, of_runs in sorted(ranked.items()):
        for run, f in (*((run, row) for run, _, row in of_runs), *(("", row) for row in figures[arch])):
            said = "" if f.spearman is None else f"{f.spearman:.2f}"
            rows.append((arch, run, f.name, f.descs, f.candidates, said, f"{f.loss:.3f}"))
    return [
        "<h2>How well the cost model ranks</h2>",
        "Spearman's correlation of predicted with measured times; the measured time of the model's best over the best. "
        "Candidates are compared within one run; a kind's figures, and those of all, are means over runs and kernels.",
        _table(("arch", "run", "kernel", "descs", "candidates", "Spearman", "loss"), rows),
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def cell(value: Any, tag: str = "td") -> str:
        text = html.escape(str(value))
        numeric = text.replace(".", "", 1).replace("-", "", 1).replace("e", "", 1).isdigit()
        return f"<{tag} class=n>{text}</{tag}>" if numeric else f"<{tag}>{text}</{tag}>"

    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "\n".join(f"<tr>{''.join(cell(v) for v in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}\n</table>"


def _inline(buffer: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
