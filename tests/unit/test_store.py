"""The kernel store: keys, publishing, damage, races and kills. Binaries here are plain bytes: nothing is compiled."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nsa_codegen import manifest as manifest_module
from nsa_codegen import store as store_module
from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import CorruptArtifactError, KeyFormationError, StoreError
from nsa_codegen.manifest import Binary, Manifest, RequestKey, canonical_json, emitters_digest
from nsa_codegen.schedule import CpuSchedule
from nsa_codegen.source import Argument, KernelSource
from nsa_codegen.store import Entry, KernelStore, default_root
from nsa_codegen.target import TARGETS

ROOT = Path(__file__).parents[2]
GENERIC = TARGETS["generic"]
FLAGS = ("-O3",)


def make_key(dk: int = 64, *, op: str = "window_attention") -> RequestKey:
    return RequestKey.of(KernelDesc.of(op, "float32", dk=dk, dv=64), CpuSchedule(), GENERIC)


def make_source(key: RequestKey) -> KernelSource:
    arguments = (Argument(name="out", kind="pointer"), Argument(name="scale", kind="float32"))
    return KernelSource(text=f"// kernel of {key.digest}\n" * 50, entry="nsa_entry", arguments=arguments)


def binary_content(key: RequestKey, flags: tuple[str, ...], maker: str = "") -> bytes:
    return f"binary of {key.digest} with {flags} {maker}\n".encode() * 100


def fake_build(
    key: RequestKey, flags: tuple[str, ...] = FLAGS, maker: str = "", pause: float = 0.0
) -> Callable[[Path], Binary]:
    """Return a build step that writes `binary_content` in several steps, `pause` seconds apart."""

    def build(folder: Path) -> Binary:
        assert (folder / "kernel.cpp").exists()
        content = binary_content(key, flags, maker)
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"kernel-{sha256[:12]}.so"
        with (folder / name).open("wb") as file:
            for start in range(0, len(content), 1 + len(content) // 4):
                file.write(content[start : start + 1 + len(content) // 4])
                file.flush()
                time.sleep(pause)
        return Binary(
            name=name,
            sha256=sha256,
            size=len(content),
            compiler="/usr/bin/fake",
            compiler_version="fake 1.0",
            flags=flags,
            processor="paper",
        )

    return build


def publish(store: KernelStore, key: RequestKey, flags: tuple[str, ...] = FLAGS, maker: str = "") -> Entry:
    return store.publish(key, make_source(key), fake_build(key, flags, maker))


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(root)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
        for p in sorted(root.rglob("*"))
    }


@pytest.fixture
def store(tmp_path: Path) -> KernelStore:
    return KernelStore(tmp_path / "store")


def test_round_trip(store: KernelStore) -> None:
    key = make_key()
    assert store.lookup(key) is None
    published = publish(store, key)
    found = store.lookup(key)
    assert found == published
    assert found is not None and found.library is not None
    assert found.source == make_source(key)
    assert found.key == key
    assert found.library.read_bytes() == binary_content(key, FLAGS)
    assert found.folder.parent == store.root / "generic" / "window_attention_fwd"
    assert found.folder.name == f"f32-dk64-dv64-{key.digest[:12]}"
    assert sorted(p.name for p in found.folder.iterdir()) == sorted(
        ["kernel.cpp", "key.json", "manifest.json", found.library.name]
    )
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert manifest["key"] == key.digest
    assert manifest["source_sha256"] == hashlib.sha256(make_source(key).text.encode()).hexdigest()
    assert manifest["binary"]["sha256"] == hashlib.sha256(binary_content(key, FLAGS)).hexdigest()
    assert manifest["binary"]["compiler_version"] == "fake 1.0"
    assert store.entries() == (found,)
    assert [f.state for f in store.verify()] == ["good"]


def test_digest_is_the_sha256_of_the_canonical_json_of_the_saved_key(store: KernelStore) -> None:
    entry = publish(store, make_key())
    saved = json.loads((entry.folder / "key.json").read_text())
    canonical = json.dumps(saved, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == entry.key.digest
    assert saved["desc"]["dims"] == {"dk": 64, "dv": 64}
    assert saved["schedule"]["key_tile"] == CpuSchedule().key_tile


def test_key_is_the_same_in_other_processes_and_under_other_hash_seeds() -> None:
    script = (
        "from nsa_codegen.manifest import RequestKey\n"
        "from nsa_codegen.desc import KernelDesc\n"
        "from nsa_codegen.schedule import CpuSchedule\n"
        "from nsa_codegen.target import TARGETS\n"
        "desc = KernelDesc.of('window_attention', 'float32', dv=64, dk=64)\n"
        "print(RequestKey.of(desc, CpuSchedule(), TARGETS['generic']).digest)\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "4242")
    }
    assert digests == {make_key().digest}


def test_every_field_of_the_key_changes_the_digest() -> None:
    key = make_key()
    changed = {
        "format": key.format + 1,
        "op": "compress",
        "direction": "bwd",
        "desc": canonical_json(json.loads(key.desc) | {"dtype": "bfloat16"}),
        "schedule": canonical_json(json.loads(key.schedule) | {"key_tile": 128}),
        "arch": "x86_64_v3",
        "facts": "32x16",
        "pass_options": "{}",
        "templates": "0" * 64,
        "tilelang": "0.1.16",
    }
    assert changed.keys() == {f.name for f in dataclasses.fields(key)}
    digests = {dataclasses.replace(key, **{name: value}).digest for name, value in changed.items()}
    assert len(digests | {key.digest}) == len(changed) + 1


def test_requests_that_differ_have_different_keys() -> None:
    desc, schedule = KernelDesc.of("window_attention", "float32", dk=64, dv=64), CpuSchedule()
    requests = [
        (desc, schedule, GENERIC),
        (KernelDesc.of("window_attention", "float32", dk=64, dv=128), schedule, GENERIC),
        (KernelDesc.of("window_attention", "float16", dk=64, dv=64), schedule, GENERIC),
        (KernelDesc.of("window_attention", "float32", direction="bwd", dk=64, dv=64), schedule, GENERIC),
        (desc, CpuSchedule(register_rows=2), GENERIC),
        (desc, schedule, TARGETS["x86_64_v3"]),
        (desc, schedule, dataclasses.replace(GENERIC, vector_bytes=32)),
        (desc, schedule, dataclasses.replace(GENERIC, vector_registers=32)),
    ]
    assert len({RequestKey.of(*request).digest for request in requests}) == len(requests)


def test_templates_digest_covers_names_and_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "_PACKAGE", tmp_path)
    (tmp_path / "templates" / "deep").mkdir(parents=True)
    (tmp_path / "templates" / "deep" / "a.py").write_text("one")
    seen = []

    def digest() -> str:
        emitters_digest.cache_clear()
        seen.append(emitters_digest(("templates",)))
        return seen[-1]

    first = digest()
    (tmp_path / "templates" / "__pycache__").mkdir()
    (tmp_path / "templates" / "__pycache__" / "a.pyc").write_text("compiled")
    assert digest() == first
    (tmp_path / "templates" / "deep" / "a.py").write_text("two")
    digest()
    (tmp_path / "templates" / "deep" / "a.py").rename(tmp_path / "templates" / "b.py")
    digest()
    (tmp_path / "templates" / "c.h").write_text("")
    digest()
    assert len(set(seen)) == 4
    emitters_digest.cache_clear()


def test_every_module_that_emits_is_in_the_key() -> None:
    """A helper that the key missed would serve a kernel of its former text."""
    covered_by_value = {"desc", "errors", "schedule", "target", "source", "nvcc"}
    every = {name for names in manifest_module.EMITTERS.values() for name in names}
    emitters = {Path(name).parts[0].removesuffix(".py") for name in every}
    package = ROOT / "nsa_codegen"
    files = [p for name in sorted(every) for p in [package / name, *(package / name).rglob("*.py")]]
    imported = set()
    for path in (p for p in files if p.is_file()):
        home = path.relative_to(package).parent.parts
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                imported.add((*home[: len(home) + 1 - node.level], *node.module.split("."))[0])
    assert "desc" in imported and "templates" in imported
    assert imported <= emitters | covered_by_value


def test_no_key_without_the_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "_PACKAGE", tmp_path)
    emitters_digest.cache_clear()
    with pytest.raises(KeyFormationError, match=r"templates/cpu, which decides the emitted text, is not readable"):
        make_key()
    (tmp_path / "templates" / "cpu").mkdir(parents=True)
    with pytest.raises(KeyFormationError, match=r"templates/cpu holds no files"):
        make_key()
    emitters_digest.cache_clear()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {1, 2}}, r"value\.a = \{1, 2\} is a set"),
        ({"a": [object]}, r"value\.a\[0\] = <class 'object'> is a type"),
        ({1: 2}, r"value has the name 1, which is not a string"),
        ({"a": float("nan")}, r"value\.a = nan is not finite"),
        ({"a": float("-inf")}, r"value\.a = -inf is not finite"),
        ({"a": (1, 2)}, r"value\.a = \(1, 2\) is a tuple"),
    ],
)
def test_no_key_from_what_json_blurs_or_refuses(value: object, message: str) -> None:
    with pytest.raises(KeyFormationError, match=message):
        canonical_json(value)


def test_no_key_from_a_desc_with_a_foreign_value() -> None:
    with pytest.raises(KeyFormationError, match=r"dims\.dk = 'numpy' is a Foreign"):
        RequestKey.of(KernelDesc.of("compress", "float32", dk=Foreign("numpy")), CpuSchedule(), GENERIC)


class Foreign(str):
    """A string subclass, as a value of another library would be."""


def test_long_names_are_cut_and_odd_characters_replaced(store: KernelStore) -> None:
    dims = {f"dimension_{i}": i for i in range(40)} | {"method": "a/b c\n../é"}
    desc = KernelDesc.of("compress", "float32", **dims)
    entry = publish(store, RequestKey.of(desc, CpuSchedule(), GENERIC))
    assert len(entry.folder.name) <= 128
    assert entry.folder.parent == store.root / "generic" / "compress_fwd"
    other = KernelDesc.of("compress", "float32", **(dims | {"dimension_9": 10}))
    assert publish(store, RequestKey.of(other, CpuSchedule(), GENERIC)).folder != entry.folder


def test_explain_miss_names_the_fields_against_the_nearest_entry(store: KernelStore) -> None:
    assert "has no kernel of window_attention_fwd" in store.explain_miss(make_key())
    publish(store, make_key(dk=8, op="compress"))
    assert "has no kernel of window_attention_fwd" in store.explain_miss(make_key())
    near = publish(store, make_key(dk=128))
    far = RequestKey.of(
        KernelDesc.of("window_attention", "float16", dk=32, dv=32), CpuSchedule(key_tile=16), TARGETS["x86_64_v4"]
    )
    publish(store, far)
    text = store.explain_miss(make_key(dk=64))
    assert str(near.folder) in text
    assert text.splitlines()[1:] == ["  desc.dims.dk: wanted 64, stored 128"]
    changed = dataclasses.replace(make_key(dk=128), tilelang="0.9", templates="f" * 64)
    assert store.explain_miss(changed).splitlines()[1:] == [
        f'  templates: wanted "{"f" * 64}", stored "{make_key().templates}"',
        f'  tilelang: wanted "0.9", stored "{make_key().tilelang}"',
    ]
    assert near.library is not None
    near.library.unlink()
    assert "has no binary" in store.explain_miss(make_key(dk=128))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "binary noise": lambda path: path.write_bytes(bytes(range(256))),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("part", ["kernel.cpp", "key.json", "manifest.json"])
def test_a_damaged_text_part_sets_the_entry_aside(
    store: KernelStore, part: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = make_key()
    folder = publish(store, key).folder
    bystander = publish(store, make_key(dk=8))
    DAMAGE[how](folder / part)
    damaged = (folder / part).read_bytes()
    assert [f.state for f in store.verify()].count("corrupt") == 1
    with caplog.at_level(logging.WARNING):
        assert store.lookup(key) is None
    assert str(folder) in caplog.text and "is damaged" in caplog.text
    (aside,) = (store.root / "quarantine").iterdir()
    assert str(aside) in caplog.text
    assert (aside / part).read_bytes() == damaged
    assert store.lookup(make_key(dk=8)) == bystander
    assert publish(store, key).is_built_with(FLAGS)
    assert {f.state for f in store.verify()} == {"good"}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_binary_is_set_aside_alone(store: KernelStore, how: str, caplog: pytest.LogCaptureFixture) -> None:
    key = make_key()
    entry = publish(store, key)
    assert entry.library is not None
    DAMAGE[how](entry.library)
    with caplog.at_level(logging.WARNING):
        found = store.lookup(key)
    assert found == dataclasses.replace(entry, library=None)
    assert str(entry.library) in caplog.text and "sha256" in caplog.text
    assert publish(store, key).is_built_with(FLAGS)
    assert entry.library.read_bytes() == binary_content(key, FLAGS)


@pytest.mark.parametrize("part", ["kernel.cpp", "key.json", "manifest.json"])
def test_a_missing_part_sets_the_entry_aside(store: KernelStore, part: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = publish(store, make_key()).folder
    (folder / part).unlink()
    assert store.lookup(make_key()) is None
    assert f"{part} is missing" in caplog.text
    assert not folder.exists()


@pytest.mark.parametrize(
    "change", [{"entry": "system"}, {"arguments": [["out", "int32"], ["scale", "pointer"]]}, {"source_size": 1}]
)
def test_an_edited_manifest_is_noticed(store: KernelStore, change: dict[str, object]) -> None:
    folder = publish(store, make_key()).folder
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (finding,) = store.verify()
    assert (finding.state, finding.reason) == ("corrupt", "the manifest does not match its seal")
    assert store.lookup(make_key()) is None


def test_an_edited_key_is_noticed(store: KernelStore) -> None:
    path = publish(store, make_key()).folder / "key.json"
    path.write_text(path.read_text().replace('"dk": 64', '"dk": 32'))
    (finding,) = store.verify()
    assert finding.state == "corrupt" and "key.json hashes to" in finding.reason


def test_another_kernels_folder_under_this_name_is_not_served(store: KernelStore) -> None:
    other = publish(store, make_key(dk=8))
    place = store.root / make_key().folder
    shutil.copytree(other.folder, place)
    assert store.lookup(make_key()) is None
    assert not place.exists()


@pytest.mark.parametrize("part", ["kernel.cpp", "manifest.json", "binary"])
def test_damage_is_refused_where_building_is_forbidden(
    store: KernelStore, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = publish(store, make_key())
    assert entry.library is not None
    path = entry.library if part == "binary" else entry.folder / part
    path.write_bytes(b"x")
    monkeypatch.setenv("NSA_CODEGEN_NO_BUILD", "1")
    with pytest.raises(CorruptArtifactError, match=r"is damaged.*set aside as .*unset NSA_CODEGEN_NO_BUILD"):
        store.lookup(make_key())


def test_an_entry_without_a_binary_keeps_its_text_and_gets_one(
    store: KernelStore, caplog: pytest.LogCaptureFixture
) -> None:
    entry = publish(store, make_key())
    assert entry.library is not None
    entry.library.unlink()
    found = store.lookup(make_key())
    assert found is not None and found.library is None and found.source == make_source(make_key())
    assert [f.state for f in store.verify()] == ["not built"]
    before = (entry.folder / "manifest.json").stat().st_mtime_ns
    assert publish(store, make_key()) == entry
    assert (entry.folder / "manifest.json").stat().st_mtime_ns == before, "the same bytes need no new manifest"
    entry.library.unlink()
    rebuilt = publish(store, make_key(), maker="another compiler")
    assert rebuilt.library is not None and rebuilt.library != entry.library
    assert rebuilt.library.read_bytes() == binary_content(make_key(), FLAGS, "another compiler")
    assert not caplog.records


def test_other_flags_replace_the_binary_in_place(store: KernelStore) -> None:
    first = publish(store, make_key())
    second = publish(store, make_key(), flags=("-O2",))
    assert second.folder == first.folder and second.is_built_with(("-O2",)) and not second.is_built_with(FLAGS)
    assert [p.name for p in first.folder.glob("*.so")] == [second.manifest.binary.name]
    assert {f.state for f in store.verify()} == {"good"}


def test_the_first_published_wins(store: KernelStore) -> None:
    first = publish(store, make_key(), maker="first")
    second = publish(store, make_key(), maker="second")
    assert second == first
    assert second.library is not None and b"first" in second.library.read_bytes()
    assert list((store.root / ".tmp").iterdir()) == []


def test_a_failing_build_leaves_nothing(store: KernelStore) -> None:
    def fails(folder: Path) -> Binary:
        (folder / "half").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        store.publish(make_key(), make_source(make_key()), fails)
    assert store.verify() == ()
    assert [p for p in store.root.rglob("*") if p.is_file()] == []


def test_a_stop_at_any_step_leaves_no_damaged_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop before each sync and each rename in turn, in a first publication and in a replacement of the binary."""

    class Stop(BaseException):
        pass

    left = itertools.count()
    original_sync, original_rename = store_module._sync, Path.rename

    def step() -> None:
        if next(left) == stop_at:
            raise Stop

    def sync(path: Path) -> None:
        step()
        original_sync(path)

    def rename(self: Path, target: Path) -> Path:
        step()
        return original_rename(self, target)

    monkeypatch.setattr(store_module, "_sync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(store_module.shutil, "rmtree", lambda *_, **__: None)  # a killed process does not tidy up
    stops = 0
    for replacing in (False, True):
        for stop_at in itertools.count():
            store = KernelStore(tmp_path / f"{replacing}-{stop_at}")
            left = itertools.count(-10_000)
            if replacing:
                publish(store, make_key(), flags=("-O1",))
            left = itertools.count()
            try:
                publish(store, make_key())
            except Stop:
                stops += 1
                finding = store.verify()
                assert [f.state for f in finding] in ([], ["good"]), (stop_at, finding)
                left = itertools.count(-10_000)
                assert publish(store, make_key()).is_built_with(FLAGS)
            else:
                break
    assert stops > 8


@pytest.mark.parametrize("found", ["nothing", "other flags", "damage"])
def test_two_processes_that_race_both_end_with_a_good_entry(store: KernelStore, found: str) -> None:
    fork = multiprocessing.get_context("fork")
    rounds = 25
    barrier, answers = fork.Barrier(2), fork.Queue()

    def racer(maker: str) -> None:
        for i in range(rounds):
            key = make_key(dk=i + 1)
            barrier.wait(20)
            entry = store.publish(key, make_source(key), fake_build(key, FLAGS, maker))
            good = entry.library is not None and entry.is_built_with(FLAGS)
            content = entry.library.read_bytes() if entry.library and entry.library.exists() else b""
            answers.put((i, good and content in [binary_content(key, FLAGS, m) for m in ("a", "b")]))

    if found != "nothing":
        for i in range(rounds):
            entry = publish(store, make_key(dk=i + 1), flags=("-O0",))
            if found == "damage":
                (entry.folder / "manifest.json").write_text("{")
    racers = [fork.Process(target=racer, args=(maker,)) for maker in ("a", "b")]
    for process in racers:
        process.start()
    got = [answers.get(timeout=30) for _ in range(2 * rounds)]
    for process in racers:
        process.join(20)
    assert [process.exitcode for process in racers] == [0, 0]
    assert [i for i, good in got if not good] == []
    findings = store.verify()
    assert len(findings) == rounds
    assert {f.state for f in findings} == {"good"}
    assert list((store.root / ".tmp").iterdir()) == []
    aside = list((store.root / "quarantine").iterdir()) if (store.root / "quarantine").exists() else []
    assert len(aside) == (rounds if found == "damage" else 0)


def test_200_builds_killed_at_random_moments(store: KernelStore) -> None:
    """Known needs: no entry loads wrongly, none is left damaged, and the next run goes on and tidies up."""
    keys = [make_key(dk=i + 1) for i in range(5)]
    variants = [("-O3",), ("-O2",)]
    generator = random.Random(7)

    def build_for_ever(seed: int) -> None:
        mine = random.Random(seed)
        while True:
            key = mine.choice(keys)
            entry = store.lookup(key)
            if entry is not None and entry.library is not None and mine.random() < 0.3:
                entry.library.unlink()  # as in a fresh clone
            flags = mine.choice(variants)
            store.publish(key, make_source(key), fake_build(key, flags, pause=2e-4))

    interrupted = served = 0
    for seed in range(200):
        child = os.fork()
        if child == 0:
            try:
                build_for_ever(seed)
            finally:
                os._exit(1)
        time.sleep(generator.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself: a build failed"
        interrupted += any((store.root / ".tmp").iterdir()) if (store.root / ".tmp").exists() else 0
        if generator.random() < 0.02:
            shutil.rmtree(store.root / keys[0].folder, ignore_errors=True)
        for key in keys:
            entry = store.lookup(key)
            if entry is not None:
                assert entry.source == make_source(key)
                if entry.library is not None:
                    served += 1
                    assert entry.library.read_bytes() == binary_content(key, entry.manifest.binary.flags)
        assert not (store.root / "quarantine").exists(), "a kill left a damaged entry"
    assert interrupted > 50 and served > 20, "the kills came too early or too late to mean anything"
    for key in keys:
        assert publish(store, key).is_built_with(FLAGS)
    assert {f.state for f in store.verify()} == {"good"}
    assert list((store.root / ".tmp").iterdir()) == []


def test_a_live_builders_folder_is_not_swept(store: KernelStore) -> None:
    def slow(folder: Path) -> Binary:
        publish(store, make_key(dk=1))  # sweeps
        return fake_build(make_key())(folder)

    assert store.publish(make_key(), make_source(make_key()), slow).is_built_with(FLAGS)


def test_loading_writes_nothing(store: KernelStore) -> None:
    publish(store, make_key())
    before = tree(store.root)
    assert store.lookup(make_key()) is not None
    assert store.lookup(make_key(dk=8)) is None
    store.verify()
    store.entries()
    store.explain_miss(make_key(dk=8))
    assert tree(store.root) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who may not write")
def test_a_store_of_another_user_serves_and_says_that_it_cant_be_written() -> None:
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        store = KernelStore(Path(home) / "store")
        publish(store, make_key())
        damaged = publish(store, make_key(dk=8))
        (damaged.folder / "kernel.cpp").write_text("x")
        keys = [make_key(dk) for dk in (64, 8, 1)]

        def visitor() -> str:
            os.setuid(65534)
            found = store.lookup(keys[0])
            if found is None or not found.is_built_with(FLAGS):
                return "not served"
            if store.lookup(keys[1]) is not None:
                return "damaged entry served"
            try:
                publish(store, keys[2])
            except StoreError as error:
                return str(error)
            return "published"

        said = in_child(visitor)
        assert "can't be written" in said and "set NSA_CODEGEN_HOME to a folder that can" in said


def in_child(function: Callable[[], str]) -> str:
    """Return what `function` returns in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, function().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def test_a_root_that_cant_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = KernelStore(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match=r"can't be written.*NSA_CODEGEN_HOME"):
        publish(store, make_key())


def test_root_is_the_environments_else_the_checkouts_else_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSA_CODEGEN_HOME", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"
    monkeypatch.setenv("NSA_CODEGEN_HOME", "~nobody-of-this-name/store")
    with pytest.raises(StoreError, match=r"NSA_CODEGEN_HOME = '~nobody-of-this-name/store' names no folder"):
        default_root()
    monkeypatch.delenv("NSA_CODEGEN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package = tmp_path / "checkout" / "nsa_codegen"
    package.mkdir(parents=True)
    monkeypatch.setattr(store_module, "__file__", str(package / "store.py"))
    assert default_root() == tmp_path / "cache" / "nsa_codegen"
    (tmp_path / "checkout" / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert default_root() == tmp_path / "cache" / "nsa_codegen"
    (tmp_path / "checkout" / "pyproject.toml").write_text('[project]\nname = "nsa_codegen"\n')
    assert default_root() == tmp_path / "checkout" / "generated"
    monkeypatch.setattr(store_module, "os", SimpleNamespace(environ={}, access=lambda *_: False, W_OK=os.W_OK))
    assert default_root() == tmp_path / "cache" / "nsa_codegen"
    assert not (tmp_path / "cache").exists() and not (tmp_path / "mine").exists()


def test_a_process_that_changes_its_folder_keeps_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSA_CODEGEN_HOME", f"kernels-of-{tmp_path.name}")
    monkeypatch.chdir(tmp_path)
    root = default_root()
    monkeypatch.chdir(tmp_path.parent)
    assert default_root() == root == tmp_path / f"kernels-of-{tmp_path.name}"


def test_manifest_reads_what_it_writes() -> None:
    key = make_key()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.cpp").write_text("")
        binary = fake_build(key)(Path(folder))
    manifest = Manifest(
        key=key.digest,
        entry="nsa_entry",
        arguments=make_source(key).arguments,
        source_sha256="0" * 64,
        source_size=3,
        created="2026-01-01T00:00:00Z",
        binary=binary,
    )
    assert Manifest.from_json(json.loads(manifest.text)) == manifest
    assert RequestKey.from_json(json.loads(key.text)) == key
