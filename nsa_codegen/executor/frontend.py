"""From emitted CUDA text to PTX: one call of nvcc, its result cached by content."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from ..compiler import LIMIT_SECONDS, failure_text, run_command
from ..nvcc import find_nvcc
from .failures import NvccError
from .native import cache_folder, write_atomically

SOURCE_NAME = "emitted.cu"


def ptx_of(text: str, arch: str, *, cache: Path | None = None, flags: tuple[str, ...] = ()) -> str:
    """Return the PTX that nvcc makes of the unmodified CUDA `text` for `arch` (`sm_90a`, say), with line information.

    Raises `CompilerError` if nvcc or TileLang's headers are missing, `NvccError` if nvcc refuses the text.
    """
    nvcc = find_nvcc()
    flags = ("-ptx", f"-arch={arch}", "-lineinfo", "-w", *nvcc.flags, *flags)
    key = hashlib.sha256("\0".join((nvcc.version, *flags, text)).encode()).hexdigest()[:24]
    path = cache_folder(cache) / "ptx" / f"{key}.ptx"
    if path.exists():
        return path.read_text()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / SOURCE_NAME, Path(folder) / "emitted.ptx"
        source.write_text(text)
        command = [str(nvcc.path), *flags, *(f"-I{p}" for p in nvcc.includes), str(source), "-o", str(out)]
        status, output = run_command(command, None, LIMIT_SECONDS)
        if status != 0:
            raise NvccError(f"for {arch} {failure_text(command, status, output, LIMIT_SECONDS)}")
        content = out.read_bytes()
    write_atomically(path, content)
    return content.decode()
