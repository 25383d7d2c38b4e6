// Floating-point arithmetic and conversions. Each operation rounds once, to nearest even unless it says otherwise.
#include "lanes.h"

namespace {
inline float nan32() { return bits<float>(0x7fffffffu); }

// imm0: 1 flush subnormals, 2 saturate to [0, 1], 4 let NaN through (min, max), 8 relu.
template <class F>
inline void float_op(Warp& w, const Ins& i, u32 m, int inputs, F f) {
  const int flags = int(i.imm[0]);
  In<float> a(w, i.ops[1]), b(w, i.ops[inputs > 1 ? 2 : 1]), c(w, i.ops[inputs > 2 ? 3 : 1]);
  if (!(flags & 11)) {
    write_lanes<float>(w, i.ops[0], m, [&](int l) { return f(a[l], b[l], c[l], flags); });
    return;
  }
  write_lanes<float>(w, i.ops[0], m, [&](int l) {
    float r = flags & 1 ? flush(f(flush(a[l]), flush(b[l]), flush(c[l]), flags)) : f(a[l], b[l], c[l], flags);
    if (flags & 2) r = r > 0 ? (r < 1 ? r : 1.0f) : 0.0f;
    if (flags & 8) r = r > 0 ? r : r != r ? r : 0.0f;
    return r;
  });
}
inline float smaller(float a, float b, int flags) {
  if (a != a || b != b) return (flags & 4) || (a != a && b != b) ? nan32() : a != a ? b : a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
inline float larger(float a, float b, int flags) {
  if (a != a || b != b) return (flags & 4) || (a != a && b != b) ? nan32() : a != a ? b : a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
#define FLOAT(name, inputs, expr)                                                 \
  OP(name ".f32", [](Warp& w, const Ins& i, u32 m) {                              \
    float_op(w, i, m, inputs, [](float a, float b, float c, int flags) -> float { \
      (void)a;                                                                    \
      (void)b;                                                                    \
      (void)c;                                                                    \
      (void)flags;                                                                \
      return expr;                                                                \
    });                                                                           \
  })
FLOAT("add", 2, a + b);
FLOAT("sub", 2, a - b);
FLOAT("mul", 2, a* b);
FLOAT("fma", 3, std::fma(a, b, c));
FLOAT("div", 2, a / b);
FLOAT("min", 2, smaller(a, b, flags));
FLOAT("max", 2, larger(a, b, flags));
FLOAT("min3", 3, smaller(smaller(a, b, flags), c, flags));
FLOAT("max3", 3, larger(larger(a, b, flags), c, flags));
FLOAT("neg", 1, bits<float>(bits<u32>(a) ^ 0x80000000u));
FLOAT("abs", 1, bits<float>(bits<u32>(a) & 0x7fffffffu));
FLOAT("copysign", 2, std::copysign(b, a));
FLOAT("sqrt", 1, std::sqrt(a));
FLOAT("rcp", 1, 1.0f / a);
FLOAT("rsqrt", 1, float(1.0 / std::sqrt(double(a))));
FLOAT("ex2", 1, std::exp2(a));
FLOAT("lg2", 1, std::log2(a));
FLOAT("sin", 1, std::sin(a));
FLOAT("cos", 1, std::cos(a));
FLOAT("tanh", 1, std::tanh(a));
BINARY("add.f64", double, double, double, a + b);
BINARY("sub.f64", double, double, double, a - b);
BINARY("mul.f64", double, double, double, a* b);
BINARY("div.f64", double, double, double, a / b);
BINARY("min.f64", double, double, double, std::fmin(a, b));
BINARY("max.f64", double, double, double, std::fmax(a, b));
TERNARY("fma.f64", double, double, double, double, std::fma(a, b, c));
UNARY("neg.f64", double, double, -a);
UNARY("abs.f64", double, double, std::fabs(a));
UNARY("sqrt.f64", double, double, std::sqrt(a));
UNARY("rcp.f64", double, double, 1.0 / a);

// Pairs of floats in a 64-bit register.
template <class F>
inline void pair_op(Warp& w, const Ins& i, u32 m, int inputs, F f) {
  const bool ftz = i.imm[0] & 1;
  In<u64> a(w, i.ops[1]), b(w, i.ops[inputs > 1 ? 2 : 1]), c(w, i.ops[inputs > 2 ? 3 : 1]);
  write_lanes<u64>(w, i.ops[0], m, [&](int l) {
    u64 out = 0;
    for (int k = 0; k < 2; k++) {
      float x = bits<float>(u32(a[l] >> 32 * k)), y = bits<float>(u32(b[l] >> 32 * k)),
            z = bits<float>(u32(c[l] >> 32 * k));
      float r = ftz ? flush(f(flush(x), flush(y), flush(z))) : f(x, y, z);
      out |= u64(bits<u32>(r)) << 32 * k;
    }
    return out;
  });
}
#define PAIR(name, inputs, expr)                                      \
  OP(name ".f32x2", [](Warp& w, const Ins& i, u32 m) {                \
    pair_op(w, i, m, inputs, [](float a, float b, float c) -> float { \
      (void)a;                                                        \
      (void)b;                                                        \
      (void)c;                                                        \
      return expr;                                                    \
    });                                                               \
  })
PAIR("add", 2, a + b);
PAIR("sub", 2, a - b);
PAIR("mul", 2, a* b);
PAIR("fma", 3, std::fma(a, b, c));

// Half and bfloat16, single and in pairs: computed in double, rounded once.
struct Half {
  static float to(u16 v) { return half_to(v); }
  static u16 rounded(double v) { return round_once(v); }
  static u16 round_once(double v) {  // double to half without a second rounding
    float f = float(v);
    if (double(f) != v && v == v) {  // round to odd in float first
      u32 b = bits<u32>(f);
      bool above = std::fabs(double(f)) > std::fabs(v);
      if (above) b -= 1;
      f = bits<float>(b | 1);
    }
    return half_from(f);
  }
};
struct Brain {
  static float to(u16 v) { return bf16_to(v); }
  static u16 rounded(double v) {
    float f = float(v);
    if (double(f) != v && v == v) {
      u32 b = bits<u32>(f);
      if (std::fabs(double(f)) > std::fabs(v)) b -= 1;
      f = bits<float>(b | 1);
    }
    return bf16_from(f);
  }
};
template <class N, int PARTS, class F>
inline void narrow_op(Warp& w, const Ins& i, u32 m, int inputs, F f) {
  const int flags = int(i.imm[0]);
  In<u32> a(w, i.ops[1]), b(w, i.ops[inputs > 1 ? 2 : 1]), c(w, i.ops[inputs > 2 ? 3 : 1]);
  write_lanes<u32>(w, i.ops[0], m, [&](int l) {
    u32 out = 0;
    for (int k = 0; k < PARTS; k++) {
      double r = f(N::to(u16(a[l] >> (16 * k))), N::to(u16(b[l] >> (16 * k))), N::to(u16(c[l] >> (16 * k))), flags);
      if (flags & 2) r = r > 0 ? (r < 1 ? r : 1.0) : 0.0;
      if (flags & 8) r = r > 0 ? r : r != r ? r : 0.0;
      out |= u32(N::rounded(r)) << (16 * k);
    }
    return out;
  });
}
#define NARROW1(name, type, N, PARTS, inputs, expr)                                              \
  OP(name type, [](Warp& w, const Ins& i, u32 m) {                                               \
    narrow_op<N, PARTS>(w, i, m, inputs, [](double a, double b, double c, int flags) -> double { \
      (void)a;                                                                                   \
      (void)b;                                                                                   \
      (void)c;                                                                                   \
      (void)flags;                                                                               \
      return expr;                                                                               \
    });                                                                                          \
  })
#define NARROW(name, inputs, expr)                \
  NARROW1(name, ".f16", Half, 1, inputs, expr);   \
  NARROW1(name, ".f16x2", Half, 2, inputs, expr); \
  NARROW1(name, ".bf16", Brain, 1, inputs, expr); \
  NARROW1(name, ".bf16x2", Brain, 2, inputs, expr)
NARROW("add", 2, a + b);
NARROW("sub", 2, a - b);
NARROW("mul", 2, a* b);
NARROW("fma", 3, a* b + c);
NARROW("min", 2, smaller(float(a), float(b), flags));
NARROW("max", 2, larger(float(a), float(b), flags));
NARROW("neg", 1, -a);
NARROW("abs", 1, std::fabs(a));
NARROW("ex2", 1, std::exp2(a));
NARROW("tanh", 1, std::tanh(a));

// Conversions. imm0: rounding; imm1: flags as above (1 flush, 2 saturate, 8 relu).
#define CVT_INT(to, D, from, S) UNARY("cvt." to "." from, D, S, D(a))
#define CVT_FROM(from, S)                                                                                            \
  CVT_INT("u8", u8, from, S);                                                                                        \
  CVT_INT("s8", i8, from, S);                                                                                        \
  CVT_INT("u16", u16, from, S);                                                                                      \
  CVT_INT("s16", i16, from, S);                                                                                      \
  CVT_INT("u32", u32, from, S);                                                                                      \
  CVT_INT("s32", i32, from, S);                                                                                      \
  CVT_INT("u64", u64, from, S);                                                                                      \
  CVT_INT("s64", i64, from, S);                                                                                      \
  OP("cvt.f32." from, [](Warp& w, const Ins& i, u32 m) { unary<float, S>(w, i, m, [](S a) { return float(a); }); }); \
  UNARY("cvt.f64." from, double, S, double(a));                                                                      \
  UNARY("cvt.f16." from, u16, S, Half::rounded(double(a)));                                                          \
  UNARY("cvt.bf16." from, u16, S, Brain::rounded(double(a)))
CVT_FROM("u8", u8);
CVT_FROM("s8", i8);
CVT_FROM("u16", u16);
CVT_FROM("s16", i16);
CVT_FROM("u32", u32);
CVT_FROM("s32", i32);
CVT_FROM("u64", u64);
CVT_FROM("s64", i64);

// The same integers in the low bits of 64-bit registers.
#define CVT_LOW_INT(to, D, from, S) UNARY("cvt." to ".low." from, D, u64, D(S(a)))
#define CVT_LOW(from, S)             \
  CVT_LOW_INT("u16", u16, from, S); \
  CVT_LOW_INT("s16", i16, from, S); \
  CVT_LOW_INT("u32", u32, from, S); \
  CVT_LOW_INT("s32", i32, from, S); \
  CVT_LOW_INT("u64", u64, from, S); \
  CVT_LOW_INT("s64", i64, from, S)
CVT_LOW("u8", u8);
CVT_LOW("s8", i8);
CVT_LOW("u16", u16);
CVT_LOW("s16", i16);
CVT_LOW("u32", u32);
CVT_LOW("s32", i32);

inline double round_integral(double v, int mode) {
  switch (mode) {
    case RN: return std::nearbyint(v);
    case RZ: return std::trunc(v);
    case RM: return std::floor(v);
    default: return std::ceil(v);
  }
}
template <class D>
inline D clamp_integer(double v, bool single) {
  if (v != v) return sizeof(D) == 8 ? D(u64(1) << 63) : single ? D(0) : std::is_signed_v<D> ? D(0) : D(0);
  double low = double(std::numeric_limits<D>::min()), high = double(std::numeric_limits<D>::max());
  if (v <= low) return std::numeric_limits<D>::min();
  if (v >= high) return std::numeric_limits<D>::max();
  return D(v);
}
#define CVT_TO_INT(to, D)                                                                                    \
  OP("cvt." to ".f32", [](Warp& w, const Ins& i, u32 m) {                                                    \
    int mode = int(i.imm[0]);                                                                                \
    unary<D, float>(w, i, m, [=](float a) { return clamp_integer<D>(round_integral(a, mode), true); });      \
  });                                                                                                        \
  OP("cvt." to ".f64", [](Warp& w, const Ins& i, u32 m) {                                                    \
    int mode = int(i.imm[0]);                                                                                \
    unary<D, double>(w, i, m, [=](double a) { return clamp_integer<D>(round_integral(a, mode), false); });   \
  });                                                                                                        \
  OP("cvt." to ".f16", [](Warp& w, const Ins& i, u32 m) {                                                    \
    int mode = int(i.imm[0]);                                                                                \
    unary<D, u16>(w, i, m, [=](u16 a) { return clamp_integer<D>(round_integral(half_to(a), mode), true); }); \
  });                                                                                                        \
  OP("cvt." to ".bf16", [](Warp& w, const Ins& i, u32 m) {                                                   \
    int mode = int(i.imm[0]);                                                                                \
    unary<D, u16>(w, i, m, [=](u16 a) { return clamp_integer<D>(round_integral(bf16_to(a), mode), true); }); \
  })
CVT_TO_INT("u8", u8);
CVT_TO_INT("s8", i8);
CVT_TO_INT("u16", u16);
CVT_TO_INT("s16", i16);
CVT_TO_INT("u32", u32);
CVT_TO_INT("s32", i32);
CVT_TO_INT("u64", u64);
CVT_TO_INT("s64", i64);

inline float prepared(float v, int flags) {
  if (flags & 1) v = flush(v);
  if (flags & 8) v = v > 0 ? v : v != v ? v : 0.0f;
  if (flags & 2) v = v > 0 ? (v < 1 ? v : 1.0f) : 0.0f;
  return v;
}
#define CVT_FLOAT(name, D, S, expr)                       \
  OP(name, [](Warp& w, const Ins& i, u32 m) {             \
    int mode = int(i.imm[0]), flags = int(i.imm[1]);      \
    (void)mode;                                           \
    (void)flags;                                          \
    unary<D, S>(w, i, m, [=](S a) -> D { return expr; }); \
  })
CVT_FLOAT("cvt.f16.f32", u16, float, half_from(prepared(a, flags), mode));
CVT_FLOAT("cvt.bf16.f32", u16, float, bf16_from(prepared(a, flags), mode));
CVT_FLOAT("cvt.f32.f16", float, u16, prepared(half_to(a), flags));
CVT_FLOAT("cvt.f32.bf16", float, u16, prepared(bf16_to(a), flags));
CVT_FLOAT("cvt.bf16.f16", u16, u16, bf16_from(half_to(a), mode));
CVT_FLOAT("cvt.f16.bf16", u16, u16, half_from(bf16_to(a), mode));
CVT_FLOAT("cvt.f64.f32", double, float, double(a));
CVT_FLOAT("cvt.f32.f64", float, double, float(a));
CVT_FLOAT("cvt.f16.f64", u16, double, Half::rounded(a));
CVT_FLOAT("cvt.tf32.f32", float, float, tf32_round(prepared(a, flags), mode));
CVT_FLOAT("cvti.f32.f32", float, float, prepared(float(round_integral(a, mode)), flags));  // cvt.rni and its kin
CVT_FLOAT("cvt.f32.f32", float, float, prepared(a, flags));
CVT_FLOAT("cvti.f64.f64", double, double, round_integral(a, mode));
CVT_FLOAT("cvti.f16.f16", u16, u16, half_from(float(round_integral(half_to(a), mode))));
#define CVT_PAIR(name, expr)                                          \
  OP(name, [](Warp& w, const Ins& i, u32 m) {                         \
    int mode = int(i.imm[0]), flags = int(i.imm[1]);                  \
    (void)mode;                                                       \
    binary<u32, float, float>(w, i, m, [=](float a, float b) -> u32 { \
      a = prepared(a, flags);                                         \
      b = prepared(b, flags);                                         \
      return expr;                                                    \
    });                                                               \
  })
CVT_PAIR("cvt.f16x2.f32", u32(half_from(a, mode)) << 16 | half_from(b, mode));
CVT_PAIR("cvt.bf16x2.f32", u32(bf16_from(a, mode)) << 16 | bf16_from(b, mode));
CVT_PAIR("cvt.e4m3x2.f32", u32(e4m3_from(a)) << 8 | e4m3_from(b));
CVT_PAIR("cvt.e5m2x2.f32", u32(e5m2_from(a)) << 8 | e5m2_from(b));
CVT_FLOAT("cvt.f16x2.e4m3x2", u32, u16, u32(half_from(e4m3_to(u8(a >> 8)))) << 16 | half_from(e4m3_to(u8(a))));
CVT_FLOAT("cvt.f16x2.e5m2x2", u32, u16, u32(half_from(e5m2_to(u8(a >> 8)))) << 16 | half_from(e5m2_to(u8(a))));
CVT_FLOAT("cvt.e4m3x2.f16x2", u16, u32, u16(e4m3_from(half_to(u16(a >> 16))) << 8 | e4m3_from(half_to(u16(a)))));
CVT_FLOAT("cvt.e5m2x2.f16x2", u16, u32, u16(e5m2_from(half_to(u16(a >> 16))) << 8 | e5m2_from(half_to(u16(a)))));
}  // namespace
