"""The static judge: a candidate is compiled, not run; what the compiler says of it goes into the cost model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..build import Request, build_all
from ..desc import KernelDesc
from ..manifest import RequestKey
from ..schedule import Schedule, ScheduleSpace
from ..store import KernelStore
from ..target import GpuTarget, Target
from .cost_model import predict
from .records import Judged

if TYPE_CHECKING:
    from ..ops import Sizes


def judge_static(
    desc: KernelDesc,
    schedule: Schedule,
    target: Target,
    sizes: Sizes,
    *,
    store: KernelStore,
    compile: bool = True,
) -> Judged:
    """Return the predicted time of a candidate, and with `compile` what its code takes, built into `store`.

    A schedule that `check` refuses is `illegal`; one whose kernel does not lower or compile, or would not start, is
    `failed` with the error's text. Spills are kept as a figure and as traffic. Targets without a compiler, and CPUs,
    whose code has no such figures, are judged by the model alone. Raises whatever else lowering may raise.
    """
    reason = ScheduleSpace.check(schedule, desc, target)
    if reason is not None:
        return Judged(status="illegal", reason=reason)
    if not compile:
        return Judged(status="ok", predicted=predict(desc, schedule, target, sizes).to_json())
    (built,) = build_all([Request(desc=desc, schedule=schedule, target=target)], jobs=1, store=store)
    key = RequestKey.of(desc, schedule, target)
    if built.error is not None:
        return Judged(status="failed", reason=str(built.error), key=key.key12)
    entry = store.lookup(key)
    if entry is None:
        return Judged(status="failed", reason=f"its entry vanished from {store.root}", key=key.key12)
    taken = entry.manifest.resources
    return judge_resources(desc, schedule, target, sizes, taken, sha256=entry.manifest.source_sha256, key=key.key12)


def judge_resources(
    desc: KernelDesc,
    schedule: Schedule,
    target: Target,
    sizes: Sizes,
    resources: dict[str, Any] | None,
    *,
    sha256: str,
    key: str,
) -> Judged:
    """Return what `judge_static` makes of a candidate that is built: its manifest's `resources`, text and key."""
    kept = {**(resources or {}), "sha256": sha256}
    if isinstance(target, GpuTarget) and resources is not None and resources["blocks_per_processor"] < 1:
        limits = " and ".join(resources["limited_by"])
        return Judged(
            status="failed", resources=kept, key=key,
            reason=f"not one thread block of it fits a multiprocessor of {target.name}, by {limits}",
        )  # fmt: skip
    predicted = predict(desc, schedule, target, sizes, resources)
    return Judged(status="ok", predicted=predicted.to_json(), resources=kept, key=key)
