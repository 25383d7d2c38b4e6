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
