"""Bad input to the public functions: each is refused with a message that says what was given and what is allowed.

No kernel runs here: what is refused is refused before one is looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nsa_codegen import functional
from nsa_codegen.errors import InputError, SpecError
from nsa_codegen.index_sets import causal
from nsa_codegen.program import Path, Program
from nsa_codegen.spec import NSASpec

SPEC = NSASpec.seed(num_heads=4, num_kv_heads=2, head_dim=8, value_dim=6, block_size=4, num_selected_blocks=3)
HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "value_dim": 6}
Q, K, V = torch.zeros(2, 9, 4, 8), torch.zeros(2, 9, 2, 8), torch.zeros(2, 9, 2, 6)
LISTS = torch.zeros(2, 9, 2, 3, dtype=torch.int32)
GATES = torch.ones(3)


def window(q: Any = Q, k: Any = K, v: Any = V, **options: Any) -> Any:
    return functional.window_attention(q, k, v, **{"window_size": 3, "impl": "compiled", **options})


def compressed(q: Any = Q, k: Any = K, v: Any = V, **options: Any) -> Any:
    options = {"kernel": 4, "stride": 4, "impl": "compiled", **options}
    return functional.compressed_attention(q, k, v, **options)


def selected(q: Any = Q, k: Any = K, v: Any = V, lists: Any = LISTS, **options: Any) -> Any:
    return functional.selected_attention(q, k, v, lists, **{"block_size": 4, "impl": "compiled", **options})


def select(q: Any = Q, k: Any = K, **options: Any) -> Any:
    options = {"method": "mean_key", "block_size": 4, "num_selected": 3, "impl": "compiled", **options}
    return functional.select_blocks(q, k, **options)


def compress(x: Any = K, **options: Any) -> Any:
    return functional.compress(x, **{"kernel": 4, "stride": 4, "impl": "compiled", **options})


def nsa(q: Any = Q, k: Any = K, v: Any = V, gates: Any = GATES, spec: Any = SPEC, **options: Any) -> Any:
    return functional.nsa_attention(q, k, v, gates, spec, **{"impl": "compiled", **options})


def whole(q: Any = Q, **changes: Any) -> Any:
    options = {name: changes.pop(name) for name in ("kv", "scale", "block_means") if name in changes}
    k_cmp, v_cmp = (functional.compress(x, kernel=4, stride=4, impl="reference") for x in (K, V))
    kv = {"compressed": (k_cmp, v_cmp), "selected": (K, V), "window": (K, V), **changes}
    return functional.attention(SPEC.program(), q, **{"kv": kv, "gates": GATES, **options}, impl="compiled")


def attend(q: Any = Q, k: Any = K, v: Any = V, **changes: Any) -> Any:
    program = Program(name="near", paths=(Path(name="w", visible=causal()),), **{**HEADS, **changes})
    return functional.attention(program, q, {"w": (k, v)}, impl="compiled")


def combine(outs: Any, gates: Any = GATES, **options: Any) -> Any:
    return functional.combine(outs, gates, **{"impl": "compiled", **options})


MLP = tuple(torch.zeros(*shape) for shape in ((4, 8), (16, 32), (8, 16), (16,), (8,)))
ATTENTIONS = {"window_attention": window, "compressed_attention": compressed, "selected_attention": selected}
META = torch.device("meta")

ATTENTION_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "rank of q": ({"q": Q[0]}, r"q has shape \[9, 4, 8\], rank 3; give rank 4, \[B T H Dk\]"),
    "rank of k": ({"k": K[..., None]}, r"k\w* has shape \[2, 9, 2, 8, 1\], rank 5; give rank 4"),
    "no tensor": ({"v": [1.0]}, r"v\w* is list; give a tensor"),
    "integers": ({"q": Q.int()}, r"q has dtype torch.int32; give a floating-point tensor"),
    "two dtypes": ({"k": K.half()}, r"k\w* has dtype torch.float16 and q torch.float32; convert one with .to\(\)"),
    "two devices": ({"v": V.to(META)}, r"v\w* is on meta and q on cpu; move one with .to\(\)"),
    "batch": ({"k": K[:1]}, r"k\w* has batch 1 and q 2; they must be equal"),
    "group": ({"q": Q[:, :, :3]}, r"q has 3 heads and k\w* 2; the query heads must be a multiple"),
    "key/value heads": ({"v": V[:, :, :1]}, r"key/value heads differ: \{'k\w*': 2, 'v\w*': 1\}; they must be equal"),
    "head dim": ({"k": K[..., :7]}, r"q has head dim 8 and k\w* 7; they must be equal"),
    "key length": ({"v": V[:, :8]}, r"k\w* has 9 keys and v\w* 8; they must be equal"),
    "scale word": ({"scale": "auto"}, r"scale = 'auto' is not allowed; give a finite number, or None"),
    "scale bool": ({"scale": True}, r"scale = True is not allowed"),
    "scale nan": ({"scale": float("nan")}, r"scale = nan is not allowed"),
    "scale past float32": ({"scale": 1e300}, r"scale = 1e\+300 is not allowed; .* numbers go up to 3\.4e"),
    "scale of many digits": ({"scale": 10**400}, r"scale = 10{400} is not allowed"),
    "start as a word": ({"q_start": "a"}, r"q_start = 'a' is not allowed; give an integer"),
    "start as a list": ({"q_start": [0]}, r"q_start = \[0\] is not allowed; give an integer"),
    "start between positions": ({"q_start": 0.5}, r"q_start = 0\.5 is not allowed; give an integer"),
    "sparse": ({"q": Q.to_sparse()}, r"q has layout torch.sparse_coo; give a dense tensor \[B T H Dk\]"),
    "of another library": ({"k": K.to_mkldnn()}, r"k\w* has layout torch._mkldnn; give a dense tensor"),
    "no heads": ({"q": Q[:, :, :0]}, r"q has shape \[2, 9, 0, 8\], with no H of \[B T H Dk\]; give at least 1"),
    "no key heads": ({"k": K[:, :, :0], "v": V[:, :, :0]}, r"k\w* has shape \[2, 9, 0, 8\], with no Hkv"),
    "no head dim": ({"q": Q[..., :0], "k": K[..., :0]}, r"q has shape \[2, 9, 4, 0\], with no Dk"),
    "no value dim": ({"v": V[..., :0]}, r"v\w* has shape \[2, 9, 2, 0\], with no Dv"),
    "negative start": (
        {"q_start": -1},
        r"(q_start = -1 is not allowed with 9 queries|9 queries from position -1 do not fit 9 keys)",
    ),
    "float64 has no kernels": (
        {"q": Q.double(), "k": K.double(), "v": V.double()},
        r"impl='compiled', but dtype torch.float64 has no kernels .*use impl='reference' or 'auto'",
    ),
    "meta has no kernels": (
        {"q": Q.to(META), "k": K.to(META), "v": V.to(META)},
        r"(impl='compiled', but tensors on meta have no kernels|block_indices is on cpu and q on meta)",
    ),
}


@pytest.mark.parametrize("case", ATTENTION_CASES)
@pytest.mark.parametrize("call", ATTENTIONS)
def test_attentions_refuse(call: str, case: str) -> None:
    arguments, message = ATTENTION_CASES[case]
    with pytest.raises(InputError, match=f"^{call}: .*{message}"):
        ATTENTIONS[call](**arguments)


def refusals() -> dict[str, tuple[Callable[..., Any], dict[str, Any], type[Exception], str]]:
    outs = [torch.zeros(2, 9, 4, 6) for _ in range(3)]
    return {
        "window past the keys": (window, {"q_start": 1}, InputError, "9 queries from position 1 do not fit 9 keys"),
        "more queries than keys": (window, {"k": K[:, :5], "v": V[:, :5]}, InputError, "9 queries from position -4"),
        "start past all positions": (
            compressed, {"q_start": 2**30 - 8}, InputError, r"q_start = 1073741816 is not allowed with 9 queries",
        ),
        "stride past all positions": (
            compressed, {"kernel": 2**31 - 1, "stride": 2**31 - 1}, SpecError,
            r"kernel = 2147483647 is not allowed: it must be an integer from 1 to 1073676288",
        ),
        "compressed tokens past all positions": (
            compressed, {"kernel": 2**27, "stride": 2**27}, InputError, "9 keys are given, one for every 134217728",
        ),
        "window past all positions": (window, {"window_size": 2**31}, SpecError, "window_size = 2147483648 is not"),
        "window of more than 64 bits": (window, {"window_size": 2**63}, SpecError, "from 1 to 1073676288"),
        "block past all positions": (selected, {"block_size": 2**31}, SpecError, "block_size = 2147483648 is not"),
        "more blocks than positions": (select, {"num_selected": 2**31}, SpecError, "n = 2147483648 is not allowed"),
        "means of 2**31 positions": (
            lambda **options: functional.block_means(K, **options), {"block_size": 2**31}, SpecError, "size = 2147",
        ),
        "kernel of phi past all positions": (compress, {"kernel": 2**63}, SpecError, "kernel = 92233"),
        "window of 0": (window, {"window_size": 0}, SpecError, r"window_size = 0 is not allowed: .* integer >= 1"),
        "impl word": (window, {"impl": "compile"}, SpecError, r"impl = 'compile' .*: did you mean 'compiled'\?"),
        "kernel": (compressed, {"kernel": 0}, SpecError, r"kernel = 0 is not allowed"),
        "stride": (compressed, {"stride": 1.5}, SpecError, r"stride = 1.5 is not allowed"),
        "lists of another length": (
            selected, {"lists": LISTS[:, :8]}, InputError,
            r"block_indices has shape \[2, 8, 2, 3\]; give \[2, 9, 2, 'n >= 1'\]",
        ),
        "lists of another head": (selected, {"lists": LISTS[:, :, :1]}, InputError, r"block_indices has shape"),
        "empty lists": (selected, {"lists": LISTS[..., :0]}, InputError, r"block_indices has shape \[2, 9, 2, 0\]"),
        "rank of lists": (selected, {"lists": LISTS[0]}, InputError, r"block_indices has shape \[9, 2, 3\]"),
        "lists of lists": (selected, {"lists": LISTS.tolist()}, InputError, r"block_indices is list; give a"),
        "sparse lists": (selected, {"lists": LISTS.to_sparse()}, InputError, "has layout torch.sparse_coo"),
        "start before all positions": (
            selected, {"causal": False, "q_start": -1}, InputError, "q_start = -1 is not allowed with 9 queries",
        ),
        "start past all positions, all tokens": (
            selected, {"causal": False, "q_start": 2**62}, InputError, f"q_start = {2**62} is not allowed with 9",
        ),
        "no spec": (nsa, {"spec": None}, InputError, "spec is NoneType; give an NSASpec"),
        "program as spec": (nsa, {"spec": SPEC.program()}, InputError, "spec is Program; give an NSASpec"),
        "spec as program": (
            functional.attention, {"program": SPEC, "q": Q, "kv": {}}, InputError, "program is NSASpec; give a Program",
        ),
        "listed gates": (nsa, {"gates": [1.0] * 3}, InputError, "gates is list; give a tensor"),
        "three of a pair": (whole, {"window": (K, V, V)}, InputError, r"kv\['window'\] is a tuple of 3; give two"),
        "no pair": (whole, {"window": None}, InputError, r"kv\['window'\] is NoneType; give two tensors"),
        "half a pair": (whole, {"window": (K, None)}, InputError, r"\(nsa.window\): v is NoneType; give a tensor"),
        "no kv": (whole, {"kv": None}, InputError, "kv is NoneType; give a dict of keys and values by path"),
        "listed means": (whole, {"block_means": [K]}, InputError, "block_means is list; give a dict of means by path"),
        "listed scale": (whole, {"scale": [1]}, InputError, r"scale = \[1\] is not allowed"),
        "no output": (combine, {"outs": [None, outs[0]]}, InputError, r"outs\[0\] is NoneType; give a tensor"),
        "outputs without dims": (combine, {"outs": [o[..., :0] for o in outs]}, InputError, r"with no Dv"),
        "no hidden units": (
            compress, {"method": "mlp", "weight": (MLP[0], MLP[1][:0], MLP[2][:, :0]), "bias": (MLP[3][:0], MLP[4])},
            InputError, r"w1 of method 'mlp' must be a tensor of shape \[1, 32\]; got a tensor of shape \[0, 32\]",
        ),
        "floating lists": (selected, {"lists": LISTS.float()}, InputError, r"block_indices has dtype torch.float32"),
        "lists elsewhere": (selected, {"lists": LISTS.to(META)}, InputError, r"block_indices is on meta and q on cpu"),
        "block size": (selected, {"block_size": 0}, SpecError, r"block_size = 0 is not allowed"),
        "selection method": (select, {"method": "mean"}, SpecError, r"method = 'mean' .*did you mean 'mean_key'"),
        "too few slots": (select, {"num_selected": 1, "num_local": 2}, SpecError, r"n = 1 is not allowed.*use n >= 2"),
        "no kernel": (select, {"method": "compressed"}, SpecError, r"kernel = None is not allowed"),
        "strides that do not divide": (
            select, {"method": "compressed", "kernel": 6, "stride": 4}, SpecError, r"kernel = 6 .* stride = 4",
        ),
        "head dim of selection": (select, {"k": K[..., :4]}, InputError, r"q has head dim 8 and k 4"),
        "selection past the keys": (select, {"q_start": 3}, InputError, r"9 queries from position 3 do not fit 9 keys"),
        "rank of x": (compress, {"x": K[0]}, InputError, r"x has shape \[9, 2, 8\], rank 3; give rank 4"),
        "mean with weight": (compress, {"weight": torch.ones(1)}, InputError, r"'mean' takes no weight"),
        "conv without weight": (
            compress, {"method": "conv"}, InputError, r"weight of method 'conv' must be .* \[4, 2, 8\]; got None",
        ),
        "mlp without weight": (compress, {"method": "mlp"}, InputError, r"'mlp' takes weight = \(position, w1, w2\)"),
        "phi": (compress, {"method": "max"}, SpecError, r"method = 'max' is not allowed"),
        "spec of other heads": (
            nsa, {"spec": SPEC.replace(num_heads=8)}, InputError, r"num_heads = 4 and the spec 8; use spec.replace",
        ),
        "spec of another value dim": (nsa, {"spec": SPEC.replace(value_dim=8)}, InputError, r"value_dim = 6 and"),
        "spec of another key head": (nsa, {"spec": SPEC.replace(num_kv_heads=4)}, InputError, r"num_kv_heads = 2"),
        "program of other heads": (
            attend, {"num_heads": 8}, InputError,
            r"attention\(near.w\): .* num_heads = 4 and the program 8; use replace\(program, num_heads=4\), or tensors",
        ),
        "program of other key heads": (attend, {"num_kv_heads": 1}, InputError, "num_kv_heads = 2 and the program 1"),
        "program of another head dim": (attend, {"head_dim": 16}, InputError, "head_dim = 8 and the program 16"),
        "program of another value dim": (attend, {"value_dim": 8}, InputError, "value_dim = 6 and the program 8"),
        "one of two": (nsa, {"k_cmp": K}, InputError, r"only one of k_cmp and v_cmp is given; give both or neither"),
        "one window": (nsa, {"v_win": V}, InputError, r"only one of k_win and v_win is given"),
        "weights of phi": (
            nsa, {"spec": SPEC.replace(compression="conv")}, InputError, r"pass k_cmp and v_cmp, made by compress\(\)",
        ),
        "output shapes": (
            combine, {"outs": [*outs[:2], outs[2][:, :8]]}, InputError, r"outputs differ: .*they must be alike",
        ),
        "outputs on two devices": (
            combine, {"outs": [*outs[:2], outs[2].to(META)]}, InputError, r"outputs differ: .*'meta'\)\]; they must be",
        ),
        "integer outputs": (combine, {"outs": [o.int() for o in outs]}, InputError, r"outs\[0\] has dtype torch.int32"),
        "no list of outputs": (combine, {"outs": outs[0]}, InputError, r"outs is Tensor; give a list of outputs"),
        "weight elsewhere": (
            compress, {"method": "conv", "weight": torch.ones(4, 2, 8, device=META)}, InputError,
            r"weight of method 'conv' is torch.float32, torch.strided on meta; give a dense .* on cpu, where x is",
        ),
        "integer weight": (
            compress, {"method": "conv", "weight": torch.ones(4, 2, 8).int()}, InputError, r"is torch.int32.*; give a",
        ),
        "complex bias": (
            compress, {"method": "conv", "weight": torch.ones(4, 2, 8), "bias": torch.ones(2, 8) * 1j}, InputError,
            r"bias of method 'conv' is torch.complex64",
        ),
        "integer layer": (
            compress, {"method": "mlp", "weight": (MLP[0], MLP[1].int(), MLP[2]), "bias": MLP[3:]}, InputError,
            r"w1 of method 'mlp' is torch.int32",
        ),
        "layer elsewhere": (
            compress, {"method": "mlp", "weight": MLP[:3], "bias": (MLP[3], MLP[4].to(META))}, InputError,
            r"b2 of method 'mlp' is torch.float32, torch.strided on meta",
        ),
        "too many outputs": (combine, {"outs": outs * 2}, InputError, r"6 outputs are given; 1 to 4 are combined"),
        "gates": (
            combine, {"outs": outs, "gates": torch.ones(2)}, InputError, r"shape \[2\]; give \[3\] or \[2, 9, 4, 3\]",
        ),
        "gates per token alone": (
            combine, {"outs": outs, "gates": torch.ones(2, 9, 3)}, InputError, r"gates have shape \[2, 9, 3\]",
        ),
        "integer gates": (
            combine, {"outs": outs, "gates": torch.ones(3).int()}, InputError, r"gates are torch.int32",
        ),
        "gates elsewhere": (combine, {"outs": outs, "gates": GATES.to(META)}, InputError, r"on meta; give .* on cpu"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refusals())
def test_functions_refuse(case: str) -> None:
    call, arguments, error, message = refusals()[case]
    with pytest.raises(error, match=message):
        call(**arguments)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("call", [*ATTENTIONS.values(), nsa, whole])
def test_nested_tensors_are_refused(call: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="q has layout nested; give a dense tensor"):
        call(q=torch.nested.nested_tensor([Q[0], Q[1]]))


def test_nsa_gates_are_checked_before_anything_is_computed() -> None:
    with pytest.raises(InputError, match=r"gates have shape \[2, 9, 4, 2\]; give \[3\] or \[2, 9, 4, 3\]"):
        nsa(gates=torch.ones(2, 9, 4, 2), impl="reference")


def test_no_outputs_to_combine() -> None:
    with pytest.raises(InputError, match=r"combine: .* outputs"):
        combine([])


def test_auto_falls_back_for_float64_and_says_so_once(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("nsa_codegen.checks._logged", set())
    tensors: list[Tensor] = [x.double() for x in (Q, K, V)]
    for _ in range(2):
        out, _ = window(*tensors, impl="auto")
        assert out.dtype == torch.float64
    assert [r.message for r in caplog.records] == [
        "window_attention runs the eager reference: "
        "dtype torch.float64 has no kernels (float32, bfloat16, float16 have)"
    ]
