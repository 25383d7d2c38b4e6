"""`nsa-codegen execute`: what it prints, its JSON, and what it says of a kernel that is at fault."""

import json

import pytest
from typer.testing import CliRunner

from nsa_codegen import dispatch
from nsa_codegen.cli import app
from nsa_codegen.executor import Finding, Report

SMALL = ["--num-heads", "2", "--head-dim", "16", "--window-size", "8", "--block-size", "16", "--tokens", "20"]


@pytest.fixture(autouse=True)
def users_cache(cache, tmp_path, monkeypatch):
    """Let the user's cache directory be that of the tests."""
    (tmp_path / "nsa_codegen").mkdir()
    cache.mkdir(parents=True, exist_ok=True)
    (tmp_path / "nsa_codegen" / "executor").symlink_to(cache.resolve())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["execute", *arguments])
    assert result.exit_code == code, result.output
    return result


def failure(*arguments):
    result = run(*arguments, code=1)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


def test_json_says_what_ran_and_how_accurate_it_is():
    (item,) = json.loads(run("combine_bwd", *SMALL, "--order", "random", "--seed", "3", "--json").stdout)
    assert item["kernel"].startswith("combine_bwd(float16")
    assert (item["target"], item["order"], item["seed"], item["status"], item["passed"]) == (
        "sm_90a", "random", 3, "passed", True,
    )  # fmt: skip
    assert item["sizes"]["tokens"] == 20
    assert item["launches"] == 1 and item["instructions"] > 0 and item["findings"] == []
    assert {a["name"] for a in item["accuracy"]} == {"douts0", "douts1", "douts2", "dgates"}
    assert all(0 <= a["error"] <= a["allowed"] for a in item["accuracy"])


def test_the_table_shows_status_and_errors():
    text = run("combine", *SMALL).stdout
    assert "combine_fwd(float16" in text and "on sm_90a" in text
    assert "passed:" in text and "1 launches" in text
    assert "allowed" in text and "out" in text


def test_findings_are_shown_with_their_lines_and_fail(monkeypatch):
    from nsa_codegen.executor import launch

    found = Finding(
        kind="race", kernel="combine", line=12, other_line=9, block=(1, 0, 0), lane=33, address=64, text="x"
    )

    def execute(*arguments, **options):
        return [Report(status="findings", findings=(found,), instructions=5, seconds=0.1)]

    dispatch.gpu_kernel.cache_clear()
    monkeypatch.setattr(launch, "execute", execute)
    text = run("combine", *SMALL, code=1).stdout
    assert "combine:12 (with line 9): race: x [block (1, 0, 0), thread 33, address 0x40]" in text
    (item,) = json.loads(run("combine", *SMALL, "--json", code=1).stdout)
    assert (item["status"], item["passed"], item["accuracy"]) == ("findings", False, [])
    assert item["findings"][0]["line"] == 12
    (item,) = json.loads(run("combine_bwd", *SMALL, "--json", code=1).stdout)
    assert item["status"] == "not executed: a kernel before it failed" and not item["passed"]


def test_what_is_not_allowed_is_one_line():
    assert "the executor runs PTX; give an sm_ target" in failure("combine", *SMALL, "--target", "gfx942")
    assert "give an sm_ target" in failure("combine", *SMALL, "--target", "cpu")
    assert "did you mean 'reverse'" in failure("combine", *SMALL, "--order", "revers")
    assert "neither an op nor a stored kernel" in failure("combines", *SMALL)
