"""What a product asks memory for while it computes: every line once, spread evenly over the steps that there are."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsa_codegen.target import CpuTarget, native_target
from nsa_codegen.templates.cpu.common import prelude

LINE = 64  # bytes
TEXT = (
    """#include <stdint.h>
static int64_t *asked_for;
static int64_t asked;
#define __builtin_prefetch(address, written, near) (asked_for[asked++] = (int64_t)(address))
"""
    + prelude()
    + """
extern "C" int64_t ask(int64_t *addresses, int64_t *at_step, int64_t from, int64_t stride, int first, int count,
                       int width, int part, int parts, int steps) {
  asked_for = addresses, asked = 0;
  auto lines = nsa::lines<nsa::f32, false>((const float *)from, stride, first, count, width, part, parts);
  lines.spread(steps);
  for (int step = 0; step < steps; step++) {
    int64_t before = asked;
    lines.next();
    if (asked > before)
      at_step[before] = step;
  }
  return asked;
}
"""
)


@pytest.fixture(scope="module")
def ask(library: Callable[[str, CpuTarget], ctypes.CDLL]) -> Callable[..., list[tuple[int, int]]]:
    """Return a function that gives the lines that are asked for, by number from address 0 on, with their steps."""
    entry = library(TEXT, native_target()).ask
    entry.restype = ctypes.c_int64
    entry.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [ctypes.c_int] * 6

    def found(
        *, stride: int, first: int, count: int, width: int, part: int, parts: int, steps: int
    ) -> list[tuple[int, int]]:
        lines, at = ((ctypes.c_int64 * max(1, steps))() for _ in range(2))
        many = entry(lines, at, 0, stride, first, count, width, part, parts, steps)
        return [(lines[i] // LINE, at[i]) for i in range(many)]

    return found


@given(data=st.data())
def test_every_line_is_asked_for_once_and_evenly(
    ask: Callable[..., list[tuple[int, int]]], data: st.DataObject
) -> None:
    width, parts = data.draw(st.integers(1, 80), "width"), data.draw(st.integers(1, 9), "parts")
    first, count = data.draw(st.integers(0, 5), "first"), data.draw(st.integers(0, 20), "count")
    each = -(-width * 4 // LINE)
    apart = each + data.draw(st.integers(0, 3), "lines between")
    wanted = [apart * (first + piece) + line for piece in range(count) for line in range(each)]
    steps = data.draw(st.integers(len(wanted) + 1, 1000), "steps")
    shares = [
        ask(stride=apart * LINE // 4, first=first, count=count, width=width, part=part, parts=parts, steps=steps)
        for part in range(parts)
    ]
    assert [line for share in shares for line, _ in share] == wanted
    for share in shares:
        between = {after - before for (_, before), (_, after) in itertools.pairwise(share)}
        assert between <= {steps // max(1, len(share))}


@given(data=st.data())
def test_of_more_lines_than_steps_the_first_are_asked_for(
    ask: Callable[..., list[tuple[int, int]]], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, 20), "count")
    steps = data.draw(st.integers(0, count), "steps")
    found = ask(stride=LINE // 4, first=0, count=count, width=LINE // 4, part=0, parts=1, steps=steps)
    assert found == [(step, step) for step in range(steps)]
