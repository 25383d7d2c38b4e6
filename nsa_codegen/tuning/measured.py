"""The measured judge, which runs in a process of its own: errors against float64 first, then times in turns.

A kernel is run with the arguments that the whole op gives it, also where it is one of several of a backward: the op
runs with the kernels that it has, and this one is put in the place of its own. On a GPU the same is done with tensors
there; that part was not run on one yet.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bench.measure import Contender, interleave
from ..bench.stats import quartiles, ratios
from ..build import Artifact, Request, build_all
from ..conformance.check import Accuracy, inputs_of, judge, results_of, widened
from ..desc import KernelDesc
from ..device import GpuArtifact, load_artifact
from ..dispatch import in_place_of
from ..dispatch import run as run_kernel
from ..errors import LoweringError
from ..lowering import lower
from ..manifest import RequestKey
from ..needed import backward_descs, backward_pack_descs, pack_descs
from ..ops import OPS, Launch, Sizes, Values
from ..schedule import Schedule
from ..selection import select
from ..store import KernelStore
from ..target import GpuTarget, Target
from .problems import Problem
from .records import Judged, Spread

MEASURE_SECONDS = 0.5
LEAST_ROUNDS, MOST_ROUNDS = 2, 15
LEAST_FINAL_ROUNDS = 7
HOPELESS = 2.0  # times the default's: such a candidate is not timed beyond the first rounds


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A built candidate, or one that need not be built since its text is that of another.

    `code` is the sha256 of the text without the line that names the schedule; `same` says that it is among those known.
    """

    code: str
    same: bool = False
    key: str = ""
    resources: Mapping[str, Any] | None = None


def build_candidate(
    desc: KernelDesc, schedule: Schedule, target: Target, root: Path, known: frozenset[str]
) -> Compiled:
    """Lower a candidate and, unless its text is `known`, bring it into the store at `root`; raises what that raises."""
    source = lower(desc, schedule, target)
    lines = [line for line in source.text.splitlines() if not line.startswith("// schedule ")]
    code = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if code in known:
        return Compiled(code=code, same=True)
    store = KernelStore(root)
    request = Request(desc=desc, schedule=schedule, target=target)
    (built,) = build_all([request], jobs=1, store=store, lower=lambda *_: source)
    if built.error is not None:
        raise built.error
    key = RequestKey.of(desc, schedule, target)
    entry = store.lookup(key)
    if entry is None:
        raise LoweringError(f"{desc} vanished from {root} as soon as it was built; is the folder being cleared?")
    taken = entry.manifest.resources or {}
    return Compiled(code=code, key=key.key12, resources={**taken, "sha256": entry.manifest.source_sha256})


def prerequisites(problem: Problem, target: Target, default: Schedule) -> tuple[tuple[KernelDesc, Schedule], ...]:
    """Return the kernels that run before that of `problem` can be judged, the default's among them; with schedules."""
    needed: list[KernelDesc] = []
    if problem.desc.direction == "bwd":
        forward = problem.forward
        needed = [forward, *backward_descs(forward, target.kind)]
        if forward.op == "gather_attention" and target.kind == "cpu":
            needed += [*pack_descs(forward), *backward_pack_descs(forward).values()]
        elif forward.op == "gather_attention":
            needed[0] = forward.replace(source="plain")
    usual = [(desc, select(desc, target).schedule) for desc in needed]
    return tuple(dict.fromkeys([(problem.desc, default), *usual]))


def prepare(problem: Problem, target: Target, default: Schedule) -> None:
    """Make what judging the candidates of `problem` takes: inputs, references, arguments, and the default's kernel."""
    _references(problem)
    _arguments(problem, target)
    _load(problem.desc, default, target)


def judge_measured(
    problem: Problem, schedule: Schedule, target: Target, default: Schedule, seconds: float = MEASURE_SECONDS
) -> Judged:
    """Return the error and the time of a candidate, with the default's time of the same turns.

    The default itself is timed once, and is as fast as it is. Kernels are those of the store that `NSA_CODEGEN_HOME`
    names. Raises what loading and launching raise.
    """
    kernel = _load(problem.desc, schedule, target)
    error, reason = _error(problem, kernel)
    if reason:
        return Judged(status="wrong", reason=reason, error=error)
    (found,) = _timed(problem, (schedule,), target, default, seconds, LEAST_ROUNDS)
    return replace(found, error=error)


def measure_finalists(
    problem: Problem, schedules: Sequence[Schedule], target: Target, default: Schedule, seconds: float
) -> tuple[Judged, ...]:
    """Return the times of all `schedules` and of the default in the same turns; raises what launching them raises."""
    return _timed(problem, schedules, target, default, seconds, LEAST_FINAL_ROUNDS)


@dataclass(frozen=True, kw_only=True)
class _Kernel:
    """A loaded kernel, ready to be laid out and launched."""

    desc: KernelDesc
    schedule: Schedule
    target: Target
    artifact: Artifact | GpuArtifact

    def lay_out(self, arguments: Values) -> tuple[Launch, Callable[[], None]]:
        """Return the launch over `arguments`, and what runs it while the launch, which holds its memory, is kept."""
        op, artifact = OPS[self.desc.op], self.artifact
        if isinstance(artifact, GpuArtifact):
            assert op.prepare_gpu is not None
            launch = op.prepare_gpu(self.desc, self.schedule, **arguments)
            return launch, functools.partial(artifact.launch, launch.values)
        prepare = op.prepare if self.desc.direction == "fwd" else op.prepare_backward
        assert prepare is not None
        threads = torch.get_num_threads()
        launch = prepare(self.desc, self.schedule, threads, **arguments)
        values = [launch.values[a.name] for a in artifact.entry.manifest.arguments]
        addresses = [v.data_ptr() if isinstance(v, Tensor) else v for v in values]
        return launch, functools.partial(artifact.launch, launch.tasks, *addresses, threads=threads)

    def run(self, arguments: Values) -> tuple[Tensor, ...]:
        """Run once, and return the outputs."""
        launch, again = self.lay_out(arguments)
        if launch.tasks:
            again()
        return launch.outputs


@functools.lru_cache(maxsize=512)
def _load(desc: KernelDesc, schedule: Schedule, target: Target) -> _Kernel:
    artifact: Artifact | GpuArtifact
    if isinstance(target, GpuTarget):
        artifact = load_artifact(desc, schedule, target)
    else:
        artifact = Artifact.load(desc, schedule, target)
    return _Kernel(desc=desc, schedule=schedule, target=target, artifact=artifact)


@functools.lru_cache(maxsize=1)
def _references(problem: Problem) -> tuple[tuple[Values, Values, Values], ...]:
    """Return inputs, and results of eager torch in their type and in float64, for each size that is checked."""
    found = []
    for sizes in problem.checks:
        values = inputs_of(problem.forward, sizes)
        eager, exact = (_eager(problem, v) for v in (values, widened(values)))
        found.append((values, eager, exact))
    return tuple(found)


def _eager(problem: Problem, values: Values) -> Values:
    if problem.desc.direction == "bwd":
        return results_of(problem.forward, values)
    op = OPS[problem.desc.op]
    return dict(zip(op.outputs, op.reference(problem.desc, **values), strict=True))


def _error(problem: Problem, kernel: _Kernel) -> tuple[float | None, str]:
    """Return the worst ratio of our error to eager torch's, None for NaN; and what is beyond what is allowed, or ""."""
    worst, wrong = 0.0, []
    for (values, eager, exact), sizes in zip(_references(problem), problem.checks, strict=True):
        got = _moved(_results(problem, kernel, _moved(values, _device(kernel.target))), "cpu")
        for found in judge(problem.forward, got, eager, exact, values):
            if problem.desc.direction == "bwd" and found.kind != problem.desc.kind:
                continue  # what other kernels wrote
            worst = max(worst, _ratio(found))
            if not found.passed:
                wrong.append(f"{found.name} is off by {found.error:.3g} of {found.allowed:.3g} allowed at {sizes}")
    return worst if math.isfinite(worst) else None, "; ".join(wrong)


def _results(problem: Problem, kernel: _Kernel, values: Values) -> Values:
    """Return outputs, or outputs and gradients of the whole op, with `kernel` in its place; memory begins as NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        if problem.desc.direction == "fwd":
            return dict(zip(OPS[problem.desc.op].outputs, kernel.run(values), strict=True))
        with in_place_of(problem.desc, kernel.run):
            return results_of(problem.forward, values, compiled=True)
    finally:
        torch.use_deterministic_algorithms(before)


def _ratio(found: Accuracy) -> float:
    """Return the error in units of eager torch's, or of the last place where that one is less; infinity for NaN."""
    unit = max(found.eager, (found.allowed - 3 * found.eager) / 2)
    if math.isnan(found.error):
        return math.inf
    return found.error / unit if unit else math.inf if found.error else 0.0


@functools.lru_cache(maxsize=1)
def _arguments(problem: Problem, target: Target) -> Values:
    """Return what the kernel of `problem` is called with at the sizes that are timed."""
    values = OPS[problem.forward.op].make_inputs(problem.forward, problem.sizes, torch.Generator().manual_seed(0))
    if "block_indices" in values:
        values["block_indices"] = _likely_lists(problem.forward, problem.sizes)
    values = dict(_moved(values, _device(target)))
    if problem.desc.direction == "fwd":
        return values
    caught: list[Values] = []

    def catch(arguments: Values) -> tuple[Tensor, ...]:
        caught.append(arguments)
        return run_kernel(problem.desc, **arguments)

    with in_place_of(problem.desc, catch):
        results_of(problem.forward, values, compiled=True)
    return {name: x.detach() if isinstance(x, Tensor) else x for name, x in caught[-1].items()}


def _likely_lists(desc: KernelDesc, sizes: Sizes) -> Tensor:
    """Return lists as a selection makes them: full where there are blocks enough, ascending, the query's own among."""
    block, n = desc.size("block"), desc.size("n")
    blocks = -(-sizes.keys // block)
    own = torch.arange(sizes.q_start, sizes.q_start + sizes.tokens) // block
    shape = (sizes.batch, sizes.tokens, sizes.kv_heads, blocks)
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    ahead = torch.arange(blocks) > own[:, None]
    is_own = torch.arange(blocks) == own[:, None]
    scores = torch.where(ahead[:, None], -1.0, torch.where(is_own[:, None], 2.0, scores))
    best = scores.topk(min(n, blocks), dim=-1)
    lists = torch.where(best.values < 0, blocks, best.indices).sort(dim=-1).values
    lists = torch.where(lists == blocks, -1, lists)
    return torch.nn.functional.pad(lists, (0, n - lists.shape[-1]), value=-1).to(torch.int32)


def _contender(name: str, problem: Problem, kernel: _Kernel) -> Contender:
    launch, again = kernel.lay_out(_arguments(problem, kernel.target))

    def run() -> Launch:
        again()
        return launch

    return Contender(name=name, run=run)


def _timed(
    problem: Problem, schedules: Sequence[Schedule], target: Target, default: Schedule, seconds: float, least: int
) -> tuple[Judged, ...]:
    """Return the times of `schedules`, each once, and of the default, all in turns."""
    names = {default: "default"} | {s: str(s) for s in schedules if s != default}
    contenders = [_contender(name, problem, _load(problem.desc, s, target)) for s, name in names.items()]
    samples = _in_turns(contenders, target, seconds, least=least)
    base = _spread(samples["default"])
    return tuple(
        Judged(status="ok", measured=_spread(found), default=base, gain=_spread(ratios(samples["default"], found)))
        for found in (samples[names[s]] for s in schedules)
    )


def _in_turns(contenders: list[Contender], target: Target, seconds: float, *, least: int) -> dict[str, list[float]]:
    """Return samples of all contenders: `least` rounds, and more within `seconds` while the last is not hopeless."""
    clock = _gpu_clock if isinstance(target, GpuTarget) else time.perf_counter
    begin = clock()
    samples = interleave(contenders, seconds=math.inf, most_rounds=least, clock=clock).samples
    left = seconds - (clock() - begin)
    first, last = samples[contenders[0].name], samples[contenders[-1].name]
    if least == LEAST_ROUNDS and min(last) > HOPELESS * max(first):
        return samples
    more = interleave(contenders, seconds=left, most_rounds=MOST_ROUNDS - least, clock=clock) if left > 0 else None
    if more is not None and more.warm:
        samples = {name: found + more.samples[name] for name, found in samples.items()}
    return samples


def _gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _spread(samples: list[float]) -> Spread:
    low, median, high = quartiles(samples)
    return Spread(median=median, low=low, high=high, samples=len(samples))


def _moved(value: Any, device: str) -> Any:
    """Return `value` with every tensor in it on `device`."""
    if isinstance(value, dict):
        return {name: _moved(v, device) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_moved(v, device) for v in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _device(target: Target) -> str:
    return "cuda" if isinstance(target, GpuTarget) else "cpu"
