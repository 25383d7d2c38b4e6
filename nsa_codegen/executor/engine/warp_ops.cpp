// Instructions in which the lanes of a warp exchange values, and the matrix instructions of one warp.
#include "lanes.h"
#include "races.h"

namespace {
// shfl: imm0 mode (0 up, 1 down, 2 bfly, 3 idx), imm1 has a predicate destination.
// Operands: d, [p], a, b, c, membermask.
void shuffle(Warp& w, const Ins& i, u32 m) {
  const int first = i.imm[1] ? 2 : 1;
  u32 source[32];
  std::memcpy(source, w.row(i.ops[first]), sizeof source);
  In<u32> b(w, i.ops[first + 1]), c(w, i.ops[first + 2]);
  u32 fresh[32], valid = 0;
  ACTIVE (m) {
    u32 lane_b = b[l] & 31, clamp = c[l] & 31, segment = c[l] >> 8 & 31;
    u32 high = (u32(l) & segment) | (clamp & ~segment), low = u32(l) & segment;
    i32 j = 0;
    bool p = false;
    switch (i.imm[0]) {
      case 0:
        j = i32(l) - i32(lane_b);
        p = j >= i32(high);
        break;
      case 1:
        j = i32(l) + i32(lane_b);
        p = j <= i32(high);
        break;
      case 2:
        j = i32(l ^ lane_b);
        p = j <= i32(high);
        break;
      default: j = i32(low | (lane_b & ~segment)); p = j <= i32(high);
    }
    if (!p) j = i32(l);
    if (!(m >> j & 1)) report(w, i, int(l), F_DIVERGED, u64(j), "shfl.sync reads a lane that does not take part");
    fresh[l] = source[j];
    valid |= u32(p) << l;
  }
  u32* d = w.row(i.ops[0]);
  ACTIVE (m) d[l] = fresh[l];
  if (i.imm[1]) put_predicate(w, i.ops[1], m, valid);
}
OP("shfl.sync", shuffle, PLAIN, BY_MASK);

// vote: imm0 0 all, 1 any, 2 uni, 3 ballot; imm1 negates the source. Operands: d, a, membermask.
void vote(Warp& w, const Ins& i, u32 m) {
  u32 a = w.row(i.ops[1])[0];
  if (i.imm[1]) a = ~a;
  a &= m;
  if (i.imm[0] == 3) {
    write_lanes<u32>(w, i.ops[0], m, [&](int) { return a; });
    return;
  }
  bool r = i.imm[0] == 0 ? a == m : i.imm[0] == 1 ? a != 0 : a == 0 || a == m;
  put_predicate(w, i.ops[0], m, r ? ~0u : 0u);
}
OP("vote.sync", vote, PLAIN, BY_MASK);
void match_any(Warp& w, const Ins& i, u32 m) {
  In<u32> a(w, i.ops[1]);
  u32 out[32];
  ACTIVE (m) {
    out[l] = 0;
    for (int k = 0; k < 32; k++) out[l] |= u32((m >> k & 1) && a[k] == a[l]) << k;
  }
  write_lanes<u32>(w, i.ops[0], m, [&](int l) { return out[l]; });
}
OP("match.any.sync", match_any, PLAIN, BY_MASK);
// redux: imm0 0 add, 1 min.u, 2 max.u, 3 min.s, 4 max.s, 5 and, 6 or, 7 xor. Operands: d, a, membermask.
void redux(Warp& w, const Ins& i, u32 m) {
  In<u32> a(w, i.ops[1]);
  bool first = true;
  u32 r = 0;
  ACTIVE (m) {
    u32 v = a[l];
    if (first) {
      r = v;
      first = false;
      continue;
    }
    switch (i.imm[0]) {
      case 0: r += v; break;
      case 1: r = v < r ? v : r; break;
      case 2: r = v > r ? v : r; break;
      case 3: r = i32(v) < i32(r) ? v : r; break;
      case 4: r = i32(v) > i32(r) ? v : r; break;
      case 5: r &= v; break;
      case 6: r |= v; break;
      default: r ^= v;
    }
  }
  write_lanes<u32>(w, i.ops[0], m, [&](int) { return r; });
}
OP("redux.sync", redux, PLAIN, BY_MASK);
// elect: some lane of the mask, always the same one for the same mask: the lowest, the highest, or one drawn by the
// seed and the mask, as the order of the launch says. Operands: d (or -1), p, membermask.
void elect(Warp& w, const Ins& i, u32 m) {
  const LaunchDesc& d = *w.block->launch->desc;
  u32 leader = u32(__builtin_ctz(m));
  if (d.order == 1) leader = 31 - u32(__builtin_clz(m));
  if (d.order == 2) {
    u32 rest = m;
    for (u64 k = (u64(d.seed) * 0x9e3779b97f4a7c15ull + m) % u64(__builtin_popcount(m)); k > 0; k--) rest &= rest - 1;
    leader = u32(__builtin_ctz(rest));
  }
  if (i.ops[0] >= 0) write_lanes<u32>(w, i.ops[0], m, [&](int) { return leader; });
  put_predicate(w, i.ops[1], m, 1u << leader);
}
OP("elect.sync", elect, PLAIN, BY_MASK);
OP(
    "bar.warp.sync",
    [](Warp& w, const Ins&, u32 m) {
      if (w.block->races) w.block->races->meet(w, m);
    },
    PLAIN, BY_MASK);
OP("activemask", [](Warp& w, const Ins& i, u32 m) { write_lanes<u32>(w, i.ops[0], m, [&](int) { return m; }); });

// ldmatrix / stmatrix of 8x8 tiles of 16 bits: imm0 tiles, imm1 offset, imm2 transposed, imm3 wide address.
// Operands: registers, address.
u32 tile_row(Warp& w, const Ins& i, int lane, bool& fine, bool write) {
  const i32 base = i.ops[i.count - 1];
  u64 address = (i.imm[3] ? w.row64(base)[lane] : u64(w.row(base)[lane])) + u64(i.imm[1]);
  u32 offset = u32(address);  // 32-bit base plus immediate wraps, as the hardware does
  fine = shared_check(w, i, lane, offset, 16, 16);
  if (fine) {
    if (write)
      shared_write(*w.block, w, i, lane, offset, 16);
    else
      shared_read(*w.block, w, i, lane, offset, 16);
  }
  return offset;
}
void ldmatrix(Warp& w, const Ins& i, u32) {
  for (int t = 0; t < i.imm[0]; t++) {
    u16 tile[8][8];
    for (int r = 0; r < 8; r++) {
      bool fine;
      u32 offset = tile_row(w, i, 8 * t + r, fine, false);
      if (fine)
        std::memcpy(tile[r], &w.block->shared[offset], 16);
      else
        for (auto& v : tile[r]) v = 0x7fff;
    }
    u32* d = w.row(i.ops[t]);
    LANES {
      int a = l >> 2, b = 2 * (l & 3);
      d[l] = i.imm[2] ? tile[b][a] | u32(tile[b + 1][a]) << 16 : tile[a][b] | u32(tile[a][b + 1]) << 16;
    }
  }
}
OP("ldmatrix", ldmatrix, PLAIN, ALIGNED);
void stmatrix(Warp& w, const Ins& i, u32) {
  for (int t = 0; t < i.imm[0]; t++) {
    u16 tile[8][8];
    const u32* s = w.row(i.ops[t]);
    LANES {
      int a = l >> 2, b = 2 * (l & 3);
      if (i.imm[2]) {
        tile[b][a] = u16(s[l]);
        tile[b + 1][a] = u16(s[l] >> 16);
      } else {
        tile[a][b] = u16(s[l]);
        tile[a][b + 1] = u16(s[l] >> 16);
      }
    }
    for (int r = 0; r < 8; r++) {
      bool fine;
      u32 offset = tile_row(w, i, 8 * t + r, fine, true);
      if (fine) std::memcpy(&w.block->shared[offset], tile[r], 16);
    }
  }
}
OP("stmatrix", stmatrix, PLAIN, ALIGNED);

// mma.m16n8kK with row A and column B. imm0: k | kind of A << 8 | kind of B << 16; imm1: accumulators (0 f32, 1 f16, 2
// s32). Operands: 4 or 2 d, the registers of a, of b, then c. Products and sums are exact in double, rounded once at
// the end.
enum Kind { K_F16, K_BF16, K_TF32, K_E4M3, K_E5M2, K_S8, K_U8 };
constexpr int kind_bits[] = {16, 16, 32, 8, 8, 8, 8};
inline float element(u32 word, int part, int kind) {
  switch (kind) {
    case K_F16: return half_to(u16(word >> 16 * part));
    case K_BF16: return bf16_to(u16(word >> 16 * part));
    case K_TF32: return tf32_read(bits<float>(word));
    case K_E4M3: return e4m3_to(u8(word >> 8 * part));
    case K_E5M2: return e5m2_to(u8(word >> 8 * part));
    case K_S8: return float(i8(word >> 8 * part));
    default: return float(u8(word >> 8 * part));
  }
}
void mma(Warp& w, const Ins& i, u32) {
  const int k = int(i.imm[0] & 255), ka = int(i.imm[0] >> 8 & 255), kb = int(i.imm[0] >> 16 & 255);
  const int per = 32 / kind_bits[ka], na = 16 * k / 32 / per, nb = k * 8 / 32 / per, nd = i.imm[1] == 1 ? 2 : 4;
  double a[16][64], b[64][8], c[16][8];
  for (int r = 0; r < na; r++) {
    const u32* s = w.row(i.ops[nd + r]);
    LANES
      for (int p = 0; p < per; p++)
        a[(l >> 2) + 8 * (r & 1)][(r >> 1) * 4 * per + (l & 3) * per + p] = element(s[l], p, ka);
  }
  for (int r = 0; r < nb; r++) {
    const u32* s = w.row(i.ops[nd + na + r]);
    LANES
      for (int p = 0; p < per; p++) b[r * 4 * per + (l & 3) * per + p][l >> 2] = element(s[l], p, kb);
  }
  const i32* cs = i.ops + nd + na + nb;
  for (int r = 0; r < 4; r++) {
    const u32* s = w.row(cs[nd == 4 ? r : r >> 1]);
    LANES {
      int row = (l >> 2) + 8 * (r >> 1), col = 2 * (l & 3) + (r & 1);
      c[row][col] = i.imm[1] == 0   ? double(bits<float>(s[l]))
                    : i.imm[1] == 1 ? double(half_to(u16(s[l] >> 16 * (r & 1))))
                                    : double(i32(s[l]));
    }
  }
  for (int row = 0; row < 16; row++) {
    double sum[8] = {};
    for (int q = 0; q < k; q++)
      for (int n = 0; n < 8; n++) sum[n] += a[row][q] * b[q][n];
    for (int n = 0; n < 8; n++) c[row][n] += sum[n];
  }
  for (int r = 0; r < nd; r++) {
    u32* d = w.row(i.ops[r]);
    LANES {
      int row = (l >> 2) + 8 * (nd == 4 ? r >> 1 : r), col = 2 * (l & 3) + (nd == 4 ? r & 1 : 0);
      if (i.imm[1] == 0)
        d[l] = bits<u32>(float(c[row][col]));
      else if (i.imm[1] == 2)
        d[l] = u32(i64(c[row][col]));
      else
        d[l] = half_from(float(c[row][0 + col])) | u32(half_from(float(c[row][col + 1]))) << 16;
    }
  }
}
OP("mma", mma, PLAIN, ALIGNED);
}  // namespace
