"""Occupancy: how many blocks of a kernel one multiprocessor of a target runs at once, and which limit says so.

The rules are those of NVIDIA's cuda_occupancy.h (CUDA toolkit 13.0): registers are given to warps in units and
out of the share of their partition, shared memory to blocks in units and with the system's part on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import TargetError
from .target import GpuTarget

MAX_BLOCK_THREADS = 1024  # CUDA C++ Programming Guide, 'Compute Capabilities'; the same for gfx9


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One resource of a multiprocessor: what a block is given of it, what there is, and the blocks that it allows.

    Registers count 32 bits, shared memory bytes. `blocks` is 0 where a block alone asks for more than it may.
    """

    name: str
    per_block: int
    available: int
    blocks: int


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """How many blocks of a kernel fit one multiprocessor, and why no more.

    `limits` are registers, shared memory, warps and blocks; `blocks` is the least that one allows, 0 if not one
    block fits; `fraction` is the part of the multiprocessor's warps that they fill.
    """

    limits: tuple[Limit, ...]
    blocks: int
    warps_per_block: int
    fraction: float

    @property
    def limited_by(self) -> tuple[str, ...]:
        """The names of the limits that bind."""
        return tuple(limit.name for limit in self.limits if limit.blocks == self.blocks)


def occupancy(target: GpuTarget, *, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Return the occupancy of a kernel: threads per block, registers per thread, static and dynamic shared bytes.

    Raises `TargetError` if `threads` is not from 1 to 1024.
    """
    warps = _warps(target, threads)
    limits = (
        _registers(target, warps, registers),
        shared_limit(target, shared_bytes),
        Limit(name="warps", per_block=warps, available=target.warps, blocks=target.warps // warps),
        Limit(name="blocks", per_block=1, available=target.blocks, blocks=target.blocks),
    )
    blocks = min(limit.blocks for limit in limits)
    return Occupancy(limits=limits, blocks=blocks, warps_per_block=warps, fraction=blocks * warps / target.warps)


def max_registers(target: GpuTarget, *, threads: int, blocks: int = 1) -> int:
    """Return how many registers a thread may have for `blocks` blocks of `threads` threads to be resident.

    0 if no number allows it, by registers or by warps. Raises `TargetError` as `occupancy` does.
    """
    warps = _warps(target, threads)
    if blocks * warps > target.warps:
        return 0
    step = target.register_unit // target.warp
    counts = range(target.thread_registers // step * step, 0, -step)
    allowed = next((n for n in counts if _registers(target, warps, n).blocks >= blocks), 0)
    return target.thread_registers if _registers(target, warps, target.thread_registers).blocks >= blocks else allowed


def _warps(target: GpuTarget, threads: int) -> int:
    if not 1 <= threads <= MAX_BLOCK_THREADS:
        raise TargetError(f"a block of {threads} threads is not allowed; 1 to {MAX_BLOCK_THREADS} are")
    return -(-threads // target.warp)


def _registers(target: GpuTarget, warps: int, registers: int) -> Limit:
    of_warp = _round_up(max(registers, 1) * target.warp, target.register_unit)
    blocks = target.registers // target.partitions // of_warp * target.partitions // warps
    # A launch is checked as if every partition got as many warps as the fullest one.
    assumed = of_warp * _round_up(warps, target.partitions)
    if registers > target.thread_registers or assumed > target.registers:
        blocks = 0
    return Limit(name="registers", per_block=of_warp * warps, available=target.registers, blocks=blocks)


def shared_limit(target: GpuTarget, shared_bytes: int) -> Limit:
    """Return how many blocks of so many bytes each the shared memory of a multiprocessor holds."""
    of_block = _round_up(shared_bytes + target.reserved_bytes, target.shared_unit)
    blocks = target.shared_bytes // of_block if of_block else target.blocks
    if shared_bytes > target.block_shared_bytes:
        blocks = 0
    return Limit(name="shared memory", per_block=of_block, available=target.shared_bytes, blocks=blocks)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
