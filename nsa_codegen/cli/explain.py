"""`nsa-codegen explain`: which row of the schedules a kernel gets and why, and why its values suit the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..spec import NSASpec
from ..target import CpuTarget, Target, parse_target, processor_name
from .app import AsJson, print_json, print_table
from .options import Dtype, TargetName, default_dtype, takes_spec
from .shown import find_kernels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..desc import KernelDesc
    from ..ops import Sizes
    from ..program import Program
    from ..tuning.reasons import Explained

CPU_TOKENS, GPU_TOKENS = 4096, 16384
MOST_TOKENS, MOST_BATCH = 2**24, 2**20  # the prediction counts position by position


@takes_spec
def explain(
    *,
    kernel: Annotated[
        str, typer.Argument(help="An op (its forward), op_fwd or op_bwd of the attention that the options describe.")
    ],
    spec: NSASpec,
    target: TargetName = "cpu",
    dtype: Dtype = None,
    diff: Annotated[
        str | None, typer.Option(help="Another target: what differs there, and which fact is behind it.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=MOST_BATCH, help="Sequences, for the prediction.")] = 1,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_TOKENS, help=f"Tokens, for the prediction; {CPU_TOKENS}, and {GPU_TOKENS} on a GPU."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was looked at for a kernel's schedule, a reason for each value, and the predicted time by part."""
    asked, other = parse_target(target), None if diff is None else parse_target(diff)
    program = spec.program()
    length = tokens or (CPU_TOKENS if asked.kind == "cpu" else GPU_TOKENS)
    items = []
    for shown in find_kernels(kernel, program, dtype or default_dtype(asked), asked, only_there=target != "cpu"):
        sizes = sizes_of(shown.desc, program, batch=batch, tokens=length)
        items.append(_item(shown.desc, shown.target, other, sizes))
    if as_json:
        print_json(items)
        return
    for item in items:
        _print(item)


def sizes_of(desc: KernelDesc, program: Program, *, batch: int, tokens: int) -> Sizes:
    """Return the run-time sizes of one of a program's kernels, for sequences of `tokens` tokens."""
    from ..ops import Sizes
    from ..program import Phi

    keys = tokens
    for path in program.paths:
        if isinstance(path.keys, Phi) and desc.visible is not None and desc.visible == path.visible:
            keys = path.keys.length(tokens)
    heads = program.kv_heads * (program.group if desc.op == "combine" else 1)
    return Sizes(batch=batch, tokens=tokens, keys=keys, kv_heads=heads)


def generic_note(desc: KernelDesc, target: Target) -> str:
    """Return what is known of a kernel that no tuned row serves: what its logs decided, or that it has none."""
    from ..selection import chain_of
    from ..tuning.records import logs_folder
    from ..tuning.replay import decided

    logs = logs_folder()
    if not logs.is_dir():
        return f"generic: no tuned row serves it; whether it was tuned the logs say, and {logs} is not there"
    for arch in chain_of(target.name):
        found = decided(desc, arch, logs)
        if found is not None and found.row is None:
            return f"generic: tuned on {arch}, and the default stays: {found.verdict.reason} ({found.log})"
        if found is not None:
            return f"generic: tuned on {arch} ({found.log}), and no row says so; `nsa-codegen replay` writes it"
    return "generic: never tuned for this kernel and target"


def row_note(row: Mapping[str, Any], target: Target) -> str:
    """Return what a tuned row's environment says here: static, measured on this device, or on another."""
    environment = row["environment"]
    judge = str(environment.get("judge", "unknown judge"))
    if judge.startswith("static"):
        return judge
    measured = environment.get("processor" if isinstance(target, CpuTarget) else "gpu")
    here = processor_name() if isinstance(target, CpuTarget) else _gpu_name()
    if measured == here:
        return f"measured on {measured}, as this machine is"
    return (
        f"measured on {measured}, and this machine has {here}: another schedule may be faster here; tune here to know"
    )


def _gpu_name() -> str:
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "no GPU"


def _item(desc: KernelDesc, target: Target, other: Target | None, sizes: Sizes) -> dict[str, Any]:
    from ..selection import select
    from ..tuning.reasons import explain as explained
    from ..tuning.reasons import hardware_differences, schedule_differences

    selected = select(desc, target)
    found = explained(desc, selected.schedule, target, sizes)
    item = _explained_json(found) | {
        "source": selected.source,
        "tried": list(selected.tried),
        "record": None if selected.row is None else selected.row["record"],
        "note": generic_note(desc, target) if selected.row is None else row_note(selected.row, target),
        "sizes": vars(sizes),
    }
    if other is not None:
        there = select(desc, other)
        theirs = explained(desc, there.schedule, other, sizes)
        item["other"] = _explained_json(theirs) | {"source": there.source}
        item["hardware"] = {n: list(pair) for n, pair in hardware_differences(target, other).items()}
        item["differences"] = schedule_differences(found, theirs, sizes)
    return item


def _explained_json(found: Explained) -> dict[str, Any]:
    return {
        "kernel": str(found.desc),
        "target": found.target.name,
        "schedule": found.schedule.values(),
        "reasons": dict(found.reasons),
        "predicted": found.prediction.to_json(),
        "bound": found.prediction.bound,
        "parts": {name: found.prediction.parts[name] for name in found.prediction.parts},
    }


def _print(item: dict[str, Any]) -> None:
    print(f"== {item['kernel']} on {item['target']}")
    print("schedule from " + item["source"] + (f", record {item['record']}" if item["record"] else ""))
    print(f"  {item['note']}")
    for number, line in enumerate(item["tried"], start=1):
        print(f"  {number}. {line}")
    rows = [{"field": n, "value": v, "because": item["reasons"][n]} for n, v in item["schedule"].items()]
    print_table("schedule", rows, ("field", "value", "because"))
    sizes = ", ".join(f"{name} {value}" for name, value in item["sizes"].items())
    print(f"predicted {item['predicted']['seconds'] * 1e3:.3g} ms at {sizes}; bound by {item['bound']}")
    parts = [{"part": name, "ms": 1e3 * seconds} for name, seconds in item["parts"].items()]
    print_table("parts, which overlap", parts, ("part", "ms"))
    if "other" in item:
        _print_difference(item)


def _print_difference(item: dict[str, Any]) -> None:
    other, names = item["other"], (item["target"], item["other"]["target"])
    hardware = [{"fact": n, names[0]: one, names[1]: two} for n, (one, two) in item["hardware"].items()]
    print_table(f"{names[0]} and {names[1]}", hardware, ("fact", *names))
    rows = [
        {"field": n, names[0]: item["schedule"][n], names[1]: other["schedule"][n], "because": why}
        for n, why in item["differences"].items()
    ]
    if rows:
        print_table("schedules differ", rows, ("field", *names, "because"))
    else:
        print(f"the schedules are the same; {names[1]} has its own from {other['source']}")
    print(
        f"predicted {item['predicted']['seconds'] * 1e3:.3g} ms on {names[0]}, bound by {item['bound']}; "
        f"{other['predicted']['seconds'] * 1e3:.3g} ms on {names[1]}, bound by {other['bound']}"
    )
