"""A TileLang function -> the C++ text of a CPU kernel.

TileLang emits one function that runs a range of tasks; what is added here is the entry that spreads tasks over threads.
"""

from __future__ import annotations

import re
from typing import Any

from .errors import LoweringError
from .source import CPU_PASS_OPTIONS, TILELANG_VERSION, Argument, KernelSource

TASK_ARGUMENTS = ("task_lo", "task_hi", "worker")


def lower_cpu(function: Any, title: str) -> KernelSource:
    """Return the text of a function, and how its entry is called; raises `LoweringError` if TileLang refuses it."""
    return _with_entry(_emit(function), title)


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

_VALUE = "union nsa_value { void *pointer; int32_t int32; float float32; };"
_ENTRY_TEMPLATE = """\
// Entry: independent tasks over the threads of the pool; the arguments are what the tasks read and write.
typedef int32_t (*nsa_task_fn)(void *context, int32_t lo, int32_t hi, int32_t worker);
typedef int32_t (*nsa_parallel_fn)(nsa_task_fn task, void *context, int32_t tasks, int32_t threads);
{union}
static int32_t nsa_task(void *context, int32_t task_lo, int32_t task_hi, int32_t worker) {{
  const nsa_value *a = (const nsa_value *)context;
  (void)worker;
{called}
  return {function}({values});
}}
extern "C" int32_t {entry}(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, const nsa_value *arguments) {{
  return parallel(nsa_task, (void *)arguments, tasks, threads);
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
                union=_VALUE,
                called="\n".join(f"  {c} {n} = {_read(c, i)};" for i, (c, n) in enumerate(called)),
                function=function,
                values=", ".join(n for _, n in parameters),
                entry=entry,
            ),
        ]
    )
    arguments = tuple(Argument(name=n, kind=_kind(c)) for c, n in called)
    return KernelSource(text=text, entry=entry, arguments=arguments)


def _kind(ctype: str) -> str:
    return "pointer" if ctype.endswith("*") else _KINDS[ctype]


def _read(ctype: str, number: int) -> str:
    """Return the expression of an argument of the entry."""
    kind = _kind(ctype)
    return f"({ctype})a[{number}].pointer" if kind == "pointer" else f"a[{number}].{kind}"
