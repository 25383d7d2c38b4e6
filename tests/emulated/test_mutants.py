"""Mutants of a shipped kernel, gather_attention forward: every wait and synchronisation, and a sample of the rest."""

import pytest
import torch

from nsa_codegen.conformance import CASES
from nsa_codegen.emitted import executable_of
from nsa_codegen.executor import mutants
from nsa_codegen.executor.launch import execute
from nsa_codegen.ops import OPS, Sizes
from nsa_codegen.schedule import GpuSchedule
from nsa_codegen.target import GPU_TARGETS

DESC = next(c.desc for c in CASES if c.desc.op == "gather_attention" and c.desc.size("group") == 4)
SIZES = Sizes(batch=1, tokens=37, keys=400, kv_heads=1, q_start=363)  # several turns of the pipeline
ORDERS = (("forward", 0), ("random", 1), ("reverse", 0))


@pytest.mark.parametrize(
    ("arch", "key_tile", "specialized", "most_redundant"),
    [("sm_80", 32, 1, 2), ("sm_90a", 64, 1, 7), ("sm_90a", 32, 0, 4)],
)
def test_damage_to_gather_attention_is_noticed(cache, arch, key_tile, specialized, most_redundant):
    """A mutant is redundant if nothing is found in any order, and the outputs are bit for bit the original's."""
    target, schedule = GPU_TARGETS[arch], GpuSchedule(key_tile=key_tile, specialized=specialized)
    executable, facts = executable_of(DESC, schedule, target, cache)
    inputs = OPS[DESC.op].make_inputs(DESC, SIZES, torch.Generator().manual_seed(0))
    launch = OPS[DESC.op].prepare_gpu(DESC, schedule, **inputs)
    arguments = [launch.values[a["name"]] for a in facts["arguments"]]
    wide = {n: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
    exact = OPS[DESC.op].reference(DESC, **wide)

    def outcome(candidate, original):
        for order, seed in ORDERS:
            for x in launch.outputs:
                x.fill_(torch.nan)
            reports = execute(candidate, facts, arguments, order=order, seed=seed, budget=500_000)
            assert not any(r.status.startswith("not executed") for r in reports), reports[0].status
            if not all(r.passed for r in reports):
                return "caught"
            if not all(torch.equal(x, y) for x, y in zip(launch.outputs, original, strict=True)):
                close = all(
                    torch.allclose(x.double(), y, rtol=2e-3, atol=2e-3)
                    for x, y in zip(launch.outputs, exact, strict=True)
                )
                return "missed" if close else "caught"
        return "redundant"

    for x in launch.outputs:
        x.fill_(torch.nan)
    assert all(r.passed for r in execute(executable, facts, arguments))
    original = tuple(x.clone() for x in launch.outputs)
    assert all(torch.allclose(x.double(), y, rtol=2e-3, atol=2e-3) for x, y in zip(original, exact, strict=True))
    assert outcome(executable, original) == "redundant"
    (name,) = {x["kernel"] for x in facts["launches"]}
    found = {"caught": [], "redundant": [], "missed": []}
    for mutant in mutants.sample_of(executable.kernels[name], seed=1, mask=40, index=40):
        found[outcome(mutants.executable_of(mutant, executable), original)].append(mutant)
    effective = len(found["caught"]) + len(found["missed"])
    assert effective >= 35
    assert len(found["caught"]) >= 0.95 * effective, [(m.line, m.what) for m in found["missed"]]
    # What changes nothing, read in the emitted texts. Of each, a barrier at the start. Where the loop is not split over
    # warps, that between the copy of keys and the masks, which read other places of shared memory, and the wait for the
    # last product by weights but one, since the next wait comes before its sums are used. Where it is split, the
    # producers' waits for the second to fourth block of a tile, 3 of keys and 3 of values, which the consumers release
    # with the first.
    untouched = [m for m in found["redundant"] if m.family in ("synchronisation", "wait")]
    assert len(untouched) <= most_redundant, [(m.line, m.what) for m in untouched]
