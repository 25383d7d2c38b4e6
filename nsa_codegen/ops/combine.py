"""`combine`: the gated sum of the paths' outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..desc import KernelDesc
from ..schedule import CpuSchedule, GpuSchedule
from ..tiling import ceil_div
from .base import Call, Extent, ExtentOf, Launch, OpDef, Sizes, Values, Work, draw, element_bytes, scratch

ROWS_PER_TASK = 256


def make_inputs(desc: KernelDesc, sizes: Sizes, generator: torch.Generator) -> Values:
    """Return random path outputs and gates between 0 and 1."""
    paths = desc.size("paths")
    lead = (sizes.batch, sizes.tokens, sizes.kv_heads)
    outs = [draw(generator, desc.dtype, *lead, desc.size("dv")) for _ in range(paths)]
    shape = (paths,) if desc.word("gates") == "scalar" else (*lead, paths)
    return {"outs": outs, "gates": draw(generator, desc.dtype, *shape).sigmoid()}


def run_reference(desc: KernelDesc, *, outs: list[Tensor], gates: Tensor) -> tuple[Tensor]:
    """Return the sum by the eager definition."""
    return (reference.combine(outs, gates),)


def prepare(
    desc: KernelDesc,
    schedule: CpuSchedule,
    workers: int,
    *,
    outs: list[Tensor],
    gates: Tensor,
    into: Tensor | None = None,
) -> Launch:
    """Return the launch; `into` is written, else a new tensor."""
    out = torch.empty_like(outs[0]) if into is None else into
    rows = out.numel() // out.shape[-1]
    values: Values = {f"o{p}": o for p, o in enumerate(outs)}
    values.update(gates=gates_as_read(gates, out.dtype), out=out)
    return extent(desc, schedule)(Call(workers, 1, rows, rows, 1, 0, 1)).launch(values, (out,))


def extent(desc: KernelDesc, schedule: CpuSchedule) -> ExtentOf:
    """Return the extent by sizes, heads being those of queries: one task per run of rows (batch, token, head)."""

    def of(call: Call) -> Extent:
        rows = call.batch * call.tokens * call.heads
        return Extent(ceil_div(rows, ROWS_PER_TASK), {"rows": rows, "rows_per_task": ROWS_PER_TASK}, {})

    return of


def gates_as_read(gates: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gates as the kernels read them: [P] as float32, [B, T, H, P] in the outputs' type."""
    return gates.to(read_as(gates, dtype)).contiguous()


def read_as(gates: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the type that the kernels read gates in."""
    return torch.float32 if gates.dim() == 1 else dtype


def prepare_backward(
    desc: KernelDesc, schedule: CpuSchedule, workers: int, *, outs: list[Tensor], gates: Tensor, dout: Tensor
) -> Launch:
    """Return the launch: gradients of the outputs, then float32 gradients of the gates by row, [rows, paths]."""
    rows, paths = dout.numel() // dout.shape[-1], len(outs)
    grads, grad_gates = [torch.empty_like(o) for o in outs], scratch(rows, paths)
    values: Values = {f"o{p}": o for p, o in enumerate(outs)}
    values.update({f"d{p}": d for p, d in enumerate(grads)})
    values.update(gates=gates_as_read(gates, dout.dtype), dout=dout, grad_gates=grad_gates)
    return extent(desc, schedule)(Call(workers, 1, rows, rows, 1, 0, 1)).launch(values, (*grads, grad_gates))


def prepare_gpu(
    desc: KernelDesc, schedule: GpuSchedule, *, outs: list[Tensor], gates: Tensor, dout: Tensor | None = None
) -> Launch:
    """Return the launch of the forward or the backward, with what `prepare` and `prepare_backward` return."""
    values: Values = {f"o{p}": o for p, o in enumerate(outs)} | {"gates": gates_as_read(gates, outs[0].dtype)}
    if dout is None:
        out = torch.empty_like(outs[0])
        return Launch(tasks=out.numel(), values=values | {"out": out}, outputs=(out,))
    grads = [torch.empty_like(o) for o in outs]
    rows = dout.numel() // dout.shape[-1]
    grad_gates = torch.empty((rows, len(outs)), dtype=torch.float32, device=dout.device)
    values |= {f"d{p}": d for p, d in enumerate(grads)} | {"dout": dout, "grad_gates": grad_gates}
    return Launch(tasks=rows, values=values, outputs=(*grads, grad_gates))


def work(desc: KernelDesc, sizes: Sizes) -> Work:
    """Return a multiply-add per input element, and all operands once."""
    elements = sizes.batch * sizes.tokens * sizes.kv_heads * desc.size("dv")
    paths = desc.size("paths")
    return Work(operations=2 * paths * elements, bytes=(paths + 1) * elements * element_bytes(desc.dtype))


COMBINE = OpDef(
    name="combine",
    summary="sum over paths of gate times output",
    inputs={"outs": "P x B T H Dv", "gates": "P | B T H P"},
    outputs={"out": "B T H Dv"},
    samples=tuple(
        KernelDesc.of("combine", dtype, paths=paths, dv=dv, gates=gates)
        for dtype, paths, dv, gates in (
            ("float32", 3, 32, "scalar"),
            ("float32", 2, 80, "sigmoid"),
            ("bfloat16", 3, 64, "sigmoid"),
            ("float16", 4, 8, "scalar"),
        )
    ),
    make_inputs=make_inputs,
    reference=run_reference,
    prepare=prepare,
    extent=extent,
    work=work,
    prepare_backward=prepare_backward,
    prepare_gpu=prepare_gpu,
)
