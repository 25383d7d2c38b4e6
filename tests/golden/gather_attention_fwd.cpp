// gather_attention_fwd(float32, block=16, dk=32, dv=32, group=1, n=8, reach=causal, source=packed)
// schedule query_lanes=64 key_tile=64 register_rows=4 register_vectors=4
// target x86_64_v4 (cpu, 512-bit vectors, 32 registers)
// emitted by TileLang 0.1.15
// NSA_MAX_SELECTED 8, then templates/cpu/tile

static int32_t gather_attention_kernel(int32_t* block_indices, float* k, float* kept, float* lse, int32_t* marks, float* out, float* q, float* v, int32_t blocks, int32_t kv_heads, int32_t length, int32_t q_start, float scale, int32_t task_hi, int32_t task_lo, int32_t tokens, int32_t worker) {
  int32_t b[1];
  int32_t h[1];
  int32_t t0[1];
  int32_t taken[1];
  int32_t limits[64];
  int32_t listed[512];
  int32_t begins[513];
  int32_t members[512];
  int32_t places[512];
  int32_t counts[64];
  int32_t found[1];
  float q_up[2080];
  int32_t j[1];
  int32_t first[1];
  int32_t many[1];
  float rows[2080];
  int32_t seen[1];
  float top[64];
  float total[64];
  float o[2048];
  nsa::fill_rows((&(marks[((((int64_t)worker) * ((int64_t)blocks)) * (int64_t)2)])), blocks, 2);
  for (int32_t task = task_lo; task < task_hi; ++task) {
    b[0] = (task / (((tokens + 63) >> 6) * kv_heads));
    h[0] = ((task / ((tokens + 63) >> 6)) % kv_heads);
    t0[0] = ((task % ((tokens + 63) >> 6)) * 64);
    int32_t v_ = tokens - t0[0];
    taken[0] = ((64) < (v_) ? (64) : (v_));
    for (int32_t i = 0; i < taken[0]; ++i) {
      int32_t v__1 = ((q_start + t0[0]) + i) + 1;
      limits[i] = ((((length) < (v__1) ? (length) : (v__1)) + 15) >> 4);
    }
    found[0] = nsa::group_blocks(listed, begins, members, places, counts, (&(marks[((((int64_t)worker) * ((int64_t)blocks)) * (int64_t)2)])), (&(block_indices[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)8) + ((((int64_t)t0[(int64_t)0]) * ((int64_t)kv_heads)) * (int64_t)8)) + (((int64_t)h[(int64_t)0]) * (int64_t)8))])), (((int64_t)kv_heads) * (int64_t)8), limits, taken[0], 8);
    int32_t taken_1 = taken[0];
    int32_t b_1 = b[0];
    int32_t t0_1 = t0[0];
    int32_t h_1 = h[0];
    for (int32_t i_1 = 0; i_1 < taken_1; ++i_1) {
      nsa::up_row<nsa::f32>((&(q_up[(((int64_t)i_1) * (int64_t)32)])), (&(q[(((((((int64_t)b_1) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + (((((int64_t)t0_1) + ((int64_t)i_1)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h_1) * (int64_t)32))])), 32);
      nsa::scale_row((&(q_up[(((int64_t)i_1) * (int64_t)32)])), nsa::log2_units(scale), 32);
    }
    for (int32_t u = 0; u < found[0]; ++u) {
      j[0] = listed[u];
      first[0] = begins[u];
      many[0] = (begins[(((int64_t)u) + (int64_t)1)] - first[0]);
      int64_t v__2 = ((int64_t)u) + (int64_t)1;
      int64_t v__3 = ((int64_t)found[(int64_t)0]) - (int64_t)1;
      nsa::product<16, 4, 4, nsa::ZERO>((&(kept[((((int64_t)worker) * (int64_t)8192) + (((int64_t)first[(int64_t)0]) * (int64_t)16))])), 16, nsa::member_rows(rows, q_up, (&(members[first[(int64_t)0]])), many[0], 32), 32, 1, (&(k[(((((((int64_t)b[(int64_t)0]) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)512) + ((((int64_t)h[(int64_t)0]) * ((int64_t)blocks)) * (int64_t)512)) + (((int64_t)j[(int64_t)0]) * (int64_t)512))])), many[0], 32, rows, nsa::lines<nsa::f32, false>((&(k[(((((((int64_t)b[(int64_t)0]) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)512) + ((((int64_t)h[(int64_t)0]) * ((int64_t)blocks)) * (int64_t)512)) + (((int64_t)listed[((v__2) < (v__3) ? (v__2) : (v__3))]) * (int64_t)512))])), (int64_t)0, 0, 1, 512, 0, 1));
      if ((length < ((j[0] * 16) + 16)) || (((q_start + t0[0]) + members[first[(int64_t)0]]) < ((j[0] * 16) + 15))) {
        for (int32_t x = 0; x < many[0]; ++x) {
          int32_t v__4 = ((q_start + t0[0]) + members[(((int64_t)first[(int64_t)0]) + ((int64_t)x))]) + 1;
          int32_t v__5 = ((length) < (v__4) ? (length) : (v__4)) - (j[0] * 16);
          seen[0] = ((16) < (v__5) ? (16) : (v__5));
          for (int32_t lane = seen[0]; lane < 16; ++lane) {
            kept[((((((int64_t)worker) * (int64_t)8192) + (((int64_t)first[(int64_t)0]) * (int64_t)16)) + (((int64_t)x) * (int64_t)16)) + ((int64_t)lane))] = -INFINITY;
          }
        }
      }
    }
    first[0] = 0;
    for (int32_t i_2 = 0; i_2 < taken[0]; ++i_2) {
      nsa::softmax_pieces<16>((&(kept[((((int64_t)worker) * (int64_t)8192) + (((int64_t)first[(int64_t)0]) * (int64_t)16))])), (&(places[(((int64_t)i_2) * (int64_t)8)])), counts[i_2], (int64_t)16, (&(top[i_2])), (&(total[i_2])));
    }
    nsa::fill_rows(o, taken[0], 32);
    for (int32_t u_1 = 0; u_1 < found[0]; ++u_1) {
      j[0] = listed[u_1];
      first[0] = begins[u_1];
      many[0] = (begins[(((int64_t)u_1) + (int64_t)1)] - first[0]);
      int32_t v__6 = ((q_start + t0[0]) + members[((((int64_t)first[(int64_t)0]) + ((int64_t)many[(int64_t)0])) - (int64_t)1)]) + 1;
      int32_t v__7 = ((length) < (v__6) ? (length) : (v__6)) - (j[0] * 16);
      seen[0] = ((16) < (v__7) ? (16) : (v__7));
      int64_t v__8 = ((int64_t)u_1) + (int64_t)1;
      int64_t v__9 = ((int64_t)found[(int64_t)0]) - (int64_t)1;
      nsa::product<32, 4, 4, nsa::SUM>(nsa::member_sums(rows, o, (&(members[first[(int64_t)0]])), many[0], 32), 32, (&(kept[((((int64_t)worker) * (int64_t)8192) + (((int64_t)first[(int64_t)0]) * (int64_t)16))])), 16, 1, (&(v[(((((((int64_t)b[(int64_t)0]) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)512) + ((((int64_t)h[(int64_t)0]) * ((int64_t)blocks)) * (int64_t)512)) + (((int64_t)j[(int64_t)0]) * (int64_t)512))])), many[0], seen[0], rows, nsa::lines<nsa::f32, false>((&(v[(((((((int64_t)b[(int64_t)0]) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)512) + ((((int64_t)h[(int64_t)0]) * ((int64_t)blocks)) * (int64_t)512)) + (((int64_t)listed[((v__8) < (v__9) ? (v__8) : (v__9))]) * (int64_t)512))])), (int64_t)0, 0, 1, 512, 0, 1));
      nsa::add_spare(o, rows, (&(members[first[(int64_t)0]])), many[0], 32);
    }
    int32_t taken_2 = taken[0];
    int32_t b_2 = b[0];
    int32_t t0_2 = t0[0];
    int32_t h_2 = h[0];
    for (int32_t i_3 = 0; i_3 < taken_2; ++i_3) {
      nsa::down_row<nsa::f32>((&(out[(((((((int64_t)b_2) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + (((((int64_t)t0_2) + ((int64_t)i_3)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h_2) * (int64_t)32))])), (&(o[(((int64_t)i_3) * (int64_t)32)])), 32, nsa::inverse(total[i_3]));
      lse[((((((int64_t)b_2) * ((int64_t)kv_heads)) * ((int64_t)tokens)) + ((((int64_t)t0_2) + ((int64_t)i_3)) * ((int64_t)kv_heads))) + ((int64_t)h_2))] = nsa::log_sum_exp(top[i_3], total[i_3]);
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
  int32_t* block_indices = (int32_t*)a[0].pointer;
  float* k = (float*)a[1].pointer;
  float* kept = (float*)a[2].pointer;
  float* lse = (float*)a[3].pointer;
  int32_t* marks = (int32_t*)a[4].pointer;
  float* out = (float*)a[5].pointer;
  float* q = (float*)a[6].pointer;
  float* v = (float*)a[7].pointer;
  int32_t blocks = a[8].int32;
  int32_t kv_heads = a[9].int32;
  int32_t length = a[10].int32;
  int32_t q_start = a[11].int32;
  float scale = a[12].float32;
  int32_t tokens = a[13].int32;
  return gather_attention_kernel(block_indices, k, kept, lse, marks, out, q, v, blocks, kv_heads, length, q_start, scale, task_hi, task_lo, tokens, worker);
}
extern "C" int32_t nsa_gather_attention(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, const nsa_value *arguments) {
  return parallel(nsa_task, (void *)arguments, tasks, threads);
}

