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
