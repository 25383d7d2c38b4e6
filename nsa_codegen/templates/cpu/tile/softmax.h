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
