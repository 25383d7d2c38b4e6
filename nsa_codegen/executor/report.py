"""What a run found: findings with their place in the emitted text, and the outcome in one word."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = {1: "global out of bounds", 2: "shared out of bounds", 3: "local out of bounds", 4: "misaligned",
         5: "read in flight", 6: "write in flight", 7: "pending at exit", 8: "deadlock", 9: "barrier", 10: "mbarrier",
         11: "diverged", 12: "wgmma", 13: "tensor map", 14: "race", 15: "uninitialised", 16: "budget",
         17: "address space", 18: "proxy fence", 19: "blocks conflict", 20: "lanes conflict"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that hardware would punish: where it first happened (block, lane of the block, address), how often.

    `line` is that of the emitted text (0: none), `other_line` that of the other party if there is one.
    """

    kind: str
    kernel: str
    line: int
    block: tuple[int, int, int]
    lane: int
    address: int
    text: str
    count: int = 1
    other_line: int = 0

    def __str__(self) -> str:
        other = f" (with line {self.other_line})" if self.other_line else ""
        times = f", {self.count} times" if self.count > 1 else ""
        where = f"block {self.block}, thread {self.lane}, address {self.address:#x}"
        return f"{self.kernel}:{self.line}{other}: {self.kind}: {self.text} [{where}{times}]"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of one launch: `status` is "passed", "findings" or "not executed: OPCODE, ..."."""

    status: str
    findings: tuple[Finding, ...] = ()
    instructions: int = 0  # executed, counted per warp
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """True if the launch was executed and nothing was found."""
        return self.status == "passed"

    def __str__(self) -> str:
        lines = [f"{self.status} ({self.instructions} warp instructions, {self.seconds:.3f} s)"]
        return "\n".join((*lines, *map(str, self.findings)))
