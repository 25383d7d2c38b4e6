"""Building and loading: the compiler, the life cycle of an artifact, and what a process does without either."""

from __future__ import annotations

import array
import dataclasses
import importlib.util
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nsa_codegen import build as build_module
from nsa_codegen import compiler as compiler_module
from nsa_codegen.build import Artifact, Built, Request, build_all
from nsa_codegen.compiler import compile_flags, compile_shared, find_compiler
from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import (
    BuildForbiddenError,
    CompilerError,
    CorruptArtifactError,
    InputError,
    LoweringError,
    TargetError,
)
from nsa_codegen.schedule import CpuSchedule, GpuSchedule, Schedule
from nsa_codegen.source import Argument, KernelSource
from nsa_codegen.store import KernelStore
from nsa_codegen.target import CPU_TARGETS, TARGETS, CpuTarget, Target, native_target, runs_here

ROOT = Path(__file__).parents[2]
NATIVE = native_target().serving("float32")
DESC = KernelDesc.of("scale", "float32", dk=64)
SCHEDULE = CpuSchedule()
TEXT = """\
#include <cstdint>
typedef int32_t (*nsa_task_fn)(void* context, int32_t lo, int32_t hi, int32_t worker);
typedef int32_t (*nsa_parallel_fn)(nsa_task_fn task, void* context, int32_t tasks, int32_t threads);
struct Context { const float* x; float* y; int32_t add; float factor; };
static int32_t body(void* context, int32_t lo, int32_t hi, int32_t) {
  const Context& a = *static_cast<const Context*>(context);
  for (int32_t i = lo; i < hi; ++i) a.y[i] = a.factor * a.x[i] + a.add + FACT;
  return 0;
}
union nsa_value { void* pointer; int32_t int32; float float32; };
extern "C" int32_t nsa_scale(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, const nsa_value* a) {
  if (!a[0].pointer) return 5;
  Context context{(const float*)a[0].pointer, (float*)a[1].pointer, a[2].int32, a[3].float32};
  return parallel(body, &context, tasks, threads);
}
"""
ARGUMENTS = tuple(
    Argument(name=n, kind=k) for n, k in (("x", "pointer"), ("y", "pointer"), ("add", "int32"), ("factor", "float32"))
)


def source(fact: str = "0") -> KernelSource:
    return KernelSource(text=TEXT.replace("FACT", fact), entry="nsa_scale", arguments=ARGUMENTS)


class Lowering:
    """Stands for `lowering.lower`, and counts its calls."""

    def __init__(self, fact: str = "0") -> None:
        self.calls, self.fact = 0, fact

    def __call__(self, desc: KernelDesc, schedule: Schedule, target: Target) -> KernelSource:
        self.calls += 1
        return source(self.fact)


def refuse(*_: object) -> KernelSource:
    raise AssertionError("lowered, where the text was to be had")


def results(artifact: Artifact, count: int = 100, threads: int = 2) -> list[float]:
    x, y = array.array("f", range(count)), array.array("f", [0.0] * count)
    artifact.launch(count, x.buffer_info()[0], y.buffer_info()[0], 3, 0.5, threads=threads)
    return list(y)


EXPECTED = [0.5 * i + 3 for i in range(100)]


@pytest.fixture
def store(tmp_path: Path) -> KernelStore:
    return KernelStore(tmp_path / "store")


def build(store: KernelStore, lower: Callable[..., KernelSource] | None = None, target: Target = NATIVE) -> Artifact:
    return Artifact.build(DESC, SCHEDULE, target, store=store, lower=lower or Lowering())


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_life_cycle(store: KernelStore) -> None:
    lower = Lowering()
    assert Artifact.try_load(DESC, SCHEDULE, NATIVE, store=store) is None
    assert not store.root.exists(), "try_load wrote"
    built = Artifact.load(DESC, SCHEDULE, NATIVE, store=store, lower=lower)
    assert results(built) == EXPECTED
    assert results(Artifact.load(DESC, SCHEDULE, NATIVE, store=store, lower=refuse)) == EXPECTED
    assert results(build(store, refuse)) == EXPECTED
    loaded = Artifact.try_load(DESC, SCHEDULE, NATIVE, store=store)
    assert loaded is not None and loaded.entry == built.entry
    assert results(loaded) == EXPECTED
    assert lower.calls == 1
    manifest = built.entry.manifest
    assert manifest.entry == "nsa_scale" and manifest.arguments == ARGUMENTS
    assert manifest.binary.flags == compile_flags(NATIVE)
    assert manifest.binary.compiler_version == find_compiler().version


def test_the_pool_is_an_artifact_of_the_store(store: KernelStore) -> None:
    build(store)
    kinds = {f"{e.key.op}_{e.key.direction}": e for e in store.entries()}
    assert kinds.keys() == {"scale_fwd", "thread_pool_fwd"}
    pool = kinds["thread_pool_fwd"]
    assert pool.text == (ROOT / "nsa_codegen" / "runtime" / "pool.cpp").read_text()
    assert pool.key.templates != kinds["scale_fwd"].key.templates, "templates do not decide the pool's text"


def test_without_the_pool_a_kernel_is_not_loaded_but_built(store: KernelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    build(store)
    shutil.rmtree(store.root / NATIVE.name / "thread_pool_fwd")
    monkeypatch.setattr(build_module, "_pools", {})
    assert Artifact.try_load(DESC, SCHEDULE, NATIVE, store=store) is None
    assert results(Artifact.load(DESC, SCHEDULE, NATIVE, store=store, lower=refuse)) == EXPECTED


@pytest.mark.parametrize("target", [t for t in CPU_TARGETS.values() if runs_here(t)], ids=lambda t: t.name)
def test_every_target_of_this_machine(store: KernelStore, target: Target) -> None:
    lower = Lowering("(NSA_VECTOR_BYTES * 100 + NSA_VECTOR_REGISTERS)")
    value = target.vector_bytes * 100 + target.vector_registers
    assert results(build(store, lower, target)) == [e + value for e in EXPECTED]


def test_a_target_of_another_machine_is_refused(store: KernelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = CpuTarget(
        name="x86_64_v9", kind="cpu", vector_bytes=64, vector_registers=32, flags=(), features=frozenset({"avx9999"})
    )
    for call in (Artifact.try_load, Artifact.load, Artifact.build):
        with pytest.raises(TargetError, match=r"x86_64_v9.*lacks \['avx9999'\].*target 'cpu'"):
            call(DESC, SCHEDULE, foreign, store=store)
    gpu = TARGETS["sm_90a"]
    with pytest.raises(TargetError, match="does not run on this machine"):
        Artifact.try_load(DESC, SCHEDULE, gpu, store=store)
    assert not store.root.exists()


def test_launch_reports_status_and_wrong_values(store: KernelStore) -> None:
    artifact = build(store)
    with pytest.raises(build_module.KernelFailedError, match=r"nsa_scale returned status 5 \(tasks=4, threads=1\)"):
        artifact.launch(4, 0, 0, 0, 0.0, threads=1)
    with pytest.raises(InputError, match=r"nsa_scale got 3 values, .*; it takes \['x: pointer', .*'factor: float32'\]"):
        artifact.launch(4, 0, 0, 0, threads=1)
    with pytest.raises(InputError, match="nsa_scale got 4 values"):
        artifact.launch(4, 0, 0, 1 << 31, 0.0, threads=1)


def test_a_launch_costs_microseconds(store: KernelStore) -> None:
    artifact = build(store)
    x, y = array.array("f", [1.0]), array.array("f", [0.0])
    values = (x.buffer_info()[0], y.buffer_info()[0], 0, 2.0)

    def round_() -> float:
        start = time.perf_counter()
        for _ in range(2000):
            artifact.launch(1, *values, threads=1)
        return (time.perf_counter() - start) / 2000

    assert min(round_() for _ in range(5)) < 10e-6


@pytest.mark.parametrize("part", ["kernel.cpp", "key.json", "manifest.json", "library"])
def test_a_damaged_part_is_named_and_built_again(
    store: KernelStore, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    entry = build(store).entry
    path = entry.folder / (entry.manifest.binary.name if part == "library" else part)
    whole = path.read_bytes()
    path.unlink()  # the loaded library stays mapped; a new file takes its name
    path.write_bytes(whole[: len(whole) // 2])
    assert Artifact.try_load(DESC, SCHEDULE, NATIVE, store=store) is None
    assert "is damaged" in caplog.text and str(entry.folder) in caplog.text
    lower = Lowering()
    assert results(Artifact.load(DESC, SCHEDULE, NATIVE, store=store, lower=lower)) == EXPECTED
    assert lower.calls == (0 if part == "library" else 1), "a damaged binary needs no lowering"
    assert {f.state for f in store.verify()} == {"good"}
    assert len(list((store.root / "quarantine").iterdir())) == 1


@pytest.mark.parametrize("part", ["kernel.cpp", "manifest.json", "library"])
def test_a_damaged_part_is_refused_where_building_is_forbidden(
    store: KernelStore, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = build(store).entry
    path = entry.folder / (entry.manifest.binary.name if part == "library" else part)
    path.unlink()
    path.write_bytes(b"short")
    monkeypatch.setenv("NSA_CODEGEN_NO_BUILD", "1")
    with pytest.raises(CorruptArtifactError, match="is damaged"):
        Artifact.load(DESC, SCHEDULE, NATIVE, store=store, lower=refuse)
    with pytest.raises(BuildForbiddenError):
        Artifact.load(DESC, SCHEDULE, NATIVE, store=store, lower=refuse)


def test_building_forbidden(store: KernelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(store)
    monkeypatch.setenv("NSA_CODEGEN_NO_BUILD", "1")
    assert results(Artifact.load(DESC, SCHEDULE, NATIVE, store=store, lower=refuse)) == EXPECTED
    other = KernelDesc.of("scale", "float32", dk=80)
    for call in (Artifact.load, Artifact.build):
        with pytest.raises(BuildForbiddenError) as caught:
            call(other, SCHEDULE, NATIVE, store=store, lower=refuse)
        assert "desc.dims.dk: wanted 80, stored 64" in str(caught.value)
        assert str(built.entry.folder) in str(caught.value)
        assert "Unset NSA_CODEGEN_NO_BUILD" in str(caught.value)
    assert Artifact.try_load(other, SCHEDULE, NATIVE, store=store) is None
    monkeypatch.setenv("NSA_CODEGEN_NO_BUILD", "0")
    assert results(Artifact.load(other, SCHEDULE, NATIVE, store=store, lower=Lowering())) == EXPECTED


def test_a_fresh_clone_compiles_without_lowering(store: KernelStore, caplog: pytest.LogCaptureFixture) -> None:
    """Sources, keys and manifests are under version control, binaries are not."""
    entry = build(store, Lowering("1")).entry
    for library in store.root.rglob("*.so"):
        library.unlink()
    manifest = (entry.folder / "manifest.json").read_bytes()
    assert Artifact.try_load(DESC, SCHEDULE, NATIVE, store=store) is None
    again = Artifact.load(DESC, SCHEDULE, NATIVE, store=store, lower=refuse)
    assert results(again) == [e + 1 for e in EXPECTED]
    assert (entry.folder / "manifest.json").read_bytes() == manifest, "the same compiler makes the same bytes"
    assert not caplog.records


def test_changed_flags_compile_the_stored_text_again(store: KernelStore) -> None:
    first = build(store)
    changed = dataclasses.replace(NATIVE, flags=(*NATIVE.flags, "-DEXTRA"))
    assert Artifact.try_load(DESC, SCHEDULE, changed, store=store) is None
    second = Artifact.load(DESC, SCHEDULE, changed, store=store, lower=refuse)
    assert results(second) == EXPECTED
    assert second.entry.folder == first.entry.folder
    assert "-DEXTRA" in second.entry.manifest.binary.flags


def test_replaced_text_is_what_runs_in_this_process(store: KernelStore) -> None:
    """A binary of another content has another file name, so the loader can't hand back the one it has open."""
    first = build(store, Lowering("1"))
    shutil.rmtree(first.entry.folder)
    second = build(store, Lowering("2"))
    assert results(first) == [e + 1 for e in EXPECTED]
    assert results(second) == [e + 2 for e in EXPECTED]


def test_no_compiler_names_what_would_do(store: KernelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(CompilerError, match=r"\$CXX.*g\+\+.*clang\+\+.*ziglang"):
        build(store)
    assert store.verify() == ()


def test_the_order_of_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compiler_module, "_known", lambda command: command)
    assert find_compiler() == (sys.executable, "-m", "ziglang", "c++")
    for name in ("clang++", "g++"):
        shutil.copy(fake_compiler(tmp_path, "exit 0"), tmp_path / name)
        assert find_compiler() == (str(tmp_path / name),)
    own = fake_compiler(tmp_path, "exit 0")
    monkeypatch.setenv("CXX", f"{own} --wrapped")
    assert find_compiler() == (own, "--wrapped")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", f"./{Path(own).name}")
    assert find_compiler() == (own,), "it is called in the folder of the kernel"
    monkeypatch.setenv("CXX", "absent-c++")
    with pytest.raises(CompilerError, match=r"\$CXX = 'absent-c\+\+' names no program"):
        find_compiler()
    monkeypatch.setenv("CXX", "g++ '-DNAME=x")
    with pytest.raises(CompilerError, match=r"\$CXX = \"g\+\+ '-DNAME=x\" is no command \(No closing quotation\)"):
        find_compiler()


def test_zig_is_told_the_processor_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """zig refuses `x86-64-v4`, and builds for the very machine where no processor is named."""
    zig = compiler_module.Compiler(command=("python", "-m", "ziglang", "c++"), version="zig")
    spelled = {t.name: compiler_module._spelled_for(zig, compile_flags(t)) for t in CPU_TARGETS.values()}
    processors = {name: [f for f in flags if f.startswith(("-march", "-mcpu"))] for name, flags in spelled.items()}
    assert processors == {
        "x86_64_amx": ["-mcpu=x86_64_v4"],
        "x86_64_v4_bf16": ["-mcpu=x86_64_v4"],
        "x86_64_v4": ["-mcpu=x86_64_v4"],
        "x86_64_v3": ["-mcpu=x86_64_v3"],
        "aarch64": ["-mcpu=baseline"],
        "generic": ["-mcpu=baseline"],
    }


def test_a_failing_compiler_shows_command_and_output_and_leaves_nothing(store: KernelStore) -> None:
    with pytest.raises(CompilerError, match=r"ended with status 1: .*g\+\+ -std=c\+\+17 -O3") as caught:
        build(store, Lowering("undeclared_name"))
    assert "undeclared_name" in str(caught.value)
    assert store.verify() == ()
    assert [p for p in store.root.rglob("*") if p.is_file()] == []
    assert results(build(store)) == EXPECTED


def test_long_compiler_output_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, '[ "$1" = --version ] && exit 0; seq 1000; exit 3'))
    (tmp_path / "kernel.cpp").write_text("")
    with pytest.raises(CompilerError, match=r"status 3(.|\n)*\n12\n... and 988 more lines$"):
        compile_shared(tmp_path, target=NATIVE)


def test_a_compiler_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = '[ "$1" = --version ] && exit 0; sleep 60 & echo $! > child; wait'
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    (tmp_path / "kernel.cpp").write_text("")
    start = time.monotonic()
    with pytest.raises(CompilerError, match=r"took more than 0\.3 s"):
        compile_shared(tmp_path, target=NATIVE, seconds=0.3)
    assert time.monotonic() - start < 20
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    deadline = time.monotonic() + 20  # a killed process that is about to run goes a moment later
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(child)


def _lives(stat: Path) -> bool:
    try:
        return ") Z " not in stat.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_library_without_its_entry_is_named(store: KernelStore) -> None:
    wrong = dataclasses.replace(source(), entry="nsa_absent")
    with pytest.raises(CorruptArtifactError, match=r"nsa_absent"):
        build(store, lambda *_: wrong)


def test_build_all_reports_each_outcome_in_order(
    store: KernelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lower_by_hand.py").write_text(
        "from nsa_codegen.errors import LoweringError\n"
        "from nsa_codegen.source import Argument, KernelSource\n"
        f"TEXT = {source().text!r}\n"
        "KINDS = (('x', 'pointer'), ('y', 'pointer'), ('add', 'int32'), ('factor', 'float32'))\n"
        "def lower(desc, schedule, target):\n"
        "    if desc.size('dk') == 3:\n"
        "        raise LoweringError('three is refused')\n"
        "    text = f'// {desc}\\n{TEXT}'\n"
        "    arguments = tuple(Argument(name=n, kind=k) for n, k in KINDS)\n"
        "    return KernelSource(text=text, entry='nsa_scale', arguments=arguments)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import lower_by_hand

    def request(dk: int) -> Request:
        return Request(desc=KernelDesc.of("scale", "float32", dk=dk), schedule=SCHEDULE, target=NATIVE)

    build_all([request(1)], store=store, lower=lower_by_hand.lower)
    shutil.rmtree(store.root / NATIVE.name / "thread_pool_fwd")
    seen: list[Built] = []
    built = build_all(
        [request(dk) for dk in range(5)], jobs=2, on_done=seen.append, store=store, lower=lower_by_hand.lower
    )
    assert [b.request for b in built] == [request(dk) for dk in range(5)]
    assert [b.how for b in built] == ["lowered", "stored", "lowered", "failed", "lowered"]
    assert isinstance(built[3].error, LoweringError) and str(built[3].error) == "three is refused"
    assert sorted(seen, key=lambda b: b.request.desc.size("dk")) == list(built)
    assert {f.state for f in store.verify()} == {"good"} and len(store.verify()) == 5
    loaded = Artifact.try_load(request(4).desc, SCHEDULE, NATIVE, store=store)
    assert loaded is not None and results(loaded) == EXPECTED
    for library in store.root.rglob("*.so"):
        library.unlink()
    assert {b.how for b in build_all([request(0), request(2)], jobs=1, store=store, lower=refuse)} == {"compiled"}


def test_float32_kernels_and_the_pool_are_shared_by_cpus_that_differ_in_pairs_only(store: KernelStore) -> None:
    """A store filled on one of them serves the others: texts, binaries and flags are the same."""
    plain, *paired = (CPU_TARGETS[n] for n in ("x86_64_v4", "x86_64_v4_bf16", "x86_64_amx"))
    half = KernelDesc.of("scale", "bfloat16", dk=64)
    (first,) = build_all([Request(desc=DESC, schedule=SCHEDULE, target=plain)], store=store, lower=Lowering())
    assert first.error is None and first.folder is not None
    for target in paired:
        wanted = [Request(desc=d, schedule=SCHEDULE, target=target) for d in (DESC, half)]
        assert [r.target for r in wanted] == [plain, target]
        same, own = build_all(wanted, store=store, jobs=1, lower=Lowering())
        assert (same.how, same.folder, own.how) == ("stored", first.folder, "lowered")
        assert own.folder is not None and own.folder.relative_to(store.root).parts[0] == target.name
    assert [e.key.arch for e in store.entries() if e.key.op == "thread_pool"] == ["x86_64_v4"]


def test_builds_killed_at_random_moments(store: KernelStore) -> None:
    """Whole builds, compiler included; `test_store` kills 200 publications with binaries made at once."""
    generator = random.Random(3)
    for _ in range(8):
        child = os.fork()
        if child == 0:
            try:
                build(store)
                signal.pause()
            finally:
                os._exit(1)
        time.sleep(generator.uniform(0.0, 0.7))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert {f.state for f in store.verify()} <= {"good"}
        if generator.random() < 0.5:
            shutil.rmtree(store.root / NATIVE.name, ignore_errors=True)
    assert results(build(store)) == EXPECTED
    assert list((store.root / ".tmp").iterdir()) == []


def test_importing_writes_and_prints_nothing_and_loads_no_compiler_stack(tmp_path: Path) -> None:
    script = (
        "import sys, nsa_codegen.build\n"
        "heavy = {'tilelang', 'tvm', 'torch', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    names = ("HOME", "XDG_CACHE_HOME", "NSA_CODEGEN_HOME", "TMPDIR")
    environment = {**os.environ, **{n: str(tmp_path / n) for n in names}, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_warm_load_needs_neither_tilelang_nor_a_compiler_and_takes_milliseconds(store: KernelStore) -> None:
    build(store)
    script = """
import sys, time
for name in ("tilelang", "tvm", "torch"):
    sys.modules[name] = None  # importing it fails
from nsa_codegen.build import Artifact
from nsa_codegen.desc import KernelDesc
from nsa_codegen.schedule import CpuSchedule
from nsa_codegen.target import native_target
start = time.perf_counter()
artifact = Artifact.load(KernelDesc.of("scale", "float32", dk=64), CpuSchedule(), native_target())
print(time.perf_counter() - start)
import array
x, y = array.array("f", [4.0]), array.array("f", [0.0])
artifact.launch(1, x.buffer_info()[0], y.buffer_info()[0], 3, 0.5, threads=1)
print(y[0])
"""
    environment = {"NSA_CODEGEN_HOME": str(store.root), "PATH": "/absent", "PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        took, value = done.stdout.split()
        assert float(value) == 5.0
        seconds.append(float(took))
    assert min(seconds) < 0.05


def test_a_target_without_a_compiler_is_stored_as_source_only(store: KernelStore) -> None:
    text = KernelSource(text="// a kernel", entry="scale", arguments=(Argument(name="x", kind="tensor"),))
    request = Request(desc=DESC, schedule=GpuSchedule(), target=TARGETS["gfx942"])
    (made,) = build_all([request], store=store, jobs=1, lower=lambda *_: text)
    assert made.how == "source only: no HIP compiler" and made.error is None
    (entry,) = store.entries()
    assert entry.library is None and (entry.folder / "kernel.hip").read_text() == "// a kernel"
    assert [(f.state, f.reason) for f in store.verify()] == [("good", "source only")]
    (again,) = build_all([request], store=store, jobs=1, lower=lambda *_: pytest.fail("it is stored"))
    assert again.how == "stored, source only: no HIP compiler"
