"""The suite as plain data: every comparison with its raw samples, and what follows from them."""

from __future__ import annotations

import datetime
import functools
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..build import Request, build_all
from ..desc import DTYPES
from ..errors import NSAError
from ..ops import Work
from ..requests import needed_requests
from ..spec import NSASpec
from ..target import native_target
from . import contenders, flex, models, variants
from .machine import Limits, machine_facts, measure_limits
from .measure import Contender, Timing, interleave
from .memory import measure_peak
from .settings import Settings
from .start import measure_start
from .stats import exponent, ratios, spread

FORMAT = 1
_SEED_TOKENS, _SEED_BATCH = 256, 16
_CALL_CACHE = 64  # tokens: so few that a step at T = 1 is little but the call
_LOADING_TOKENS = 128
_REFERENCE_MEMORY_TOKENS = (1024, 2048)
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Contenders that are timed together at one length; `make` allocates them, `baseline` is what others are held to.

    `skipped` says who can't take part, and why.
    """

    part: str
    name: str
    tokens: int
    baseline: str
    make: Callable[[], Sequence[Contender]]
    skipped: tuple[tuple[str, str], ...] = ()


def plan(settings: Settings) -> Iterator[Comparison]:
    """Yield the comparisons of the parts that are asked for, in order, shortest first."""
    spec, dtype, parts = settings.spec, settings.dtype, settings.parts
    if "forward" in parts:
        for t in settings.tokens:
            yield _made("forward", "forward", t, "sdpa", contenders.forward, spec, dtype, t)
        for t in (t for t in settings.tokens if t <= settings.reference_tokens):
            yield _made("forward", "eager forward", t, "reference", contenders.eager, spec, dtype, t)
    if "backward" in parts:
        for t in settings.backward_tokens:
            yield _made("backward", "backward", t, "sdpa", contenders.backward, spec, dtype, t)
    if "ops" in parts:
        for t in settings.tokens:
            yield _made("ops", "steps forward", t, "nsa", contenders.ops_forward, spec, dtype, queries=t, keys=t)
    if "ops_backward" in parts:
        for t in settings.backward_tokens:
            yield _made("ops_backward", "steps backward", t, "nsa", contenders.ops_backward, spec, dtype, t)
    if "decode" in parts:
        n = _CALL_CACHE
        yield _made("decode", "decode steps", n, "nsa", contenders.ops_forward, spec, dtype, queries=1, keys=n)
        for t in (n, *settings.tokens):
            yield _made("decode", "decode", t, "sdpa", contenders.decode, spec, dtype, t)
    if "seed" in parts:
        seed, t = NSASpec.seed(), _SEED_TOKENS
        for name, make in (("seed forward", contenders.forward), ("seed backward", contenders.backward)):
            yield _made("seed", name, t, "sdpa", make, seed, dtype, t, batch=_SEED_BATCH)
    if "variants" in parts:
        yield from _variants(settings)
    if "model" in parts:
        for name, train in (("model forward", False), ("model training step", True)):
            yield _made("model", name, _SEED_TOKENS, "sdpa", models.model, train=train)
        for t in settings.tokens:
            yield _made("model", "model decode", t, "sdpa", models.decode, "paper", settings.options, dtype, t)
        for t in settings.tokens:
            yield _made("model", "seed model decode", t, "sdpa", models.decode, "seed", {}, dtype, t)
    if "module" in parts:
        reason = models.missing_rival()
        skipped = () if reason is None else ((models.RIVAL, reason),)
        held_to = models.RIVAL if reason is None else "sdpa"
        for t in (t for t in settings.tokens if t <= settings.module_tokens):
            yield _made("module", "module forward", t, held_to, models.module, spec, dtype, t, skipped=skipped)
    if "flex" in parts:
        yield from _flex(settings)


def _variants(settings: Settings) -> Iterator[Comparison]:
    for what, baseline in variants.BASELINES.items():
        for direction, lengths in (("forward", settings.tokens), ("backward", settings.backward_tokens)):
            options: dict[str, Any] = {"what": what, "direction": direction, "threads": settings.threads}
            make = functools.partial(variants.contenders, settings.spec, settings.dtype, **options)
            for t in (t for t in lengths if t <= variants.MOST_TOKENS):
                yield _made("variants", f"{what} {direction}", t, baseline, make, t)


def _flex(settings: Settings) -> Iterator[Comparison]:
    spec, dtype, tokens = settings.spec, settings.dtype, settings.flex_tokens
    reason = flex.compile_ahead(settings)
    if reason is not None:
        for mask in flex.MASKS:
            yield Comparison(
                part="flex", name=f"flex {mask}", tokens=0, baseline="flex", make=list, skipped=(("flex", reason),)
            )
        return
    for mask in flex.MASKS:
        for t in tokens:
            yield _made("flex", f"flex {mask}", t, "flex", flex.contenders, spec, dtype, t, mask)


def _made(
    part: str,
    name: str,
    tokens: int,
    baseline: str,
    make: Callable[..., Sequence[Contender]],
    *given: Any,
    skipped: tuple[tuple[str, str], ...] = (),
    **named: Any,
) -> Comparison:
    return Comparison(
        part=part, name=name, tokens=tokens, baseline=baseline, make=lambda: make(*given, **named), skipped=skipped
    )


def run_suite(
    settings: Settings,
    *,
    command: str,
    report: Callable[[str], None] = lambda _: None,
    on_result: Callable[[Result], None] = lambda _: None,
) -> Result:
    """Return the results of the parts that are asked for, as plain data of format 1.

    `report` gets a line before each step; `on_result` the result so far after each comparison. Kernels are built
    first, outside any timing. Raises `NSAError` if one can't be built.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        return _run(settings, command, report, on_result)
    finally:
        torch.set_num_threads(before)


def _run(
    settings: Settings, command: str, report: Callable[[str], None], on_result: Callable[[Result], None]
) -> Result:
    report("building kernels")
    _build(settings)
    _load(settings)
    report("measuring the machine's limits")
    limits = [measure_limits(settings.threads)]
    result: Result = {
        "format": FORMAT,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "settings": settings.to_json(),
        "limits": {},
        "comparisons": [],
        "memory": [],
        "start": [],
    }

    def publish() -> None:
        on_result(derive(result, limits))

    for comparison in plan(settings):
        report(f"{comparison.name}, {comparison.tokens} tokens")
        made = list(comparison.make())
        timing = interleave(made, seconds=settings.seconds) if made else Timing(samples={}, repeats={}, warm=True)
        result["comparisons"].append(record(comparison, made, timing))
        made.clear()
        gc.collect()  # a backward's graph holds gigabytes at the longest lengths
        publish()
    if "memory" in settings.parts:
        for case in memory_cases(settings):
            report(f"memory of {case['who']} {case['direction']}, {case['tokens']} tokens")
            result["memory"].append(measure_peak(settings, **case))
            publish()
    if "start" in settings.parts:
        report("import, first calls and a cold build")
        rows = measure_start(settings)
        result["start"] = [{**row, "seconds": spread(row["samples"])} for row in rows]
    report("measuring the machine's limits again")
    limits.append(measure_limits(settings.threads))
    return derive(result, limits)


def memory_cases(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield whose peak is measured, in which direction and at which length."""
    for direction, lengths in (("forward", settings.tokens), ("backward", settings.backward_tokens)):
        for t in lengths:
            for who in ("nsa", "sdpa"):
                yield {"who": who, "direction": direction, "tokens": t}
            if direction == "forward" and t in _REFERENCE_MEMORY_TOKENS and t <= settings.reference_tokens:
                yield {"who": "reference", "direction": direction, "tokens": t}


def _build(settings: Settings) -> None:
    target = native_target()
    wanted: list[Request] = []
    for dtype in DTYPES if "variants" in settings.parts else (settings.dtype,):
        wanted += needed_requests(settings.spec.program(), dtype, target)
    if {"seed", "model"} & set(settings.parts):
        for dtype in dict.fromkeys((settings.dtype, "float32")):
            wanted += needed_requests(NSASpec.seed().program(), dtype, target)
    for outcome in build_all(dict.fromkeys(wanted), jobs=settings.threads):
        if outcome.error is not None:
            raise outcome.error


def _load(settings: Settings) -> None:
    """Run every kernel once, so that no first round of a comparison holds the loading of libraries."""
    for spec in (settings.spec, NSASpec.seed()) if "seed" in settings.parts else (settings.spec,):
        for make in (contenders.forward, contenders.backward):
            for contender in make(spec, settings.dtype, _LOADING_TOKENS):
                contender.run()


def record(comparison: Comparison, made: Sequence[Contender], timing: Timing) -> Result:
    """Return one comparison as plain data: raw samples, their spread, and speed-ups over the baseline by round."""
    base = timing.samples.get(comparison.baseline)
    rows = []
    for contender in made:
        samples = timing.samples[contender.name]
        row: Result = {"name": contender.name, "samples": samples, "repeats": timing.repeats[contender.name]}
        row["seconds"] = spread(samples)
        if base is not None:
            row["speedup"] = spread(ratios(base, samples))
        if contender.work is not None:
            row["operations"], row["bytes"] = contender.work.operations, contender.work.bytes
        rows.append(row)
    return {
        "part": comparison.part,
        "name": comparison.name,
        "tokens": comparison.tokens,
        "baseline": comparison.baseline,
        "warm": timing.warm,
        "contenders": rows,
        "skipped": [{"name": name, "reason": reason} for name, reason in comparison.skipped],
    }


def derive(result: Result, limits: Sequence[Limits]) -> Result:
    """Return `result` with the limits, each row's distance from them, and the exponents of time in length."""
    best = best_limits(limits)
    result["limits"] = best.to_json()
    for comparison in result["comparisons"]:
        for row in comparison["contenders"]:
            if "operations" in row:
                work = Work(operations=row["operations"], bytes=row["bytes"])
                least = best.seconds(work, result["settings"]["dtype"])
                row["of_limit"] = least / row["seconds"]["median"]
    result["exponents"] = exponents(result["comparisons"])
    return result


def best_limits(found: Sequence[Limits]) -> Limits:
    """Return the highest of several measurements of one machine, with the samples of all."""
    return Limits.of(found[0].threads, {n: [s for x in found for s in x.samples[n]] for n in found[0].samples})


def exponents(comparisons: Sequence[Result]) -> list[Result]:
    """Return for each comparison and contender `p` of `time = c * tokens**p`, where there are two lengths or more."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for comparison in comparisons:
        for row in comparison["contenders"]:
            where = points.setdefault((comparison["name"], row["name"]), [])
            where.append((comparison["tokens"], row["seconds"]["median"]))
    found = [{"comparison": c, "name": n, "exponent": exponent(where)} for (c, n), where in points.items()]
    return [row for row in found if row["exponent"] is not None]


class ResultError(NSAError, ValueError):
    """A file of results is not one of this format."""


def read_result(path: Path) -> Result:
    """Return the result in a file; raises `ResultError` if it is none of this format."""
    try:
        return require_result(json.loads(path.read_text()), str(path))
    except (OSError, ValueError) as error:
        if isinstance(error, ResultError):
            raise
        raise ResultError(f"{path} can't be read as a benchmark result: {error}") from error


def require_result(data: Any, where: str) -> Result:
    """Return `data` if it is a result of this format; raises `ResultError` that names what is missing."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ResultError(f"{where} is not a benchmark result of format {FORMAT}; run `nsa-codegen bench` again")
    missing = {"machine", "settings", "limits", "comparisons", "memory", "start", "exponents"} - set(data)
    if missing:
        raise ResultError(f"{where} lacks {sorted(missing)}; run `nsa-codegen bench` again")
    return data
