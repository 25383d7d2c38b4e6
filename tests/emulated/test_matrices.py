"""Matrix instructions, lane by lane, against the fragment layouts and shared-memory layouts of the PTX manual."""

import numpy as np
import pytest
import torch

STORE4 = "".join(f"st.global.f32 [%d30+{4 * k}], %f{k};\n" for k in range(4))


def test_ldmatrix(ptx):
    """Lane l gets row l/4, columns 2(l%4) and the next of each tile; transposed, the element mirrored."""
    for trans in ("", ".trans"):
        tiles = torch.arange(256, dtype=torch.int16)
        out = torch.zeros(32, 4, 2, dtype=torch.int16)
        ptx(
            f"""
            mad.wide.u32 %d2, %r0, 16, %d0;
            ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d2];
            mov.u32 %r10, buf;
            mad.lo.u32 %r11, %r0, 16, %r10;
            st.shared.v4.u32 [%r11], {{%r1, %r2, %r3, %r4}};
            bar.warp.sync 0xffffffff;
            ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r11];
            mad.wide.u32 %d3, %r0, 16, %d1;
            st.global.v4.u32 [%d3], {{%r5, %r6, %r7, %r8}};
            """,
            tiles, out, shared=".shared .align 16 .b8 buf[512];",
        )  # fmt: skip
        t = tiles.view(4, 8, 8)
        for lane in range(32):
            for k in range(4):
                row, column = lane // 4, 2 * (lane % 4)
                expected = [t[k, column + j, row] if trans else t[k, row, column + j] for j in range(2)]
                assert out[lane, k].tolist() == [int(v) for v in expected], (trans, lane, k)


def test_stmatrix_undoes_ldmatrix(ptx):
    for trans in ("", ".trans"):
        values, out = torch.randint(-(1 << 15), 1 << 15, (256,), dtype=torch.int16), torch.zeros(256, dtype=torch.int16)
        ptx(
            f"""
            mad.wide.u32 %d2, %r0, 16, %d0;
            ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d2];
            mov.u32 %r10, buf;
            mad.lo.u32 %r11, %r0, 16, %r10;
            st.shared.v4.u32 [%r11], {{%r1, %r2, %r3, %r4}};
            bar.warp.sync 0xffffffff;
            ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r11];
            stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r11+512], {{%r5, %r6, %r7, %r8}};
            bar.warp.sync 0xffffffff;
            ld.shared.v4.u32 {{%r1, %r2, %r3, %r4}}, [%r11+512];
            mad.wide.u32 %d3, %r0, 16, %d1;
            st.global.v4.u32 [%d3], {{%r1, %r2, %r3, %r4}};
            """,
            values, out, shared=".shared .align 16 .b8 buf[1024];",
        )  # fmt: skip
        assert torch.equal(values, out)


def fragments(matrix, places, per):
    """[lanes, registers * per]: element `places(lane, register, part)` of a matrix for each lane."""
    registers = len(places(0))
    return torch.stack([torch.stack([matrix[r, c] for r, c in places(lane)]) for lane in range(32)]).view(
        32, registers // per, per
    )


def a_places(k, per):
    def places(lane):
        g, t = lane // 4, lane % 4
        return [
            (g + 8 * (reg & 1), (reg >> 1) * 4 * per + t * per + j) for reg in range(k // (2 * per)) for j in range(per)
        ]

    return places


def b_places(k, per):
    def places(lane):
        g, t = lane // 4, lane % 4
        return [(reg * 4 * per + t * per + j, g) for reg in range(k // (4 * per)) for j in range(per)]

    return places


def c_places(lane):
    g, t = lane // 4, lane % 4
    return [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)]


MMA = [("f16", torch.float16, 16), ("f16", torch.float16, 8), ("bf16", torch.bfloat16, 16), ("bf16", torch.bfloat16, 8),
       ("tf32", torch.float32, 8), ("tf32", torch.float32, 4), ("e4m3", torch.float8_e4m3fn, 32),
       ("e5m2", torch.float8_e5m2, 32)]  # fmt: skip


@pytest.mark.parametrize("kind, dtype, k", MMA, ids=[f"{m[0]}-k{m[2]}" for m in MMA])
def test_mma(ptx, kind, dtype, k):
    torch.manual_seed(k)
    a, b, c = torch.randn(16, k), torch.randn(k, 8), torch.randn(16, 8)
    if kind == "tf32":
        a, b = (x.mul(2.0**8).round().div(2.0**8) for x in (a, b))
    a, b = a.to(dtype), b.to(dtype)
    per = 4 // dtype.itemsize
    size = dtype.itemsize
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[size]
    fa = fragments(a.view(words), a_places(k, per), per).contiguous()
    fb = fragments(b.view(words), b_places(k, per), per).contiguous()
    fc = fragments(c, c_places, 1).contiguous()
    na, nb = fa.shape[1], fb.shape[1]
    out = torch.zeros(32, 4)
    ra, rb = ", ".join(f"%r{10 + n}" for n in range(na)), ", ".join(f"%r{20 + n}" for n in range(nb))
    loads = f"mad.wide.u32 %d31, %r0, {4 * na}, %d0;\nmad.wide.u32 %d32, %r0, {4 * nb}, %d1;\n"
    loads += "mad.wide.u32 %d33, %r0, 16, %d2;\n"
    loads += "".join(f"ld.global.u32 %r{10 + n}, [%d31+{4 * n}];\n" for n in range(na))
    loads += "".join(f"ld.global.u32 %r{20 + n}, [%d32+{4 * n}];\n" for n in range(nb))
    loads += "".join(f"ld.global.f32 %f{8 + n}, [%d33+{4 * n}];\n" for n in range(4))
    ra, rb = (f"{{{ra}}}" if na > 1 else ra), (f"{{{rb}}}" if nb > 1 else rb)
    ptx(
        f"{loads}mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32 "
        f"{{%f0, %f1, %f2, %f3}}, {ra}, {rb}, {{%f8, %f9, %f10, %f11}};\n"
        f"mad.wide.u32 %d30, %r0, 16, %d3;\n{STORE4}",
        fa, fb, fc, out,
    )  # fmt: skip
    expected = (c.double() + a.double() @ b.double()).float()
    assert torch.equal(out, fragments(expected, c_places, 1).view(32, 4))


def test_mma_with_half_accumulators(ptx):
    torch.manual_seed(1)
    a, b = torch.randn(16, 16).half(), torch.randn(16, 8).half()
    fa = fragments(a.view(torch.int16), a_places(16, 2), 2).contiguous()
    fb = fragments(b.view(torch.int16), b_places(16, 2), 2).contiguous()
    out = torch.zeros(32, 4, dtype=torch.float16)
    ptx(
        """
        mad.wide.u32 %d31, %r0, 16, %d0;
        ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d31];
        mad.wide.u32 %d31, %r0, 8, %d1;
        ld.global.v2.u32 {%r5, %r6}, [%d31];
        mov.u32 %r7, 0x3C003C00;
        mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r8, %r9}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%r7, %r7};
        mad.wide.u32 %d31, %r0, 8, %d2;
        st.global.v2.u32 [%d31], {%r8, %r9};
        """,
        fa, fb, out,
    )  # fmt: skip
    assert torch.equal(out, fragments((1 + a.double() @ b.double()).half(), c_places, 1).view(32, 4))


def swizzled_rows(matrix, span):
    """A matrix of 16-bit elements whose rows are `span` bytes, chunks of 16 bytes exchanged as the swizzle does."""
    rows = matrix.contiguous().view(matrix.shape[0], span // 16, 8)
    repeat = 128 // span  # rows that share one pattern
    out = torch.empty_like(rows)
    for r in range(rows.shape[0]):
        for chunk in range(span // 16):
            out[r, chunk ^ (r // repeat) % (span // 16)] = rows[r, chunk]
    return out.view(-1)


def core_matrices(matrix):
    """Bytes of a matrix [rows, k] as core matrices of 8 rows x 16 bytes, those of one k chunk one after the other."""
    rows, k = matrix.shape
    return matrix.view(rows // 8, 8, k // 8, 8).permute(2, 0, 1, 3).contiguous().view(-1)


def descriptor(address, leading, stride, mode):
    return address >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | mode << 62


def run_wgmma(ptx, image_a, image_b, n, steps, transposed_a=0, transposed_b=0, kind="f16", registers_a=None):
    """D = the sum over steps of A B; the images lie in shared memory at 0 and 32768, steps are pairs of descriptors."""
    out = torch.zeros(128, n // 2)
    d = ", ".join(f"%f{k}" for k in range(n // 2))
    copy = "mov.u32 %r1, dyn;\n"
    for source, base, image in (("%d0", 0, image_a), ("%d1", 32768, image_b)):
        for part in range(0, image.numel() * 2, 128 * 16):
            copy += f"mad.wide.u32 %d20, %r0, 16, {source};\nld.global.v4.u32 {{%r2, %r3, %r4, %r5}}, [%d20+{part}];\n"
            copy += f"mad.lo.u32 %r6, %r0, 16, %r1;\nst.shared.v4.u32 [%r6+{base + part}], {{%r2, %r3, %r4, %r5}};\n"
    mmas, opcode = "", f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind}"
    for index, (a, b) in enumerate(steps):
        mmas += f"mov.b64 %d22, {b};\nsetp.ne.b32 %p1, {int(index > 0)}, 0;\n"
        if registers_a is None:
            mmas += f"mov.b64 %d21, {a};\n{opcode} {{{d}}}, %d21, %d22, %p1, 1, 1, {transposed_a}, {transposed_b};\n"
        else:
            ra = ", ".join(f"%r{20 + 4 * index + k}" for k in range(4))
            mmas += f"{opcode} {{{d}}}, {{{ra}}}, %d22, %p1, 1, 1, {transposed_b};\n"
    loads = ""
    arguments = [image_a, image_b, out]
    if registers_a is not None:
        arguments.append(registers_a)
        loads = f"mad.wide.u32 %d23, %r0, {4 * registers_a.shape[1]}, %d3;\n"
        loads += "".join(f"ld.global.u32 %r{20 + k}, [%d23+{4 * k}];\n" for k in range(registers_a.shape[1]))
    store = f"mad.wide.u32 %d24, %r0, {2 * n}, %d2;\n" + "".join(
        f"st.global.f32 [%d24+{4 * k}], %f{k};\n" for k in range(n // 2)
    )
    ptx(
        f"{copy}{loads}fence.proxy.async;\nbar.sync 0;\nwgmma.fence.sync.aligned;\n{mmas}"
        f"wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n{store}",
        *arguments, threads=128, shared_bytes=65536,
    )  # fmt: skip
    return out


def d_fragments(matrix):
    n = matrix.shape[1]
    out = torch.zeros(128, n // 2)
    for t in range(128):
        row, column = 16 * (t // 32) + t % 32 // 4, 2 * (t % 4)
        for k in range(n // 2):
            out[t, k] = matrix[row + 8 * (k >> 1 & 1), 8 * (k >> 2) + column + (k & 1)]
    return out


def operands(n, k, dtype=torch.float16):
    torch.manual_seed(n + k)
    a, b = torch.randn(64, k).to(dtype), torch.randn(n, k).to(dtype)
    return a, b, (a.double() @ b.double().T)


def close(found, exact):
    np.testing.assert_allclose(
        found.double().numpy(), d_fragments(exact.float()).double().numpy(), rtol=3e-7, atol=3e-6
    )


@pytest.mark.parametrize("span, mode", [(128, 1), (64, 2), (32, 3)])
@pytest.mark.parametrize("n, kind", [(8, "f16"), (64, "bf16"), (128, "f16")])
def test_wgmma_with_k_contiguous_and_swizzled(ptx, span, mode, n, kind):
    k = span // 2
    a, b, exact = operands(n, k, torch.float16 if kind == "f16" else torch.bfloat16)
    pad = torch.zeros(1024 * 8, dtype=a.dtype)
    images = [torch.cat([swizzled_rows(x, span), pad])[: max(1024, -(-x.numel() // 1024) * 1024)] for x in (a, b)]
    steps = [
        (descriptor(32 * s, 16, 8 * span, mode), descriptor(32768 + 32 * s, 16, 8 * span, mode)) for s in range(k // 16)
    ]
    close(run_wgmma(ptx, *images, n, steps, kind=kind), exact)


def test_wgmma_without_swizzle(ptx):
    a, b, exact = operands(64, 32)
    steps = [(descriptor(2 * s * 1024, 1024, 128, 0), descriptor(32768 + 2 * s * 1024, 1024, 128, 0)) for s in range(2)]
    close(run_wgmma(ptx, core_matrices(a), core_matrices(b), 64, steps), exact)


@pytest.mark.parametrize("n", [64, 128])
def test_wgmma_with_n_contiguous(ptx, n):
    """B as [k, n] with 128-byte rows of 64 columns; further columns in further panels."""
    a, b, exact = operands(n, 64)
    panels = [swizzled_rows(b.T[:, c : c + 64], 128) for c in range(0, n, 64)]
    steps = [(descriptor(32 * s, 16, 1024, 1), descriptor(32768 + s * 2048, 64 * 128, 1024, 1)) for s in range(4)]
    close(run_wgmma(ptx, swizzled_rows(a, 128), torch.cat(panels), n, steps, transposed_b=1), exact)


def test_wgmma_with_m_contiguous(ptx):
    a, b, exact = operands(64, 64)
    steps = [(descriptor(s * 2048, 0, 1024, 1), descriptor(32768 + 32 * s, 16, 1024, 1)) for s in range(4)]
    close(run_wgmma(ptx, swizzled_rows(a.T, 128), swizzled_rows(b, 128), 64, steps, transposed_a=1), exact)


def test_wgmma_with_a_in_registers(ptx):
    a, b, exact = operands(64, 32)
    registers = torch.zeros(128, 8, 2, dtype=torch.int16)
    for warp in range(4):
        for s in range(2):
            block = a[16 * warp : 16 * warp + 16, 16 * s : 16 * s + 16].contiguous().view(torch.int16)
            registers[32 * warp : 32 * warp + 32, 4 * s : 4 * s + 4] = fragments(block, a_places(16, 2), 2)
    steps = [(0, descriptor(32768 + 32 * s, 16, 512, 2)) for s in range(2)]
    images = torch.zeros(1024, dtype=torch.float16), swizzled_rows(b, 64)
    close(run_wgmma(ptx, *images, 64, steps, registers_a=registers.view(torch.int32).view(128, 8).contiguous()), exact)
