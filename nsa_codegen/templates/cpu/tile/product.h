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
