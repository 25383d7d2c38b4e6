"""Static judgement: what is wrong with a compiled kernel, told from its resources alone, without a GPU.

A rule is a function of a `Case` that returns what it finds wrong, or None. The figures that a rule allows are of the
op's algorithm, not of what a compiler happened to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nsa_codegen.desc import KernelDesc
from nsa_codegen.occupancy import occupancy
from nsa_codegen.resources import Resources
from nsa_codegen.sass import Instructions, access_bytes
from nsa_codegen.schedule import GpuSchedule
from nsa_codegen.target import GpuTarget

# Ops that multiply tiles of matrices; the others add, gate or copy.
MATRIX_OPS = ("stream_attention", "gather_attention", "select_blocks")
STREAMING_OPS = ("stream_attention",)
WARP_GROUP_ROWS = 64
# What a plain load of the main part may bring a thread: an entry of a block list, a bound, a row's log-sum or delta.
SCALAR_BYTES = 4
ELEMENT_BYTES = 2  # of keys and values on these targets


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kernel of a desc under a schedule for a target, and what it takes."""

    desc: KernelDesc
    schedule: GpuSchedule
    target: GpuTarget
    resources: Resources

    @property
    def code(self) -> Instructions:
        """Its instruction counts; judging needs nvdisasm."""
        assert self.resources.instructions is not None, "the instructions were not counted: nvdisasm is missing"
        return self.resources.instructions

    @property
    def multiplies(self) -> bool:
        """Whether it has a matrix step."""
        by_network = self.desc.op == "compress" and dict(self.desc.dims).get("method") in ("conv", "mlp")
        return self.desc.op in MATRIX_OPS or by_network


Rule = Callable[[Case], str | None]


def faults(case: Case) -> list[str]:
    """Return what is wrong with a kernel, in words; empty if nothing is."""
    return list(_faults(case))


def _faults(case: Case) -> Iterator[str]:
    for rule in RULES:
        fault = rule(case)
        if fault is not None:
            yield fault


def no_spills(case: Case) -> str | None:
    """Neither spills nor a stack: no local memory at all."""
    taken = case.resources
    if taken.spill_bytes or taken.stack_bytes or case.code.count("local"):
        count = case.code.count("local")
        return f"{taken.spill_bytes} bytes of spills, {taken.stack_bytes} of stack, {count} local accesses"
    return None


def matrix_steps_use_tensor_cores(case: Case) -> str | None:
    """Every op with a matrix step has tensor-core instructions for it, of wgmma where tiles are wide enough."""
    if not case.multiplies:
        return None
    used = case.code.by_opcode("matrix")
    if not used:
        return "a matrix step without tensor-core instructions"
    wide = case.desc.op in STREAMING_OPS and case.schedule.rows >= WARP_GROUP_ROWS
    if case.target.matrix == "wgmma" and wide and not all(opcode.startswith("HGMMA") for opcode in used):
        return f"streaming attention with {case.schedule.rows} rows multiplies by {sorted(used)}, not by HGMMA alone"
    return None


def tiles_are_copied_asynchronously(case: Case) -> str | None:
    """In the main part, tiles come by asynchronous copies: plain loads are scalars, in all less than one tile.

    Rows that a list names one by one are the exception: each copy looks up the entry that it follows, and so does the
    mask of what it brings.
    """
    if case.desc.op not in MATRIX_OPS:
        return None
    if not case.code.count("async_copy", main=True):
        return "no asynchronous copy in the main part"
    loads = case.code.by_opcode("global_load", main=True)
    tiles = {opcode: number for opcode, number in loads.items() if access_bytes(opcode) != SCALAR_BYTES}
    if tiles:
        return f"plain loads of tiles in the main part: {tiles}"
    dims = dict(case.desc.dims)
    if case.desc.op == "gather_attention" and dims.get("part") == "keys":
        looked_up, copies = sum(loads.values()), case.code.count("async_copy", main=True)
        return f"{looked_up} plain loads for {copies} copies of listed rows" if looked_up > 2 * copies else None
    brought = case.resources.threads * SCALAR_BYTES * sum(loads.values())
    tile = case.schedule.key_tile * min(int(dims[name]) for name in ("dk", "dv") if name in dims) * ELEMENT_BYTES
    return f"plain loads of {brought} bytes in the main part, a tile of {tile} among them" if brought >= tile else None


def shared_memory_fits(case: Case) -> str | None:
    """A block asks for no more shared memory than it may."""
    asked, allowed = case.resources.shared_bytes, case.target.block_shared_bytes
    return f"{asked} bytes of shared memory; a block may have {allowed}" if asked > allowed else None


def occupancy_is_what_the_figures_say(case: Case) -> str | None:
    """At least one block runs, and the stored occupancy is that of the stored registers and shared memory."""
    taken = case.resources
    fits = occupancy(
        case.target, threads=taken.threads, registers=taken.registers, shared_bytes=taken.shared_bytes
    )  # fmt: skip
    if fits.blocks == 0:
        return f"not one block fits a multiprocessor, by {fits.limited_by}"
    if (fits.blocks, fits.fraction, fits.limited_by) != (
        taken.blocks_per_processor, taken.occupancy, taken.limited_by,
    ):  # fmt: skip
        return f"the stored occupancy is {taken.blocks_per_processor} blocks; the figures give {fits.blocks}"
    return None


RULES: tuple[Rule, ...] = (
    no_spills,
    matrix_steps_use_tensor_cores,
    tiles_are_copied_asynchronously,
    shared_memory_fits,
    occupancy_is_what_the_figures_say,
)
