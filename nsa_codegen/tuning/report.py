"""The page of tuning logs: winners against defaults, spaces, the model's honesty, and pictures, in one HTML file.

Pictures are drawn by matplotlib and stand in the page itself; beside it they are kept as PNG files.
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
from ..errors import MissingPackageError, TuningLogError
from ..target import parse_target
from .honesty import Honesty, honesty
from .records import Log, Record, logs_folder, read_log
from .space import default_schedule
from .winners import schedule_text

PAGE = "report.html"
_STYLE = (
    "body{font:14px/1.45 sans-serif;margin:2em;max-width:76em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.2em .7em;text-align:left;border-bottom:1px solid #ddd}td.n,th.n{text-align:right}"
    "img{max-width:100%;margin:1em 0}"
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """All records of one desc in one log, in order; `default` and `best` seconds as the log's judge has them.

    `best` is that of the final round where there was one, and `schedule` whose it is; None if nothing came to an end.
    """

    log: Log
    desc: KernelDesc
    records: tuple[Record, ...]
    default: float | None
    best: float | None
    schedule: Mapping[str, int] | None

    @property
    def gain(self) -> float | None:
        """The default's time over the best's."""
        return self.default / self.best if self.default and self.best else None

    def best_so_far(self) -> tuple[list[int], list[float]]:
        """Return after how many candidates of the search the best time was what, in units of the default's."""
        at, times, best = [], [], float("inf")
        for count, record in enumerate((r for r in self.records if r.stage == "search"), start=1):
            if record.seconds is None:
                continue
            unit = record.default.median if record.default is not None else self.default
            if unit is not None and record.seconds / unit < best:
                best = record.seconds / unit
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
    figures = honesty(r for log in found for r in log.records)
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
        "Times of the default over times of the best: measured where the judge is the device, else predicted.",
        _table(
            ("arch", "kernel", "candidates", "not ok", "default ms", "best ms", "gain", "best schedule"),
            _kernels(studies),
        ),
        "<h2>Spaces</h2>",
        _table(("arch", "kernel", "raw", "legal", "refused, by reason"), _spaces(found)),
        *pictures,
        *_honesty_section(figures),
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
    ended = [r for r in records if r.seconds is not None]
    finals = [r for r in ended if r.stage == "final"] or ended
    best = min(finals, key=lambda r: r.seconds or 0.0, default=None)
    default = (
        best.default.median if best is not None and best.default is not None else _default_seconds(log, desc, ended)
    )
    return Study(
        log=log,
        desc=desc,
        records=records,
        default=default,
        best=None if best is None else best.seconds,
        schedule=None if best is None else best.schedule,
    )


def _default_seconds(log: Log, desc: KernelDesc, ended: Sequence[Record]) -> float | None:
    values = default_schedule(desc, parse_target(log.meta.target)).to_json()
    return next((r.seconds for r in ended if dict(r.schedule) == values), None)


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
        judge = log.meta.judge if log.meta.judge == "measured" else "static: compiled, not run"
        rows.append((log.meta.target, f"{log.path.parent.name}/{log.path.name}", judge, log.meta.command, facts))
    return _table(("arch", "log", "judge", "command", "environment"), rows)


def _kernels(studies: Sequence[Study]) -> list[tuple[Any, ...]]:
    rows = []
    for study in sorted(studies, key=lambda s: (s.log.meta.target, str(s.desc))):
        failed = sum(r.status not in ("ok", "same") for r in study.records)
        target = parse_target(study.log.meta.target)
        chosen = "" if study.schedule is None else schedule_text(study.schedule, target)
        times = tuple("" if s is None else f"{1e3 * s:.4g}" for s in (study.default, study.best))
        gain = "" if study.gain is None else f"{study.gain:.2f}"
        rows.append((study.log.meta.target, study.desc, len(study.records), failed, *times, gain, chosen))
    return rows


def _spaces(logs: Sequence[Log]) -> list[tuple[Any, ...]]:
    rows = {}
    for log in logs:
        for desc, space in log.meta.space.items():
            refused = "; ".join(f"{count}: {reason}" for reason, count in space.get("refused", {}).items())
            rows[log.meta.target, desc] = (log.meta.target, desc, space.get("raw"), space.get("legal"), refused)
    return [rows[key] for key in sorted(rows)]


def _honesty_section(figures: Sequence[Honesty]) -> list[str]:
    if not figures:
        return [
            "<p>No candidate was both predicted and measured: nothing is known of how well the model ranks here.</p>"
        ]
    rows = [
        (f.name, f.descs, f.candidates, "" if f.spearman is None else f"{f.spearman:.2f}", f"{f.loss:.3f}")
        for f in figures
    ]
    return [
        "<h2>How well the cost model ranks</h2>",
        "Spearman's correlation of predicted with measured times; the measured time of the model's best over the best.",
        _table(("kernel", "descs", "candidates", "Spearman", "loss"), rows),
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
