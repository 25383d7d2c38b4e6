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
