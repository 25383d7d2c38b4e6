"""cvt between number formats, over all bit patterns of the narrow ones and over hard cases of the wide ones."""

import math

import numpy as np
import pytest
import torch

SPECIAL = [0.0, -0.0, 1.0, math.inf, -math.inf, 65504.0, 65519.9, 65520.0, 6.1e-5, 6e-8, 2.98e-8, 2.99e-8, 3.3895e38,
           -3.4e38, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 448.0, 464.0, 480.0, 57344.0, 61440.0,
           1e-40]  # fmt: skip


def values(count=512):
    rng = np.random.default_rng(0)
    random = rng.standard_normal(count - len(SPECIAL)) * 2.0 ** rng.integers(-30, 30, count - len(SPECIAL))
    return torch.tensor(np.array([*SPECIAL, *random], dtype=np.float32))


def as_words(x):
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@pytest.mark.parametrize("name, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_float_to_narrow_rounds_to_even(map_lanes, name, dtype):
    x = values()
    found = map_lanes(f"cvt.rn.{name}.f32 {{d}}, {{a}}", "b16", as_words(x)).view(dtype)
    assert torch.equal(as_words(found), as_words(x.to(dtype)))


@pytest.mark.parametrize("name, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_float_to_narrow_towards_zero(map_lanes, name, dtype):
    x = values()
    found = map_lanes(f"cvt.rz.{name}.f32 {{d}}, {{a}}", "b16", as_words(x)).view(dtype).double()
    finite = x.isfinite() & (x.abs() <= torch.finfo(dtype).max)
    assert bool((found[finite].abs() <= x[finite].double().abs()).all())
    up = torch.nextafter(found[finite].to(dtype), torch.where(x[finite] < 0, -torch.inf, torch.inf).to(dtype)).double()
    assert bool((up.abs() > x[finite].double().abs()).all())


@pytest.mark.parametrize("name, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_every_narrow_pattern_widens(map_lanes, name, dtype):
    for start in range(0, 1 << 16, 1 << 14):
        patterns = torch.arange(start, start + 1024 * 16, 16, dtype=torch.int32).to(torch.int16)
        found = map_lanes(f"cvt.f32.{name} {{d}}, {{a}}", "b32", patterns).view(torch.float32)
        expected = patterns.view(dtype).float()
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_pairs_put_the_first_operand_high(map_lanes):
    a, b = values(), values().roll(3)
    for name, dtype in (("f16x2", torch.float16), ("bf16x2", torch.bfloat16)):
        found = (
            map_lanes(f"cvt.rn.{name}.f32 {{d}}, {{a}}, {{b}}", "b32", as_words(a), as_words(b)).view(dtype).view(-1, 2)
        )
        assert torch.equal(as_words(found[:, 0]), as_words(b.to(dtype))) and torch.equal(
            as_words(found[:, 1]), as_words(a.to(dtype))
        )
    found = map_lanes("cvt.rn.relu.f16x2.f32 {d}, {a}, {b}", "b32", as_words(a), as_words(b)).view(torch.float16)
    assert bool((found >= 0).all())


@pytest.mark.parametrize(
    "name, dtype, largest", [("e4m3x2", torch.float8_e4m3fn, 448.0), ("e5m2x2", torch.float8_e5m2, 57344.0)]
)
def test_float8(map_lanes, name, dtype, largest):
    x = values()
    found = map_lanes(f"cvt.rn.satfinite.{name}.f32 {{d}}, {{a}}, {{b}}", "b16", as_words(x), as_words(x)).view(dtype)[
        ::2
    ]
    expected = x.clamp(-largest, largest).to(dtype)
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    packed = torch.arange(256, dtype=torch.uint8).view(torch.int16)
    halves = map_lanes(f"cvt.rn.f16x2.{name} {{d}}, {{a}}", "b32", packed).view(torch.float16)
    expected = torch.arange(256, dtype=torch.uint8).view(dtype).half()
    assert torch.equal(halves.isnan(), expected.isnan())
    assert torch.equal(halves.nan_to_num(3.0, 5.0, -5.0), expected.nan_to_num(3.0, 5.0, -5.0))


ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@pytest.mark.parametrize("mode", ROUND)
def test_float_to_integer(map_lanes, mode):
    x = values().clamp(-1e6, 1e6)
    x[:6] = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997])
    rounded = ROUND[mode](x.double().numpy())
    found = map_lanes(f"cvt.{mode}.s32.f32 {{d}}, {{a}}", "b32", as_words(x))
    assert found.tolist() == rounded.astype(np.int64).tolist()
    found = map_lanes(f"cvt.{mode}.f32.f32 {{d}}, {{a}}", "b32", as_words(x)).view(torch.float32)
    np.testing.assert_array_equal(found.numpy(), rounded.astype(np.float32))


def test_float_to_integer_clamps(map_lanes):
    x = torch.tensor([3e9, -3e9, math.inf, -math.inf, math.nan])
    found = map_lanes("cvt.rzi.s32.f32 {d}, {a}", "b32", as_words(x)).tolist()
    assert found == [2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 0]
    found = map_lanes("cvt.rzi.u32.f32 {d}, {a}", "b32", as_words(x)).tolist()
    assert [v & 0xFFFFFFFF for v in found] == [3000000000, 0, 2**32 - 1, 0, 0]


def test_integers(map_lanes):
    x = torch.tensor([0, 1, -1, 127, 128, 255, -128, 2**31 - 1, -(2**31), 0x1234ABCD], dtype=torch.int64).to(
        torch.int32
    )
    assert map_lanes("cvt.s64.s32 {d}, {a}", "b64", x).tolist() == x.tolist()
    assert map_lanes("cvt.u64.u32 {d}, {a}", "b64", x).tolist() == [v & 0xFFFFFFFF for v in x.tolist()]
    assert map_lanes("cvt.s32.s8 {d}, {a}", "b32", x).tolist() == x.to(torch.int8).tolist()
    assert map_lanes("cvt.u32.u8 {d}, {a}", "b32", x).tolist() == x.to(torch.uint8).tolist()
    assert map_lanes("cvt.u16.u32 {d}, {a}", "b16", x).tolist() == x.to(torch.int16).tolist()
    found = map_lanes("cvt.rn.f32.s32 {d}, {a}", "b32", x).view(torch.float32)
    assert torch.equal(found, x.float())


def test_tf32_rounds_half_away(map_lanes):
    x = values().clamp(-1e30, 1e30)
    found = map_lanes("cvt.rna.tf32.f32 {d}, {a}", "b32", as_words(x)).view(torch.float32)
    assert bool((as_words(found) & 0x1FFF == 0).all())
    normal = x.abs() > 1e-30
    assert float(((found - x) / x)[normal].abs().max()) <= 2.0**-11
    tie = torch.tensor([1 + 2.0**-11, -(1 + 2.0**-11)])
    assert map_lanes("cvt.rna.tf32.f32 {d}, {a}", "b32", as_words(tie)).view(torch.float32).tolist() == [
        1 + 2.0**-10,
        -(1 + 2.0**-10),
    ]


def test_a_64_bit_register_is_read_in_its_low_bits(map_lanes):
    """nvcc narrows a division by 3 to 8 bits, in 64-bit registers."""
    x = torch.tensor([(n * 0x9E3779B97F4A7C15 + 0x80) % 2**64 - 2**63 for n in range(32)], dtype=torch.int64)
    for source, dtype in (("8", torch.int8), ("16", torch.int16), ("32", torch.int32)):
        expected = x.to(dtype).long().tolist()
        assert map_lanes(f"cvt.s64.s{source} {{d}}, {{a}}", "b64", x).tolist() == expected
        assert map_lanes(f"cvt.s32.s{source} {{d}}, {{a}}", "b32", x).tolist() == expected
        unsigned = [v % 2 ** int(source) for v in expected]
        assert map_lanes(f"cvt.u64.u{source} {{d}}, {{a}}", "b64", x).tolist() == unsigned
    assert map_lanes("cvt.s8.s64 {d}, {a}", "b32", x).tolist() == x.to(torch.int8).tolist()
    assert map_lanes("cvt.u16.u64 {d}, {a}", "b16", x).tolist() == x.to(torch.int16).tolist()
