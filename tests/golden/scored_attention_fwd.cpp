// scored_attention_fwd(float32, block=8, dk=32, dv=48, group=1, initial=1, kernel=8, local=2, method=compressed, n=4, stride=4)
// schedule query_lanes=64 key_tile=64 register_rows=4 register_vectors=4
// target x86_64_v4 (cpu, 512-bit vectors, 32 registers)
// emitted by TileLang 0.1.15
// NSA_MAX_SELECTED 4, then templates/cpu/tile

static int32_t scored_attention_kernel(int32_t* indices, float* k, float* lse, float* out, float* q, float* scores, float* sums, float* tops, float* v, int32_t blocks, int32_t keys, int32_t kv_heads, int32_t q_start, float scale, int32_t steps, int32_t task_hi, int32_t task_lo, int32_t tokens, int32_t worker) {
  int32_t b[1];
  int32_t h[1];
  int32_t t0[1];
  int32_t end[1];
  int32_t filled[1];
  float q_t[2048];
  float o_t[3072];
  int32_t lo[64];
  int32_t hi[64];
  float top[64];
  float total[64];
  int32_t j0[1];
  int32_t rows[1];
  float s[4096];
  float alpha[64];
  for (int32_t task = task_lo; task < task_hi; ++task) {
    b[0] = (task / (((tokens + 63) >> 6) * kv_heads));
    h[0] = ((task / ((tokens + 63) >> 6)) % kv_heads);
    t0[0] = ((task % ((tokens + 63) >> 6)) * 64);
    int32_t v_ = t0[0] + 64;
    int32_t v__1 = ((((v_) < (tokens) ? (v_) : (tokens)) + q_start) - 4) / 4;
    int32_t v__2 = (v__1) < (keys) ? (v__1) : (keys);
    end[0] = ((0) > (v__2) ? (0) : (v__2));
    nsa::fill((&(scores[((((int64_t)worker) * ((int64_t)blocks)) * (int64_t)64)])), 0.000000e+00f, (blocks * 64));
    int32_t v__3 = tokens - t0[0];
    filled[0] = ((64) < (v__3) ? (64) : (v__3));
    nsa::pack_lanes<nsa::f32, 1>(q_t, 64, (&(q[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), 32, filled[0], 32, nsa::log2_units(scale));
    nsa::fill_rows(o_t, 48, 64);
    int32_t filled_1 = filled[0];
    int32_t t0_1 = t0[0];
    for (int32_t row = 0; row < 64; ++row) {
      lo[row] = 0;
      hi[row] = 0;
      if (row < filled_1) {
        lo[row] = 0;
        int32_t v__4 = (((q_start + t0_1) + row) - 3) / 4;
        int32_t v__5 = (v__4) < (keys) ? (v__4) : (keys);
        hi[row] = ((0) > (v__5) ? (0) : (v__5));
      }
    }
    nsa::fill(top, -INFINITY, 64);
    nsa::fill(total, 0.000000e+00f, 64);
    int32_t tiles = ((end[0] + 63) >> 6);
    for (int32_t i = 0; i < tiles; ++i) {
      j0[0] = (i * 64);
      int32_t v__6 = end[0] - j0[0];
      rows[0] = ((64) < (v__6) ? (64) : (v__6));
      nsa::product<64, 4, 4, nsa::ZERO>(s, 64, (&(k[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)32) + ((((int64_t)j0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), 1, q_t, rows[0], 32, q_t, nsa::lines<nsa::f32, false>((&(q[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), filled[0], filled[0], 32, i, tiles));
      if ((0 < (j0[0] + rows[0])) && (((((q_start + t0[0]) - 3) / 4) < (j0[0] + rows[0])) || (keys < (j0[0] + rows[0])))) {
        nsa::mask_lanes<64, 1>(s, lo, hi, j0[0], rows[0]);
      }
      nsa::softmax_step<64>(s, rows[0], top, total, alpha);
      int32_t rows_1 = rows[0];
      nsa::block_sums<64, 64, 2, 2>((&(sums[((((int64_t)i) * (int64_t)2112) + ((((int64_t)worker) * ((int64_t)steps)) * (int64_t)2112))])), s, rows_1);
      nsa::copy((&(tops[((((int64_t)i) * (int64_t)64) + ((((int64_t)worker) * ((int64_t)steps)) * (int64_t)64))])), top, 64);
      nsa::product<64, 4, 4, nsa::RESCALE>(o_t, 64, (&(v[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)48) + ((((int64_t)j0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)48)) + (((int64_t)h[(int64_t)0]) * (int64_t)48))])), 1, (((int64_t)kv_heads) * (int64_t)48), s, 48, rows[0], alpha, nsa::lines<nsa::f32, true>((&(out[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)48) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)48)) + (((int64_t)h[(int64_t)0]) * (int64_t)48))])), (((int64_t)kv_heads) * (int64_t)48), 0, filled[0], 48, i, tiles));
    }
    int32_t filled_2 = filled[0];
    int32_t b_1 = b[0];
    int32_t t0_2 = t0[0];
    int32_t h_1 = h[0];
    for (int32_t r = 0; r < filled_2; ++r) {
      lse[((((((int64_t)b_1) * ((int64_t)kv_heads)) * ((int64_t)tokens)) + ((((int64_t)t0_2) + ((int64_t)r)) * ((int64_t)kv_heads))) + ((int64_t)h_1))] = nsa::log_sum_exp(top[r], total[r]);
      total[r] = nsa::inverse(total[r]);
    }
    nsa::unpack_lanes<nsa::f32, 1>((&(out[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)48) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)48)) + (((int64_t)h[(int64_t)0]) * (int64_t)48))])), (((int64_t)kv_heads) * (int64_t)48), 48, o_t, 64, filled[0], 48, total);
    for (int32_t i_1 = 0; i_1 < tiles; ++i_1) {
      nsa::rescale<64>((&(tops[((((int64_t)i_1) * (int64_t)64) + ((((int64_t)worker) * ((int64_t)steps)) * (int64_t)64))])), top);
    }
    int32_t v__7 = (tiles * 32) + 1;
    nsa::add_block_scores<64, 1, 64, 32, 33>((&(scores[((((int64_t)worker) * ((int64_t)blocks)) * (int64_t)64)])), ((int64_t)blocks), (&(sums[((((int64_t)worker) * ((int64_t)steps)) * (int64_t)2112)])), (&(tops[((((int64_t)worker) * ((int64_t)steps)) * (int64_t)64)])), total, tiles, ((blocks) < (v__7) ? (blocks) : (v__7)));
    for (int32_t row_1 = 0; row_1 < ((64) < (v__3) ? (64) : (v__3)); ++row_1) {
      int32_t b_2 = b[0];
      int32_t t = (t0[0] + row_1);
      int32_t h_2 = h[0];
      int32_t position = ((q_start + t0[0]) + row_1);
      nsa::select_top((&(indices[(((((((int64_t)b_2) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)4) + ((((int64_t)t) * ((int64_t)kv_heads)) * (int64_t)4)) + (((int64_t)h_2) * (int64_t)4))])), (&(scores[(((((int64_t)worker) * ((int64_t)blocks)) * (int64_t)64) + (((int64_t)row_1) * ((int64_t)blocks)))])), (position / 8), 4, 1, 2);
    }
  }
  return 0;
}

// Entry: independent tasks over the threads of the pool; the arguments are what the tasks read and write.
typedef int32_t (*nsa_task_fn)(void *context, int32_t lo, int32_t hi, int32_t worker);
typedef int32_t (*nsa_parallel_fn)(nsa_task_fn task, void *context, int32_t tasks, int32_t threads);
union nsa_value { void *pointer; int32_t int32; float float32; };
static int32_t nsa_task(void *context, int32_t task_lo, int32_t task_hi, int32_t worker) {
  const nsa_value *a = (const nsa_value *)context;
  (void)worker;
  int32_t* indices = (int32_t*)a[0].pointer;
  float* k = (float*)a[1].pointer;
  float* lse = (float*)a[2].pointer;
  float* out = (float*)a[3].pointer;
  float* q = (float*)a[4].pointer;
  float* scores = (float*)a[5].pointer;
  float* sums = (float*)a[6].pointer;
  float* tops = (float*)a[7].pointer;
  float* v = (float*)a[8].pointer;
  int32_t blocks = a[9].int32;
  int32_t keys = a[10].int32;
  int32_t kv_heads = a[11].int32;
  int32_t q_start = a[12].int32;
  float scale = a[13].float32;
  int32_t steps = a[14].int32;
  int32_t tokens = a[15].int32;
  return scored_attention_kernel(indices, k, lse, out, q, scores, sums, tops, v, blocks, keys, kv_heads, q_start, scale, steps, task_hi, task_lo, tokens, worker);
}
extern "C" int32_t nsa_scored_attention(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, const nsa_value *arguments) {
  return parallel(nsa_task, (void *)arguments, tasks, threads);
}

