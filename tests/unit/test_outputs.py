"""Files that can't be written: one red line, before the work where there is much of it."""

import importlib

import pytest
from typer.testing import CliRunner

from nsa_codegen import demo
from nsa_codegen.cli import app
from nsa_codegen.errors import OutputError
from nsa_codegen.outputs import require_file, require_folder

NOWHERE = "/proc/nowhere"  # no folder can be made there, not even by root


def failure(*arguments):
    """Return the one line on stderr of a command that fails."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 1 and done.stdout == "", done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    (line,) = done.stderr.strip().splitlines()
    return line


def refuse(*_, **__):
    pytest.fail("the work began")


def test_folders_are_made_and_what_can_not_be_is_named(tmp_path):
    require_file("demo.save", tmp_path / "a" / "b" / "model")
    require_folder("tune.logs", tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c"] and not any((tmp_path / "c").iterdir())
    with pytest.raises(OutputError, match=r"demo\.save = '.*' is a folder; give a file"):
        require_file("demo.save", tmp_path)
    (tmp_path / "file").write_text("kept")
    require_file("demo.save", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(OutputError, match=r"tune\.logs = .*can't be written \(File exists\); give a folder that can"):
        require_folder("tune.logs", tmp_path / "file")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["tune", "--logs", NOWHERE, "--op", "combine"], "tune.logs"),
        (["tune", "--report", NOWHERE], "tune.report"),
        (["replay", "--schedules", NOWHERE], "replay.schedules"),
        (["bench", "--output", f"{NOWHERE}/r.json"], "bench.output"),
        (["demo", "--save", f"{NOWHERE}/m.safetensors"], "demo.save"),
    ],
)
def test_where_results_can_not_be_written_is_told_before_the_work(arguments, option, monkeypatch):
    monkeypatch.setattr("nsa_codegen.bench.suite.run_suite", refuse)
    monkeypatch.setattr(demo, "read_sources", refuse)
    monkeypatch.setattr("nsa_codegen.tuning.replay.replay", refuse)
    monkeypatch.setattr("nsa_codegen.tuning.report.write_report", refuse)
    monkeypatch.setattr(importlib.import_module("nsa_codegen.cli.tune"), "_search", refuse)
    line = failure(*arguments)
    assert line.startswith(f"error: {option} = '{NOWHERE}") and "can't be written (No such file or directory)" in line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x can't be read or written: Permission denied"),
        (OSError(28, "No space left on device"), "the system refused: [Errno 28] No space left on device"),
        (MemoryError("Unable to allocate 9 GiB"), "out of memory (Unable to allocate 9 GiB); ask for fewer tokens"),
    ],
)
def test_whatever_fails_in_a_command_is_one_line(error, said, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(importlib.import_module("nsa_codegen.cli.stored"), "KernelStore", fail)
    assert failure("list").startswith(f"error: {said}")


def test_a_cache_that_can_not_be_written_is_one_line(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", NOWHERE)
    assert "/proc/nowhere can't be read or written" in failure("execute", "combine", "--tokens", "3")


@pytest.mark.parametrize("option", ["--tokens", "--batch"])
def test_a_prediction_for_more_than_memory_holds_is_refused(option):
    done = CliRunner().invoke(app, ["explain", "stream_attention", option, "99999999999"])
    assert done.exit_code == 2 and f"Invalid value for '{option}'" in done.stderr and "Traceback" not in done.stderr


def test_a_training_that_is_interrupted_leaves_its_model(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_build_kernels", lambda spec, out: None)
    monkeypatch.setattr(demo, "_held_out_loss", lambda model, tokens: 1.0)
    monkeypatch.setattr(demo, "_train", interrupt)
    saved = tmp_path / "new" / "m.safetensors"
    done = CliRunner().invoke(app, ["demo", "--impl", "reference", "--save", str(saved)])
    assert done.exit_code == 130 and f"interrupted; the model as it was is in {saved}" in done.stdout
    from safetensors.torch import load_file

    assert set(load_file(saved)) == set(demo.ByteLM(**demo.OPTIONS).state_dict())
