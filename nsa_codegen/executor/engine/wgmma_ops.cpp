// wgmma: the matrix instruction of four warps. Each warp computes its 16 rows when it gets there; the registers and the
// shared memory that the instruction uses stay in flight until the group has been waited for.
#include "lanes.h"
#include "races.h"

u32 swizzled(u32 offset, int swizzle);

// The linear address (before the swizzle) of element (row, k) of a matrix that a descriptor names; `span` is the
// swizzle in bytes (0: none), `element` the bytes of an element. Rows run over M or N.
u32 descriptor_offset(u64 descriptor, u32 row, u32 k, bool mn_major, u32 element) {
  const u32 start = u32(descriptor & 0x3fff) << 4, leading = u32(descriptor >> 16 & 0x3fff) << 4,
            stride = u32(descriptor >> 32 & 0x3fff) << 4;
  const u32 mode = u32(descriptor >> 62),
            span = mode == 1   ? 128
                   : mode == 2 ? 64
                   : mode == 3 ? 32
                               : 16,
            per = 16 / element;
  if (!mn_major) {
    u32 unit = k / per;
    u32 at = start + row / 8 * stride + row % 8 * span + k % per * element;
    return at + unit * (mode == 0 ? leading : 16);
  }
  u32 unit = row / per, units = span / 16;
  u32 at = start + row % per * element + k % 8 * span;
  if (mode == 0) return at + unit * stride + k / 8 * leading;
  return at + unit % units * 16 + unit / units * leading + k / 8 * stride;
}

namespace {
constexpr int spans[] = {0, 128, 64, 32};
enum Kind { K_F16, K_BF16, K_TF32, K_E4M3, K_E5M2, K_S8, K_U8 };
constexpr u32 kind_bytes[] = {2, 2, 4, 1, 1, 1, 1};
inline double from_word(u32 v, int kind) {
  switch (kind) {
    case K_F16: return half_to(u16(v));
    case K_BF16: return bf16_to(u16(v));
    case K_TF32: return tf32_read(bits<float>(v));
    case K_E4M3: return e4m3_to(u8(v));
    case K_E5M2: return e5m2_to(u8(v));
    case K_S8: return i8(v);
    default: return u8(v);
  }
}

// Reads `rows` x `depth` elements behind a descriptor into out[row * depth + k], checked in pieces of 16 bytes.
bool gather(Warp& w, const Ins& i, u64 descriptor, u32 first_row, u32 rows, u32 depth, bool mn_major, int kind,
            double* out, std::vector<u32>& pieces) {
  Block& b = *w.block;
  const u32 element = kind_bytes[kind], per = 16 / element;
  const int span = spans[descriptor >> 62];
  const u32 outer = mn_major ? depth : rows, inner = mn_major ? rows : depth;
  for (u32 o = 0; o < outer; o++)
    for (u32 n = 0; n < inner; n += per) {
      u32 row = first_row + (mn_major ? n : o), k = mn_major ? o : n;
      u32 at = swizzled(descriptor_offset(descriptor, row, k, mn_major, element), span);
      if (!shared_check(w, i, 0, at, 16, 16)) return false;
      u8 flying = 0;
      for (u32 q = 0; q < 16; q++) {
        flying |= b.in_flight[at + q];
        b.read_in_flight[at + q]++;
      }
      pieces.push_back(at);
      if (flying) report(w, i, 0, F_READ_IN_FLIGHT, at, "wgmma reads shared memory into which a copy is on its way");
      if (b.races) b.races->read(w, i, 0, at, 16, true);
      for (u32 q = 0; q < per; q++) {
        u32 v = 0;
        std::memcpy(&v, &b.shared[at + q * element], element);
        out[mn_major ? (n + q) * depth + o : o * depth + n + q] = from_word(v, kind);
      }
    }
  return true;
}

// imm0: n | k << 16 | kind of a << 24 | kind of b << 32 | accumulators << 40 (0 f32, 1 f16, 2 s32);
// imm1: 1 A in registers, 2 negate A, 4 negate B, 8 A is M-major, 16 B is N-major; imm2: 0 scale-d is a predicate,
// 1 it is true, 2 it is false. Operands: d, a (4 registers or descriptor), descriptor of b, [predicate].
void mma_async(Warp& w, const Ins& i, u32) {
  const u32 n = u32(i.imm[0] & 0xffff), depth = u32(i.imm[0] >> 16 & 255);
  const int ka = int(i.imm[0] >> 24 & 255), kb = int(i.imm[0] >> 32 & 255), acc = int(i.imm[0] >> 40 & 255);
  const bool registers = i.imm[1] & 1;
  const u32 nd = acc == 1 ? n / 4 : n / 2;
  const u32 rank = u32(w.index) % 4;
  static thread_local double a[16 * 64], bm[256 * 64], bt[64 * 256];
  PendingMma pending{w.mma_committed, i.line, {}, {}, {}};
  const i32* as = i.ops + nd;
  for (u32 k = 0; k < nd + (registers ? 4 : 0); k++)
    if (w.written[size_t(i.ops[k])] > w.fence_tick) {
      report(w, i, 0, F_WGMMA, u64(i.ops[k]), "a register of wgmma was written after the last wgmma.fence");
      break;
    }
  if (registers) {
    const u32 element = kind_bytes[ka], per = 4 / element;
    for (u32 r = 0; r < 4; r++) {
      const u32* s = w.row(as[r]);
      LANES
        for (u32 p = 0; p < per; p++)
          a[((l >> 2) + 8 * (r & 1)) * depth + (r >> 1) * 4 * per + u32(l & 3) * per + p] =
              from_word(s[l] >> 8 * element * p, ka);
      pending.sources.push_back(as[r]);
    }
  } else if (!gather(w, i, w.row64(as[0])[0], 16 * rank, 16, depth, i.imm[1] & 8, ka, a, pending.pieces)) {
    return;
  }
  const i32* rest = as + (registers ? 4 : 1);
  if (!gather(w, i, w.row64(rest[0])[0], 0, n, depth, i.imm[1] & 16, kb, bm, pending.pieces)) return;
  for (u32 k = 0; k < depth; k++)
    for (u32 c = 0; c < n; c++) bt[k * n + c] = bm[c * depth + k];
  const bool keep = i.imm[2] == 1 || (i.imm[2] == 0 && w.row(rest[1])[0] & 1);
  const double sign = (i.imm[1] & 2 ? -1.0 : 1.0) * (i.imm[1] & 4 ? -1.0 : 1.0);
  for (u32 row = 0; row < 16; row++) {
    double sum[256] = {};
    for (u32 k = 0; k < depth; k++) {
      const double x = a[row * depth + k] * sign;
      const double* y = bt + k * n;
      for (u32 c = 0; c < n; c++) sum[c] += x * y[c];
    }
    for (u32 c = 0; c < n; c++) {
      const u32 lane = (row & 7) * 4 + (c & 7) / 2, half = row >> 3;
      if (acc == 1) {
        u32& d = w.row(i.ops[c / 8 * 2 + half])[lane];
        const u32 shift = 16 * (c & 1);
        double v = sum[c] + (keep ? half_to(u16(d >> shift)) : 0.0f);
        d = (d & ~(0xffffu << shift)) | u32(half_from(float(v))) << shift;
      } else {
        u32& d = w.row(i.ops[c / 8 * 4 + half * 2 + (c & 1)])[lane];
        if (acc == 0)
          d = bits<u32>(float(sum[c] + (keep ? double(bits<float>(d)) : 0.0)));
        else
          d = u32(i64(sum[c]) + (keep ? i32(d) : 0));
      }
    }
  }
  for (u32 k = 0; k < nd; k++) {
    pending.rows.push_back(i.ops[k]);
    w.row_in_flight[size_t(i.ops[k])] |= 1;
  }
  for (i32 r : pending.sources) w.row_in_flight[size_t(r)] |= 2;
  w.mmas.push_back(std::move(pending));
}
OP("wgmma.mma_async", mma_async, PLAIN, ALIGNED);
OP("wgmma.fence", [](Warp& w, const Ins&, u32) { w.fence_tick = w.tick; }, PLAIN, ALIGNED);
OP("wgmma.commit_group", [](Warp& w, const Ins&, u32) { w.mma_committed++; }, PLAIN, ALIGNED);
OP(
    "wgmma.wait_group",
    [](Warp& w, const Ins& i, u32) {
      Block& b = *w.block;
      std::vector<PendingMma> rest;
      for (auto& p : w.mmas) {
        if (i64(p.group) < i64(w.mma_committed) - i.imm[0]) {
          for (u32 at : p.pieces) {
            for (u32 q = 0; q < 16; q++) b.read_in_flight[at + q]--;
            if (b.races) b.races->read_again(w, at, 16);
          }
          for (i32 r : p.rows) w.row_in_flight[size_t(r)] = 0;
          for (i32 r : p.sources) w.row_in_flight[size_t(r)] = 0;
        } else {
          rest.push_back(std::move(p));
        }
      }
      w.mmas.swap(rest);
      for (auto& p : w.mmas) {
        for (i32 r : p.rows) w.row_in_flight[size_t(r)] |= 1;
        for (i32 r : p.sources) w.row_in_flight[size_t(r)] |= 2;
      }
    },
    PLAIN, ALIGNED);
}  // namespace
