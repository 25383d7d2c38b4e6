"""Types as they are stored: float16 and bfloat16 are read and written as torch does it, by one and by the vector."""

from __future__ import annotations

import ctypes
import shlex
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nsa_codegen.compiler import compile_assembly
from nsa_codegen.target import CPU_TARGETS, CpuTarget, runs_here
from nsa_codegen.templates.cpu.common import ELEMENT, prelude

TYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
ENTRIES = """
extern "C" void up_{name}(float *dst, const uint16_t *src, int n) {{ nsa::up_row<{element}>(dst, src, n); }}
extern "C" void down_{name}(uint16_t *dst, const float *src, int n) {{ nsa::down_row<{element}>(dst, src, n, 1.0f); }}
"""
TEXT = "\n".join([prelude(), *(ENTRIES.format(name=name, element=ELEMENT[name]) for name in TYPES.values())])
SHORT = 3  # fewer numbers than any vector has
targets = pytest.mark.parametrize("target", CPU_TARGETS.values(), ids=CPU_TARGETS)
types = pytest.mark.parametrize("dtype", TYPES, ids=TYPES.values())


@pytest.fixture
def entries(library: Callable[[str, CpuTarget], ctypes.CDLL]) -> Callable[[CpuTarget], ctypes.CDLL]:
    """Return a function that gives the entries as a target has them; a test of one that doesn't run here is skipped."""

    def found(target: CpuTarget) -> ctypes.CDLL:
        if not runs_here(target):
            pytest.skip(f"this machine does not run {target.name}")
        return library(TEXT, target)

    return found


def converted(call: Callable[..., None], numbers: Tensor, to: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what `call` makes of contiguous numbers, all at once in vectors, and a few at a time."""
    many, few = (torch.empty(len(numbers), dtype=to) for _ in range(2))
    places = [x.data_ptr() for x in (many, few, numbers)]
    call(ctypes.c_void_p(places[0]), ctypes.c_void_p(places[2]), len(numbers))
    for i in range(0, len(numbers), SHORT):
        into, of = places[1] + i * few.element_size(), places[2] + i * numbers.element_size()
        call(ctypes.c_void_p(into), ctypes.c_void_p(of), min(SHORT, len(numbers) - i))
    return many, few


def same_numbers(got: Tensor, wanted: Tensor) -> bool:
    """Return whether the bits are equal but for those of NaN, which has to be one."""
    bits = torch.int32 if got.element_size() == 4 else torch.int16
    nan = wanted.isnan()
    return torch.equal(got.isnan(), nan) and torch.equal(got[~nan].view(bits), wanted[~nan].view(bits))


@targets
@types
def test_every_number_of_16_bits_is_read_as_torch_reads_it(
    target: CpuTarget, dtype: torch.dtype, entries: Callable[[CpuTarget], ctypes.CDLL]
) -> None:
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    for got in converted(getattr(entries(target), f"up_{TYPES[dtype]}"), numbers, torch.float32):
        assert same_numbers(got, numbers.float())


@targets
@types
def test_numbers_are_rounded_to_16_bits_as_torch_rounds_them(
    target: CpuTarget, dtype: torch.dtype, entries: Callable[[CpuTarget], ctypes.CDLL]
) -> None:
    """Each number of 16 bits, its middle to the next one, and what is next to these, on either side of zero."""
    halves = torch.arange(0, 1 << 15, 5, dtype=torch.int16)
    here, following = (x.view(dtype).float().view(torch.int32) for x in (halves, halves + 1))
    middle = here + (following - here) // 2
    magnitudes = torch.cat([x + step for x in (here, middle) for step in (-1, 0, 1)]).clamp(min=0)
    numbers = torch.cat([magnitudes, magnitudes | -(1 << 31)]).view(torch.float32)
    for got in converted(getattr(entries(target), f"down_{TYPES[dtype]}"), numbers, dtype):
        assert same_numbers(got, numbers.to(dtype))


@targets
def test_clang_takes_the_primitives(target: CpuTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the Python package, for any target, to assembly: GCC and clang name instructions differently."""
    foreign = ("-target", "aarch64-linux-gnu") if target.name == "aarch64" else ()
    monkeypatch.setenv("CXX", shlex.join([sys.executable, "-m", "ziglang", "c++", *foreign]))
    text = compile_assembly(TEXT, target)
    assert all(f"{way}_{name}:" in text for way in ("up", "down") for name in TYPES.values())
