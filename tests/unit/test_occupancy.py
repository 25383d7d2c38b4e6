"""Occupancy against what NVIDIA's cuda_occupancy.h says; tests/gpu_static asks the header itself, over a grid."""

import pytest

from nsa_codegen.errors import TargetError
from nsa_codegen.occupancy import max_registers, occupancy
from nsa_codegen.target import GPU_TARGETS

KB = 1024


def of(name, threads, registers, shared):
    return occupancy(GPU_TARGETS[name], threads=threads, registers=registers, shared_bytes=shared)


# Blocks as the header of CUDA 13.0 returns them, with what binds.
@pytest.mark.parametrize(
    ("name", "threads", "registers", "shared", "blocks", "limited_by"),
    [
        ("sm_80", 128, 223, 40 * KB, 2, "registers"),  # 224 * 32 a warp; 2 of them to a share of 16384
        ("sm_80", 128, 128, 40 * KB, 4, "registers"),
        ("sm_80", 32, 32, 0, 32, "blocks"),
        ("sm_80", 256, 32, 0, 8, "warps"),
        ("sm_86", 256, 32, 0, 6, "warps"),  # 48 warps
        ("sm_86", 32, 32, 0, 16, "blocks"),
        ("sm_89", 32, 32, 0, 24, "blocks"),
        ("sm_80", 128, 64, 81 * KB, 2, "shared memory"),  # the system's kilobyte makes 82, and 164 there are
        ("sm_80", 128, 64, 81 * KB + 1, 1, "shared memory"),
        ("sm_89", 128, 64, 49 * KB, 2, "shared memory"),
        ("sm_90a", 384, 168, 227 * KB, 1, "shared memory"),
        ("sm_90a", 384, 169, 0, 0, "registers"),  # twelve warps of 176 do not fit one launch
        ("sm_90a", 128, 64, 227 * KB + 1, 0, "shared memory"),
        ("sm_120a", 128, 255, 0, 2, "registers"),
    ],
)
def test_blocks_and_what_binds(name, threads, registers, shared, blocks, limited_by):
    found = of(name, threads, registers, shared)
    assert found.blocks == blocks and limited_by in found.limited_by
    assert found.fraction == blocks * (threads // 32) / GPU_TARGETS[name].warps
    assert [limit.name for limit in found.limits] == ["registers", "shared memory", "warps", "blocks"]


def test_what_a_block_is_given_is_rounded_up():
    registers, shared, warps, _ = of("sm_80", 100, 65, 1).limits
    assert registers.per_block == 4 * 72 * 32  # four warps, registers in steps of 8 a thread
    assert shared.per_block == 1024 + 128
    assert warps.per_block == 4


def test_a_wave_of_amd_has_64_threads():
    found = of("gfx942", 256, 128, 20 * KB)
    assert found.warps_per_block == 4 and found.blocks == 3  # 64 KB for 20 each
    assert of("gfx942", 64, 32, 0).blocks == 16


@pytest.mark.parametrize("target", GPU_TARGETS.values(), ids=str)
@pytest.mark.parametrize(("threads", "blocks"), [(128, 1), (128, 2), (128, 3), (256, 1), (256, 2), (384, 1), (512, 2)])
def test_max_registers_is_the_most_that_fits(target, threads, blocks):
    most = max_registers(target, threads=threads, blocks=blocks)
    fits = occupancy(target, threads=threads, registers=most, shared_bytes=0).limits[0].blocks
    assert fits >= blocks
    if most < target.thread_registers:
        more = occupancy(target, threads=threads, registers=most + 1, shared_bytes=0).limits[0].blocks
        assert more < blocks


def test_more_warps_than_there_are_have_no_registers():
    assert max_registers(GPU_TARGETS["sm_86"], threads=1024, blocks=2) == 0
    assert max_registers(GPU_TARGETS["sm_80"], threads=1024, blocks=2) == 32


@pytest.mark.parametrize("threads", [0, -32, 1025])
def test_a_block_of_too_many_threads_is_refused(threads):
    with pytest.raises(TargetError, match=f"a block of {threads} threads is not allowed; 1 to 1024 are"):
        of("sm_80", threads, 32, 0)
