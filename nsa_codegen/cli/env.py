"""`nsa-codegen env`: what this machine has, and the environment variables that matter."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

from .. import __version__
from ..compiler import compile_flags, find_compiler
from ..errors import CompilerError, TargetError
from ..nvcc import find_nvcc
from ..sass import find_nvdisasm
from ..selection import schedules_folder
from ..source import TILELANG_VERSION
from ..store import building_is_forbidden, default_root
from ..target import native_target, processor_name
from .app import AsJson, print_json, print_table

VARIABLES = {
    "NSA_CODEGEN_HOME": "folder of the kernel store; else generated/ of a checkout, else the user's cache",
    "NSA_CODEGEN_NO_BUILD": "1: a kernel that is not stored is an error, and nothing is built at run time",
    "NSA_CODEGEN_TARGET": "architecture instead of the detected one, e.g. x86_64_v3",
    "NSA_CODEGEN_NVCC": "nvcc for GPU targets; else PATH's, $CUDA_HOME's, /usr/local/cuda's, or PyPI's",
    "NSA_CODEGEN_DEBUG": "1: block indices on a GPU are checked, which waits for it",
    "CXX": "C++ compiler, with arguments if need be; else g++, clang++, or the Python package ziglang",
    "OMP_WAIT_POLICY": "passive lets torch's idle threads sleep; faster where cores are shared (demo and make set it)",
    "OMP_NUM_THREADS": "threads of torch and of the kernels (torch.set_num_threads overrides it)",
}


def env(as_json: AsJson = False) -> None:
    """Show versions, compiler, target, processor, folders and environment variables."""
    facts = _facts()
    variables = [{"variable": n, "value": os.environ.get(n), "meaning": text} for n, text in VARIABLES.items()]
    if as_json:
        print_json({**facts, "variables": variables})
        return
    print_table("environment", [{"what": k, "value": v} for k, v in facts.items()], ("what", "value"))
    shown = [{**row, "value": "(not set)" if row["value"] is None else row["value"]} for row in variables]
    print_table("environment variables", shown, ("variable", "value", "meaning"))


def _facts() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "nsa_codegen": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "torch": torch.__version__,
        "tilelang": _tilelang(),
    }
    try:
        compiler = find_compiler()
        facts["compiler"] = f"{compiler.version} ({' '.join(compiler.command)})"
    except CompilerError as error:
        facts["compiler"] = f"none: {error}"
    try:
        nvcc = find_nvcc()
        facts["nvcc"] = f"{nvcc.version} ({nvcc.path})"
    except CompilerError as error:
        facts["nvcc"] = f"none: {error}"
    disassembler = find_nvdisasm()
    facts["nvdisasm"] = str(disassembler or "none: pip install 'nsa_codegen[gpu]'; instructions are not counted")
    facts["gpu"] = _gpu()
    try:
        target = native_target()
        facts["target"], facts["flags"] = str(target), " ".join(compile_flags(target))
    except TargetError as error:
        facts["target"], facts["flags"] = f"none: {error}", ""
    facts["processor"], facts["cores"] = processor_name(), os.cpu_count()
    facts["threads"] = torch.get_num_threads()
    facts["store"] = str(default_root())
    facts["schedules"] = str(schedules_folder())
    facts["building"] = "forbidden" if building_is_forbidden() else "allowed"
    return facts


def _gpu() -> str:
    """Return the current GPU and its target, or that there is none."""
    import torch

    from ..device import device_target

    if not torch.cuda.is_available():
        return "none: GPU kernels can be built here, and executed on the CPU, but not run"
    try:
        return f"{torch.cuda.get_device_name()}, {device_target(torch.device('cuda'))}"
    except TargetError as error:
        return f"{torch.cuda.get_device_name()}: {error}"


def _tilelang() -> str:
    """Return the installed version; asking the metadata leaves TileLang itself alone."""
    try:
        found = importlib.metadata.version("tilelang")
    except importlib.metadata.PackageNotFoundError:
        return f"not installed; kernels can't be lowered (pip install 'tilelang=={TILELANG_VERSION}')"
    return found if found == TILELANG_VERSION else f"{found}, not the {TILELANG_VERSION} that lowering needs"
