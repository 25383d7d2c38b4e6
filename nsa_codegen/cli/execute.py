"""`nsa-codegen execute`: a GPU kernel on the executor, which needs no GPU: what it finds, and how accurate it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..index_sets import require_choice
from ..spec import NSASpec
from ..target import GpuTarget, Target, parse_target
from .app import AsJson, console, print_json, print_table, progress_bar
from .options import takes_spec
from .shown import Shown, find_kernels

if TYPE_CHECKING:
    from ..conformance import Outcome
    from ..desc import KernelDesc

TARGET = "sm_90a"
ORDERS = ("forward", "reverse", "random")


@takes_spec
def execute(
    *,
    kernel: Annotated[
        str,
        typer.Argument(
            help="An op (its forward), op_fwd or op_bwd of the attention that the options describe; or a stored "
            "kernel: its folder's name, or the beginning of its key."
        ),
    ],
    spec: NSASpec,
    target: Annotated[
        str | None, typer.Option(help=f"Architecture of the kernel: an NVIDIA one; of an op {TARGET}.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the tensors: float16 or bfloat16.")] = "float16",
    tokens: Annotated[int, typer.Option(min=1, help="Queries and keys; a block of threads takes about 5 ms.")] = 70,
    order: Annotated[str, typer.Option(help=f"Order of warps, copies and blocks: {', '.join(ORDERS)}.")] = "forward",
    seed: Annotated[int, typer.Option(help="Seed of the random order.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a GPU kernel on the CPU, lane by lane, with every access and wait checked, and compare with float64.

    This is no run on a GPU: docs/executor.md says what is modelled. A backward kernel runs after its forward. An output
    may be off by three times what eager torch in the same type is, plus 2 ulp. The exit code is 1 if anything is found.
    """
    require_choice("execute", "order", order, ORDERS)
    asked = _require_cuda(parse_target(target or TARGET))
    kernels = find_kernels(kernel, spec.program(), dtype, asked, only_there=target is not None)
    items = [_item(k, o) for k, o in _outcomes(kernels, tokens, order, seed)]
    if as_json:
        print_json(items)
    else:
        for item in items:
            _print_item(item)
    if not all(item["passed"] for item in items):
        raise typer.Exit(1)


def _require_cuda(target: Target) -> GpuTarget:
    if not isinstance(target, GpuTarget) or target.kind != "cuda":
        raise InputError(f"execute.target = {target.name!r} is not allowed: the executor runs PTX; give an sm_ target")
    return target


def _outcomes(kernels: list[Shown], tokens: int, order: str, seed: int) -> list[tuple[Shown, Outcome]]:
    """Return each kernel with the check that runs it; kernels of one backward share one."""
    from ..conformance import check, forward_of
    from ..ops import Sizes

    done: dict[tuple[KernelDesc, Target], Outcome] = {}
    found = []
    with progress_bar() as bar:
        for shown in bar.track(kernels, description="executing"):
            _require_selected(shown)
            target = _require_cuda(shown.target)
            asked = (forward_of(shown.desc), shown.target)
            if asked not in done:
                sizes = Sizes(batch=1, tokens=tokens, keys=tokens, kv_heads=2)
                done[asked] = check(asked[0], sizes, target, order=order, seed=seed)
            found.append((shown, done[asked]))
    return found


def _require_selected(shown: Shown) -> None:
    from ..selection import select

    selected = select(shown.desc, shown.target).schedule
    if shown.schedule != selected:
        raise InputError(
            f"execute: {shown.desc} is stored under the schedule ({shown.schedule}), and ({selected}) is selected now; "
            f"kernels are executed under the selected one: name the op instead of the stored kernel"
        )


def _item(shown: Shown, outcome: Outcome) -> dict[str, Any]:
    """Return what the check says of this kernel; a failure before it is its failure too, for then it did not run."""
    reports = [x.report for x in outcome.launches if x.desc == shown.desc]
    ran = "passed" if reports or outcome.failure is None else "not executed: a kernel before it failed"
    status = next((r.status for r in reports if not r.passed), ran)
    errors = [a for a in outcome.accuracies if a.kind == shown.desc.kind]
    return {
        "kernel": str(shown.desc),
        "target": shown.target.name,
        "schedule": str(shown.schedule),
        "sizes": asdict(outcome.sizes),
        "order": outcome.order,
        "seed": outcome.seed,
        "status": status,
        "passed": status == "passed" and outcome.failure is None and all(a.passed for a in errors),
        "launches": len(reports),
        "instructions": sum(r.instructions for r in reports),
        "seconds": round(sum(r.seconds for r in reports), 4),
        "findings": [asdict(f) for r in reports for f in r.findings],
        "accuracy": [asdict(a) | {"passed": a.passed} for a in errors],
    }


def _print_item(item: dict[str, Any]) -> None:
    order = f"{item['order']}, seed {item['seed']}" if item["order"] == "random" else item["order"]
    print_table(
        f"{item['kernel']} on {item['target']}\n{item['schedule']}; order {order}\n"
        f"{item['status']}: {item['instructions']} warp instructions in {item['launches']} launches, "
        f"{item['seconds']:.2f} s on this CPU",
        item["accuracy"],
        ("name", "error", "eager", "allowed", "passed"),
    )
    out = console()
    for f in item["findings"]:
        other = f" (with line {f['other_line']})" if f["other_line"] else ""
        where = f"block {tuple(f['block'])}, thread {f['lane']}, address {f['address']:#x}"
        times = f", {f['count']} times" if f["count"] > 1 else ""
        out.print(f"{f['kernel']}:{f['line']}{other}: {f['kind']}: {f['text']} [{where}{times}]", markup=False)
