"""`nsa-codegen verify`: whether stored kernels are intact, and whether kernels compute here what the reference does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..index_sets import require_choice
from ..store import KernelStore
from ..target import native_target
from .app import AsJson, print_json, print_table, progress_bar
from .build import build_with_progress

if TYPE_CHECKING:
    from torch import Tensor

    from ..desc import KernelDesc
    from ..ops import OpDef


def verify(
    op: Annotated[list[str] | None, typer.Option(help="Check this op only; may be given more than once.")] = None,
    target: Annotated[
        str, typer.Option(help="cpu, or native: every conformance case on this machine's GPU, with a report.")
    ] = "cpu",
    report: Annotated[Path | None, typer.Option(help="File for the GPU's report; by default named after it.")] = None,
    stored_only: Annotated[bool, typer.Option("--stored-only", help="Check the store only, and run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every file of the store against its manifest, then each op's kernels against float64 on this machine.

    An output may be off by three times what eager torch in the same type is, plus 2 ulp. The exit code is 1 if
    anything is corrupt or off. With --target native the kernels run on the GPU, twice, and have to leave the same bits;
    without one nothing is run, and the exit code is 1.
    """
    require_choice("verify", "target", target, ("cpu", "native"))
    _require_fitting(target, report=report, op=op, stored_only=stored_only)
    if target == "native":
        _verify_gpu(report, as_json=as_json)
        return
    findings = [
        {"kernel": f.folder.parent.name, "name": f.folder.name, "state": f.state, "reason": f.reason}
        for f in KernelStore().verify()
    ]
    checks = [] if stored_only else _checks(op or [])
    if as_json:
        print_json({"stored": findings, "computed": checks})
    else:
        print_table("stored kernels", findings, ("kernel", "name", "state", "reason"))
        if checks:
            print_table("kernels against float64", checks, ("kernel", "output", "error", "eager", "allowed", "ok"))
    if any(f["state"] == "corrupt" for f in findings) or not all(c["ok"] for c in checks):
        raise typer.Exit(1)


def _require_fitting(target: str, **given: Any) -> None:
    """Raise `InputError` for an option of the other target, which would do nothing."""
    for name in ("report",) if target == "cpu" else ("op", "stored_only"):
        if given[name]:
            other = "native" if target == "cpu" else "cpu"
            hint = "; --json prints this machine's results" if name == "report" else ""
            raise InputError(f"verify.{name} is an option of --target {other}, not of {target}: leave it out{hint}")


def _verify_gpu(path: Path | None, *, as_json: bool) -> None:
    from ..conformance.cases import CASES, SHIPPED
    from ..conformance.on_gpu import require_gpu, run_on_gpu

    require_gpu()
    with progress_bar() as progress:
        task = progress.add_task("running on the GPU", total=len(CASES) + len(SHIPPED))
        found = run_on_gpu(lambda done: progress.update(task, completed=done))
    path = path or Path(f"conformance-{found['target']}-{found['time'][:10]}.json")
    path.write_text(json.dumps(found, indent=1) + "\n")
    if as_json:
        print_json(found)
    else:
        rows = [{"kernel": r["desc"], "sizes": r["sizes"], "ok": r["passed"]} for r in found["rows"]]
        print_table(f"{found['gpu']}; report in {path}", rows, ("kernel", "sizes", "ok"))
    if not found["passed"]:
        raise typer.Exit(1)


def _checks(chosen: list[str]) -> list[dict[str, Any]]:
    from ..build import Request
    from ..ops import OPS
    from ..selection import select

    for name in chosen:
        require_choice("verify", "op", name, tuple(OPS))
    target = native_target()
    samples = [(op, desc) for op in OPS.values() if not chosen or op.name in chosen for desc in op.samples]
    requests = tuple(Request(desc=d, schedule=select(d, target).schedule, target=target) for _, d in samples)
    for outcome in build_with_progress(requests):
        if outcome.error is not None:
            raise outcome.error
    rows = []
    with progress_bar() as progress:
        for op, desc in progress.track(samples, description="comparing"):
            rows += _compare(op, desc)
    return rows


def _compare(op: OpDef, desc: KernelDesc) -> list[dict[str, Any]]:
    """Return one row per output of `desc`: its error, eager torch's, and what is allowed."""
    import torch

    from ..dispatch import run
    from ..ops import Sizes

    sizes = Sizes(batch=2, tokens=75, keys=100, kv_heads=2, q_start=25)
    arguments = op.make_inputs(desc, sizes, torch.Generator().manual_seed(0))
    wide = {name: _double(value) for name, value in arguments.items()}
    got, eager = run(desc, **arguments), op.reference(desc, **arguments)
    want = op.reference(desc, **wide)
    rows = []
    for name, mine, theirs, exact in zip(op.outputs, got, eager, want, strict=True):
        error, other = _error(mine, exact), _error(theirs, exact)
        floor = 2 * torch.finfo(mine.dtype).eps * _largest(exact) if mine.is_floating_point() else len(mine) // 1000
        allowed = 3 * other + floor
        ok = bool(error <= allowed)
        row = {"kernel": str(desc), "output": name, "error": error, "eager": other, "allowed": allowed, "ok": ok}
        rows.append(row)
    return rows


def _double(value: Any) -> Any:
    if isinstance(value, list):
        return [_double(v) for v in value]
    return value.double() if hasattr(value, "is_floating_point") and value.is_floating_point() else value


def _error(got: Tensor, want: Tensor) -> float:
    """Return the largest difference; of indices, the number of rows that differ. Equal infinities do not differ."""
    import torch

    if not got.is_floating_point():
        return float((got != want).any(dim=-1).sum())
    difference = torch.where(got.double() == want, 0.0, (got.double() - want).abs())
    return float(difference.nan_to_num(nan=torch.inf).amax()) if difference.numel() else 0.0


def _largest(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
