"""`Artifact`: a kernel that can be called, got from the store (`try_load`), made (`build`), or either (`load`).

Loading a stored kernel reads and hashes four small files and opens a shared object; neither TileLang nor a
compiler is touched. Building lowers to text if the store has none, compiles it and publishes the entry.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .binaries import build_binary, flags_of
from .desc import KernelDesc
from .errors import (
    BuildForbiddenError,
    CorruptArtifactError,
    InputError,
    KernelFailedError,
    NSAError,
    StoreError,
    TargetError,
)
from .manifest import POOL_EMITTERS, POOL_OP, RequestKey
from .schedule import CpuSchedule, Schedule
from .source import Argument, KernelSource
from .store import Entry, KernelStore, building_is_forbidden
from .target import CpuTarget, Target, lacking, runs_here

SOURCE_ONLY = "source only: no HIP compiler"
Lower = Callable[[KernelDesc, Schedule, Target], KernelSource]
_FORMATS = {"pointer": "Q", "int32": "i4x", "float32": "f4x"}  # of arguments, eight bytes each
_POOL_DESC = KernelDesc.of(POOL_OP, "float32")
_POOL_SCHEDULE = CpuSchedule()
_pools: dict[tuple[str, Path], Pool] = {}
_pools_lock = threading.Lock()
_making_pool = threading.Lock()
_lowering = threading.Lock()  # TileLang has one thread of a process at a time


@dataclass(frozen=True, kw_only=True)
class Request:
    """One kernel to be had: what, how, and for which architecture.

    `target` becomes the one that serves the desc's dtype: on a CPU that multiplies pairs of bfloat16, float32 and
    float16 have the kernels of the same CPU without.
    """

    desc: KernelDesc
    schedule: Schedule
    target: Target

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", self.target.serving(self.desc.dtype))

    @property
    def key(self) -> RequestKey:
        """The key under which a store has it, or would; raises `KeyFormationError`."""
        return RequestKey.of(self.desc, self.schedule, self.target)


@dataclass(frozen=True, kw_only=True)
class Built:
    """What `build_all` did for one request.

    `how` is `stored`, `compiled` (from stored text), `lowered` (and compiled) or `failed`, with the `error`; and for a
    target without a compiler, `source only`.
    """

    request: Request
    how: str
    seconds: float
    folder: Path | None = None
    error: NSAError | None = None


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The thread pool of a process: the address of its `nsa_parallel`, and its `nsa_sequence`."""

    parallel: int
    sequence: Any


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A loaded kernel: its entry as a ctypes `function` and as an `address`, and the `pool` that runs its tasks."""

    entry: Entry
    target: Target
    function: Any
    address: int
    pool: Pool
    arguments: struct.Struct

    @classmethod
    def try_load(
        cls, desc: KernelDesc, schedule: Schedule, target: Target, *, store: KernelStore | None = None
    ) -> Artifact | None:
        """Return the stored kernel, or None if something would have to be built; never builds.

        Raises `TargetError` if this machine can't run code for `target`, `KeyFormationError`, and under
        `NSA_CODEGEN_NO_BUILD=1` `CorruptArtifactError` for a damaged entry (otherwise set aside: None).
        """
        request = Request(desc=desc, schedule=schedule, target=target)
        _require_runnable(target)
        store = store or KernelStore()
        entry = store.lookup(request.key)
        if entry is None or not entry.is_built_with(flags_of(request.target)):
            return None
        pool = _find_pool(target, store)
        return None if pool is None else _open(entry, request.target, pool)

    @classmethod
    def build(
        cls,
        desc: KernelDesc,
        schedule: Schedule,
        target: Target,
        *,
        store: KernelStore | None = None,
        lower: Lower | None = None,
    ) -> Artifact:
        """Return the kernel, making what of it the store lacks: the text (`lower`), the binary, the thread pool.

        Raises `TargetError`, `KeyFormationError`, `LoweringError`, `CompilerError`, `StoreError`, and
        `BuildForbiddenError` under `NSA_CODEGEN_NO_BUILD=1`.
        """
        request = Request(desc=desc, schedule=schedule, target=target)
        _require_runnable(target)
        store = store or KernelStore()
        entry, _ = _ensure(request, store, lower)
        return _open(entry, request.target, _find_pool(target, store) or _make_pool(target, store))

    @classmethod
    def load(
        cls,
        desc: KernelDesc,
        schedule: Schedule,
        target: Target,
        *,
        store: KernelStore | None = None,
        lower: Lower | None = None,
    ) -> Artifact:
        """Return the stored kernel, else build it; raises what `try_load` and `build` raise."""
        store = store or KernelStore()
        found = cls.try_load(desc, schedule, target, store=store)
        return found or cls.build(desc, schedule, target, store=store, lower=lower)

    def launch(self, tasks: int, *values: int | float, threads: int) -> None:
        """Run tasks `0 .. tasks-1` on at most `threads` threads; the GIL is released meanwhile.

        `values` are the entry's arguments in order: addresses for `pointer`, and numbers. Raises `InputError` if they
        do not fit, and `KernelFailedError` on a non-zero status.
        """
        try:
            packed = self.arguments.pack(*values)
        except struct.error as error:
            names = [f"{a.name}: {a.kind}" for a in self.entry.manifest.arguments]
            raise InputError(
                f"{self.entry.manifest.entry} got {len(values)} values, {error}; it takes {names}"
            ) from error
        status = self.function(self.pool.parallel, threads, tasks, packed)
        if status:
            raise KernelFailedError(
                f"{self.entry.manifest.entry} returned status {status} (tasks={tasks}, threads={threads}); "
                f"its text is {self.entry.folder}"
            )


def build_all(
    requests: Iterable[Request],
    *,
    jobs: int | None = None,
    on_done: Callable[[Built], None] | None = None,
    store: KernelStore | None = None,
    lower: Lower | None = None,
) -> tuple[Built, ...]:
    """Bring every request into the store, `jobs` processes at a time, and return the outcomes in order.

    `on_done` is called in this process as each one ends. A request that fails is an outcome, not an exception.
    Nothing is loaded, so targets that this machine can't run are built too. `lower` must be importable.
    """
    store = store or KernelStore()
    wanted = list(requests)
    jobs = jobs or os.cpu_count() or 1
    report = on_done or (lambda _: None)
    outcomes: dict[int, Built] = {}
    for pool in {_pool_request(r.target) for r in wanted if isinstance(r.target, CpuTarget)}:
        _build_one(pool, store.root, _pool_source)  # its failure shows in the kernels' own
    missing = []
    for i, request in enumerate(wanted):
        stored = _stored(request, store)
        if stored is None:
            missing.append(i)
        else:
            outcomes[i] = stored
            report(stored)
    if min(jobs, len(missing)) <= 1:
        for i in missing:
            outcomes[i] = _build_one(wanted[i], store.root, lower)
            report(outcomes[i])
    else:
        # Spawned, since TVM and torch hold threads and locks that a forked child can't have.
        with concurrent.futures.ProcessPoolExecutor(
            min(jobs, len(missing)), mp_context=get_context("spawn")
        ) as processes:
            futures = {processes.submit(_build_one, wanted[i], store.root, lower): i for i in missing}
            for future in concurrent.futures.as_completed(futures):
                i = futures[future]
                try:
                    outcomes[i] = future.result()
                except concurrent.futures.BrokenExecutor:
                    error = StoreError(
                        f"a process ended abruptly while it built {wanted[i].desc} or another; try jobs=1"
                    )
                    outcomes[i] = Built(request=wanted[i], how="failed", seconds=0.0, error=error)
                report(outcomes[i])
    return tuple(outcomes[i] for i in range(len(wanted)))


def ensure(desc: KernelDesc, schedule: Schedule, target: Target, *, store: KernelStore | None = None) -> Entry:
    """Return the stored entry of a kernel with a good binary, built first if need be; nothing is loaded.

    Raises what `Artifact.build` raises.
    """
    return _ensure(Request(desc=desc, schedule=schedule, target=target), store or KernelStore(), None)[0]


def _stored(request: Request, store: KernelStore) -> Built | None:
    start = time.perf_counter()
    try:
        entry = store.lookup(request.key)
    except NSAError:
        return None  # met again, and reported, by the build
    if entry is None or not entry.is_built_with(flags_of(request.target)):
        return None
    how = "stored" if entry.manifest.binary is not None else f"stored, {SOURCE_ONLY}"
    return Built(request=request, how=how, seconds=time.perf_counter() - start, folder=entry.folder)


def _build_one(request: Request, root: Path, lower: Lower | None) -> Built:
    start = time.perf_counter()
    try:
        entry, how = _ensure(request, KernelStore(root), lower)
    except NSAError as error:
        return Built(request=request, how="failed", seconds=time.perf_counter() - start, error=error)
    return Built(request=request, how=how, seconds=time.perf_counter() - start, folder=entry.folder)


def _ensure(request: Request, store: KernelStore, lower: Lower | None) -> tuple[Entry, str]:
    """Return the request's entry with a good binary, and how it was got."""
    desc, schedule, target, key = request.desc, request.schedule, request.target, request.key
    flags = flags_of(target)
    how = "stored"
    for _ in range(3):  # a racing process's text may win over ours, and is then compiled in the next round
        entry = store.lookup(key)
        if entry is not None and entry.is_built_with(flags):
            return entry, how
        if building_is_forbidden():
            raise BuildForbiddenError(
                f"{desc} for {target.name} is not built, and NSA_CODEGEN_NO_BUILD forbids building it: "
                f"{store.explain_miss(key)}\nUnset NSA_CODEGEN_NO_BUILD, or build it with `nsa-codegen build`"
            )
        if entry is None:
            with _lowering:
                source = (lower or _default_lower())(desc, schedule, target)
            how = "lowered" if flags is not None else SOURCE_ONLY
        else:
            source, how = entry.source, "compiled"
        store.publish(key, source, functools.partial(build_binary, request=(desc, schedule, target), source=source))
    raise StoreError(f"{store.root / key.folder} kept changing while it was built; try again")


def _default_lower() -> Lower:
    from .lowering import lower

    return lower


def _pool_request(target: Target) -> Request:
    return Request(desc=_POOL_DESC, schedule=_POOL_SCHEDULE, target=target)


def _pool_source(desc: KernelDesc, schedule: Schedule, target: Target) -> KernelSource:
    text = (Path(__file__).parent / POOL_EMITTERS[0]).read_text()
    arguments = (Argument(name="context", kind="pointer"),)
    return KernelSource(text=text, entry="nsa_parallel", arguments=arguments)


def _find_pool(target: Target, store: KernelStore) -> Pool | None:
    """Return the pool, one per process, target that serves it, and store; None if it is not built."""
    request = _pool_request(target)
    place = (request.target.name, store.root)
    with _pools_lock:
        if place not in _pools:
            entry = store.lookup(request.key)
            if entry is None or not entry.is_built_with(flags_of(request.target)):
                return None
            sequence = _symbol(entry, "nsa_sequence")
            sequence.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
            sequence.restype = ctypes.c_int32
            parallel = _address(_symbol(entry, entry.manifest.entry))
            _pools[place] = Pool(parallel=parallel, sequence=sequence)
        return _pools[place]


def _make_pool(target: Target, store: KernelStore) -> Pool:
    with _making_pool:
        pool = _find_pool(target, store)  # another thread's, by now
        if pool is None:
            _ensure(_pool_request(target), store, _pool_source)
            pool = _find_pool(target, store)
    if pool is None:
        raise StoreError(f"the thread pool of {target.name} vanished from {store.root} meanwhile; try again")
    return pool


def _open(entry: Entry, target: Target, pool: Pool) -> Artifact:
    function = _symbol(entry, entry.manifest.entry)
    function.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p]
    function.restype = ctypes.c_int32
    arguments = struct.Struct("<" + "".join(_FORMATS[a.kind] for a in entry.manifest.arguments))
    return Artifact(
        entry=entry, target=target, function=function, address=_address(function), pool=pool, arguments=arguments
    )


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _symbol(entry: Entry, name: str) -> Any:
    """Return the function `name` of an entry; raises `CorruptArtifactError` if its binary is no library that has it."""
    try:
        return getattr(ctypes.CDLL(str(entry.library)), name)
    except (OSError, AttributeError) as error:
        raise CorruptArtifactError(
            f"{entry.library} is the file that was built, but can't be loaded here: {error}; remove {entry.folder} "
            f"and build it again"
        ) from error


def _require_runnable(target: Target) -> None:
    if not runs_here(target):
        missing = lacking(target) if isinstance(target, CpuTarget) else []
        raise TargetError(
            f"code for {target} does not run on this machine"
            + (f", which lacks {missing}" if missing else "")
            + "; ask for the target 'cpu', which is this machine's"
        )
