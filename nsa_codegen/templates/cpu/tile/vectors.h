// Vectors of the machine's width, and 2^x. The width comes from NSA_VECTOR_BYTES, so that one emitted text serves AVX-512,
// AVX2 and Arm. <math.h> and <immintrin.h> take GCC longer to read than most kernels take it to compile, so functions and
// instructions go by the compiler's own names.
#include <stdint.h>
#include <string.h>
#include <utility>
#ifndef NSA_VECTOR_BYTES
#define NSA_VECTOR_BYTES 16
#endif
#if NSA_VECTOR_BYTES == 64
#if defined(__has_builtin) && !defined(__clang__)
#if __has_builtin(__builtin_ia32_reduceps512_mask) && __has_builtin(__builtin_ia32_scalefps512_mask)
#define NSA_GCC_NAMES
#endif
#endif
#ifndef NSA_GCC_NAMES
#include <immintrin.h>
#endif
#endif
#ifndef INFINITY
#define INFINITY __builtin_inff()
#endif
#define NSA_INLINE static inline __attribute__((always_inline))
#define NSA_METHOD inline __attribute__((always_inline))
#define NSA_UNROLL _Pragma("GCC unroll 16")

namespace nsa {

constexpr int W = NSA_VECTOR_BYTES / 4;
typedef float vf __attribute__((vector_size(NSA_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(NSA_VECTOR_BYTES)));
typedef float vf_mem __attribute__((vector_size(NSA_VECTOR_BYTES), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(NSA_VECTOR_BYTES)));
typedef int16_t vh __attribute__((vector_size(NSA_VECTOR_BYTES / 2))); // as many of 16 bits
typedef uint16_t vw __attribute__((vector_size(NSA_VECTOR_BYTES)));     // all of 16 bits
typedef int16_t vh_mem __attribute__((vector_size(NSA_VECTOR_BYTES / 2), aligned(2), may_alias));

// A vector's worth of 16 bits each, in the low bits of 32. GCC 12 takes the general form apart into halves.
NSA_INLINE vu widened(const uint16_t *p) {
  vh x = *(const vh_mem *)p;
#if defined(NSA_GCC_NAMES)
  return (vu)__builtin_ia32_pmovzxwd512_mask(x, vi{}, -1);
#elif NSA_VECTOR_BYTES == 32 && defined(__AVX2__) && !defined(__clang__)
  return (vu)__builtin_ia32_pmovzxwd256(x);
#else
  return __builtin_convertvector(x, vu) & 0xffffu;
#endif
}

NSA_INLINE vf load(const float *p) { return *(const vf_mem *)p; }
NSA_INLINE void store(float *p, vf x) { *(vf_mem *)p = x; }
NSA_INLINE vf splat(float x) { return x - vf{}; }
NSA_INLINE vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }
NSA_INLINE vf max(vf a, vf b) { return a > b ? a : b; }

// 0, 1, .. W - 1.
NSA_INLINE vi lane_numbers() {
  vi x;
  for (int i = 0; i < W; i++)
    x[i] = i;
  return x;
}

template <int D, int... J> NSA_INLINE vf rotate(vf x, std::integer_sequence<int, J...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, x, (J ^ D)...);
#else
  return __builtin_shuffle(x, (vi){(J ^ D)...});
#endif
}

template <int... J> NSA_INLINE vw interleaved(vw x, std::integer_sequence<int, J...>) {
#if defined(__clang__)
  return __builtin_shufflevector(x, x, (J / 2 + J % 2 * W)...);
#else
  return __builtin_shuffle(x, (vw){(J / 2 + J % 2 * W)...});
#endif
}

// The numbers of the first half, each before that of the second half.
NSA_INLINE vw interleaved(vw x) { return interleaved(x, std::make_integer_sequence<int, 2 * W>()); }

// In every lane, what `both` makes of all lanes, halves first.
template <typename F, int D = W / 2> NSA_INLINE vf fold(vf x, F both) {
  x = both(x, rotate<D>(x, std::make_integer_sequence<int, W>()));
  if constexpr (D > 1)
    return fold<F, D / 2>(x, both);
  return x;
}

NSA_INLINE float greatest(vf x) {
  return fold(x, [](vf a, vf b) __attribute__((always_inline)) { return max(a, b); })[0];
}
NSA_INLINE float total(vf x) {
  return fold(x, [](vf a, vf b) __attribute__((always_inline)) { return a + b; })[0];
}

#if NSA_VECTOR_BYTES == 64
// x - round(x), ties to even.
NSA_INLINE vf fraction(vf x) {
#ifdef NSA_GCC_NAMES
  return __builtin_ia32_reduceps512_mask(x, 8, vf{}, -1);
#else
  return (vf)_mm512_reduce_ps((__m512)x, 8);
#endif
}
// p * 2^n for whole n; 0 where x < -126.
NSA_INLINE vf scaled_above(vf x, vf p, vf n) {
#ifdef NSA_GCC_NAMES
  const int not_less = 21, rounding = 4; // _CMP_NLT_UQ; the rounding of the processor's mode
  uint16_t kept = __builtin_ia32_cmpps512_mask(x, vf{} - 126.0f, not_less, -1, rounding);
  return __builtin_ia32_scalefps512_mask(p, n, vf{}, kept, rounding);
#else
  return (vf)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), (__m512)p, (__m512)n);
#endif
}
#endif

// 2^x for x < 127: exactly 1 at 0, exactly 0 below -126 and at -inf, NaN at NaN; relative error below 2e-7.
NSA_INLINE vf exp2(vf x) {
#if NSA_VECTOR_BYTES == 64
  vf f = fraction(x);
#else
  const float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  vf shifted = x + magic;
  vf f = x - (shifted - magic);
#endif
  vf p = splat(1.5353361812956202e-4f);
  p = p * f + 1.33988744454219e-3f;
  p = p * f + 9.618437358305568e-3f;
  p = p * f + 5.550332471026839e-2f;
  p = p * f + 2.4022647913026839e-1f;
  p = p * f + 6.931472028551282e-1f;
  p = p * f + 1.0f;
#if NSA_VECTOR_BYTES == 64
  return scaled_above(x, p, x - f);
#else
  vf scaled = (vf)((vi)p + ((vi)shifted << 23));
  return select(x < -126.0f, vf{}, scaled);
#endif
}

} // namespace nsa
