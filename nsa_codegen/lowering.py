"""desc + schedule + target -> `KernelSource`: the emitted C++ text. Pure, and needs neither compiler nor device.

TileLang emits one function that runs a range of tasks; what is added here is the entry that spreads tasks
over threads. TileLang is imported at the first lowering, never by loading a kernel that is already built.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .desc import KernelDesc
from .errors import LoweringError
from .schedule import Schedule, ScheduleSpace
from .target import Target

TILELANG_VERSION = "0.1.15"
PASS_OPTIONS = {"tl.disable_safe_memory_legalize": True}
TASK_ARGUMENTS = ("task_lo", "task_hi", "worker")


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One argument of a kernel's entry: its name, and `pointer`, `int32` or `float32`."""

    name: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class KernelSource:
    """The emitted text of one kernel, and how its entry is called.

    `entry(parallel, threads, tasks, *arguments) -> int32 status`, where `parallel` is the address of the
    thread pool's `nsa_parallel` and `tasks` the number of independent tasks.
    """

    text: str
    entry: str
    arguments: tuple[Argument, ...]

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest keeps of the source beside its text."""
        return {"entry": self.entry, "arguments": [[a.name, a.kind] for a in self.arguments], "sha256": self.sha256}


def lower(desc: KernelDesc, schedule: Schedule, target: Target) -> KernelSource:
    """Return the emitted text of `desc` under `schedule` for `target`.

    Raises `ScheduleError` if the schedule is not legal, `LoweringError` if TileLang is missing, of another
    version than the pinned one, or refuses the template.
    """
    ScheduleSpace.require(schedule, desc, target)
    emitted = _emit(primitive_function(desc, schedule, target))
    return _with_entry(emitted, f"{desc}\nschedule {schedule}\ntarget {target}")


def primitive_function(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the TileLang function of `desc`, before lowering."""
    _require_tilelang()
    from .templates import kernel_maker

    return kernel_maker(desc, target)(desc, schedule, target)


def _require_tilelang() -> None:
    try:
        installed = importlib.metadata.version("tilelang")
    except importlib.metadata.PackageNotFoundError:
        raise LoweringError(
            f"TileLang is not installed, and a kernel has to be lowered: pip install tilelang=={TILELANG_VERSION}, or "
            f"bring kernels that are built already (NSA_CODEGEN_HOME)"
        ) from None
    if installed.partition("+")[0] != TILELANG_VERSION:
        raise LoweringError(
            f"TileLang {installed} is installed; what it emits is part of our behaviour, and version "
            f"{TILELANG_VERSION} is pinned: pip install tilelang=={TILELANG_VERSION}"
        )


def _emit(function: Any) -> str:
    import tilelang
    from tilelang import tvm

    c_target = tvm.target.Target("c")
    with c_target, tvm.transform.PassContext(opt_level=3, config=PASS_OPTIONS):
        try:
            return str(tilelang.lower(function, target=c_target).kernel_source)
        except (tvm.error.TVMError, ValueError, TypeError) as error:
            raise LoweringError(f"TileLang could not lower {function.attrs['global_symbol']}: {error}") from error


_FUNCTION = re.compile(r'#ifdef __cplusplus\nextern "C"\n#endif\nint32_t (\w+)\(([^)]*)\) \{\n')
_PRELUDE = re.compile(r'#include <tl_templates/cpp/common\.h>\n(.*?)(?=#ifdef __cplusplus\nextern "C")', re.DOTALL)
_KINDS = {"int32_t": "int32", "float": "float32"}

_ENTRY_TEMPLATE = """\
// Entry: independent tasks over the threads of the pool; the rest is what the tasks read and write.
typedef int32_t (*nsa_task_fn)(void *context, int32_t lo, int32_t hi, int32_t worker);
typedef int32_t (*nsa_parallel_fn)(nsa_task_fn task, void *context, int32_t tasks, int32_t threads);
namespace {{
struct nsa_context {{
{members}
}};
int32_t nsa_task(void *context, int32_t task_lo, int32_t task_hi, int32_t worker) {{
  const nsa_context &a = *(const nsa_context *)context;
  (void)worker;
  return {function}({values});
}}
}} // namespace
extern "C" int32_t {entry}(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, {parameters}) {{
  nsa_context context = {{{names}}};
  return parallel(nsa_task, &context, tasks, threads);
}}
"""


def _with_entry(emitted: str, title: str) -> KernelSource:
    """Return the prelude, TileLang's function and the entry as one self-contained text.

    TileLang's own header and its declarations of the prelude's functions are left out: the text needs
    nothing but a C++17 compiler.
    """
    prelude, definition = _PRELUDE.search(emitted), _FUNCTION.search(emitted)
    if prelude is None or definition is None:
        raise LoweringError(f"TileLang emitted a text of another form than expected:\n{emitted[-2000:]}")
    function, parameters = definition[1], [p.rsplit(" ", 1) for p in definition[2].split(", ")]
    body = emitted[definition.end() :].rstrip()
    entry = "nsa_" + function.removesuffix("_kernel")
    called = [(ctype, name) for ctype, name in parameters if name not in TASK_ARGUMENTS]
    if len(called) + 2 > len(parameters):
        raise LoweringError(f"{function} must take task_lo and task_hi; it takes {[n for _, n in parameters]}")
    text = "\n".join(
        [
            *(f"// {line}" for line in title.splitlines()),
            f"// emitted by TileLang {TILELANG_VERSION}",
            prelude[1].strip(),
            "",
            f"static int32_t {function}({definition[2]}) {{",
            body,
            "",
            _ENTRY_TEMPLATE.format(
                members="\n".join(f"  {ctype} {name};" for ctype, name in called),
                function=function,
                values=", ".join(n if n in TASK_ARGUMENTS else f"a.{n}" for _, n in parameters),
                entry=entry,
                parameters=", ".join(f"{ctype} {name}" for ctype, name in called),
                names=", ".join(name for _, name in called),
            ),
        ]
    )
    arguments = tuple(Argument(name=n, kind="pointer" if c.endswith("*") else _KINDS[c]) for c, n in called)
    return KernelSource(text=text, entry=entry, arguments=arguments)
