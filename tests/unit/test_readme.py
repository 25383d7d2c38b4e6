"""The README's example runs as it is, and its tables are complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from nsa_codegen.cli import app
from nsa_codegen.cli.env import VARIABLES

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_python_block_runs_as_it_is(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path, env={**os.environ, "NSA_CODEGEN_HOME": str(tmp_path / "store")},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 64])" in done.stdout and "tensor(True)" in done.stdout
    assert "path window: softmax over tokens in [t-63, t+1)" in done.stdout


def test_every_command_and_variable_is_in_a_table():
    for command in app.registered_commands:
        assert re.search(rf"^\| `{command.name}\b", README, re.MULTILINE), command.name
    for variable in VARIABLES:
        assert f"| `{variable}` |" in README


def test_the_shown_program_is_what_inspect_prints():
    from nsa_codegen import NSASpec

    assert str(NSASpec.seed().program()) in README


def test_the_shown_schedule_is_what_inspect_prints():
    ((command, shown),) = re.findall(
        r"^\$ nsa-codegen (inspect .*--stage schedule)\n((?:[^$].*\n)+)", README, re.MULTILINE
    )
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0 and done.stdout == shown


def test_the_shown_number_of_kernels_is_what_build_makes():
    from nsa_codegen import NSASpec
    from nsa_codegen.requests import needed_requests
    from nsa_codegen.target import parse_target

    ((options, count),) = re.findall(r"^\$ nsa-codegen build (--num-heads .*)\n(\d+) kernels in", README, re.MULTILINE)
    words = options.replace("--", "").replace("-", "_").split()
    spec = NSASpec(**dict(zip(words[::2], map(int, words[1::2]), strict=True)))
    for target in ("x86_64_v4", "x86_64_v3", "generic"):
        assert len(needed_requests(spec.program(), "float32", parse_target(target))) == int(count), target


def test_the_make_targets_exist():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for target in re.findall(r"make (\w+) ", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
