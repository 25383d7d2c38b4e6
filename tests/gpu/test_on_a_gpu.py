"""The kernels on a real GPU: results, streams, graphs. Without one every test here is skipped, and says so."""

import pytest
import torch

from nsa_codegen import NSASpec, functional
from nsa_codegen.conformance.check import nan_filled

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: nothing was run on one")
SIZES = [(1, 1, 1), (2, 33, 4), (1, 200, 16)]  # batch, tokens, group


def drawn(batch: int, tokens: int, group: int, dtype: torch.dtype, *, grad: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((2 * group, 64), (2, 64), (2, 32))
    found = [torch.randn(batch, tokens, h, d, generator=generator).to(dtype) for h, d in shapes]
    return [x.cuda().requires_grad_(grad) for x in found]


def lists(batch: int, tokens: int) -> torch.Tensor:
    blocks = -(-tokens // 16)
    generator = torch.Generator().manual_seed(7)
    return torch.randint(-1, blocks, (batch, tokens, 2, 3), generator=generator, dtype=torch.int32).cuda()


def within(ours: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor) -> None:
    error, allowed = (ours.double() - exact).abs().max(), (eager.double() - exact).abs().max()
    ulp = torch.finfo(ours.dtype).eps * exact.abs().max()
    assert torch.isfinite(ours).all() and error <= 3 * allowed + 2 * ulp


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", ["window", "selected"])
def test_attention_and_its_gradients(path: str, dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, impl: str) -> tuple[torch.Tensor, ...]:
        if path == "window":
            out, _ = functional.window_attention(q, k, v, window_size=20, impl=impl)
        else:
            out, _ = functional.selected_attention(q, k, v, lists(*size[:2]), block_size=16, impl=impl)
        return out.detach(), *torch.autograd.grad(out.double().sin().sum(), (q, k, v))

    tensors = drawn(*size, dtype, grad=True)
    with nan_filled():
        assert torch.empty(3, device="cuda").isnan().all()
        ours, again = (call(*tensors, impl="compiled") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(ours, again, strict=True))
    eager = call(*tensors, impl="reference")
    exact = call(*(x.detach().double().requires_grad_() for x in tensors), impl="reference")
    for triple in zip(ours, eager, exact, strict=True):
        within(*triple)


def test_the_whole_runs_on_the_current_stream_and_in_a_graph() -> None:
    spec = NSASpec.seed(num_heads=8, num_kv_heads=2, head_dim=64, value_dim=32)
    q, k, v = drawn(1, 200, 4, torch.bfloat16)
    gates = torch.tensor([0.2, 0.5, 0.3], device="cuda")
    first = functional.nsa_attention(q, k, v, gates, spec, impl="compiled")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        on_side = functional.nsa_attention(q, k, v, gates, spec, impl="compiled")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = functional.nsa_attention(q, k, v, gates, spec, impl="compiled")
    graph.replay()
    assert torch.equal(first, on_side) and torch.equal(first, captured)
