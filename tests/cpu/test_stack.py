"""Lists and weights that a worker's stack would not hold: narrower tiles serve, or one exception says so."""

from __future__ import annotations

import pytest
import torch

from nsa_codegen import functional
from nsa_codegen.errors import ScheduleError


def test_long_lists_are_read_by_narrower_tiles_or_refused() -> None:
    q, k, v = (torch.randn(1, 64, 1, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    for n in (4096, 1 << 16):
        lists = torch.full((1, 64, 1, n), -1, dtype=torch.int32)
        lists[..., -1] = 0
        if n > 4096:
            with pytest.raises(ScheduleError, match="allowed on a worker's stack"):
                functional.selected_attention(q, k, v, lists, block_size=16, impl="compiled")
            continue
        found, wanted = (
            functional.selected_attention(q, k, v, some.contiguous(), block_size=16, impl=impl)[0]
            for some, impl in ((lists, "compiled"), (lists[..., -1:], "reference"))
        )
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_great_mlp_are_refused() -> None:
    dim, hidden, kernel = 512, 2048, 2
    x = torch.randn(1, 8, 1, dim, requires_grad=True)
    weight = tuple(
        (torch.randn(*s) / 50).requires_grad_() for s in ((kernel, dim), (hidden, kernel * dim), (dim, hidden))
    )
    bias = torch.zeros(hidden), torch.zeros(dim)
    options = {"kernel": kernel, "stride": 2, "method": "mlp", "weight": weight, "bias": bias}
    out = functional.compress(x, impl="compiled", **options)
    torch.testing.assert_close(out, functional.compress(x, impl="reference", **options), rtol=1e-4, atol=1e-4)
    with pytest.raises(ScheduleError, match="allowed on a worker's stack"):
        out.sum().backward()
