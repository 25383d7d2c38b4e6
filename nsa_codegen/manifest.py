"""`RequestKey`, what a kernel was asked to be, and `Manifest`, what was built: the two records beside an artifact.

The key is made of named fields and hashed over its canonical JSON; it covers the contents of every file that
decides the emitted text. The manifest carries a seal over its own fields, so that an altered one is seen.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from .desc import KernelDesc
from .errors import CorruptArtifactError, KeyFormationError
from .schedule import GpuSchedule, Schedule
from .source import CPU_PASS_OPTIONS, TILELANG_VERSION, Argument, gpu_pass_options
from .target import Target

FORMAT = 1
POOL_OP = "thread_pool"
_PACKAGE = Path(__file__).parent
# What decides the emitted text besides the key's other fields. The pool's text is its file.
_EVERY = ("templates/__init__.py", "lowering.py", "tiling.py", "index_sets.py")
EMITTERS = {
    "cpu": ("templates/cpu", "pairs.py", "runs.py", "together.py", "lowering_cpu.py", *_EVERY),
    "cuda": ("templates/cuda", "splits.py", "lowering_gpu.py", "workarounds.py", *_EVERY),
    "hip": ("templates/cuda", "splits.py", "lowering_gpu.py", "workarounds.py", *_EVERY),
}
POOL_EMITTERS = ("runtime/pool.cpp",)
_LONGEST_NAME = 96


@dataclass(frozen=True, kw_only=True)
class RequestKey:
    """Everything that decides a kernel's emitted text, by name.

    `desc`, `schedule` and `pass_options` are canonical JSON; `facts` are those of
    the target that templates read; `templates` is the sha256 of the emitting files' contents.
    """

    format: int
    op: str
    direction: str
    desc: str
    schedule: str
    arch: str
    facts: str
    pass_options: str
    templates: str
    tilelang: str

    @classmethod
    def of(cls, desc: KernelDesc, schedule: Schedule, target: Target) -> RequestKey:
        """Return the key of a request; raises `KeyFormationError` if no stable one can be formed.

        It names the target that serves the dtype, so that machines which differ in nothing that a kernel uses share it.
        """
        target = target.serving(desc.dtype)
        return cls(
            format=FORMAT,
            op=desc.op,
            direction=desc.direction,
            desc=canonical_json(desc.to_json()),
            schedule=canonical_json(schedule.to_json()),
            arch=target.name,
            facts=target.facts,
            pass_options=canonical_json(_pass_options(schedule)),
            templates=emitters_digest(POOL_EMITTERS if desc.op == POOL_OP else EMITTERS[target.kind]),
            tilelang=TILELANG_VERSION,
        )

    @cached_property
    def text(self) -> str:
        """The key as it is saved beside the artifact: canonical JSON, indented."""
        return json.dumps(self.to_json(), sort_keys=True, indent=1) + "\n"

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the canonical JSON."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    @property
    def key12(self) -> str:
        """The first 12 hex digits of the digest, which end the folder's name."""
        return self.digest[:12]

    @cached_property
    def folder(self) -> Path:
        """`<arch>/<op>_<direction>/<readable>-<key12>`, relative to the store's root."""
        readable = KernelDesc.from_json(json.loads(self.desc)).readable
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", readable)[:_LONGEST_NAME].strip(".-")
        return Path(self.arch) / f"{self.op}_{self.direction}" / f"{name}-{self.key12}"

    def to_json(self) -> dict[str, Any]:
        """Return the key as plain data, with its nested parts opened."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return data | {name: json.loads(data[name]) for name in _NESTED}

    @classmethod
    def from_json(cls, data: Any) -> RequestKey:
        """Return the key that `to_json` described; raises `CorruptArtifactError` if it is not one."""
        _require_fields("key", data, {f.name: int if f.name == "format" else str for f in fields(cls)}, _NESTED)
        return cls(**data | {name: canonical_json(data[name]) for name in _NESTED})

    def differences(self, other: RequestKey) -> list[str]:
        """Return one line per leaf in which `other`, a stored key, differs from this, the wanted one."""
        wanted, stored = dict(_leaves(self.to_json())), dict(_leaves(other.to_json()))
        return [
            f"{name}: wanted {wanted.get(name, 'nothing')}, stored {stored.get(name, 'nothing')}"
            for name in sorted(wanted.keys() | stored.keys())
            if wanted.get(name) != stored.get(name)
        ]


def _pass_options(schedule: Schedule) -> dict[str, Any]:
    if not isinstance(schedule, GpuSchedule):
        return CPU_PASS_OPTIONS
    return gpu_pass_options(specialized=schedule.specialized == 1)


_NESTED = ("desc", "schedule", "pass_options")


@dataclass(frozen=True, kw_only=True)
class Binary:
    """One compiled shared object: its file name, contents, and how and where it was made.

    `resources` is what the kernel takes of a GPU (`Resources.to_json`), and None on a CPU.
    """

    name: str
    sha256: str
    size: int
    compiler: str
    compiler_version: str
    flags: tuple[str, ...]
    processor: str
    resources: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data; its resources stand beside it in a manifest."""
        data = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "resources"}
        return data | {"flags": list(self.flags)}

    @classmethod
    def from_json(cls, data: Any, resources: dict[str, Any] | None = None) -> Binary:
        """Return the record that the manifest holds; raises `CorruptArtifactError` if it is not one."""
        kinds: dict[str, type] = {f.name: {"size": int, "flags": list}.get(f.name, str) for f in fields(cls)}
        del kinds["resources"]
        _require_fields("manifest.binary", data, kinds)
        return cls(**data | {"flags": tuple(data["flags"]), "resources": resources})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was built for a key: the source's facts, how the entry is called, and the binary's facts.

    `binary` is None where the target has no compiler here, and the text is all there is.
    """

    key: str
    entry: str
    arguments: tuple[Argument, ...]
    source_sha256: str
    source_size: int
    created: str
    binary: Binary | None
    format: int = FORMAT

    @property
    def resources(self) -> dict[str, Any] | None:
        """What the kernel takes of a GPU: registers, shared memory, instructions by class."""
        return None if self.binary is None else self.binary.resources

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain data, with the seal over its other fields."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["arguments"] = [[a.name, a.kind] for a in self.arguments]
        data["binary"] = None if self.binary is None else self.binary.to_json()
        data["resources"] = self.resources
        return data | {"seal": hashlib.sha256(canonical_json(data).encode()).hexdigest()}

    @property
    def text(self) -> str:
        """The manifest as it is saved."""
        return json.dumps(self.to_json(), sort_keys=True, indent=1) + "\n"

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Return the manifest that `to_json` described; raises `CorruptArtifactError` if it is not intact."""
        kinds: dict[str, type] = {f.name: str for f in fields(cls)} | {"seal": str, "resources": dict}
        kinds |= {"format": int, "arguments": list, "source_size": int, "binary": dict}
        empty = tuple(n for n in ("binary", "resources") if isinstance(data, dict) and data.get(n, 0) is None)
        _require_fields("manifest", data, kinds, empty)
        body = {name: value for name, value in data.items() if name != "seal"}
        if hashlib.sha256(canonical_json(body).encode()).hexdigest() != data["seal"]:
            raise CorruptArtifactError("the manifest does not match its seal")
        body["arguments"] = tuple(Argument(name=name, kind=kind) for name, kind in body["arguments"])
        resources = body.pop("resources")
        binary = None if body["binary"] is None else Binary.from_json(body["binary"], resources)
        return cls(**body | {"binary": binary})


def canonical_json(value: Any) -> str:
    """Return the one JSON text of `value`; raises `KeyFormationError` for what JSON would blur or refuse."""
    _require_plain(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@cache
def emitters_digest(names: tuple[str, ...]) -> str:
    """Return the sha256 over the contents of the package's files and folders `names`.

    Cached: a running process emits with the code that it has loaded, whatever happens to the files.
    Raises `KeyFormationError` if one is missing, empty or unreadable.
    """
    digest = hashlib.sha256()
    for name in names:
        try:
            files = sorted(_emitter_files(_PACKAGE / name))
            contents = [(f.relative_to(_PACKAGE).as_posix(), f.read_bytes()) for f in files]
        except OSError as error:
            raise KeyFormationError(
                f"no key can be formed: {_PACKAGE / name}, which decides the emitted text, is not readable ({error}); "
                f"install nsa_codegen with its sources"
            ) from error
        if not contents:
            raise KeyFormationError(
                f"no key can be formed: {_PACKAGE / name} holds no files; install nsa_codegen with its sources"
            )
        for path, content in contents:
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _emitter_files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for child in path.iterdir():
        if child.name != "__pycache__" and not child.name.startswith("."):
            yield from _emitter_files(child)


def _require_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise KeyFormationError(f"no key can be formed: {where} has the name {name!r}, which is not a string")
            _require_plain(item, f"{where}.{name}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _require_plain(item, f"{where}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise KeyFormationError(f"no key can be formed: {where} = {value!r} is not finite")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise KeyFormationError(
            f"no key can be formed: {where} = {value!r} is a {type(value).__name__}; "
            f"allowed are dict, list, str, int, float, bool and None"
        )


def _require_fields(what: str, data: Any, kinds: dict[str, type], free: tuple[str, ...] = ()) -> None:
    if not isinstance(data, dict) or data.keys() != kinds.keys():
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise CorruptArtifactError(f"the {what} has the fields {found}, not {sorted(kinds)}")
    for name, kind in kinds.items():
        if name not in free and type(data[name]) is not kind:
            raise CorruptArtifactError(f"{what}.{name} = {data[name]!r} is not a {kind.__name__}")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(value)
