"""Fixtures: a place for compiled things, and hand-written PTX around a few instructions."""

import re
from pathlib import Path

import pytest
import torch

from nsa_codegen.executor import Executable

REGISTERS = ".reg .pred %p<16>;\n.reg .b16 %h<32>;\n.reg .b32 %r<160>;\n.reg .f32 %f<160>;\n.reg .b64 %d<64>;\n"


@pytest.fixture(scope="session")
def cache():
    return Path(__file__).parents[2] / ".cache" / "executor"


@pytest.fixture(scope="session")
def ptx(cache):
    """Return a function that runs PTX instructions as a kernel over tensors, whose addresses are `%d0`, `%d1`, ..."""

    def run(
        body,
        *arguments,
        threads=32,
        grid=(1, 1, 1),
        shared="",
        shared_bytes=0,
        clean=True,
        source_lines=False,
        **options,
    ):
        kinds = [".align 64 .b8" if not isinstance(a, torch.Tensor) else ".u64" for a in arguments]
        tails = ["[128]" if not isinstance(a, torch.Tensor) else "" for a in arguments]
        parameters = ", ".join(f".param {k} p{n}{t}" for n, (k, t) in enumerate(zip(kinds, tails, strict=True)))
        loads = "".join(
            f"ld.param.u64 %d{n}, [p{n}];\n"
            if isinstance(a, torch.Tensor)
            else f"mov.b64 %d{n}, p{n};\ncvta.param.u64 %d{n}, %d{n};\n"
            for n, a in enumerate(arguments)
        )
        numbered = body
        if source_lines:  # every line of the body is a line of the source
            numbered = "\n".join(f".loc 1 {n} 0\n{line}" for n, line in enumerate(body.strip().splitlines(), 1))
        text = (
            ".version 8.7\n.target sm_90a\n.address_size 64\n"
            + (".extern .shared .align 1024 .b8 dyn[];\n" if shared_bytes else "")
            + f".visible .entry k({parameters})\n{{\n{REGISTERS}{shared}\n{loads}"
            + f"mov.u32 %r0, %tid.x;\n{numbered}\nret;\n}}\n"
            + '.file 1 "emitted.cu"\n'
        )
        executable = Executable.of_ptx(text, cache=cache)
        report = executable.run(
            "k", grid=grid, block=(threads, 1, 1), shared_bytes=shared_bytes, arguments=list(arguments), **options
        )
        if clean:
            assert report.passed, str(report)
        return report

    return run


@pytest.fixture(scope="session")
def map_lanes(ptx):
    """Return a function that applies one instruction to lanes: inputs by lane in, outputs by lane out.

    The instruction is written with `{d}` for the result and `{a}`, `{b}`, `{c}` for the inputs; types are PTX types.
    """
    sizes = {"16": (torch.int16, "%h"), "32": (torch.int32, "%r"), "64": (torch.int64, "%d")}

    def run(instruction, result, *inputs):
        lanes = len(inputs[0])
        out_bits = re.search(r"\d+", result)[0]
        dtype, prefix = sizes[out_bits]
        out = torch.zeros(lanes, dtype=dtype)
        body = "cvt.u64.u32 %d40, %r0;\n"
        names = {"d": f"{prefix}20"}
        for n, values in enumerate(inputs):
            size = values.element_size()
            _, register = sizes[str(8 * size)]
            names["abc"[n]] = f"{register}{21 + n}"
            body += f"mad.lo.u64 %d41, %d40, {size}, %d{n + 1};\nld.global.b{8 * size} {register}{21 + n}, [%d41];\n"
        body += instruction.format(**names) + ";\n"
        body += f"mad.lo.u64 %d41, %d40, {out.element_size()}, %d0;\nst.global.b{out_bits} [%d41], {prefix}20;\n"
        ptx(body, out, *inputs, threads=lanes)
        return out

    return run
