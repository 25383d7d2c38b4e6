"""The benchmark's arithmetic, its order of calls and its files. No test says how long anything takes."""

import dataclasses
import importlib
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nsa_codegen.bench import models, stats, suite, works
from nsa_codegen.bench.machine import Limits, measure_limits, slug
from nsa_codegen.bench.measure import Contender, Timing, interleave
from nsa_codegen.bench.plots import write_plots
from nsa_codegen.bench.settings import Settings, powers_of_two
from nsa_codegen.cli import app
from nsa_codegen.cli.bench import print_result, write_result
from nsa_codegen.errors import SpecError
from nsa_codegen.index_sets import window
from nsa_codegen.ops import Work
from nsa_codegen.spec import NSASpec
from nsa_codegen.target import native_target

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that moves only when a contender runs, by what that contender's calls are said to take."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def contender(self, name, *seconds):
        taken = iter(seconds)

        def run():
            self.calls.append(name)
            self.now += next(taken, seconds[-1])

        return Contender(name=name, run=run)

    def interleave(self, *who, **given):
        return interleave(who, clock=lambda: self.now, pause=lambda _: None, **given)


def test_quartiles_of_given_samples():
    assert stats.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert stats.quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert stats.quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert stats.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}


def test_ratios_are_taken_round_by_round():
    # The median of ratios, 4, is not the ratio of the medians, 2.
    assert stats.ratios([1.0, 8.0, 4.0], [1.0, 2.0, 0.5]) == [1.0, 4.0, 8.0]
    with pytest.raises(ValueError, match="shorter"):
        stats.ratios([1.0, 2.0], [1.0])


def test_exponent_of_a_power_and_of_a_noisy_one():
    assert stats.exponent([(t, 3e-9 * t**1.5) for t in (1024, 2048, 8192)]) == pytest.approx(1.5)
    # In logarithms to base 2: (0, 0), (1, 3), (2, 2): slope 1.
    assert stats.exponent([(1, 1), (2, 8), (4, 4)]) == pytest.approx(1.0)
    assert stats.exponent([(1024, 1.0)]) is None
    assert stats.exponent([(1024, 1.0), (1024, 2.0)]) is None


def test_contenders_take_turns_and_the_first_round_is_dropped():
    clock = Clock()
    timing = clock.interleave(clock.contender("a", 5.0, 1.0), clock.contender("b", 7.0, 2.0), seconds=30.0)
    # 12 s to warm up; then rounds of 3 s until a further one would pass 30 s.
    assert clock.calls == ["a", "b"] * 7
    assert timing.warm and timing.samples == {"a": [1.0] * 6, "b": [2.0] * 6}
    assert timing.repeats == {"a": 1, "b": 1}


def test_one_round_that_fills_the_time_is_kept_and_called_cold():
    clock = Clock()
    timing = clock.interleave(clock.contender("a", 40.0), clock.contender("b", 50.0), seconds=20.0)
    assert clock.calls == ["a", "b"]
    assert not timing.warm and timing.samples == {"a": [40.0], "b": [50.0]}


def test_a_first_round_of_half_the_time_is_kept_beside_a_second_one():
    clock = Clock()
    timing = clock.interleave(clock.contender("a", 6.0, 4.0), clock.contender("b", 5.0, 3.0), seconds=20.0)
    assert not timing.warm and timing.samples == {"a": [6.0], "b": [5.0]}
    timing = clock.interleave(clock.contender("a", 6.0, 4.0), clock.contender("b", 5.0, 3.0), seconds=22.0)
    assert timing.warm and timing.samples == {"a": [4.0], "b": [3.0]}


def test_short_calls_are_repeated_within_a_sample_and_rounds_have_a_limit():
    clock = Clock()
    timing = clock.interleave(clock.contender("a", 2**-9), clock.contender("b", 1.0), seconds=1e9, most_rounds=4)
    assert timing.repeats == {"a": 2, "b": 1}
    assert timing.samples == {"a": [2**-9] * 4, "b": [1.0] * 4}
    # Warm-up, one more call to know how often to repeat, then a call that is not timed, a a, and b.
    assert clock.calls == ["a", "b", "a", *["a", "a", "a", "b"] * 4]


def test_a_short_call_is_repeated_whatever_its_first_one_took():
    clock = Clock()
    found = clock.interleave(
        clock.contender("a", 0.0625, 2**-9), clock.contender("b", 2**-9), seconds=1e9, most_rounds=1
    )
    assert found.repeats == {"a": 2, "b": 2}
    assert found.samples == {"a": [2**-9], "b": [2**-9]}


def example():
    """Return a result of two lengths and two contenders, made by hand, and its limits."""
    settings = Settings(tokens=(1024, 4096), backward_tokens=(1024,), threads=2)
    limits = Limits.of(2, {"fma_one": [1e11], "fma_all": [2e11], "fed_all": [1.5e11], "copy_bytes": [1e10]})
    result = {
        "format": 1, "command": "nsa-codegen bench", "date": "2026-01-01", "settings": settings.to_json(),
        "machine": {"name": "Abacus", "torch": "2"}, "limits": {}, "comparisons": [], "memory": [],
        "start": [{"name": "import", "samples": [0.25], "seconds": stats.spread([0.25])}],
    }  # fmt: skip
    for name in ("forward", "backward", "steps forward"):
        for tokens, mine, theirs in ((1024, [1.0, 2.0, 4.0], [1.0, 1.0, 8.0]), (4096, [4.0], [16.0])):
            first, second = ("nsa", "combine") if name == "steps forward" else ("sdpa", "nsa")
            comparison = suite.Comparison(part="forward", name=name, tokens=tokens, baseline=first, make=list)
            made = [
                Contender(name=first, run=list, work=Work(operations=4 * 10**11, bytes=1)),
                Contender(name=second, run=list, work=Work(operations=10, bytes=10**10)),
            ]
            timing = Timing(samples={first: theirs, second: mine}, repeats={first: 1, second: 5}, warm=True)
            result["comparisons"].append(suite.record(comparison, made, timing))
    for who in ("nsa", "sdpa"):
        for tokens in (1024, 4096):
            case = {"who": who, "direction": "forward", "tokens": tokens}
            result["memory"].append({**case, "bytes": 9 * tokens, "operands_bytes": 99 * tokens, "exact": True})
    result["memory"].append({"who": "sdpa", "direction": "forward", "tokens": 8192, "error": "no memory"})
    return suite.derive(result, [limits])


def test_a_record_has_raw_samples_spread_speedup_and_distance_from_the_limit():
    first, second = (c for c in example()["comparisons"] if c["name"] == "forward")
    sdpa, nsa = first["contenders"]
    assert nsa["samples"] == [1.0, 2.0, 4.0] and nsa["repeats"] == 5 and sdpa["repeats"] == 1
    assert nsa["seconds"] == {"median": 2.0, "q1": 1.5, "q3": 3.0}
    assert nsa["speedup"] == stats.spread([1.0, 0.5, 2.0])  # not 8 / 4, nor 1 / 2 of the medians
    assert sdpa["speedup"]["median"] == 1.0
    assert sdpa["of_limit"] == pytest.approx(2.0)  # 4e11 operations at 2e11 a second, in 1 s: limited by operations
    assert nsa["of_limit"] == pytest.approx(0.5)  # 1e10 bytes at 1e10 a second, in 2 s: limited by bytes
    assert second["contenders"][1]["speedup"]["median"] == 4.0


def test_what_multiplies_pairs_is_the_limit_of_bfloat16_alone():
    work = Work(operations=4 * 10**11, bytes=1)
    limits = Limits(threads=2, fma_one=1e11, fma_all=2e11, copy_bytes=1e10, pairs_all=8e11, samples={})
    assert [limits.seconds(work, d) for d in ("float32", "float16", "bfloat16")] == [2.0, 2.0, 0.5]
    without = dataclasses.replace(limits, pairs_all=0.0)
    assert without.seconds(work, "bfloat16") == 2.0


def test_exponents_are_fitted_by_comparison_and_contender():
    found = {(e["comparison"], e["name"]): e["exponent"] for e in example()["exponents"]}
    assert found["forward", "nsa"] == pytest.approx(0.5)  # 2 s to 4 s over four times the length
    assert found["forward", "sdpa"] == pytest.approx(2.0)
    assert len(found) == 6


def test_the_best_of_two_measurements_of_the_limits_counts_and_all_samples_stay():
    a = Limits.of(2, {"fma_one": [1.0, 0.5], "fma_all": [4.0], "copy_bytes": [5.0], "clock_fma": [3.0, 1.0]})
    b = Limits.of(2, {"fma_one": [2.0], "fma_all": [3.0], "copy_bytes": [6.0], "clock_fma": [2.5]})
    best = suite.best_limits([a, b])
    assert (best.fma_one, best.fma_all, best.copy_bytes) == (2.0, 4.0, 6.0)
    assert best.clock_fma == 2.5  # the middle one of 3.0, 1.0 and 2.5
    assert best.samples["fma_one"] == [1.0, 0.5, 2.0]


def test_the_peak_kernel_compiles_and_counts():
    limits = measure_limits(1, samples=2, copy_bytes=1 << 20)
    assert (limits.pairs_all > 0) == native_target().takes_pairs("bfloat16")
    for name in ("fma_one", "fma_all", "fed_all", "copy_bytes"):
        assert len(limits.samples[name]) == 2 and all(math.isfinite(x) and x > 0 for x in limits.samples[name])
        assert getattr(limits, name) == max(limits.samples[name])
    for clock in (limits.clock_fma, limits.clock_fed):
        assert (clock > 0) == (platform.machine() == "x86_64")


def test_operations_of_a_small_attention_counted_by_hand():
    spec = NSASpec.paper(
        num_heads=2, num_kv_heads=1, head_dim=4, value_dim=4, window_size=3, block_size=4, num_selected_blocks=3,
        compression_kernel=4, compression_stride=2, compression="mean",
    )  # fmt: skip
    found = works.op_works(spec, "float32", batch=1, queries=10, keys=10)
    pairs = {
        "compressed_attention": sum(2 * i + 3 <= t for t in range(10) for i in range(4)),
        "selected_attention": sum(t + 1 for t in range(10)),  # three blocks of 4 hold all
        "window_attention": sum(min(t + 1, 3) for t in range(10)),
    }
    for name, count in pairs.items():
        assert found[name].operations == 2 * 2 * count * (4 + 4), name  # heads, multiply and add, two products
    assert found["select_blocks"].operations == 2 * 2 * pairs["compressed_attention"] * 4
    assert found["compress"].operations == 2 * 4 * (4 * 4)  # k and v, windows, additions
    assert found["combine"].operations == 2 * 3 * 10 * 2 * 4
    whole = works.whole_work(spec, "float32", batch=1, queries=10, keys=10)
    assert found["scored_attention"].operations == found["compressed_attention"].operations
    twice = ("select_blocks", "scored_attention")  # one product serves both
    assert whole.operations == sum(w.operations for name, w in found.items() if name not in twice)
    apart = NSASpec.seed()
    steps = works.op_works(apart, "float32", batch=1, queries=10, keys=10)
    assert works.whole_work(apart, "float32", batch=1, queries=10, keys=10).operations == sum(
        w.operations for w in steps.values()
    )
    dense = works.dense_work(spec, "float32", batch=1, queries=10, keys=10)
    assert dense.operations == 2 * 2 * 55 * 8
    near = works.dense_work(spec, "float32", batch=1, queries=10, keys=10, reach=3)
    assert near.operations == found["window_attention"].operations
    assert works.backward(dense).operations == 5 * 2 * 55 * 8  # five products
    last = works.op_works(spec, "float32", batch=1, queries=1, keys=10)["window_attention"]
    assert last.operations == 2 * 2 * window(3).count(9, 10) * 8


def test_lengths_are_powers_of_two_and_the_longest():
    assert powers_of_two(1024, 5000) == (1024, 2048, 4096, 5000)
    assert powers_of_two(1000, 4096) == (1024, 2048, 4096)
    assert powers_of_two(2048, 1024) == ()


def test_settings_refuse_what_is_not_allowed():
    with pytest.raises(SpecError, match=r"bench\.tokens is empty"):
        Settings(tokens=(), backward_tokens=(), threads=1)
    with pytest.raises(SpecError, match=r"'forwards' is not allowed.*did you mean 'forward'"):
        Settings(tokens=(8,), backward_tokens=(), threads=1, parts=("forwards",))
    with pytest.raises(SpecError, match="dtype"):
        Settings(tokens=(8,), backward_tokens=(), threads=1, dtype="float64")


def test_names_of_files_tell_machine_and_attention():
    assert slug("Intel(R) Xeon(R) CPU @ 2.20GHz") == "intel-xeon-cpu-2-20ghz"
    settings = {"tokens": (8,), "backward_tokens": (8,)}
    assert Settings(**settings, threads=2).label == "-2t"
    other = Settings(**settings, threads=1, num_kv_heads=4, head_dim=128, dtype="bfloat16")
    assert other.label == "-4kv-d128-bfloat16-1t"


def test_the_plan_has_every_part_and_the_limits_of_quadratic_contenders(monkeypatch):
    monkeypatch.setattr(suite.flex, "compile_ahead", lambda *given, **named: None)
    settings = Settings(tokens=(1024, 4096, 8192), backward_tokens=(1024,), threads=1)
    found = [(c.part, c.name, c.tokens) for c in suite.plan(settings)]
    assert {part for part, _, _ in found} == set(settings.parts) - {"memory", "start"}
    assert [t for _, n, t in found if n == "eager forward"] == [1024]
    assert [t for p, _, t in found if p == "module"] == [1024, 4096]
    assert [t for p, _, t in found if p == "backward"] == [1024]
    assert ("flex", "flex causal", 4096) in found and ("flex", "flex causal", 8192) not in found
    cases = [(c["who"], c["direction"], c["tokens"]) for c in suite.memory_cases(settings)]
    assert ("reference", "forward", 1024) in cases and ("reference", "forward", 4096) not in cases
    assert ("sdpa", "forward", 8192) in cases and ("nsa", "backward", 8192) not in cases


def test_who_can_not_take_part_is_named_with_a_reason(monkeypatch):
    monkeypatch.setattr(models, "RIVAL", "no-such-package-at-all")
    settings = Settings(tokens=(1024,), backward_tokens=(1024,), threads=1, parts=("module",))
    (comparison,) = suite.plan(settings)
    assert comparison.baseline == "sdpa"
    ((name, reason),) = comparison.skipped
    assert name == "no-such-package-at-all" and "not installed" in reason and "nsa_codegen[bench]" in reason


def test_flex_that_takes_too_long_is_ended_and_named():
    settings = Settings(tokens=(64,), backward_tokens=(64,), threads=1, flex_seconds=0.01, parts=("flex",))
    found = list(suite.plan(settings))
    assert all(not c.make() for c in found) and len(found) == 2
    assert "more than 0.01 s" in found[0].skipped[0][1]


def test_plots_are_written_for_what_there_is(tmp_path):
    pytest.importorskip("matplotlib")
    result = example()
    files = write_plots(result, tmp_path / "plots", "machine")
    assert [f.name for f in files] == [f"machine-{p}.png" for p in ("time", "speedup", "roofline", "memory")]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
    result["memory"] = []
    result["comparisons"] = [c for c in result["comparisons"] if c["name"] == "forward"]
    assert [f.name for f in write_plots(result, tmp_path, "m")] == ["m-time.png", "m-speedup.png"]


def test_stored_results_are_drawn_again_by_the_script(tmp_path):
    pytest.importorskip("matplotlib")
    write_result(example(), tmp_path / "a.json")
    command = [sys.executable, str(ROOT / "benchmarks" / "plot.py"), str(tmp_path / "a.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[0] == str(tmp_path / "a-time.png") and (tmp_path / "a-time.png").exists()


def test_the_script_has_help_and_says_in_one_line_what_is_no_result(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "plot.py")]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("usage: plot.py") and "all by default" in done.stdout
    (tmp_path / "a.json").write_text("{}")
    for name, said in (("a.json", "is not a benchmark result of format 1"), ("b.json", "can't be read")):
        done = subprocess.run([*command, tmp_path / name], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_file_that_is_no_result_is_refused():
    assert suite.require_result(json.loads(json.dumps(example())), "x.json")["format"] == 1
    with pytest.raises(suite.ResultError, match=r"x\.json is not a benchmark result of format 1"):
        suite.require_result([], "x.json")
    with pytest.raises(suite.ResultError, match=r"lacks \['memory'\]"):
        suite.require_result({k: v for k, v in example().items() if k != "memory"}, "x.json")


def test_tables_show_medians_speedups_shares_and_failures(capsys):
    print_result(example())
    text = capsys.readouterr().out
    forward = text[text.index("forward (against sdpa)") :]
    line = next(x for x in forward.splitlines() if x.split()[:2] == ["1024", "nsa"])
    assert "2 s" in line and "1.5 s .. 3 s" in line and "1x" in line and "50 %" in line
    steps = text[text.index("steps forward (against nsa)") :]
    line = next(x for x in steps.splitlines() if x.split()[:2] == ["4096", "combine"])
    assert "25.0 %" in line
    assert "250 ms" in text[text.index("starting") :]
    assert "no memory" in text and "200.0 GFLOP/s" in text


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """A file of results where `bench` puts its own, and a suite that measures nothing."""
    place = tmp_path / "abacus-2t.json"
    command = importlib.import_module("nsa_codegen.cli.bench")  # the package's attribute is the function
    monkeypatch.setattr(command, "_default_output", lambda label: place)

    def run_suite(settings, *, on_result, **_):
        result = example() | {"settings": settings.to_json()}
        on_result(result)
        assert "unfinished" in {p.stem.rpartition("-")[2] for p in tmp_path.iterdir()}
        return result

    monkeypatch.setattr(suite, "run_suite", run_suite)
    write_result(example(), place)
    return place


def bench(*arguments):
    return CliRunner().invoke(app, ["bench", "--threads", "1", "--no-plots", "--max-tokens", "4096", *arguments])


@pytest.mark.parametrize(
    ("arguments", "lost"),
    [(["--only", "forward"], "parts backward ops"), (["--min-tokens", "4096"], "(tokens 1024, backward_tokens 1024)")],
)
def test_a_run_of_fewer_parts_or_lengths_never_replaces_the_results_of_more(stored, arguments, lost):
    before = stored.read_bytes()
    done = bench(*arguments)
    assert done.exit_code == 1 and done.stdout == "" and stored.read_bytes() == before
    (line,) = done.stderr.splitlines()
    assert f"error: bench: {stored} also holds what this run does not measure" in line and "--output" in line
    assert lost in line
    other = stored.with_name("other.json")
    assert bench(*arguments, "--output", str(other)).exit_code == 0
    assert stored.read_bytes() == before and sorted(p.name for p in stored.parent.iterdir()) == [
        stored.name,
        other.name,
    ]
    assert bench(*arguments, "--output", str(stored)).exit_code == 0 and stored.read_bytes() != before


def test_a_run_of_all_that_a_file_has_replaces_it_once_it_is_through(stored, monkeypatch):
    before = stored.read_bytes()

    def end_early(settings, *, on_result, **_):
        on_result(example() | {"comparisons": []})
        raise suite.ResultError("the machine went away")

    with monkeypatch.context() as patch:
        patch.setattr(suite, "run_suite", end_early)
        assert bench().exit_code == 1 and stored.read_bytes() == before
    unfinished = stored.with_name("abacus-2t-unfinished.json")
    assert json.loads(unfinished.read_text())["comparisons"] == []
    assert bench().exit_code == 0
    assert json.loads(stored.read_text())["settings"]["threads"] == 1 and not unfinished.exists()


def test_a_file_that_is_no_result_is_not_replaced_either(stored):
    stored.write_text("{")
    done = bench()
    assert done.exit_code == 1 and f"{stored} can't be read as a benchmark result" in done.stderr
    assert stored.read_text() == "{"


def test_more_threads_than_processors_are_refused(stored):
    done = CliRunner().invoke(app, ["bench", "--threads", "1000", "--only", "seed"])
    assert done.exit_code == 1 and done.stdout == ""
    assert f"bench.threads = 1000 is more than the {os.cpu_count()} processors here" in done.stderr


def test_no_part_at_all_is_refused(stored):
    done = bench("--only", "forward", "--skip", "forward")
    assert done.exit_code == 1 and "bench.parts is empty" in done.stderr and "flex" in done.stderr


def test_a_wrong_part_is_one_red_line():
    done = CliRunner().invoke(app, ["bench", "--only", "forwards"])
    assert done.exit_code == 1 and "did you mean 'forward'" in done.stderr and done.stdout == ""
