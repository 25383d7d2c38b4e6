"""The URL of a shared study: it may hold a password, which no message, log or meta shows."""

import importlib
import sys
from pathlib import Path

import optuna
import pytest
import tuning_fakes as fakes
from typer.testing import CliRunner

from nsa_codegen.cli import app
from nsa_codegen.errors import TuningError
from nsa_codegen.target import CPU_TARGETS
from nsa_codegen.tuning import search
from nsa_codegen.tuning.search import Tuner, require_new_run
from nsa_codegen.tuning.storage import shown_url, without_passwords
from nsa_codegen.tuning.study import STORAGE_ERRORS, open_storage

URL = "nonsense://tuner:s3cr3t@db.example:5432/study"
SHOWN = "nonsense://tuner:***@db.example:5432/study"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, SHOWN),
        (f"--storage={URL}", f"--storage={SHOWN}"),
        ("postgresql+psycopg://u:p:w/d@x@h/d", "postgresql+psycopg://u:***@h/d"),
        ("postgresql://h/d?user=u&password=s3cr3t&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("journal:///tmp/a:b/c.journal", "journal:///tmp/a:b/c.journal"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("--trials", "--trials"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    assert shown_url(url) == shown and shown_url(shown) == shown


def test_a_message_that_quotes_the_url_loses_the_password():
    url = "db://u:a\\b'c@h/d"
    assert without_passwords(f"{url} and {url!r}", url).count("db://u:***@h/d") == 2


def test_errors_of_a_storage_show_no_password(tmp_path, monkeypatch):
    options = fakes.options_in(tmp_path, storage=URL)
    for failing in (lambda: Tuner(options), lambda: require_new_run(options)):
        with pytest.raises(TuningError, match="can't be opened") as caught:
            failing()
        assert SHOWN in str(caught.value) and "s3cr3t" not in str(caught.value)
    monkeypatch.setattr(search, "open_storage", lambda url: None)

    def fail(self, problem):
        raise STORAGE_ERRORS[1](f"no answer from {URL}")

    monkeypatch.setattr(Tuner, "_tune", fail)
    with Tuner(options) as tuner, pytest.raises(TuningError, match="the storage nonsense") as caught:
        tuner.tune(fakes.LightProblem())
    assert str(caught.value).count(SHOWN) == 2 and "s3cr3t" not in str(caught.value)


def test_a_run_that_exists_is_named_without_the_password(tmp_path, monkeypatch):
    options = fakes.options_in(tmp_path, storage=URL)
    monkeypatch.setattr(search, "open_storage", lambda url: None)
    monkeypatch.setattr(search, "study_names", lambda storage: (f"{options.meta.run} {options.target.name} x",))
    with pytest.raises(TuningError, match="exists already") as caught:
        require_new_run(options)
    assert SHOWN in str(caught.value) and "s3cr3t" not in str(caught.value)


def test_the_command_that_a_log_keeps_has_no_password(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/nsa-codegen", "tune", "--storage", URL, f"--storage={URL}"])
    command = importlib.import_module("nsa_codegen.cli.tune")  # the package's attribute is the function
    options = command._options(CPU_TARGETS["generic"], run="r", storage=URL, logs=tmp_path, jobs=1)
    assert options.storage == URL
    assert options.meta.command == f"nsa-codegen tune --storage '{SHOWN}' '--storage={SHOWN}'"


def test_runs_of_one_name_into_two_folders_of_logs_share_nothing(tmp_path, monkeypatch):
    command, target = importlib.import_module("nsa_codegen.cli.tune"), CPU_TARGETS["generic"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def options(logs):
        return command._options(target, run="r", storage=None, logs=logs, jobs=1)

    one, same, other = (options(Path(p)) for p in ("logs", tmp_path / "logs", "others"))
    assert one.storage == same.storage != other.storage and one.logs == same.logs == tmp_path / "logs"
    assert one.storage.startswith(f"journal:///{tmp_path / 'cache' / 'nsa_codegen' / 'tuning' / 'r-generic-'}")
    optuna.create_study(storage=open_storage(one.storage), study_name="r generic combine")
    with pytest.raises(
        TuningError, match=r"the run 'r' exists already for generic \(in journal:///.*/r-generic-.*journal\)"
    ):
        require_new_run(same)
    require_new_run(other)


def test_the_command_line_shows_no_password(tmp_path):
    done = CliRunner().invoke(app, ["tune", "--storage", URL, "--logs", str(tmp_path)])
    assert done.exit_code == 1 and SHOWN in done.output and "s3cr3t" not in done.output
