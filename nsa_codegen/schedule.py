"""`Schedule`: one point of how a kernel is made; `ScheduleSpace`: which points are legal, and why others are not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from .desc import KernelDesc
from .errors import ScheduleError, nearest
from .occupancy import shared_limit
from .target import CpuTarget, GpuTarget, Target


def require_integer(name: str, value: Any) -> None:
    """Raise `ScheduleError`, which names the value, unless it is an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ScheduleError(f"{name} = {value!r} is not allowed: it must be an integer")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The tuned choices of a kernel: integers by name, of one class per family of targets."""

    def values(self) -> dict[str, int]:
        """Return the values of all fields."""
        return asdict(self)

    def to_json(self) -> dict[str, int]:
        """Return the schedule as plain data, which is what files hold of it."""
        return self.values()

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        """Return the schedule that `to_json` described; raises `ScheduleError` on an unknown or non-integer field."""
        names = tuple(f.name for f in fields(cls))
        for name, value in data.items():
            if name not in names:
                raise ScheduleError(f"{cls.__name__} has no field {name!r}: {nearest(name, names)}")
            require_integer(f"{cls.__name__}.{name}", value)
        return cls(**data)

    def __str__(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self.to_json().items())


@dataclass(frozen=True, kw_only=True)
class CpuSchedule(Schedule):
    """The tuned choices of a CPU kernel.

    `query_lanes`: rows (query, head) laid side by side in the lanes of one tile; of the gathered attention, which has
    keys in the lanes, rows that meet a block together.
    `key_tile`: keys, blocks or windows taken in one step of the loop over keys.
    `register_rows`, `register_vectors`: the register tile of the product, in rows and vectors.
    """

    query_lanes: int = 64
    key_tile: int = 64
    register_rows: int = 4
    register_vectors: int = 4


@dataclass(frozen=True, kw_only=True)
class GpuSchedule(Schedule):
    """The tuned choices of a GPU kernel.

    `rows`: rows of the tile that stays (query and head, or keys in a loop over queries).
    `key_tile`: rows of the tile that is streamed past it.
    `stages`: tiles of the streamed operands in flight.
    `threads`: threads that compute; where copies have a warp group of their own, it comes on top.
    `specialized`: 1 if tensor copies (TMA) have a warp group of their own, 0 if one thread of those that compute starts
    them, so that none takes registers beside them. Other copies are made by all threads, which is 1 as well.
    """

    rows: int = 64
    key_tile: int = 64
    stages: int = 2
    threads: int = 128
    specialized: int = 1

    def to_json(self) -> dict[str, int]:
        """Return the schedule as plain data; `specialized` only where it is 0."""
        return {name: value for name, value in self.values().items() if name != "specialized" or value == 0}


def schedule_class(target: Target) -> type[Schedule]:
    """Return the class of the schedules of `target`."""
    return CpuSchedule if isinstance(target, CpuTarget) else GpuSchedule


class ScheduleSpace:
    """The schedules that a desc may have on a target."""

    cpu_axes: ClassVar[dict[str, tuple[int, ...]]] = {
        "query_lanes": (16, 32, 64, 128),
        "key_tile": (16, 32, 64, 128),
        "register_rows": (2, 4, 6, 8),
        "register_vectors": (1, 2, 4),
    }
    gpu_axes: ClassVar[dict[str, tuple[int, ...]]] = {
        "rows": (16, 32, 64, 128),
        "key_tile": (16, 32, 64, 128),
        "stages": (1, 2, 3, 4),
        "threads": (32, 64, 128, 256),
        "specialized": (0, 1),
    }

    @classmethod
    def axes(cls, desc: KernelDesc, target: Target, usual: Schedule) -> dict[str, tuple[int, ...]]:
        """Return the values of each field, that of the `usual` schedule among them; its alone where none is read."""
        fields, found = cls.cpu_axes if isinstance(target, CpuTarget) else cls.gpu_axes, usual.values()
        read = _read_on_cpu(desc, target) if isinstance(target, CpuTarget) else _read_on_gpu(desc, target)
        return {
            name: tuple(sorted({*values, found[name]})) if name in read else (found[name],)
            for name, values in fields.items()
        }

    @classmethod
    def candidates(cls, desc: KernelDesc, target: Target) -> Iterator[Schedule]:
        """Yield every legal schedule."""
        axes = cls.cpu_axes if isinstance(target, CpuTarget) else cls.gpu_axes
        for values in itertools.product(*axes.values()):
            schedule = schedule_class(target)(**dict(zip(axes, values, strict=True)))
            if cls.check(schedule, desc, target) is None:
                yield schedule

    @classmethod
    def check(cls, schedule: Schedule, desc: KernelDesc, target: Target) -> str | None:
        """Return None if `schedule` is legal for `desc` on `target`, else the reason why it is not."""
        for name, value in schedule.values().items():
            if value < 1 and name != "specialized":
                return f"{name} = {value} must be at least 1"
        if isinstance(schedule, CpuSchedule) and isinstance(target, CpuTarget):
            return _check_cpu(schedule, desc, target)
        if isinstance(schedule, GpuSchedule) and isinstance(target, GpuTarget):
            return _check_gpu(schedule, desc, target)
        return f"a {type(schedule).__name__} is not for {target.kind} targets; use a {schedule_class(target).__name__}"

    @classmethod
    def require(cls, schedule: Schedule, desc: KernelDesc, target: Target) -> Schedule:
        """Return `schedule`; raise `ScheduleError` with the reason if it is not legal."""
        reason = cls.check(schedule, desc, target)
        if reason is not None:
            raise ScheduleError(f"schedule ({schedule}) is not legal for {desc} on {target.name}: {reason}")
        return schedule


PAIRED_OPS = (
    "stream_attention",
    "gather_attention",
    "scored_attention",
)  # with products over pairs, where the target has them
SMALL_OPS = ("combine", "compress")  # whose tiles fit every GPU
NARROWED_OPS = ("stream_attention", "select_blocks", "scored_attention")  # which lay queries in lanes


def multiplies_pairs(desc: KernelDesc, target: Target) -> bool:
    """Return whether the products of `desc` are made over pairs: those of an attention, forward and backward."""
    return desc.op in PAIRED_OPS and ("part", "sums") not in desc.dims and target.takes_pairs(desc.dtype)


def _read_on_cpu(desc: KernelDesc, target: CpuTarget) -> tuple[str, ...]:
    """Return the fields that the template of a CPU kernel reads."""
    tile = () if multiplies_pairs(desc, target) else ("register_rows", "register_vectors")
    if ("part", "sums") in desc.dims:
        return ()
    if desc.op in NARROWED_OPS:
        return ("query_lanes", "key_tile", *tile)
    if desc.op == "gather_attention":
        return ("query_lanes", *tile)
    if desc.op == "compress" and desc.word("method") == "mlp":
        return ("query_lanes", *tile)
    return ()


def _read_on_gpu(desc: KernelDesc, target: Target) -> tuple[str, ...]:
    """Return the fields that the template of a GPU kernel reads."""
    read = tuple(ScheduleSpace.gpu_axes)
    return read if isinstance(target, GpuTarget) and has_tensor_copies(desc, target) else read[:-1]


def has_tensor_copies(desc: KernelDesc, target: GpuTarget) -> bool:
    """Return whether the loops of a kernel copy whole tiles by TMA: not rows of queries past a tile of keys."""
    if target.copy != "tma" or ("part", "keys") in desc.dims:
        return False
    return desc.op in ("stream_attention", "gather_attention", "select_blocks") or ("method", "mlp") in desc.dims


def narrowed(schedule: Schedule, desc: KernelDesc, target: Target) -> Schedule:
    """Return the schedule for calls of few queries, as in decoding: as many lanes as the heads of one query fill.

    It is `schedule` itself where that has no more, and for kernels that do not lay queries in lanes.
    """
    if not isinstance(schedule, CpuSchedule) or not isinstance(target, CpuTarget) or not has_few(desc):
        return schedule
    lanes = lanes_of_one_query(desc.size("group"), target)
    if lanes >= schedule.query_lanes:
        return schedule
    found = dataclasses.replace(schedule, query_lanes=lanes)
    return found if ScheduleSpace.check(found, desc, target) is None else schedule


def has_few(desc: KernelDesc) -> bool:
    """Return whether calls of few queries have a kernel of their own: a forward that lays queries in lanes."""
    return desc.direction == "fwd" and desc.op in NARROWED_OPS


def lanes_of_one_query(group: int, target: CpuTarget) -> int:
    """Return how many lanes the `group` heads of one query fill, in whole vectors and a power of two."""
    return max(target.lanes, 1 << (group - 1).bit_length())


MAX_SCRATCH_BYTES = 1 << 20
MAX_HELD_BYTES = 2 << 20  # of lists and of an mlp's gradients, beside tiles; a thread's stack may be 8 MB, or less
MATRIX_ROWS = 16  # rows of one matrix instruction of a warp
MATRIX_COLUMNS = 8  # and its columns
WARP_GROUP = 4  # warps whose matrix instructions are one
WARP_GROUP_ROWS = 64
LEAST_TRANSPOSED = 32  # columns of a tile that wgmma reads as it is and transposed
MMA_ACCUMULATORS = 120  # of 255 registers; the rest goes to fragments of both operands and to addresses
WGMMA_ACCUMULATORS = 190  # of a loop over queries, which makes five products; others leave enough whatever they hold
MEMBER_BITS = 32  # of the word that says which queries of a tile list a block


def _check_cpu(schedule: CpuSchedule, desc: KernelDesc, target: CpuTarget) -> str | None:
    if schedule.query_lanes % target.lanes:
        return f"query_lanes = {schedule.query_lanes} is not a multiple of the {target.lanes} lanes of {target.name}"
    tile = schedule.register_rows * schedule.register_vectors
    needed = tile + schedule.register_vectors + 1
    if needed > target.vector_registers:
        have = target.vector_registers
        return f"a register tile of {tile} vectors needs {needed} registers; {target.name} has {have}"
    scratch = 4 * schedule.query_lanes * (schedule.key_tile + desc_depth(desc))
    if scratch > MAX_SCRATCH_BYTES:
        return f"tiles of {scratch} bytes pass the {MAX_SCRATCH_BYTES} allowed on a worker's stack"
    held = _list_bytes(desc, schedule.query_lanes) + _gradient_bytes(desc)
    if held > MAX_HELD_BYTES:
        return f"lists or gradients of {held} bytes pass the {MAX_HELD_BYTES} allowed on a worker's stack"
    return None


def _list_bytes(desc: KernelDesc, lanes: int) -> int:
    """Return what a CPU kernel of listed blocks holds of a tile's lists: four numbers an entry."""
    if desc.op != "gather_attention" or ("part", "sums") in desc.dims:
        return 0
    dims: dict[str, Any] = dict(desc.dims)
    return 16 * int(dims.get("n", 0)) * max(1, lanes // int(dims.get("group", 1)))


def _gradient_bytes(desc: KernelDesc) -> int:
    """Return what the CPU's gradients of an mlp's weights are summed in: twice the greater matrix of one token."""
    if desc.op != "compress" or ("part", "weights") not in desc.dims or ("method", "mlp") not in desc.dims:
        return 0
    return 8 * desc.size("hidden") * desc.size("dim")


def _check_gpu(schedule: GpuSchedule, desc: KernelDesc, target: GpuTarget) -> str | None:
    if schedule.threads % target.warp:
        return f"threads = {schedule.threads} is not a multiple of the {target.warp} threads of a warp of {target.name}"
    if schedule.rows % MATRIX_ROWS or schedule.key_tile % MATRIX_ROWS:
        return f"rows and key_tile must be multiples of the {MATRIX_ROWS} rows of a matrix instruction"
    if (lacking := target.lacks_kernels(desc.dtype)) is not None:
        return lacking
    if schedule.specialized not in (0, 1):
        return f"specialized = {schedule.specialized} must be 0 or 1"
    if schedule.specialized == 0 and not has_tensor_copies(desc, target):
        return "specialized = 0 is for loops with tensor copies (TMA), which this kernel has not on " + target.name
    if desc.op in SMALL_OPS:
        return None
    depths = [v for k, v in desc.dims if k in ("dk", "dv") and isinstance(v, int)]
    odd = [d for d in depths if d % MATRIX_ROWS]
    if odd:
        return f"head dims {odd} are not multiples of {MATRIX_ROWS}, which matrix instructions of {target.name} take"
    warps = schedule.threads // target.warp
    if ("part", "keys") in desc.dims:  # warps share the tile by rows and columns
        block = dict(desc.dims).get("block", schedule.rows)
        rows = min(schedule.rows, ceil_to(int(block), MATRIX_ROWS))
        wide = MATRIX_ROWS if target.matrix == "mfma" else MATRIX_COLUMNS
        if target.matrix == "wgmma" and rows >= WARP_GROUP_ROWS and min(depths) < LEAST_TRANSPOSED:
            return f"wgmma reads tiles of {min(depths)} columns either way in layouts that contradict each other"
        for columns in (schedule.key_tile, *depths):
            if not _can_share(warps, rows, columns, wide):
                return f"{warps} warps can't share {rows}x{columns} evenly in pieces of {MATRIX_ROWS}x{wide}"
    elif depths and schedule.rows < MATRIX_ROWS * warps:
        return f"{warps} warps need {MATRIX_ROWS * warps} rows, {MATRIX_ROWS} each; rows = {schedule.rows}"
    if "gather_attention" in desc.op and ("part", "keys") not in desc.dims:
        queries = schedule.rows // min(schedule.rows, desc.size("group"))
        if queries > MEMBER_BITS:
            return f"{queries} queries of a tile are more than the {MEMBER_BITS} bits that say who lists a block"
    most_held = most_accumulators(desc, target)
    if most_held is not None and (held := accumulators(schedule, desc)) > most_held:
        return f"a thread holds {held} accumulators and scores; beyond {most_held} {target.name} spills"
    if desc.op == "select_blocks" and schedule.rows < desc.size("group"):
        return f"rows = {schedule.rows} are less than the {desc.size('group')} heads whose scores are summed"
    needed = _tile_bytes(schedule, desc)
    if needed > target.block_shared_bytes:
        return f"tiles take {needed} bytes of shared memory; {target.name} has {target.block_shared_bytes} per block"
    return None


def _can_share(warps: int, rows: int, columns: int, wide: int) -> bool:
    """Return whether warps, so many down and so many across, have equal parts of a product in whole instructions."""
    shapes = ((down, warps // down) for down in range(1, warps + 1) if warps % down == 0)
    return any(rows % (MATRIX_ROWS * down) == 0 and columns % (wide * across) == 0 for down, across in shapes)


def most_accumulators(desc: KernelDesc, target: GpuTarget) -> int | None:
    """Return how many float32 registers of sums and scores a thread may hold before it spills; None if any number."""
    if desc.op not in ("stream_attention", "gather_attention"):
        return None
    if target.matrix == "wgmma":
        return WGMMA_ACCUMULATORS if ("part", "keys") in desc.dims else None
    return MMA_ACCUMULATORS if target.matrix == "mma" else None


def accumulators(schedule: GpuSchedule, desc: KernelDesc) -> int:
    """Return the float32 registers that sums and scores of an attention kernel take of a thread."""
    part = str(dict(desc.dims).get("part", "forward"))
    depth = {"forward": desc.size("dv"), "queries": desc.size("dk"), "keys": desc.size("dk") + desc.size("dv")}[part]
    scores = schedule.key_tile * (3 if part == "forward" else 5) // 2  # once or twice as float32, once in half
    return schedule.rows * (depth + scores) // schedule.threads


def too_few_blocks(schedule: Schedule, desc: KernelDesc, target: Target, least: int) -> str | None:
    """Return None if tiles of `least` thread blocks fit the shared memory of a multiprocessor, else the reason."""
    if not (isinstance(schedule, GpuSchedule) and isinstance(target, GpuTarget)) or desc.op in SMALL_OPS:
        return None
    limit = shared_limit(target, _tile_bytes(schedule, desc))
    if limit.blocks >= least:
        return None
    needed = least * limit.per_block
    return f"{least} thread blocks take {needed} bytes; a multiprocessor of {target.name} has {limit.available}"


def _tile_bytes(schedule: GpuSchedule, desc: KernelDesc) -> int:
    return _selection_bytes(schedule, desc) if desc.op == "select_blocks" else shared_bytes(schedule, desc)


def _selection_bytes(schedule: GpuSchedule, desc: KernelDesc) -> int:
    rows, width, dk = schedule.rows, schedule.key_tile, desc.size("dk")
    if desc.word("method") == "mean_key":  # float32 means, and two parts of queries and means
        return 4 * rows * dk + 4 * (schedule.stages + 1) * width * dk + 4 * rows * (width + 1)
    queries = rows // desc.size("group")
    return 2 * rows * dk + 2 * schedule.stages * width * dk + 4 * rows * (width + 8) + 8 * queries * width


def shared_bytes(schedule: GpuSchedule, desc: KernelDesc) -> int:
    """Return the shared memory that the tiles of an attention kernel take, in bytes, without what lists take."""
    dk, dv, element = desc.size("dk"), desc.size("dv"), 2
    part = dict(desc.dims).get("part", "forward")
    streamed = schedule.stages * schedule.key_tile * (dk + dv) * element
    if part == "forward":
        return schedule.rows * dk * element + streamed
    held = schedule.rows * (dk + dv) * element
    if part == "queries":
        return held + streamed
    logs = 2 * schedule.stages * schedule.key_tile * 4
    return held + streamed + schedule.rows * schedule.key_tile * element + logs


def ceil_to(size: int, step: int) -> int:
    """Return `size` rounded up to a multiple of `step`."""
    return -(-size // step) * step


def desc_depth(desc: KernelDesc) -> int:
    """Return the feature rows that a tile of `desc` keeps per lane: keys' and values' dims together."""
    return sum(v for k, v in desc.dims if k in ("dk", "dv", "dim", "hidden") and isinstance(v, int))
