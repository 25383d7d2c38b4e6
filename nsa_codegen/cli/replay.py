"""`nsa-codegen replay`: the rows of `schedules/` made again from the tuning logs, or compared with them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..outputs import require_folder
from ..target import parse_target
from .app import AsJson, print_error, print_json, print_table, print_warning

if TYPE_CHECKING:
    from ..tuning.replay import Decision


def replay(
    *,
    logs: Annotated[
        Path | None, typer.Option(help="Folder of the logs; tuning_logs/ of the checkout, or here.")
    ] = None,
    schedules: Annotated[Path | None, typer.Option(help="Folder of the rows; schedules/ of the checkout.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing: show what would change, and what is wrong with the rows.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take the winners of all tuning logs, check them again, and write them as the rows of schedules/.

    Rows whose logs are elsewhere, or were refused, stay as they are.

    The exit code is 1 if a line or a candidate was refused, and with --check if a row would change or lacks its record;
    all others are replayed all the same. A last line that is torn is a warning.
    """
    from ..errors import InputError
    from ..selection import schedules_folder
    from ..tuning.records import logs_folder
    from ..tuning.replay import replay as replayed_from
    from ..tuning.rows import changes, kept_rows, merged, verify_rows, write

    logs, schedules = logs or logs_folder(), schedules or schedules_folder()
    if not logs.is_dir():
        raise InputError(f"replay.logs = {str(logs)!r} is not a folder; `nsa-codegen tune` writes logs")
    if not check:
        require_folder("replay.schedules", schedules)
    found = replayed_from(logs)
    kept = kept_rows(found, schedules)
    files = merged(found.rows, kept)
    difference = changes(files, schedules)
    wrong = verify_rows(schedules, logs) if check else []
    changed = [] if check else write(files, schedules)
    staying = sum(len(rows) for rows in kept.values())
    if as_json:
        print_json(
            {
                "decisions": [_row(d) for d in found.decisions],
                "refused": list(found.refused),
                "torn": list(found.torn),
                "wrong": wrong,
                "changed": changed,
                "difference": difference,
                "kept": staying,
            }
        )
    else:
        print_table(
            f"decisions from {logs}", [_row(d) for d in found.decisions], ("arch", "kernel", "row", "why", "log")
        )
        if check:
            sys.stdout.write(difference or "schedules/ is what the logs give\n")
        else:
            print("\n".join(f"wrote {name}" for name in changed) or "no row changed")
        if staying:
            print(f"{staying} rows whose logs are not here, or were refused, stay as they are")
    for warning in found.torn:
        print_warning(warning)
    for reason in (*found.refused, *wrong):
        print_error(reason)
    if found.refused or wrong or (check and difference):
        raise typer.Exit(1)


def _row(decision: Decision) -> dict[str, Any]:
    from ..tuning.winners import schedule_text

    winner = decision.verdict.winner
    shown = "default" if winner is None else schedule_text(winner.record.schedule, parse_target(decision.arch))
    return {
        "arch": decision.arch, "kernel": str(decision.desc), "row": shown, "why": decision.verdict.reason,
        "log": decision.log,
    }  # fmt: skip
