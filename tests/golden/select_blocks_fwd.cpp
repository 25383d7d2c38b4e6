// select_blocks_fwd(float32, block=16, dk=32, group=1, initial=0, local=1, method=mean_key, n=8)
// schedule query_lanes=64 key_tile=64 register_rows=4 register_vectors=4
// target x86_64_v4 (cpu, 512-bit vectors, 32 registers)
// emitted by TileLang 0.1.15
// NSA_MAX_SELECTED 8, then templates/cpu/tile

static int32_t select_blocks_kernel(int32_t* indices, float* k, float* q, float* scores, int32_t blocks, int32_t keys, int32_t kv_heads, int32_t q_start, int32_t task_hi, int32_t task_lo, int32_t tokens, int32_t worker) {
  float ones[64];
  int32_t b[1];
  int32_t h[1];
  int32_t t0[1];
  int32_t filled[1];
  float q_t[2048];
  int32_t end[1];
  int32_t j0[1];
  int32_t rows[1];
  float s[4096];
  nsa::fill(ones, 1.000000e+00f, 64);
  for (int32_t task = task_lo; task < task_hi; ++task) {
    b[0] = (task / (((tokens + 63) >> 6) * kv_heads));
    h[0] = ((task / ((tokens + 63) >> 6)) % kv_heads);
    t0[0] = ((task % ((tokens + 63) >> 6)) * 64);
    int32_t v_ = tokens - t0[0];
    filled[0] = ((64) < (v_) ? (64) : (v_));
    int32_t rows_1 = filled[0];
    int32_t b_1 = b[0];
    int32_t t0_1 = t0[0];
    int32_t h_1 = h[0];
    nsa::pack_lanes<nsa::f32, 1>(q_t, 64, (&(q[(((((((int64_t)b_1) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((int64_t)t0_1) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h_1) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), 32, rows_1, 32, 1.000000e+00f);
    int32_t v__1 = t0[0] + 64;
    int32_t v__2 = ((((v__1) < (tokens) ? (v__1) : (tokens)) + q_start) - 1) / 16;
    end[0] = ((keys) < (v__2) ? (keys) : (v__2));
    int32_t passes = ((end[0] + 63) >> 6);
    for (int32_t i = 0; i < passes; ++i) {
      j0[0] = (i * 64);
      int32_t v__3 = end[0] - j0[0];
      rows[0] = ((64) < (v__3) ? (64) : (v__3));
      nsa::product<64, 4, 4, nsa::ZERO>(s, 64, (&(k[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)32) + ((((int64_t)j0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), 1, q_t, rows[0], 32, s, nsa::lines<nsa::f32, false>((&(q[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), filled[0], filled[0], 32, i, passes));
      nsa::unpack_lanes<nsa::f32, 1>((&(scores[(((((int64_t)worker) * ((int64_t)blocks)) * (int64_t)64) + ((int64_t)j0[(int64_t)0]))])), ((int64_t)blocks), 0, s, 64, filled[0], rows[0], ones);
    }
    for (int32_t row = 0; row < ((64) < (v_) ? (64) : (v_)); ++row) {
      int32_t b_2 = b[0];
      int32_t t = (t0[0] + row);
      int32_t h_2 = h[0];
      int32_t position = ((q_start + t0[0]) + row);
      nsa::select_top((&(indices[(((((((int64_t)b_2) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)8) + ((((int64_t)t) * ((int64_t)kv_heads)) * (int64_t)8)) + (((int64_t)h_2) * (int64_t)8))])), (&(scores[(((((int64_t)worker) * ((int64_t)blocks)) * (int64_t)64) + (((int64_t)row) * ((int64_t)blocks)))])), (position / 16), 8, 0, 1);
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
  float* q = (float*)a[2].pointer;
  float* scores = (float*)a[3].pointer;
  int32_t blocks = a[4].int32;
  int32_t keys = a[5].int32;
  int32_t kv_heads = a[6].int32;
  int32_t q_start = a[7].int32;
  int32_t tokens = a[8].int32;
  return select_blocks_kernel(indices, k, q, scores, blocks, keys, kv_heads, q_start, task_hi, task_lo, tokens, worker);
}
extern "C" int32_t nsa_select_blocks(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, const nsa_value *arguments) {
  return parallel(nsa_task, (void *)arguments, tasks, threads);
}

