// Products of bfloat16 numbers, summed in float32: by the processor's tiles (AMX) where it has them, else by vectors of pairs
// (`Pairs`). The right side lies in pairs, B[k / 2][column][k % 2], and a pair is carried in 32 bits.
namespace nsa {

constexpr int TILE = 16, DEEP = 32; // rows and columns of a tile of sums, and the numbers that one instruction sums

// `pair_product`: C[rows][columns] = A[rows][depth] * B[depth][columns], or with ADD what C holds and that. Rows of A are a_row
// apart, those of pairs of B ldb; `columns` are a multiple of TILE. It takes ROW_UNIT rows and DEPTH_UNIT numbers at a time:
// C and A have room for `rows` rounded up to that, and `depth` is a multiple.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__) && NSA_VECTOR_BYTES == 64
constexpr int ROW_UNIT = 1, DEPTH_UNIT = 2;
constexpr int64_t CLOSE_ROWS = INT64_MAX;

// Register tiles of 8 rows by 2 vectors: others from 4 by 4 to 14 by 2 took the same time on a Zen 4.
template <bool ADD, typename Fetch = NoLines>
NSA_INLINE void pair_product(float *C, int ldc, const void *A, int64_t a_row, const uint32_t *B, int ldb, int rows,
                             int columns, int depth, Fetch fetch = {}) {
  constexpr int R = 8, V = 2, START = ADD ? nsa::ADD : ZERO;
  const Pairs::held *a = (const Pairs::held *)A, *b = B;
  int c = 0;
  for (; c + V * W <= columns; c += V * W)
    product_rows<Pairs, R, V, START>(C + c, ldc, a, a_row / 2, 1, b + c, ldb, rows, depth / 2, C, fetch);
  for (; c < columns; c += W)
    product_rows<Pairs, R, 1, START>(C + c, ldc, a, a_row / 2, 1, b + c, ldb, rows, depth / 2, C, fetch);
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
  int r = 0;
  for (; r + TILE < rows; r += 2 * TILE)
    pair_columns<2, ADD>(C + r * ldc, ldc, a + r * a_row, a_row, B, ldb, columns, depth, fetch);
  if (r < rows)
    pair_columns<1, ADD>(C + r * ldc, ldc, a + r * a_row, a_row, B, ldb, columns, depth, fetch);
}
#endif

#ifndef __AMX_BF16__
NSA_INLINE void open_tiles() {}
NSA_INLINE void close_tiles() {}
#endif

// Scores are units * (q . k) in log2 units, units > 0: what is left of the sign of `scale` goes into the queries.
NSA_INLINE float pair_units(float scale) {
  float units = log2_units(scale < 0 ? -scale : scale);
  return units < 1.2e-38f ? 1.2e-38f : units; // so that -inf times it is -inf
}
NSA_INLINE uint32_t pair_flip(float scale) { return scale < 0 ? 0x80008000u : 0; }

NSA_INLINE uint32_t pair_of(const uint16_t *row, int c, int width) {
  return row[c] | (c + 1 < width ? (uint32_t)row[c + 1] << 16 : 0);
}
NSA_INLINE vu pair_vectors(const uint16_t *first, const uint16_t *second) {
  return widened(first) | widened(second) << 16;
}
NSA_INLINE void store_pairs(uint32_t *p, vu x) { store((float *)p, (vf)x); }

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
  int r = 0;
  for (; r + W <= rows; r += W) {
    const uint16_t *row[W];
    NSA_UNROLL for (int i = 0; i < W; i++) row[i] = src + row_at<HEADS>(r + i, query, head);
    int c = 0;
    for (; c + 2 * W <= width; c += 2 * W) {
      vf x[W];
      NSA_UNROLL for (int i = 0; i < W; i++) x[i] = load((const float *)(row[i] + c));
      transpose(x);
      NSA_UNROLL for (int i = 0; i < W; i++) store_pairs(dst + (c / 2 + i) * lanes + r, (vu)x[i] ^ flip);
    }
    for (; c < width; c += 2)
      for (int i = 0; i < W; i++)
        dst[c / 2 * lanes + r + i] = pair_of(row[i], c, width) ^ flip;
  }
  for (; r < rows; r++)
    for (int c = 0; c < width; c += 2)
      dst[c / 2 * lanes + r] = pair_of(src + row_at<HEADS>(r, query, head), c, width) ^ flip;
  for (int p = 0; p < padded / 2; p++)
    for (int i = 2 * p < width ? rows : 0; i < lanes; i++)
      dst[p * lanes + i] = 0;
}

// Pairs of rows: dst[r / 2][c] for r < rows and c < width; zeros up to `padded` rows and `ld` columns.
NSA_INLINE void pair_rows(uint32_t *dst, int ld, const uint16_t *src, int64_t stride, int rows, int padded, int width) {
  for (int r = 0; r < rows; r += 2) {
    const uint16_t *first = src + r * stride, *second = r + 1 < rows ? first + stride : first;
    uint32_t *to = dst + r / 2 * ld, kept = r + 1 < rows ? 0xffffffffu : 0xffffu;
    int c = 0;
    for (; c + W <= width; c += W)
      store_pairs(to + c, pair_vectors(first + c, second + c) & kept);
    for (; c < width; c++)
      to[c] = (first[c] | (uint32_t)second[c] << 16) & kept;
    for (; c < ld; c++)
      to[c] = 0;
  }
  int done = (rows + 1) / 2;
  memset(dst + done * ld, 0, sizeof(uint32_t) * (padded / 2 - done) * ld);
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
template <int LANES, bool KEPT, int V = at_a_time(LANES)>
NSA_INLINE void softmax_step_pairs(float *S, uint32_t *P, int rows, int padded, float units, float *m, float *l,
                                   float *alpha) {
  for (int lane = 0; lane < LANES; lane += V * W) {
    vf top[V], safe[V], sum[V];
    NSA_UNROLL for (int v = 0; v < V; v++) top[v] = splat(-INFINITY);
    for (int j = 0; j < rows; j++)
      NSA_UNROLL for (int v = 0; v < V; v++) top[v] = max(load(S + j * LANES + lane + v * W), top[v]);
    NSA_UNROLL for (int v = 0; v < V; v++) {
      vf former = load(m + lane + v * W);
      top[v] = select(top[v] * units > former + LAG, top[v] * units, former);
      safe[v] = select(top[v] == -INFINITY, vf{}, top[v]);
      sum[v] = vf{};
    }
    for (int j = 0; j < rows; j += 2)
      NSA_UNROLL for (int v = 0; v < V; v++) {
        float *s = S + j * LANES + lane + v * W;
        vf first = exp2(load(s) * units - safe[v]), second = vf{};
        if (j + 1 < rows)
          second = exp2(load(s + LANES) * units - safe[v]);
        if constexpr (KEPT) {
          store(s, first);
          if (j + 1 < rows)
            store(s + LANES, second);
        }
        sum[v] += first;
        sum[v] += second;
        store_pairs(P + j / 2 * LANES + lane + v * W, rounded_pairs(first, second));
      }
    NSA_UNROLL for (int v = 0; v < V; v++) {
      int i = lane + v * W;
      vf factor = exp2(load(m + i) - safe[v]);
      store(alpha + i, factor);
      store(l + i, load(l + i) * factor + sum[v]);
      store(m + i, top[v]);
    }
  }
  int done = (rows + 1) / 2;
  memset(P + done * LANES, 0, sizeof(uint32_t) * (padded / 2 - done) * LANES);
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

} // namespace nsa
