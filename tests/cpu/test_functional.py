"""The public functions and the whole model on compiled kernels: values and gradients against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    DTYPES,
    LENGTHS,
    SMALL_MODELS,
    SPEC_KERNELS,
    SPECS,
    compress,
    draw,
    drawn,
    kernels_of,
    model_spec,
    qkv,
    weights,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from judges import assert_accurate, assert_selected, compare_gradients, term_of
from torch import Tensor

from nsa_codegen import functional, reference
from nsa_codegen.errors import InputError
from nsa_codegen.index_sets import causal, window
from nsa_codegen.nn import NSA
from nsa_codegen.program import Path, Phi, Program
from nsa_codegen.sizes import MAX_POSITION, MAX_SIZE
from nsa_codegen.spec import NSASpec

FORMS = {**SMALL_MODELS, "pooled": {**SMALL_MODELS["seed"], "causal": False, "pool_queries": True}}


ONE_TENSOR = [
    (NSASpec.paper(num_heads=4, num_kv_heads=1, head_dim=64, value_dim=64, window_size=40), dtype) for dtype in DTYPES
]
POOLED = Program(
    name="pooled", num_heads=4, num_kv_heads=2, head_dim=16,
    paths=(Path(name="c", keys=Phi(kernel=4, stride=4), visible=causal(), pool_queries=True),),
)  # fmt: skip
KERNELS = [
    *SPEC_KERNELS,
    *kernels_of(POOLED, torch.float32, backward=False),
    *(desc for options in FORMS.values() for desc in kernels_of(model_spec(options).program(), torch.float32)),
    *(
        desc
        for spec, dtype in ONE_TENSOR
        for desc in kernels_of(spec.program(), dtype)
        if desc.visible == window(spec.window_size)
    ),
]
specs = pytest.mark.parametrize("name", SPECS)
# Lengths shorter than every block and window come often. Gradients over one key have a test of their own.
TOKENS = st.one_of(st.integers(1, 8), LENGTHS)
TOKENS_WITH_GRADIENTS = TOKENS.filter(lambda tokens: tokens > 1)


def test_the_table_covers_what_the_issue_lists() -> None:
    found = [spec for spec, _ in SPECS.values()]
    assert {spec.group for spec in found} == {1, 2, 3, 4, 8, 16}
    assert {spec.head_dim for spec in found} == {8, 32, 64, 80, 128, 192}
    assert {spec.compression for spec in found} == {"mean", "conv", "mlp"}
    assert {spec.selection for spec in found} == {"mean_key", "compressed"}
    assert {spec.gate for spec in found} == {"scalar", "sigmoid"}
    assert {dtype for _, dtype in SPECS.values()} == set(DTYPES)
    assert any(spec.head_dim != spec.dv for spec in found)


@specs
@drawn(5)
@given(tokens=TOKENS, seed=st.integers(0, 1 << 16))
def test_compress(name: str, tokens: int, seed: int) -> None:
    spec, dtype = SPECS[name]
    x = draw(max(2, 256 // tokens), tokens, spec.kv_heads, spec.head_dim, seed=seed, dtype=dtype)
    values = {"x": x, **weights(spec, dtype, spec.head_dim, seed)}

    def run(impl: str, given_values: dict[str, Tensor]) -> tuple[Tensor]:
        rest = dict(given_values)
        return (compress(spec, impl, rest.pop("x"), rest),)

    compare_gradients(run, values, f"compress {spec.compression} of {tokens}")


@specs
@drawn(5)
@given(tokens=TOKENS, seed=st.integers(0, 1 << 16), earlier=st.integers(0, 40))
def test_compressed_attention(name: str, tokens: int, seed: int, earlier: int) -> None:
    """Also with a start, as in decoding, and for queries that see no compressed token."""
    spec, dtype = SPECS[name]
    values = qkv(spec, dtype, tokens + earlier, seed=seed)
    length = Phi(kernel=spec.kernel, stride=spec.stride).length(tokens + earlier)
    assume(length != 1)
    values = {"q": values["q"][:, :tokens], "k": values["k"][:, :length], "v": values["v"][:, :length]}

    def run(impl: str, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return functional.compressed_attention(
            x["q"], x["k"], x["v"], kernel=spec.kernel, stride=spec.stride, q_start=earlier, impl=impl
        )

    compare_gradients(run, values, f"compressed_attention {tokens} after {earlier}")


@specs
@drawn(5)
@given(
    tokens=TOKENS_WITH_GRADIENTS,
    seed=st.integers(0, 1 << 16),
    earlier=st.integers(0, 40),
    scale=st.sampled_from([None, 0.3]),
)
def test_window_attention(name: str, tokens: int, seed: int, earlier: int, scale: float | None) -> None:
    spec, dtype = SPECS[name]
    values = qkv(spec, dtype, tokens + earlier, seed=seed)
    values["q"] = values["q"][:, :tokens]

    def run(impl: str, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return functional.window_attention(x["q"], x["k"], x["v"], window_size=spec.window_size, scale=scale, impl=impl)

    compare_gradients(run, values, f"window_attention {tokens} after {earlier}")


@specs
@drawn(6)
@given(tokens=TOKENS_WITH_GRADIENTS, seed=st.integers(0, 1 << 16), earlier=st.integers(0, 40))
def test_selected_attention(name: str, tokens: int, seed: int, earlier: int) -> None:
    """Lists of any blocks in any order, with duplicates and -1."""
    spec, dtype = SPECS[name]
    values = qkv(spec, dtype, tokens + earlier, seed=seed)
    values["q"] = values["q"][:, :tokens]
    blocks, shape = (
        -(-(tokens + earlier) // spec.block_size),
        (len(values["q"]), tokens, spec.kv_heads, spec.num_selected_blocks),
    )
    lists = torch.randint(-1, blocks, shape, generator=torch.Generator().manual_seed(seed))

    def run(impl: str, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return functional.selected_attention(x["q"], x["k"], x["v"], lists, block_size=spec.block_size, impl=impl)

    compare_gradients(run, values, f"selected_attention {tokens} after {earlier}")


def selection_options(spec: NSASpec) -> dict[str, Any]:
    windows = {"kernel": spec.kernel, "stride": spec.stride} if spec.selection == "compressed" else {}
    return {
        "method": spec.selection, "block_size": spec.block_size, "num_selected": spec.num_selected_blocks,
        "num_initial": spec.num_initial_blocks, "num_local": spec.num_local_blocks, **windows,
    }  # fmt: skip


def checked_selection(spec: NSASpec, q: Tensor, k: Tensor) -> Tensor:
    """Return the compiled selection after holding it against float64."""
    got = functional.select_blocks(q, k, impl="compiled", **selection_options(spec))
    terms = spec.block_size + 1  # of a block's mean, or of a block score
    if spec.selection == "compressed":
        terms = spec.block_size // spec.stride * (spec.kernel // spec.stride) * spec.group
    options = {**selection_options(spec), "q_start": 0}
    assert_selected(got, q, k, terms, **options)
    return got


@specs
@drawn(8)
@given(tokens=TOKENS, seed=st.integers(0, 1 << 16))
def test_select_blocks(name: str, tokens: int, seed: int) -> None:
    spec, dtype = SPECS[name]
    values = qkv(spec, dtype, tokens, seed=seed)
    k = values["k"]
    if spec.selection == "compressed":
        k = k[:, : Phi(kernel=spec.kernel, stride=spec.stride).length(tokens)]
    checked_selection(spec, values["q"], k)


def paths_and_sum(spec: NSASpec, x: dict[str, Tensor], chosen: Tensor) -> Tensor:
    """The definition of NSA by the reference of its ops, with the blocks given."""
    k_cmp, v_cmp = x["k_cmp"], x["v_cmp"]
    program = spec.program()
    outs = [
        reference.stream_attention(x["q"], k_cmp, v_cmp, program.path("compressed").visible)[0],
        reference.gather_attention(x["q"], x["k"], x["v"], chosen, block_size=spec.block_size)[0],
        reference.stream_attention(x["q"], x["k"], x["v"], program.path("window").visible)[0],
    ]
    return reference.combine(outs, x["gates"])


def test_gradients_of_values_that_many_queries_see() -> None:
    """37 compressed tokens with sharp scores, seen by 1200 rows (query, head) each."""
    spec, dtype = SPECS["g4-f32"]
    for seed in range(6):
        x = qkv(spec, dtype, 300, seed=seed)
        for i, (side, dim) in enumerate((("k", spec.head_dim), ("v", spec.dv))):
            x[side] = compress(spec, "compiled", x[side], weights(spec, dtype, dim, seed + 4 + i))

        def run(impl: str, given_values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            q, k, v = given_values.values()
            return functional.compressed_attention(q, k, v, kernel=spec.kernel, stride=spec.stride, impl=impl)

        compare_gradients(run, x, f"compressed_attention, seed {seed}")


@specs
@drawn(6)
@given(tokens=TOKENS_WITH_GRADIENTS, seed=st.integers(0, 1 << 16))
def test_nsa_attention(name: str, tokens: int, seed: int) -> None:
    """One K and V serve selection, the selected path and the window: their gradients add up.

    The selection is held against float64 apart, and then given to the definition, since a near-tie that falls the
    other way changes an output by more than rounding.
    """
    spec, dtype = SPECS[name]
    assume(Phi(kernel=spec.kernel, stride=spec.stride).length(tokens) != 1)
    values = qkv(spec, dtype, tokens, seed=seed)
    shape = (3,) if spec.gate == "scalar" else (*values["q"].shape[:3], 3)
    values["gates"] = draw(*shape, seed=seed + 3).sigmoid().to(dtype)
    for i, side in enumerate(("k", "v")):
        w = weights(spec, dtype, values[side].shape[3], seed + 4 + i)
        values[f"{side}_cmp"] = compress(spec, "compiled", values[side], w)
    chosen = checked_selection(spec, values["q"], values["k_cmp" if spec.selection == "compressed" else "k"])

    def run(impl: str, x: dict[str, Tensor]) -> tuple[Tensor]:
        if impl == "reference":
            return (paths_and_sum(spec, x, chosen),)
        return (functional.nsa_attention(**x, spec=spec, impl=impl),)

    compare_gradients(run, values, f"nsa_attention {tokens}")


@pytest.mark.parametrize("name", ["g1-f32", "g16-bf16"])
def test_nsa_attention_compresses_by_itself(name: str) -> None:
    """Without k_cmp the mean is taken, and gradients reach k and v through it."""
    spec, dtype = SPECS[name]
    values = qkv(spec, dtype, 97)
    gates = torch.rand(3 if spec.gate == "scalar" else (2, 97, spec.num_heads, 3), dtype=torch.float32)
    values["gates"] = gates.reshape(-1)[:3].to(dtype) if spec.gate == "scalar" else gates.to(dtype)
    size = {"kernel": spec.kernel, "stride": spec.stride}
    k_cmp = functional.compress(values["k"], **size, impl="compiled")
    chosen = checked_selection(spec, values["q"], k_cmp if spec.selection == "compressed" else values["k"])

    def run(impl: str, x: dict[str, Tensor]) -> tuple[Tensor]:
        if impl == "compiled":
            return (functional.nsa_attention(**x, spec=spec, impl=impl),)
        compressed = {f"{side}_cmp": reference.compress(x[side], **size) for side in ("k", "v")}
        return (paths_and_sum(spec, {**x, **compressed}, chosen),)

    compare_gradients(run, values, "nsa_attention with its own compression")


@specs
@pytest.mark.parametrize("part", ["window", "selected", "nsa"])
def test_gradients_of_one_key(name: str, part: str) -> None:
    """The weight of a lone key is 1 whatever its score, so q and k have no gradient, and v has dout's.

    Eager torch gets exact zeros there; a backward that recomputes the weight from lse takes the difference of two sums
    of Dv products, which is rounding. It is held to that: Dv * 2^-23 times the sum of the products' absolute values.
    """
    spec, dtype = SPECS[name]
    leaves = {n: x.requires_grad_() for n, x in qkv(spec, dtype, 1, batch=64).items()}
    q, k, v = leaves.values()
    if part == "window":
        out, _ = functional.window_attention(q, k, v, window_size=spec.window_size, impl="compiled")
    elif part == "selected":
        lists = torch.zeros(64, 1, spec.kv_heads, spec.num_selected_blocks, dtype=torch.int32)
        out, _ = functional.selected_attention(q, k, v, lists, block_size=spec.block_size, impl="compiled")
    else:
        none = {f"{s}_cmp": x[:, :0] for s, x in (("k", k), ("v", v))}
        gates = torch.tensor([0.5, 0.25, 0.25], dtype=dtype)
        out = functional.nsa_attention(q, k, v, gates, spec, **none, impl="compiled")
    dout = draw(*out.shape, seed=5, dtype=dtype)
    grads = torch.autograd.grad(out, (q, k, v), dout)
    eps = torch.finfo(dtype).eps
    gate = 0.5 if part == "nsa" else 1.0  # both paths that see the key
    grouped = dout.double().reshape(64, 1, spec.kv_heads, spec.group, spec.dv)
    expected_v = gate * grouped.sum(dim=3)
    scores = spec.head_dim**-0.5 * torch.einsum(
        "bthgd,bthd->bthg", q.detach().double().reshape(64, 1, spec.kv_heads, spec.group, -1), k.detach().double()
    )
    weight = 2e-7 + 8 * float(scores.abs().max()) * 2.0**-24  # exp2's error, and that of the score in its argument
    error = (grads[2].double() - expected_v).abs().max()
    assert float(error) <= spec.group * float(dout.abs().max()) * weight + eps * float(expected_v.abs().max())
    terms = (grouped * v.detach().double()[:, :, :, None]).abs().sum(dim=-1)
    other = max(float(q.detach().abs().max()), float(k.detach().abs().max()))
    rounding = gate * spec.dv * 2.0**-23 * float(terms.max()) * other * spec.head_dim**-0.5
    for grad in grads[:2]:
        assert float(grad.abs().max()) <= spec.group * rounding + eps * eps


@pytest.mark.parametrize(("spec", "dtype"), ONE_TENSOR, ids=map(str, DTYPES))
def test_one_tensor_as_keys_and_values(spec: NSASpec, dtype: torch.dtype) -> None:
    """The gradients of a tensor that is used twice add up."""
    values = {"q": qkv(spec, dtype, 70)["q"], "kv": qkv(spec, dtype, 70)["k"]}

    def run(impl: str, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return functional.window_attention(x["q"], x["kv"], x["kv"], window_size=spec.window_size, impl=impl)

    compare_gradients(run, values, "window_attention of one tensor")


def strided_copies(x: Tensor) -> list[Tensor]:
    """Return tensors equal to x that are not contiguous: transposed, and sliced from a wider one."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"), dtype=x.dtype)
    wide[..., 1::2] = x
    return [x.transpose(1, 2).contiguous().transpose(1, 2), wide[..., 1::2]]


@specs
def test_non_contiguous_inputs_give_the_same_bits(name: str) -> None:
    spec, dtype = SPECS[name]
    values = qkv(spec, dtype, 45, batch=2)
    gates = draw(2, 45, spec.num_heads, 3, seed=3).sigmoid().to(dtype)
    if spec.gate == "scalar":
        gates = torch.tensor([0.2, 0.5, 0.3], dtype=dtype)
    k_cmp, v_cmp = (reference.compress(values[s], kernel=spec.kernel, stride=spec.stride) for s in ("k", "v"))
    tensors = [*values.values(), gates, k_cmp, v_cmp]

    def run(given_tensors: list[Tensor]) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in given_tensors]
        q, k, v, g, kc, vc = leaves
        out = functional.nsa_attention(q, k, v, g, spec, k_cmp=kc, v_cmp=vc, impl="compiled")
        dout = draw(*out.shape, seed=9, dtype=dtype)
        return [out, *torch.autograd.grad(out, leaves, dout.transpose(1, 2).contiguous().transpose(1, 2))]

    wanted = run(tensors)
    for variant in range(2):
        changed = [x if x.dim() == 1 else strided_copies(x)[variant] for x in tensors]
        assert not changed[0].is_contiguous()
        for one, other in zip(wanted, run(changed), strict=True):
            assert torch.equal(one, other)
    if spec.compression == "mean":
        compressed = functional.compress(values["k"], kernel=spec.kernel, stride=spec.stride, impl="compiled")
        for x in strided_copies(values["k"]):
            assert torch.equal(
                functional.compress(x, kernel=spec.kernel, stride=spec.stride, impl="compiled"), compressed
            )


@pytest.mark.parametrize("tokens", [1, 3, 50])
@pytest.mark.parametrize("name", FORMS)
def test_the_whole_model(name: str, tokens: int) -> None:
    """Compiled and eager float32 against the same model in float64: features, and the gradient of every parameter."""
    torch.manual_seed(0)
    options = {"embed_dim": 12, "hidden_size": 16, "num_layers": 2, "output_mode": "all", **FORMS[name]}
    model, exact_model = NSA.build(**options).eval(), NSA.build(**options).eval().double()
    exact_model.load_state_dict(model.state_dict())
    x = draw(2, tokens, 12, seed=1)
    found = []
    for net, impl, given_x in ((model, "compiled", x), (model, "reference", x), (exact_model, "reference", x.double())):
        net.impl = impl
        net.zero_grad()
        leaf = given_x.clone().requires_grad_()
        out = net(leaf)
        out.backward(draw(*out.shape, seed=2).to(out.dtype))
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in net.named_parameters()}
        found.append({"output": out.detach(), "gradient of x": leaf.grad, **grads})
    largest = max(float(found[2][n].abs().max()) for n in grads)
    for part in found[0]:
        term = term_of(found[2][part], largest)
        if part.endswith("attention.gate"):  # three numbers, each a difference of gradients of the gates
            term = largest
        assert_accurate(*(f[part] for f in found), f"{name} model of {tokens}: {part}", term=term)


@pytest.mark.parametrize("impl", ["compiled", "reference"])
def test_pooled_queries_stand_where_their_window_does(impl: str) -> None:
    q, k, v = draw(2, 14, 4, 16, seed=0), draw(2, 10, 2, 16, seed=1), draw(2, 10, 2, 16, seed=2)
    of_first = functional.attention(POOLED, q, {"c": (k, v)}, impl=impl)
    for start in (0, 4, 24, 40):
        found = functional.attention(POOLED, q, {"c": (k, v)}, q_start=start, impl=impl)
        wanted = reference.attention(POOLED, q.double(), {"c": (k.double(), v.double())}, q_start=start)
        assert (found - wanted).abs().max() < 1e-5
        assert torch.equal(found, of_first) == (start == 0)
    for start in (2, 25):
        with pytest.raises(InputError, match=f"q_start = {start} must be a multiple of 4, or windows of queries"):
            functional.attention(POOLED, q, {"c": (k, v)}, q_start=start, impl=impl)


def test_the_largest_sizes_at_the_last_positions() -> None:
    """Bounds are positions, sizes and tiles added up, in 32 bits."""
    q, k, v = draw(1, 70, 2, 16, seed=0), draw(1, 70, 2, 16, seed=1), draw(1, 70, 2, 16, seed=2)
    for stride, kernel in ((MAX_SIZE, MAX_SIZE), (1, MAX_SIZE), (MAX_SIZE // 70, MAX_SIZE)):
        keys = min(70, MAX_POSITION // stride)
        for start in (0, kernel - 30, MAX_POSITION - 70):
            found, wanted = (
                functional.compressed_attention(
                    q, k[:, :keys], v[:, :keys], kernel=kernel, stride=stride, q_start=start, impl=impl
                )
                for impl in ("compiled", "reference")
            )
            torch.testing.assert_close(found, wanted)
    found, wanted = (functional.window_attention(q, k, v, window_size=MAX_SIZE, impl=i) for i in ("auto", "reference"))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("impl", ["compiled", "reference"])
@pytest.mark.parametrize("name", SPECS)
def test_no_queries_and_no_keys(name: str, impl: str) -> None:
    """Of no queries nothing is made, whatever keys there are; of no batch row as well."""
    spec, dtype = SPECS[name]
    for batch, queries, keys in ((2, 0, 40), (2, 0, 0), (0, 7, 40)):
        x = qkv(spec, dtype, 40, batch=2)
        q, k, v = x["q"][:batch, :queries], x["k"][:batch, :keys], x["v"][:batch, :keys]
        means = {"kernel": spec.kernel, "stride": spec.stride, "impl": impl}
        k_cmp, v_cmp = functional.compress(k, **means), functional.compress(v, **means)
        out = functional.nsa_attention(q, k, v, torch.ones(3, dtype=dtype), spec, k_cmp=k_cmp, v_cmp=v_cmp, impl=impl)
        assert out.shape == (batch, queries, spec.num_heads, spec.dv)
        blocks = {"block_size": spec.block_size, "impl": impl}  # sizes of the spec's own, whose kernels are there
        lists = functional.select_blocks(q, k, method="mean_key", num_selected=spec.num_selected_blocks, **blocks)
        assert lists.shape == (batch, queries, spec.kv_heads, spec.num_selected_blocks)
        leaves = tuple(y.detach().clone().requires_grad_() for y in (q, k, v))
        attended = functional.window_attention(*leaves, window_size=spec.window_size, impl=impl)[0]
        attended = attended + functional.selected_attention(*leaves, lists, **blocks)[0]
        if not queries:
            assert not any(bool(g.any()) for g in torch.autograd.grad(attended.sum(), leaves))
