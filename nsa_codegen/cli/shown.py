"""Which kernels `inspect` shows: an op's of an attention, or a stored one; and what one of them is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..desc import KernelDesc
from ..errors import InputError, nearest
from ..manifest import RequestKey
from ..schedule import Schedule, ScheduleSpace, schedule_class
from ..store import Entry, KernelStore
from ..target import Target, parse_target

if TYPE_CHECKING:
    from ..program import Program

_MOST_NAMED = 5  # kernels that an error lists


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One kernel to be shown: what it is, where its schedule is from, and its entry in the store, if it has one."""

    desc: KernelDesc
    schedule: Schedule
    origin: str
    target: Target
    entry: Entry | None

    @property
    def serving(self) -> Target:
        """The target that the kernel is made for: the one that serves its dtype on `target`."""
        return self.target.serving(self.desc.dtype)

    @property
    def key(self) -> RequestKey:
        """The key under which the store has it, or would."""
        return RequestKey.of(self.desc, self.schedule, self.target)


def find_kernels(name: str, program: Program, dtype: str, target: Target, *, only_there: bool = False) -> list[Shown]:
    """Return the kernels that `name` means: an op or op_fwd or op_bwd of the program, or a stored folder or key.

    Raises `InputError` if it means none, or more than one stored kernel; and with `only_there`, for a stored kernel of
    another target than `target`.
    """
    from ..ops import OPS

    store = KernelStore()
    kinds = {op: (op, "fwd") for op in OPS} | {f"{op}_fwd": (op, "fwd") for op in OPS}
    kinds |= {f"{op.name}_bwd": (op.name, "bwd") for op in OPS.values() if op.prepare_backward is not None}
    if name in kinds:
        return _of_program(kinds[name], program, dtype, target, store)
    entries = store.entries()
    matching = [e for e in entries if e.folder.name == name]
    if not matching and name:
        matching = [e for e in entries if e.key.digest.startswith(name)]
    if len(matching) > 1:
        named = [e.folder.name for e in matching[:_MOST_NAMED]]
        more = f" and {len(matching) - _MOST_NAMED} more" if len(matching) > _MOST_NAMED else ""
        raise InputError(f"inspect: {name!r} begins the keys of {named}{more}; give more of the key")
    if matching:
        found = _of_entry(matching[0])
        if only_there and found.target != target.serving(found.desc.dtype):
            raise InputError(
                f"inspect: {name!r} is stored for {found.target.name}, and --target {target.name} is another: leave "
                f"--target out, name an op, or compare the two with --diff {target.name}"
            )
        return [found]
    raise InputError(
        f"inspect: {name!r} is neither an op nor a stored kernel's folder or key: "
        f"{nearest(name, tuple(kinds))}; `nsa-codegen list` shows what is stored"
    )


def other_kernel(kernel: Shown, wanted: str) -> Shown:
    """Return what `kernel` is compared with: itself on the target called `wanted`, or under a changed schedule.

    `wanted` is a target's name, or `field=value,...`, which replaces those fields of its schedule. Raises
    `TargetError` or `ScheduleError` for what is not known or not legal.
    """
    if "=" not in wanted:
        return _selected(kernel.desc, parse_target(wanted), KernelStore())
    parsed = schedule_class(kernel.target).parse(kernel.schedule.to_json() | _fields(wanted))
    schedule = ScheduleSpace.require(parsed, kernel.desc, kernel.target)
    changed = replace(kernel, schedule=schedule, origin=f"{kernel.origin}, with {wanted}", entry=None)
    return replace(changed, entry=KernelStore().lookup(changed.key))


def _fields(wanted: str) -> dict[str, int]:
    found = {}
    for item in wanted.split(","):
        name, _, value = item.partition("=")
        try:
            found[name.strip()] = int(value)
        except ValueError:
            raise InputError(
                f"inspect.diff = {wanted!r} is not allowed: give a target's name, or fields of the schedule with "
                f"integers, like rows=128,stages=3"
            ) from None
    return found


def _of_program(kind: tuple[str, str], program: Program, dtype: str, target: Target, store: KernelStore) -> list[Shown]:
    from ..needed import needed_descs

    descs = needed_descs(program, dtype, target=target)
    found = [d for d in descs if (d.op, d.direction) == kind]
    if not found:
        raise InputError(
            f"inspect: this attention takes no kernel {kind[0]}_{kind[1]}; it takes {sorted({d.kind for d in descs})}"
        )
    return [_selected(desc, target, store) for desc in found]


def _selected(desc: KernelDesc, target: Target, store: KernelStore) -> Shown:
    from ..selection import select

    selected = select(desc, target)
    entry = store.lookup(RequestKey.of(desc, selected.schedule, target))
    return Shown(desc=desc, schedule=selected.schedule, origin=selected.source, target=target, entry=entry)


def _of_entry(entry: Entry) -> Shown:
    key = entry.key.to_json()
    desc, target = KernelDesc.from_json(key["desc"]), parse_target(entry.key.arch)
    schedule = schedule_class(target).parse(key["schedule"])
    return Shown(desc=desc, schedule=schedule, origin=f"stored in {entry.folder}", target=target, entry=entry)
