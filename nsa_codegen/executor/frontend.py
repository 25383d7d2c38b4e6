"""From emitted CUDA text to PTX: one call of nvcc, its result cached by content."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

from ..nvcc import find_nvcc
from .failures import NvccError
from .native import cache_folder, write_atomically

SOURCE_NAME = "emitted.cu"
_LIMIT_SECONDS = 300.0


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
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_SECONDS)
        if done.returncode:
            raise NvccError(f"nvcc refuses the text for {arch}: {' '.join(command)}\n{done.stderr[-3000:]}")
        content = out.read_bytes()
    write_atomically(path, content)
    return content.decode()
