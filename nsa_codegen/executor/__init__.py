"""A PTX executor: runs the kernels that TileLang emits for GPUs on the CPU, and checks what hardware would punish.

`Executable.of(text, arch)` takes the unmodified CUDA text; `run` executes a kernel over torch CPU tensors, warp by
warp and lane by lane, under a chosen interleaving, and returns a `Report`. docs/executor.md says what it claims.
"""

from .executable import ORDERS, Executable, TensorMap
from .failures import LaunchError, NotModelledError, NvccError, PTXError
from .report import Finding, Report

__all__ = [
    "ORDERS",
    "Executable",
    "Finding",
    "LaunchError",
    "NotModelledError",
    "NvccError",
    "PTXError",
    "Report",
    "TensorMap",
]
