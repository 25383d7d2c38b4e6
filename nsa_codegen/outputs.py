"""Whether a file can be written where it is asked for: checked before the work whose result it holds."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .errors import OutputError


def require_folder(name: str, folder: Path) -> None:
    """Make `folder`, the value of the option `name`; raises `OutputError` unless files can be written in it."""
    _require(name, folder, folder, "a folder")


def require_file(name: str, path: Path) -> None:
    """Make the folder of `path`, the value of the option `name`; raises `OutputError` unless it can be written."""
    if path.is_dir():
        raise OutputError(f"{name} = {str(path)!r} is a folder; give a file")
    _require(name, path, path.parent, "a file in a folder")
    if path.exists():
        try:
            path.open("ab").close()
        except OSError as error:
            raise OutputError(f"{name} = {str(path)!r} can't be written ({error.strerror}); give another") from error


def _require(name: str, path: Path, folder: Path, kind: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"{name} = {str(path)!r} can't be written ({error.strerror or error}); give {kind} that can"
        ) from error
