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
