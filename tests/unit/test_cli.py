"""The command line: every command, JSON that is nothing but JSON, and errors of one line."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from nsa_codegen.build import Built, Request
from nsa_codegen.cli import app
from nsa_codegen.cli.build import failures_of
from nsa_codegen.cli.env import VARIABLES
from nsa_codegen.cli.options import SPEC_HELP
from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import BuildForbiddenError, CompilerError, LoweringError
from nsa_codegen.schedule import CpuSchedule
from nsa_codegen.spec import OPTIONS, NSASpec
from nsa_codegen.target import TARGETS

# One path less work than an attention: the combination of three paths with values of 8.
SMALL = ["--num-heads", "2", "--head-dim", "8", "--window-size", "8", "--block-size", "8", "--num-selected-blocks", "2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with the forward kernels of a small attention."""
    root = tmp_path_factory.mktemp("store")
    before, os.environ["NSA_CODEGEN_HOME"] = os.environ.get("NSA_CODEGEN_HOME"), str(root)
    result = CliRunner().invoke(app, ["build", *SMALL, "--direction", "fwd", "--jobs", "1", "--json"])
    assert result.exit_code == 0, result.stderr
    yield root, json.loads(result.stdout)
    if before is None:
        del os.environ["NSA_CODEGEN_HOME"]
    else:
        os.environ["NSA_CODEGEN_HOME"] = before


def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result


def failure(*arguments):
    """Return the one line on stderr of a command that fails."""
    result = run(*arguments, code=1)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    return line


def test_help_names_every_command():
    text = run("--help").stdout
    assert all(word in text for word in ("build", "inspect", "list", "verify", "env", "demo"))


def test_help_is_there_before_torch_is():
    code = "import sys; from nsa_codegen.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'tilelang' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_every_option_of_a_spec_is_an_option():
    assert set(SPEC_HELP) == set(OPTIONS)
    text = subprocess.run(
        [sys.executable, "-m", "nsa_codegen.cli", "build", "--help"],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert all(f"--{name.replace('_', '-')}" in text for name in (*OPTIONS, "preset"))


def test_build_lowers_once_then_finds_all_stored(store):
    root, built = store
    assert {row["how"] for row in built} == {"lowered"}
    assert all((root / row["folder"]).joinpath("manifest.json").exists() for row in built)
    again = json.loads(run("build", *SMALL, "--direction", "fwd", "--json").stdout)
    assert [row["kernel"] for row in again] == [row["kernel"] for row in built]
    assert {row["how"] for row in again} == {"stored"}
    table = run("build", *SMALL, "--direction", "fwd").stdout
    assert str(root) in table and "combine_fwd" in table and "stored" in table


def test_options_reach_the_spec(store):
    text = run("inspect", "combine", "--preset", "paper", "--window-size", "96", "--stage", "program").stdout
    assert text.rstrip("\n") == str(NSASpec.paper(window_size=96).program())
    text = run("inspect", "combine", "--compression-ratio", "8", "--no-causal", "--stage", "program").stdout
    assert text.rstrip("\n") == str(NSASpec.seed(compression_ratio=8, causal=False).program())


def test_a_failed_build_is_named_and_is_exit_code_1(store, monkeypatch):
    monkeypatch.setenv("NSA_CODEGEN_NO_BUILD", "1")
    result = run("build", *SMALL, "--dtype", "float16", "--direction", "fwd", "--json", code=1)
    assert {row["how"] for row in json.loads(result.stdout)} == {"failed"}
    assert "NSA_CODEGEN_NO_BUILD" in result.stderr and "Traceback" not in result.stderr


def test_list_shows_what_was_built(store):
    _, built = store
    rows = json.loads(run("list", "--json").stdout)
    kernels = {row["folder"] for row in rows if not row["kernel"].startswith("thread_pool")}
    assert kernels == {row["folder"] for row in built}
    assert all(row["built"] == "yes" for row in rows)
    assert all(row["name"] in run("list").stdout for row in rows)


def test_inspect_shows_each_stage(store):
    root, built = store
    combine = next(r for r in built if r["kernel"].startswith("combine_fwd"))
    name = combine["folder"].rsplit("/", 1)[1]
    stored = root / combine["folder"]
    for kernel in ("combine", "combine_fwd"):
        text = run("inspect", kernel, *SMALL, "--stage", "source").stdout
        assert text.rstrip("\n") == (stored / "kernel.cpp").read_text().rstrip("\n")
    for kernel in (name, name.rsplit("-", 1)[1][:8]):
        manifest = json.loads(run("inspect", kernel, "--stage", "manifest").stdout)
        assert manifest == json.loads((stored / "manifest.json").read_text())
    assert "query_lanes=" in run("inspect", name, "--stage", "schedule").stdout
    assert "fallback.toml" in run("inspect", "combine", *SMALL, "--stage", "schedule").stdout
    assert "@T.prim_func" in run("inspect", name, "--stage", "tir").stdout
    assert "nsa_combine" in run("inspect", name, "--stage", "asm").stdout
    (item,) = json.loads(run("inspect", name, "--stage", "source", "--json").stdout)
    assert item == {"kernel": combine["kernel"], "stage": "source", "text": (stored / "kernel.cpp").read_text()}


def test_inspect_lowers_and_compiles_what_is_not_stored(store):
    assert "nsa_combine_backward" in run("inspect", "combine_bwd", *SMALL, "--stage", "source").stdout
    assembly = run("inspect", "combine_bwd", *SMALL, "--stage", "asm").stdout
    assert re.search(r"^\s*\.globl\s+nsa_combine", assembly, re.MULTILINE)
    result = run("inspect", "combine_bwd", *SMALL, "--stage", "manifest", code=1)
    assert "is not built" in result.stderr


def test_an_op_with_several_kernels_shows_all(store):
    items = json.loads(run("inspect", "stream_attention", *SMALL, "--stage", "schedule", "--json").stdout)
    assert len(items) == 2 and len({item["kernel"] for item in items}) == 2


def test_verify_finds_a_damaged_kernel(store, tmp_path, monkeypatch):
    root, built = store
    row = next(r for r in built if r["kernel"].startswith("combine_fwd"))
    copy = tmp_path / row["folder"].removeprefix(f"{root}/")
    copy.mkdir(parents=True)
    for file in (root / row["folder"]).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("NSA_CODEGEN_HOME", str(tmp_path))
    assert [f["state"] for f in json.loads(run("verify", "--stored-only", "--json").stdout)["stored"]] == ["good"]
    (library,) = copy.glob("*.so")
    library.write_bytes(library.read_bytes()[:-1] + b"x")
    found = json.loads(run("verify", "--stored-only", "--json", code=1).stdout)["stored"]
    assert [f["state"] for f in found] == ["corrupt"] and "sha256" in found[0]["reason"]


def test_verify_computes_ops_against_float64(store):
    report = json.loads(run("verify", "--op", "combine", "--json").stdout)
    assert report["computed"] and all(c["ok"] and c["error"] <= c["allowed"] for c in report["computed"])
    assert {c["output"] for c in report["computed"]} == {"out"}


def test_verify_notices_a_wrong_kernel(store, monkeypatch):
    from nsa_codegen import dispatch

    right = dispatch.run
    monkeypatch.setattr(dispatch, "run", lambda desc, **given: tuple(o * 1.1 for o in right(desc, **given)))
    report = json.loads(run("verify", "--op", "combine", "--json", code=1).stdout)
    assert not any(c["ok"] for c in report["computed"])


def test_env_tells_versions_folders_and_variables(store):
    import torch

    root, _ = store
    facts = json.loads(run("env", "--json").stdout)
    assert facts["torch"] == torch.__version__ and facts["store"] == str(root)
    assert {v["variable"]: v["value"] for v in facts["variables"]}["NSA_CODEGEN_HOME"] == str(root)
    text = run("env").stdout
    assert all(name in text for name in VARIABLES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "--target", "sm_90"], "did you mean 'sm_90a'"),
        (["build", "--target", "x86_64_v5"], "did you mean 'x86_64_v"),
        (["build", "--preset", "papr"], "did you mean 'paper'"),
        (["build", "--dtype", "float31"], "did you mean 'float32'"),
        (["build", "--direction", "forth"], "build.direction = 'forth'"),
        (["build", "--num-heads", "8", "--num-kv-heads", "3"], "NSASpec.num_kv_heads = 3"),
        (["build", "--selection", "mean_keys"], "did you mean 'mean_key'"),
        (["inspect", "strem_attention"], "did you mean 'stream_attention"),
        (["inspect", "combine", "--stage", "ptx"], "inspect.stage = 'ptx'"),
        (["inspect", "select_blocks_bwd"], "did you mean"),
        (["verify", "--op", "combin"], "did you mean 'combine'"),
        (["demo", "--impl", "compile"], "did you mean 'compiled'"),
    ],
)
def test_a_bad_argument_is_one_line_that_names_what_is_allowed(store, arguments, said):
    assert said in failure(*arguments)


def test_an_unknown_option_or_command_names_the_nearest():
    assert "--target" in run("build", "--targt", "cpu", code=2).stderr
    assert "build" in run("biuld", code=2).stderr


def test_version():
    from nsa_codegen import __version__

    assert run("--version").stdout.strip() == __version__


def test_demo_trains_checks_saves_and_writes(store, tmp_path):
    saved = tmp_path / "model.safetensors"
    result = run("demo", "--steps", "12", "--save", str(saved), "--json")
    report = json.loads(result.stdout)
    assert report["steps"] == 12 and report["agrees"]
    assert report["loss_after"] < report["loss_before"] - 1
    assert report["model_bytes"] == saved.stat().st_size and report["saved"] == str(saved)
    assert report["train_tokens_per_second"] > 0 and report["forward_tokens_per_second"] > 0
    assert len(report["continuation"]) > 0


def test_demo_says_what_to_install_without_safetensors(store, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "safetensors" else found(name, *a)
    )
    assert "pip install 'nsa_codegen[train]'" in failure("demo")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which it would run on")
def test_verify_on_a_gpu_that_is_not_there_says_that_nothing_was_run():
    assert "there is no GPU here: nothing was run on one" in failure("verify", "--target", "native")


def test_one_cause_is_said_once_with_the_number_of_its_kernels(tmp_path, monkeypatch):
    descs = [KernelDesc.of("combine", "float32", paths=2, dv=dv, gates="scalar") for dv in (8, 16, 24)]

    def built(*errors):
        requests = [Request(desc=d, schedule=CpuSchedule(), target=TARGETS["generic"]) for d in descs]
        return [Built(request=r, how="failed", seconds=0.0, error=e) for r, e in zip(requests, errors, strict=True)]

    missing = [LoweringError("TileLang is not installed") for _ in descs]
    assert failures_of(built(*missing)) == [f"3 kernels failed alike; the first: {descs[0]}: TileLang is not installed"]
    named = [BuildForbiddenError(f"{d} is not built, and lacks {d.size('dv')}") for d in descs]
    assert failures_of(built(*named)) == [f"3 kernels failed alike; the first: {named[0]}"]
    assert failures_of(built(None, missing[0], CompilerError(f"{descs[2]} is refused"))) == [
        f"{descs[1]}: TileLang is not installed", f"{descs[2]} is refused",
    ]  # fmt: skip
    monkeypatch.setenv("NSA_CODEGEN_HOME", str(tmp_path))
    monkeypatch.setenv("NSA_CODEGEN_NO_BUILD", "1")
    said = run("build", *SMALL, "--direction", "fwd", "--jobs", "1", code=1).stderr
    rows = json.loads(run("build", *SMALL, "--direction", "fwd", "--jobs", "1", "--json", code=1).stdout)
    first = rows[0]["kernel"]
    assert said.count("error:") == 1 and f"error: {len(rows)} kernels failed alike; the first: {first} for " in said
    assert said.count(first) == 1
