"""What the backward of an attention keeps of each row (query and head): streamed and gathered alike."""

from typing import Any

import tilelang.language as T

from .common import NEG_INF, scalar

LOG_SUM, TOTAL, DELTA, GATE, ADDED = range(5)  # log2 of the sum of weights, their sum, sum of p * dp, gate, dlse
OF_ROW = 5


def of_rows(state: Any, what: int) -> Any:
    """Return the address of `what` of all rows in `state` [OF_ROW, rows]."""
    return T.address_of(state[what, 0])


@T.macro
def clear_row(state, row):
    """Set what a row without a query has: weight 0 everywhere."""
    state[LOG_SUM, row] = -NEG_INF
    state[TOTAL, row] = 0.0
    state[DELTA, row] = 0.0
    state[GATE, row] = 0.0
    state[ADDED, row] = 0.0


@T.macro
def load_row(state, row, lse, dlse, gates, gate_step, column, b, t, h, g):
    """Set what a row starts from; `gate_step` is 0 if one row of `gates` is for all, else 1."""
    _, tokens, kv_heads, group = lse.shape
    number = ((T.int64(b) * tokens + t) * kv_heads + h) * group + g
    state[GATE, row] = gates[number * gate_step, column]
    state[ADDED, row] = dlse[b, t, h, g]
    state[LOG_SUM, row] = scalar("log2_of", lse[b, t, h, g])


@T.macro
def finish_row(state, row, grad_gates, column, b, t, h, g):
    """Write the gate's gradient, and leave what the gradients of scores and values count for.

    lse was rounded, so that weights do not add up to 1: all that they count for is divided by their sum.
    """
    state[TOTAL, row] = scalar("inverse", state[TOTAL, row])
    state[DELTA, row] = state[DELTA, row] * state[TOTAL, row]
    state[GATE, row] = state[GATE, row] * state[TOTAL, row]
    state[ADDED, row] = state[ADDED, row] * state[TOTAL, row]
    grad_gates[b, t, h, g, column] = state[DELTA, row]
