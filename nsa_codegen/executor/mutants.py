"""Mutants of a kernel: each synchronisation, wait, mask or index statement of its PTX damaged in turn.

The executor is tested by them: it has to notice the damage, by a finding or by a wrong result. A mutant is a parsed
kernel with one statement changed, so that no compiler runs between one mutant and the next.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .executable import Executable
from .ptx import Kernel, Statement

_DROPPED = ("bar.sync", "barrier.sync", "barrier.cta.sync", "mbarrier.arrive", "mbarrier.expect_tx",
            "cp.async.commit_group", "cp.async.wait_all", "wgmma.fence", "wgmma.commit_group", "fence.proxy.async",
            "cp.async.bulk.commit_group", "cp.async.bulk.wait_group", "cp.async.mbarrier.arrive",
            "bar.warp.sync")  # fmt: skip
_LATER = ("cp.async.wait_group", "wgmma.wait_group")
_NEIGHBOURS = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq", "ltu": "leu", "leu": "ltu",
               "gtu": "geu", "geu": "gtu"}  # fmt: skip
_INDEX = re.compile(r"(add|sub|mul\.lo|mul\.wide|mad\.lo|mad\.wide|shl|and|or|xor)\.(s32|u32|s64|u64|b32|b64)$")
_NUMBER = re.compile(r"-?\d+$")
_NOTHING = Statement(guard=None, negated=False, opcode="nop", operands=(), line=0)


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A damaged kernel: what was done to the statement at `position`, and the emitted text's line of that statement."""

    family: str  # synchronisation, wait, mask or index
    what: str
    position: int
    line: int
    kernel: Kernel


def mutants_of(kernel: Kernel) -> Iterator[Mutant]:
    """Yield every mutant of `kernel`, in the order of its statements."""
    for position, statement in enumerate(kernel.statements):
        for family, damaged in _damages(statement):
            statements = (*kernel.statements[:position], damaged, *kernel.statements[position + 1 :])
            before = f"{statement.opcode} {', '.join(statement.operands)}".strip()
            after = "nothing" if damaged.opcode == "nop" else f"{damaged.opcode} {', '.join(damaged.operands)}"
            yield Mutant(
                family=family, what=f"{before} -> {after}", position=position, line=statement.line,
                kernel=replace(kernel, statements=statements),
            )  # fmt: skip


def sample_of(kernel: Kernel, *, seed: int, mask: int, index: int) -> list[Mutant]:
    """Return all synchronisation and wait mutants of `kernel`, and `mask` and `index` ones drawn by `seed`."""
    every = list(mutants_of(kernel))
    chosen = [m for m in every if m.family in ("synchronisation", "wait")]
    rng = random.Random(seed)
    for family, count in (("mask", mask), ("index", index)):
        some = [m for m in every if m.family == family]
        chosen += rng.sample(some, min(count, len(some)))
    return sorted(chosen, key=lambda m: m.position)


def executable_of(mutant: Mutant, original: Executable) -> Executable:
    """Return an executable that has the mutant in its kernel's place."""
    return Executable(kernels={**original.kernels, mutant.kernel.name: mutant.kernel}, cache=original.cache)


def _damages(s: Statement) -> Iterator[tuple[str, Statement]]:
    if s.opcode.startswith(_LATER):
        yield "wait", replace(s, operands=(str(int(s.operands[0], 0) + 1),))
    elif s.opcode.startswith("mbarrier.try_wait"):
        yield "wait", replace(s, opcode="setp.eq.s32", operands=(s.operands[0], "0", "0"))
    elif s.opcode.startswith("mbarrier.init"):
        yield "synchronisation", replace(s, operands=(s.operands[0], "77"))
    elif s.opcode.startswith(_DROPPED):
        yield "synchronisation", replace(_NOTHING, line=s.line)
        if "expect_tx" in s.opcode:
            yield (
                "synchronisation",
                replace(s, opcode=s.opcode.replace(".arrive.expect_tx", ".arrive"), operands=s.operands[:-1]),
            )
    elif s.opcode.startswith("setp."):
        parts = s.opcode.split(".")
        if parts[1] in _NEIGHBOURS:
            yield "mask", replace(s, opcode=".".join(("setp", _NEIGHBOURS[parts[1]], *parts[2:])))
    elif _INDEX.match(s.opcode) and _NUMBER.match(s.operands[-1]):
        yield "index", replace(s, operands=(*s.operands[:-1], str(int(s.operands[-1]) + 1)))
