// gather_attention_fwd(float32, block=16, dk=32, dv=32, group=1, n=8, reach=causal, source=packed)
// schedule query_lanes=64 key_tile=64 register_rows=4 register_vectors=4
// target x86_64_v4 (cpu, 512-bit vectors, 32 registers)
// emitted by TileLang 0.1.15
// NSA_MAX_SELECTED 8, then templates/cpu/tile.h

static int32_t gather_attention_kernel(int32_t* block_indices, float* k, float* lse, float* out, float* q, float* v, int32_t blocks, int32_t kv_heads, int32_t length, int32_t q_start, float scale, int32_t task_hi, int32_t task_lo, int32_t tokens) {
  int32_t b[1];
  int32_t h[1];
  int32_t t0[1];
  int32_t end[1];
  int32_t chosen[8];
  int32_t count[1];
  float q_up[32];
  float o[32];
  float top[1];
  float total[1];
  int32_t base[1];
  int32_t used[1];
  float s[128];
  int32_t seen[1];
  float factor[1];
  for (int32_t task = task_lo; task < task_hi; ++task) {
    b[0] = (task / (((tokens + 15) >> 4) * kv_heads));
    h[0] = ((task / ((tokens + 15) >> 4)) % kv_heads);
    t0[0] = ((task % ((tokens + 15) >> 4)) * 16);
    int32_t v_ = t0[0] + 16;
    for (int32_t t = t0[0]; t < ((v_) < (tokens) ? (v_) : (tokens)); ++t) {
      int32_t v__1 = (q_start + t) + 1;
      end[0] = ((length) < (v__1) ? (length) : (v__1));
      count[0] = nsa::distinct_blocks(chosen, (&(block_indices[(((((((int64_t)b[(int64_t)0]) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)8) + ((((int64_t)t) * ((int64_t)kv_heads)) * (int64_t)8)) + (((int64_t)h[(int64_t)0]) * (int64_t)8))])), 8, ((end[0] + 15) >> 4));
      int32_t b_1 = b[0];
      int32_t h_1 = h[0];
      for (int32_t c = 0; c < 32; ++c) {
        q_up[c] = (q[((((((((int64_t)b_1) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((int64_t)t) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h_1) * (int64_t)32)) + ((int64_t)c))] * nsa::log2_units(scale));
      }
      nsa::fill(o, 0.000000e+00f, 32);
      nsa::fill(top, -INFINITY, 1);
      nsa::fill(total, 0.000000e+00f, 1);
      for (int32_t i = 0; i < ((count[0] + 7) >> 3); ++i) {
        base[0] = (i * 8);
        int32_t v__2 = count[0] - base[0];
        used[0] = ((8) < (v__2) ? (8) : (v__2));
        nsa::product_listed<16, 1, 8>(s, 128, q_up, 32, (&(k[((((((int64_t)b[(int64_t)0]) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)512) + ((((int64_t)h[(int64_t)0]) * ((int64_t)blocks)) * (int64_t)512))])), 512, (&(chosen[base[(int64_t)0]])), used[0], 1, 32);
        for (int32_t x = 0; x < used[0]; ++x) {
          int32_t v__3 = end[0] - (chosen[(((int64_t)base[(int64_t)0]) + ((int64_t)x))] * 16);
          seen[0] = ((16) < (v__3) ? (16) : (v__3));
          int32_t begin = ((x * 16) + seen[0]);
          for (int32_t j = begin; j < ((x * 16) + 16); ++j) {
            s[((int64_t)j)] = -INFINITY;
          }
        }
        factor[0] = nsa::softmax_row((&(s[0])), (used[0] * 16), (&(top[0])), (&(total[0])));
        if (0 < i) {
          nsa::scale_row((&(o[0])), factor[0], 32);
        }
        for (int32_t x_1 = 0; x_1 < used[0]; ++x_1) {
          int32_t v__4 = end[0] - (chosen[(((int64_t)base[(int64_t)0]) + ((int64_t)x_1))] * 16);
          seen[0] = ((16) < (v__4) ? (16) : (v__4));
          nsa::product_row<32>(o, (&(s[(((int64_t)x_1) * (int64_t)16)])), (&(v[(((((((int64_t)b[(int64_t)0]) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)512) + ((((int64_t)h[(int64_t)0]) * ((int64_t)blocks)) * (int64_t)512)) + (((int64_t)chosen[(((int64_t)base[(int64_t)0]) + ((int64_t)x_1))]) * (int64_t)512))])), seen[0]);
        }
      }
      int32_t b_2 = b[0];
      int32_t h_2 = h[0];
      float norm = nsa::inverse(total[0]);
      for (int32_t c_1 = 0; c_1 < 32; ++c_1) {
        out[((((((((int64_t)b_2) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((int64_t)t) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)h_2) * (int64_t)32)) + ((int64_t)c_1))] = (o[c_1] * norm);
      }
      lse[((((((int64_t)b_2) * ((int64_t)kv_heads)) * ((int64_t)tokens)) + (((int64_t)t) * ((int64_t)kv_heads))) + ((int64_t)h_2))] = nsa::log_sum_exp(top[0], total[0]);
    }
  }
  return 0;
}

// Entry: independent tasks over the threads of the pool; the rest is what the tasks read and write.
typedef int32_t (*nsa_task_fn)(void *context, int32_t lo, int32_t hi, int32_t worker);
typedef int32_t (*nsa_parallel_fn)(nsa_task_fn task, void *context, int32_t tasks, int32_t threads);
namespace {
struct nsa_context {
  int32_t* block_indices;
  float* k;
  float* lse;
  float* out;
  float* q;
  float* v;
  int32_t blocks;
  int32_t kv_heads;
  int32_t length;
  int32_t q_start;
  float scale;
  int32_t tokens;
};
int32_t nsa_task(void *context, int32_t task_lo, int32_t task_hi, int32_t worker) {
  const nsa_context &a = *(const nsa_context *)context;
  (void)worker;
  return gather_attention_kernel(a.block_indices, a.k, a.lse, a.out, a.q, a.v, a.blocks, a.kv_heads, a.length, a.q_start, a.scale, task_hi, task_lo, a.tokens);
}
} // namespace
extern "C" int32_t nsa_gather_attention(nsa_parallel_fn parallel, int32_t threads, int32_t tasks, int32_t* block_indices, float* k, float* lse, float* out, float* q, float* v, int32_t blocks, int32_t kv_heads, int32_t length, int32_t q_start, float scale, int32_t tokens) {
  nsa_context context = {block_indices, k, lse, out, q, v, blocks, kv_heads, length, q_start, scale, tokens};
  return parallel(nsa_task, &context, tasks, threads);
}

