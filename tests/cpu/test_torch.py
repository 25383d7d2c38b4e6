"""The kernels as torch ops: opcheck, torch.compile, export, checkpointing, autocast, and refused second derivatives."""

import pytest
import torch
from cases import PAPER, SEED, SMALL_MODELS, kernels_of
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from nsa_codegen import NSA, NSASpec, functional
from nsa_codegen.errors import ForwardDerivativeError, SecondDerivativeError, TransformError
from nsa_codegen.index_sets import window

FORMS = {
    name: {"hidden_size": 32, "num_layers": 1, "dropout": 0.0, "output_mode": "all", **options}
    for name, options in SMALL_MODELS.items()
}
KERNELS = [d for spec in (SEED, PAPER) for t in (torch.float32, torch.bfloat16) for d in kernels_of(spec.program(), t)]


def normal(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def gradients(model: torch.nn.Module, call, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    out = call(x)
    (out * torch.arange(out.numel()).cos().view_as(out)).sum().backward()  # a final norm makes plain sums constant
    return out.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def close(got: list[Tensor], want: list[Tensor]) -> bool:
    return all((g - w).abs().max() <= 1e-5 * w.abs().max().clamp(min=1) for g, w in zip(got, want, strict=True))


@pytest.fixture(params=FORMS)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return NSA.build(16, **FORMS[request.param])


class TestOpcheck:
    """Schema, fake, autograd registration and AOT dispatch with dynamic shapes, by torch's own checker."""

    @pytest.fixture(autouse=True)
    def inputs(self) -> None:
        self.q, self.k, self.v = normal(1, 20, 6, 16), normal(1, 20, 2, 16, seed=1), normal(1, 20, 2, 8, seed=2)
        self.ops = torch.ops.nsa_codegen

    def check(self, op, *arguments) -> None:
        torch.library.opcheck(op.default, arguments)

    def test_stream_attention(self) -> None:
        self.check(self.ops.stream_attention, self.q, self.k, self.v, window(9).text, 0, 0.25)

    def test_gather_attention(self) -> None:
        lists = torch.randint(-1, 3, (1, 20, 2, 4), dtype=torch.int32, generator=torch.Generator().manual_seed(3))
        self.check(self.ops.gather_attention, self.q, self.k, self.v, lists, 8, True, 0, 0.25)

    def test_scored_attention(self) -> None:
        self.check(self.ops.scored_attention, self.q, self.k[:, :4], self.v[:, :4], 8, 4, 1, 2, 8, 4, 0.25, 0)

    def test_select_blocks(self) -> None:
        q, k = self.q.detach(), self.k.detach()
        self.check(self.ops.select_blocks, q, k, "mean_key", 8, 3, 0, 1, 0, 0, 0.25, 0)
        self.check(self.ops.select_blocks, q, k[:, :4], "compressed", 8, 4, 1, 2, 8, 4, 0.25, 0)

    def test_block_means(self) -> None:
        self.check(self.ops.block_means, self.k.detach(), 8)

    @pytest.mark.parametrize("method", ["mean", "conv", "mlp"])
    def test_compress(self, method: str) -> None:
        conv, mlp = [None] * 2, [None] * 5
        if method == "conv":
            conv = [normal(8, 2, 16), normal(2, 16)]
        if method == "mlp":
            mlp = [normal(8, 16), normal(32, 128), normal(32), normal(16, 32), normal(16)]
        self.check(self.ops.compress, self.k, method, 8, 4, *conv, *mlp)

    @pytest.mark.parametrize("gates", [(3,), (1, 20, 4, 3)])
    def test_combine(self, gates: tuple[int, ...]) -> None:
        self.check(self.ops.combine, [normal(1, 20, 4, 8, seed=s) for s in range(3)], normal(*gates))


def test_compile_without_graph_breaks_gives_equal_results(model: torch.nn.Module) -> None:
    compiled = torch.compile(model, fullgraph=True)
    for batch, tokens in ((2, 50), (3, 41)):  # the second length is served by a dynamic recompilation
        x = normal(batch, tokens, 16, seed=tokens, grad=False)
        out, grads = gradients(model, model, x)
        compiled_out, compiled_grads = gradients(model, compiled, x)
        assert close([compiled_out, *compiled_grads], [out, *grads])


GIVEN = {"block_size": 8, "num_selected": 3}
FUNCTIONS = {
    "compress": lambda q, k, v, **o: functional.compress(k, kernel=4, stride=4, **o),
    "compressed_attention": lambda q, k, v, **o: functional.compressed_attention(
        q, k[:, :5], v[:, :5], kernel=4, stride=4, **o
    ),
    "all compressed tokens": lambda q, k, v, **o: functional.compressed_attention(
        q, k[:, :5], v[:, :5], kernel=4, stride=4, causal=False, **o
    ),
    "window_attention": lambda q, k, v, **o: functional.window_attention(q, k, v, window_size=9, **o),
    "selected_attention": lambda q, k, v, **o: functional.selected_attention(
        q, k, v, torch.zeros(1, 20, 2, 3, dtype=torch.int32), block_size=8, **o
    ),
    "select_blocks": lambda q, k, v, **o: functional.select_blocks(q, k, method="mean_key", **GIVEN, **o),
    "select_blocks by compressed tokens": lambda q, k, v, **o: functional.select_blocks(
        q, k[:, :5], method="compressed", kernel=4, stride=4, **GIVEN, **o
    ),
    "block_means": lambda q, k, v, **o: functional.block_means(k, block_size=8, **o),
    "combine": lambda q, k, v, **o: functional.combine([q, k, v], torch.ones(3), **o),
    "nsa_attention": lambda q, k, v, **o: functional.nsa_attention(q, k, v, torch.ones(3), SEED, **o),
    "a spec of its own": lambda q, k, v, **o: functional.nsa_attention(
        q, k, v, torch.ones(3), NSASpec.seed(**SMALL_MODELS["seed"]).replace(window_size=9), **o
    ),
}


@pytest.mark.parametrize("impl", ["compiled", "reference"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compile_without_graph_breaks(name: str, impl: str) -> None:
    torch.compiler.reset()
    values = [normal(1, 20, 2, 16, seed=seed, grad=False) for seed in range(3)]
    call = torch.compile(lambda *x: FUNCTIONS[name](*x, impl=impl), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(*values), FUNCTIONS[name](*values, impl=impl))


def test_sizes_that_change_are_compiled_for() -> None:
    values = [normal(1, 20, 2, 16, seed=seed, grad=False) for seed in range(3)]
    calls = (
        lambda size: functional.window_attention(*values, window_size=size, impl="reference"),
        lambda size: functional.compressed_attention(*values, kernel=size, stride=size, impl="reference"),
    )
    for call in calls:
        torch.compiler.reset()
        compiled = torch.compile(call, fullgraph=True, backend="eager")
        for size in (7, 9, 11, 7):
            torch.testing.assert_close(compiled(size), call(size))


def test_export_runs_the_same_kernels(model: torch.nn.Module) -> None:
    x = normal(2, 50, 16, grad=False)
    exported = torch.export.export(model, (x,))
    assert torch.equal(exported.module()(x), model(x))
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    lists = {f"nsa_codegen.{op}.default" for op in ("select_blocks", "scored_attention")}
    assert "nsa_codegen.gather_attention.default" in names
    assert len(lists & names) == 1


def test_activation_checkpointing_gives_equal_gradients(model: torch.nn.Module) -> None:
    x = normal(2, 30, 16, grad=False)
    out, grads = gradients(model, model, x)
    again, checkpointed = gradients(model, lambda y: checkpoint(model, y, use_reentrant=False), x)
    assert torch.equal(out, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, checkpointed, strict=True))


def test_autocast_trains_in_bfloat16_near_float32(model: torch.nn.Module) -> None:
    x = normal(2, 50, 16, grad=False)
    out, grads = gradients(model, model, x)
    with torch.autocast("cpu", torch.bfloat16):
        low, low_grads = gradients(model, model, x)
    assert (low - out).abs().max() < 0.05 * out.abs().max()
    for got, want in zip(low_grads, grads, strict=True):
        assert got.dtype == torch.float32 and got.isfinite().all()
        assert (got - want).norm() <= 0.1 * want.norm() + 1e-3 * max(g.norm() for g in grads)


def test_one_tensor_used_as_keys_and_values_collects_both_gradients() -> None:
    q, shared = normal(1, 30, 2, 16), normal(1, 30, 2, 16, seed=1)
    functional.window_attention(q, shared, shared, window_size=9)[0].square().sum().backward()
    k, v = (shared.detach().clone().requires_grad_() for _ in range(2))
    functional.window_attention(q.detach(), k, v, window_size=9)[0].square().sum().backward()
    assert torch.equal(shared.grad, k.grad + v.grad)


@pytest.mark.parametrize("name", ["window", "selected", "compress", "combine"])
def test_second_derivatives_are_refused(name: str) -> None:
    q, k, v = normal(1, 12, 2, 16), normal(1, 12, 2, 16, seed=1), normal(1, 12, 2, 16, seed=2)
    lists = torch.tensor([0, -1, -1], dtype=torch.int32).expand(1, 12, 2, 3)
    out = {
        "window": lambda: functional.window_attention(q, k, v, window_size=9)[0],
        "selected": lambda: functional.selected_attention(q, k, v, lists, block_size=8)[0],
        "compress": lambda: functional.compress(k, kernel=4, stride=4),
        "combine": lambda: functional.combine([q * 1, k * 1], normal(2)),
    }[name]()
    (first,) = (
        torch.autograd.grad(out.square().sum(), k, create_graph=True)
        if name != "selected"
        else (torch.autograd.grad(out.square().sum(), q, create_graph=True)[0],)
    )
    with pytest.raises(SecondDerivativeError, match=r"first derivatives only.*impl='reference'"):
        first.sum().backward()


def _one_dual(call, values: list[Tensor], number: int) -> Tensor | None:
    with forward_ad.dual_level():
        values = [forward_ad.make_dual(x, x.cos()) if n == number else x for n, x in enumerate(values)]
        out = call(*values)
        return forward_ad.unpack_dual(out[0] if isinstance(out, tuple) else out).tangent


def _one_dual_without_gradients(call, values: list[Tensor], number: int) -> Tensor | None:
    with torch.no_grad():
        return _one_dual(call, values, number)


def _jvp(call, values: list[Tensor], number: int) -> Tensor | None:
    def of_one(x: Tensor) -> Tensor:
        out = call(*values[:number], x, *values[number + 1 :])
        return out[0] if isinstance(out, tuple) else out

    return torch.func.jvp(of_one, (values[number],), (values[number].cos(),))[1]


@pytest.mark.parametrize("derivative", [_one_dual, _one_dual_without_gradients, _jvp])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_derivatives_are_refused_by_kernels_and_made_by_the_reference(name: str, derivative) -> None:
    values = [normal(1, 20, 2, 16, seed=seed, grad=derivative is not _jvp) for seed in range(3)]
    has_none = name.startswith(("select_blocks", "block_means"))
    for number in {"compress": [1], "block_means": [1]}.get(name, [0, 1]):
        reference = derivative(lambda *x: FUNCTIONS[name](*x, impl="reference"), values, number)
        if has_none:
            assert reference is None or not reference.any()
            found = derivative(lambda *x: FUNCTIONS[name](*x, impl="compiled"), values, number)
            assert found is None or not found.any()
            continue
        assert reference is not None and reference.abs().max() > 0
        with pytest.raises(ForwardDerivativeError, match=r"reverse-mode derivatives only; use impl='reference'"):
            derivative(lambda *x: FUNCTIONS[name](*x, impl="compiled"), values, number)


def test_forward_derivatives_of_weights_and_gates_are_refused() -> None:
    x, outs = normal(1, 20, 2, 16), [normal(1, 20, 2, 16, seed=seed) for seed in range(3)]
    weight = normal(4, 2, 16)
    for call, given in (
        (lambda w: functional.compress(x, kernel=4, stride=4, method="conv", weight=w), weight),
        (lambda g: functional.combine(outs, g), normal(3)),
        (lambda g: functional.nsa_attention(*outs, g, SEED), normal(3)),
    ):
        with pytest.raises(ForwardDerivativeError, match=r"torch\.func\.jvp"):
            _one_dual(call, [given], 0)


def test_what_has_no_tangent_runs_at_a_dual_level() -> None:
    values = [normal(1, 20, 2, 16, seed=seed, grad=False) for seed in range(3)]
    wanted = functional.nsa_attention(*values, torch.ones(3), SEED)
    with forward_ad.dual_level():
        assert torch.equal(functional.nsa_attention(*values, torch.ones(3), SEED), wanted)


def _func_grad(call, values: list[Tensor]) -> Tensor:
    def of_all(*given: Tensor) -> Tensor:
        out = call(*given)
        return (out[0] if isinstance(out, tuple) else out).cos().sum()

    return torch.func.grad(of_all, argnums=1)(*values)


def _func_grad_of_rows(call, values: list[Tensor]) -> Tensor:
    return torch.vmap(lambda *row: _func_grad(call, list(row)))(*(torch.stack([x, x]) for x in values))


def _func_grad_over_rows(call, values: list[Tensor]) -> Tensor:
    def of_rows(*rows: Tensor) -> Tensor | tuple[Tensor, ...]:
        return torch.vmap(call)(*rows)

    return _func_grad(of_rows, [torch.stack([x, x]) for x in values])


@pytest.mark.parametrize("gradient", [_func_grad, _func_grad_of_rows, _func_grad_over_rows])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith(("select_blocks", "block_means"))])
def test_gradients_by_torch_func_are_refused_by_kernels_and_made_by_the_reference(name: str, gradient) -> None:
    values = [normal(1, 20, 2, 16, seed=seed, grad=False) for seed in range(3)]
    with pytest.raises(TransformError, match=r"use these, or impl='reference'"):
        gradient(lambda *x: FUNCTIONS[name](*x, impl="compiled"), values)
    if gradient is _func_grad:
        assert gradient(lambda *x: FUNCTIONS[name](*x, impl="reference"), values).abs().max() > 0


def test_vmap_is_refused_where_torch_does_not_make_it() -> None:
    rows = [normal(3, 1, 20, 2, 16, seed=seed, grad=False) for seed in range(3)]
    whole = [x.flatten(0, 1) for x in rows]
    for call in (
        lambda *x: functional.nsa_attention(*x, torch.ones(3), SEED),
        lambda *x: functional.combine(x, torch.ones(3)),
    ):
        with pytest.raises(TransformError, match="give the rows as batch"):
            torch.vmap(call)(*rows)
    attend = lambda *x: functional.window_attention(*x, window_size=9)[0]  # noqa: E731
    assert torch.equal(torch.vmap(attend)(*rows).flatten(0, 1), attend(*whole))


def test_what_is_not_differentiated_runs_under_a_gradient() -> None:
    values = [normal(1, 20, 2, 16, seed=seed, grad=False) for seed in range(3)]
    wanted = functional.nsa_attention(*values, torch.ones(3), SEED)

    def fixed(x: Tensor) -> Tensor:
        assert torch.equal(functional.nsa_attention(x.detach(), *values[1:], torch.ones(3), SEED), wanted)
        return x.sum()

    torch.func.grad(fixed)(values[0])
