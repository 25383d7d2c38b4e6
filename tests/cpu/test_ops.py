"""Every declared op, forward and backward, for every sample desc and drawn run-time sizes, against float64.

The error is at most 3x that of eager torch in the same dtype, plus 2 ulp of the greatest output. What a kernel must
write holds NaN before it runs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    LENGTHS,
    ROWS,
    drawn,
    make_inputs,
    nan_filled,
    widened,
    with_backward,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from judges import assert_accurate, assert_selected, compare_gradients
from torch import Tensor

from nsa_codegen import dispatch, functional
from nsa_codegen.desc import KernelDesc
from nsa_codegen.ops import OPS, Sizes
from nsa_codegen.schedule import NARROWED_OPS

assert functional  # registers the gradients of the ops
SAMPLES = [desc for op in OPS.values() for desc in op.samples]
SELECTIONS = [desc for desc in SAMPLES if desc.op in ("select_blocks", "scored_attention")]
NUMERIC = [desc for desc in SAMPLES if desc.op != "select_blocks"]
# Backward from what an op of `dispatch` runs: packing has no gradient, and a mean in another dtype only serves scores.
DIFFERENTIABLE = [
    desc
    for desc in NUMERIC
    if desc.op != "pack_blocks" and not (desc.op == "compress" and dict(desc.dims).get("out", desc.dtype) != desc.dtype)
]
KERNELS = with_backward(SAMPLES)
STARTS = st.one_of(st.just(0), st.integers(0, 100))


def named(descs: list[KernelDesc]) -> Any:
    return pytest.mark.parametrize("desc", descs, ids=[f"{d.op}-{i}-{d.readable}" for i, d in enumerate(descs)])


@st.composite
def sizes(draw: st.DrawFn, op: str) -> Sizes:
    """Short sequences come in many batch rows: eager's error on a handful of numbers may be 0 by luck."""
    batch, kv_heads = draw(ROWS)
    tokens, q_start = draw(LENGTHS), draw(STARTS)
    batch = max(batch, 256 // tokens)
    least = 0 if op in NARROWED_OPS else 1  # keys may be missing altogether
    keys = draw(st.one_of(st.just(q_start + tokens), st.integers(least, 330)))
    return Sizes(batch=batch, tokens=tokens, keys=keys, kv_heads=kv_heads, q_start=q_start)


@named(NUMERIC)
@drawn(10)
@given(data=st.data(), seed=st.integers(0, 1 << 16))
def test_forward_agrees_with_float64(desc: KernelDesc, data: st.DataObject, seed: int) -> None:
    op, size = OPS[desc.op], data.draw(sizes(desc.op))
    values = make_inputs(desc, size, seed)
    with nan_filled():
        got = dispatch.run(desc, **values)
    eager, exact = op.reference(desc, **values), op.reference(desc, **widened(values))
    for name, *triple in zip(op.outputs, got, eager, exact, strict=True):
        if name == "indices":  # see the test of selections
            continue
        assert_accurate(*triple, f"{desc} {size}: {name}")
        if desc.op == "pack_blocks":
            assert torch.equal(triple[0], triple[1])


def run_op(desc: KernelDesc, impl: str, values: dict[str, Any]) -> tuple[Tensor, ...]:
    """Run the torch op of `desc`, or its reference, and return what has gradients."""
    if impl == "reference":
        made = OPS[desc.op].reference(desc, **values)
        return made[:2] if desc.op == "scored_attention" else made
    ops = torch.ops.nsa_codegen
    if desc.op == "compress":
        weights = [values.get(name) for name in ("weight", "bias", "position", "w1", "b1", "w2", "b2")]
        return (ops.compress(values["x"], desc.word("method"), desc.size("kernel"), desc.size("stride"), *weights),)
    if desc.op == "combine":
        outs = [value for name, value in values.items() if name.startswith("o")]
        return (ops.combine(outs, values["gates"]),)
    q, k, v, *rest = (values[name] for name in ("q", "k", "v", "q_start", "scale"))
    if desc.op == "scored_attention":
        names = ("block", "n", "initial", "local", "kernel", "stride")
        return tuple(ops.scored_attention(q, k, v, *map(desc.size, names), *reversed(rest))[:2])
    if desc.op == "stream_attention":
        out = ops.stream_attention(q, k, v, desc.streamed.text, *rest)
    else:
        causal = desc.word("reach") == "causal"
        out = ops.gather_attention(q, k, v, values["block_indices"], desc.size("block"), causal, *rest)
    return tuple(out)


@named(DIFFERENTIABLE)
@drawn(6)
@given(data=st.data(), seed=st.integers(0, 1 << 16))
def test_gradients_agree_with_float64(desc: KernelDesc, data: st.DataObject, seed: int) -> None:
    size = data.draw(sizes(desc.op))
    assume(size.tokens > 1 and size.keys > 1)  # see test_functional's test of one key
    values = make_inputs(desc, size, seed)
    if desc.op == "combine":
        values = {**{f"o{i}": o for i, o in enumerate(values["outs"])}, "gates": values["gates"]}

    def run(impl: str, given_values: dict[str, Any]) -> tuple[Tensor, ...]:
        if desc.op == "combine" and impl == "reference":
            outs = [value for name, value in given_values.items() if name.startswith("o")]
            given_values = {"outs": outs, "gates": given_values["gates"]}
        return run_op(desc, impl, given_values)

    compare_gradients(run, values, f"{desc} {size}")


@named(SELECTIONS)
@drawn(15)
@given(data=st.data(), seed=st.integers(0, 1 << 16))
def test_selection_is_that_of_float64_but_for_rounding(desc: KernelDesc, data: st.DataObject, seed: int) -> None:
    """Scores that differ by less than their float32 errors, bounded in `cases`, may change places; no others may."""
    size, block = data.draw(sizes(desc.op)), desc.size("block")
    mean_key = desc.word("method") == "mean_key"
    if mean_key:  # the keys reach to the last query
        keys = size.q_start + size.tokens
        size = Sizes(batch=size.batch, tokens=size.tokens, keys=keys, kv_heads=size.kv_heads, q_start=size.q_start)
    values = make_inputs(desc, size, seed)
    with nan_filled():
        got = dispatch.run(desc, **values)[-1]
    q, k = values["q"], values["k"]
    if mean_key:  # keys whose block means are k
        missing = size.keys - k.shape[1] * block
        k = torch.cat([k.repeat_interleave(block, dim=1), k.new_zeros(k.shape[0], missing, *k.shape[2:])], dim=1)
        windows, terms = {}, 2
    else:
        windows = {"kernel": desc.size("kernel"), "stride": desc.size("stride")}
        terms = block // desc.size("stride") * (desc.size("kernel") // desc.size("stride")) * desc.size("group")
    assert_selected(
        got, q, k, terms, method=desc.word("method"), block_size=block, num_selected=desc.size("n"),
        num_initial=desc.size("initial"), num_local=desc.size("local"), scale=values["scale"],
        q_start=size.q_start, **windows,
    )  # fmt: skip


def test_every_op_has_samples_in_every_dtype() -> None:
    for op in OPS.values():
        found = {desc.dtype for desc in op.samples}
        assert found == {"float32", "bfloat16", "float16"}, op.name
