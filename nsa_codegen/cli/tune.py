"""`nsa-codegen tune`: search for schedules, judge them, and log every candidate."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ..desc import DTYPES
from ..errors import BuildForbiddenError, InputError, TuningError, TuningLogError
from ..index_sets import require_choice
from ..outputs import require_folder
from ..store import building_is_forbidden
from ..target import Target, parse_target
from .app import AsJson, console, print_error, print_json, print_table, progress_bar
from .options import PRESETS, Dtype, TargetName, default_dtype

if TYPE_CHECKING:
    from ..tuning.options import Found, Options
    from ..tuning.problems import Problem

INTERRUPTED = 130
REPORT_FOLDER = "tuning-report"


class Tune(TyperCommand):
    """The command, whose `--report` need not be followed by a folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, with the folder that a bare `--report` means."""
        given: list[str] = []
        for arg, following in zip(args, [*args[1:], "-"], strict=True):
            given += [arg, REPORT_FOLDER] if arg == "--report" and following.startswith("-") else [arg]
        return super().parse_args(ctx, given)


def tune(
    target: TargetName = "cpu",
    preset: Annotated[str, typer.Option(help="Whose kernels are tuned: seed or paper.")] = "seed",
    grid: Annotated[
        bool, typer.Option("--grid", help="Tune the paper's kernels with other head dims and groups instead.")
    ] = False,
    dtype: Dtype = None,
    direction: Annotated[str, typer.Option(help="Kernels to tune: fwd, bwd or both.")] = "both",
    op: Annotated[
        list[str] | None, typer.Option(help="Tune this op only, like combine or combine_bwd; may be repeated.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Candidates judged per kernel; all legal ones if fewer.")] = 64,
    compiled: Annotated[
        int, typer.Option("--compile", min=1, help="Where the device is not here: candidates compiled per kernel.")
    ] = 3,
    candidate_seconds: Annotated[
        float, typer.Option(min=1.0, help="Limit of time for building a candidate, and for judging it.")
    ] = 120.0,
    measure_seconds: Annotated[float, typer.Option(min=0.0, help="Time for measuring a candidate, about.")] = 0.5,
    run: Annotated[str | None, typer.Option(help="Name of the run; by default of the preset and the type.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Optuna storage: journal:///file, sqlite:///file, postgresql+psycopg://...; by default a "
            "journal in the user's cache, one for each run and folder of logs."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run, if need be from its log alone, or join another tuner.")
    ] = False,
    logs: Annotated[Path | None, typer.Option(help="Folder of logs; tuning_logs/ of the checkout, or here.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Candidates built at a time; one per core.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampler.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Search nothing: write a page of the logs, or of --run's, to this folder; without one, to "
            f"{REPORT_FOLDER}."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search the legal schedules of an attention's kernels, and log every candidate that was tried.

    Where the device is here, candidates are checked against float64 and timed in turns with the default; else they
    are compiled and their time is predicted. `nsa-codegen replay` makes rows of schedules/ of the logs. Tuners with
    the same --run and --storage divide the work.
    """
    if report is not None:
        page = _write_report(logs, run, report)
        if as_json:
            print_json({"report": str(page)})
        console(stderr=True).print(f"wrote {page}", markup=False, soft_wrap=True)
        return
    require_choice("tune", "preset", preset, PRESETS)
    require_choice("tune", "direction", direction, ("fwd", "bwd", "both"))
    asked = parse_target(target)
    kind = dtype or default_dtype(asked)
    require_choice("tune", "dtype", kind, DTYPES)
    if building_is_forbidden():
        raise BuildForbiddenError("tuning builds kernels, and NSA_CODEGEN_NO_BUILD forbids it: unset it")
    problems = _problems(asked, kind, direction, None if grid else preset, op or [])
    name = _checked_run(run or f"{'grid' if grid else preset}-{kind}")
    options = _options(
        asked, run=name, storage=storage, logs=logs, trials=trials, compiled=compiled, seconds=candidate_seconds,
        measure_seconds=measure_seconds, jobs=jobs, seed=seed,
    )  # fmt: skip
    require_folder("tune.logs", options.logs)
    if not resume:
        from ..tuning.search import require_new_run

        require_new_run(options)
    spaces = _show_spaces(problems, asked, silent=as_json)
    rows, failures = _search(problems, options)
    if as_json:
        print_json({"run": options.meta.run, "judge": options.meta.judge, "spaces": spaces, "kernels": rows})
    else:
        columns = ("kernel", "candidates", "ok", "default", "best", "times faster", "schedule")
        print_table(f"{options.meta.run} on {asked.name}, {options.meta.judge}; logs in {options.logs}", rows, columns)
    for failure in failures:
        print_error(failure)
    if failures:
        raise typer.Exit(1)


def _problems(target: Target, dtype: str, direction: str, preset: str | None, ops: list[str]) -> tuple[Problem, ...]:
    from ..tuning.problems import chosen_problems, grid_problems, preset_problems

    if preset is None:
        return chosen_problems(grid_problems(target, dtype, direction=direction), ops)
    return chosen_problems(preset_problems(preset, target, dtype, direction=direction), ops)


def _options(
    target: Target, *, run: str, storage: str | None, logs: Path | None, jobs: int | None, **rest: Any
) -> Options:
    import platformdirs

    from ..tuning.environment import environment, judge_for
    from ..tuning.options import Options
    from ..tuning.records import Meta, logs_folder
    from ..tuning.storage import shown_url

    cache = platformdirs.user_cache_path("nsa_codegen") / "tuning"
    logs = (logs or logs_folder()).absolute()
    own = hashlib.sha256(str(logs.resolve()).encode()).hexdigest()[:8]  # runs of one name into two folders are two
    judge = judge_for(target)
    command = shlex.join([Path(sys.argv[0]).name, *map(shown_url, sys.argv[1:])])
    meta = Meta(run=run, target=target.name, judge=judge, command=command, environment=environment(target, judge))
    return Options(
        meta=meta, target=target, storage=storage or f"journal:///{cache / f'{run}-{target.name}-{own}.journal'}",
        logs=logs, scratch=cache / "kernels", jobs=jobs or os.cpu_count() or 1, **rest,
    )  # fmt: skip


def _checked_run(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None:
        raise InputError(f"tune.run = {name!r} names files: use letters, digits, '.', '_' and '-'")
    return name


def _show_spaces(problems: tuple[Problem, ...], target: Target, *, silent: bool) -> list[dict[str, Any]]:
    """Print and return, per kernel, how many schedules there are, how many are legal, and why others are not."""
    from ..tuning.space import Space

    found = [{"kernel": str(p.desc), **Space.of(p.desc, target).to_json()} for p in problems]
    if not silent:
        shown = [{**row, "refused": "; ".join(f"{n}: {why}" for why, n in row["refused"].items())} for row in found]
        print_table(f"spaces on {target.name}", shown, ("kernel", "raw", "legal", "refused"))
    return found


def _search(problems: tuple[Problem, ...], options: Options) -> tuple[list[dict[str, Any]], list[str]]:
    """Tune the kernels one after another, and return a row for each that came to its end, and what failed."""
    from ..tuning.kernel_search import planned
    from ..tuning.search import Tuner

    totals = {p.desc: planned(p, options) for p in problems}
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    with progress_bar(left=True) as bar:
        task = bar.add_task("tuning", total=sum(totals.values()))
        judged = dict.fromkeys(totals, 0)

        def report(found: Found) -> None:
            desc = found.problem.desc
            judged[desc] = min(sum(r.status != "illegal" for r in found.records), totals[desc])
            bar.update(task, completed=sum(judged.values()), description=_headline(found))

        with Tuner(options, report=report) as tuner:
            try:
                for problem in problems:
                    try:
                        found = tuner.tune(problem)
                    except TuningError as error:
                        failures.append(str(error))
                        continue
                    report(found)
                    rows.append(_row(found))
                    bar.console.print(_headline(found), markup=False, soft_wrap=True)
            except KeyboardInterrupt:
                print_error(f"interrupted; all records are kept: go on with --resume --run {options.meta.run}")
                raise typer.Exit(INTERRUPTED) from None
    return rows, failures


def _headline(found: Found) -> str:
    """Return one line: the kernel, how many candidates there are, and the best so far."""
    best, text = found.best, f"{found.problem.desc.kind} {len(found.records)}"
    if best is None or best.seconds is None:
        return text
    text = f"{text} best {best.seconds * 1e3:.3g} ms"
    if found.gain is None:
        return text
    said = ""
    if found.verdict.winner is None and found.verdict.decided:
        said = ", which stays"
    elif found.verdict.winner is None and best.stage == "final":
        said = ", within the spread"
    return f"{text} ({found.gain:.2f}x the default{said})"


def _row(found: Found) -> dict[str, Any]:
    best, default = found.best, found.default
    base = None if best is None or default is None else best.default.median if best.default else default.seconds
    return {
        "kernel": str(found.problem.desc),
        "candidates": len(found.records),
        "ok": sum(r.status == "ok" for r in found.records),
        "default": None if base is None else f"{base * 1e3:.4g} ms",
        "best": None if best is None or best.seconds is None else f"{best.seconds * 1e3:.4g} ms",
        "times faster": found.gain,
        "schedule": None if best is None else " ".join(f"{k}={v}" for k, v in best.schedule.items()),
        "log": str(found.log),
    }


def _write_report(logs: Path | None, run: str | None, output: Path) -> Path:
    from ..tuning.records import logs_folder
    from ..tuning.report import write_report

    logs = logs or logs_folder()
    chosen = [logs] if run is None else sorted(logs.glob(f"*/*/{run}.jsonl"))
    if not chosen:
        raise TuningLogError(f"there is no log of a run {run!r} in {logs}; name one that is there, or give --logs")
    require_folder("tune.report", output)
    return write_report(chosen, output)
