"""Where a run is judged: by measurement if this machine has the device, else by the static judge; and its facts."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

from .. import __version__
from ..compiler import find_compiler
from ..device import device_target
from ..errors import TargetError
from ..nvcc import find_nvcc
from ..source import TILELANG_VERSION
from ..target import GpuTarget, Target, processor_name, runs_here

NO_GPU = {  # by kind of target
    "cuda": "none: compiled for its architecture, not run",
    "hip": "none: source only, neither compiled nor run",
}


def judge_for(target: Target) -> str:
    """Return `measured` if this machine runs code for `target`, on its processor or its GPU, else `static`."""
    return "measured" if runs_here(target) or _has_gpu(target) else "static"


def environment(target: Target, judge: str) -> dict[str, Any]:
    """Return the facts of this machine and of the versions that a log's meta keeps.

    Raises `CompilerError` if there is no compiler for `target`.
    """
    facts: dict[str, Any] = {
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tilelang": TILELANG_VERSION,
        "nsa_codegen": __version__,
        "compiler": _compiler(target),
    }
    if judge == "static":
        return facts | {"gpu": NO_GPU[target.kind]} if isinstance(target, GpuTarget) else facts
    if isinstance(target, GpuTarget):
        return facts | {"gpu": torch.cuda.get_device_name(), "driver": _driver()}
    return facts | {"processor": processor_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def _compiler(target: Target) -> str:
    if target.kind == "cpu":
        return find_compiler().version
    return f"nvcc {find_nvcc().version}" if target.kind == "cuda" else "none: source only"


def _has_gpu(target: Target) -> bool:
    if not isinstance(target, GpuTarget) or not torch.cuda.is_available():
        return False
    with contextlib.suppress(TargetError):  # a GPU of an architecture that is none of ours
        return device_target(torch.device("cuda")) == target
    return False


def _driver() -> str:
    """Return the version of NVIDIA's driver, as its tool says it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown: there is no nvidia-smi"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"
