"""What the cost model knows of a GPU beyond its `Target`: rates a clock, caches, latencies, each with its source.

`docs/cost-model.md` repeats them with what they are used for.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..target import GpuTarget

SHARED_BYTES = 128  # a clock and multiprocessor: CUDA C++ Programming Guide; arXiv 2501.12084 table 5 measures 127.9
SHARED_LATENCY = 29  # clocks: arXiv 2501.12084 table 3, H800; the same on A100 and RTX 4090
DRAM_SHARE = 0.9  # of the data sheet's bandwidth: arXiv 2501.12084 table 5 reads 91 % on an H800


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """Figures of one multiprocessor, in clocks, and of the caches behind it.

    `issue` are thread-instructions a clock of all schedulers together, `floats` those of the float32 units, and
    `exponentials` those of the special function unit.
    `l2_bytes` a clock come to one multiprocessor out of a second cache of `l2_megabytes`, after `l2_latency` clocks, or
    out of memory after `dram_latency`. `mma_share` is the part of the matrix rate that instructions of a warp reach;
    those of a warp group reach all. `flops` a clock is the matrix rate where the target's clock is not published.
    """

    issue: int = 128
    floats: int = 128
    exponentials: int = 16
    l2_bytes: float
    l2_megabytes: float
    l2_latency: int
    dram_latency: int
    mma_share: float = 1.0
    flops: int | None = None
    source: str


_HOPPER = "arXiv 2501.12084 (H800: L2 4472 bytes a clock for 114 multiprocessors, mma 62.9 % of peak)"
_LATENCIES = "github.com/markdewing/AI_kernels, latency/README.md"
_B200 = (
    "github.com/NVIDIA/cudnn-frontend, benchmarks (8192 operations a clock); flash-attention issue 1589: "
    "FlashAttention-2, whose mma reaches 70 % of an A100's peak, runs at 380 TFLOP/s on a B200, so that mma has an "
    f"A100's 2048 operations a clock; latencies: {_LATENCIES}; L2 bytes as measured on a B200: 13300 a clock"
)
_GEFORCE = (
    f"latencies: {_LATENCIES}; L2: github.com/smallscientist1/cuda_microbenchmark, RTX 4090: 1946 bytes a clock for "
    "128 multiprocessors, taken for those of GA102, AD104 and GB202 as well"
)
_CDNA = "AMD CDNA 3 white paper: 64 lanes of a compute unit issue a clock, 64 bytes a clock from L2, 256 MB last cache"

FACTS: dict[str, GpuFacts] = {
    "sm_80": GpuFacts(
        floats=64, l2_bytes=5120 / 108, l2_megabytes=40, l2_latency=200, dram_latency=400,
        source="NVIDIA A100 architecture white paper; latencies: Ultrason. Sonochem. 99 (2023) 106546 table 3",
    ),
    "sm_86": GpuFacts(l2_bytes=1946 / 128, l2_megabytes=6, l2_latency=214, dram_latency=570, source=_GEFORCE),
    "sm_89": GpuFacts(l2_bytes=1946 / 128, l2_megabytes=48, l2_latency=296, dram_latency=636, source=_GEFORCE),
    "sm_90a": GpuFacts(
        l2_bytes=4472 / 114, l2_megabytes=50, l2_latency=281, dram_latency=690, mma_share=0.629,
        source=f"{_HOPPER}; latencies: {_LATENCIES}",
    ),
    "sm_100a": GpuFacts(
        l2_bytes=13300 / 148, l2_megabytes=126, l2_latency=295, dram_latency=860, mma_share=0.25, flops=8192,
        source=_B200,
    ),
    "sm_103a": GpuFacts(
        exponentials=32, l2_bytes=13300 / 148, l2_megabytes=126, l2_latency=295, dram_latency=860, mma_share=0.25,
        flops=8192, source=f"{_B200}; NVIDIA on Blackwell Ultra: twice the exponentials of a B200",
    ),
    "sm_120a": GpuFacts(l2_bytes=1946 / 128, l2_megabytes=96, l2_latency=360, dram_latency=936, source=_GEFORCE),
    "gfx942": GpuFacts(
        issue=64, floats=64, l2_bytes=64, l2_megabytes=256, l2_latency=300, dram_latency=800,
        source=f"{_CDNA}; latencies assumed",
    ),
    "gfx950": GpuFacts(
        issue=64, floats=64, l2_bytes=64, l2_megabytes=256, l2_latency=300, dram_latency=800,
        source=f"{_CDNA}; latencies assumed",
    ),
}  # fmt: skip


def clock_hz(target: GpuTarget) -> float:
    """Return the clock: the data sheet's, else that at which the matrix rate a clock makes the data sheet's."""
    if target.rates.clock_mhz is not None:
        return 1e6 * target.rates.clock_mhz
    flops = FACTS[target.name].flops
    assert flops is not None
    return 1e12 * target.rates.matrix_tflops / (target.processors * flops)


def matrix_flops(target: GpuTarget) -> float:
    """Return the operations a clock of the matrix units of one multiprocessor, at the data sheet's rate."""
    return 1e12 * target.rates.matrix_tflops / (target.processors * clock_hz(target))
