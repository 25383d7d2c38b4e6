"""What judges the kernels sees what kernels get wrong: lost rows of gradients, and lists without a forced block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import draw
from judges import assert_selected, compare_gradients
from torch import Tensor

from nsa_codegen import reference
from nsa_codegen.index_sets import window

TOKENS, BLOCK = 130, 16


def attention(path: str, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    if path == "window":
        return reference.stream_attention(x["q"], x["k"], x["v"], window(100))
    generator = torch.Generator().manual_seed(5)
    lists = torch.randint(-1, -(-TOKENS // BLOCK), (1, TOKENS, 2, 4), generator=generator)
    lists[..., 0] = (torch.arange(TOKENS) // BLOCK)[:, None]
    return reference.gather_attention(x["q"], x["k"], x["v"], lists, block_size=BLOCK)


def with_gradient(x: Tensor, change: Callable[[Tensor], None]) -> Tensor:
    """Return x, whose gradient will be what `change` makes of a copy of it."""

    def changed(grad: Tensor) -> Tensor:
        copy = grad.clone()
        change(copy)
        return copy

    y = x.view_as(x)
    y.register_hook(changed)
    return y


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("path", ["window", "gather"])
def test_a_lost_row_of_a_gradient_is_seen(path: str, dtype: torch.dtype) -> None:
    """The last key is seen by the last query alone, which sees a hundred: its gradients are small, and no less due."""
    values = {
        n: draw(1, TOKENS, h, d, seed=h + d, dtype=dtype) for n, h, d in (("q", 4, 32), ("k", 2, 32), ("v", 2, 48))
    }

    def run(name: str, change: Callable[[Tensor], None]) -> Callable[..., tuple[Tensor, Tensor]]:
        def either(impl: str, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return attention(path, {**x, name: with_gradient(x[name], change)} if impl == "compiled" else x)

        return either

    compare_gradients(run("q", lambda grad: None), values, "unharmed")
    for name in "qkv":
        with pytest.raises(AssertionError, match=f"gradient of {name}: error"):
            compare_gradients(run(name, lambda grad: grad[:, -1].zero_()), values, "harmed")
        with pytest.raises(AssertionError, match=f"gradient of {name}: error"):
            compare_gradients(run(name, lambda grad: grad[0, 77, 0].mul_(1.2)), values, "harmed")


@pytest.mark.parametrize(
    "change",
    [{"num_initial": 0}, {"num_local": 1}, {"num_initial": 0, "num_local": 1}, {"num_initial": 2}, {"num_selected": 3}],
    ids=str,
)
@pytest.mark.parametrize("method", ["mean_key", "compressed"])
def test_a_list_without_a_forced_block_is_seen(method: str, change: dict[str, int]) -> None:
    """Also where a block of a better score is in its place."""
    q, k = draw(2, TOKENS, 4, 32, seed=0), draw(2, TOKENS, 2, 32, seed=1)
    options: dict[str, Any] = {
        "method": method,
        "block_size": BLOCK,
        "num_selected": 4,
        "num_initial": 1,
        "num_local": 2,
    }
    if method == "compressed":
        k, options = reference.compress(k, kernel=8, stride=4), {**options, "kernel": 8, "stride": 4}
    right, wrong = (reference.select_blocks(q, k, **o) for o in (options, {**options, **change}))
    assert_selected(right, q, k, BLOCK + 1, **options)
    with pytest.raises(AssertionError):
        assert_selected(wrong, q, k, BLOCK + 1, **options)
