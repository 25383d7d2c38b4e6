"""The typer application, its error handling, and how commands print: tables, or JSON and nothing else."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import NSAError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]


class Commands(TyperGroup):
    """The group of commands, which turns an `NSAError`, a file that fails or lack of memory into exit code 1.

    Each is one red line, whatever the command was doing.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (NSAError, OSError, MemoryError) as error:
            if getattr(error, "errno", None) == errno.EPIPE:
                raise  # the reader of our output has gone: click ends quietly
            print_error(_said(error))
            raise typer.Exit(1) from error


def _said(error: NSAError | OSError | MemoryError) -> str:
    """Return what is said of an error: its own words, or what failed and what to do."""
    if isinstance(error, NSAError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory{f' ({error})' if str(error) else ''}; ask for fewer tokens, or on a machine with more"
    if error.filename is None:
        return f"the system refused: {error}"
    return f"{error.filename} can't be read or written: {error.strerror}; check it, or name another with the options"


app = typer.Typer(
    name="nsa-codegen",
    cls=Commands,
    help="A compiler for Native Sparse Attention: descriptions in, compiled kernels and a torch model out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def console(*, stderr: bool = False) -> Console:
    """Return a console; where output is no terminal it is wide, so that no cell is cut."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 200, highlight=False)


def print_error(message: str) -> None:
    """Print the message on stderr: its first line in red, and what follows (a compiler's output) as it is."""
    first, _, rest = message.partition("\n")
    out = console(stderr=True)
    out.print(f"error: {first}", style="bold red", markup=False, soft_wrap=True)
    if rest:
        out.print(rest, markup=False, soft_wrap=True)


def print_warning(message: str) -> None:
    """Print the message on stderr, in yellow: what is amiss, and no failure."""
    console(stderr=True).print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON text on stdout."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def print_table(title: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print rows as a table with these columns; a cell that is a float has three digits."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_text(row.get(column, ""))) for column in columns))
    console().print(table)


def cell_text(value: Any) -> str:
    """Return a cell's text."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def progress_bar(*, left: bool = False) -> Progress:
    """Return a progress bar on stderr, so that stdout holds results only; silent where stderr is no terminal.

    `left` shows the time left, too.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *((TextColumn("left"), TimeRemainingColumn()) if left else ()),
        console=console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
