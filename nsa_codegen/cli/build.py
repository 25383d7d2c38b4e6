"""`nsa-codegen build`: bring the kernels of an attention into the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..build import Built, Request, build_all
from ..errors import BuildForbiddenError
from ..index_sets import require_choice
from ..spec import NSASpec
from ..store import default_root
from ..target import parse_target
from .app import AsJson, print_error, print_json, print_table, progress_bar
from .options import Dtype, TargetName, default_dtype, takes_spec


@takes_spec
def build(
    *,
    spec: NSASpec,
    target: TargetName = "cpu",
    dtype: Dtype = None,
    direction: Annotated[str, typer.Option(help="Kernels to build: fwd, bwd or both.")] = "both",
    jobs: Annotated[int | None, typer.Option(min=1, help="Kernels built at a time; one per core by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Build every kernel that an attention takes, and show how each was got.

    A kernel is stored (there already), compiled (its text was there), lowered (and compiled), or failed; then the
    exit code is 1.
    """
    from ..needed import DIRECTIONS
    from ..requests import needed_requests

    require_choice("build", "direction", direction, DIRECTIONS)
    asked = parse_target(target)
    requests = needed_requests(spec.program(), dtype or default_dtype(asked), asked, direction)
    outcomes = build_with_progress(requests, jobs=jobs)
    rows = [_row(o) for o in outcomes]
    if as_json:
        print_json(rows)
    else:
        root = default_root()
        for row in rows:
            row["folder"] = row["folder"] and str(Path(row["folder"]).relative_to(root))
        print_table(f"{len(rows)} kernels in {root}", rows, ("kernel", "how", "seconds", "folder"))
    failures = failures_of(outcomes)
    for said in failures:
        print_error(said)
    if failures:
        raise typer.Exit(1)


def failures_of(outcomes: Sequence[Built]) -> list[str]:
    """Return what is said of the outcomes that failed: each cause once, with its first kernel and their number."""
    alike: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.error is None:
            continue
        name, said = str(outcome.request.desc), str(outcome.error)
        forbidden = isinstance(outcome.error, BuildForbiddenError)  # one cause, whatever each lacks
        cause = type(outcome.error).__name__ if forbidden else said.replace(name, "")
        alike.setdefault(cause, []).append(said if said.startswith(name) else f"{name}: {said}")
    return [x[0] if len(x) == 1 else f"{len(x)} kernels failed alike; the first: {x[0]}" for x in alike.values()]


def build_with_progress(requests: tuple[Request, ...], *, jobs: int | None = None) -> tuple[Built, ...]:
    """Build the requests under a progress bar and return the outcomes."""
    with progress_bar() as progress:
        task = progress.add_task("building kernels", total=len(requests))

        def on_done(outcome: Built) -> None:
            progress.update(task, advance=1, description=f"{outcome.request.desc.kind} {outcome.how}")

        return build_all(requests, jobs=jobs, on_done=on_done)


def _row(outcome: Built) -> dict[str, Any]:
    return {
        "kernel": str(outcome.request.desc),
        "how": outcome.how,
        "seconds": round(outcome.seconds, 4),
        "folder": None if outcome.folder is None else str(outcome.folder),
        "error": None if outcome.error is None else str(outcome.error),
    }
