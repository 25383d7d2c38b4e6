"""`KernelStore`: built kernels on disk, one folder per key, and the only place that writes them.

A folder is made under a temporary name, synced, and renamed into place with its manifest written last. The
binary's file name carries its digest, so that replacing the binary of an existing entry is one atomic
replacement of its manifest, and no process ever loads another file under a name it has already loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import CorruptArtifactError, StoreError
from .manifest import Binary, Manifest, RequestKey
from .source import KernelSource
from .target import TARGETS

SOURCE, KEY, MANIFEST = "kernel.cpp", "key.json", "manifest.json"
_SOURCES = {"cpu": SOURCE, "cuda": "kernel.cu", "hip": "kernel.hip"}
_TEMPORARY, _QUARANTINE = ".tmp", "quarantine"
_ABANDONED_SECONDS = 24 * 3600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One intact entry of a store: its folder, key, manifest and text; `library` is None without a good binary."""

    folder: Path
    key: RequestKey
    manifest: Manifest
    text: str
    library: Path | None

    @property
    def source(self) -> KernelSource:
        """The emitted text and how its entry is called."""
        return KernelSource(text=self.text, entry=self.manifest.entry, arguments=self.manifest.arguments)

    def is_built_with(self, flags: tuple[str, ...] | None) -> bool:
        """Return whether there is a binary, compiled with exactly `flags`; with None, whether there need be none."""
        binary = self.manifest.binary
        if flags is None or binary is None:
            return flags is None and binary is None
        return self.library is not None and binary.flags == flags


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What `KernelStore.verify` says of one folder: `good`, `not built` or `corrupt`, and why."""

    folder: Path
    state: str
    reason: str = ""


def building_is_forbidden() -> bool:
    """Return whether `NSA_CODEGEN_NO_BUILD` is set, to anything but empty or 0."""
    return os.environ.get("NSA_CODEGEN_NO_BUILD", "") not in ("", "0")


def default_root() -> Path:
    """Return `$NSA_CODEGEN_HOME`, else `generated/` of a writable checkout, else the user's cache directory.

    Raises `StoreError` for the home of a user that is not there.
    """
    home = os.environ.get("NSA_CODEGEN_HOME")
    if home:
        return _placed(home)
    checkout = Path(__file__).parent.parent
    try:
        project = (checkout / "pyproject.toml").read_text()
    except OSError:
        project = ""
    if re.search(r'^name\s*=\s*"nsa[-_]codegen"', project, re.MULTILINE) and os.access(checkout, os.W_OK):
        return checkout / "generated"
    import platformdirs

    return platformdirs.user_cache_path("nsa_codegen")


@functools.cache
def _placed(home: str) -> Path:
    """Return a folder as named where it was first asked for: a process that goes elsewhere keeps its store."""
    try:
        return Path(home).expanduser().absolute()
    except RuntimeError as error:
        raise StoreError(f"NSA_CODEGEN_HOME = {home!r} names no folder ({error}); give the whole path") from error


class KernelStore:
    """The entries under one root: `<root>/<arch>/<op>_<direction>/<readable>-<key12>/`."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = default_root() if root is None else Path(root).absolute()

    def __repr__(self) -> str:
        return f"KernelStore({str(self.root)!r})"

    def lookup(self, key: RequestKey) -> Entry | None:
        """Return the intact entry of `key`, or None if there is none.

        A damaged entry is set aside and named in a warning, a damaged binary alone likewise: its text stays
        good. Under `NSA_CODEGEN_NO_BUILD=1` that raises `CorruptArtifactError`.
        """
        folder = self.root / key.folder
        number = _number(folder)
        try:
            entry = _read_twice(folder)
            if entry is not None and entry.key != key:
                raise CorruptArtifactError(f"it holds the key {entry.key.digest}, not {key.digest}")
        except CorruptArtifactError as error:
            if _number(folder) != number:  # another process has set it aside meanwhile, and may have made a good one
                return self.lookup(key)
            self._set_aside(folder, str(error))
            return None
        if entry is None or entry.library is None:
            return entry
        problem = _library_problem(entry)
        if problem is None:
            return entry
        self._set_aside(entry.library, problem)
        return replace(entry, library=None)

    def publish(self, key: RequestKey, source: KernelSource, build: Callable[[Path], Binary | None]) -> Entry:
        """Return the entry of `key`, made from `source` and what `build` leaves in the folder it is given.

        `build` finds the text there and returns the record of the binary that it wrote beside it, if any. An
        intact entry that is there by then, a racing process's, keeps its text; its binary is replaced only if
        it is missing or was compiled with other flags. Raises `StoreError` if the root can't be written.
        """
        try:
            with self._workspace() as folder:
                (folder / source_name(key.arch)).write_bytes(source.text.encode())
                binary = build(folder)
                manifest = Manifest(
                    key=key.digest,
                    entry=source.entry,
                    arguments=source.arguments,
                    source_sha256=source.sha256,
                    source_size=len(source.text.encode()),
                    created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    binary=binary,
                )
                for _ in range(3):  # each round loses only to a process that changed the entry meanwhile
                    entry = self._settle(key, manifest, folder)
                    if entry is not None:
                        return entry
        except OSError as error:
            raise self._cannot_write(error) from error
        raise StoreError(f"{self.root / key.folder} kept changing while it was published; try again")

    def entries(self) -> tuple[Entry, ...]:
        """Return the intact entries, in the order of their folders; binaries are not hashed here, see `verify`."""
        return self.survey()[0]

    def survey(self) -> tuple[tuple[Entry, ...], tuple[Finding, ...]]:
        """Return the intact entries, and what is wrong with the others, each in the order of their folders."""
        entries: list[Entry] = []
        broken: list[Finding] = []
        for folder in self._folders():
            try:
                entry = _read(folder)
                entries += [] if entry is None else [entry]
            except CorruptArtifactError as error:
                broken.append(Finding(folder=folder, state="corrupt", reason=str(error)))
        return tuple(entries), tuple(broken)

    def verify(self) -> tuple[Finding, ...]:
        """Return one finding per folder, every file hashed; nothing is moved."""
        return tuple(_examine(folder) for folder in self._folders())

    def explain_miss(self, key: RequestKey) -> str:
        """Return why `key` is not served: field by field against the nearest entry of its op."""
        try:
            own = _read(self.root / key.folder)
        except CorruptArtifactError as error:
            return f"its entry {self.root / key.folder} is damaged: {error}"
        if own is not None:
            if own.library is None:
                return f"its entry {own.folder} has no binary"
            flags = () if own.manifest.binary is None else own.manifest.binary.flags
            return f"its entry {own.folder} was compiled with other flags: {' '.join(flags)}"
        same_op = [e for e in self.entries() if (e.key.op, e.key.direction) == (key.op, key.direction)]
        if not same_op:
            return f"the store {self.root} has no kernel of {key.op}_{key.direction}"
        near = min(same_op, key=lambda e: (len(key.differences(e.key)), str(e.folder)))
        lines = "\n".join(f"  {line}" for line in key.differences(near.key))
        return f"the nearest of {len(same_op)} kernels of {key.op}_{key.direction}, {near.folder}, differs in:\n{lines}"

    def quarantine(self, path: Path) -> Path | None:
        """Move a folder or file of this store into `<root>/quarantine/` and return its new place; None if it is gone.

        Raises `StoreError` if the store can't be written.
        """
        name = "--".join(path.relative_to(self.root).parts)
        place = self.root / _QUARANTINE / f"{name}--{time.time_ns()}-{os.getpid()}"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._cannot_write(error) from error
        return place

    def _settle(self, key: RequestKey, manifest: Manifest, folder: Path) -> Entry | None:
        """Put the built `folder` in place, or what of it the entry there lacks; None if the entry changed meanwhile."""
        place = self.root / key.folder
        entry = self.lookup(key)
        if entry is None:
            (folder / KEY).write_text(key.text)
            built = () if manifest.binary is None else (manifest.binary.name,)
            for name in (source_name(key.arch), KEY, *built):
                _sync(folder / name)
            _write_synced(folder / MANIFEST, manifest.text)
            _sync(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.rename(place)
            except OSError:
                if place.exists():
                    return None
                raise
            _sync(place.parent)
        elif (
            manifest.binary is not None
            and entry.manifest.source_sha256 == manifest.source_sha256
            and not entry.is_built_with(manifest.binary.flags)
        ):
            _replace_binary(entry, manifest.binary, folder)
        return self.lookup(key)

    def _set_aside(self, path: Path, problem: str) -> None:
        """Quarantine `path`, warn, and raise `CorruptArtifactError` where nothing may be built in its place."""
        try:
            place = self.quarantine(path)
            outcome = f"set aside as {place}" if place else "another process has set it aside"
        except StoreError as error:
            outcome = f"left where it is, unused ({error})"
        message = f"{path} is damaged: {problem}; {outcome}"
        if building_is_forbidden():
            raise CorruptArtifactError(f"{message}; unset NSA_CODEGEN_NO_BUILD to build it again")
        _log.warning("%s; it will be built again", message)

    def _folders(self) -> list[Path]:
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"the kernel store {self.root} is a file; set NSA_CODEGEN_HOME to a folder")
        folders = (f for f in self.root.glob("*/*/*") if f.is_dir())
        return sorted(f for f in folders if f.relative_to(self.root).parts[0] not in (_TEMPORARY, _QUARANTINE))

    @contextlib.contextmanager
    def _workspace(self) -> Iterator[Path]:
        """Yield a new folder inside the root, held by a lock that ends with the process, and remove what is left."""
        parent = self.root / _TEMPORARY
        parent.mkdir(parents=True, exist_ok=True)
        self._sweep(parent)
        folder, held = _new_held_folder(parent)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)

    def _sweep(self, parent: Path) -> None:
        """Remove the temporary folders of processes that died."""
        for folder in parent.iterdir():
            with contextlib.suppress(OSError):
                held = os.open(folder, os.O_RDONLY)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                except BlockingIOError:
                    pass
                except OSError:
                    if time.time() - os.fstat(held).st_mtime > _ABANDONED_SECONDS:
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(held)

    def _cannot_write(self, error: OSError) -> StoreError:
        return StoreError(
            f"the kernel store {self.root} can't be written: {error}; "
            f"set NSA_CODEGEN_HOME to a folder that can, or build the kernels where it can"
        )


def _new_held_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder and lock it; return it with the descriptor that holds the lock."""
    while True:
        folder = parent / f"{os.getpid()}-{secrets.token_hex(8)}"
        folder.mkdir()
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # a sweep took it before the lock was held
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lost = not folder.exists()
        except BlockingIOError:
            lost = True
        except OSError:  # locks are not served here: only age marks a dead folder
            lost = False
        if not lost:
            return folder, held
        os.close(held)


def source_name(arch: str) -> str:
    """Return the file name of the emitted text for an architecture."""
    target = TARGETS.get(arch)
    return SOURCE if target is None else _SOURCES[target.kind]


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file's contents."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _number(folder: Path) -> int | None:
    """Return what tells a folder from one that takes its place; None if there is none."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _read_twice(folder: Path) -> Entry | None:
    """As `_read`; what looks damaged is read again, since another process may have been replacing it."""
    try:
        return _read(folder)
    except CorruptArtifactError:
        return _read(folder)


def _read(folder: Path) -> Entry | None:
    """Return the entry in `folder`, its text parts checked; None without a folder; else `CorruptArtifactError`."""
    try:
        manifest = Manifest.from_json(_load(folder / MANIFEST))
        key = RequestKey.from_json(_load(folder / KEY))
        text = (folder / source_name(key.arch)).read_bytes()
    except FileNotFoundError as error:
        if not folder.exists():
            return None
        raise CorruptArtifactError(f"{Path(str(error.filename)).name} is missing") from error
    except OSError as error:
        raise StoreError(f"the kernel store's entry {folder} can't be read: {error}") from error
    if key.digest != manifest.key:
        raise CorruptArtifactError(f"{KEY} hashes to {key.digest}, and the manifest says {manifest.key}")
    if hashlib.sha256(text).hexdigest() != manifest.source_sha256:
        raise CorruptArtifactError(
            f"{source_name(key.arch)} is not the one that the manifest describes (sha256 differs)"
        )
    library = None if manifest.binary is None else folder / manifest.binary.name
    if library is not None and not library.exists():
        library = None
    return Entry(folder=folder, key=key, manifest=manifest, text=text.decode(), library=library)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except ValueError as error:
        raise CorruptArtifactError(f"{path.name} is not JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _library_problem(entry: Entry) -> str | None:
    binary = entry.manifest.binary
    if binary is None:
        return None
    try:
        found = file_sha256(entry.folder / binary.name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"the binary {entry.library} can't be read: {error}") from error
    if found == binary.sha256:
        return None
    return f"its sha256 is {found}, and the manifest says {binary.sha256}"


def _examine(folder: Path) -> Finding:
    try:
        entry = _read(folder)
    except CorruptArtifactError as error:
        return Finding(folder=folder, state="corrupt", reason=str(error))
    if entry is not None and entry.manifest.binary is None:
        return Finding(folder=folder, state="good", reason="source only")
    if entry is None or entry.library is None:
        return Finding(folder=folder, state="not built", reason="no binary beside the source")
    problem = _library_problem(entry)
    return Finding(folder=folder, state="corrupt" if problem else "good", reason=problem or "")


def _replace_binary(entry: Entry, binary: Binary, folder: Path) -> None:
    """Give `entry` the binary built in `folder`: the file first, then the manifest that names it."""
    _sync(folder / binary.name)
    (folder / binary.name).rename(entry.folder / binary.name)
    stored = entry.manifest.binary
    same_build = stored and replace(binary, compiler=stored.compiler, processor=stored.processor)
    if stored is None or same_build != stored:  # the same bytes again leave a manifest under version control alone
        _write_synced(folder / MANIFEST, replace(entry.manifest, binary=binary).text)
        (folder / MANIFEST).rename(entry.folder / MANIFEST)
        if stored is not None and stored.name != binary.name:
            (entry.folder / stored.name).unlink(missing_ok=True)
    _sync(entry.folder)


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
