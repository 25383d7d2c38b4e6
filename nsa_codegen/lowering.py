"""desc + schedule + target -> `KernelSource`: the emitted C++ text. Pure, and needs neither compiler nor device.

TileLang emits one function that runs a range of tasks; what is added here is the entry that spreads tasks
over threads. TileLang is imported at the first lowering, never by loading a kernel that is already built.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from .desc import KernelDesc
from .errors import LoweringError
from .lowering_gpu import LoweredGpu, lower_gpu
from .schedule import Schedule, ScheduleSpace
from .source import CPU_PASS_OPTIONS, TILELANG_VERSION, Argument, KernelSource, require_tilelang
from .target import GpuTarget, Target

TASK_ARGUMENTS = ("task_lo", "task_hi", "worker")


def lower(desc: KernelDesc, schedule: Schedule, target: Target) -> KernelSource:
    """Return the emitted text of `desc` under `schedule` for `target`.

    Raises `ScheduleError` if the schedule is not legal, `LoweringError` if TileLang is missing, of another
    version than the pinned one, or refuses the template.
    """
    if isinstance(target, GpuTarget):
        return lowered_gpu(desc, schedule, target).source
    ScheduleSpace.require(schedule, desc, target)
    emitted = _emit(primitive_function(desc, schedule, target))
    return _with_entry(emitted, _title(desc, schedule, target))


@functools.lru_cache(maxsize=1)  # a build lowers for the text, and then makes the library of the same lowering
def lowered_gpu(desc: KernelDesc, schedule: Schedule, target: GpuTarget) -> LoweredGpu:
    """Return the lowered kernel of a GPU target; raises what `lower` raises."""
    ScheduleSpace.require(schedule, desc, target)
    return lower_gpu(primitive_function(desc, schedule, target), target, _title(desc, schedule, target))


def _title(desc: KernelDesc, schedule: Schedule, target: Target) -> str:
    return f"{desc}\nschedule {schedule}\ntarget {target}"


def primitive_function(desc: KernelDesc, schedule: Schedule, target: Target) -> Any:
    """Return the TileLang function of `desc`, before lowering."""
    require_tilelang()
    from .templates import kernel_maker

    return kernel_maker(desc, target)(desc, schedule, target)


def _emit(function: Any) -> str:
    import tilelang
    from tilelang import tvm

    c_target = tvm.target.Target("c")
    with c_target, tvm.transform.PassContext(opt_level=3, config=CPU_PASS_OPTIONS):
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
