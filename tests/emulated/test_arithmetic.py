"""Integer, bit and floating-point instructions against Python integers, numpy and torch."""

import math

import numpy as np
import pytest
import torch

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
EDGES = [
    0,
    1,
    2,
    3,
    31,
    32,
    33,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0xFFFFFFFE,
    0x12345678,
    0xDEADBEEF,
    0x10000,
    0xFFFF,
    7,
]


def words(seed, count=64, edges=EDGES):
    rng = np.random.default_rng(seed)
    values = [*rng.permutation(edges), *rng.integers(0, 1 << 32, count - len(edges))]
    return [int(v) for v in values]


def as_tensor(values, bits=32):
    dtype = {16: np.uint16, 32: np.uint32, 64: np.uint64}[bits]
    view = {16: np.int16, 32: np.int32, 64: np.int64}[bits]
    return torch.from_numpy(np.array(values, dtype=dtype).view(view).copy())


def unsigned(tensor):
    bits = 8 * tensor.element_size()
    return [int(v) & ((1 << bits) - 1) for v in tensor.tolist()]


def signed(v, bits=32):
    return v - (1 << bits) if v >> (bits - 1) & 1 else v


def c_div(a, b):
    return int(abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "add.s32": lambda a, b: a + b,
    "sub.s32": lambda a, b: a - b,
    "mul.lo.s32": lambda a, b: a * b,
    "mul.hi.u32": lambda a, b: a * b >> 32,
    "mul.hi.s32": lambda a, b: signed(a) * signed(b) >> 32,
    "min.s32": lambda a, b: min(signed(a), signed(b)),
    "max.u32": max,
    "and.b32": lambda a, b: a & b,
    "xor.b32": lambda a, b: a ^ b,
    "shl.b32": lambda a, b: a << b if b < 32 else 0,
    "shr.u32": lambda a, b: a >> b if b < 32 else 0,
    "shr.s32": lambda a, b: signed(a) >> min(b, 31),
    "div.s32": lambda a, b: c_div(signed(a), signed(b)) if b else -1,
    "rem.s32": lambda a, b: signed(a) - signed(b) * c_div(signed(a), signed(b)) if b else signed(a),
    "div.u32": lambda a, b: a // b if b else M32,
}
WIDE = {
    "mul.wide.s32": lambda a, b: signed(a) * signed(b),
    "mul.wide.u32": lambda a, b: a * b,
}
TERNARY = {
    "mad.lo.s32": lambda a, b, c: a * b + c,
    "prmt.b32": lambda a, b, c: sum(
        ((b << 32 | a) >> 8 * (s & 7) & 255 if not s & 8 else 255 * ((b << 32 | a) >> (8 * (s & 7) + 7) & 1)) << 8 * k
        for k, s in enumerate(c >> 4 * k & 15 for k in range(4))
    ),
    "bfe.u32": lambda a, b, c: (a >> (b & 255) if (b & 255) < 32 else 0) & ((1 << min(c & 255, 32)) - 1),
    "shf.l.wrap.b32": lambda a, b, c: ((b << 32 | a) << (c & 31)) >> 32,
    "shf.r.clamp.b32": lambda a, b, c: (b << 32 | a) >> min(c, 32),
    "lop3.b32 {d}, {a}, {b}, {c}, 0xCA": lambda a, b, c: (a & b) | (~a & c),
}


@pytest.mark.parametrize("op", BINARY)
def test_binary_integers(map_lanes, op):
    a, b = words(1), words(2)
    if op.startswith("sh"):
        b = [v % 40 for v in b]
    found = map_lanes(f"{op} {{d}}, {{a}}, {{b}}", "b32", as_tensor(a), as_tensor(b))
    assert unsigned(found) == [BINARY[op](x, y) & M32 for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("op", WIDE)
def test_wide_products(map_lanes, op):
    a, b = words(3), words(4)
    found = map_lanes(f"{op} {{d}}, {{a}}, {{b}}", "b64", as_tensor(a), as_tensor(b))
    assert unsigned(found) == [WIDE[op](x, y) & M64 for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("op", TERNARY)
def test_ternary_integers(map_lanes, op):
    a, b, c = words(5), words(6), words(7)
    if op.startswith("bfe"):
        b, c = [v % 40 for v in b], [v % 40 for v in c]
    if op.startswith("shf"):
        c = [v % 40 for v in c]
    text = op if "{d}" in op else f"{op} {{d}}, {{a}}, {{b}}, {{c}}"
    found = map_lanes(text, "b32", as_tensor(a), as_tensor(b), as_tensor(c))
    assert unsigned(found) == [TERNARY[op](*v) & M32 for v in zip(a, b, c, strict=True)]


def test_bfi_and_bfe_signed(map_lanes):
    a, b = words(8), words(9)
    found = map_lanes("bfi.b32 {d}, {a}, {b}, 5, 9", "b32", as_tensor(a), as_tensor(b))
    mask = 0x1FF << 5
    assert unsigned(found) == [(y & ~mask) | (x << 5 & mask) for x, y in zip(a, b, strict=True)]
    found = map_lanes("bfe.s32 {d}, {a}, 3, 7", "b32", as_tensor(a))
    assert unsigned(found) == [signed(x >> 3 & 127, 7) & M32 for x in a]


def floats(seed, count=64):
    rng = np.random.default_rng(seed)
    special = [
        0.0,
        -0.0,
        math.inf,
        -math.inf,
        math.nan,
        1.0,
        -1.0,
        1e-40,
        -1e-40,
        3.4e38,
        65504.0,
        65520.0,
        6e-8,
        2.5,
        3.5,
        0.1,
    ]
    return torch.tensor(
        np.array(
            [*special, *(rng.standard_normal(count - 16) * 10.0 ** rng.integers(-6, 6, count - 16))], dtype=np.float32
        )
    )


def run_floats(map_lanes, text, *inputs):
    return map_lanes(text, "b32", *(x.view(torch.int32) for x in inputs)).view(torch.float32)


FLOAT = {
    "add.f32": lambda a, b: a + b,
    "mul.rn.f32": lambda a, b: a * b,
    "div.rn.f32": lambda a, b: a / b,
    "max.f32": np.fmax,
    "min.f32": np.fmin,
    "max.NaN.f32": np.maximum,
}


@pytest.mark.parametrize("op", FLOAT)
def test_floats(map_lanes, op):
    a, b = floats(1), floats(2)[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    with np.errstate(all="ignore"):
        expected = FLOAT[op](a.numpy(), b.numpy())
    np.testing.assert_array_equal(run_floats(map_lanes, f"{op} {{d}}, {{a}}, {{b}}", a, b).numpy(), expected)


def test_fma_rounds_once(map_lanes):
    a, b, c = floats(3)[16:], floats(4)[16:], floats(5)[16:]
    found = run_floats(map_lanes, "fma.rn.f32 {d}, {a}, {b}, {c}", a, b, -a * b)
    expected = (a.double() * b.double() - (a * b).double()).float()  # exact in double: what a rounded product leaves
    assert torch.equal(found, expected) and bool((found != 0).any())
    assert torch.equal(run_floats(map_lanes, "fma.rn.f32 {d}, {a}, {b}, {c}", a, torch.zeros_like(b), c), c)


@pytest.mark.parametrize(
    "op, function", [("ex2.approx", np.exp2), ("lg2.approx", np.log2), ("sqrt.rn", np.sqrt), ("rcp.rn", np.reciprocal)]
)
def test_functions_to_an_ulp(map_lanes, op, function):
    a = floats(6)[16:].abs().clamp(1e-3, 50)
    expected = torch.from_numpy(function(a.double().numpy()))
    found = run_floats(map_lanes, f"{op}.f32 {{d}}, {{a}}", a).double()
    assert float(((found - expected) / expected.abs().clamp_min(1e-3)).abs().max()) < 2.0**-22


def test_exp2_at_the_ends(map_lanes):
    a = torch.tensor([-math.inf, math.inf, math.nan, -200.0, 0.0, 128.0, -0.0, 1.0])
    found = run_floats(map_lanes, "ex2.approx.f32 {d}, {a}", a)
    np.testing.assert_array_equal(found.numpy(), np.array([0, np.inf, np.nan, 0, 1, np.inf, 1, 2], dtype=np.float32))


def test_flush_to_zero_and_saturation(map_lanes):
    a = torch.tensor([1e-40, -1e-40, 2.0, 0.25])
    one = torch.ones(4)
    assert run_floats(map_lanes, "mul.ftz.f32 {d}, {a}, {b}", a, one).tolist() == [0.0, -0.0, 2.0, 0.25]
    assert run_floats(map_lanes, "mul.f32 {d}, {a}, {b}", a, one).tolist() == a.tolist()
    assert run_floats(map_lanes, "add.sat.f32 {d}, {a}, {b}", a - 1, one).tolist() == pytest.approx([0, 0, 1, 0.25])


@pytest.mark.parametrize("name, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_packed_pairs(map_lanes, name, dtype):
    generator = torch.Generator().manual_seed(3)
    a, b, c = (torch.randn(128, generator=generator).to(dtype) for _ in range(3))
    pairs = [x.view(torch.int32) for x in (a, b, c)]
    cases = {"add": a + b, "mul": a * b, "max": torch.maximum(a, b)}
    for op, expected in cases.items():
        found = map_lanes(f"{op}.{name}x2 {{d}}, {{a}}, {{b}}", "b32", *pairs[:2]).view(dtype)
        assert torch.equal(found, expected), op
    found = map_lanes(f"fma.rn.{name}x2 {{d}}, {{a}}, {{b}}, {{c}}", "b32", *pairs).view(dtype)
    exact = a.double() * b.double() + c.double()
    assert float(((found.double() - exact) / exact.abs().clamp_min(1e-2)).abs().max()) <= torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("relation", ["eq", "ne", "lt", "le", "gt", "ge", "ltu", "geu", "num", "nan"])
def test_comparisons(map_lanes, relation):
    a, b = floats(1), floats(1).roll(1)
    b[:40] = a[:40]
    x, y = a.numpy(), b.numpy()
    nan = np.isnan(x) | np.isnan(y)
    base = {"eq": x == y, "ne": (x != y) & ~nan, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y,
            "ltu": (x < y) | nan, "geu": (x >= y) | nan, "num": ~nan, "nan": nan}  # fmt: skip
    text = f"setp.{relation}.f32 %p1, {{a}}, {{b}};\nselp.b32 {{d}}, 1, 0, %p1"
    found = map_lanes(text, "b32", a.view(torch.int32), b.view(torch.int32))
    assert found.bool().tolist() == base[relation].tolist()


def test_comparisons_combined(map_lanes):
    a = as_tensor(words(11))
    text = "setp.lt.s32 %p1, {a}, 0;\nsetp.gt.and.u32 %p2|%p3, {a}, 7, !%p1;\n"
    text += "selp.b32 {d}, 1, 0, %p2;\n@%p3 add.s32 {d}, {d}, 2"
    found = map_lanes(text, "b32", a)
    expected = [(1 if v > 7 else 2) if signed(v) >= 0 else 0 for v in unsigned(a)]
    assert found.tolist() == expected
