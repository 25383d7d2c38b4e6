// gather_attention_bwd(bfloat16, block=16, dk=32, dv=32, group=1, n=8, part=runs, reach=causal)
// schedule query_lanes=128 key_tile=64 register_rows=8 register_vectors=2
// target x86_64_v4_bf16 (cpu, 512-bit vectors, 32 registers, avx512_bf16)
// emitted by TileLang 0.1.15
#define NSA_MAX_SELECTED 8
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

// Types as they are stored, by one and by the vector, and rows of them. Left to the compiler, a loop over a vector's numbers
// takes it several seconds to unroll.
namespace nsa {

struct f32 {
  typedef float raw;
  NSA_INLINE float up(raw x) { return x; }
  NSA_INLINE raw down(float x) { return x; }
  NSA_INLINE vf load(const raw *p) { return nsa::load(p); }
  NSA_INLINE void store(raw *p, vf x) { nsa::store(p, x); }
};

struct bf16 {
  typedef uint16_t raw;
  NSA_INLINE float up(raw x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
  }
  NSA_INLINE raw down(float x) { // round to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (raw)(x == x ? rounded : 0x7fc0u);
  }
  NSA_INLINE vf load(const raw *p) { return (vf)(widened(p) << 16); }
  // The nearest number of the type in the high half of each, ties to even; what is below is not cleared.
  NSA_INLINE vu rounded(vf x) {
    vu bits = (vu)x;
    return (vu)(x == x ? bits + 0x7fffu + ((bits >> 16) & 1u) : vu{} + 0x7fc00000u);
  }
  NSA_INLINE void store(raw *p, vf x) { *(vh_mem *)p = __builtin_convertvector((vi)(rounded(x) >> 16), vh); }
};

// With F16C the processor converts. Clang knows the type, also in vectors; GCC before 13 only the instructions.
#if defined(__F16C__) && defined(__clang__)
typedef _Float16 vh_float __attribute__((vector_size(NSA_VECTOR_BYTES / 2)));
typedef _Float16 vh_float_mem __attribute__((vector_size(NSA_VECTOR_BYTES / 2), aligned(2), may_alias));
#elif defined(__F16C__) // eight f16, and four float32
typedef int16_t halves __attribute__((vector_size(16)));
typedef float four_floats __attribute__((vector_size(16)));
#endif

struct f16 {
  typedef uint16_t raw;
  NSA_INLINE float up(raw x) {
#if defined(__F16C__) && defined(__clang__)
    _Float16 y;
    memcpy(&y, &x, 2);
    return y;
#elif defined(__F16C__)
    return __builtin_ia32_vcvtph2ps(halves{(int16_t)x})[0];
#else
    uint32_t magnitude = (uint32_t)(x & 0x7fffu) << 13, sign = (uint32_t)(x & 0x8000u) << 16;
    float scaled, y;
    memcpy(&scaled, &magnitude, 4);
    scaled *= 5.192296858534828e33f; // 2^112 moves the exponent bias from 15 to 127, subnormals included
    uint32_t bits;
    memcpy(&bits, &scaled, 4);
    bits = (x & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : bits;
    bits |= sign;
    memcpy(&y, &bits, 4);
    return y;
#endif
  }
  NSA_INLINE raw down(float x) {
#if defined(__F16C__) && defined(__clang__)
    _Float16 y = (_Float16)x;
    raw bits;
    memcpy(&bits, &y, 2);
    return bits;
#elif defined(__F16C__)
    return (raw)__builtin_ia32_vcvtps2ph(four_floats{x}, 0)[0]; // 0: to nearest, ties to even
#else
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
      return (raw)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) // 65520 and above round to infinity
      return (raw)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { // subnormal: let the float adder round at 2^-24
      float m;
      memcpy(&m, &magnitude, 4);
      m += 0.5f;
      memcpy(&magnitude, &m, 4);
      return (raw)(sign | (magnitude - 0x3f000000u));
    }
    uint32_t odd = (magnitude >> 13) & 1u;
    return (raw)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
#endif
  }
#if defined(__F16C__) && defined(__clang__)
  NSA_INLINE vf load(const raw *p) { return __builtin_convertvector(*(const vh_float_mem *)p, vf); }
  NSA_INLINE void store(raw *p, vf x) { *(vh_float_mem *)p = __builtin_convertvector(x, vh_float); }
#elif NSA_VECTOR_BYTES == 64 && defined(__F16C__)
  NSA_INLINE vf load(const raw *p) { return __builtin_ia32_vcvtph2ps512_mask(*(const vh_mem *)p, vf{}, -1, 4); }
  NSA_INLINE void store(raw *p, vf x) { *(vh_mem *)p = __builtin_ia32_vcvtps2ph512_mask(x, 0, vh{}, -1); }
#elif NSA_VECTOR_BYTES == 32 && defined(__F16C__)
  NSA_INLINE vf load(const raw *p) { return __builtin_ia32_vcvtph2ps256(*(const vh_mem *)p); }
  NSA_INLINE void store(raw *p, vf x) { *(vh_mem *)p = __builtin_ia32_vcvtps2ph256(x, 0); }
#else
  NSA_INLINE vf load(const raw *p) {
    vf x;
    for (int i = 0; i < W; i++)
      x[i] = up(p[i]);
    return x;
  }
  NSA_INLINE void store(raw *p, vf x) {
    for (int i = 0; i < W; i++)
      p[i] = down(x[i]);
  }
#endif
};

// dst[i] = float(src[i]) for i < n.
template <typename T> NSA_INLINE void up_row(float *dst, const typename T::raw *src, int n) {
  int i = 0;
  for (; i + W <= n; i += W)
    store(dst + i, T::load(src + i));
  for (; i < n; i++)
    dst[i] = T::up(src[i]);
}

// dst[r][0:width] = float(src[r * stride ...]) for r < rows; rows up to `padded` and columns up to `ld` become 0.
template <typename T>
NSA_INLINE void up_rows(float *dst, int ld, const typename T::raw *src, int64_t stride, int rows, int padded, int width) {
  for (int r = 0; r < rows; r++) {
    up_row<T>(dst + r * ld, src + r * stride, width);
    for (int c = width; c < ld; c++)
      dst[r * ld + c] = 0.0f;
  }
  memset(dst + rows * ld, 0, sizeof(float) * (padded - rows) * ld);
}

// dst[i] = T(factor * src[i]) for i < n.
template <typename T> NSA_INLINE void down_row(typename T::raw *dst, const float *src, int n, float factor) {
  int i = 0;
  for (; i + W <= n; i += W)
    T::store(dst + i, load(src + i) * factor);
  for (; i < n; i++)
    dst[i] = T::down(src[i] * factor);
}

// The same for `rows` rows of `width`, in dst `stride` apart and in src `ld`.
template <typename T>
NSA_INLINE void down_rows(typename T::raw *dst, int64_t stride, const float *src, int ld, int rows, int width, float factor) {
  for (int r = 0; r < rows; r++)
    down_row<T>(dst + r * stride, src + r * ld, width, factor);
}

// acc[i] += float(src[i]) for i < n.
template <typename T> NSA_INLINE void add_row(float *acc, const typename T::raw *src, int n) {
  int i = 0;
  for (; i + W <= n; i += W)
    store(acc + i, load(acc + i) + T::load(src + i));
  for (; i < n; i++)
    acc[i] += T::up(src[i]);
}

// sum of a[i] * float(src[i]) for i < n, in W partial sums.
template <typename T> NSA_INLINE float dot_row(const float *a, const typename T::raw *src, int n) {
  vf sums = vf{};
  float sum = 0.0f;
  int i = 0;
  for (; i + W <= n; i += W)
    sums += load(a + i) * T::load(src + i);
  for (; i < n; i++)
    sum += a[i] * T::up(src[i]);
  for (int x = 0; x < W; x++)
    sum += sums[x];
  return sum;
}

// dst[i] = T(src[i] / by) for i < n.
template <typename T> NSA_INLINE void divide_row(typename T::raw *dst, const float *src, int by, int n) {
  int i = 0;
  for (; i + W <= n; i += W)
    T::store(dst + i, load(src + i) / (float)by);
  for (; i < n; i++)
    dst[i] = T::down(src[i] / (float)by);
}

// sum + float(src[i]) * weight, and so on for further pairs of src and weight, of one number or of a vector.
template <typename T> NSA_INLINE float weighted_one(int, float sum) { return sum; }
template <typename T, typename... More>
NSA_INLINE float weighted_one(int i, float sum, const typename T::raw *src, float weight, More... more) {
  return weighted_one<T>(i, sum + T::up(src[i]) * weight, more...);
}
template <typename T> NSA_INLINE vf weighted_vector(int, vf sum) { return sum; }
template <typename T, typename... More>
NSA_INLINE vf weighted_vector(int i, vf sum, const typename T::raw *src, float weight, More... more) {
  return weighted_vector<T>(i, sum + T::load(src + i) * weight, more...);
}

// dst[i] = T(sum of src[i] * weight) over pairs of src and weight, for i < n.
template <typename T, typename... Pairs> NSA_INLINE void weighted_sum(typename T::raw *dst, int n, Pairs... pairs) {
  int i = 0;
  for (; i + W <= n; i += W)
    T::store(dst + i, weighted_vector<T>(i, vf{}, pairs...));
  for (; i < n; i++)
    dst[i] = T::down(weighted_one<T>(i, 0.0f, pairs...));
}

NSA_INLINE void scale_row(float *x, float factor, int n) {
  for (int i = 0; i < n; i++)
    x[i] *= factor;
}

NSA_INLINE void copy(float *dst, const float *src, int n) { memcpy(dst, src, sizeof(float) * n); }

NSA_INLINE void fill(float *p, float x, int n) {
  for (int i = 0; i < n; i++)
    p[i] = x;
}

// Rows of numbers of four bytes become 0.
NSA_INLINE void fill_rows(void *p, int rows, int width) { memset(p, 0, sizeof(float) * rows * width); }

// x * Phi(x) with the exact error function.
NSA_INLINE void gelu(float *x, int n) {
  for (int i = 0; i < n; i++)
    x[i] = 0.5f * x[i] * (1.0f + __builtin_erff(x[i] * 0.70710678118654752f));
}

// From x, before the gelu, and dy, the gradient after it: dy becomes the gradient before it, and x the gelu's value.
NSA_INLINE void gelu_backward(float *x, float *dy, int n) {
  for (int i = 0; i < n; i++) {
    float below = 0.5f * (1.0f + __builtin_erff(x[i] * 0.70710678118654752f));
    float density = 0.39894228040143268f * __builtin_expf(-0.5f * x[i] * x[i]);
    dy[i] *= below + x[i] * density;
    x[i] *= below;
  }
}

// acc[i] += w[i] * float(src[i]) for i < n.
template <typename T> NSA_INLINE void multiply_add(float *acc, const typename T::raw *src, const float *w, int n) {
  int i = 0;
  for (; i + W <= n; i += W)
    store(acc + i, load(acc + i) + load(w + i) * T::load(src + i));
  for (; i < n; i++)
    acc[i] += w[i] * T::up(src[i]);
}

} // namespace nsa

// The one register-tiled product.
namespace nsa {

// What a product asks of memory while it computes: nothing, or lines spread over its steps. More at once than a core can wait
// for would hold the product up. Asking never faults, wherever the line is.
struct NoLines {
  NSA_METHOD void spread(int) {}
  NSA_METHOD void next() {}
};

template <bool WRITTEN> struct Lines {
  const char *at;
  int64_t gap;           // from the end of a piece to the next
  int left, each, lines; // of this piece, of a piece, of all
  int every = 1, wait = 1;

  // Has a line asked for at each of so many steps, or as often as all of them take.
  NSA_METHOD void spread(int steps) {
    every = 0 < lines && lines < steps ? steps / lines : 1;
    wait = 0 < lines ? every : INT32_MAX;
  }

  NSA_METHOD void next() {
    if (--wait != 0)
      return;
    __builtin_prefetch(at, WRITTEN, 2);
    wait = --lines > 0 ? every : INT32_MAX;
    at += 64;
    if (--left == 0) {
      at += gap;
      left = each;
    }
  }
};

// Share `part` of `parts` of the memory of `count` pieces from piece `from` on, to be read or WRITTEN; a piece has `width`
// elements, and they are `stride` elements apart.
template <typename T, bool WRITTEN>
NSA_INLINE Lines<WRITTEN> lines(const typename T::raw *src, int64_t stride, int from, int count, int width, int part,
                                int parts) {
  constexpr int64_t size = sizeof(*src);
  int each = (int)((width * size + 63) / 64);
  int64_t all = (int64_t)count * each, begin = all * part / parts, end = all * (part + 1) / parts;
  const char *at = (const char *)src + (from + begin / each) * stride * size + begin % each * 64;
  return {at, stride * size - 64 * each, each - (int)(begin % each), each, (int)(end - begin)};
}

enum { ZERO = 0, ADD = 1, RESCALE = 2, SUM = 3 };

// What a product multiplies, and sums in float32: numbers, or, where the processor has them, pairs of bfloat16 numbers.
struct Numbers {
  typedef float held;
  static NSA_METHOD vf at(const held *p) { return load(p); }
  static NSA_METHOD vf all(const held *p) { return splat(*p); }
  static NSA_METHOD vf add(vf sum, vf a, vf b) { return sum + a * b; }
};
#if defined(__AVX512BF16__) && NSA_VECTOR_BYTES == 64
struct Pairs {
  typedef uint32_t held __attribute__((aligned(2), may_alias));
  static NSA_METHOD vf at(const held *p) { return load((const float *)p); }
  static NSA_METHOD vf all(const held *p) { return (vf)(*p + vu{}); }
  static NSA_METHOD vf add(vf sum, vf a, vf b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
    return sum;
  }
};
#endif

// One register tile of R rows by V vectors: C[r][:] = start + sum_k A[r * a_row + k * a_depth] * B[k][:].
template <typename M, int R, int V, int START, typename Fetch>
NSA_INLINE void product_tile(float *C, int ldc, const typename M::held *A, int64_t a_row, int64_t a_depth,
                             const typename M::held *B, int ldb, int depth, const float *alpha, Fetch &fetch) {
  vf acc[R][V];
  NSA_UNROLL for (int r = 0; r < R; r++) NSA_UNROLL for (int v = 0; v < V; v++) {
    acc[r][v] = START == ZERO || START == SUM ? vf{} : load(C + r * ldc + v * W);
    if (START == RESCALE)
      acc[r][v] *= load(alpha + v * W);
  }
  for (int k = 0; k < depth; k++) {
    vf b[V];
    fetch.next();
    NSA_UNROLL for (int v = 0; v < V; v++) b[v] = M::at(B + (int64_t)k * ldb + v * W);
    NSA_UNROLL for (int r = 0; r < R; r++) {
      vf a = M::all(A + r * a_row + k * a_depth);
      NSA_UNROLL for (int v = 0; v < V; v++) acc[r][v] = M::add(acc[r][v], a, b[v]);
    }
  }
  NSA_UNROLL for (int r = 0; r < R; r++) NSA_UNROLL for (int v = 0; v < V; v++) {
    float *c = C + r * ldc + v * W;
    store(c, START == SUM ? load(c) + acc[r][v] : acc[r][v]);
  }
}

template <typename M, int R, int V, int START, typename Fetch>
NSA_INLINE void product_rows(float *C, int ldc, const typename M::held *A, int64_t a_row, int64_t a_depth,
                             const typename M::held *B, int ldb, int rows, int depth, const float *alpha, Fetch &fetch) {
  int r = 0;
  for (; r + R <= rows; r += R)
    product_tile<M, R, V, START>(C + r * ldc, ldc, A + r * a_row, a_row, a_depth, B, ldb, depth, alpha, fetch);
  constexpr int fewer = R > 8 ? 8 : R > 4 ? 4 : R / 2;
  if constexpr (R > 1)
    if (r < rows)
      product_rows<M, fewer, V, START>(C + r * ldc, ldc, A + r * a_row, a_row, a_depth, B, ldb, rows - r, depth, alpha,
                                       fetch);
}

// C[rows][LANES] = start + A[rows][depth] * B[depth][LANES]; A element (r, k) is A[r * a_row + k * a_depth].
// START: ZERO, ADD (to C), RESCALE (to C times alpha per lane), SUM (added to C at the end: a long sum of short ones
// rounds less). Sums run over k in order, whatever the tile; lanes that fill no tile take one that is higher and narrower.
// `fetch` is what it asks of memory meanwhile.
template <int LANES, int R, int V, int START, int FROM = 0, typename Fetch = NoLines>
NSA_INLINE void product(float *C, int ldc, const float *A, int64_t a_row, int64_t a_depth, const float *B, int rows,
                        int depth, const float *alpha, Fetch fetch = {}) {
  constexpr int step = V * W, past = FROM + (LANES - FROM) / step * step;
  fetch.spread((past - FROM) / step * ((rows + R - 1) / R) * depth);
  for (int lane = FROM; lane < past; lane += step)
    product_rows<Numbers, R, V, START>(C + lane, ldc, A, a_row, a_depth, B + lane, LANES, rows, depth, alpha + lane, fetch);
  if constexpr (past < LANES && V > 1)
    product<LANES, 2 * R, V / 2, START, past>(C, ldc, A, a_row, a_depth, B, rows, depth, alpha, fetch);
}

} // namespace nsa

// Softmax, running or over pieces, its masks and its backward.
namespace nsa {

// The scale that turns dot products into scores in log2 units.
NSA_INLINE float log2_units(float scale) { return scale * 1.44269504088896341f; }

// Scores S[rows][LANES] of keys from j0 on become -inf outside all of the ranges lo[r][lane] <= key < hi[r][lane].
template <int LANES, int RANGES>
NSA_INLINE void mask_lanes(float *S, const int32_t *lo, const int32_t *hi, int j0, int rows) {
  for (int lane = 0; lane < LANES; lane += W) {
    vi from[RANGES], to[RANGES];
    NSA_UNROLL for (int r = 0; r < RANGES; r++) {
      memcpy(&from[r], lo + r * LANES + lane, sizeof(vi));
      memcpy(&to[r], hi + r * LANES + lane, sizeof(vi));
    }
    for (int j = 0; j < rows; j++) {
      vi key = vi{} + (j0 + j), seen = vi{};
      NSA_UNROLL for (int r = 0; r < RANGES; r++) seen |= (from[r] <= key) & (key < to[r]);
      float *s = S + j * LANES + lane;
      store(s, select(seen, load(s), splat(-INFINITY)));
    }
  }
}

// Vectors that a pass over n numbers takes at a time, so that their chains of maxima and sums overlap.
constexpr int at_a_time(int n) { return n / W % 4 == 0 ? 4 : n / W % 2 == 0 ? 2 : 1; }

// One step of the running softmax over `rows` keys, a query in each lane, over scores (-inf where masked) of which `units`
// are one of log2. `keep` takes the weights of keys j and j + 1, if there are `two`. m: running maximum, which stays until
// scores pass it by more than `lag`; l: running sum; alpha: factor for what was summed before.
template <int LANES, int V, typename Keep>
NSA_INLINE void softmax_lanes(const float *S, int rows, float units, float lag, float *m, float *l, float *alpha, Keep keep) {
  for (int lane = 0; lane < LANES; lane += V * W) {
    vf top[V], safe[V], sum[V];
    NSA_UNROLL for (int v = 0; v < V; v++) top[v] = splat(-INFINITY);
    for (int j = 0; j < rows; j++)
      NSA_UNROLL for (int v = 0; v < V; v++) top[v] = max(load(S + j * LANES + lane + v * W), top[v]);
    NSA_UNROLL for (int v = 0; v < V; v++) {
      vf former = load(m + lane + v * W);
      top[v] = select(top[v] * units > former + lag, top[v] * units, former);
      safe[v] = select(top[v] == -INFINITY, vf{}, top[v]);
      sum[v] = vf{};
    }
    auto weigh = [&](int j, bool two) __attribute__((always_inline)) {
      NSA_UNROLL for (int v = 0; v < V; v++) {
        const float *s = S + j * LANES + lane + v * W;
        vf first = exp2(load(s) * units - safe[v]), second = vf{};
        sum[v] += first;
        if (two) {
          second = exp2(load(s + LANES) * units - safe[v]);
          sum[v] += second;
        }
        keep(j, lane + v * W, first, second, two);
      }
    };
    for (int j = 0; j + 1 < rows; j += 2)
      weigh(j, true);
    if (rows % 2 != 0)
      weigh(rows - 1, false);
    NSA_UNROLL for (int v = 0; v < V; v++) {
      int i = lane + v * W;
      vf factor = exp2(load(m + i) - safe[v]);
      store(alpha + i, factor);
      store(l + i, load(l + i) * factor + sum[v]);
      store(m + i, top[v]);
    }
  }
}

// The same over scores in log2 units, which become weights in place.
template <int LANES> NSA_INLINE void softmax_step(float *S, int rows, float *m, float *l, float *alpha) {
  auto keep = [=](int j, int lane, vf first, vf second, bool two) __attribute__((always_inline)) {
    store(S + j * LANES + lane, first);
    if (two)
      store(S + (j + 1) * LANES + lane, second);
  };
  softmax_lanes<LANES, at_a_time(LANES)>(S, rows, 1.0f, 0.0f, m, l, alpha, keep);
}

// The greatest of the scores in pieces, as `softmax_pieces` has them; -inf without any.
template <int N, int V>
NSA_INLINE float greatest_of_pieces(const float *S, const int32_t *places, int count, int64_t stride) {
  vf best[V];
  NSA_UNROLL for (int v = 0; v < V; v++) best[v] = splat(-INFINITY);
  for (int i = 0; i < count; i++)
    for (int x = 0; x < N; x += V * W)
      NSA_UNROLL for (int v = 0; v < V; v++) best[v] = max(load(S + places[i] * stride + x + v * W), best[v]);
  for (int v = 1; v < V; v++)
    best[0] = max(best[v], best[0]);
  return greatest(best[0]);
}

// Softmax of one query over scores that lie in pieces: piece i is the N at S + places[i] * stride, N a multiple of W.
// Turns them into weights relative to their maximum *m, whose sum is *l; without pieces these are -inf and 0.
template <int N, int V = at_a_time(N)>
NSA_INLINE void softmax_pieces(float *S, const int32_t *places, int count, int64_t stride, float *m, float *l) {
  vf sums[V] = {};
  vf top = splat(greatest_of_pieces<N, V>(S, places, count, stride)), safe = select(top == -INFINITY, vf{}, top);
  for (int i = 0; i < count; i++)
    for (int x = 0; x < N; x += V * W)
      NSA_UNROLL for (int v = 0; v < V; v++) {
        float *s = S + places[i] * stride + x + v * W;
        vf p = exp2(load(s) - safe);
        store(s, p);
        sums[v] += p;
      }
  for (int v = 1; v < V; v++)
    sums[0] += sums[v];
  *m = top[0];
  *l = total(sums[0]);
}

// lse in log2 units, such that 2^(score - it) is the weight; +inf, hence weight 0, for an empty row.
NSA_INLINE float log2_of(float lse) { return lse == -INFINITY ? INFINITY : lse * 1.44269504088896341f; }

// Backward of the softmax, a query in each lane: scores S, `units` of which are one of log2, become weights
// p = 2^(units * S - lse), whose sum over the keys is added to total; and p * dp to delta, dp being what an output's gradient
// makes that of its weights.
template <int LANES>
NSA_INLINE void weigh(float *S, const float *dp, int rows, float units, const float *lse, float *total, float *delta) {
  for (int lane = 0; lane < LANES; lane += W) {
    vf log_sum = load(lse + lane), whole = vf{}, sum = vf{};
    for (int j = 0; j < rows; j++) {
      vf p = exp2(load(S + j * LANES + lane) * units - log_sum);
      store(S + j * LANES + lane, p);
      whole += p;
      sum += p * load(dp + j * LANES + lane);
    }
    store(total + lane, load(total + lane) + whole);
    store(delta + lane, load(delta + lane) + sum);
  }
}

// The same for a row of n keys of one query.
NSA_INLINE void weigh_row(float *S, const float *dp, int n, float units, float lse, float *sum_p, float *delta) {
  vf whole = vf{}, sum = vf{};
  for (int i = 0; i < n; i += W) {
    vf p = exp2(load(S + i) * units - splat(lse));
    store(S + i, p);
    whole += p;
    sum += p * load(dp + i);
  }
  *sum_p += total(whole);
  *delta += total(sum);
}

// After them, dp becomes the gradient of the scores, p * (gate * (dp - delta) + dlse), a query in each lane.
template <int LANES>
NSA_INLINE void to_scores(float *dp, const float *p, int rows, const float *gate, const float *delta, const float *dlse) {
  for (int lane = 0; lane < LANES; lane += W) {
    vf factor = load(gate + lane), mean = load(delta + lane), added = load(dlse + lane);
    for (int j = 0; j < rows; j++) {
      float *ds = dp + j * LANES + lane;
      store(ds, load(p + j * LANES + lane) * (factor * (load(ds) - mean) + added));
    }
  }
}

// The same for a row of n keys of one query.
NSA_INLINE void to_scores_row(float *dp, const float *p, int n, float gate, float delta, float dlse) {
  for (int i = 0; i < n; i += W)
    store(dp + i, load(p + i) * (splat(gate) * (load(dp + i) - splat(delta)) + splat(dlse)));
}

// Natural log-sum-exp from a maximum and a sum in log2 units; -inf for an empty row.
NSA_INLINE float log_sum_exp(float top, float sum) {
  return sum == 0.0f ? -INFINITY : (top + __builtin_log2f(sum)) * 0.69314718055994531f;
}

// 1 / sum, and 0 for an empty row, so that its output is exactly 0.
NSA_INLINE float inverse(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

} // namespace nsa

// Rows of queries laid in the lanes, and back.
namespace nsa {

// Of W x W numbers in registers, exchanges the blocks of D x D off the diagonal: one of the steps of a transposition.
template <int D, int... J> NSA_INLINE void exchange(vf &above, vf &below, std::integer_sequence<int, J...>) {
#if defined(__clang__)
  vf first = __builtin_shufflevector(above, below, (J & D ? W + J - D : J)...);
  below = __builtin_shufflevector(above, below, (J & D ? W + J : J + D)...);
#else
  vf first = __builtin_shuffle(above, below, (vi){(J & D ? W + J - D : J)...});
  below = __builtin_shuffle(above, below, (vi){(J & D ? W + J : J + D)...});
#endif
  above = first;
}

// Transposes W x W numbers in registers.
template <int D = W / 2> NSA_INLINE void transpose(vf *rows) {
  NSA_UNROLL for (int i = 0; i < W; i++) if (!(i & D))
      exchange<D>(rows[i], rows[i + D], std::make_integer_sequence<int, W>());
  if constexpr (D > 1)
    transpose<D / 2>(rows);
}

// Rows of queries and heads, the heads of a query together: row r is at (r / HEADS) * query + (r % HEADS) * head.
template <int HEADS> NSA_INLINE int64_t row_at(int r, int64_t query, int64_t head) {
  return HEADS == 1 ? r * query : r / HEADS * query + r % HEADS * head;
}

// Rows of numbers laid in the lanes, EACH of them in 4 bytes: dst[c / EACH][r] = one(row r of src, c) for r < rows and
// c < width. `many` makes W of them of a row, from a number on.
template <int HEADS, int EACH, typename To, typename From, typename Many, typename One>
NSA_INLINE void lay_rows(To *dst, int lanes, const From *src, int64_t query, int64_t head, int rows, int width, Many many,
                         One one) {
  int r = 0;
  for (; r + W <= rows; r += W) {
    const From *row[W];
    NSA_UNROLL for (int i = 0; i < W; i++) row[i] = src + row_at<HEADS>(r + i, query, head);
    int c = 0;
    for (; c + EACH * W <= width; c += EACH * W) {
      vf x[W];
      NSA_UNROLL for (int i = 0; i < W; i++) x[i] = many(row[i] + c);
      transpose(x);
      NSA_UNROLL for (int i = 0; i < W; i++) store((float *)dst + (c / EACH + i) * lanes + r, x[i]);
    }
    for (; c < width; c += EACH)
      for (int i = 0; i < W; i++)
        dst[c / EACH * lanes + r + i] = one(row[i], c);
  }
  for (; r < rows; r++)
    for (int c = 0; c < width; c += EACH)
      dst[c / EACH * lanes + r] = one(src + row_at<HEADS>(r, query, head), c);
}

// dst[c][r] = factor * float(row r of src)[c] for r < rows; lanes past `rows` become 0.
template <typename T, int HEADS>
NSA_INLINE void pack_lanes(float *dst, int lanes, const typename T::raw *src, int64_t query, int64_t head, int rows,
                           int width, float factor) {
  typedef typename T::raw raw;
  lay_rows<HEADS, 1>(
      dst, lanes, src, query, head, rows, width,
      [=](const raw *p) __attribute__((always_inline)) { return T::load(p) * factor; },
      [=](const raw *row, int c) __attribute__((always_inline)) { return T::up(row[c]) * factor; });
  if (rows < lanes)
    for (int c = 0; c < width; c++)
      for (int i = rows; i < lanes; i++)
        dst[c * lanes + i] = 0.0f;
}

// The way back: row r of dst [c] = factors[r] * src[c][r] for r < rows; with ADDED, what it holds is added.
template <typename T, int HEADS, bool ADDED = false>
NSA_INLINE void unpack_lanes(typename T::raw *dst, int64_t query, int64_t head, const float *src, int lanes, int rows,
                             int width, const float *factors) {
  int r = 0;
  for (; r + W <= rows; r += W) {
    vf factor = load(factors + r);
    typename T::raw *row[W];
    NSA_UNROLL for (int i = 0; i < W; i++) row[i] = dst + row_at<HEADS>(r + i, query, head);
    int c = 0;
    for (; c + W <= width; c += W) {
      vf x[W];
      NSA_UNROLL for (int i = 0; i < W; i++) x[i] = load(src + (c + i) * lanes + r) * factor;
      transpose(x);
      NSA_UNROLL for (int i = 0; i < W; i++) T::store(row[i] + c, ADDED ? x[i] + T::load(row[i] + c) : x[i]);
    }
    for (; c < width; c++)
      for (int i = 0; i < W; i++)
        row[i][c] = T::down(src[c * lanes + r + i] * factor[i] + (ADDED ? T::up(row[i][c]) : 0.0f));
  }
  for (; r < rows; r++)
    for (int c = 0; c < width; c++) {
      typename T::raw *to = dst + row_at<HEADS>(r, query, head) + c;
      *to = T::down(src[c * lanes + r] * factors[r] + (ADDED ? T::up(*to) : 0.0f));
    }
}

} // namespace nsa

// Attention of rows that would not fill the lanes: keys lie in the lanes, then dims. Sums are made in the order in which a tile
// of many rows makes them, so that a row has the same bits in either.
namespace nsa {

// `count` rows of a tensor of T, `stride` apart, that are asked for while others are computed with.
template <typename T> struct Rows {
  const typename T::raw *at;
  int64_t stride;
  int count;

  template <int D> __attribute__((always_inline)) inline void ask(int first) const {
    if (first < count)
      for (int i = first; i < first + W; i++)
        for (int c = 0; c < D; c += 64 / sizeof(*at))
          __builtin_prefetch(at + i * stride + c, 0, 2);
  }
};

template <typename T> NSA_INLINE Rows<T> rows_ahead(const typename T::raw *at, int64_t stride, int count) {
  return {at, stride, count};
}

// N < W numbers, and zeros. What is left over of rows is summed in vectors as well, which the compiler multiplies and adds alike.
template <int N> NSA_INLINE vf load_first(const float *p) {
  vf x = vf{};
  for (int i = 0; i < N; i++)
    x[i] = p[i];
  return x;
}

// sums[r] = dot products of q[r] [D] with the W rows k + at[i] [D].
template <int R, int D> NSA_INLINE void dots(vf *sums, const float *q, const float *k, const int64_t *at) {
  vf x[W];
  NSA_UNROLL for (int r = 0; r < R; r++) sums[r] = vf{};
  for (int c = 0; c + W <= D; c += W) {
    NSA_UNROLL for (int i = 0; i < W; i++) x[i] = load(k + at[i] + c);
    transpose(x);
    NSA_UNROLL for (int i = 0; i < W; i++) NSA_UNROLL for (int r = 0; r < R; r++) sums[r] += x[i] * q[r * D + c + i];
  }
  for (int c = D / W * W; c < D; c++) {
    for (int i = 0; i < W; i++)
      x[0][i] = k[at[i] + c];
    NSA_UNROLL for (int r = 0; r < R; r++) sums[r] += x[0] * q[r * D + c];
  }
}

// S[i][j] = Q[i] . K[j] for `count` queries, R at a time, in rows of lds, and `rows` keys, k_row apart; S has room for whole
// vectors of keys. What comes `next` is asked for meanwhile.
template <int D, int R = 4, typename T>
NSA_INLINE void score_rows(float *S, int lds, const float *Q, int count, const float *K, int64_t k_row, int rows, Rows<T> next) {
  int i = 0;
  for (; i + R <= count; i += R) {
    int64_t at[W];
    for (int x = 0; x < W; x++)
      at[x] = x * k_row;
    for (int j = 0; j < rows; j += W) {
      vf sums[R];
      next.template ask<D>(j);
      for (int x = rows - j; x < W; x++)
        at[x] = 0;
      dots<R, D>(sums, Q + i * D, K + j * k_row, at);
      NSA_UNROLL for (int r = 0; r < R; r++) store(S + (i + r) * lds + j, sums[r]);
    }
    next.count = 0;
  }
  if constexpr (R > 1)
    score_rows<D, R / 2>(S + i * lds, lds, Q + i * D, count - i, K, k_row, rows, next);
}

// O[i] [D] = start + sum_j P[i][j] * V[j] for `count` rows, in rows of ldo and ldp, and `rows` values, v_row apart, in tiles of
// R rows by N vectors from column FROM on; START is ADD or SUM, as of a product.
template <int D, int START, int R, int N, int FROM = 0>
NSA_INLINE void add_columns(float *O, int ldo, const float *P, int ldp, int count, const float *V, int v_row, int rows) {
  constexpr int past = FROM + (D - FROM) / (N * W) * N * W;
  NoLines none;
  for (int c = FROM; c < past; c += N * W)
    product_rows<Numbers, R, N, START>(O + c, ldo, P, ldp, 1, V + c, v_row, count, rows, P, none);
  if constexpr (past < D && N > 1)
    return add_columns<D, START, R, N / 2, past>(O, ldo, P, ldp, count, V, v_row, rows);
  if constexpr (past < D && N == 1)
    for (int i = 0; i < count; i++) {
      float *o = O + i * ldo + past;
      vf before = load_first<D - past>(o), sum = START == SUM ? vf{} : before;
      for (int j = 0; j < rows; j++)
        sum += load_first<D - past>(V + (int64_t)j * v_row + past) * P[i * ldp + j];
      for (int c = 0; c < D - past; c++)
        o[c] = START == SUM ? before[c] + sum[c] : sum[c];
    }
}

template <int D, int START>
NSA_INLINE void add_values(float *O, int ldo, const float *P, int ldp, int count, const float *V, int64_t v_row, int rows) {
  if (count == 1)
    add_columns<D, START, 1, 8>(O, ldo, P, ldp, count, V, (int)v_row, rows);
  else
    add_columns<D, START, 4, 2>(O, ldo, P, ldp, count, V, (int)v_row, rows);
}

// O[i] += sum_j P[i][j] * V[j], as above.
template <int D, typename T>
NSA_INLINE void weigh_rows(float *O, int ldo, const float *P, int ldp, int count, const float *V, int64_t v_row, int rows,
                           Rows<T> next) {
  for (int j = 0; j < next.count; j += W)
    next.template ask<D>(j);
  add_values<D, SUM>(O, ldo, P, ldp, count, V, v_row, rows);
}

// One step of a running softmax over the keys j0 .. j0 + rows - 1 for `filled` queries Q [D], in log2 units. Keys K [D] and
// values V [DV] are k_row and v_row apart; query i sees the keys in one of its ranges
// lo[r * LANES + i] <= key < hi[r * LANES + i]. m: running maxima, l: running sums, O [DV]: running sums of values. S[i] [WIDE],
// with room for whole vectors of keys, becomes the weights, 0 in what `rows` leave of a vector.
template <int WIDE, int LANES, int RANGES, int D, int DV, typename T>
NSA_INLINE void attend_few(float *O, float *m, float *l, float *S, const float *Q, int filled, const float *K,
                           int64_t k_row, const float *V, int64_t v_row, int j0, int rows, const int32_t *lo,
                           const int32_t *hi, Rows<T> next_k, Rows<T> next_v) {
  vi number = lane_numbers();
  score_rows<D>(S, WIDE, Q, filled, K, k_row, rows, next_k);
  for (int i = 0; i < filled; i++) {
    float *s = S + i * WIDE, sum = 0.0f;
    vf best = splat(m[i]);
    for (int j = 0; j < rows; j += W) {
      vi key = number + (j0 + j), seen = vi{};
      NSA_UNROLL for (int r = 0; r < RANGES; r++) seen |= (key >= lo[r * LANES + i]) & (key < hi[r * LANES + i]);
      vf scores = select(seen & (key < j0 + rows), load(s + j), splat(-INFINITY));
      best = max(scores, best);
      store(s + j, scores);
    }
    float top = greatest(best), safe = top == -INFINITY ? 0.0f : top, alpha = exp2(splat(m[i] - safe))[0];
    for (int j = 0; j < rows; j += W) {
      next_v.template ask<DV>(j);
      store(s + j, exp2(load(s + j) - safe));
    }
    for (int j = 0; j < rows; j++)
      sum += s[j];
    l[i] = l[i] * alpha + sum;
    m[i] = top;
    scale_row(O + i * DV, alpha, DV);
    next_v.count = 0;
  }
  add_values<DV, ADD>(O, DV, S, WIDE, filled, V, v_row, rows);
}

// P[j][i] = S[i][j] for `rows` keys and `filled` queries, in rows of WIDE numbers and of a vector; other lanes become 0. Both have
// room for whole vectors of keys.
template <int WIDE> NSA_INLINE void lay_in_lanes(float *P, const float *S, int filled, int rows) {
  for (int j = 0; j < rows; j += W) {
    vf x[W];
    NSA_UNROLL for (int i = 0; i < W; i++) x[i] = i < filled ? load(S + i * WIDE + j) : vf{};
    transpose(x);
    NSA_UNROLL for (int i = 0; i < W; i++) store(P + (j + i) * W, x[i]);
  }
}

} // namespace nsa

// Blocks of keys: their scores, the top-k of a row of them, and who lists which.
namespace nsa {

// One step of the block scores (paper eq. 9, 0-based): P holds weights of `rows` <= TOKENS compressed tokens per lane,
// the first of them the first of a block; sums[b] = sum of P[x] over the (x, u), 0 <= u < OVERLAP, in block b, that is
// (x + u) / PER_BLOCK == b. Blocks past the tile's own hold what spills over. What spills into a block and what is its
// own are summed apart, so that a block at the edge of two tiles gets the sum of any other.
template <int LANES, int TOKENS, int PER_BLOCK, int OVERLAP>
NSA_INLINE void block_sums(float *sums, const float *P, int rows) {
  constexpr int blocks = (TOKENS + OVERLAP - 2) / PER_BLOCK + 1;
  for (int b = 0; b < blocks; b++) {
    int first = b * PER_BLOCK;
    for (int lane = 0; lane < LANES; lane += W) {
      vf spilled = vf{}, own = vf{};
      for (int m = OVERLAP - 1; m > 0; m--) // as often as an u takes the token m before the block into it
        if (m <= first && first - m < rows)
          spilled += load(P + (first - m) * LANES + lane) * (float)(OVERLAP - m < PER_BLOCK ? OVERLAP - m : PER_BLOCK);
      for (int i = 0; i < PER_BLOCK; i++)
        if (first + i < rows)
          own += load(P + (first + i) * LANES + lane) * (float)(OVERLAP < PER_BLOCK - i ? OVERLAP : PER_BLOCK - i);
      store(sums + b * LANES + lane, spilled + own);
    }
  }
}

// scores[t * stride + x] += what the heads of query t sum to in block x, for x < blocks. sums[i][SPILLED][LANES] are those
// of the tiles of OWN blocks, kept relative to a maximum that factors[i][LANES] correct for, and inverse[LANES] normalises.
template <int LANES, int HEADS, int QUERIES, int OWN, int SPILLED>
NSA_INLINE void add_block_scores(float *scores, int64_t stride, const float *sums, const float *factors,
                                 const float *inverse, int tiles, int blocks) {
  for (int x = 0; x < blocks; x++) {
    alignas(64) float whole[LANES];
    int begin = x < SPILLED ? 0 : (x - SPILLED) / OWN + 1, end = x / OWN + 1 < tiles ? x / OWN + 1 : tiles;
    for (int lane = 0; lane < LANES; lane += W) {
      vf sum = vf{};
      for (int i = begin; i < end; i++)
        sum += load(sums + ((int64_t)i * SPILLED + x - i * OWN) * LANES + lane) * load(factors + (int64_t)i * LANES + lane);
      store(whole + lane, sum * load(inverse + lane));
    }
    for (int t = 0; t < QUERIES; t++) {
      float sum = 0.0f;
      if constexpr (HEADS % W == 0) { // as many chains of additions as lanes, where one would make each wait
        vf sums_of = load(whole + t * HEADS);
        for (int g = W; g < HEADS; g += W)
          sums_of += load(whole + t * HEADS + g);
        sum = total(sums_of);
      } else {
        for (int g = 0; g < HEADS; g++)
          sum += whole[t * HEADS + g];
      }
      scores[t * stride + x] += sum;
    }
  }
}

// factor[lane] = 2^(factor[lane] - top[lane]): what turns weights kept relative to a former maximum into today's; 1 where
// the maximum did not move.
template <int LANES> NSA_INLINE void rescale(float *factor, const float *top) {
  for (int lane = 0; lane < LANES; lane += W) {
    vf now = load(top + lane);
    store(factor + lane, exp2(load(factor + lane) - select(now == -INFINITY, vf{}, now)));
  }
}

constexpr int RANKED = 64; // scores of which each is compared with each, instead of sorting them one by one

// Indices of the `room` greatest of `count` <= RANKED scores, room < count, in ascending order.
NSA_INLINE void take_ranked(int32_t *out, const float *scores, int count, int room) {
  alignas(64) float value[RANKED];
  int32_t rank[RANKED], taken[RANKED];
  int padded = (count + W - 1) / W * W, filled = 0;
  for (int i = 0; i < padded; i++)
    value[i] = i < count && scores[i] == scores[i] ? scores[i] : -INFINITY;
  vi lanes = lane_numbers();
  for (int c = 0; c < padded; c += W) {
    vf own = load(value + c);
    vi before = {};
    for (int j = 0; j < c; j++)
      before -= splat(value[j]) >= own;
    NSA_UNROLL for (int x = 0; x < W; x++) {
      vf other = splat(value[c + x]);
      before -= (other > own) | ((other == own) & (lanes > x));
    }
    for (int j = c + W; j < count; j++)
      before -= splat(value[j]) > own;
    memcpy(rank + c, &before, sizeof before);
  }
  for (int i = 0; i < count; i++) {
    taken[filled] = i;
    filled += rank[i] < room;
  }
  memcpy(out, taken, sizeof(int32_t) * room);
}

// Whether one of the next W scores is greater than `least`.
NSA_INLINE bool exceeds(const float *scores, float least) {
  vf x = load(scores);
  return greatest(select(x == x, x, splat(-INFINITY))) > least;
}

// The same for any number of scores, and room <= NSA_MAX_SELECTED: a sorted list of the greatest so far.
NSA_INLINE void take_sorted(int32_t *out, const float *scores, int count, int room) {
  float value[NSA_MAX_SELECTED];
  int kept = 0;
  for (int i = 0; i < count && room > 0; i++) {
    while (kept == room && i + W <= count && !exceeds(scores + i, value[kept - 1]))
      i += W;
    if (i == count)
      break;
    float s = scores[i] == scores[i] ? scores[i] : -INFINITY;
    if (kept == room && !(s > value[kept - 1]))
      continue;
    int at = kept < room ? kept++ : kept - 1;
    for (; at > 0 && (s > value[at - 1]); at--) {
      value[at] = value[at - 1];
      out[at] = out[at - 1];
    }
    value[at] = s;
    out[at] = i;
  }
  for (int a = 1; a < kept; a++) { // back to ascending order
    int32_t x = out[a];
    int b = a;
    for (; b > 0 && out[b - 1] > x; b--)
      out[b] = out[b - 1];
    out[b] = x;
  }
}

// Blocks of the query whose own block is `current`: the `local` ones up to it and the `initial` first are forced,
// the rest of the `n` are those of highest score, ties to the lower index, NaN last. Ascending; -1 fills the tail.
NSA_INLINE void select_top(int32_t *out, const float *scores, int current, int n, int initial, int local) {
  int first_local = current - local + 1 > 0 ? current - local + 1 : 0;
  int first_free = initial < first_local ? initial : first_local;
  int room = n - (current - first_local + 1) - first_free, count = first_local - first_free;
  if (count <= room) { // there is room for all
    for (int j = 0; j < n; j++)
      out[j] = j <= current ? j : -1;
    return;
  }
  if (count <= RANKED)
    take_ranked(out + first_free, scores + first_free, count, room);
  else
    take_sorted(out + first_free, scores + first_free, count, room);
  for (int i = 0; i < room; i++)
    out[first_free + i] += first_free;
  for (int j = 0; j < first_free; j++)
    out[j] = j;
  for (int j = first_local; j <= current; j++)
    out[first_free + room + j - first_local] = j;
}

// Who lists which block, of `queries` queries with `n` entries each, `stride` apart: blocks that some list names, ascending,
// and the queries that list blocks[u], members[begins[u]] up to members[begins[u + 1]], ascending. Query q lists counts[q]
// of them, one for each of places[q * n ...] among the members. Entries outside of 0 .. limits[q]-1 are left out, and so is
// one that was there before. marks[2 * (largest limit)] are zeros, and will be. Returns how many blocks there are.
NSA_INLINE int32_t group_blocks(int32_t *blocks, int32_t *begins, int32_t *members, int32_t *places, int32_t *counts,
                                int32_t *marks, const int32_t *lists, int64_t stride, const int32_t *limits, int queries,
                                int n) {
  int32_t found = 0, placed = 0, end = 0;
  for (int q = 0; q < queries; q++) {
    counts[q] = 0;
    for (int i = 0; i < n; i++) {
      int32_t block = lists[q * stride + i];
      if (block < 0 || block >= limits[q] || marks[2 * block + 1] == q + 1)
        continue;
      marks[2 * block]++;
      marks[2 * block + 1] = q + 1;
      places[q * n + counts[q]++] = block;
      end = block < end ? end : block + 1;
    }
  }
  for (int32_t block = 0; block < end; block++)
    if (marks[2 * block]) {
      blocks[found] = block;
      begins[found++] = placed;
      placed += marks[2 * block];
      marks[2 * block] = placed - marks[2 * block];
    }
  begins[found] = placed;
  for (int q = 0; q < queries; q++)
    for (int i = 0; i < counts[q]; i++) {
      int32_t place = marks[2 * places[q * n + i]]++;
      members[place] = q;
      places[q * n + i] = place;
    }
  for (int u = 0; u < found; u++)
    marks[2 * blocks[u]] = marks[2 * blocks[u] + 1] = 0;
  return found;
}

// Whether rows members[0 .. many-1], ascending, follow one another.
NSA_INLINE bool adjoin(const int32_t *members, int many) { return members[many - 1] - members[0] == many - 1; }

// The rows members[i] of src, of `width` numbers of four bytes, one behind the other: where they are if they adjoin, else in
// spare, which like src has room for W more numbers.
template <typename T>
NSA_INLINE const T *member_rows(void *spare, const T *src, const int32_t *members, int many, int width) {
  if (adjoin(members, many))
    return src + members[0] * width;
  for (int i = 0; i < many; i++)
    for (int c = 0; c < width; c += W)
      store((float *)spare + i * width + c, load((const float *)src + members[i] * width + c));
  return (const T *)spare;
}

// Where to add to the rows members[i] of dst: there if they adjoin, else in spare, zeros, for `add_spare` to add up.
NSA_INLINE float *member_sums(float *spare, float *dst, const int32_t *members, int many, int width) {
  if (adjoin(members, many))
    return dst + members[0] * width;
  fill_rows(spare, many, width);
  return spare;
}

// Row members[i] of dst += row i of spare, rows of `width` numbers, a multiple of W.
NSA_INLINE void add_members(float *dst, const float *spare, const int32_t *members, int many, int width) {
  for (int i = 0; i < many; i++)
    for (int c = 0; c < width; c += W)
      store(dst + members[i] * width + c, load(dst + members[i] * width + c) + load(spare + i * width + c));
}

// The same unless the rows adjoin, which `member_sums` has added to where they are.
NSA_INLINE void add_spare(float *dst, const float *spare, const int32_t *members, int many, int width) {
  if (!adjoin(members, many))
    add_members(dst, spare, members, many, width);
}

} // namespace nsa

// Products of bfloat16 numbers, summed in float32: by the processor's tiles (AMX) where it has them, else by vectors of pairs
// (`Pairs`). The right side lies in pairs, B[k / 2][column][k % 2], and a pair is carried in 32 bits.
namespace nsa {

constexpr int TILE = 16, DEEP = 32; // rows and columns of a tile of sums, and the numbers that one instruction sums

// `pair_product`: C[rows][columns] = A[rows][depth] * B[depth][columns], or with ADD what C holds and that. Rows of A are a_row
// apart, those of pairs of B ldb; `columns` are a multiple of TILE. It takes ROW_UNIT rows and DEPTH_UNIT numbers at a time:
// C and A have room for `rows` rounded up to that, and `depth` is a multiple.
// `add_across`: the same added to C, of an A that lies in pairs as B does, A[k / 2][row][k % 2], lda apart; `spare` and A's
// lines have room for `rows` rounded up to TILE.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__) && NSA_VECTOR_BYTES == 64
constexpr int ROW_UNIT = 1, DEPTH_UNIT = 2;
constexpr int64_t CLOSE_ROWS = INT64_MAX;

// Register tiles of 8 rows by 2 vectors: others from 4 by 4 to 14 by 2 took the same time on a Zen 4.
template <bool ADD, typename Fetch>
NSA_INLINE void pair_columns(float *C, int ldc, const Pairs::held *A, int64_t a_row, int64_t a_pair, const Pairs::held *B,
                             int ldb, int rows, int columns, int pairs, Fetch &fetch) {
  constexpr int R = 8, V = 2, START = ADD ? nsa::ADD : ZERO;
  fetch.spread((rows + R - 1) / R * (columns / (V * W)) * pairs);
  int c = 0;
  for (; c + V * W <= columns; c += V * W)
    product_rows<Pairs, R, V, START>(C + c, ldc, A, a_row, a_pair, B + c, ldb, rows, pairs, C, fetch);
  for (; c < columns; c += W)
    product_rows<Pairs, R, 1, START>(C + c, ldc, A, a_row, a_pair, B + c, ldb, rows, pairs, C, fetch);
}

template <bool ADD, typename Fetch = NoLines>
NSA_INLINE void pair_product(float *C, int ldc, const void *A, int64_t a_row, const uint32_t *B, int ldb, int rows,
                             int columns, int depth, Fetch fetch = {}) {
  pair_columns<ADD>(C, ldc, (const Pairs::held *)A, a_row / 2, 1, B, ldb, rows, columns, depth / 2, fetch);
}

template <typename Fetch = NoLines>
NSA_INLINE void add_across(float *C, int ldc, const uint32_t *A, int lda, uint32_t *, const uint32_t *B, int ldb, int rows,
                           int columns, int depth, Fetch fetch = {}) {
  pair_columns<true>(C, ldc, A, 1, lda, B, ldb, rows, columns, depth / 2, fetch);
}
#else
constexpr int ROW_UNIT = TILE, DEPTH_UNIT = DEEP;
constexpr int64_t CLOSE_ROWS = 256; // numbers between rows that are loaded as a tile: further apart, they miss the first cache

#ifdef __AMX_BF16__
struct alignas(64) TileShapes {
  uint8_t palette, start, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Whoever multiplies tiles opens them before, and closes them after.
NSA_INLINE void open_tiles() {
  TileShapes shapes = {};
  shapes.palette = 1;
  for (int i = 0; i < 8; i++) {
    shapes.row_bytes[i] = 64;
    shapes.rows[i] = TILE;
  }
  asm volatile("ldtilecfg %0" : : "m"(shapes));
}
NSA_INLINE void close_tiles() { asm volatile("tilerelease"); }

template <int N> NSA_INLINE void zero_tile() { asm volatile("tilezero %%tmm%c0" : : "i"(N)); }
template <int N> NSA_INLINE void load_tile(const void *p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(N) : "memory");
}
template <int N> NSA_INLINE void store_tile(void *p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(N) : "memory");
}
template <int C, int A, int B> NSA_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// R by V tiles of sums, of tiles 0 to 3; those of A are 4 and 5, those of B 6 and 7.
template <int R, int V, bool ADD, typename Fetch>
NSA_INLINE void multiply_pairs(float *C, int ldc, const uint16_t *A, int64_t a_row, const uint32_t *B, int ldb, int depth,
                               Fetch &fetch) {
  if constexpr (ADD) {
    load_tile<0>(C, 4 * ldc);
    if constexpr (V > 1)
      load_tile<1>(C + TILE, 4 * ldc);
    if constexpr (R > 1)
      load_tile<2>(C + TILE * ldc, 4 * ldc);
    if constexpr (R > 1 && V > 1)
      load_tile<3>(C + TILE * ldc + TILE, 4 * ldc);
  } else {
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
  }
  for (int k = 0; k < depth; k += DEEP) {
    const uint32_t *b = B + (int64_t)(k / 2) * ldb;
    load_tile<4>(A + k, 2 * a_row);
    load_tile<6>(b, 4 * ldb);
    fetch.next();
    multiply_tiles<0, 4, 6>();
    if constexpr (V > 1) {
      load_tile<7>(b + TILE, 4 * ldb);
      fetch.next();
      multiply_tiles<1, 4, 7>();
    }
    if constexpr (R > 1) {
      load_tile<5>(A + TILE * a_row + k, 2 * a_row);
      fetch.next();
      multiply_tiles<2, 5, 6>();
    }
    if constexpr (R > 1 && V > 1) {
      fetch.next();
      multiply_tiles<3, 5, 7>();
    }
  }
  store_tile<0>(C, 4 * ldc);
  if constexpr (V > 1)
    store_tile<1>(C + TILE, 4 * ldc);
  if constexpr (R > 1)
    store_tile<2>(C + TILE * ldc, 4 * ldc);
  if constexpr (R > 1 && V > 1)
    store_tile<3>(C + TILE * ldc + TILE, 4 * ldc);
}
#else
// The same by vectors of numbers.
template <int R, int V, bool ADD, typename Fetch>
NSA_INLINE void multiply_pairs(float *C, int ldc, const uint16_t *A, int64_t a_row, const uint32_t *B, int ldb, int depth,
                               Fetch &fetch) {
  for (int r = 0; r < R * TILE; r++)
    for (int lane = 0; lane < V * TILE; lane += W) {
      float *c = C + r * ldc + lane;
      vf sum = ADD ? load(c) : vf{};
      for (int k = 0; k < depth; k += 2) {
        vu pairs = (vu)load((const float *)(B + (int64_t)(k / 2) * ldb + lane));
        sum += bf16::up(A[r * a_row + k]) * (vf)(pairs << 16);
        sum += bf16::up(A[r * a_row + k + 1]) * (vf)(pairs & 0xffff0000u);
      }
      store(c, sum);
    }
}
#endif

template <int R, bool ADD, typename Fetch>
NSA_INLINE void pair_columns(float *C, int ldc, const uint16_t *A, int64_t a_row, const uint32_t *B, int ldb, int columns,
                             int depth, Fetch &fetch) {
  int c = 0;
  for (; c + 2 * TILE <= columns; c += 2 * TILE)
    multiply_pairs<R, 2, ADD>(C + c, ldc, A, a_row, B + c, ldb, depth, fetch);
  if (c < columns)
    multiply_pairs<R, 1, ADD>(C + c, ldc, A, a_row, B + c, ldb, depth, fetch);
}

template <bool ADD, typename Fetch = NoLines>
NSA_INLINE void pair_product(float *C, int ldc, const void *A, int64_t a_row, const uint32_t *B, int ldb, int rows,
                             int columns, int depth, Fetch fetch = {}) {
  const uint16_t *a = (const uint16_t *)A;
  fetch.spread((rows + TILE - 1) / TILE * (columns / TILE) * (depth / DEEP));
  int r = 0;
  for (; r + TILE < rows; r += 2 * TILE)
    pair_columns<2, ADD>(C + r * ldc, ldc, a + r * a_row, a_row, B, ldb, columns, depth, fetch);
  if (r < rows)
    pair_columns<1, ADD>(C + r * ldc, ldc, a + r * a_row, a_row, B, ldb, columns, depth, fetch);
}

template <typename Fetch = NoLines>
NSA_INLINE void add_across(float *C, int ldc, const uint32_t *A, int lda, uint32_t *spare, const uint32_t *B, int ldb,
                           int rows, int columns, int depth, Fetch fetch = {}) {
  for (int r = 0; r < (rows + TILE - 1) / TILE * TILE; r += W)
    for (int k = 0; k < depth / 2; k += W) {
      vf x[W];
      NSA_UNROLL for (int i = 0; i < W; i++) x[i] = load((const float *)A + (k + i) * lda + r);
      transpose(x);
      NSA_UNROLL for (int i = 0; i < W; i++) store((float *)spare + (r + i) * (depth / 2) + k, x[i]);
    }
  pair_product<true>(C, ldc, spare, depth, B, ldb, rows, columns, depth, fetch);
}
#endif

#ifndef __AMX_BF16__
NSA_INLINE void open_tiles() {}
NSA_INLINE void close_tiles() {}
#endif

NSA_INLINE uint32_t pair_of(const uint16_t *row, int c, int width) {
  return row[c] | (c + 1 < width ? (uint32_t)row[c + 1] << 16 : 0);
}
NSA_INLINE vu pair_vectors(const uint16_t *first, const uint16_t *second) {
  return widened(first) | widened(second) << 16;
}
NSA_INLINE void store_pairs(uint32_t *p, vu x) { store((float *)p, (vf)x); }

// Of pairs of rows, those past `rows` become zeros, up to `padded` rows.
NSA_INLINE void clear_pairs(uint32_t *pairs, int ld, int rows, int padded) {
  int done = (rows + 1) / 2;
  memset(pairs + done * ld, 0, sizeof(uint32_t) * (padded / 2 - done) * ld);
}

// dst[r][c] = src[r * stride + c] for r < rows and c < width, bits of `flip` exchanged; zeros up to `padded` rows and `ld`.
NSA_INLINE void copy_rows(void *dst, int ld, const uint16_t *src, int64_t stride, int rows, int padded, int width,
                          uint32_t flip) {
  for (int r = 0; r < rows; r++) {
    uint16_t *to = (uint16_t *)dst + r * ld;
    const uint16_t *from = src + r * stride;
    int c = 0;
    for (; c + 2 * W <= width; c += 2 * W)
      store_pairs((uint32_t *)(to + c), (vu)load((const float *)(from + c)) ^ flip);
    for (; c < width; c++)
      to[c] = from[c] ^ (uint16_t)flip;
    for (; c < ld; c++)
      to[c] = 0;
  }
  memset((uint16_t *)dst + rows * ld, 0, sizeof(uint16_t) * (padded - rows) * ld);
}

// S[rows][LANES] = K[rows][WIDTH] * Q, rows of K k_row apart: K is read where it lies if it fills what a product takes at a
// time, and its rows lie close; else from `spare`. `queries` are in pairs.
template <int LANES, int WIDTH, typename Fetch = NoLines>
NSA_INLINE void score_lanes(float *S, uint16_t *spare, const uint16_t *K, int64_t k_row, const uint32_t *queries, int rows,
                            Fetch fetch = {}) {
  constexpr int deep = (WIDTH + DEEP - 1) / DEEP * DEEP, depth = WIDTH % DEPTH_UNIT == 0 ? WIDTH : deep;
  if (depth != WIDTH || rows % ROW_UNIT != 0 || k_row > CLOSE_ROWS) {
    copy_rows(spare, deep, K, k_row, rows, (rows + TILE - 1) / TILE * TILE, WIDTH, 0);
    K = spare, k_row = deep;
  }
  pair_product<false>(S, LANES, K, k_row, queries, LANES, rows, LANES, depth, fetch);
}

// Pairs of columns of rows of queries and heads (`row_at`): dst[c / 2][r] for r < rows, bits of `flip` exchanged; zeros in
// lanes past `rows`, and for columns up to `padded`.
template <int HEADS>
NSA_INLINE void pack_pairs(uint32_t *dst, int lanes, const uint16_t *src, int64_t query, int64_t head, int rows, int width,
                           int padded, uint32_t flip) {
  lay_rows<HEADS, 2>(
      dst, lanes, src, query, head, rows, width,
      [=](const uint16_t *p) __attribute__((always_inline)) { return (vf)((vu)load((const float *)p) ^ flip); },
      [=](const uint16_t *row, int c) __attribute__((always_inline)) { return pair_of(row, c, width) ^ flip; });
  for (int p = 0; p < padded / 2; p++)
    for (int i = 2 * p < width ? rows : 0; i < lanes; i++)
      dst[p * lanes + i] = 0;
}

// Pairs of rows of queries and heads (`row_at`): dst[r / 2][c] for r < rows and c < width, bits of `flip` exchanged; zeros up
// to `padded` rows and `ld` columns.
template <int HEADS>
NSA_INLINE void pair_rows(uint32_t *dst, int ld, const void *src, int64_t query, int64_t head, int rows, int padded,
                          int width, uint32_t flip) {
  for (int r = 0; r < rows; r += 2) {
    const uint16_t *first = (const uint16_t *)src + row_at<HEADS>(r, query, head);
    const uint16_t *second = r + 1 < rows ? (const uint16_t *)src + row_at<HEADS>(r + 1, query, head) : first;
    uint32_t *to = dst + r / 2 * ld, kept = r + 1 < rows ? 0xffffffffu : 0xffffu;
    int c = 0;
    for (; c + W <= width; c += W)
      store_pairs(to + c, (pair_vectors(first + c, second + c) ^ flip) & kept);
    for (; c < width; c++)
      to[c] = ((first[c] | (uint32_t)second[c] << 16) ^ flip) & kept;
    for (; c < ld; c++)
      to[c] = 0;
  }
  clear_pairs(dst, ld, rows, padded);
}

// dst[c][r] = src[r * stride + c] for r < rows and c < WIDTH; zeros up to `padded` rows, a multiple of DEEP, and for columns up
// to a multiple of TILE.
template <int WIDTH>
NSA_INLINE void transpose_rows(uint16_t *dst, int ld, const uint16_t *src, int64_t stride, int rows, int padded) {
  alignas(64) static const uint16_t none[WIDTH] = {};
  for (int r = 0; r < padded; r += 2 * W) {
    const uint16_t *row[2 * W];
    NSA_UNROLL for (int i = 0; i < 2 * W; i++) row[i] = r + i < rows ? src + (r + i) * stride : none;
    int c = 0;
    for (; c + W <= WIDTH; c += W) {
      vf x[W];
      NSA_UNROLL for (int i = 0; i < W; i++) x[i] = (vf)pair_vectors(row[2 * i] + c, row[2 * i + 1] + c);
      transpose(x);
      NSA_UNROLL for (int i = 0; i < W; i++) store((float *)(dst + (c + i) * ld + r), x[i]);
    }
    for (; c < WIDTH; c++)
      for (int i = 0; i < 2 * W; i++)
        dst[c * ld + r + i] = row[i][c];
    for (; c % TILE; c++)
      memset(dst + c * ld + r, 0, sizeof(uint16_t) * 2 * W);
  }
}

} // namespace nsa

// Softmax over scores made by products over pairs, whose weights become bfloat16 in pairs or rows; and its backward.
namespace nsa {

// Scores are units * (q . k) in log2 units, units > 0: what is left of the sign of `scale` goes into the queries.
NSA_INLINE float pair_units(float scale) {
  float units = log2_units(scale < 0 ? -scale : scale);
  return units < 1.2e-38f ? 1.2e-38f : units; // so that -inf times it is -inf
}
NSA_INLINE uint32_t pair_flip(float scale) { return scale < 0 ? 0x80008000u : 0; }

#if defined(__AVX512BF16__) && NSA_VECTOR_BYTES == 64
// Two vectors rounded to bfloat16, the first one's numbers before the second one's.
NSA_INLINE vw rounded_both(vf first, vf second) {
  vw both;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(first), "v"(second));
  return both;
}
#endif

// The same, a number of each side by side: to nearest, ties to even; NaN stays NaN.
NSA_INLINE vu rounded_pairs(vf first, vf second) {
#if defined(__AVX512BF16__) && NSA_VECTOR_BYTES == 64
  return (vu)interleaved(rounded_both(first, second));
#else
  return bf16::rounded(first) >> 16 | (bf16::rounded(second) & 0xffff0000u);
#endif
}

// V vectors rounded to bfloat16, one behind the other.
template <int V> NSA_INLINE void store_rounded(uint16_t *p, const vf *x) {
#if defined(__AVX512BF16__) && NSA_VECTOR_BYTES == 64
  if constexpr (V % 2 == 0) {
    NSA_UNROLL for (int v = 0; v < V; v += 2) store_pairs((uint32_t *)(p + v * W), (vu)rounded_both(x[v], x[v + 1]));
    return;
  }
#endif
  NSA_UNROLL for (int v = 0; v < V; v++) bf16::store(p + v * W, x[v]);
}

// A maximum that scores pass by less than 2^LAG stays: what was summed so far need not be rescaled then.
constexpr float LAG = 8.0f;

// `softmax_step` over scores that lack `units`, but m may lag; the weights become pairs of keys P[j / 2][lane], of which those
// from `rows` to `padded` are zeros. With KEPT they are in S as well.
template <int LANES, bool KEPT>
NSA_INLINE void softmax_step_pairs(float *S, uint32_t *P, int rows, int padded, float units, float *m, float *l,
                                   float *alpha) {
  auto keep = [=](int j, int lane, vf first, vf second, bool two) __attribute__((always_inline)) {
    store_pairs(P + j / 2 * LANES + lane, rounded_pairs(first, second));
    if (KEPT)
      store(S + j * LANES + lane, first);
    if (KEPT && two)
      store(S + (j + 1) * LANES + lane, second);
  };
  softmax_lanes<LANES, at_a_time(LANES)>(S, rows, units, LAG, m, l, alpha, keep);
  clear_pairs(P, LANES, rows, padded);
}

// O[rows][LANES] *= alpha per lane; nothing where that is 1, as it mostly is.
template <int LANES> NSA_INLINE void rescale_lanes(float *O, int rows, const float *alpha) {
  for (int lane = 0; lane < LANES; lane += W) {
    vf factor = load(alpha + lane);
    vi moved = factor != 1.0f;
    if (total((vf)(moved & (vi)splat(1.0f))) == 0.0f)
      continue;
    for (int r = 0; r < rows; r++)
      store(O + r * LANES + lane, load(O + r * LANES + lane) * factor);
  }
}

// O[rows][LANES] = alpha * O + A[rows][depth] * P[depth][LANES], P in pairs, in tiles as those of `pair_product`.
template <int LANES, typename Fetch = NoLines>
NSA_INLINE void rescaled_product(float *O, const uint16_t *A, int64_t a_row, const uint32_t *P, int rows, int depth,
                                 const float *alpha, Fetch fetch = {}) {
  rescale_lanes<LANES>(O, rows, alpha);
  pair_product<true>(O, LANES, A, a_row, P, LANES, rows, LANES, depth, fetch);
}

// `softmax_pieces` over scores that lack `units`; the weights are bfloat16 in the first halves of the pieces, and zeros up to
// a multiple of DEEP.
template <int N, int V = at_a_time(N)>
NSA_INLINE void softmax_pieces_pairs(float *S, const int32_t *places, int count, int64_t stride, float units, float *m,
                                     float *l) {
  vf sums[V] = {};
  vf top = splat(greatest_of_pieces<N, V>(S, places, count, stride) * units), safe = select(top == -INFINITY, vf{}, top);
  for (int i = 0; i < count; i++) {
    float *piece = S + places[i] * stride;
    for (int x = 0; x < N; x += V * W) {
      vf p[V];
      NSA_UNROLL for (int v = 0; v < V; v++) {
        p[v] = exp2(load(piece + x + v * W) * units - safe);
        sums[v] += p[v];
      }
      store_rounded<V>((uint16_t *)piece + x, p);
    }
    if constexpr (N % DEEP != 0)
      memset((uint16_t *)piece + N, 0, sizeof(uint16_t) * (DEEP - N % DEEP));
  }
  for (int v = 1; v < V; v++)
    sums[0] += sums[v];
  *m = top[0];
  *l = total(sums[0]);
}

// `to_scores` for products over pairs of keys and of queries: gradients of scores become pairs of keys dS[j / 2][lane] and rows
// of bfloat16 ds[j][lane], and weights times gate rows pv[j][lane]; rows are `ld` apart. Zeros from `rows` to `padded`.
template <int LANES, int V = LANES / W % 2 == 0 ? 2 : 1>
NSA_INLINE void to_scores_pairs(uint32_t *dS, uint16_t *ds, uint16_t *pv, int ld, const float *dp, const float *p, int rows,
                                int padded, const float *gate, const float *delta, const float *dlse) {
  for (int lane = 0; lane < LANES; lane += V * W) {
    vf factor[V], mean[V], added[V];
    NSA_UNROLL for (int v = 0; v < V; v++) {
      factor[v] = load(gate + lane + v * W);
      mean[v] = load(delta + lane + v * W);
      added[v] = load(dlse + lane + v * W);
    }
    for (int j = 0; j < rows; j += 2) {
      vf grads[2][V] = {}, weights[V];
      for (int i = 0; i < 2 && j + i < rows; i++) {
        NSA_UNROLL for (int v = 0; v < V; v++) {
          int at = (j + i) * LANES + lane + v * W;
          vf weight = load(p + at);
          weights[v] = weight * factor[v];
          grads[i][v] = weight * (factor[v] * (load(dp + at) - mean[v]) + added[v]);
        }
        store_rounded<V>(ds + (j + i) * ld + lane, grads[i]);
        store_rounded<V>(pv + (j + i) * ld + lane, weights);
      }
      NSA_UNROLL for (int v = 0; v < V; v++)
        store_pairs(dS + j / 2 * LANES + lane + v * W, rounded_pairs(grads[0][v], grads[1][v]));
    }
  }
  clear_pairs(dS, LANES, rows, padded);
  memset(ds + rows * ld, 0, sizeof(uint16_t) * (padded - rows) * ld);
  memset(pv + rows * ld, 0, sizeof(uint16_t) * (padded - rows) * ld);
}

// `to_scores_row` for the `heads` rows of N keys of each of `many` members, whose gates, deltas and dlses are those of row
// members[i] * heads + head: gradients of scores, times `units`, become rows of bfloat16 ds[row][N], `ld` apart, and
// pairs of rows dS[row / 2][N], and weights times gate pairs of rows pv[row / 2][N]; pairs are zeros up to `padded` rows.
template <int N, int V = N / W % 2 == 0 ? 2 : 1>
NSA_INLINE void to_scores_pair_rows(uint16_t *ds, int ld, uint32_t *dS, uint32_t *pv, const float *dp,
                                    const float *p, const int32_t *members, int many, int heads, int padded, float units,
                                    const float *gate, const float *delta, const float *dlse) {
  int rows = many * heads;
  for (int r = 0; r < rows; r += 2)
    for (int c = 0; c < N; c += V * W) {
      vf grads[2][V] = {}, weights[2][V] = {};
      for (int i = 0; i < 2 && r + i < rows; i++) {
        int from = members[(r + i) / heads] * heads + (r + i) % heads;
        vf factor = splat(gate[from]), mean = splat(delta[from]), added = splat(dlse[from]);
        NSA_UNROLL for (int v = 0; v < V; v++) {
          int at = (r + i) * N + c + v * W;
          vf weight = load(p + at);
          weights[i][v] = weight * factor;
          grads[i][v] = weight * units * (factor * (load(dp + at) - mean) + added);
        }
        store_rounded<V>(ds + (r + i) * ld + c, grads[i]);
      }
      NSA_UNROLL for (int v = 0; v < V; v++) {
        store_pairs(dS + r / 2 * N + c + v * W, rounded_pairs(grads[0][v], grads[1][v]));
        store_pairs(pv + r / 2 * N + c + v * W, rounded_pairs(weights[0][v], weights[1][v]));
      }
    }
  clear_pairs(dS, N, rows, padded);
  clear_pairs(pv, N, rows, padded);
}

} // namespace nsa

static int32_t gather_attention_runs_kernel(int32_t* block_indices, float* dlse, uint16_t* dout, uint16_t* dq, float* gates, float* grad_gates, uint32_t* k_columns, uint32_t* k_rows, float* kept, float* lse, int32_t* marks, float* parts_k, float* parts_v, uint16_t* q, uint32_t* v_columns, int32_t blocks, int32_t column, int32_t gate_step, int32_t kv_heads, int32_t length, int32_t paths, int32_t q_start, int32_t reach, int32_t run, int32_t runs, float scale, int32_t task_hi, int32_t task_lo, int32_t tokens, int32_t worker) {
  uint16_t ds[4608];
  int32_t b[1];
  int32_t h[1];
  int32_t index[1];
  int32_t to_key[1];
  int32_t stop[1];
  int32_t t0[1];
  int32_t taken[1];
  int32_t limits[128];
  int32_t listed[1024];
  int32_t begins[1025];
  int32_t members[1024];
  int32_t places[1024];
  int32_t counts[128];
  int32_t found[1];
  uint32_t q_up[2304];
  uint32_t do_up[2304];
  float state[640];
  float dq_up[4096];
  int32_t j[1];
  int32_t after[1];
  int32_t first[1];
  int32_t many[1];
  uint32_t q_rows[2304];
  uint32_t do_rows[2304];
  int32_t seen[1];
  int32_t member[1];
  uint32_t ds_pairs[1024];
  uint32_t p_pairs[1024];
  float dq_rows[4608];
  uint32_t q_pairs[2048];
  uint32_t across[1024];
  uint32_t do_pairs[2048];
  nsa::fill_rows((&(marks[((((int64_t)worker) * ((int64_t)blocks)) * (int64_t)2)])), blocks, 2);
  nsa::fill_rows(ds, 144, 16);
  nsa::open_tiles();
  for (int32_t task = task_lo; task < task_hi; ++task) {
    b[0] = ((task / runs) / kv_heads);
    h[0] = ((task / runs) % kv_heads);
    index[0] = ((runs - (task % runs)) - 1);
    int32_t v_ = (index[0] + 1) * run;
    int32_t v__1 = ((v_) < (tokens) ? (v_) : (tokens)) + q_start;
    int32_t v__2 = (v__1) < (length) ? (v__1) : (length);
    int32_t _tmp = ((0) > (v__2) ? (0) : (v__2));
    to_key[0] = _tmp;
    nsa::fill_rows((&(parts_k[((((((((int64_t)b[(int64_t)0]) * ((int64_t)reach)) * ((int64_t)runs)) * ((int64_t)kv_heads)) * (int64_t)32) + (((((int64_t)h[(int64_t)0]) * ((int64_t)reach)) * ((int64_t)runs)) * (int64_t)32)) + ((((int64_t)index[(int64_t)0]) * ((int64_t)reach)) * (int64_t)32))])), to_key[0], 32);
    nsa::fill_rows((&(parts_v[((((((((int64_t)b[(int64_t)0]) * ((int64_t)reach)) * ((int64_t)runs)) * ((int64_t)kv_heads)) * (int64_t)32) + (((((int64_t)h[(int64_t)0]) * ((int64_t)reach)) * ((int64_t)runs)) * (int64_t)32)) + ((((int64_t)index[(int64_t)0]) * ((int64_t)reach)) * (int64_t)32))])), to_key[0], 32);
    stop[0] = ((v_) < (tokens) ? (v_) : (tokens));
    for (int32_t step = 0; step < (((stop[0] + 127) - (index[0] * run)) >> 7); ++step) {
      t0[0] = ((step * 128) + (index[0] * run));
      int32_t v__3 = stop[0] - t0[0];
      taken[0] = ((128) < (v__3) ? (128) : (v__3));
      for (int32_t i = 0; i < taken[0]; ++i) {
        int32_t v__4 = ((q_start + t0[0]) + i) + 1;
        limits[i] = ((((length) < (v__4) ? (length) : (v__4)) + 15) >> 4);
      }
      found[0] = nsa::group_blocks(listed, begins, members, places, counts, (&(marks[((((int64_t)worker) * ((int64_t)blocks)) * (int64_t)2)])), (&(block_indices[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)8) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)8)) + (((int64_t)h[(int64_t)0]) * (int64_t)8))])), (((int64_t)kv_heads) * (int64_t)8), limits, taken[0], 8);
      int32_t taken_1 = taken[0];
      int32_t b_1 = b[0];
      int32_t t0_1 = t0[0];
      int32_t h_1 = h[0];
      for (int32_t i_1 = 0; i_1 < taken_1; ++i_1) {
        uint32_t flip = nsa::pair_flip(scale);
        nsa::copy_rows((&(q_up[(((int64_t)i_1) * (int64_t)16)])), 32, (&(q[(((((((int64_t)b_1) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + (((((int64_t)t0_1) + ((int64_t)i_1)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h_1) * (int64_t)32))])), (int64_t)32, 1, 1, 32, flip);
        nsa::copy_rows((&(do_up[(((int64_t)i_1) * (int64_t)16)])), 32, (&(dout[(((((((int64_t)b_1) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + (((((int64_t)t0_1) + ((int64_t)i_1)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h_1) * (int64_t)32))])), (int64_t)32, 1, 1, 32, (uint32_t)0);
        state[i_1] = INFINITY;
        state[(((int64_t)i_1) + (int64_t)128)] = 0.000000e+00f;
        state[(((int64_t)i_1) + (int64_t)256)] = 0.000000e+00f;
        state[(((int64_t)i_1) + (int64_t)384)] = 0.000000e+00f;
        state[(((int64_t)i_1) + (int64_t)512)] = 0.000000e+00f;
        state[(((int64_t)i_1) + (int64_t)384)] = gates[((((((((((int64_t)b_1) * ((int64_t)tokens)) + ((int64_t)t0_1)) + ((int64_t)i_1)) * ((int64_t)kv_heads)) + ((int64_t)h_1)) * ((int64_t)gate_step)) * ((int64_t)paths)) + ((int64_t)column))];
        state[(((int64_t)i_1) + (int64_t)512)] = dlse[((((((int64_t)b_1) * ((int64_t)kv_heads)) * ((int64_t)tokens)) + ((((int64_t)t0_1) + ((int64_t)i_1)) * ((int64_t)kv_heads))) + ((int64_t)h_1))];
        state[i_1] = nsa::log2_of(lse[((((((int64_t)b_1) * ((int64_t)kv_heads)) * ((int64_t)tokens)) + ((((int64_t)t0_1) + ((int64_t)i_1)) * ((int64_t)kv_heads))) + ((int64_t)h_1))]);
      }
      nsa::fill_rows(dq_up, taken[0], 32);
      for (int32_t u = 0; u < found[0]; ++u) {
        j[0] = listed[u];
        int64_t v__5 = ((int64_t)u) + (int64_t)1;
        int64_t v__6 = ((int64_t)found[(int64_t)0]) - (int64_t)1;
        after[0] = listed[((v__5) < (v__6) ? (v__5) : (v__6))];
        first[0] = begins[u];
        many[0] = (begins[(((int64_t)u) + (int64_t)1)] - first[0]);
        int32_t first_1 = first[0];
        int32_t many_1 = many[0];
        nsa::pair_product<false>((&(kept[((((int64_t)worker) * (int64_t)33248) + (((int64_t)first[(int64_t)0]) * (int64_t)16))])), 16, nsa::member_rows(q_rows, q_up, (&(members[((int64_t)first_1)])), many_1, 16), (int64_t)32, (&(k_columns[(((((((int64_t)b[(int64_t)0]) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)256) + ((((int64_t)h[(int64_t)0]) * ((int64_t)blocks)) * (int64_t)256)) + (((int64_t)j[(int64_t)0]) * (int64_t)256))])), 16, many_1, 16, 32);
        int32_t first_2 = first[0];
        int32_t many_2 = many[0];
        nsa::pair_product<false>((&(kept[(((((int64_t)worker) * (int64_t)33248) + (((int64_t)first[(int64_t)0]) * (int64_t)16)) + (int64_t)16624)])), 16, nsa::member_rows(do_rows, do_up, (&(members[((int64_t)first_2)])), many_2, 16), (int64_t)32, (&(v_columns[(((((((int64_t)b[(int64_t)0]) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)256) + ((((int64_t)h[(int64_t)0]) * ((int64_t)blocks)) * (int64_t)256)) + (((int64_t)j[(int64_t)0]) * (int64_t)256))])), 16, many_2, 16, 32);
        for (int32_t x = 0; x < many[0]; ++x) {
          member[0] = members[(((int64_t)first[(int64_t)0]) + ((int64_t)x))];
          int32_t v__7 = ((q_start + t0[0]) + member[0]) + 1;
          int32_t v__8 = ((length) < (v__7) ? (length) : (v__7)) - (j[0] * 16);
          seen[0] = ((16) < (v__8) ? (16) : (v__8));
          for (int32_t lane = seen[0]; lane < 16; ++lane) {
            kept[((((((int64_t)worker) * (int64_t)33248) + (((int64_t)first[(int64_t)0]) * (int64_t)16)) + (((int64_t)x) * (int64_t)16)) + ((int64_t)lane))] = -INFINITY;
          }
          int32_t row = member[0];
          nsa::weigh_row((&(kept[(((((int64_t)worker) * (int64_t)33248) + (((int64_t)first[(int64_t)0]) * (int64_t)16)) + (((int64_t)x) * (int64_t)16))])), (&(kept[((((((int64_t)worker) * (int64_t)33248) + (((int64_t)first[(int64_t)0]) * (int64_t)16)) + (((int64_t)x) * (int64_t)16)) + (int64_t)16624)])), 16, nsa::pair_units(scale), state[((int64_t)row)], (&(state[(((int64_t)row) + (int64_t)128)])), (&(state[(((int64_t)row) + (int64_t)256)])));
        }
      }
      int32_t taken_2 = taken[0];
      int32_t b_2 = b[0];
      int32_t t0_2 = t0[0];
      int32_t h_2 = h[0];
      for (int32_t i_2 = 0; i_2 < taken_2; ++i_2) {
        state[(((int64_t)i_2) + (int64_t)128)] = nsa::inverse(state[(((int64_t)i_2) + (int64_t)128)]);
        state[(((int64_t)i_2) + (int64_t)256)] = (state[(((int64_t)i_2) + (int64_t)256)] * state[(((int64_t)i_2) + (int64_t)128)]);
        state[(((int64_t)i_2) + (int64_t)384)] = (state[(((int64_t)i_2) + (int64_t)384)] * state[(((int64_t)i_2) + (int64_t)128)]);
        state[(((int64_t)i_2) + (int64_t)512)] = (state[(((int64_t)i_2) + (int64_t)512)] * state[(((int64_t)i_2) + (int64_t)128)]);
        grad_gates[((((((((int64_t)b_2) * ((int64_t)paths)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) + (((((int64_t)t0_2) + ((int64_t)i_2)) * ((int64_t)paths)) * ((int64_t)kv_heads))) + (((int64_t)h_2) * ((int64_t)paths))) + ((int64_t)column))] = state[(((int64_t)i_2) + (int64_t)256)];
      }
      for (int32_t u_1 = 0; u_1 < found[0]; ++u_1) {
        j[0] = listed[u_1];
        int64_t v__9 = ((int64_t)u_1) + (int64_t)1;
        int64_t v__10 = ((int64_t)found[(int64_t)0]) - (int64_t)1;
        after[0] = listed[((v__9) < (v__10) ? (v__9) : (v__10))];
        first[0] = begins[u_1];
        many[0] = (begins[(((int64_t)u_1) + (int64_t)1)] - first[0]);
        int32_t v__11 = ((q_start + t0[0]) + members[((((int64_t)first[(int64_t)0]) + ((int64_t)many[(int64_t)0])) - (int64_t)1)]) + 1;
        int32_t v__12 = ((length) < (v__11) ? (length) : (v__11)) - (j[0] * 16);
        seen[0] = ((16) < (v__12) ? (16) : (v__12));
        nsa::to_scores_pair_rows<16>(ds, 32, ds_pairs, p_pairs, (&(kept[(((((int64_t)worker) * (int64_t)33248) + (((int64_t)first[(int64_t)0]) * (int64_t)16)) + (int64_t)16624)])), (&(kept[((((int64_t)worker) * (int64_t)33248) + (((int64_t)first[(int64_t)0]) * (int64_t)16))])), (&(members[first[(int64_t)0]])), many[0], 1, (((many[0] + 31) >> 5) * 32), nsa::log2_units(scale), (&(state[384])), (&(state[256])), (&(state[512])));
        int32_t first_3 = first[0];
        int32_t many_3 = many[0];
        int32_t seen_1 = seen[0];
        nsa::pair_product<false>(dq_rows, 32, (&(ds[0])), (int64_t)32, (&(k_rows[(((((((int64_t)b[(int64_t)0]) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)512) + ((((int64_t)h[(int64_t)0]) * ((int64_t)blocks)) * (int64_t)512)) + (((int64_t)j[(int64_t)0]) * (int64_t)512))])), 32, many_3, 32, (((seen_1 + 31) >> 5) * 32));
        nsa::add_members(dq_up, dq_rows, (&(members[((int64_t)first_3)])), many_3, 32);
        int32_t b_3 = b[0];
        int32_t h_3 = h[0];
        int32_t index_1 = index[0];
        int32_t j_1 = j[0];
        int32_t after_1 = after[0];
        int32_t first_4 = first[0];
        int32_t many_4 = many[0];
        int32_t seen_2 = seen[0];
        uint32_t flip_1 = nsa::pair_flip(scale);
        nsa::pair_rows<1>(q_pairs, 32, nsa::member_rows(q_rows, q_up, (&(members[((int64_t)first_4)])), many_4, 16), (int64_t)32, (int64_t)0, many_4, (((many_4 + 31) >> 5) * 32), 32, flip_1);
        nsa::add_across((&(parts_k[((((((int64_t)j_1) * (int64_t)512) + ((((((int64_t)b_3) * ((int64_t)reach)) * ((int64_t)runs)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((((int64_t)h_3) * ((int64_t)reach)) * ((int64_t)runs)) * (int64_t)32)) + ((((int64_t)index_1) * ((int64_t)reach)) * (int64_t)32))])), 32, ds_pairs, 16, across, q_pairs, 32, seen_2, 32, (((many_4 + 31) >> 5) * 32), nsa::lines<nsa::f32, true>((&(parts_k[((((((int64_t)after_1) * (int64_t)512) + ((((((int64_t)b_3) * ((int64_t)reach)) * ((int64_t)runs)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((((int64_t)h_3) * ((int64_t)reach)) * ((int64_t)runs)) * (int64_t)32)) + ((((int64_t)index_1) * ((int64_t)reach)) * (int64_t)32))])), (int64_t)0, 0, 1, 512, 0, 1));
        int32_t b_4 = b[0];
        int32_t h_4 = h[0];
        int32_t index_2 = index[0];
        int32_t j_2 = j[0];
        int32_t after_2 = after[0];
        int32_t first_5 = first[0];
        int32_t many_5 = many[0];
        int32_t seen_3 = seen[0];
        nsa::pair_rows<1>(do_pairs, 32, nsa::member_rows(do_rows, do_up, (&(members[((int64_t)first_5)])), many_5, 16), (int64_t)32, (int64_t)0, many_5, (((many_5 + 31) >> 5) * 32), 32, (uint32_t)0);
        nsa::add_across((&(parts_v[((((((int64_t)j_2) * (int64_t)512) + ((((((int64_t)b_4) * ((int64_t)reach)) * ((int64_t)runs)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((((int64_t)h_4) * ((int64_t)reach)) * ((int64_t)runs)) * (int64_t)32)) + ((((int64_t)index_2) * ((int64_t)reach)) * (int64_t)32))])), 32, p_pairs, 16, across, do_pairs, 32, seen_3, 32, (((many_5 + 31) >> 5) * 32), nsa::lines<nsa::f32, true>((&(parts_v[((((((int64_t)after_2) * (int64_t)512) + ((((((int64_t)b_4) * ((int64_t)reach)) * ((int64_t)runs)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((((int64_t)h_4) * ((int64_t)reach)) * ((int64_t)runs)) * (int64_t)32)) + ((((int64_t)index_2) * ((int64_t)reach)) * (int64_t)32))])), (int64_t)0, 0, 1, 512, 0, 1));
      }
      for (int32_t i_3 = 0; i_3 < taken[0]; ++i_3) {
        nsa::scale_row((&(dq_up[(((int64_t)i_3) * (int64_t)32)])), 6.931472e-01f, 32);
        if (0 < column) {
          nsa::add_row<nsa::bf16>((&(dq_up[(((int64_t)i_3) * (int64_t)32)])), (&(dq[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + (((((int64_t)t0[(int64_t)0]) + ((int64_t)i_3)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32))])), 32);
        }
        nsa::down_row<nsa::bf16>((&(dq[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + (((((int64_t)t0[(int64_t)0]) + ((int64_t)i_3)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32))])), (&(dq_up[(((int64_t)i_3) * (int64_t)32)])), 32, 1.000000e+00f);
      }
    }
  }
  nsa::close_tiles();
  return 0;
}

// Entry: independent tasks over the threads of the pool; the arguments are what the tasks read and write.
typedef int32_t (*nsa_task_fn)(void *context, int32_t lo, int32_t hi, int32_t worker);
typedef int32_t (*nsa_parallel_fn)(nsa_task_fn task, void *context, int32_t tasks, int32_t threads);
union nsa_value { void *pointer; int32_t int32; float float32; };
static int32_t nsa_task(void *context, int32_t task_lo, int32_t task_hi, int32_t worker) {
  const nsa_value *a = (const nsa_value *)context;
  (void)worker;
  int32_t* block_indices = (int32_t*)a[0].pointer;
  float* dlse = (float*)a[1].pointer;
  uint16_t* dout = (uint16_t*)a[2].pointer;
  uint16_t* dq = (uint16_t*)a[3].pointer;
  float* gates = (float*)a[4].pointer;
  float* grad_gates = (float*)a[5].pointer;
  uint32_t* k_columns = (uint32_t*)a[6].pointer;
  uint32_t* k_rows = (uint32_t*)a[7].pointer;
  float* kept = (float*)a[8].pointer;
  float* lse = (float*)a[9].pointer;
  int32_t* marks = (int32_t*)a[10].pointer;
  float* parts_k = (float*)a[11].pointer;
  float* parts_v = (float*)a[12].pointer;
  uint16_t* q = (uint16_t*)a[13].pointer;
  uint32_t* v_columns = (uint32_t*)a[14].pointer;
  int32_t blocks = a[15].int32;
  int32_t column = a[16].int32;
  int32_t gate_step = a[17].int32;
  int32_t kv_heads = a[18].int32;
  int32_t length = a[19].int32;
  int32_t paths = a[20].int32;
  int32_t q_start = a[21].int32;
  int32_t reach = a[22].int32;
  int32_t run = a[23].int32;
  int32_t runs = a[24].int32;
  float scale = a[25].float32;
  int32_t tokens = a[26].int32;
  return gather_attention_runs_kernel(block_indices, dlse, dout, dq, gates, grad_gates, k_columns, k_rows, kept, lse, marks, parts_k, parts_v, q, v_columns, blocks, column, gate_step, kv_heads, length, paths, q_start, reach, run, runs, scale, task_hi, task_lo, tokens, worker);
}
extern "C" int32_t nsa_gather_attention_runs(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, const nsa_value *arguments) {
  return parallel(nsa_task, (void *)arguments, tasks, threads);
}
