"""`Executable`: emitted CUDA text that runs on the CPU, lane by lane, with every access and wait checked."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from . import native
from .encode import Program, encode
from .failures import LaunchError
from .frontend import SOURCE_NAME, ptx_of
from .ptx import Kernel, Parameter, parse_module
from .report import KINDS, Finding, Report

ORDERS = ("forward", "reverse", "random")
_CAPACITY = 64
_MAP_MAGIC = 0x70616D726F736E74


@dataclass(frozen=True, kw_only=True)
class TensorMap:
    """A tensor map (CUtensorMap): extents and box in elements, innermost first; strides in bytes from dimension 1 on.

    `swizzle` is 0, 32, 64 or 128 bytes; `interleave` must be 0; `nan_fill` fills what is out of bounds with NaN.
    """

    tensor: torch.Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...] = ()
    swizzle: int = 0
    interleave: int = 0
    nan_fill: bool = False
    offset_bytes: int = 0


Argument = torch.Tensor | int | float | TensorMap | None


@dataclass(frozen=True, kw_only=True)
class Executable:
    """The kernels of one emitted text, ready to run; make it with `Executable.of` or `Executable.of_ptx`."""

    kernels: dict[str, Kernel]
    cache: Path | None = None
    _programs: dict[str, Program] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str, arch: str, cache: Path | None = None, *, flags: tuple[str, ...] = ()) -> Executable:
        """Return the executable of CUDA `text` for `arch`; PTX and engine are cached under `cache`.

        `flags` are nvcc's beyond the usual ones (`--use_fast_math` where the kernel is built with it).
        Raises `NvccError` if nvcc refuses the text, `PTXError` if its result is not understood, `CompilerError` if
        there is no C++ compiler for the engine.
        """
        return cls.of_ptx(ptx_of(text, arch, cache=cache, flags=flags), cache=cache, source_name=SOURCE_NAME)

    @classmethod
    def of_ptx(cls, ptx: str, cache: Path | None = None, source_name: str = SOURCE_NAME) -> Executable:
        """Return the executable of PTX text; lines in reports are those of the file named `source_name` in it."""
        return cls(kernels=parse_module(ptx, source_name=source_name), cache=cache)

    def program(self, kernel: str) -> Program:
        """Return the encoded kernel; raises `LaunchError` if there is none of this name."""
        if kernel not in self.kernels:
            raise LaunchError(f"no kernel {kernel!r} in this text; it has {', '.join(self.kernels)}")
        if kernel not in self._programs:
            self._programs[kernel] = encode(self.kernels[kernel], native.load(self.cache)[1])
        return self._programs[kernel]

    def unmodelled(self, kernel: str) -> tuple[str, ...]:
        """Return the opcodes of `kernel` that have no model."""
        return self.program(kernel).unmodelled

    def run(
        self, kernel: str, *, grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int,
        arguments: Sequence[Argument], order: str = "forward", seed: int = 0, blocks: tuple[int, int] | None = None,
        budget: int = 50_000_000, races: bool = True,
    ) -> Report:  # fmt: skip
        """Run `kernel` over CPU tensors, which it writes in place, and return what was found.

        `arguments` stand in the kernel's parameter order: contiguous CPU tensors or None for pointers, numbers for
        scalars, `TensorMap`s for tensor maps. `shared_bytes` is the dynamic shared memory. `order` and `seed` choose
        the interleaving of warps, asynchronous copies and blocks; `blocks` a range of linear block numbers; `budget`
        bounds the warp instructions of a block. Raises `LaunchError` if the launch does not fit the kernel.
        """
        program = self.program(kernel)
        if program.unmodelled:
            return Report(status=f"not executed: {', '.join(program.unmodelled)}")
        if order not in ORDERS:
            raise LaunchError(f"order {order!r} is not known; allowed: {', '.join(ORDERS)}")
        if min(*grid, *block) < 1 or block[0] * block[1] * block[2] > 1024:
            raise LaunchError(f"grid {grid} and block {block} must be positive, and a block has at most 1024 threads")
        library, _ = native.load(self.cache)
        packed = _pack(program.kernel, arguments)
        findings = (native.FindingRecord * _CAPACITY)()
        maps = (native.TensorMapRecord * max(1, len(packed.maps)))(*packed.maps)
        ranges = np.array(packed.ranges or [[0, 0, 0, 0]][:0], dtype=np.int64)
        parameters = np.frombuffer(bytes(packed.parameters) or b"\0", dtype=np.uint8)
        count = grid[0] * grid[1] * grid[2]
        first, last = blocks if blocks is not None else (0, count)
        record = native.LaunchRecord(
            instruction_count=len(program.instructions), instructions=program.instructions.ctypes.data,
            operands=program.operands.ctypes.data, row_count=program.rows,
            constant_count=len(program.constants), constants=program.constants.ctypes.data,
            special_count=len(program.specials), specials=program.specials.ctypes.data,
            parameter_bytes=program.parameter_bytes, parameters=parameters.ctypes.data,
            grid=(ctypes.c_int64 * 3)(*grid), block=(ctypes.c_int64 * 3)(*block),
            shared_bytes=program.dynamic_offset + shared_bytes, local_bytes=program.local_bytes,
            range_count=len(ranges), ranges=ranges.ctypes.data, map_count=len(packed.maps),
            maps=ctypes.addressof(maps), order=ORDERS.index(order), seed=seed, budget=budget,
            first_block=first, last_block=last, races=int(races), finding_capacity=_CAPACITY,
            findings=ctypes.addressof(findings),
        )  # fmt: skip
        start = time.perf_counter()
        library.run_launch(ctypes.byref(record))
        seconds = time.perf_counter() - start
        found = tuple(_finding(findings[k], kernel) for k in range(record.finding_count))
        return Report(
            status="findings" if found else "passed", findings=found, instructions=record.executed, seconds=seconds
        )


@dataclass(kw_only=True)
class _Packed:
    """Arguments as the engine takes them."""

    parameters: bytearray = field(default_factory=bytearray)
    ranges: list[list[int]] = field(default_factory=list)
    maps: list[native.TensorMapRecord] = field(default_factory=list)


def _finding(record: native.FindingRecord, kernel: str) -> Finding:
    return Finding(
        kind=KINDS[record.kind], kernel=kernel, line=record.line, block=(record.bx, record.by, record.bz),
        lane=record.lane, address=record.address, text=record.text.decode(errors="replace"), count=record.count,
        other_line=record.other_line,
    )  # fmt: skip


def _pack(kernel: Kernel, arguments: Sequence[Argument]) -> _Packed:
    if len(arguments) != len(kernel.parameters):
        names = ", ".join(f".{p.type}{f'[{p.bytes}]' if p.bytes > 8 else ''}" for p in kernel.parameters)
        raise LaunchError(
            f"kernel {kernel.name} takes {len(kernel.parameters)} arguments ({names}), not {len(arguments)}"
        )
    packed = _Packed()
    seen: set[int] = set()
    for k, (parameter, argument) in enumerate(zip(kernel.parameters, arguments, strict=True)):
        packed.parameters.extend(bytes(parameter.offset - len(packed.parameters)))
        if isinstance(argument, TensorMap):
            _add_range(packed, argument.tensor, k, seen)
            packed.parameters.extend(struct.pack("<QQ", _MAP_MAGIC, len(packed.maps)).ljust(parameter.bytes, b"\0"))
            packed.maps.append(_map_record(argument))
        elif isinstance(argument, torch.Tensor):
            _check_pointer(kernel, parameter, k)
            _add_range(packed, argument, k, seen)
            packed.parameters.extend(struct.pack("<Q", argument.data_ptr()))
        else:
            packed.parameters.extend(_scalar(kernel, parameter, k, argument))
    return packed


def _check_pointer(kernel: Kernel, parameter: Parameter, position: int) -> None:
    if parameter.bytes != 8:
        raise LaunchError(
            f"argument {position} of {kernel.name} is a tensor, but the parameter is .{parameter.type} of "
            f"{parameter.bytes} bytes; give a number or a TensorMap"
        )


def _add_range(packed: _Packed, tensor: torch.Tensor, position: int, seen: set[int]) -> None:
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise LaunchError(
            f"argument {position} must be a contiguous CPU tensor, not {tuple(tensor.shape)} on {tensor.device}"
        )
    begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    if begin in seen or size == 0:
        return
    seen.add(begin)
    packed.ranges.append([begin, begin + size, 1, position])


def _scalar(kernel: Kernel, parameter: Parameter, position: int, value: int | float | None) -> bytes:
    if value is None and parameter.bytes == 8:
        return bytes(8)
    if value is None or parameter.bytes > 8:
        raise LaunchError(
            f"argument {position} of {kernel.name} is {value!r}, but the parameter is .{parameter.type} of "
            f"{parameter.bytes} bytes; give a number, a tensor or a TensorMap as its size asks"
        )
    if parameter.type in ("f32", "f64"):
        return struct.pack("<f" if parameter.type == "f32" else "<d", float(value))
    if isinstance(value, float):
        raise LaunchError(
            f"argument {position} of {kernel.name} is the float {value!r}, but the parameter is .{parameter.type}"
        )
    return (int(value) & ((1 << 8 * parameter.bytes) - 1)).to_bytes(parameter.bytes, "little")


_MAP_TYPES = {torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}


def _map_record(m: TensorMap) -> native.TensorMapRecord:
    rank, size = len(m.shape), m.tensor.element_size()
    if not 1 <= rank <= 5 or len(m.box) != rank or len(m.strides) != rank - 1:
        raise LaunchError(
            f"a tensor map of shape {m.shape}, box {m.box}, strides {m.strides}: ranks 1 to 5 and rank - 1 strides"
        )
    elements = m.element_strides or (1,) * rank

    def five(values: Sequence[int], fill: int) -> ctypes.Array[ctypes.c_int64]:
        return (ctypes.c_int64 * 5)(*values, *[fill] * (5 - len(values)))

    return native.TensorMapRecord(
        address=m.tensor.data_ptr() + m.offset_bytes, dims=five(m.shape, 1), strides=five((size, *m.strides), 0),
        box=five(m.box, 1), element_strides=five(elements, 1), rank=rank, element_bytes=size,
        type=_MAP_TYPES.get(m.tensor.dtype, 0), swizzle=m.swizzle, interleave=m.interleave, nan_fill=int(m.nan_fill),
    )  # fmt: skip
