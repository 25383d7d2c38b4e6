"""The torch model: shapes, parameters, options and errors; what it computes, against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from naive import draw
from torch import Tensor, nn

from nsa_codegen import reference
from nsa_codegen.errors import InputError, SpecError, UnknownOptionError
from nsa_codegen.nn import NSA, NSAAttention, NSABlock, NSAModel
from nsa_codegen.spec import NSASpec

SMALL: dict[str, Any] = {
    "num_heads": 4, "head_dim": 8, "window_size": 6, "block_size": 4, "num_selected_blocks": 3,
}  # fmt: skip
MODEL: dict[str, Any] = {"embed_dim": 12, "hidden_size": 16, "num_layers": 2, "impl": "reference", **SMALL}
PAPER: dict[str, Any] = {
    **MODEL, "preset": "paper", "num_kv_heads": 2, "value_dim": 6, "num_selected_blocks": 4, "compression_kernel": 4,
    "compression_stride": 2,
}  # fmt: skip
OPTION_SETS: dict[str, dict[str, Any]] = {
    "seed": MODEL,
    "seed_gqa": {**MODEL, "num_kv_heads": 2, "value_dim": 5},
    "no_projection": {**MODEL, "embed_dim": 16},
    "conv": {**MODEL, "compression": "conv", "compression_kernel": 6, "compression_stride": 2},
    "sigmoid": {**MODEL, "gate": "sigmoid"},
    "own_kv": {**MODEL, "kv_per_path": True},
    "pooled": {**MODEL, "causal": False, "pool_queries": True},
    "paper": PAPER,
    "paper_conv": {**PAPER, "compression": "conv", "kv_per_path": False},
}
each = pytest.mark.parametrize("options", OPTION_SETS.values(), ids=OPTION_SETS.keys())


def make(options: dict[str, Any]) -> NSAModel:
    torch.manual_seed(0)
    return NSA.build(**options).eval()


def expected_parameters(options: dict[str, Any]) -> int:
    """The number of parameters, counted with pencil and paper from the description of the model."""
    preset = {"seed": NSASpec.seed, "paper": NSASpec.paper}[options.get("preset", "seed")]
    others = ("embed_dim", "hidden_size", "num_layers", "impl", "preset")
    spec = preset(**{name: value for name, value in options.items() if name not in others})
    embed, hidden = options["embed_dim"], options["hidden_size"]
    heads, kv_heads, dk, dv = spec.num_heads, spec.kv_heads, spec.head_dim, spec.dv
    attention = hidden * heads * dk + heads * dv * hidden
    attention += (3 if spec.kv_per_path else 1) * hidden * kv_heads * (dk + dv)
    for dim in (dk, dv):
        if spec.compression == "conv":
            attention += spec.kernel * kv_heads * dim + kv_heads * dim
        if spec.compression == "mlp":
            attention += spec.kernel * dim + (2 * dim * spec.kernel * dim + 2 * dim) + (dim * 2 * dim + dim)
    attention += 3 if spec.gate == "scalar" else hidden * 3 * heads + 3 * heads
    mlp = (hidden * 4 * hidden + 4 * hidden) + (4 * hidden * hidden + hidden)
    block = attention + mlp + 2 * 2 * hidden
    projection = 0 if embed == hidden else embed * hidden + hidden
    return projection + options["num_layers"] * block + 2 * hidden


@each
def test_param_count_is_exact(options: dict[str, Any]) -> None:
    counted = NSA.param_count(**options)
    assert counted == sum(p.numel() for p in NSA.build(**options).parameters())
    assert counted == expected_parameters(options)


def test_param_count_allocates_nothing() -> None:
    """A model of 10^12 parameters and more can be counted."""
    assert NSA.param_count(embed_dim=1 << 18, hidden_size=1 << 18) > 1 << 40


@each
def test_shapes_for_every_output_mode(options: dict[str, Any]) -> None:
    x = draw(2, 21, options["embed_dim"], seed=0, dtype=torch.float32)
    for mode, shape in (("last", (2, 16)), ("mean", (2, 16)), ("all", (2, 21, 16))):
        out = make({**options, "output_mode": mode})(x)
        assert out.shape == shape
        assert bool(out.isfinite().all())
        assert NSA.output_size(**options, output_mode=mode) == out.shape[-1]


def test_output_modes_agree() -> None:
    x = draw(2, 21, 12, seed=0, dtype=torch.float32)
    last, every, mean = (make({**MODEL, "output_mode": mode})(x) for mode in ("last", "all", "mean"))
    torch.testing.assert_close(last, every[:, -1])
    torch.testing.assert_close(mean, every.mean(dim=1))


def test_the_seed_model_maps_287_features_to_256() -> None:
    model = NSA.build(
        embed_dim=287, hidden_size=256, num_heads=8, head_dim=32, window_size=64, block_size=16,
        num_selected_blocks=8, compression_ratio=4, num_layers=4, impl="reference",
    ).eval()  # fmt: skip
    assert model(draw(2, 70, 287, seed=0, dtype=torch.float32)).shape == (2, 256)
    assert NSA.output_size(embed_dim=287) == NSA.output_size() == 256
    assert (model.seq_len, len(model.blocks)) == (256, 4)


@each
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 33])
def test_kf10_every_length_works_forward_and_backward(options: dict[str, Any], tokens: int) -> None:
    x = draw(2, tokens, options["embed_dim"], seed=0, dtype=torch.float32).requires_grad_()
    model = make(options)
    model(x).square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name


@each
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    model = make({**options, "output_mode": "all"}).double()
    model(draw(2, 40, options["embed_dim"], seed=0))[..., :3].square().sum().backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-12}
    # A constant added to every compressed key shifts all scores of a query alike, which a softmax does not see.
    assert idle == {n for n, _ in model.named_parameters() if n.endswith(("k_phi.bias", "k_phi.project.bias"))}


@pytest.mark.parametrize("name", [name for name in OPTION_SETS if name != "pooled"])
def test_kf05_a_position_does_not_see_later_ones(name: str) -> None:
    options = {**OPTION_SETS[name], "output_mode": "all"}
    model = make(options)
    x = draw(1, 30, options["embed_dim"], seed=0, dtype=torch.float32)
    changed = x.clone()
    changed[:, 17:] = draw(1, 13, options["embed_dim"], seed=1, dtype=torch.float32) * 10
    before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :17], after[:, :17], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before[:, 17:], after[:, 17:], atol=1e-2)


@each
def test_attention_is_the_program_between_its_projections(options: dict[str, Any]) -> None:
    """Each step from the layer's parameters, joined by the reference of the whole program."""
    torch.manual_seed(1)
    layer = make(options).double().blocks[0].attention
    spec = layer.spec
    for parameter in layer.parameters():  # away from the initial values, which hide exchanged gates and weights
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = draw(2, 26, 16, seed=0)
    q = (x @ layer.q_proj.weight.T).reshape(2, 26, spec.num_heads, spec.head_dim)
    kv = {}
    for path in ("compressed", "selected", "window"):
        name = path if spec.kv_per_path else "shared"
        k = (x @ layer.k_proj[name].weight.T).reshape(2, 26, spec.kv_heads, spec.head_dim)
        v = (x @ layer.v_proj[name].weight.T).reshape(2, 26, spec.kv_heads, spec.dv)
        if path == "compressed":
            k, v = (compressed(spec, phi, y) for phi, y in ((layer.k_phi, k), (layer.v_phi, v)))
        kv[path] = (k, v)
    if spec.gate == "scalar":
        weights = [math.exp(g) for g in layer.gate.tolist()]
        gates = torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)
    else:
        linear = x @ layer.gate_proj.weight.T + layer.gate_proj.bias
        gates = (1 / (1 + torch.exp(-linear))).reshape(2, 26, spec.num_heads, 3)
    out = reference.attention(spec.program(), q, kv, gates)
    expected = out.reshape(2, 26, -1) @ layer.o_proj.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def compressed(spec: NSASpec, phi: nn.Module, x: Tensor) -> Tensor:
    weight, bias = {
        "mean": lambda: (None, None),
        "conv": lambda: (phi.weight, phi.bias),
        "mlp": lambda: (
            (phi.position, phi.expand.weight, phi.project.weight),
            (phi.expand.bias, phi.project.bias),
        ),
    }[spec.compression]()
    return reference.compress(
        x, kernel=spec.kernel, stride=spec.stride, method=spec.compression, weight=weight, bias=bias
    )


def test_block_is_pre_norm_with_residuals() -> None:
    torch.manual_seed(0)
    block = NSA.build_nsa_block(16, dropout=0.0, impl="reference", **SMALL).double()
    x = draw(2, 11, 16, seed=0)

    def norm(y: Tensor, layer: nn.LayerNorm) -> Tensor:
        centred = y - y.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    for layer in (block.attention_norm, block.mlp_norm):
        layer.weight.data, layer.bias.data = draw(16, seed=1), draw(16, seed=2)
    expand, _, shrink = block.mlp
    middle = x + block.attention(norm(x, block.attention_norm))
    inner = norm(middle, block.mlp_norm) @ expand.weight.T + expand.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    assert expand.out_features == 64
    torch.testing.assert_close(block(x), middle + inner @ shrink.weight.T + shrink.bias, rtol=1e-10, atol=1e-10)


def test_dropout_acts_in_training_only() -> None:
    model = NSA.build(**{**MODEL, "dropout": 0.5})
    x = draw(2, 9, 12, seed=0, dtype=torch.float32)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_gates_start_equal_and_are_one_per_path() -> None:
    layer = NSA.build_nsa_attention(16, impl="reference", **SMALL)
    assert layer.gate.shape == (3,)
    torch.testing.assert_close(layer.gates(torch.zeros(1, 2, 16)), torch.full((3,), 1 / 3))


def test_sigmoid_gates_are_one_per_token_head_and_path_from_the_input() -> None:
    layer = NSA.build_nsa_attention(16, impl="reference", gate="sigmoid", **SMALL)
    x = draw(2, 5, 16, seed=0, dtype=torch.float32)
    gates = layer.gates(x)
    assert gates.shape == (2, 5, 4, 3)
    assert bool(((gates > 0) & (gates < 1)).all())
    assert not torch.allclose(gates.sum(-1), torch.ones(2, 5, 4))  # independent, not through a softmax
    x[0, 3] += 1
    moved = (layer.gates(x) != gates).any(-1).any(-1)
    assert moved.nonzero().tolist() == [[0, 3]]


def test_conv_starts_as_the_mean() -> None:
    layer = NSA.build_nsa_attention(
        16, impl="reference", compression="conv", compression_kernel=6, compression_stride=3, **SMALL
    )
    for phi, dim in ((layer.k_phi, 8), (layer.v_phi, 8)):
        assert phi.weight.shape == (6, 4, dim)
        x = draw(2, 20, 4, dim, seed=0, dtype=torch.float32)
        torch.testing.assert_close(phi(x), reference.compress(x, kernel=6, stride=3))


def test_paths_have_their_own_keys_and_values_only_when_asked() -> None:
    own = NSA.build_nsa_attention(16, impl="reference", kv_per_path=True, **SMALL)
    shared = NSA.build_nsa_attention(16, impl="reference", **SMALL)
    assert list(own.k_proj) == list(own.v_proj) == ["compressed", "selected", "window"]
    assert list(shared.k_proj) == list(shared.v_proj) == ["shared"]
    assert [n for n, p in own.named_parameters() if n.endswith("bias")] == []


def test_impl_reaches_every_layer_and_can_be_changed() -> None:
    model = NSA.build(**{**MODEL, "impl": "auto"})
    assert {model.impl, *(b.impl for b in model.blocks)} == {"auto"}
    model.impl = "reference"
    phis = [phi.impl for b in model.blocks for phi in (b.attention.k_phi, b.attention.v_phi)]
    assert {model.impl, *(b.impl for b in model.blocks), *(b.attention.impl for b in model.blocks), *phis} == {
        "reference"
    }
    with pytest.raises(SpecError, match=r"NSA.impl = 'refrence' is not allowed: did you mean 'reference'\?"):
        model.impl = "refrence"


def test_recommended_defaults_are_those_of_build() -> None:
    defaults = NSA.recommended_defaults()
    stated = {
        "hidden_size": 256, "num_heads": 8, "head_dim": 32, "window_size": 64, "block_size": 16,
        "num_selected_blocks": 8, "compression_ratio": 4, "num_layers": 4, "dropout": 0.1, "seq_len": 256,
        "output_mode": "last", "preset": "seed", "impl": "auto",
    }  # fmt: skip
    assert {name: defaults[name] for name in stated} == stated
    with torch.device("meta"):
        given, bare = NSA.build(32, **defaults), NSA.build(32)
    assert given.options == bare.options
    defaults["hidden_size"] = 1
    assert NSA.recommended_defaults()["hidden_size"] == 256


def test_every_default_is_an_option_and_every_option_has_a_default() -> None:
    with pytest.raises(UnknownOptionError) as error:
        NSA.build(12, zzz=1)
    listed = str(error.value).split("allowed: ")[1].split(", ")
    assert set(listed) == {*NSA.recommended_defaults(), "embed_dim"}


def test_presets_choose_the_attention() -> None:
    with torch.device("meta"):
        assert NSA.build(12, preset="paper").options.spec == NSASpec.paper()
        assert NSA.build(12, preset="paper", window_size=8).options.spec == NSASpec.paper(window_size=8)
        assert NSA.build(12).options.spec == NSASpec.seed()
        assert NSA.build_nsa_attention(preset="paper").spec == NSASpec.paper()
        assert NSA.build_nsa_block(32, preset="paper").attention.spec == NSASpec.paper()


def test_sizes_may_be_positional() -> None:
    model = NSA.build(12, 24, num_layers=1, impl="reference", **SMALL)
    assert model(torch.zeros(1, 3, 12)).shape == (1, 24)
    assert isinstance(NSA.build_nsa_attention(24, **SMALL), NSAAttention)
    assert isinstance(NSA.build_nsa_block(24, **SMALL), NSABlock)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (NSA.build, "NSA.build"),
        (NSA.param_count, "NSA.param_count"),
        (NSA.output_size, "NSA.output_size"),
        (NSA.build_nsa_attention, "NSA.build_nsa_attention"),
        (NSA.build_nsa_block, "NSA.build_nsa_block"),
    ],
)
def test_unknown_options_are_refused_with_the_nearest_name(call: Any, name: str) -> None:
    with pytest.raises(UnknownOptionError) as error:
        call(16, num_head=4)
    assert f"{name} has no option 'num_head': did you mean 'num_heads'?" in str(error.value)


def test_a_misspelt_model_option_is_met_with_its_own_name() -> None:
    for wrong, right in (("embd_dim", "embed_dim"), ("num_layer", "num_layers"), ("output", "output_mode")):
        with pytest.raises(UnknownOptionError, match=rf"no option '{wrong}': did you mean '{right}'\?"):
            NSA.build(**{wrong: 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": None}, "NSA.build needs embed_dim"),
        ({"embed_dim": 0}, "NSA.embed_dim = 0 is not allowed: it must be an integer >= 1"),
        ({"hidden_size": 2.5}, "NSA.hidden_size = 2.5 is not allowed"),
        ({"num_layers": 0}, "NSA.num_layers = 0 is not allowed"),
        ({"seq_len": -1}, "NSA.seq_len = -1 is not allowed"),
        ({"dropout": 1.0}, "NSA.dropout = 1.0 is not allowed: it must be a number >= 0 and < 1"),
        ({"dropout": math.nan}, "NSA.dropout = nan is not allowed"),
        ({"output_mode": "first"}, "NSA.output_mode = 'first' is not allowed"),
        ({"preset": "papr"}, "NSA.preset = 'papr' is not allowed: did you mean 'paper'?"),
        ({"impl": "triton"}, "NSA.impl = 'triton' is not allowed"),
        ({"window_size": 0}, "NSASpec.window_size = 0 is not allowed"),
    ],
)
def test_values_that_are_not_allowed_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        NSA.build(**{**MODEL, **options})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 12), "input of shape [5, 12] has rank 2; give [batch, sequence, 12]"),
        ((1, 2, 5, 12), "input of shape [1, 2, 5, 12] has rank 4"),
        ((2, 5, 13), "input of shape [2, 5, 13] has 13 features; its last dimension must be 12"),
        ((2, 0, 12), "input of shape [2, 0, 12] has no positions; give a sequence of at least 1"),
    ],
)
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError) as error:
        NSA.build(**MODEL)(torch.zeros(shape))
    assert f"NSAModel: {message}" in str(error.value)


def test_layers_check_their_input_too() -> None:
    with pytest.raises(InputError, match=r"NSAAttention: input of shape \[2, 3, 8\] has 8 features; .* must be 16"):
        NSA.build_nsa_attention(16, **SMALL)(torch.zeros(2, 3, 8))
    with pytest.raises(InputError, match=r"NSABlock: input of shape \[2, 0, 16\] has no positions"):
        NSA.build_nsa_block(16, **SMALL)(torch.zeros(2, 0, 16))
    with pytest.raises(InputError, match=r"NSAModel: input of dtype torch.int64 is not allowed"):
        NSA.build(**MODEL)(torch.zeros(2, 3, 12, dtype=torch.int64))
    with pytest.raises(InputError, match=r"NSAModel: input is list; give a tensor \[batch, sequence, 12\]"):
        NSA.build(**MODEL)([[[0.0] * 12]])
    for other in (None, NSASpec.seed().program()):
        with pytest.raises(SpecError, match=rf"NSA.spec is {type(other).__name__}; give an NSASpec"):
            NSAAttention(16, other)  # type: ignore[arg-type]


def test_kf06_one_batch_row_never_reaches_another() -> None:
    for options in (MODEL, PAPER):
        model = make(options)
        x = draw(3, 20, 12, seed=0, dtype=torch.float32)
        clean = model(x)
        x[1] = math.nan
        dirty = model(x)
        assert torch.equal(clean[[0, 2]], dirty[[0, 2]])
        assert bool(dirty[1].isnan().all())


def test_state_dict_reproduces_the_model() -> None:
    first, second = make(PAPER), NSA.build(**PAPER).eval()
    x = draw(2, 9, 12, seed=0, dtype=torch.float32)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
