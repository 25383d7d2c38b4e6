"""Lists of blocks as callers may hand them: any order, duplicates, -1, later blocks; wild indices count as none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import SPEC_KERNELS, SPECS, canaries, guarded, qkv
from torch import Tensor

from nsa_codegen import dispatch, functional
from nsa_codegen.desc import KernelDesc
from nsa_codegen.errors import InputError
from nsa_codegen.needed import backward_descs, backward_pack_descs, pack_descs
from nsa_codegen.ops import OPS
from nsa_codegen.spec import NSASpec

KERNELS = SPEC_KERNELS
specs = pytest.mark.parametrize("name", SPECS)
TOKENS = 70
WILD = (-(2**31), -(2**31) + 1, -70000, -2, 2**31 - 1, 2**31 - 64, 1 << 20, 100)


def lists_of(spec: NSASpec, rows: list[int]) -> Tensor:
    """Return the same list, cut or filled with -1, for every query."""
    n = spec.num_selected_blocks
    row = torch.tensor((rows + [-1] * n)[:n], dtype=torch.int32)
    return row.expand(2, TOKENS, spec.kv_heads, n).contiguous()


def outcome(name: str, lists: Tensor) -> list[Tensor]:
    """Return out, lse and the gradients of q, k and v."""
    spec, dtype = SPECS[name]
    q, k, v = (x.requires_grad_() for x in qkv(spec, dtype, TOKENS, batch=2).values())
    out, lse = functional.selected_attention(q, k, v, lists, block_size=spec.block_size, impl="compiled")
    return [out, lse, *torch.autograd.grad((out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse)))]


def close(name: str, one: list[Tensor], other: list[Tensor]) -> None:
    """Another order of the blocks is another order of sums: equal to rounding."""
    eps = torch.finfo(SPECS[name][1]).eps
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=8 * eps, atol=16 * eps * float(b.detach()[b.isfinite()].abs().max()))


@specs
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_kf17_minus_one_adds_nothing_wherever_it_stands(name: str, dtype: torch.dtype) -> None:
    spec, _ = SPECS[name]
    n = spec.num_selected_blocks
    last = -(-TOKENS // spec.block_size) - 1
    wanted = outcome(name, lists_of(spec, [1, last][: n - 1]))
    for rows in ([-1, 1, last], [1, -1, last], [-1, -1, 1, last]):
        if len(rows) <= n:
            got = outcome(name, lists_of(spec, rows).to(dtype))
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), rows


@specs
def test_a_duplicate_counts_once(name: str) -> None:
    spec, _ = SPECS[name]
    n = spec.num_selected_blocks
    wanted = outcome(name, lists_of(spec, [1, 0][: n - 1] if n > 2 else [1]))
    rows = [1, 1, 0] if n > 2 else [1, 1]
    for doubled in (rows, [*rows, *rows][:n]):
        got = outcome(name, lists_of(spec, doubled))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), doubled


@specs
def test_the_order_does_not_matter_but_for_rounding(name: str) -> None:
    spec, _ = SPECS[name]
    rows = list(range(min(spec.num_selected_blocks, -(-TOKENS // spec.block_size))))
    close(name, outcome(name, lists_of(spec, rows[::-1])), outcome(name, lists_of(spec, rows)))


@specs
def test_blocks_that_start_after_the_query_add_nothing(name: str) -> None:
    spec, _ = SPECS[name]
    last = -(-TOKENS // spec.block_size) - 1
    with_later, without = outcome(name, lists_of(spec, [last, 0])), outcome(name, lists_of(spec, [0]))
    begin = last * spec.block_size
    for a, b in zip(with_later[:3], without[:3], strict=True):
        assert torch.equal(a[:, :begin], b[:, :begin])
        assert not torch.equal(a[:, begin:], b[:, begin:])


@specs
@pytest.mark.parametrize("impl", ["compiled", "reference"])
def test_an_index_out_of_range_is_named(name: str, impl: str) -> None:
    spec, dtype = SPECS[name]
    q, k, v = qkv(spec, dtype, TOKENS, batch=2).values()
    blocks = -(-TOKENS // spec.block_size)
    for bad in (-2, blocks, blocks + 100, 2**31 - 1, -(2**31)):
        lists = lists_of(spec, [0])
        lists[1, 33, 0, 1] = bad
        with pytest.raises(InputError, match=f"block_indices.*{bad}.*{blocks - 1}"):
            functional.selected_attention(q, k, v, lists, block_size=spec.block_size, impl=impl)


@pytest.mark.parametrize("bad", [2**31, 2**32, 2**40, -(2**33), 2**32 - 1])
def test_a_64_bit_index_is_not_cut_to_32_bits(bad: int) -> None:
    """2^32 is 0 in 32 bits, and 2^32 - 1 is -1: they must be refused, not taken for those."""
    spec, dtype = SPECS["g4-f32"]
    q, k, v = qkv(spec, dtype, TOKENS, batch=2).values()
    lists = lists_of(spec, [0]).long()
    lists[0, 5, 0, 0] = bad
    with pytest.raises(InputError, match="block_indices"):
        functional.selected_attention(q, k, v, lists, block_size=spec.block_size, impl="compiled")


def run_guarded(desc: KernelDesc, **arguments: Any) -> list[Tensor]:
    """Run a kernel on outputs surrounded by canaries, and inputs surrounded by NaN; raise if a canary changed."""
    found, op = dispatch.kernel(desc), OPS[desc.op]
    prepare = op.prepare if desc.direction == "fwd" else op.prepare_backward
    assert prepare is not None
    arguments = {
        name: guarded(x, math.nan)[0] if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in arguments.items()
    }
    launch = prepare(desc, found.schedule, 1, **arguments)
    values, outputs, unharmed = canaries(launch)
    addresses = [v.data_ptr() if isinstance(v, Tensor) else v for v in (values[name] for name in found.names)]
    found.artifact.launch(launch.tasks, *addresses, threads=1)
    unharmed()
    return outputs


@specs
def test_wild_indices_touch_nothing(name: str) -> None:
    """Straight to the kernels, past every check: an index outside the blocks adds nothing and reads nothing."""
    spec, dtype = SPECS[name]
    dims = {
        "group": spec.group, "dk": spec.head_dim, "dv": spec.dv, "block": spec.block_size,
        "n": spec.num_selected_blocks,
    }  # fmt: skip
    q, k, v = qkv(spec, dtype, TOKENS, batch=2).values()
    lists = lists_of(spec, [0])
    generator = torch.Generator().manual_seed(0)
    wild = torch.tensor(WILD, dtype=torch.int32)
    lists[..., 1:] = wild[torch.randint(0, len(WILD), lists[..., 1:].shape, generator=generator)]
    clean = lists_of(spec, [0])
    shared = {"q": q, "k": k, "v": v, "q_start": 0, "scale": 0.2}
    found = {}
    for label, given in (("wild", lists), ("clean", clean)):
        results = []
        for source in ("plain", dispatch.packed_source(str(dtype)[6:])):
            desc = KernelDesc.of("gather_attention", str(dtype)[6:], reach="causal", source=source, **dims)
            packed = tuple(run_guarded(d, x=x)[0] for d, x in zip(pack_descs(desc), (k, v), strict=True))
            results += run_guarded(desc, **shared, block_indices=given, packed=packed)
        out, lse = results[:2]
        by_runs, by_sums = backward_descs(desc)
        packs = {n: run_guarded(d, x=v if n[0] == "v" else k)[0] for n, d in backward_pack_descs(desc).items()}
        more = {**packs, "lse": lse, "dout": torch.ones_like(out), "dlse": torch.ones_like(lse)}
        grad_q, parts_k, parts_v = run_guarded(by_runs, **shared, **more, block_indices=given)
        results += [grad_q, *run_guarded(by_sums, **shared, parts_k=parts_k, parts_v=parts_v)]
        found[label] = results
    for one, other in zip(found["wild"], found["clean"], strict=True):
        assert not bool(one.isnan().any())
        assert torch.equal(one, other)
