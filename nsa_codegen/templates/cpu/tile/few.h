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
