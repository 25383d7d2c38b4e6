"""The C++ compiler of the CPU targets: which one, with which flags, and one call of it with a time limit."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CompilerError
from .manifest import Binary
from .store import SOURCE, file_sha256
from .target import CpuTarget, processor_name

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-pthread")
LIMIT_SECONDS = 300.0  # the first call of ziglang's compiler prepares its own libraries for more than a minute
SHOWN_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A C++ compiler: the command that calls it, and the first line of what it says of its version."""

    command: tuple[str, ...]
    version: str


def compile_flags(target: CpuTarget) -> tuple[str, ...]:
    """Return the flags that compile a kernel's text for `target`."""
    macros = (
        f"-DNSA_VECTOR_BYTES={target.vector_bytes}",
        f"-DNSA_VECTOR_REGISTERS={target.vector_registers}",
    )
    return (*_FLAGS, *target.flags, *macros)


def _spelled_for(compiler: Compiler, flags: tuple[str, ...]) -> tuple[str, ...]:
    """Return `flags` as `compiler` spells them: zig wants underscores, and builds for this processor if not told."""
    if "ziglang" not in compiler.command:
        return flags
    level = next((f.removeprefix("-march=") for f in flags if f.startswith("-march=x86-64")), None)
    processor = "-mcpu=baseline" if level is None else f"-mcpu={level.replace('-', '_')}"
    return (*(f for f in flags if not f.startswith("-march=")), processor)


def find_compiler() -> Compiler:
    """Return the first of `$CXX`, g++, clang++ and PyPI's ziglang; raises `CompilerError` if there is none.

    A `$CXX` that is set but can't be run is an error: it is an explicit request.
    """
    asked = _asked()
    if asked:
        found = shutil.which(asked[0])
        if found is None:
            raise CompilerError(
                f"$CXX = {os.environ['CXX']!r} names no program; correct it, or unset it to use g++ or clang++"
            )
        return _known((str(Path(found).absolute()), *asked[1:]))  # it is called in another folder
    for name in ("g++", "clang++"):
        found = shutil.which(name)
        if found is not None:
            return _known((found,))
    if importlib.util.find_spec("ziglang") is not None:
        return _known((sys.executable, "-m", "ziglang", "c++"))
    raise CompilerError(
        "no C++ compiler: $CXX is not set, and neither g++ nor clang++ is on PATH, nor is the Python package ziglang "
        "installed; install g++ or clang++, or `pip install ziglang`"
    )


def _asked() -> list[str]:
    """Return the words of `$CXX`, none if it is not set; raises `CompilerError` if they are none of a shell's."""
    given = os.environ.get("CXX", "")
    try:
        return shlex.split(given)
    except ValueError as error:
        raise CompilerError(
            f"$CXX = {given!r} is no command ({error}); correct it, or unset it to use g++ or clang++"
        ) from error


def compile_shared(folder: Path, *, target: CpuTarget, seconds: float = LIMIT_SECONDS) -> Binary:
    """Compile `folder`'s kernel.cpp into a shared object beside it, and return its record.

    Raises `CompilerError` with the command and the first lines of its output, on failure or after `seconds`.
    """
    compiler = find_compiler()
    flags = compile_flags(target)
    # Relative names and the folder as working directory keep its path out of the binary.
    command = [*compiler.command, *_spelled_for(compiler, flags), SOURCE, "-o", "building.so"]
    status, output = run_command(command, folder, seconds)
    built = folder / "building.so"
    if status != 0 or not built.exists():
        raise CompilerError(failure_text(command, status, output, seconds))
    sha256 = file_sha256(built)
    built = built.rename(folder / f"kernel-{sha256[:12]}.so")
    return Binary(
        name=built.name,
        sha256=sha256,
        size=built.stat().st_size,
        compiler=shlex.join(compiler.command),
        compiler_version=compiler.version,
        flags=flags,
        processor=processor_name(),
    )


def compile_assembly(text: str, target: CpuTarget, seconds: float = LIMIT_SECONDS) -> str:
    """Return the assembly that the compiler makes of a kernel's text; raises `CompilerError`."""
    compiler = find_compiler()
    flags = tuple(f for f in compile_flags(target) if f != "-shared")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / SOURCE).write_text(text)
        command = [*compiler.command, *_spelled_for(compiler, flags), "-S", SOURCE, "-o", "kernel.s"]
        status, output = run_command(command, folder, seconds)
        if status != 0:
            raise CompilerError(f"{shlex.join(command)} ended with status {status}: {output.strip()[:2000]}")
        return (folder / "kernel.s").read_text(errors="replace")  # clang shows bytes of constants as they are


def failure_text(command: Sequence[str], status: int | None, output: str, seconds: float) -> str:
    """Return a message for a command that failed with `status` (None: out of time): it, and its first lines."""
    ended = f"took more than {seconds:g} s" if status is None else f"ended with status {status}"
    shown = output.strip().splitlines()
    more = [f"... and {len(shown) - SHOWN_LINES} more lines"] if len(shown) > SHOWN_LINES else []
    return "\n".join([f"the compiler {ended}: {shlex.join(command)}", *shown[:SHOWN_LINES], *more])


@functools.cache
def _known(command: tuple[str, ...]) -> Compiler:
    status, output = run_command([*command, "--version"], None, LIMIT_SECONDS)
    if status != 0:
        raise CompilerError(f"{shlex.join([*command, '--version'])} ended with status {status}: {output.strip()[:400]}")
    return Compiler(command=command, version=(output.strip().splitlines() or ["unknown"])[0])


def run_command(command: Sequence[str], folder: Path | None, seconds: float) -> tuple[int | None, str]:
    """Return the status (None: it took more than `seconds`, and was ended) and the output of a command in `folder`.

    Raises `CompilerError` if the command can't be started.
    """
    try:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that the compiler's own children can be ended with it
        )
    except OSError as error:
        raise CompilerError(f"the compiler can't be run: {shlex.join(command)}: {error}") from error
    with process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return None, process.communicate()[0]
        except BaseException:
            _end(process)
            raise
    return process.returncode, output


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
