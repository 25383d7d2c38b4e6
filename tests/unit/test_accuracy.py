"""The judge of conformance sees lost rows and lists without a forced block; its cases reach what they are for."""

import pytest
import torch

from nsa_codegen.conformance import CASES, TARGETS
from nsa_codegen.conformance.accuracy import judge
from nsa_codegen.conformance.cases import SHIPPED
from nsa_codegen.conformance.check import _gradient, inputs_of, results_of, widened
from nsa_codegen.desc import KernelDesc
from nsa_codegen.index_sets import window
from nsa_codegen.ops import OPS, Sizes
from nsa_codegen.selection import select
from nsa_codegen.target import GPU_TARGETS

ATTENTIONS = [c for c in (*CASES, *SHIPPED) if c.desc.op in ("stream_attention", "gather_attention")]


def failed(desc, got, eager, exact, values):
    return [a.name for a in judge(desc, got, eager, exact, values) if not a.passed]


@pytest.mark.parametrize("case", ATTENTIONS, ids=lambda c: f"{c.desc.op}-{c.desc.readable}-{c.desc.visible}")
def test_a_lost_row_of_a_gradient_is_seen(case):
    """The last that is not all but 0, of a query and of a key: with many keys in sight it is small beside others."""
    for sizes in case.sizes:
        if sizes.tokens < 5:
            continue
        values = inputs_of(case.desc, sizes)
        eager, exact = results_of(case.desc, values), results_of(case.desc, widened(values))
        assert failed(case.desc, eager, eager, exact, values) == []
        for name in ("dq", "dk", "dv"):
            rows = exact[name].abs().amax(dim=-1)
            at = tuple((rows > 1e-4 * rows.max()).nonzero()[-1].tolist())
            harmed = {**eager, name: eager[name].clone()}
            harmed[name][at] = 0
            assert failed(case.desc, harmed, eager, exact, values) == [name], (sizes, at)


@pytest.mark.parametrize("change", [{"initial": 0}, {"local": 1}, {"initial": 0, "local": 1}, {"n": 3}], ids=str)
@pytest.mark.parametrize("method", ["mean_key", "compressed"])
def test_a_list_without_a_forced_block_is_seen(method, change):
    """Also where a block of a better score is in its place."""
    dims = {"method": method, "group": 2, "dk": 32, "block": 16, "n": 4, "initial": 1, "local": 2}
    if method == "compressed":
        dims |= {"kernel": 8, "stride": 4}
    desc, other = (KernelDesc.of("select_blocks", "bfloat16", **d) for d in (dims, {**dims, **change}))
    values = inputs_of(desc, Sizes(batch=2, tokens=130, keys=130, kv_heads=2))
    (right,), (wrong,) = (OPS["select_blocks"].reference(d, **widened(values)) for d in (desc, other))
    if "n" in change:
        wrong = torch.nn.functional.pad(wrong, (0, 1), value=-1)
    assert failed(desc, {"indices": right}, {}, {"indices": right}, values) == []
    assert failed(desc, {"indices": wrong}, {}, {"indices": right}, values) == ["block_indices"]


def test_shipped_selections_choose():
    """Where a query has no more blocks than it may list, it lists them all, whatever their scores are."""
    found = [c for c in SHIPPED if c.desc.op == "select_blocks"]
    assert {c.desc.word("method") for c in found} == {"mean_key", "compressed"}
    for case in found:
        n, block = case.desc.size("n"), case.desc.size("block")
        assert any((s.q_start + s.tokens - 1) // block >= n for s in case.sizes), case.desc
        step = block if case.desc.word("method") == "mean_key" else case.desc.size("stride")
        assert max((s.q_start + s.tokens) // step - 1 for s in case.sizes) >= most_under_way(case.desc), case.desc


def test_shipped_attention_leaves_keys_behind_and_passes_more_tiles_than_stages():
    found = [c for c in SHIPPED if c.desc.op == "stream_attention"]
    assert len({c.desc.visible for c in found}) == len(found) == 4
    for case in found:
        seen = [case.desc.visible.count(s.q_start + s.tokens - 1, s.keys) for s in case.sizes]
        widths = [w for w in (64, 512) if case.desc.visible == window(w)]
        if widths:
            assert any(s.q_start >= widths[0] for s in case.sizes), case.desc
        assert max(seen) >= min([most_under_way(case.desc), *widths]), case.desc
    for case in SHIPPED:
        if case.desc.op == "gather_attention":
            assert any(s.keys // case.desc.size("block") > case.desc.size("n") for s in case.sizes), case.desc


def most_under_way(desc):
    """Return the keys that fill two tiles more than are copied ahead, on the target where that is most."""
    chosen = [select(desc, GPU_TARGETS[target]).schedule for target in TARGETS]
    return max(s.key_tile * (s.stages + 2) for s in chosen)


def test_gradients_of_outputs_are_where_the_outputs_are():
    out = torch.empty(2, 3, 4, 8, dtype=torch.float16, device="meta")
    assert _gradient(out, CASES[0].desc, 0).device == out.device
