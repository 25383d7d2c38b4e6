"""nvcc: which one, with which flags, and one call of it that makes a cubin or PTX of an emitted text.

The flags are those with which TileLang compiles the same text into a kernel's library (without its line
information), so that the registers and instructions of the cubin are those of the binary that is shipped.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .compiler import LIMIT_SECONDS, failure_text, run_command
from .errors import CompilerError, TargetError
from .target import GpuTarget

FLAGS = ("-O3", "-std=c++20")
_REPORT = re.compile(r"ptxas info +: (?!Compile time)| +\d+ bytes stack frame")
_PACKAGE = "nvidia-cuda-nvcc"
_TOOLKIT = Path("/usr/local/cuda")
_WANTED = (
    "a CUDA toolkit from https://developer.nvidia.com/cuda-downloads, or `pip install 'tilelang[nvcc]'`, "
    "or set $NSA_CODEGEN_NVCC to the path of an nvcc"
)


@dataclass(frozen=True, kw_only=True)
class Nvcc:
    """An nvcc: its path, its release as it prints it, and the folders of the headers that emitted texts include."""

    path: Path
    version: str
    includes: tuple[Path, ...]

    @property
    def home(self) -> Path:
        """The toolkit that it belongs to, as `$CUDA_HOME` names it."""
        return self.path.parent.parent

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags for every text, without the folders of headers, which are this machine's."""
        return FLAGS


def find_nvcc() -> Nvcc:
    """Return the first of `$NSA_CODEGEN_NVCC`, PATH's nvcc, `$CUDA_HOME`'s, /usr/local/cuda's, and PyPI's.

    PyPI's is the package that `tilelang[nvcc]` installs. Raises `CompilerError` if there is none, if a variable
    names none (it is an explicit request), or if TileLang's headers are missing.
    """
    return _known(_find(), tilelang_includes())


def tilelang_includes() -> tuple[Path, ...]:
    """Return the folders of TileLang's and CUTLASS's headers; raises `CompilerError` if TileLang is not installed.

    TileLang is not imported. `$TL_TEMPLATE_PATH` and `$TL_CUTLASS_PATH` override them, as they do in TileLang.
    """
    spec = importlib.util.find_spec("tilelang")
    if spec is None or spec.origin is None:
        raise CompilerError("emitted texts include TileLang's headers, and it is not installed: pip install tilelang")
    package = Path(spec.origin).parent
    found = (
        Path(os.environ.get("TL_TEMPLATE_PATH") or package / "src"),
        Path(os.environ.get("TL_CUTLASS_PATH") or package / "3rdparty" / "cutlass" / "include"),
    )
    for folder in found:
        if not folder.is_dir():
            raise CompilerError(
                f"TileLang's headers are not in {folder}: install TileLang's wheel again, or correct "
                f"$TL_TEMPLATE_PATH and $TL_CUTLASS_PATH"
            )
    return found


def compile_cubin(
    text: str, target: GpuTarget, folder: Path, *, lineinfo: bool = False, seconds: float = LIMIT_SECONDS
) -> Path:
    """Compile an emitted text into `folder`/kernel.cubin and return its path.

    Beside it, `report_path(cubin)` holds what the assembler says of registers, spills and shared memory.
    Raises `CompilerError` with the command and the first lines of its output, on failure or after `seconds`.
    """
    extra = ("-Xptxas=-v", *(("-lineinfo",) if lineinfo else ()))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        output = _compile(text, target, Path(name), "cubin", extra, seconds)
        cubin = (Path(name) / "kernel.cubin").replace(folder / "kernel.cubin")
    report_path(cubin).write_text("".join(f"{line}\n" for line in output.splitlines() if _REPORT.match(line)))
    return cubin


def report_path(cubin: Path) -> Path:
    """Return where the assembler's report on `cubin` is."""
    return cubin.with_suffix(".ptxas.txt")


def emit_ptx(text: str, target: GpuTarget, *, seconds: float = LIMIT_SECONDS) -> str:
    """Return the PTX that nvcc makes of an emitted text; raises `CompilerError`."""
    with tempfile.TemporaryDirectory() as name:
        _compile(text, target, Path(name), "ptx", (), seconds)
        return (Path(name) / "kernel.ptx").read_text()


def _compile(text: str, target: GpuTarget, folder: Path, form: str, extra: tuple[str, ...], seconds: float) -> str:
    """Compile into `folder`/kernel.<form> and return the output; relative names keep the folder out of the result."""
    if target.kind != "cuda":
        raise TargetError(f"nvcc compiles for cuda targets, not for {target}: it is source only")
    nvcc = find_nvcc()
    (folder / "kernel.cu").write_text(text)
    includes = [f"-I{path}" for path in nvcc.includes]
    command = [
        str(nvcc.path), f"-ccbin={_host_compiler()}", f"--{form}", f"-arch={target.name}", *nvcc.flags, *extra,
        *includes, "-o", f"kernel.{form}", "kernel.cu",
    ]  # fmt: skip
    status, output = run_command(command, folder, seconds)
    if status != 0 or not (folder / f"kernel.{form}").exists():
        raise CompilerError(failure_text(command, status, output, seconds))
    return output


def _find() -> Path:
    """Return the path of the nvcc to use."""
    asked = os.environ.get("NSA_CODEGEN_NVCC")
    if asked:
        found = shutil.which(asked)
        if found is None:
            raise CompilerError(
                f"$NSA_CODEGEN_NVCC = {asked!r} names no program; correct it, or unset it to use the nvcc on PATH"
            )
        return Path(found)
    on_path = shutil.which("nvcc")
    if on_path is not None:
        return Path(on_path)
    home = os.environ.get("CUDA_HOME")
    if home:
        found = shutil.which(str(Path(home) / "bin" / "nvcc"))
        if found is None:
            raise CompilerError(f"$CUDA_HOME = {home!r} has no bin/nvcc; correct it, or unset it")
        return Path(found)
    if (_TOOLKIT / "bin" / "nvcc").exists():
        return _TOOLKIT / "bin" / "nvcc"
    packaged = _packaged()
    if packaged is not None:
        return packaged
    raise CompilerError(
        f"no nvcc: $NSA_CODEGEN_NVCC and $CUDA_HOME are not set, nvcc is not on PATH, {_TOOLKIT} has none, and the "
        f"Python package {_PACKAGE} is not installed; get {_WANTED}"
    )


def _packaged() -> Path | None:
    """Return the nvcc of PyPI's package, if it is installed."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in files if f.name == "nvcc"), None)


@functools.cache
def _known(path: Path, includes: tuple[Path, ...]) -> Nvcc:
    command = [str(path), "--version"]
    status, output = run_command(command, None, LIMIT_SECONDS)
    if status != 0:
        raise CompilerError(failure_text(command, status, output, LIMIT_SECONDS))
    release = next((line for line in output.splitlines() if "release" in line), output.strip())
    return Nvcc(path=_toolkit_path(path), version=release.rpartition(", ")[2].strip(), includes=includes)


def _toolkit_path(path: Path) -> Path:
    """Return the nvcc inside its toolkit: what is on PATH may be a link to it, or a script that calls it."""
    for candidate in (path, path.resolve()):
        if (candidate.parent.parent / "include" / "cuda_runtime.h").exists():
            return candidate
    status, output = run_command([str(path), "--dryrun", "-E", "-x", "cu", "/dev/null"], None, LIMIT_SECONDS)
    top = next((line.partition("=")[2] for line in output.splitlines() if line.startswith("#$ _HERE_=")), None)
    if status == 0 and top is not None and (Path(top) / "nvcc").exists():
        return Path(top) / "nvcc"
    return path


def _host_compiler() -> str:
    """Return the C++ compiler that nvcc preprocesses with, chosen as TileLang does; raises `CompilerError`."""
    asked = shlex.split(os.environ.get("CXX") or os.environ.get("CC") or "")
    for name in asked[:1] or ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise CompilerError(
        "nvcc needs a host compiler: $CXX names none and neither g++ nor clang++ is on PATH; install g++ or clang++"
    )
