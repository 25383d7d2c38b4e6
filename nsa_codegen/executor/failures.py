"""The executor's errors, one class per cause."""

from __future__ import annotations

from ..errors import NSAError


class PTXError(NSAError, ValueError):
    """Text that is not PTX as nvcc writes it."""


class NvccError(NSAError):
    """nvcc is missing or refused the emitted text; the message carries its output."""


class LaunchError(NSAError, ValueError):
    """A launch whose kernel, arguments, grid, block or shared size do not fit the kernel."""


class NotModelledError(NSAError, NotImplementedError):
    """An opcode, modifier or shape that the executor has no model of."""
