"""A GPU kernel from its TileLang function: the device text, the host text, and the library that holds both.

The library is TileLang's host code and our cubin, made with the compiler and the flags of `nvcc`; it needs no GPU to
be built, and `tvm_ffi` loads it where there is one.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LoweringError
from .nvcc import compile_cubin, find_nvcc
from .source import TILELANG_VERSION, Argument, KernelLaunch, KernelSource, gpu_pass_options
from .target import GpuTarget
from .workarounds import corrected_pipelines, fenced_products, single_warp_copies, without_integer_proofs

_CALLBACK = "tilelang_callback_cuda_compile"
_KINDS = {"int32": "int32", "float32": "float32"}


@dataclass(frozen=True, kw_only=True)
class LoweredGpu:
    """One lowered kernel: its source, and what TileLang needs to make the library."""

    source: KernelSource
    target: GpuTarget
    options: dict[str, Any]
    context: Any
    host_mod: Any
    device_mod: Any

    def build_library(self, path: Path) -> Path:
        """Write the library to `path` and return the cubin beside it; raises `CompilerError` and `LoweringError`."""
        import tvm_ffi
        from tilelang.engine.lower import host_codegen

        cubins: list[Path] = []

        def compile_device(code: Any, tvm_target: Any, pass_config: Any = None) -> bytearray:
            # The title is a comment before the text that TileLang hands over; lines must agree for reports.
            cubins.append(compile_cubin(self.source.text, self.target, path.parent))
            if str(code) not in self.source.text:
                raise LoweringError(f"TileLang emitted another text for {self.source.entry} than a moment ago")
            return bytearray(cubins[-1].read_bytes())

        theirs = tvm_ffi.get_global_func(_CALLBACK)
        tvm_ffi.register_global_func(_CALLBACK, f=compile_device, override=True)
        try:
            with _opened(self.context.target, self.options):
                module = host_codegen(self.host_mod, self.context)
                module.import_module(self.context.codegen_device(self.device_mod, compile_device=True))
                module.export_library(str(path))
        finally:
            tvm_ffi.register_global_func(_CALLBACK, f=theirs, override=True)
        return cubins[-1]


def lower_gpu(function: Any, target: GpuTarget, title: str, *, specialized: bool = True) -> LoweredGpu:
    """Return the lowered kernel of a TileLang function; `title` is put before its text as a comment.

    `specialized`: tensor copies (TMA) have a warp group of their own, else one thread that computes starts them.
    Raises `LoweringError` if TileLang refuses the function.
    """
    os.environ.setdefault("TILELANG_DISABLE_CACHE", "1")
    from tilelang import tvm
    from tilelang.backend.module import create_backend_context
    from tilelang.engine.lower import _prepare_device_codegen_mod, host_codegen, lower_to_host_device_ir

    name, options = str(function.attrs["global_symbol"]), gpu_pass_options(specialized=specialized)
    try:
        with _opened(_tvm_target(target), options) as tvm_target:
            context = create_backend_context(tvm_target, None, "auto")
            host, device, _, _, _ = lower_to_host_device_ir(function, context)
            with without_integer_proofs():
                device = _prepare_device_codegen_mod(fenced_products(single_warp_copies(device)))
            emitted = str(context.codegen_device(device, compile_device=False).inspect_source())
            host_text = str(host_codegen(host, context).inspect_source()) if target.kind == "cuda" else ""
    except (tvm.error.TVMError, ValueError, TypeError) as error:
        raise LoweringError(f"TileLang could not lower {name} for {target.name}: {error}") from error
    lines = [*(f"// {line}" for line in title.splitlines()), f"// emitted by TileLang {TILELANG_VERSION}", emitted]
    source = KernelSource(
        text="\n".join(lines),
        entry=name,
        arguments=_arguments(function),
        host=host_text,
        launches=tuple(_launch(name, kernel, emitted, str(host)) for name, kernel in device.functions.items()),
    )
    return LoweredGpu(source=source, target=target, options=options, context=context, host_mod=host, device_mod=device)


def _tvm_target(target: GpuTarget) -> Any:
    from tilelang import tvm

    if target.kind == "hip":
        return tvm.target.Target({"kind": "hip", "mcpu": target.name})
    os.environ.setdefault("CUDA_HOME", str(find_nvcc().home))
    return tvm.target.Target({"kind": "cuda", "arch": target.name})


@contextlib.contextmanager
def _opened(tvm_target: Any, options: dict[str, Any]) -> Iterator[Any]:
    from tilelang import tvm

    with corrected_pipelines(), tvm_target, tvm.transform.PassContext(opt_level=3, config=options):
        yield tvm_target


def _arguments(function: Any) -> tuple[Argument, ...]:
    found = []
    for parameter in function.params:
        if parameter in function.buffer_map:
            found.append(Argument(name=str(function.buffer_map[parameter].name), kind="tensor"))
        else:
            found.append(Argument(name=str(parameter.name), kind=_KINDS[str(parameter.dtype)]))
    return tuple(found)


def _launch(name: Any, kernel: Any, emitted: str, host: str) -> KernelLaunch:
    """Return the threads that the text bounds and the dynamic shared memory that the host code asks for, last."""
    found = re.search(rf"__launch_bounds__\((\d+)[^)]*\) {name.name_hint}\(", emitted)
    if found is None:
        raise LoweringError(f"TileLang emitted a text of another form than expected:\n{emitted[-2000:]}")
    shared_bytes = 0
    if any("use_dyn_shared_memory" in str(p) for p in kernel.attrs["tirx.kernel_launch_params"]):
        call = re.search(rf'T\.call_packed\("{name.name_hint}".*, (\d+)\)', host)
        if call is None:
            raise LoweringError(f"the host code of {name.name_hint} launches it in another form than expected")
        shared_bytes = int(call[1])
    return KernelLaunch(kernel=str(name.name_hint), threads=int(found[1]), shared_bytes=shared_bytes)
