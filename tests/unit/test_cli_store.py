"""What the command line says of a store that is damaged or none, and of kernels named by their keys."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from nsa_codegen.cli import app
from nsa_codegen.cli.shown import find_kernels
from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import InputError, StoreError
from nsa_codegen.manifest import RequestKey
from nsa_codegen.schedule import CpuSchedule, GpuSchedule
from nsa_codegen.source import KernelSource
from nsa_codegen.spec import NSASpec
from nsa_codegen.store import KernelStore
from nsa_codegen.target import TARGETS

V4, PAIRED, GPU = (TARGETS[n] for n in ("x86_64_v4", "x86_64_v4_bf16", "gfx942"))


def run(*arguments, code=0):
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code and "Traceback" not in done.output, done.output
    return done


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of texts alone: twenty kernels of the CPU and one of a GPU."""
    monkeypatch.setenv("NSA_CODEGEN_HOME", str(tmp_path))
    made = KernelStore()
    wanted = [(f"{i}", V4, CpuSchedule()) for i in range(20)] + [("gpu", GPU, GpuSchedule())]
    for name, target, schedule in wanted:
        desc = KernelDesc.of("combine", "float32" if target is V4 else "bfloat16", paths=2, dv=8, gates=name)
        made.publish(
            RequestKey.of(desc, schedule, target), KernelSource(text=name, entry="f", arguments=()), lambda _: None
        )
    return made


def find(name, target=V4, **given):
    return find_kernels(name, NSASpec.seed().program(), "float32", target, **given)


def test_broken_entries_are_listed_as_such_and_are_exit_code_1(store):
    gpu, first, second, *others = store.entries()
    (first.folder / "manifest.json").write_text("{")
    (second.folder / "key.json").unlink()
    done = run("list", "--json", code=1)
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert len(rows) == 21 and [rows[e.folder.name]["built"] for e in (gpu, *others)] == ["source only"] * 19
    broken = rows[first.folder.name]
    assert (broken["built"], broken["architecture"], broken["kernel"]) == ("broken", V4.name, "combine_fwd")
    assert "manifest.json is not JSON" in broken["reason"] and rows[second.folder.name]["built"] == "broken"
    assert f"2 of 21 folders are broken, {first.folder}: manifest.json is not JSON" in done.stderr
    table = run("list", code=1)
    assert "19 kernels in" in table.stdout and table.stdout.count(" broken ") == 2
    assert store.entries() == (gpu, *others)


@pytest.mark.parametrize("command", [["list"], ["verify", "--stored-only"], ["inspect", "0123456789ab"]])
def test_a_store_that_is_a_file_is_an_error(tmp_path, monkeypatch, command):
    place = tmp_path / "file"
    place.write_text("")
    monkeypatch.setenv("NSA_CODEGEN_HOME", str(place))
    done = run(*command, code=1)
    assert f"the kernel store {place} is a file; set NSA_CODEGEN_HOME to a folder" in done.stderr and done.stdout == ""
    monkeypatch.setenv("NSA_CODEGEN_HOME", str(tmp_path / "none"))
    assert KernelStore().entries() == () and KernelStore().verify() == ()
    with pytest.raises(StoreError, match="is a file"):
        KernelStore(place).verify()


def test_any_beginning_of_a_key_that_is_one_kernels_names_it(store):
    keys = {e.key.digest: e for e in store.entries()}
    for digest, entry in keys.items():
        length = next(n for n in range(1, 65) if sum(k.startswith(digest[:n]) for k in keys) == 1)
        for name in {digest[:length], digest[:12], digest}:
            (found,) = find(name)
            assert found.entry == entry
    common = next(k[0] for k in keys if sum(o[0] == k[0] for o in keys) > 1)
    with pytest.raises(InputError, match=rf"inspect: '{common}' begins the keys of \[.*give more of the key"):
        find(common)


def test_many_kernels_of_one_beginning_are_not_all_listed(store, monkeypatch):
    alike = [SimpleNamespace(folder=Path(f"k{i}"), key=SimpleNamespace(digest=f"ab{i:062}")) for i in range(21)]
    monkeypatch.setattr(KernelStore, "entries", lambda self: alike)
    with pytest.raises(InputError, match=r"begins the keys of \[('[^']*',? ?){5}\] and 16 more; give more"):
        find("ab")


def test_a_stored_kernel_of_another_target_than_was_asked_for_is_an_error(store):
    (gpu,) = (e for e in store.entries() if e.key.arch == GPU.name)
    cpu = store.entries()[-1]
    for name in (gpu.folder.name, gpu.key.key12):
        with pytest.raises(InputError, match="is stored for gfx942, and --target x86_64_v4 is another: leave --target"):
            find(name, only_there=True)
        assert find(name)[0].target == find(name, GPU, only_there=True)[0].target == GPU
    assert find(cpu.folder.name, PAIRED, only_there=True)[0].target == V4  # whose float32 kernels are the same
    said = run("inspect", gpu.folder.name, "--target", "sm_90a", "--stage", "schedule", code=1).stderr
    assert "is stored for gfx942, and --target sm_90a is another" in said
    assert "gfx942" in run("inspect", gpu.folder.name, "--stage", "schedule").stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--report", "x.json", "--op", "combine"], "verify.report is an option of --target native, not of cpu"),
        (["--target", "native", "--op", "combine"], "verify.op is an option of --target cpu, not of native"),
        (["--target", "native", "--stored-only"], "verify.stored_only is an option of --target cpu, not of native"),
    ],
)
def test_options_of_verify_that_would_do_nothing_are_refused(given, said):
    assert said in run("verify", *given, code=1).stderr
