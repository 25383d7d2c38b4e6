"""Kernels for the tests of this folder: one cache of built kernels, filled ahead by all cores, shared by all workers.

A test module names the descs that it will run in `KERNELS`; what the collected modules name is built before the first
test. The cache, `.cache/kernels` in the checkout, lasts: a second run builds nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from nsa_codegen.target import CpuTarget

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "kernels"
sys.path.insert(0, str(HERE))  # for `cases`, which all modules here share


@pytest.fixture(scope="session")
def kernels(request: pytest.FixtureRequest) -> Path:
    """The cache, with every kernel that the collected modules of this folder name."""
    from nsa_codegen.build import build_all
    from nsa_codegen.desc import KernelDesc
    from nsa_codegen.requests import requests_for
    from nsa_codegen.store import KernelStore
    from nsa_codegen.target import native_target

    modules = {item.module for item in request.session.items if HERE in item.path.parents}
    descs: dict[KernelDesc, None] = {}
    for module in sorted(modules, key=lambda m: m.__name__):
        descs.update(dict.fromkeys(getattr(module, "KERNELS", ())))
    target = native_target()
    requests = requests_for(descs, target)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of pytest-xdist's workers builds, the others wait
        outcomes = build_all(requests, jobs=os.cpu_count(), store=KernelStore(CACHE))
    failed = [f"{o.request.desc}: {o.error}" for o in outcomes if o.error is not None]
    assert not failed, "\n".join(failed)
    return CACHE


@pytest.fixture(autouse=True)
def one_thread_and_the_cache(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run on one thread, since the workers share the cores, and against the cache."""
    monkeypatch.setenv("NSA_CODEGEN_HOME", str(kernels))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, CpuTarget], ctypes.CDLL]:
    """Return a function that compiles a C++ text for a target, once, and loads it."""
    from nsa_codegen.compiler import compile_shared
    from nsa_codegen.store import SOURCE

    @functools.cache
    def load(text: str, target: CpuTarget) -> ctypes.CDLL:
        folder = tmp_path_factory.mktemp(target.name)
        (folder / SOURCE).write_text(text)
        return ctypes.CDLL(str(folder / compile_shared(folder, target=target).name))

    return load


@pytest.fixture
def sequences(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """The batch rows, queries, and whether threads took rows of their own, of each call of all kernels in one."""
    from nsa_codegen import sequence

    called = []
    call = sequence.Ready.__call__

    def noted(self: sequence.Ready, tensors: Iterable[torch.Tensor], q_start: int) -> None:
        first, *others = tensors
        called.append((*first.shape[:2], self.rows > 1))
        call(self, [first, *others], q_start)

    monkeypatch.setattr(sequence.Ready, "__call__", noted)
    return called
