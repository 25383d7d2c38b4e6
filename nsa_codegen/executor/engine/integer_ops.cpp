// Integer and bit instructions, moves, selections and comparisons.
#include "lanes.h"

namespace {
#define FOR_WIDTHS(X) X(u16, i16, "16") X(u32, i32, "32") X(u64, i64, "64")
#define COMMON(U, S, W)                                                                \
  BINARY("add." W, U, U, U, U(a + b));                                                 \
  BINARY("sub." W, U, U, U, U(a - b));                                                 \
  BINARY("mul.lo." W, U, U, U, U(u64(a) * u64(b)));                                    \
  TERNARY("mad.lo." W, U, U, U, U, U(u64(a) * u64(b) + c));                            \
  BINARY("and." W, U, U, U, U(a& b));                                                  \
  BINARY("or." W, U, U, U, U(a | b));                                                  \
  BINARY("xor." W, U, U, U, U(a ^ b));                                                 \
  UNARY("not." W, U, U, U(~a));                                                        \
  UNARY("cnot." W, U, U, U(a == 0));                                                   \
  UNARY("mov." W, U, U, a);                                                            \
  UNARY("neg." W, U, U, U(0 - a));                                                     \
  UNARY("abs." W, S, S, S(a < 0 ? U(0) - U(a) : U(a)));                                \
  BINARY("shl." W, U, U, u32, b >= sizeof(U) * 8 ? U(0) : U(a << b));                  \
  BINARY("shr.u" W, U, U, u32, b >= sizeof(U) * 8 ? U(0) : U(a >> b));                 \
  BINARY("shr.s" W, S, S, u32, S(a >> (b >= sizeof(U) * 8 ? sizeof(U) * 8 - 1 : b)));  \
  BINARY("min.u" W, U, U, U, a < b ? a : b);                                           \
  BINARY("max.u" W, U, U, U, a > b ? a : b);                                           \
  BINARY("min.s" W, S, S, S, a < b ? a : b);                                           \
  BINARY("max.s" W, S, S, S, a > b ? a : b);                                           \
  BINARY("div.u" W, U, U, U, b ? U(a / b) : U(~U(0)));                                 \
  BINARY("rem.u" W, U, U, U, b ? U(a % b) : a);                                        \
  BINARY("div.s" W, S, S, S, b == 0 ? S(-1) : b == S(-1) ? S(U(0) - U(a)) : S(a / b)); \
  BINARY("rem.s" W, S, S, S, b == 0 ? a : b == S(-1) ? S(0) : S(a % b));
FOR_WIDTHS(COMMON)

BINARY("mul.hi.u16", u16, u16, u16, u16(u32(a) * b >> 16));
BINARY("mul.hi.s16", i16, i16, i16, i16(i32(a) * b >> 16));
BINARY("mul.hi.u32", u32, u32, u32, u32(u64(a) * b >> 32));
BINARY("mul.hi.s32", i32, i32, i32, i32(i64(a) * b >> 32));
BINARY("mul.hi.u64", u64, u64, u64, u64((unsigned __int128)a* b >> 64));
BINARY("mul.hi.s64", i64, i64, i64, i64((__int128)a* b >> 64));
TERNARY("mad.hi.u32", u32, u32, u32, u32, u32(u64(a) * b >> 32) + c);
TERNARY("mad.hi.s32", u32, i32, i32, u32, u32(i64(a) * b >> 32) + c);
BINARY("mul.wide.u16", u32, u16, u16, u32(a) * b);
BINARY("mul.wide.s16", u32, i16, i16, u32(i32(a) * b));
BINARY("mul.wide.u32", u64, u32, u32, u64(a) * b);
BINARY("mul.wide.s32", u64, i32, i32, u64(i64(a) * b));
TERNARY("mad.wide.u16", u32, u16, u16, u32, u32(a) * b + c);
TERNARY("mad.wide.s16", u32, i16, i16, u32, u32(i32(a) * b) + c);
TERNARY("mad.wide.u32", u64, u32, u32, u64, u64(a) * b + c);
TERNARY("mad.wide.s32", u64, i32, i32, u64, u64(i64(a) * b) + c);
UNARY("popc.32", u32, u32, u32(__builtin_popcount(a)));
UNARY("popc.64", u32, u64, u32(__builtin_popcountll(a)));
UNARY("clz.32", u32, u32, a ? u32(__builtin_clz(a)) : 32u);
UNARY("clz.64", u32, u64, a ? u32(__builtin_clzll(a)) : 64u);
UNARY("bfind.u32", u32, u32, a ? 31u - u32(__builtin_clz(a)) : ~0u);
UNARY("bfind.s32", u32, i32, (a < 0 ? ~a : a) ? 31u - u32(__builtin_clz(u32(a < 0 ? ~a : a))) : ~0u);
UNARY("bfind.u64", u32, u64, a ? 63u - u32(__builtin_clzll(a)) : ~0u);
inline u32 reverse(u32 a) {
  u32 r = 0;
  for (int k = 0; k < 32; k++) r |= (a >> k & 1) << (31 - k);
  return r;
}
UNARY("brev.32", u32, u32, reverse(a));
UNARY("brev.64", u64, u64, u64(reverse(u32(a))) << 32 | reverse(u32(a >> 32)));

template <class T>
T extract(T a, u32 position, u32 length, bool is_signed) {
  const u32 width = sizeof(T) * 8;
  position &= 255;
  length &= 255;
  T sign =
      is_signed && length ? T(a >> (position + length - 1 < width - 1 ? position + length - 1 : width - 1) & 1) : T(0);
  T out = 0;
  for (u32 k = 0; k < width; k++) {
    T bit = k < length && position + k < width ? T(a >> (position + k) & 1) : sign;
    out |= bit << k;
  }
  return out;
}
TERNARY("bfe.u32", u32, u32, u32, u32, extract<u32>(a, b, c, false));
TERNARY("bfe.s32", u32, u32, u32, u32, extract<u32>(a, b, c, true));
TERNARY("bfe.u64", u64, u64, u32, u32, extract<u64>(a, b, c, false));
TERNARY("bfe.s64", u64, u64, u32, u32, extract<u64>(a, b, c, true));
template <class T>
T insert(T a, T b, u32 position, u32 length) {
  const u32 width = sizeof(T) * 8;
  position &= 255;
  length &= 255;
  T out = b;
  for (u32 k = 0; k < length && position + k < width; k++)
    out = (out & ~(T(1) << (position + k))) | (T(a >> k & 1) << (position + k));
  return out;
}
template <class T>
void bfi(Warp& w, const Ins& i, u32 m) {
  In<T> a(w, i.ops[1]), b(w, i.ops[2]);
  In<u32> c(w, i.ops[3]), d(w, i.ops[4]);
  write_lanes<T>(w, i.ops[0], m, [&](int l) { return insert<T>(a[l], b[l], c[l], d[l]); });
}
OP("bfi.32", bfi<u32>);
OP("bfi.64", bfi<u64>);
TERNARY("shf.l.wrap", u32, u32, u32, u32, u32((u64(b) << 32 | a) << (c & 31) >> 32));
TERNARY("shf.r.wrap", u32, u32, u32, u32, u32((u64(b) << 32 | a) >> (c & 31)));
TERNARY("shf.l.clamp", u32, u32, u32, u32, c >= 32 ? a : u32((u64(b) << 32 | a) << c >> 32));
TERNARY("shf.r.clamp", u32, u32, u32, u32, c >= 32 ? b : u32((u64(b) << 32 | a) >> c));
inline u32 permute(u32 a, u32 b, u32 c) {
  u64 source = u64(b) << 32 | a;
  u32 out = 0;
  for (int k = 0; k < 4; k++) {
    u32 s = c >> (4 * k) & 15, byte = u32(source >> (8 * (s & 7)) & 255);
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;
    out |= byte << (8 * k);
  }
  return out;
}
TERNARY("prmt", u32, u32, u32, u32, permute(a, b, c));

void lop3(Warp& w, const Ins& i, u32 m) {
  In<u32> a(w, i.ops[1]), b(w, i.ops[2]), c(w, i.ops[3]);
  const u32 table = u32(i.imm[0]);
  write_lanes<u32>(w, i.ops[0], m, [&](int l) {
    u32 out = 0, x = a[l], y = b[l], z = c[l];
    for (int k = 0; k < 8; k++)
      if (table >> k & 1) out |= (k & 4 ? x : ~x) & (k & 2 ? y : ~y) & (k & 1 ? z : ~z);
    return out;
  });
}
OP("lop3", lop3);

// Predicates.
#define PREDICATE(name, expr)                                             \
  OP(name, [](Warp& w, const Ins& i, u32 m) {                             \
    u32 a = w.row(i.ops[1])[0], b = i.count > 2 ? w.row(i.ops[2])[0] : 0; \
    (void)b;                                                              \
    put_predicate(w, i.ops[0], m, expr);                                  \
  })
PREDICATE("and.pred", a& b);
PREDICATE("or.pred", a | b);
PREDICATE("xor.pred", a ^ b);
PREDICATE("not.pred", ~a);
PREDICATE("mov.pred", a);

template <class T>
void selp(Warp& w, const Ins& i, u32 m) {
  In<T> a(w, i.ops[1]), b(w, i.ops[2]);
  u32 p = w.row(i.ops[3])[0];
  write_lanes<T>(w, i.ops[0], m, [&](int l) { return p >> l & 1 ? a[l] : b[l]; });
}
OP("selp.16", selp<u16>);
OP("selp.32", selp<u32>);
OP("selp.64", selp<u64>);
TERNARY("slct.32.s32", u32, u32, u32, i32, c >= 0 ? a : b);
TERNARY("slct.64.s32", u64, u64, u64, i32, c >= 0 ? a : b);

// setp: imm0 the relation, imm1 the combination (0 none, 1 and, 2 or, 3 xor), imm2 negates the third operand,
// imm3 has a second destination, which gets the combination with the negated relation.
enum Relation { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_ };
template <class T>
inline bool relate(T a, T b, int r) {
  bool unordered = false;
  if constexpr (std::is_floating_point_v<T>) unordered = a != a || b != b;
  switch (r) {
    case EQ: return !unordered && a == b;
    case NE: return !unordered && a != b;
    case LT: return a < b;
    case LE: return a <= b;
    case GT: return a > b;
    case GE: return a >= b;
    case EQU: return unordered || a == b;
    case NEU: return unordered || a != b;
    case LTU: return unordered || a < b;
    case LEU: return unordered || a <= b;
    case GTU: return unordered || a > b;
    case GEU: return unordered || a >= b;
    case NUM: return !unordered;
    default: return unordered;
  }
}
template <class T, class F>
inline u32 compare(Warp& w, i32 x, i32 y, int r, F widen) {
  In<T> a(w, x), b(w, y);
  u32 out = 0;
#define CASE(R)                                             \
  case R:                                                   \
    LANES                                                   \
      out |= u32(relate(widen(a[l]), widen(b[l]), R)) << l; \
    break;
  switch (r) {
    CASE(EQ)
    CASE(NE)
    CASE(LT) CASE(LE) CASE(GT) CASE(GE) CASE(EQU) CASE(NEU) CASE(LTU) CASE(LEU) CASE(GTU) CASE(GEU) CASE(NUM) CASE(NAN_)
  }
#undef CASE
  return out;
}
inline void finish_setp(Warp& w, const Ins& i, u32 m, u32 r) {
  int first = i.imm[3] ? 2 : 1;
  u32 negated = ~r;
  if (i.imm[1]) {
    u32 c = w.row(i.ops[first + 2])[0];
    if (i.imm[2]) c = ~c;
    r = i.imm[1] == 1 ? r & c : i.imm[1] == 2 ? r | c : r ^ c;
    negated = i.imm[1] == 1 ? negated & c : i.imm[1] == 2 ? negated | c : negated ^ c;
  }
  put_predicate(w, i.ops[0], m, r);
  if (i.imm[3]) put_predicate(w, i.ops[1], m, negated);
}
#define SETP(name, T, widen)                                                                               \
  OP("setp." name, [](Warp& w, const Ins& i, u32 m) {                                                      \
    int f = i.imm[3] ? 2 : 1;                                                                              \
    finish_setp(w, i, m, compare<T>(w, i.ops[f], i.ops[f + 1], int(i.imm[0]), [](T v) { return widen; })); \
  });                                                                                                      \
  OP("set.u32." name, [](Warp& w, const Ins& i, u32 m) {                                                   \
    u32 r = compare<T>(w, i.ops[1], i.ops[2], int(i.imm[0]), [](T v) { return widen; });                   \
    write_lanes<u32>(w, i.ops[0], m, [&](int l) { return r >> l & 1 ? ~0u : 0u; });                        \
  });                                                                                                      \
  OP("set.f32." name, [](Warp& w, const Ins& i, u32 m) {                                                   \
    u32 r = compare<T>(w, i.ops[1], i.ops[2], int(i.imm[0]), [](T v) { return widen; });                   \
    write_lanes<float>(w, i.ops[0], m, [&](int l) { return r >> l & 1 ? 1.0f : 0.0f; });                   \
  });
SETP("u16", u16, v)
SETP("s16", i16, v)
SETP("u32", u32, v)
SETP("s32", i32, v)
SETP("u64", u64, v) SETP("s64", i64, v) SETP("f32", float, v) SETP("f64", double, v) SETP("f16", u16, half_to(v))
    SETP("bf16", u16, bf16_to(v))

    // testp: imm0 0 finite, 1 infinite, 2 number, 3 not a number, 4 normal, 5 subnormal.
    OP("testp.f32", [](Warp& w, const Ins& i, u32 m) {
      In<u32> a(w, i.ops[1]);
      write_predicate(w, i.ops[0], m, [&](int l) {
        u32 e = a[l] >> 23 & 255, f = a[l] & 0x7fffff;
        switch (i.imm[0]) {
          case 0: return e != 255;
          case 1: return e == 255 && !f;
          case 2: return e != 255 || !f;
          case 3: return e == 255 && f != 0;
          case 4: return e != 255 && e != 0;
          default: return e == 0 && f != 0;
        }
      });
    });
// isspacep: imm0 the base of the space, 0 for global memory.
OP("isspacep", [](Warp& w, const Ins& i, u32 m) {
  In<u64> a(w, i.ops[1]);
  write_predicate(w, i.ops[0], m, [&](int l) { return (a[l] & SPACE_MASK) == u64(i.imm[0]); });
});

// Packing and unpacking of vectors in mov.
void pack(Warp& w, const Ins& i, u32 m) {  // imm0 bits of a part
  const int width = int(i.imm[0]), parts = i.count - 1;
  ACTIVE (m) {
    u64 v = 0;
    for (int k = 0; k < parts; k++) {
      u64 p = width == 64 ? w.row64(i.ops[k + 1])[l] : w.row(i.ops[k + 1])[l];
      v |= (width == 64 ? p : p & ((u64(1) << width) - 1)) << (width * k);
    }
    if (width * parts > 32)
      w.row64(i.ops[0])[l] = v;
    else
      w.row(i.ops[0])[l] = u32(v);
  }
}
void unpack(Warp& w, const Ins& i, u32 m) {  // the source comes last; row -1 is the sink
  const int width = int(i.imm[0]), parts = i.count - 1;
  ACTIVE (m) {
    u64 v = width * parts > 32 ? w.row64(i.ops[parts])[l] : w.row(i.ops[parts])[l];
    for (int k = 0; k < parts; k++)
      if (i.ops[k] >= 0) w.row(i.ops[k])[l] = u32(v >> (width * k) & (width == 64 ? ~u64(0) : (u64(1) << width) - 1));
  }
}
OP("pack", pack);
OP("unpack", unpack);
OP("nop", [](Warp&, const Ins&, u32) {});
}  // namespace
