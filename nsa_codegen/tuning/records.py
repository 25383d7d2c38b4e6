"""`Record`: one judged candidate; the log of a run, one record a line; and what a judge returns, `Judged`.

A log is `<folder>/<arch>/<op>_<direction>/<run>.jsonl` with a `.meta.json` beside it that says on what machine it was
made. It is only ever appended to. A process that is killed while it writes leaves a torn last line, which is left out
by readers and cut off by the next writer; anything else that is not as written here is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..desc import KernelDesc
from ..errors import NSAError, TuningLogError

FORMAT = 1
STATUSES = ("ok", "illegal", "failed", "wrong", "crashed", "timeout", "same")
JUDGES = ("measured", "static")
SPREADS = ("measured", "default", "gain")
STAGES = ("search", "final")
META_SUFFIX = ".meta.json"
LOGS = "tuning_logs"
DEVICE_FACTS = ("processor", "gpu", "driver", "cores", "threads")  # of an environment: what times belong to
COMPILER_FACTS = ("compiler", "nvcc", "tilelang")  # and what made the kernels


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Seconds per call: the median of `samples` samples, and their lower and upper quartile."""

    median: float
    low: float
    high: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        """Return the spread as plain data."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a judge found of one candidate; the fields are those of `Record`."""

    status: str
    reason: str = ""
    predicted: Mapping[str, float] | None = None
    measured: Spread | None = None
    default: Spread | None = None
    gain: Spread | None = None
    error: float | None = None
    resources: Mapping[str, Any] | None = None
    key: str = ""
    same_as: int | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One candidate of a run, judged.

    `number` is the candidate's number in the study of `desc`. `status` is `ok`, `illegal` (refused by `check`),
    `failed` (did not build, or raised), `wrong` (error beyond what is allowed), `crashed`, `timeout`, or `same` (its
    text is that of candidate `same_as`); `reason` says why it is not ok. `sizes` are the run-time sizes it was judged
    at. `predicted` holds the seconds of the cost model by part, `seconds` in all. `measured` was timed in turns with
    `default`, the default schedule, in one process; `gain` is how many times faster it was turn by turn, which older
    records do not say. `error` is the worst ratio of an output's error against float64 to that of eager torch in the
    same type. `resources` is what the manifest says, and the `sha256` of the text. `key` is the short key of the
    artifact, empty if there is none; `when` is UTC in ISO 8601.
    """

    number: int
    desc: KernelDesc
    schedule: Mapping[str, int]
    status: str
    reason: str = ""
    judge: str
    stage: str
    sizes: Mapping[str, int]
    predicted: Mapping[str, float] | None = None
    measured: Spread | None = None
    default: Spread | None = None
    gain: Spread | None = None
    error: float | None = None
    resources: Mapping[str, Any] | None = None
    key: str = ""
    same_as: int | None = None
    when: str

    @property
    def speedup(self) -> float | None:
        """How many times faster than the default schedule it was measured, turn by turn; None unless it is ok."""
        if self.status != "ok" or self.measured is None or self.default is None:
            return None
        return self.gain.median if self.gain is not None else self.default.median / self.measured.median

    @property
    def seconds(self) -> float | None:
        """Its time: the measured median, or by the static judge the predicted one; None unless the status is ok."""
        if self.status != "ok":
            return None
        if self.judge == "measured":
            return None if self.measured is None else self.measured.median
        return None if self.predicted is None else self.predicted["seconds"]

    @property
    def spills(self) -> bool:
        """Whether its compiled code keeps registers in memory; False where nothing was compiled."""
        return bool((self.resources or {}).get("spill_bytes", 0))

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data, with the format's number."""
        data = {f.name: getattr(self, f.name) for f in fields(self)} | {"desc": self.desc.to_json()}
        for name in ("schedule", "sizes", "predicted", "resources"):
            data[name] = None if data[name] is None else dict(data[name])
        for name in SPREADS:
            data[name] = None if data[name] is None else data[name].to_json()
        if self.gain is None:
            del data["gain"]  # a record without it is the line that it was before there were any
        return {"format": FORMAT, **data}

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """Return the record that `to_json` described; raises `TuningLogError` for what is none, without a place."""
        found = _fields_of("record", {"gain": None, **data} if isinstance(data, dict) else data, cls)
        for name, allowed in (("status", STATUSES), ("judge", JUDGES), ("stage", STAGES)):
            if found[name] not in allowed:
                raise TuningLogError(f"the record's {name} is {found[name]!r}; allowed are {', '.join(allowed)}")
        for name, kinds in _RECORD_KINDS.items():
            if not isinstance(found[name], kinds) or isinstance(found[name], bool):
                raise TuningLogError(f"the record's {name} is {found[name]!r}, which is of no type that it can have")
        for name in ("schedule", "sizes"):
            if any(type(v) is not int for v in found[name].values()):
                raise TuningLogError(f"the record's {name} is {found[name]!r}; every value must be an integer")
        for name in SPREADS:
            found[name] = None if found[name] is None else _spread(name, found[name])
        if found["predicted"] is not None and not _is_positive(found["predicted"].get("seconds")):
            raise TuningLogError(f"the record's predicted is {found['predicted']!r}; it must have seconds, more than 0")
        try:
            found["desc"] = KernelDesc.from_json(found["desc"])
            hash(found["desc"])
        except (KeyError, TypeError, NSAError) as error:
            raise TuningLogError(f"the record's desc is none: {type(error).__name__}: {error}") from error
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What is true of a whole log: the run, the target, the judge, the command, the machine, and the spaces.

    `environment` holds `processor` (or `gpu` and `driver`), `cores`, `os` and versions. `space` holds, by the text of
    a desc, `raw` and `legal`, numbers of schedules, and `refused`, numbers by kind of reason.
    """

    run: str
    target: str
    judge: str
    command: str
    environment: Mapping[str, Any]
    space: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain data, with the format's number."""
        return {"format": FORMAT, **{f.name: getattr(self, f.name) for f in fields(self)}}

    @classmethod
    def from_json(cls, data: Any) -> Meta:
        """Return what `to_json` described; raises `TuningLogError` for what is none, without a place."""
        found = _fields_of("meta", data, cls)
        for name, value in found.items():
            if not isinstance(value, dict if name in ("environment", "space") else str):
                raise TuningLogError(f"the meta's {name} is {value!r}, which is of no type that it can have")
        if found["judge"] not in JUDGES:
            raise TuningLogError(f"the meta's judge is {found['judge']!r}; allowed are {', '.join(JUDGES)}")
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class Log:
    """A log as read: its meta, its records in the order of the file, and how many torn last lines were left out."""

    path: Path
    meta: Meta
    records: tuple[Record, ...]
    torn: int


def logs_folder() -> Path:
    """Return the folder of the logs: `tuning_logs` of the checkout, else of the working directory.

    A package that was installed from a wheel has rows of `schedules/` inside, but no logs.
    """
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / LOGS


def log_path(folder: Path, arch: str, desc: KernelDesc, run: str) -> Path:
    """Return where records of `desc` of a run stand under the folder of all logs."""
    return folder / arch / desc.kind / f"{run}.jsonl"


def meta_path(log: Path) -> Path:
    """Return where the meta of a log stands."""
    return log.with_name(log.name.removesuffix(".jsonl") + META_SUFFIX)


def append(path: Path, record: Record) -> None:
    """Add `record` to the log at `path` as one write of one line under a lock, and sync it to the disk.

    A record that is there already is not added again, so that whoever finds one missing may add it. A torn last line of
    a killed writer is cut off first. Folders are made. Raises `TuningLogError` if another candidate of the search has
    its number, and `OSError` if the disk refuses.
    """
    line = json.dumps(record.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as handle:
        content = os.pread(handle, os.fstat(handle).st_size, 0)
        lines = content.split(b"\n")
        if line in lines:
            return
        if record.stage == "search":
            _require_number_is_free(path, record, lines)
        _write_all(handle, _mend(handle, content) + line + b"\n")
        os.fsync(handle)


def _write_all(handle: int, data: bytes) -> None:
    """Write all of `data`; a disk that is full takes part of it, and refuses the rest with an `OSError`."""
    while data:
        data = data[os.write(handle, data) :]


def _require_number_is_free(path: Path, record: Record, lines: list[bytes]) -> None:
    desc = record.desc.to_json()
    for line in lines:
        if b'"number":%d,' % record.number not in line or b'"stage":"search"' not in line or not _is_json(line):
            continue
        if json.loads(line)["desc"] == desc:
            raise TuningLogError(
                f"{path} has another candidate {record.number} of {record.desc}: a tuner with another --storage writes "
                f"to it; let one storage serve all tuners of a run"
            )


def write_meta(path: Path, meta: Meta) -> None:
    """Write the meta of the log at `path`, adding `meta.space` to that of an existing one; atomic, under a lock.

    Raises `TuningLogError` if the existing one is of another run, target, judge or machine, or is not intact.
    """
    beside = meta_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if beside.exists():
            before = _read_meta(path)
            require_same_machine(before, meta, beside)
            meta = Meta.from_json(before.to_json() | {"space": {**before.space, **meta.space}})
        temporary = beside.with_name(f".{beside.name}.{os.getpid()}")
        temporary.write_text(json.dumps(meta.to_json(), indent=1, sort_keys=True, allow_nan=False) + "\n")
        temporary.replace(beside)


def require_same_machine(before: Meta, now: Meta, where: Path) -> None:
    """Raise `TuningLogError` if the two differ in run, target, judge, device or compilers: a log is of one machine."""
    pairs = [(name, getattr(before, name), getattr(now, name)) for name in ("run", "target", "judge")]
    pairs += [
        (name, before.environment.get(name), now.environment.get(name)) for name in (*DEVICE_FACTS, *COMPILER_FACTS)
    ]
    for name, old, new in pairs:
        if old != new:
            raise TuningLogError(
                f"{where} is of {name} {old!r}, and this run of {new!r}: times of one do not compare with the other's; "
                f"choose another --run, or go on where that one was made"
            )


def read_log(path: Path) -> Log:
    """Return the log at `path`.

    A last line that ends without a newline and is no JSON was torn, and is left out and counted. Raises
    `TuningLogError` that names file, line and cause for anything else: a line that is none, another format, an unknown
    status, a missing or damaged meta, no file.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise TuningLogError(f"{path} can't be read ({error}); name a log <run>.jsonl that `tune` wrote") from error
    meta, records, torn = _read_meta(path), [], 0
    for number, line in enumerate(lines, start=1):
        last = number == len(lines)
        if last and (not line or not _is_json(line)):
            torn = 1 if line else 0
            break
        try:
            records.append(Record.from_json(_load(line)))
        except TuningLogError as error:
            raise TuningLogError(
                f"{path} line {number}: {error}; restore the line from version control, or delete it: the other "
                f"lines stand by themselves"
            ) from error
    return Log(path=path, meta=meta, records=tuple(records), torn=torn)


_RECORD_KINDS: dict[str, Any] = {
    "number": int,
    "desc": dict,
    "schedule": dict,
    "reason": str,
    "sizes": dict,
    "predicted": (dict, type(None)),
    "measured": (dict, type(None)),
    "default": (dict, type(None)),
    "gain": (dict, type(None)),
    "error": (int, float, type(None)),
    "resources": (dict, type(None)),
    "key": str,
    "same_as": (int, type(None)),
    "when": str,
}


def _fields_of(what: str, data: Any, cls: type[Record] | type[Meta]) -> dict[str, Any]:
    """Return the fields of `data`; raises `TuningLogError` if it is of another format or has other fields."""
    if not isinstance(data, dict):
        raise TuningLogError(f"the {what} is a {type(data).__name__}, not an object")
    if data.get("format") != FORMAT:
        raise TuningLogError(
            f"the {what} is of format {data.get('format')!r}; this version of nsa_codegen reads format {FORMAT}: tune "
            f"again, or use the version that wrote it"
        )
    names = {f.name for f in fields(cls)}
    found = {name: value for name, value in data.items() if name != "format"}
    if found.keys() != names:
        lacks, has = sorted(names - found.keys()), sorted(found.keys() - names)
        raise TuningLogError(f"the {what} lacks the fields {lacks} and has {has}, which are not of it")
    return found


def _spread(name: str, data: dict[str, Any]) -> Spread:
    names = {f.name for f in fields(Spread)}
    if data.keys() != names or not all(map(_is_positive, data.values())) or type(data["samples"]) is not int:
        raise TuningLogError(
            f"the record's {name} is {data!r}; it must have the numbers {sorted(names)}, greater than 0"
        )
    return Spread(**data)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _read_meta(path: Path) -> Meta:
    beside = meta_path(path)
    try:
        return Meta.from_json(_load(beside.read_bytes()))
    except OSError as error:
        raise TuningLogError(
            f"{beside} can't be read ({error}); a log without it says not what machine it is of: restore it, or tune "
            f"again"
        ) from error
    except TuningLogError as error:
        raise TuningLogError(f"{beside}: {error}; restore it from version control, or tune again") from error


def _load(text: bytes) -> Any:
    """Return the JSON value; raises `TuningLogError` for what is none, NaN and infinities included."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise TuningLogError(f"not JSON ({error})") from error


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Yield the log's descriptor, opened to append and locked against other processes."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _mend(handle: int, content: bytes) -> bytes:
    """Return what a line must be preceded by: a newline after a whole last line that has none; cut off a torn one."""
    tail = content[content.rfind(b"\n") + 1 :]
    if not tail:
        return b""
    if _is_json(tail):
        return b"\n"
    os.ftruncate(handle, len(content) - len(tail))
    return b""
