"""The engine, a C++ library that interprets encoded PTX: built once with the C++ compiler at hand, called by ctypes."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

from ..compiler import LIMIT_SECONDS, Compiler, failure_text, find_compiler, run_command
from ..errors import CompilerError
from ..target import processor_name

_FLAGS = ("-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fno-math-errno",
          "-fPIC")  # fmt: skip
_SOURCES = Path(__file__).parent / "engine"
TEXT_BYTES = 480


class FindingRecord(ctypes.Structure):
    """`Finding` of state.h."""

    _fields_ = [
        *((n, ctypes.c_int32) for n in ("kind", "line", "bx", "by", "bz", "lane", "count", "other_line")),
        ("address", ctypes.c_uint64),
        ("text", ctypes.c_char * TEXT_BYTES),
    ]


class TensorMapRecord(ctypes.Structure):
    """`TensorMap` of state.h."""

    _fields_ = [
        ("address", ctypes.c_uint64),
        *((n, ctypes.c_int64 * 5) for n in ("dims", "strides", "box", "element_strides")),
        *((n, ctypes.c_int32) for n in ("rank", "element_bytes", "type", "swizzle", "interleave", "nan_fill")),
    ]


class LaunchRecord(ctypes.Structure):
    """`LaunchDesc` of state.h."""

    _fields_ = [
        ("instruction_count", ctypes.c_int64), ("instructions", ctypes.c_void_p), ("operands", ctypes.c_void_p),
        ("row_count", ctypes.c_int64),
        ("constant_count", ctypes.c_int64), ("constants", ctypes.c_void_p),
        ("special_count", ctypes.c_int64), ("specials", ctypes.c_void_p),
        ("parameter_bytes", ctypes.c_int64), ("parameters", ctypes.c_void_p),
        ("grid", ctypes.c_int64 * 3), ("block", ctypes.c_int64 * 3),
        ("shared_bytes", ctypes.c_int64), ("local_bytes", ctypes.c_int64),
        ("range_count", ctypes.c_int64), ("ranges", ctypes.c_void_p),
        ("map_count", ctypes.c_int64), ("maps", ctypes.c_void_p),
        *((n, ctypes.c_int64) for n in ("order", "seed", "budget", "first_block", "last_block", "races")),
        ("finding_capacity", ctypes.c_int64), ("findings", ctypes.c_void_p),
        ("finding_count", ctypes.c_int64), ("executed", ctypes.c_int64),
    ]  # fmt: skip


def cache_folder(cache: Path | None) -> Path:
    """Return the folder that compiled things go to: `cache`, or the user's cache directory."""
    return cache if cache is not None else Path(platformdirs.user_cache_dir("nsa_codegen")) / "executor"


@functools.cache
def load(cache: Path | None = None) -> tuple[ctypes.CDLL, dict[str, int]]:
    """Return the engine and the numbers of its operations by name; builds it if `cache` does not hold it.

    Raises `CompilerError` if there is no C++ compiler or it refuses the engine.
    """
    library = ctypes.CDLL(str(_build(cache_folder(cache))))
    library.op_name.restype = ctypes.c_char_p
    names = {library.op_name(k).decode(): k for k in range(library.op_count())}
    return library, names


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step, so that a reader finds all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def _build(folder: Path) -> Path:
    sources = sorted(_SOURCES.glob("*.cpp"))
    compiler = find_compiler()
    key = hashlib.sha256(repr((compiler.command, compiler.version, _FLAGS, processor_name())).encode())
    for path in sorted(_SOURCES.iterdir()):
        key.update(path.read_bytes())
    out = folder / f"engine-{key.hexdigest()[:16]}.so"
    folder.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of processes that need it one compiles it
        if not out.exists():
            _compile(compiler, sources, out)
    return out


def _compile(compiler: Compiler, sources: list[Path], out: Path) -> None:
    """Compile the sources side by side, and put them together in one step."""
    with tempfile.TemporaryDirectory(dir=out.parent) as work, ThreadPoolExecutor(os.cpu_count()) as threads:
        objects = [Path(work) / f"{source.stem}.o" for source in sources]
        parts = zip(sources, objects, strict=True)
        list(
            threads.map(lambda pair: _call((*compiler.command, *_FLAGS, "-c", str(pair[0]), "-o", str(pair[1]))), parts)
        )
        made = Path(work) / out.name
        _call((*compiler.command, *_FLAGS, "-shared", *map(str, objects), "-o", str(made)))
        made.replace(out)


def _call(command: tuple[str, ...]) -> None:
    status, output = run_command(command, None, LIMIT_SECONDS)
    if status != 0:
        raise CompilerError(f"the executor's engine: {failure_text(command, status, output, LIMIT_SECONDS)}")
