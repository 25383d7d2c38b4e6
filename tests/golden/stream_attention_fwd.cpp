// stream_attention_fwd(float32, dk=32, dv=32, group=1) in [t-63, t+1)
// schedule query_lanes=64 key_tile=64 register_rows=4 register_vectors=4
// target x86_64_v4 (cpu, 512-bit vectors, 32 registers)
// emitted by TileLang 0.1.15
// NSA_MAX_SELECTED 1, then templates/cpu/tile

static int32_t stream_attention_kernel(float* k, float* lse, float* out, float* q, float* v, int32_t batch, int32_t keys, int32_t kv_heads, int32_t q_start, float scale, int32_t task_hi, int32_t task_lo, int32_t together, int32_t tokens) {
  int32_t from_tile[1];
  int32_t to_tile[1];
  int32_t b[1];
  int32_t h[1];
  int32_t t0[1];
  int32_t chunk[1];
  int32_t filled[1];
  float q_t[2048];
  int32_t lo[64];
  int32_t hi[64];
  float top[64];
  float total[64];
  float o_t[2048];
  int32_t end[1];
  int32_t begin[1];
  int32_t j0[1];
  int32_t rows[1];
  float s[4096];
  float alpha[64];
  from_tile[0] = (task_lo * together);
  int32_t v_ = task_hi * together;
  int32_t v__1 = (batch * kv_heads) * ((tokens + 63) >> 6);
  to_tile[0] = ((v_) < (v__1) ? (v_) : (v__1));
  for (int32_t index = from_tile[0]; index < to_tile[0]; ++index) {
    b[0] = (index / (((tokens + 63) >> 6) * kv_heads));
    h[0] = ((index / ((tokens + 63) >> 6)) % kv_heads);
    t0[0] = ((index % ((tokens + 63) >> 6)) * 64);
    chunk[0] = 0;
    int32_t first = (q_start + t0[0]);
    int32_t v__2 = t0[0] + 64;
    int32_t last = ((((v__2) < (tokens) ? (v__2) : (tokens)) + q_start) - 1);
    int32_t v__3 = tokens - t0[0];
    filled[0] = ((64) < (v__3) ? (64) : (v__3));
    nsa::pack_lanes<nsa::f32, 1>(q_t, 64, (&(q[((((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32)) + (((int64_t)chunk[(int64_t)0]) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), 32, filled[0], 32, nsa::log2_units(scale));
    int32_t filled_1 = filled[0];
    int32_t t0_1 = t0[0];
    for (int32_t row = 0; row < 64; ++row) {
      lo[row] = 0;
      hi[row] = 0;
      if (row < filled_1) {
        int32_t v__4 = ((q_start + t0_1) + row) - 63;
        int32_t v__5 = (v__4) < (keys) ? (v__4) : (keys);
        lo[row] = ((0) > (v__5) ? (0) : (v__5));
        int32_t v__6 = ((q_start + t0_1) + row) + 1;
        int32_t v__7 = (v__6) < (keys) ? (v__6) : (keys);
        hi[row] = ((0) > (v__7) ? (0) : (v__7));
      }
    }
    nsa::fill(top, -INFINITY, 64);
    nsa::fill(total, 0.000000e+00f, 64);
    nsa::fill_rows(o_t, 32, 64);
    end[0] = 0;
    int32_t v__8 = end[0];
    int32_t v__9 = first - 63;
    int32_t v__10 = (v__9) < (keys) ? (v__9) : (keys);
    int32_t v__11 = (0) > (v__10) ? (0) : (v__10);
    begin[0] = ((v__8) > (v__11) ? (v__8) : (v__11));
    int32_t v__12 = begin[0];
    int32_t v__13 = last + 1;
    int32_t v__14 = (v__13) < (keys) ? (v__13) : (keys);
    int32_t v__15 = (0) > (v__14) ? (0) : (v__14);
    end[0] = ((v__12) > (v__15) ? (v__12) : (v__15));
    int32_t steps = (((end[0] + 63) - begin[0]) >> 6);
    for (int32_t i = 0; i < steps; ++i) {
      j0[0] = ((i * 64) + begin[0]);
      int32_t v__16 = end[0] - j0[0];
      rows[0] = ((64) < (v__16) ? (64) : (v__16));
      nsa::product<64, 4, 4, nsa::ZERO>(s, 64, (&(k[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)32) + ((((int64_t)j0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), 1, q_t, rows[0], 32, q_t, nsa::lines<nsa::f32, false>((&(q[((((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32)) + (((int64_t)chunk[(int64_t)0]) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), filled[0], filled[0], 32, i, steps));
      if (((j0[0] < 0) || (((j0[0] + 63) < last) && (j0[0] < keys))) || ((0 < (j0[0] + rows[0])) && (((first + 1) < (j0[0] + rows[0])) || (keys < (j0[0] + rows[0]))))) {
        nsa::mask_lanes<64, 1>(s, lo, hi, j0[0], rows[0]);
      }
      nsa::softmax_step<64>(s, rows[0], top, total, alpha);
      nsa::product<64, 4, 4, nsa::RESCALE>(o_t, 64, (&(v[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)32) + ((((int64_t)j0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32))])), 1, (((int64_t)kv_heads) * (int64_t)32), s, 32, rows[0], alpha, nsa::lines<nsa::f32, true>((&(out[((((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32)) + (((int64_t)chunk[(int64_t)0]) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), 0, filled[0], 32, i, steps));
    }
    int32_t filled_2 = filled[0];
    int32_t b_1 = b[0];
    int32_t t0_2 = t0[0];
    int32_t h_1 = h[0];
    int32_t chunk_1 = chunk[0];
    for (int32_t r = 0; r < filled_2; ++r) {
      lse[(((((((int64_t)b_1) * ((int64_t)kv_heads)) * ((int64_t)tokens)) + ((((int64_t)t0_2) + ((int64_t)r)) * ((int64_t)kv_heads))) + ((int64_t)h_1)) + ((int64_t)chunk_1))] = nsa::log_sum_exp(top[r], total[r]);
      total[r] = nsa::inverse(total[r]);
    }
    nsa::unpack_lanes<nsa::f32, 1>((&(out[((((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h[(int64_t)0]) * (int64_t)32)) + (((int64_t)chunk[(int64_t)0]) * (int64_t)32))])), (((int64_t)kv_heads) * (int64_t)32), 32, o_t, 64, filled[0], 32, total);
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
  float* k = (float*)a[0].pointer;
  float* lse = (float*)a[1].pointer;
  float* out = (float*)a[2].pointer;
  float* q = (float*)a[3].pointer;
  float* v = (float*)a[4].pointer;
  int32_t batch = a[5].int32;
  int32_t keys = a[6].int32;
  int32_t kv_heads = a[7].int32;
  int32_t q_start = a[8].int32;
  float scale = a[9].float32;
  int32_t together = a[10].int32;
  int32_t tokens = a[11].int32;
  return stream_attention_kernel(k, lse, out, q, v, batch, keys, kv_heads, q_start, scale, task_hi, task_lo, together, tokens);
}
extern "C" int32_t nsa_stream_attention(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, const nsa_value *arguments) {
  return parallel(nsa_task, (void *)arguments, tasks, threads);
}

