// gather_attention_fwd(bfloat16, block=64, dk=192, dv=128, group=16, n=16, reach=causal, source=plain)
// schedule rows=64 key_tile=16 stages=2 threads=128
// target sm_86 (A40, mma, 99 KB shared per block)
// emitted by TileLang 0.1.15
#if defined(_MSC_VER) && !defined(__clang__) && _MSC_VER < 1940
#define _tl_orig_alignas alignas
#define alignas(N) _tl_orig_alignas((N) <= 64 ? (N) : 64)
#include <cuda.h>
#undef alignas
#define alignas _tl_orig_alignas
#endif
#include <tl_templates/cuda/instruction/mma.h>
#include <tl_templates/cuda/copy.h>
#include <math_constants.h>
#include <tl_templates/cuda/reduce.h>
#include <tl_templates/cuda/scan.h>
#include <tl_templates/cuda/ldsm.h>
#include <tl_templates/cuda/threadblock_swizzle.h>
#include <tl_templates/cuda/debug.h>
#ifdef ENABLE_BF16
#include <tl_templates/cuda/cuda_bf16_fallbacks.cuh>
#endif

extern "C" __global__ void gather_attention_kernel(const bfloat16_t* __restrict__ k, const int* __restrict__ listing, float* __restrict__ lse, const int* __restrict__ members, bfloat16_t* __restrict__ out, const bfloat16_t* __restrict__ q, const int* __restrict__ steps, const bfloat16_t* __restrict__ v, int batch, int keys, int kv_heads, int q_start, float scale, int tiles, int tokens);
extern "C" __global__ void __launch_bounds__(128, 1) gather_attention_kernel(const bfloat16_t* __restrict__ k, const int* __restrict__ listing, float* __restrict__ lse, const int* __restrict__ members, bfloat16_t* __restrict__ out, const bfloat16_t* __restrict__ q, const int* __restrict__ steps, const bfloat16_t* __restrict__ v, int batch, int keys, int kv_heads, int q_start, float scale, int tiles, int tokens) {
  extern __shared__ __align__(1024) uchar buf_dyn_shmem[];
  void* listed = ((void*)((char*)buf_dyn_shmem + 0));
  void* sharers = ((void*)((char*)buf_dyn_shmem + 256));
  void* q_tile = ((void*)((char*)buf_dyn_shmem + 512));
  void* k_tile = ((void*)((char*)buf_dyn_shmem + 25088));
  void* v_tile = ((void*)((char*)buf_dyn_shmem + 37376));
  int count = 0;
  float o[64];
  float total[2];
  float top[2];
  float s[8];
  float before[2];
  float scaled[2];
  float summed[2];
  bfloat16_t weights[8];
  float top_clear[2];
  float top_clear_1[2];
  int condval;
  if ((((int)blockIdx.x) < tiles)) {
    condval = steps[((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)tiles))) + ((int64_t)((int)blockIdx.x)))];
  } else {
    condval = 0;
  }
  count = (condval * 4);
  if (((int)threadIdx.x) < 64) {
    int condval_1;
    if ((((int)blockIdx.x) < tiles)) {
      condval_1 = listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((int64_t)((int)threadIdx.x)))];
    } else {
      condval_1 = 0;
    }
    ((int*)listed)[((int)threadIdx.x)] = condval_1;
    int condval_2;
    if ((((int)blockIdx.x) < tiles)) {
      condval_2 = members[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((int64_t)((int)threadIdx.x)))];
    } else {
      condval_2 = 0;
    }
    ((int*)sharers)[((int)threadIdx.x)] = condval_2;
  }
  #pragma unroll
  for (int i = 0; i < 12; ++i) {
    bfloat16_t broadcast_var = bfloat16_t(0x0p+0f/*0.000000e+00*/);
    uint4 condval_3;
    if ((1 <= tokens)) {
      condval_3 = *(uint4*)(q + (((((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)3072) + ((min(((((int64_t)((int)blockIdx.x)) * (int64_t)4) + (((((int64_t)i) * (int64_t)16) + (((int64_t)((int)threadIdx.x)) >> (int64_t)3)) / (int64_t)48)), (((int64_t)tokens) - (int64_t)1)) * ((int64_t)kv_heads)) * (int64_t)3072)) + (((int64_t)((int)blockIdx.y)) * (int64_t)3072)) + (((((((int64_t)i) * (int64_t)16) + (((int64_t)((int)threadIdx.x)) >> (int64_t)3)) % (int64_t)48) / (int64_t)3) * (int64_t)192)) + ((((((int64_t)i) * (int64_t)128) + ((int64_t)((int)threadIdx.x))) % (int64_t)24) * (int64_t)8)));
    } else {
      condval_3 = make_uint4(__pack_nv_bfloat162(broadcast_var, broadcast_var), __pack_nv_bfloat162(broadcast_var, broadcast_var), __pack_nv_bfloat162(broadcast_var, broadcast_var), __pack_nv_bfloat162(broadcast_var, broadcast_var));
    }
    *(uint4*)(((bfloat16_t*)q_tile) + ((((((((i * 16) + (((int)threadIdx.x) >> 3)) % 3) * 4096) + ((((i * 16) + (((int)threadIdx.x) >> 3)) / 3) * 64)) + (((((((i * 4) + (((int)threadIdx.x) >> 5)) % 6) / 3) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((i * 8) + (((int)threadIdx.x) >> 4)) % 6) / 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((i * 16) + (((int)threadIdx.x) >> 3)) % 6) / 3) + (((int)threadIdx.x) & 1)) & 1) * 8))) = condval_3;
  }
  __syncthreads();
  #pragma unroll
  for (int i_1 = 0; i_1 < 16; ++i_1) {
    float broadcast_var_1 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(o + (i_1 * 4)) = make_float4(broadcast_var_1, broadcast_var_1, broadcast_var_1, broadcast_var_1);
  }
  float broadcast_var_2 = 0x0p+0f/*0.000000e+00*/;
  *(float2*)(total + 0) = make_float2(broadcast_var_2, broadcast_var_2);
  float broadcast_var_3 = -CUDART_INF_F;
  *(float2*)(top + 0) = make_float2(broadcast_var_3, broadcast_var_3);
  if (0 < count) {
    if (0 < count) {
      #pragma unroll
      for (int i_2 = 0; i_2 < 3; ++i_2) {
        tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)k_tile)[((((((((i_2 * 16) + (((int)threadIdx.x) >> 3)) % 3) * 1024) + ((((i_2 * 16) + (((int)threadIdx.x) >> 3)) / 3) * 64)) + (((((((i_2 * 4) + (((int)threadIdx.x) >> 5)) % 6) / 3) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((i_2 * 8) + (((int)threadIdx.x) >> 4)) % 6) / 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((i_2 * 16) + (((int)threadIdx.x) >> 3)) % 6) / 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(k[((((((int64_t)((int)blockIdx.y)) * (int64_t)192) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)192)) + ((((((int64_t)listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))]) * (int64_t)64) + (((((int64_t)i_2) * (int64_t)16) + (((int64_t)((int)threadIdx.x)) >> (int64_t)3)) / (int64_t)3)) * ((int64_t)kv_heads)) * (int64_t)192)) + ((((((int64_t)i_2) * (int64_t)128) + ((int64_t)((int)threadIdx.x))) % (int64_t)24) * (int64_t)8))])), ((((((listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))] * 64) + (((i_2 * 16) + (((int)threadIdx.x) >> 3)) / 3)) < keys) && (0 <= listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))])) && (((listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))] * 64) + (((i_2 * 16) + (((int)threadIdx.x) >> 3)) / 3)) < keys)) && (0 <= listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))])));
      }
    }
    tl::cp_async_commit();
  }
  if (0 < count) {
    if (0 < count) {
      #pragma unroll
      for (int i_3 = 0; i_3 < 2; ++i_3) {
        tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)v_tile)[((((((((((int)threadIdx.x) & 15) >> 3) * 1024) + (i_3 * 512)) + ((((int)threadIdx.x) >> 4) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((int)threadIdx.x) & 63) >> 5) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(v[((((((int64_t)((int)blockIdx.y)) * (int64_t)128) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)128)) + (((((((int64_t)listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))]) * (int64_t)64) + (((int64_t)i_3) * (int64_t)8)) + (((int64_t)((int)threadIdx.x)) >> (int64_t)4)) * ((int64_t)kv_heads)) * (int64_t)128)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)15) * (int64_t)8))])), (((((((listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))] * 64) + (i_3 * 8)) + (((int)threadIdx.x) >> 4)) < keys) && (0 <= listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))])) && ((((listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))] * 64) + (i_3 * 8)) + (((int)threadIdx.x) >> 4)) < keys)) && (0 <= listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))])));
      }
    }
    tl::cp_async_commit();
  }
  if (1 < count) {
    if (1 < count) {
      #pragma unroll
      for (int i_4 = 0; i_4 < 3; ++i_4) {
        tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)k_tile)[(((((((((i_4 * 16) + (((int)threadIdx.x) >> 3)) % 3) * 1024) + ((((i_4 * 16) + (((int)threadIdx.x) >> 3)) / 3) * 64)) + (((((((i_4 * 4) + (((int)threadIdx.x) >> 5)) % 6) / 3) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((i_4 * 8) + (((int)threadIdx.x) >> 4)) % 6) / 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((i_4 * 16) + (((int)threadIdx.x) >> 3)) % 6) / 3) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 3072)])), (&(k[((((((int64_t)((int)blockIdx.y)) * (int64_t)192) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)192)) + (((((((int64_t)listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))]) * (int64_t)64) + (((((int64_t)i_4) * (int64_t)16) + (((int64_t)((int)threadIdx.x)) >> (int64_t)3)) / (int64_t)3)) + (int64_t)16) * ((int64_t)kv_heads)) * (int64_t)192)) + ((((((int64_t)i_4) * (int64_t)128) + ((int64_t)((int)threadIdx.x))) % (int64_t)24) * (int64_t)8))])), (((((((listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))] * 64) + (((i_4 * 16) + (((int)threadIdx.x) >> 3)) / 3)) + 16) < keys) && (0 <= listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))])) && ((((listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))] * 64) + (((i_4 * 16) + (((int)threadIdx.x) >> 3)) / 3)) + 16) < keys)) && (0 <= listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))])));
      }
    }
    tl::cp_async_commit();
  }
  if (1 < count) {
    if (1 < count) {
      #pragma unroll
      for (int i_5 = 0; i_5 < 2; ++i_5) {
        tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)v_tile)[(((((((((((int)threadIdx.x) & 15) >> 3) * 1024) + (i_5 * 512)) + ((((int)threadIdx.x) >> 4) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((int)threadIdx.x) & 63) >> 5) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 2048)])), (&(v[((((((int64_t)((int)blockIdx.y)) * (int64_t)128) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)128)) + ((((((((int64_t)listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))]) * (int64_t)64) + (((int64_t)i_5) * (int64_t)8)) + (((int64_t)((int)threadIdx.x)) >> (int64_t)4)) + (int64_t)16) * ((int64_t)kv_heads)) * (int64_t)128)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)15) * (int64_t)8))])), ((((((((listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))] * 64) + (i_5 * 8)) + (((int)threadIdx.x) >> 4)) + 16) < keys) && (0 <= listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))])) && (((((listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))] * 64) + (i_5 * 8)) + (((int)threadIdx.x) >> 4)) + 16) < keys)) && (0 <= listing[(((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64))])));
      }
    }
    tl::cp_async_commit();
  }
  for (int step = 0; step < (count - 2); ++step) {
    #pragma unroll
    for (int i_6 = 0; i_6 < 2; ++i_6) {
      float broadcast_var_4 = 0x0p+0f/*0.000000e+00*/;
      *(float4*)(s + (i_6 * 4)) = make_float4(broadcast_var_4, broadcast_var_4, broadcast_var_4, broadcast_var_4);
    }
    tl::cp_async_wait<3>();
    __syncthreads();
    {
      bfloat16_t A_local[8];
      bfloat16_t B_local[8];
      for (int ki = 0; ki < 12; ++ki) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)q_tile)[(((((((ki >> 2) * 4096) + ((((int)threadIdx.x) >> 5) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(A_local[0])));
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[((((((((step & 1) * 3072) + ((ki >> 2) * 1024)) + (((((int)threadIdx.x) & 31) >> 4) * 512)) + ((((int)threadIdx.x) & 7) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local[0])));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + 0), reinterpret_cast<const unsigned*>(A_local + 0), reinterpret_cast<const unsigned*>(B_local + 0));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + 4), reinterpret_cast<const unsigned*>(A_local + 0), reinterpret_cast<const unsigned*>(B_local + 4));
      }
    }
    __syncthreads();
    #pragma unroll
    for (int i_7 = 0; i_7 < 3; ++i_7) {
      tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)k_tile)[(((((((step & 1) * 3072) + ((((i_7 * 16) + (((int)threadIdx.x) >> 3)) % 3) * 1024)) + ((((i_7 * 16) + (((int)threadIdx.x) >> 3)) / 3) * 64)) + (((((((i_7 * 4) + (((int)threadIdx.x) >> 5)) % 6) / 3) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((i_7 * 8) + (((int)threadIdx.x) >> 4)) % 6) / 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((i_7 * 16) + (((int)threadIdx.x) >> 3)) % 6) / 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(k[((((((int64_t)((int)blockIdx.y)) * (int64_t)192) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)192)) + (((((((int64_t)listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((((int64_t)step) + (int64_t)2) / (int64_t)4))]) * (int64_t)64) + (((((int64_t)step) + (int64_t)2) % (int64_t)4) * (int64_t)16)) + (((((int64_t)i_7) * (int64_t)16) + (((int64_t)((int)threadIdx.x)) >> (int64_t)3)) / (int64_t)3)) * ((int64_t)kv_heads)) * (int64_t)192)) + ((((((int64_t)i_7) * (int64_t)128) + ((int64_t)((int)threadIdx.x))) % (int64_t)24) * (int64_t)8))])), (((((((listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((((int64_t)step) + (int64_t)2) / (int64_t)4))] * 64) + (((step + 2) % 4) * 16)) + (((i_7 * 16) + (((int)threadIdx.x) >> 3)) / 3)) < keys) && (0 <= listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((((int64_t)step) + (int64_t)2) / (int64_t)4))])) && ((((listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((((int64_t)step) + (int64_t)2) / (int64_t)4))] * 64) + (((step + 2) % 4) * 16)) + (((i_7 * 16) + (((int)threadIdx.x) >> 3)) / 3)) < keys)) && (0 <= listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((((int64_t)step) + (int64_t)2) / (int64_t)4))])));
    }
    tl::cp_async_commit();
    __syncthreads();
    #pragma unroll
    for (int i_8 = 0; i_8 < 8; ++i_8) {
      float condval_4;
      if ((((0 < ((((int*)sharers)[(step / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && ((((((((int*)listed)[(step / 4)] * 64) + ((step % 4) * 16)) + ((i_8 >> 2) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + (i_8 & 1)) < keys)) && ((((((((int*)listed)[(step / 4)] * 64) + ((step % 4) * 16)) + ((i_8 >> 2) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + (i_8 & 1)) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
        condval_4 = (s[i_8] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
      } else {
        condval_4 = -CUDART_INF_F;
      }
      s[i_8] = condval_4;
    }
    *(float2*)(before + 0) = *(float2*)(top + 0);
    #pragma unroll
    for (int i_9 = 0; i_9 < 2; ++i_9) {
      top_clear[i_9] = -CUDART_INF_F;
      #pragma unroll
      for (int rv = 0; rv < 4; ++rv) {
        top_clear[i_9] = max(top_clear[i_9], s[((((rv & 1) * 4) + (i_9 * 2)) + (rv >> 1))]);
      }
      top_clear[i_9] = tl::AllReduce<tl::MaxOp, 4, 1, 0, tl::NamedBarrier<128>>::run(top_clear[i_9]);
      top[i_9] = max(top[i_9], top_clear[i_9]);
    }
    #pragma unroll
    for (int i_10 = 0; i_10 < 2; ++i_10) {
      float condval_5;
      if ((top[i_10] == -CUDART_INF_F)) {
        condval_5 = 0x0p+0f/*0.000000e+00*/;
      } else {
        condval_5 = top[i_10];
      }
      scaled[i_10] = condval_5;
    }
    #pragma unroll
    for (int i_11 = 0; i_11 < 4; ++i_11) {
      float2 __1;
      float2 __2;
        float2 v_ = *(float2*)(s + (i_11 * 2));
        float2 v__1 = make_float2(scaled[(i_11 & 1)], scaled[(i_11 & 1)]);
        __2.x = (v_.x-v__1.x);
        __2.y = (v_.y-v__1.y);
      __1.x = exp2f(__2.x);
      __1.y = exp2f(__2.y);
      *(float2*)(s + (i_11 * 2)) = __1;
    }
    #pragma unroll
    for (int i_12 = 0; i_12 < 2; ++i_12) {
      summed[i_12] = 0x0p+0f/*0.000000e+00*/;
      #pragma unroll
      for (int rv_1 = 0; rv_1 < 4; ++rv_1) {
        summed[i_12] = (summed[i_12] + s[((((rv_1 & 1) * 4) + (i_12 * 2)) + (rv_1 >> 1))]);
      }
      summed[i_12] = tl::AllReduce<tl::SumOp, 4, 1, 0, tl::NamedBarrier<128>>::run(summed[i_12]);
    }
    float2 __3;
    float2 __4;
      float2 v__2 = *(float2*)(before + 0);
      float2 v__3 = *(float2*)(scaled + 0);
      __4.x = (v__2.x-v__3.x);
      __4.y = (v__2.y-v__3.y);
    __3.x = exp2f(__4.x);
    __3.y = exp2f(__4.y);
    *(float2*)(before + 0) = __3;
    float2 __5;
      float2 __6;
        float2 v__4 = *(float2*)(total + 0);
        float2 v__5 = *(float2*)(before + 0);
        __6.x = (v__4.x*v__5.x);
        __6.y = (v__4.y*v__5.y);
      float2 v__6 = *(float2*)(summed + 0);
      __5.x = (__6.x+v__6.x);
      __5.y = (__6.y+v__6.y);
    *(float2*)(total + 0) = __5;
    #pragma unroll
    for (int i_13 = 0; i_13 < 2; ++i_13) {
      uint2 __7;
      float4 v__7 = *(float4*)(s + (i_13 * 4));
      (reinterpret_cast<__nv_bfloat162*>(&__7))[0] = __float22bfloat162_rn(((float2*)(&v__7))[0]);
      (reinterpret_cast<__nv_bfloat162*>(&__7))[1] = __float22bfloat162_rn(((float2*)(&v__7))[1]);
      *(uint2*)(weights + (i_13 * 4)) = __7;
    }
    #pragma unroll
    for (int i_14 = 0; i_14 < 32; ++i_14) {
      float2 __8;
        float2 v__8 = *(float2*)(o + (i_14 * 2));
        float2 v__9 = make_float2(before[(i_14 & 1)], before[(i_14 & 1)]);
        __8.x = (v__8.x*v__9.x);
        __8.y = (v__8.y*v__9.y);
      *(float2*)(o + (i_14 * 2)) = __8;
    }
    tl::cp_async_wait<3>();
    __syncthreads();
    {
      bfloat16_t B_local_1[64];
      #pragma unroll
      for (int i_15 = 0; i_15 < 8; ++i_15) {
        tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((((step & 1) * 2048) + ((i_15 >> 2) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((i_15 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (i_15 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_1[(i_15 * 8)])));
      }
      for (int j = 0; j < 8; ++j) {
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + (j * 8)), reinterpret_cast<const unsigned*>(weights + 0), reinterpret_cast<const unsigned*>(B_local_1 + (j * 8)));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + ((j * 8) + 4)), reinterpret_cast<const unsigned*>(weights + 0), reinterpret_cast<const unsigned*>(B_local_1 + ((j * 8) + 4)));
      }
    }
    __syncthreads();
    #pragma unroll
    for (int i_16 = 0; i_16 < 2; ++i_16) {
      tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)v_tile)[((((((((step & 1) * 2048) + (((((int)threadIdx.x) & 15) >> 3) * 1024)) + (i_16 * 512)) + ((((int)threadIdx.x) >> 4) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((int)threadIdx.x) & 63) >> 5) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(v[((((((int64_t)((int)blockIdx.y)) * (int64_t)128) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)128)) + ((((((((int64_t)listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((((int64_t)step) + (int64_t)2) / (int64_t)4))]) * (int64_t)64) + (((((int64_t)step) + (int64_t)2) % (int64_t)4) * (int64_t)16)) + (((int64_t)i_16) * (int64_t)8)) + (((int64_t)((int)threadIdx.x)) >> (int64_t)4)) * ((int64_t)kv_heads)) * (int64_t)128)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)15) * (int64_t)8))])), ((((((((listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((((int64_t)step) + (int64_t)2) / (int64_t)4))] * 64) + (((step + 2) % 4) * 16)) + (i_16 * 8)) + (((int)threadIdx.x) >> 4)) < keys) && (0 <= listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((((int64_t)step) + (int64_t)2) / (int64_t)4))])) && (((((listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((((int64_t)step) + (int64_t)2) / (int64_t)4))] * 64) + (((step + 2) % 4) * 16)) + (i_16 * 8)) + (((int)threadIdx.x) >> 4)) < keys)) && (0 <= listing[((((((((int64_t)((int)blockIdx.z)) * ((int64_t)tiles)) * ((int64_t)kv_heads)) * (int64_t)64) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)tiles)) * (int64_t)64)) + (((int64_t)((int)blockIdx.x)) * (int64_t)64)) + ((((int64_t)step) + (int64_t)2) / (int64_t)4))])));
    }
    tl::cp_async_commit();
  }
  if (2 <= count) {
    float broadcast_var_5 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 0) = make_float4(broadcast_var_5, broadcast_var_5, broadcast_var_5, broadcast_var_5);
    float broadcast_var_6 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 4) = make_float4(broadcast_var_6, broadcast_var_6, broadcast_var_6, broadcast_var_6);
  }
  tl::cp_async_wait<3>();
  __syncthreads();
  if (2 <= count) {
    {
      bfloat16_t A_local_1[8];
      bfloat16_t B_local_2[8];
      for (int ki_1 = 0; ki_1 < 12; ++ki_1) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)q_tile)[(((((((ki_1 >> 2) * 4096) + ((((int)threadIdx.x) >> 5) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_1 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_1 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(A_local_1[0])));
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[((((((((count & 1) * 3072) + ((ki_1 >> 2) * 1024)) + (((((int)threadIdx.x) & 31) >> 4) * 512)) + ((((int)threadIdx.x) & 7) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_1 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_1 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_2[0])));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + 0), reinterpret_cast<const unsigned*>(A_local_1 + 0), reinterpret_cast<const unsigned*>(B_local_2 + 0));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + 4), reinterpret_cast<const unsigned*>(A_local_1 + 0), reinterpret_cast<const unsigned*>(B_local_2 + 4));
      }
    }
  }
  if (2 <= count) {
    float condval_6;
    if ((((0 < ((((int*)sharers)[((count - 2) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && ((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) < keys)) && ((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_6 = (s[0] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_6 = -CUDART_INF_F;
    }
    s[0] = condval_6;
    float condval_7;
    if ((((0 < ((((int*)sharers)[((count - 2) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 1) < keys)) && ((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) < (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_7 = (s[1] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_7 = -CUDART_INF_F;
    }
    s[1] = condval_7;
    float condval_8;
    if ((((0 < ((((int*)sharers)[((count - 2) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && ((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) < keys)) && ((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_8 = (s[2] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_8 = -CUDART_INF_F;
    }
    s[2] = condval_8;
    float condval_9;
    if ((((0 < ((((int*)sharers)[((count - 2) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 1) < keys)) && ((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) < (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_9 = (s[3] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_9 = -CUDART_INF_F;
    }
    s[3] = condval_9;
    float condval_10;
    if ((((0 < ((((int*)sharers)[((count - 2) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 8) < keys)) && (((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 8) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_10 = (s[4] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_10 = -CUDART_INF_F;
    }
    s[4] = condval_10;
    float condval_11;
    if ((((0 < ((((int*)sharers)[((count - 2) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 9) < keys)) && (((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 9) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_11 = (s[5] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_11 = -CUDART_INF_F;
    }
    s[5] = condval_11;
    float condval_12;
    if ((((0 < ((((int*)sharers)[((count - 2) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 8) < keys)) && (((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 8) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_12 = (s[6] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_12 = -CUDART_INF_F;
    }
    s[6] = condval_12;
    float condval_13;
    if ((((0 < ((((int*)sharers)[((count - 2) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 9) < keys)) && (((((((int*)listed)[((count - 2) / 4)] * 64) + (((count - 2) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 9) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_13 = (s[7] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_13 = -CUDART_INF_F;
    }
    s[7] = condval_13;
  }
  if (2 <= count) {
    *(float2*)(before + 0) = *(float2*)(top + 0);
  }
  if (2 <= count) {
    top_clear_1[0] = -CUDART_INF_F;
    top_clear_1[0] = max(top_clear_1[0], s[0]);
    top_clear_1[0] = max(top_clear_1[0], s[4]);
    top_clear_1[0] = max(top_clear_1[0], s[1]);
    top_clear_1[0] = max(top_clear_1[0], s[5]);
    top_clear_1[0] = tl::AllReduce<tl::MaxOp, 4, 1, 0, tl::NamedBarrier<128>>::run(top_clear_1[0]);
    top[0] = max(top[0], top_clear_1[0]);
    top_clear_1[1] = -CUDART_INF_F;
    top_clear_1[1] = max(top_clear_1[1], s[2]);
    top_clear_1[1] = max(top_clear_1[1], s[6]);
    top_clear_1[1] = max(top_clear_1[1], s[3]);
    top_clear_1[1] = max(top_clear_1[1], s[7]);
    top_clear_1[1] = tl::AllReduce<tl::MaxOp, 4, 1, 0, tl::NamedBarrier<128>>::run(top_clear_1[1]);
    top[1] = max(top[1], top_clear_1[1]);
  }
  if (2 <= count) {
    float condval_14;
    if ((top[0] == -CUDART_INF_F)) {
      condval_14 = 0x0p+0f/*0.000000e+00*/;
    } else {
      condval_14 = top[0];
    }
    scaled[0] = condval_14;
    float condval_15;
    if ((top[1] == -CUDART_INF_F)) {
      condval_15 = 0x0p+0f/*0.000000e+00*/;
    } else {
      condval_15 = top[1];
    }
    scaled[1] = condval_15;
  }
  if (2 <= count) {
    float2 __9;
    float2 __10;
      float2 v__10 = *(float2*)(s + 0);
      float2 v__11 = make_float2(scaled[0], scaled[0]);
      __10.x = (v__10.x-v__11.x);
      __10.y = (v__10.y-v__11.y);
    __9.x = exp2f(__10.x);
    __9.y = exp2f(__10.y);
    *(float2*)(s + 0) = __9;
    float2 __11;
    float2 __12;
      float2 v__12 = *(float2*)(s + 2);
      float2 v__13 = make_float2(scaled[1], scaled[1]);
      __12.x = (v__12.x-v__13.x);
      __12.y = (v__12.y-v__13.y);
    __11.x = exp2f(__12.x);
    __11.y = exp2f(__12.y);
    *(float2*)(s + 2) = __11;
    float2 __13;
    float2 __14;
      float2 v__14 = *(float2*)(s + 4);
      float2 v__15 = make_float2(scaled[0], scaled[0]);
      __14.x = (v__14.x-v__15.x);
      __14.y = (v__14.y-v__15.y);
    __13.x = exp2f(__14.x);
    __13.y = exp2f(__14.y);
    *(float2*)(s + 4) = __13;
    float2 __15;
    float2 __16;
      float2 v__16 = *(float2*)(s + 6);
      float2 v__17 = make_float2(scaled[1], scaled[1]);
      __16.x = (v__16.x-v__17.x);
      __16.y = (v__16.y-v__17.y);
    __15.x = exp2f(__16.x);
    __15.y = exp2f(__16.y);
    *(float2*)(s + 6) = __15;
  }
  if (2 <= count) {
    summed[0] = 0x0p+0f/*0.000000e+00*/;
    summed[0] = (summed[0] + s[0]);
    summed[0] = (summed[0] + s[4]);
    summed[0] = (summed[0] + s[1]);
    summed[0] = (summed[0] + s[5]);
    summed[0] = tl::AllReduce<tl::SumOp, 4, 1, 0, tl::NamedBarrier<128>>::run(summed[0]);
    summed[1] = 0x0p+0f/*0.000000e+00*/;
    summed[1] = (summed[1] + s[2]);
    summed[1] = (summed[1] + s[6]);
    summed[1] = (summed[1] + s[3]);
    summed[1] = (summed[1] + s[7]);
    summed[1] = tl::AllReduce<tl::SumOp, 4, 1, 0, tl::NamedBarrier<128>>::run(summed[1]);
  }
  if (2 <= count) {
    float2 __17;
    float2 __18;
      float2 v__18 = *(float2*)(before + 0);
      float2 v__19 = *(float2*)(scaled + 0);
      __18.x = (v__18.x-v__19.x);
      __18.y = (v__18.y-v__19.y);
    __17.x = exp2f(__18.x);
    __17.y = exp2f(__18.y);
    *(float2*)(before + 0) = __17;
    float2 __19;
      float2 __20;
        float2 v__20 = *(float2*)(total + 0);
        float2 v__21 = *(float2*)(before + 0);
        __20.x = (v__20.x*v__21.x);
        __20.y = (v__20.y*v__21.y);
      float2 v__22 = *(float2*)(summed + 0);
      __19.x = (__20.x+v__22.x);
      __19.y = (__20.y+v__22.y);
    *(float2*)(total + 0) = __19;
  }
  if (2 <= count) {
    uint2 __21;
    float4 v__23 = *(float4*)(s + 0);
    (reinterpret_cast<__nv_bfloat162*>(&__21))[0] = __float22bfloat162_rn(((float2*)(&v__23))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__21))[1] = __float22bfloat162_rn(((float2*)(&v__23))[1]);
    *(uint2*)(weights + 0) = __21;
    uint2 __22;
    float4 v__24 = *(float4*)(s + 4);
    (reinterpret_cast<__nv_bfloat162*>(&__22))[0] = __float22bfloat162_rn(((float2*)(&v__24))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__22))[1] = __float22bfloat162_rn(((float2*)(&v__24))[1]);
    *(uint2*)(weights + 4) = __22;
  }
  if (2 <= count) {
    float2 __23;
      float2 v__25 = *(float2*)(o + 0);
      float2 v__26 = make_float2(before[0], before[0]);
      __23.x = (v__25.x*v__26.x);
      __23.y = (v__25.y*v__26.y);
    *(float2*)(o + 0) = __23;
    float2 __24;
      float2 v__27 = *(float2*)(o + 2);
      float2 v__28 = make_float2(before[1], before[1]);
      __24.x = (v__27.x*v__28.x);
      __24.y = (v__27.y*v__28.y);
    *(float2*)(o + 2) = __24;
    float2 __25;
      float2 v__29 = *(float2*)(o + 4);
      float2 v__30 = make_float2(before[0], before[0]);
      __25.x = (v__29.x*v__30.x);
      __25.y = (v__29.y*v__30.y);
    *(float2*)(o + 4) = __25;
    float2 __26;
      float2 v__31 = *(float2*)(o + 6);
      float2 v__32 = make_float2(before[1], before[1]);
      __26.x = (v__31.x*v__32.x);
      __26.y = (v__31.y*v__32.y);
    *(float2*)(o + 6) = __26;
    float2 __27;
      float2 v__33 = *(float2*)(o + 8);
      float2 v__34 = make_float2(before[0], before[0]);
      __27.x = (v__33.x*v__34.x);
      __27.y = (v__33.y*v__34.y);
    *(float2*)(o + 8) = __27;
    float2 __28;
      float2 v__35 = *(float2*)(o + 10);
      float2 v__36 = make_float2(before[1], before[1]);
      __28.x = (v__35.x*v__36.x);
      __28.y = (v__35.y*v__36.y);
    *(float2*)(o + 10) = __28;
    float2 __29;
      float2 v__37 = *(float2*)(o + 12);
      float2 v__38 = make_float2(before[0], before[0]);
      __29.x = (v__37.x*v__38.x);
      __29.y = (v__37.y*v__38.y);
    *(float2*)(o + 12) = __29;
    float2 __30;
      float2 v__39 = *(float2*)(o + 14);
      float2 v__40 = make_float2(before[1], before[1]);
      __30.x = (v__39.x*v__40.x);
      __30.y = (v__39.y*v__40.y);
    *(float2*)(o + 14) = __30;
    float2 __31;
      float2 v__41 = *(float2*)(o + 16);
      float2 v__42 = make_float2(before[0], before[0]);
      __31.x = (v__41.x*v__42.x);
      __31.y = (v__41.y*v__42.y);
    *(float2*)(o + 16) = __31;
    float2 __32;
      float2 v__43 = *(float2*)(o + 18);
      float2 v__44 = make_float2(before[1], before[1]);
      __32.x = (v__43.x*v__44.x);
      __32.y = (v__43.y*v__44.y);
    *(float2*)(o + 18) = __32;
    float2 __33;
      float2 v__45 = *(float2*)(o + 20);
      float2 v__46 = make_float2(before[0], before[0]);
      __33.x = (v__45.x*v__46.x);
      __33.y = (v__45.y*v__46.y);
    *(float2*)(o + 20) = __33;
    float2 __34;
      float2 v__47 = *(float2*)(o + 22);
      float2 v__48 = make_float2(before[1], before[1]);
      __34.x = (v__47.x*v__48.x);
      __34.y = (v__47.y*v__48.y);
    *(float2*)(o + 22) = __34;
    float2 __35;
      float2 v__49 = *(float2*)(o + 24);
      float2 v__50 = make_float2(before[0], before[0]);
      __35.x = (v__49.x*v__50.x);
      __35.y = (v__49.y*v__50.y);
    *(float2*)(o + 24) = __35;
    float2 __36;
      float2 v__51 = *(float2*)(o + 26);
      float2 v__52 = make_float2(before[1], before[1]);
      __36.x = (v__51.x*v__52.x);
      __36.y = (v__51.y*v__52.y);
    *(float2*)(o + 26) = __36;
    float2 __37;
      float2 v__53 = *(float2*)(o + 28);
      float2 v__54 = make_float2(before[0], before[0]);
      __37.x = (v__53.x*v__54.x);
      __37.y = (v__53.y*v__54.y);
    *(float2*)(o + 28) = __37;
    float2 __38;
      float2 v__55 = *(float2*)(o + 30);
      float2 v__56 = make_float2(before[1], before[1]);
      __38.x = (v__55.x*v__56.x);
      __38.y = (v__55.y*v__56.y);
    *(float2*)(o + 30) = __38;
    float2 __39;
      float2 v__57 = *(float2*)(o + 32);
      float2 v__58 = make_float2(before[0], before[0]);
      __39.x = (v__57.x*v__58.x);
      __39.y = (v__57.y*v__58.y);
    *(float2*)(o + 32) = __39;
    float2 __40;
      float2 v__59 = *(float2*)(o + 34);
      float2 v__60 = make_float2(before[1], before[1]);
      __40.x = (v__59.x*v__60.x);
      __40.y = (v__59.y*v__60.y);
    *(float2*)(o + 34) = __40;
    float2 __41;
      float2 v__61 = *(float2*)(o + 36);
      float2 v__62 = make_float2(before[0], before[0]);
      __41.x = (v__61.x*v__62.x);
      __41.y = (v__61.y*v__62.y);
    *(float2*)(o + 36) = __41;
    float2 __42;
      float2 v__63 = *(float2*)(o + 38);
      float2 v__64 = make_float2(before[1], before[1]);
      __42.x = (v__63.x*v__64.x);
      __42.y = (v__63.y*v__64.y);
    *(float2*)(o + 38) = __42;
    float2 __43;
      float2 v__65 = *(float2*)(o + 40);
      float2 v__66 = make_float2(before[0], before[0]);
      __43.x = (v__65.x*v__66.x);
      __43.y = (v__65.y*v__66.y);
    *(float2*)(o + 40) = __43;
    float2 __44;
      float2 v__67 = *(float2*)(o + 42);
      float2 v__68 = make_float2(before[1], before[1]);
      __44.x = (v__67.x*v__68.x);
      __44.y = (v__67.y*v__68.y);
    *(float2*)(o + 42) = __44;
    float2 __45;
      float2 v__69 = *(float2*)(o + 44);
      float2 v__70 = make_float2(before[0], before[0]);
      __45.x = (v__69.x*v__70.x);
      __45.y = (v__69.y*v__70.y);
    *(float2*)(o + 44) = __45;
    float2 __46;
      float2 v__71 = *(float2*)(o + 46);
      float2 v__72 = make_float2(before[1], before[1]);
      __46.x = (v__71.x*v__72.x);
      __46.y = (v__71.y*v__72.y);
    *(float2*)(o + 46) = __46;
    float2 __47;
      float2 v__73 = *(float2*)(o + 48);
      float2 v__74 = make_float2(before[0], before[0]);
      __47.x = (v__73.x*v__74.x);
      __47.y = (v__73.y*v__74.y);
    *(float2*)(o + 48) = __47;
    float2 __48;
      float2 v__75 = *(float2*)(o + 50);
      float2 v__76 = make_float2(before[1], before[1]);
      __48.x = (v__75.x*v__76.x);
      __48.y = (v__75.y*v__76.y);
    *(float2*)(o + 50) = __48;
    float2 __49;
      float2 v__77 = *(float2*)(o + 52);
      float2 v__78 = make_float2(before[0], before[0]);
      __49.x = (v__77.x*v__78.x);
      __49.y = (v__77.y*v__78.y);
    *(float2*)(o + 52) = __49;
    float2 __50;
      float2 v__79 = *(float2*)(o + 54);
      float2 v__80 = make_float2(before[1], before[1]);
      __50.x = (v__79.x*v__80.x);
      __50.y = (v__79.y*v__80.y);
    *(float2*)(o + 54) = __50;
    float2 __51;
      float2 v__81 = *(float2*)(o + 56);
      float2 v__82 = make_float2(before[0], before[0]);
      __51.x = (v__81.x*v__82.x);
      __51.y = (v__81.y*v__82.y);
    *(float2*)(o + 56) = __51;
    float2 __52;
      float2 v__83 = *(float2*)(o + 58);
      float2 v__84 = make_float2(before[1], before[1]);
      __52.x = (v__83.x*v__84.x);
      __52.y = (v__83.y*v__84.y);
    *(float2*)(o + 58) = __52;
    float2 __53;
      float2 v__85 = *(float2*)(o + 60);
      float2 v__86 = make_float2(before[0], before[0]);
      __53.x = (v__85.x*v__86.x);
      __53.y = (v__85.y*v__86.y);
    *(float2*)(o + 60) = __53;
    float2 __54;
      float2 v__87 = *(float2*)(o + 62);
      float2 v__88 = make_float2(before[1], before[1]);
      __54.x = (v__87.x*v__88.x);
      __54.y = (v__87.y*v__88.y);
    *(float2*)(o + 62) = __54;
  }
  tl::cp_async_wait<2>();
  __syncthreads();
  if (2 <= count) {
    {
      bfloat16_t B_local_3[64];
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((count & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_3[0])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((count & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 2) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_3[8])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((count & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_3[16])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((count & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_3[24])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((count & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_3[32])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((((count & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 2) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_3[40])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((((count & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_3[48])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((((count & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_3[56])));
      for (int j_1 = 0; j_1 < 8; ++j_1) {
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + (j_1 * 8)), reinterpret_cast<const unsigned*>(weights + 0), reinterpret_cast<const unsigned*>(B_local_3 + (j_1 * 8)));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + ((j_1 * 8) + 4)), reinterpret_cast<const unsigned*>(weights + 0), reinterpret_cast<const unsigned*>(B_local_3 + ((j_1 * 8) + 4)));
      }
    }
  }
  if (1 <= count) {
    float broadcast_var_7 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 0) = make_float4(broadcast_var_7, broadcast_var_7, broadcast_var_7, broadcast_var_7);
    float broadcast_var_8 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 4) = make_float4(broadcast_var_8, broadcast_var_8, broadcast_var_8, broadcast_var_8);
  }
  tl::cp_async_wait<1>();
  __syncthreads();
  if (1 <= count) {
    {
      bfloat16_t A_local_2[8];
      bfloat16_t B_local_4[8];
      for (int ki_2 = 0; ki_2 < 12; ++ki_2) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)q_tile)[(((((((ki_2 >> 2) * 4096) + ((((int)threadIdx.x) >> 5) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_2 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_2 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(A_local_2[0])));
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[(((((((((count + 1) & 1) * 3072) + ((ki_2 >> 2) * 1024)) + (((((int)threadIdx.x) & 31) >> 4) * 512)) + ((((int)threadIdx.x) & 7) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_2 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_2 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_4[0])));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + 0), reinterpret_cast<const unsigned*>(A_local_2 + 0), reinterpret_cast<const unsigned*>(B_local_4 + 0));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + 4), reinterpret_cast<const unsigned*>(A_local_2 + 0), reinterpret_cast<const unsigned*>(B_local_4 + 4));
      }
    }
  }
  if (1 <= count) {
    float condval_16;
    if ((((0 < ((((int*)sharers)[((count - 1) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && ((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) < keys)) && ((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_16 = (s[0] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_16 = -CUDART_INF_F;
    }
    s[0] = condval_16;
    float condval_17;
    if ((((0 < ((((int*)sharers)[((count - 1) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 1) < keys)) && ((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) < (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_17 = (s[1] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_17 = -CUDART_INF_F;
    }
    s[1] = condval_17;
    float condval_18;
    if ((((0 < ((((int*)sharers)[((count - 1) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && ((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) < keys)) && ((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_18 = (s[2] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_18 = -CUDART_INF_F;
    }
    s[2] = condval_18;
    float condval_19;
    if ((((0 < ((((int*)sharers)[((count - 1) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 1) < keys)) && ((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) < (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_19 = (s[3] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_19 = -CUDART_INF_F;
    }
    s[3] = condval_19;
    float condval_20;
    if ((((0 < ((((int*)sharers)[((count - 1) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 8) < keys)) && (((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 8) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_20 = (s[4] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_20 = -CUDART_INF_F;
    }
    s[4] = condval_20;
    float condval_21;
    if ((((0 < ((((int*)sharers)[((count - 1) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 9) < keys)) && (((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 9) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_21 = (s[5] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_21 = -CUDART_INF_F;
    }
    s[5] = condval_21;
    float condval_22;
    if ((((0 < ((((int*)sharers)[((count - 1) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 8) < keys)) && (((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 8) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_22 = (s[6] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_22 = -CUDART_INF_F;
    }
    s[6] = condval_22;
    float condval_23;
    if ((((0 < ((((int*)sharers)[((count - 1) / 4)] >> (((int)threadIdx.x) >> 5)) & 1)) && (((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 9) < keys)) && (((((((int*)listed)[((count - 1) / 4)] * 64) + (((count - 1) % 4) * 16)) + ((((int)threadIdx.x) & 3) * 2)) + 9) <= (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) + q_start)))) {
      condval_23 = (s[7] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_23 = -CUDART_INF_F;
    }
    s[7] = condval_23;
  }
  if (1 <= count) {
    *(float2*)(before + 0) = *(float2*)(top + 0);
  }
  if (1 <= count) {
    top_clear_1[0] = -CUDART_INF_F;
    top_clear_1[0] = max(top_clear_1[0], s[0]);
    top_clear_1[0] = max(top_clear_1[0], s[4]);
    top_clear_1[0] = max(top_clear_1[0], s[1]);
    top_clear_1[0] = max(top_clear_1[0], s[5]);
    top_clear_1[0] = tl::AllReduce<tl::MaxOp, 4, 1, 0, tl::NamedBarrier<128>>::run(top_clear_1[0]);
    top[0] = max(top[0], top_clear_1[0]);
    top_clear_1[1] = -CUDART_INF_F;
    top_clear_1[1] = max(top_clear_1[1], s[2]);
    top_clear_1[1] = max(top_clear_1[1], s[6]);
    top_clear_1[1] = max(top_clear_1[1], s[3]);
    top_clear_1[1] = max(top_clear_1[1], s[7]);
    top_clear_1[1] = tl::AllReduce<tl::MaxOp, 4, 1, 0, tl::NamedBarrier<128>>::run(top_clear_1[1]);
    top[1] = max(top[1], top_clear_1[1]);
  }
  if (1 <= count) {
    float condval_24;
    if ((top[0] == -CUDART_INF_F)) {
      condval_24 = 0x0p+0f/*0.000000e+00*/;
    } else {
      condval_24 = top[0];
    }
    scaled[0] = condval_24;
    float condval_25;
    if ((top[1] == -CUDART_INF_F)) {
      condval_25 = 0x0p+0f/*0.000000e+00*/;
    } else {
      condval_25 = top[1];
    }
    scaled[1] = condval_25;
  }
  if (1 <= count) {
    float2 __55;
    float2 __56;
      float2 v__89 = *(float2*)(s + 0);
      float2 v__90 = make_float2(scaled[0], scaled[0]);
      __56.x = (v__89.x-v__90.x);
      __56.y = (v__89.y-v__90.y);
    __55.x = exp2f(__56.x);
    __55.y = exp2f(__56.y);
    *(float2*)(s + 0) = __55;
    float2 __57;
    float2 __58;
      float2 v__91 = *(float2*)(s + 2);
      float2 v__92 = make_float2(scaled[1], scaled[1]);
      __58.x = (v__91.x-v__92.x);
      __58.y = (v__91.y-v__92.y);
    __57.x = exp2f(__58.x);
    __57.y = exp2f(__58.y);
    *(float2*)(s + 2) = __57;
    float2 __59;
    float2 __60;
      float2 v__93 = *(float2*)(s + 4);
      float2 v__94 = make_float2(scaled[0], scaled[0]);
      __60.x = (v__93.x-v__94.x);
      __60.y = (v__93.y-v__94.y);
    __59.x = exp2f(__60.x);
    __59.y = exp2f(__60.y);
    *(float2*)(s + 4) = __59;
    float2 __61;
    float2 __62;
      float2 v__95 = *(float2*)(s + 6);
      float2 v__96 = make_float2(scaled[1], scaled[1]);
      __62.x = (v__95.x-v__96.x);
      __62.y = (v__95.y-v__96.y);
    __61.x = exp2f(__62.x);
    __61.y = exp2f(__62.y);
    *(float2*)(s + 6) = __61;
  }
  if (1 <= count) {
    summed[0] = 0x0p+0f/*0.000000e+00*/;
    summed[0] = (summed[0] + s[0]);
    summed[0] = (summed[0] + s[4]);
    summed[0] = (summed[0] + s[1]);
    summed[0] = (summed[0] + s[5]);
    summed[0] = tl::AllReduce<tl::SumOp, 4, 1, 0, tl::NamedBarrier<128>>::run(summed[0]);
    summed[1] = 0x0p+0f/*0.000000e+00*/;
    summed[1] = (summed[1] + s[2]);
    summed[1] = (summed[1] + s[6]);
    summed[1] = (summed[1] + s[3]);
    summed[1] = (summed[1] + s[7]);
    summed[1] = tl::AllReduce<tl::SumOp, 4, 1, 0, tl::NamedBarrier<128>>::run(summed[1]);
  }
  if (1 <= count) {
    float2 __63;
    float2 __64;
      float2 v__97 = *(float2*)(before + 0);
      float2 v__98 = *(float2*)(scaled + 0);
      __64.x = (v__97.x-v__98.x);
      __64.y = (v__97.y-v__98.y);
    __63.x = exp2f(__64.x);
    __63.y = exp2f(__64.y);
    *(float2*)(before + 0) = __63;
    float2 __65;
      float2 __66;
        float2 v__99 = *(float2*)(total + 0);
        float2 v__100 = *(float2*)(before + 0);
        __66.x = (v__99.x*v__100.x);
        __66.y = (v__99.y*v__100.y);
      float2 v__101 = *(float2*)(summed + 0);
      __65.x = (__66.x+v__101.x);
      __65.y = (__66.y+v__101.y);
    *(float2*)(total + 0) = __65;
  }
  if (1 <= count) {
    uint2 __67;
    float4 v__102 = *(float4*)(s + 0);
    (reinterpret_cast<__nv_bfloat162*>(&__67))[0] = __float22bfloat162_rn(((float2*)(&v__102))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__67))[1] = __float22bfloat162_rn(((float2*)(&v__102))[1]);
    *(uint2*)(weights + 0) = __67;
    uint2 __68;
    float4 v__103 = *(float4*)(s + 4);
    (reinterpret_cast<__nv_bfloat162*>(&__68))[0] = __float22bfloat162_rn(((float2*)(&v__103))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__68))[1] = __float22bfloat162_rn(((float2*)(&v__103))[1]);
    *(uint2*)(weights + 4) = __68;
  }
  if (1 <= count) {
    float2 __69;
      float2 v__104 = *(float2*)(o + 0);
      float2 v__105 = make_float2(before[0], before[0]);
      __69.x = (v__104.x*v__105.x);
      __69.y = (v__104.y*v__105.y);
    *(float2*)(o + 0) = __69;
    float2 __70;
      float2 v__106 = *(float2*)(o + 2);
      float2 v__107 = make_float2(before[1], before[1]);
      __70.x = (v__106.x*v__107.x);
      __70.y = (v__106.y*v__107.y);
    *(float2*)(o + 2) = __70;
    float2 __71;
      float2 v__108 = *(float2*)(o + 4);
      float2 v__109 = make_float2(before[0], before[0]);
      __71.x = (v__108.x*v__109.x);
      __71.y = (v__108.y*v__109.y);
    *(float2*)(o + 4) = __71;
    float2 __72;
      float2 v__110 = *(float2*)(o + 6);
      float2 v__111 = make_float2(before[1], before[1]);
      __72.x = (v__110.x*v__111.x);
      __72.y = (v__110.y*v__111.y);
    *(float2*)(o + 6) = __72;
    float2 __73;
      float2 v__112 = *(float2*)(o + 8);
      float2 v__113 = make_float2(before[0], before[0]);
      __73.x = (v__112.x*v__113.x);
      __73.y = (v__112.y*v__113.y);
    *(float2*)(o + 8) = __73;
    float2 __74;
      float2 v__114 = *(float2*)(o + 10);
      float2 v__115 = make_float2(before[1], before[1]);
      __74.x = (v__114.x*v__115.x);
      __74.y = (v__114.y*v__115.y);
    *(float2*)(o + 10) = __74;
    float2 __75;
      float2 v__116 = *(float2*)(o + 12);
      float2 v__117 = make_float2(before[0], before[0]);
      __75.x = (v__116.x*v__117.x);
      __75.y = (v__116.y*v__117.y);
    *(float2*)(o + 12) = __75;
    float2 __76;
      float2 v__118 = *(float2*)(o + 14);
      float2 v__119 = make_float2(before[1], before[1]);
      __76.x = (v__118.x*v__119.x);
      __76.y = (v__118.y*v__119.y);
    *(float2*)(o + 14) = __76;
    float2 __77;
      float2 v__120 = *(float2*)(o + 16);
      float2 v__121 = make_float2(before[0], before[0]);
      __77.x = (v__120.x*v__121.x);
      __77.y = (v__120.y*v__121.y);
    *(float2*)(o + 16) = __77;
    float2 __78;
      float2 v__122 = *(float2*)(o + 18);
      float2 v__123 = make_float2(before[1], before[1]);
      __78.x = (v__122.x*v__123.x);
      __78.y = (v__122.y*v__123.y);
    *(float2*)(o + 18) = __78;
    float2 __79;
      float2 v__124 = *(float2*)(o + 20);
      float2 v__125 = make_float2(before[0], before[0]);
      __79.x = (v__124.x*v__125.x);
      __79.y = (v__124.y*v__125.y);
    *(float2*)(o + 20) = __79;
    float2 __80;
      float2 v__126 = *(float2*)(o + 22);
      float2 v__127 = make_float2(before[1], before[1]);
      __80.x = (v__126.x*v__127.x);
      __80.y = (v__126.y*v__127.y);
    *(float2*)(o + 22) = __80;
    float2 __81;
      float2 v__128 = *(float2*)(o + 24);
      float2 v__129 = make_float2(before[0], before[0]);
      __81.x = (v__128.x*v__129.x);
      __81.y = (v__128.y*v__129.y);
    *(float2*)(o + 24) = __81;
    float2 __82;
      float2 v__130 = *(float2*)(o + 26);
      float2 v__131 = make_float2(before[1], before[1]);
      __82.x = (v__130.x*v__131.x);
      __82.y = (v__130.y*v__131.y);
    *(float2*)(o + 26) = __82;
    float2 __83;
      float2 v__132 = *(float2*)(o + 28);
      float2 v__133 = make_float2(before[0], before[0]);
      __83.x = (v__132.x*v__133.x);
      __83.y = (v__132.y*v__133.y);
    *(float2*)(o + 28) = __83;
    float2 __84;
      float2 v__134 = *(float2*)(o + 30);
      float2 v__135 = make_float2(before[1], before[1]);
      __84.x = (v__134.x*v__135.x);
      __84.y = (v__134.y*v__135.y);
    *(float2*)(o + 30) = __84;
    float2 __85;
      float2 v__136 = *(float2*)(o + 32);
      float2 v__137 = make_float2(before[0], before[0]);
      __85.x = (v__136.x*v__137.x);
      __85.y = (v__136.y*v__137.y);
    *(float2*)(o + 32) = __85;
    float2 __86;
      float2 v__138 = *(float2*)(o + 34);
      float2 v__139 = make_float2(before[1], before[1]);
      __86.x = (v__138.x*v__139.x);
      __86.y = (v__138.y*v__139.y);
    *(float2*)(o + 34) = __86;
    float2 __87;
      float2 v__140 = *(float2*)(o + 36);
      float2 v__141 = make_float2(before[0], before[0]);
      __87.x = (v__140.x*v__141.x);
      __87.y = (v__140.y*v__141.y);
    *(float2*)(o + 36) = __87;
    float2 __88;
      float2 v__142 = *(float2*)(o + 38);
      float2 v__143 = make_float2(before[1], before[1]);
      __88.x = (v__142.x*v__143.x);
      __88.y = (v__142.y*v__143.y);
    *(float2*)(o + 38) = __88;
    float2 __89;
      float2 v__144 = *(float2*)(o + 40);
      float2 v__145 = make_float2(before[0], before[0]);
      __89.x = (v__144.x*v__145.x);
      __89.y = (v__144.y*v__145.y);
    *(float2*)(o + 40) = __89;
    float2 __90;
      float2 v__146 = *(float2*)(o + 42);
      float2 v__147 = make_float2(before[1], before[1]);
      __90.x = (v__146.x*v__147.x);
      __90.y = (v__146.y*v__147.y);
    *(float2*)(o + 42) = __90;
    float2 __91;
      float2 v__148 = *(float2*)(o + 44);
      float2 v__149 = make_float2(before[0], before[0]);
      __91.x = (v__148.x*v__149.x);
      __91.y = (v__148.y*v__149.y);
    *(float2*)(o + 44) = __91;
    float2 __92;
      float2 v__150 = *(float2*)(o + 46);
      float2 v__151 = make_float2(before[1], before[1]);
      __92.x = (v__150.x*v__151.x);
      __92.y = (v__150.y*v__151.y);
    *(float2*)(o + 46) = __92;
    float2 __93;
      float2 v__152 = *(float2*)(o + 48);
      float2 v__153 = make_float2(before[0], before[0]);
      __93.x = (v__152.x*v__153.x);
      __93.y = (v__152.y*v__153.y);
    *(float2*)(o + 48) = __93;
    float2 __94;
      float2 v__154 = *(float2*)(o + 50);
      float2 v__155 = make_float2(before[1], before[1]);
      __94.x = (v__154.x*v__155.x);
      __94.y = (v__154.y*v__155.y);
    *(float2*)(o + 50) = __94;
    float2 __95;
      float2 v__156 = *(float2*)(o + 52);
      float2 v__157 = make_float2(before[0], before[0]);
      __95.x = (v__156.x*v__157.x);
      __95.y = (v__156.y*v__157.y);
    *(float2*)(o + 52) = __95;
    float2 __96;
      float2 v__158 = *(float2*)(o + 54);
      float2 v__159 = make_float2(before[1], before[1]);
      __96.x = (v__158.x*v__159.x);
      __96.y = (v__158.y*v__159.y);
    *(float2*)(o + 54) = __96;
    float2 __97;
      float2 v__160 = *(float2*)(o + 56);
      float2 v__161 = make_float2(before[0], before[0]);
      __97.x = (v__160.x*v__161.x);
      __97.y = (v__160.y*v__161.y);
    *(float2*)(o + 56) = __97;
    float2 __98;
      float2 v__162 = *(float2*)(o + 58);
      float2 v__163 = make_float2(before[1], before[1]);
      __98.x = (v__162.x*v__163.x);
      __98.y = (v__162.y*v__163.y);
    *(float2*)(o + 58) = __98;
    float2 __99;
      float2 v__164 = *(float2*)(o + 60);
      float2 v__165 = make_float2(before[0], before[0]);
      __99.x = (v__164.x*v__165.x);
      __99.y = (v__164.y*v__165.y);
    *(float2*)(o + 60) = __99;
    float2 __100;
      float2 v__166 = *(float2*)(o + 62);
      float2 v__167 = make_float2(before[1], before[1]);
      __100.x = (v__166.x*v__167.x);
      __100.y = (v__166.y*v__167.y);
    *(float2*)(o + 62) = __100;
  }
  tl::cp_async_wait<0>();
  __syncthreads();
  if (1 <= count) {
    {
      bfloat16_t B_local_5[64];
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_5[0])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 2) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_5[8])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_5[16])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_5[24])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_5[32])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 2) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_5[40])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_5[48])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_5[56])));
      for (int j_2 = 0; j_2 < 8; ++j_2) {
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + (j_2 * 8)), reinterpret_cast<const unsigned*>(weights + 0), reinterpret_cast<const unsigned*>(B_local_5 + (j_2 * 8)));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + ((j_2 * 8) + 4)), reinterpret_cast<const unsigned*>(weights + 0), reinterpret_cast<const unsigned*>(B_local_5 + ((j_2 * 8) + 4)));
      }
    }
  }
  #pragma unroll
  for (int i_17 = 0; i_17 < 32; ++i_17) {
    float broadcast_var_9 = 0x0p+0f/*0.000000e+00*/;
    float2 condval_26;
    if ((0x0p+0f/*0.000000e+00*/ < total[(i_17 & 1)])) {
      float2 __101;
        float2 v__168 = *(float2*)(o + (i_17 * 2));
        float2 v__169 = make_float2(total[(i_17 & 1)], total[(i_17 & 1)]);
        __101.x = (v__168.x/v__169.x);
        __101.y = (v__168.y/v__169.y);
      condval_26 = __101;
    } else {
      condval_26 = make_float2(broadcast_var_9, broadcast_var_9);
    }
    *(float2*)(o + (i_17 * 2)) = condval_26;
  }
  #pragma unroll
  for (int i_18 = 0; i_18 < 2; ++i_18) {
    float condval_27;
    if ((0x0p+0f/*0.000000e+00*/ < total[i_18])) {
      condval_27 = ((top[i_18] + log2f(total[i_18])) * 0x1.62e42fefa39efp-1f/*6.931472e-01*/);
    } else {
      condval_27 = -CUDART_INF_F;
    }
    top[i_18] = condval_27;
  }
  #pragma unroll
  for (int i_19 = 0; i_19 < 32; ++i_19) {
    bfloat16_t out_local_cast[2];
    if (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) < tokens) {
      uint1 __102;
      float2 v__170 = *(float2*)(o + (i_19 * 2));
      (reinterpret_cast<__nv_bfloat162*>(&__102))[0] = __float22bfloat162_rn(((float2*)(&v__170))[0]);
      *(uint1*)(out_local_cast + 0) = __102;
      *(uint1*)(out + (((((((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)2048) + ((((((int64_t)((int)blockIdx.x)) * (int64_t)4) + (((int64_t)((int)threadIdx.x)) >> (int64_t)5)) * ((int64_t)kv_heads)) * (int64_t)2048)) + (((int64_t)((int)blockIdx.y)) * (int64_t)2048)) + ((((int64_t)i_19) & (int64_t)1) * (int64_t)1024)) + (((((int64_t)((int)threadIdx.x)) & (int64_t)31) >> (int64_t)2) * (int64_t)128)) + ((((int64_t)i_19) >> (int64_t)1) * (int64_t)8)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)2))) = *(uint1*)(out_local_cast + 0);
    }
  }
  if ((((int)threadIdx.x) % 4) == 0) {
    if (((((int)blockIdx.x) * 4) + (((int)threadIdx.x) >> 5)) < tokens) {
      #pragma unroll
      for (int i_20 = 0; i_20 < 2; ++i_20) {
        lse[(((((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)16) + ((((((int64_t)((int)blockIdx.x)) * (int64_t)4) + (((int64_t)((int)threadIdx.x)) >> (int64_t)5)) * ((int64_t)kv_heads)) * (int64_t)16)) + (((int64_t)((int)blockIdx.y)) * (int64_t)16)) + (((int64_t)i_20) * (int64_t)8)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)31) >> (int64_t)2))] = top[i_20];
      }
    }
  }
}

