"""Conformance of GPU kernels without a GPU: every op, forward and backward, on the executor, against float64.

`check` runs one kernel, and its backward, at one size under one order; `CASES` are the sizes and dims that cover what
kernels get wrong. `python -m nsa_codegen.conformance` runs them all and writes docs/conformance.md.
"""

from .cases import CASES, ORDERS, TARGETS, Case
from .check import Accuracy, Outcome, check, forward_of, run_op

__all__ = ["CASES", "ORDERS", "TARGETS", "Accuracy", "Case", "Outcome", "check", "forward_of", "run_op"]
