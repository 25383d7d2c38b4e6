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
