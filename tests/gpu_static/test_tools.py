"""nvcc, nvdisasm and the occupancy header themselves: small kernels whose figures follow from their text.

They need nvcc (a CUDA toolkit, or `pip install 'tilelang[nvcc]'`) and nvdisasm (the extra `gpu`), and no GPU.
"""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from nsa_codegen.compiler import find_compiler
from nsa_codegen.errors import CompilerError
from nsa_codegen.nvcc import compile_cubin, emit_ptx, find_nvcc
from nsa_codegen.occupancy import occupancy
from nsa_codegen.resources import Resources, cubin_resources
from nsa_codegen.sass import disassemble
from nsa_codegen.target import GPU_TARGETS, GpuTarget

CUDA = [t for t in GPU_TARGETS.values() if t.kind == "cuda"]
# A loop of unknown length around one asynchronous copy of 16 bytes, one matrix product, and one plain load of 4.
STEPS = """\
extern "C" __global__ void __launch_bounds__(128) steps(const char* in, const int* list, float* out, int n) {
  __shared__ __align__(16) char tile[2048];
  unsigned to = (unsigned)__cvta_generic_to_shared(tile) + threadIdx.x * 16;
  float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
  #pragma unroll 1
  for (int i = 0; i < n; ++i) {
    const char* from = in + (long long)list[i] * 2048 + threadIdx.x * 16;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    unsigned a = ((volatile unsigned*)tile)[threadIdx.x];
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%4,%4,%4}, {%4,%4}, {%0,%1,%2,%3};"
      : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3) : "r"(a));
    __syncthreads();
  }
  ((float4*)out)[threadIdx.x] = make_float4(d0, d1, d2, d3);
}
"""
# More live values than 1024 threads leave registers for.
SPILLS = """\
extern "C" __global__ void __launch_bounds__(1024) spills(const float* in, float* out, int n) {
  float v[160];
  #pragma unroll
  for (int i = 0; i < 160; ++i) v[i] = in[i * 1024 + threadIdx.x];
  for (int j = 0; j < n; ++j) {
    #pragma unroll
    for (int i = 0; i < 160; ++i) v[i] = v[i] * v[(i + 7) % 160] + in[j];
  }
  #pragma unroll
  for (int i = 0; i < 160; ++i) out[i * 1024 + threadIdx.x] = v[i];
}
"""


def resources_of(text: str, target: GpuTarget, folder: Path, threads: int) -> Resources:
    return cubin_resources(compile_cubin(text, target, folder), threads=threads, shared_bytes=4096, target=target)


@pytest.mark.parametrize("target", CUDA, ids=str)
def test_a_kernels_figures_follow_from_its_text(target: GpuTarget, tmp_path: Path) -> None:
    found = resources_of(STEPS, target, tmp_path, 128)
    assert (found.kernel, found.target, found.spill_bytes, found.stack_bytes) == ("steps", target.name, 0, 0)
    assert found.static_shared_bytes == 2048 and found.shared_bytes == 2048 + 4096 and found.barriers == 1
    assert 10 < found.registers < 64
    code = found.instructions
    assert code is not None
    assert code.by_opcode("matrix", main=True) == {"HMMA.16816.F32": 1} == code.by_opcode("matrix")
    assert code.count("async_copy") == code.count("async_copy", main=True) == 1
    assert code.loads_of(4, main=True) == code.count("global_load") == 1  # the list's entry
    assert code.count("global_store") == 1 and code.count("barrier") == 2 and code.count("local") == 0
    fits = occupancy(target, threads=128, registers=found.registers, shared_bytes=6144)
    assert (found.blocks_per_processor, found.limited_by) == (fits.blocks, fits.limited_by)


@pytest.mark.parametrize("target", CUDA, ids=str)
def test_spills_are_seen_by_the_assembler_and_in_the_code(target: GpuTarget, tmp_path: Path) -> None:
    found = resources_of(SPILLS, target, tmp_path, 1024)
    assert found.registers <= 64 and found.spill_store_bytes > 0 and found.spill_load_bytes > 0
    assert found.stack_bytes >= 4 * (160 - 64)
    assert found.instructions is not None and found.instructions.count("local") > 0


def test_the_same_text_gives_the_same_bytes_wherever_it_is_compiled(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (compile_cubin(STEPS, GPU_TARGETS["sm_90a"], tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    lined = compile_cubin(STEPS, GPU_TARGETS["sm_90a"], tmp_path, lineinfo=True)
    assert lined.stat().st_size > one.stat().st_size


def test_ptx_and_sass_are_texts_of_the_kernel(tmp_path: Path) -> None:
    target = GPU_TARGETS["sm_80"]
    assert ".target sm_80" in emit_ptx(STEPS, target)
    text = disassemble(compile_cubin(STEPS, target, tmp_path))
    assert ".text.steps" in text and text.count("LDGSTS") == 1


def test_an_error_of_the_text_shows_its_line(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match=r"(?s)ended with status .*kernel\.cu\(1\): error"):
        compile_cubin("__global__ void k() { wrong; }", GPU_TARGETS["sm_80"], tmp_path)


PROGRAM = """\
#include <climits>
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int major, minor, warps, shared, threads, registers, dynamic;
  while (scanf("%d %d %d %d %d %d %d", &major, &minor, &warps, &shared, &threads, &registers, &dynamic) == 7) {
    cudaOccDeviceProp p;
    p.computeMajor = major, p.computeMinor = minor, p.warpSize = 32, p.numSms = 1, p.maxThreadsPerBlock = 1024;
    p.maxThreadsPerMultiprocessor = 32 * warps, p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.sharedMemPerBlock = 49152, p.sharedMemPerMultiprocessor = shared;
    p.sharedMemPerBlockOptin = shared - 1024, p.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes a = {};
    a.maxThreadsPerBlock = 1024, a.numRegs = registers, a.partitionedGCConfig = PARTITIONED_GC_OFF;
    a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, a.maxDynamicSharedSizeBytes = INT_MAX;
    cudaOccDeviceState s;
    cudaOccResult r;
    int error = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, threads, dynamic);
    printf("%d\\n", error ? -error : r.activeBlocksPerMultiprocessor);
  }
}
"""


def test_occupancy_is_nvidias_over_a_grid(tmp_path: Path) -> None:
    (tmp_path / "occupancy.cpp").write_text(PROGRAM)
    include = find_nvcc().home / "include"
    command = [*find_compiler().command, f"-I{include}", "occupancy.cpp", "-o", "occupancy"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    grid = [
        (target, threads, registers, shared)
        for target in CUDA
        for threads, registers, shared in itertools.product(
            (32, 96, 128, 160, 256, 384, 512, 1024),
            (8, 32, 63, 64, 65, 96, 128, 168, 169, 224, 255),
            (0, 1, 8192, 40960, 49152, 50000, target.block_shared_bytes, target.block_shared_bytes + 1),
        )
    ]
    lines = []
    for target, threads, registers, shared in grid:
        capability = target.name.removeprefix("sm_").removesuffix("a")
        limits = f"{capability[:-1]} {capability[-1]} {target.warps} {target.shared_bytes}"
        lines.append(f"{limits} {threads} {registers} {shared}")
    told = subprocess.run([tmp_path / "occupancy"], input="\n".join(lines), capture_output=True, text=True, check=True)
    theirs = [int(word) for word in told.stdout.split()]
    ours = [occupancy(t, threads=n, registers=r, shared_bytes=s).blocks for t, n, r, s in grid]
    wrong = [(line, a, b) for line, a, b in zip(lines, theirs, ours, strict=True) if a != b]
    assert not wrong, wrong[:5]
    assert len(set(ours)) > 10
