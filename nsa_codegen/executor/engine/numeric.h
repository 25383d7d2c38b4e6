// Number formats: half, bfloat16, tfloat32 and float8, as pure functions on bit patterns.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#endif

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i8 = int8_t;
using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;

template <class To, class From>
inline To bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To out;
  std::memcpy(&out, &v, sizeof out);
  return out;
}

enum Rounding { RN = 0, RZ = 1, RM = 2, RP = 3, RNA = 4 };

// Rounds the magnitude `mant` >> `shift`, dropping bits by `mode`.
inline u64 round_shift(u64 mant, int shift, int mode, bool negative) {
  if (shift <= 0) return mant << -shift;
  if (shift > 63) {
    bool up = mant && ((mode == RP && !negative) || (mode == RM && negative));
    return up;
  }
  u64 kept = mant >> shift, rest = mant & ((u64(1) << shift) - 1), half = u64(1) << (shift - 1);
  bool up = false;
  if (mode == RN)
    up = rest > half || (rest == half && (kept & 1));
  else if (mode == RNA)
    up = rest >= half;
  else if (mode == RP)
    up = rest && !negative;
  else if (mode == RM)
    up = rest && negative;
  return kept + up;
}

// A binary float with `E` exponent and `M` mantissa bits, infinities and NaN as in IEEE 754.
template <int E, int M>
inline u32 narrow(float value, int mode, u32 nan_pattern, bool saturate_finite = false) {
  u32 f = bits<u32>(value), sign = f >> 31 << (E + M);
  int exponent = int(f >> 23 & 255);
  u32 fraction = f & 0x7fffff;
  const int bias = (1 << (E - 1)) - 1;
  const u32 infinity = ((1u << E) - 1) << M;
  if (exponent == 255 && fraction) return nan_pattern;
  if (exponent == 255) return sign | (saturate_finite ? infinity - 1 : infinity);
  u64 mant = exponent ? fraction | 0x800000 : fraction;
  int e = (exponent ? exponent : 1) - 127 + bias;  // exponent in the narrow format
  int shift = 23 - M;
  if (e < 1) {
    shift += 1 - e;
    e = 0;
  }
  u64 r = round_shift(mant, shift, mode, f >> 31);
  u32 out = e ? (u32(e - 1) << M) + u32(r) : u32(r);
  if (out >= infinity) {
    bool to_finite = saturate_finite || mode == RZ || (mode == RM && !(f >> 31)) || (mode == RP && f >> 31);
    out = to_finite ? infinity - 1 : infinity;
  }
  return sign | out;
}

template <int E, int M>
inline float widen(u32 v) {
  u32 sign = v >> (E + M) & 1, exponent = v >> M & ((1u << E) - 1), fraction = v & ((1u << M) - 1);
  const int bias = (1 << (E - 1)) - 1;
  if (exponent == (1u << E) - 1) return bits<float>(sign << 31 | 0x7f800000u | fraction << (23 - M));
  float magnitude = exponent ? std::ldexp(float((1u << M) | fraction), int(exponent) - bias - M)
                             : std::ldexp(float(fraction), 1 - bias - M);
  return sign ? -magnitude : magnitude;
}

inline u16 half_from(float v, int mode = RN) {
#ifdef __F16C__
  if (mode == RN && v == v) return u16(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(v), _MM_FROUND_TO_NEAREST_INT)));
#endif
  return u16(narrow<5, 10>(v, mode, 0x7fff));
}
inline float half_to(u16 v) {
#ifdef __F16C__
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(v)));
#else
  return widen<5, 10>(v);
#endif
}
inline u16 bf16_from(float v, int mode = RN) {
  if (v != v) return 0x7fff;
  if (mode == RN) {
    u32 f = bits<u32>(v);
    return u16((f + 0x7fff + (f >> 16 & 1)) >> 16);
  }
  return u16(narrow<8, 7>(v, mode, 0x7fff));
}
inline float bf16_to(u16 v) { return bits<float>(u32(v) << 16); }
inline float tf32_round(float v, int mode) {
  if (v != v) return v;
  return bits<float>(narrow<8, 10>(v, mode, 0x3ffff) << 13);
}
inline float tf32_read(float v) { return bits<float>(bits<u32>(v) & ~0x1fffu); }

inline float e5m2_to(u8 v) { return widen<5, 2>(v); }
inline float e4m3_to(u8 v) {
  if ((v & 0x7f) == 0x7f) return bits<float>(0x7fffffffu);
  u32 exponent = v >> 3 & 15, fraction = v & 7;
  float m = exponent ? std::ldexp(float(8 | fraction), int(exponent) - 10) : std::ldexp(float(fraction), -9);
  return v & 0x80 ? -m : m;
}
inline u8 e5m2_from(float v) { return u8(narrow<5, 2>(v, RN, 0x7f, true)); }
inline u8 e4m3_from(float v) {  // satfinite: the largest finite magnitude is 448
  if (v != v) return 0x7f;
  u8 sign = bits<u32>(v) >> 31 << 7;
  float a = std::fabs(v);
  if (a >= 448.0f) return sign | 0x7e;
  u32 f = bits<u32>(a);
  int e = int(f >> 23) - 127 + 7, shift = 20;
  u64 mant = f >> 23 ? (f & 0x7fffff) | 0x800000 : f & 0x7fffff;
  if (e < 1) {
    shift += 1 - e;
    e = 0;
  }
  u64 r = round_shift(mant, shift, RN, false);
  u32 out = e ? (u32(e - 1) << 3) + u32(r) : u32(r);
  return sign | u8(out > 0x7e ? 0x7e : out);
}

inline float flush(float v) {
  u32 f = bits<u32>(v);
  return (f & 0x7f800000u) == 0 ? bits<float>(f & 0x80000000u) : v;
}
