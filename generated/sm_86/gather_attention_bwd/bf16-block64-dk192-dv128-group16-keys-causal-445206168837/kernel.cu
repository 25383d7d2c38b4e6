// gather_attention_bwd(bfloat16, block=64, dk=192, dv=128, group=16, part=keys, reach=causal)
// schedule rows=32 key_tile=16 stages=2 threads=128
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
#include <tl_templates/cuda/reduce.h>
#include <tl_templates/cuda/scan.h>
#include <tl_templates/cuda/ldsm.h>
#include <tl_templates/cuda/threadblock_swizzle.h>
#include <tl_templates/cuda/debug.h>
#ifdef ENABLE_BF16
#include <tl_templates/cuda/cuda_bf16_fallbacks.cuh>
#endif

extern "C" __global__ void gather_attention_keys_kernel(const float* __restrict__ delta, const bfloat16_t* __restrict__ dout, bfloat16_t* __restrict__ grad_k, bfloat16_t* __restrict__ grad_v, const bfloat16_t* __restrict__ k, const int* __restrict__ listing, const float* __restrict__ lse, const bfloat16_t* __restrict__ q, const int* __restrict__ starts, const bfloat16_t* __restrict__ v, int batch, int blocks, int entries, int keys, int kv_heads, int q_start, float scale, int tokens);
extern "C" __global__ void __launch_bounds__(128, 1) gather_attention_keys_kernel(const float* __restrict__ delta, const bfloat16_t* __restrict__ dout, bfloat16_t* __restrict__ grad_k, bfloat16_t* __restrict__ grad_v, const bfloat16_t* __restrict__ k, const int* __restrict__ listing, const float* __restrict__ lse, const bfloat16_t* __restrict__ q, const int* __restrict__ starts, const bfloat16_t* __restrict__ v, int batch, int blocks, int entries, int keys, int kv_heads, int q_start, float scale, int tokens) {
  extern __shared__ __align__(1024) uchar buf_dyn_shmem[];
  void* k_tile = ((void*)((char*)buf_dyn_shmem + 0));
  void* v_tile = ((void*)((char*)buf_dyn_shmem + 12288));
  void* logs = ((void*)((char*)buf_dyn_shmem + 20480));
  void* dout_tile = ((void*)((char*)buf_dyn_shmem + 20608));
  void* rest = ((void*)((char*)buf_dyn_shmem + 28800));
  void* q_tile = ((void*)((char*)buf_dyn_shmem + 28928));
  void* weights = ((void*)((char*)buf_dyn_shmem + 41216));
  void* position = ((void*)((char*)buf_dyn_shmem + 42240));
  int begin = 0;
  int past = 0;
  int count = 0;
  float sum_k[48];
  float sum_v[32];
  float s[4];
  float ds[4];
  int condval;
  if (((((int)blockIdx.x) / 2) < blocks)) {
    condval = starts[((((((int64_t)((int)blockIdx.x)) / (int64_t)2) * (int64_t)2) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)2)) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)blocks)) * (int64_t)2))];
  } else {
    condval = 0;
  }
  begin = condval;
  int condval_1;
  if (((((int)blockIdx.x) / 2) < blocks)) {
    condval_1 = starts[(((((((int64_t)((int)blockIdx.x)) / (int64_t)2) * (int64_t)2) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)blocks)) * ((int64_t)kv_heads)) * (int64_t)2)) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)blocks)) * (int64_t)2)) + (int64_t)1)];
  } else {
    condval_1 = 0;
  }
  past = condval_1;
  count = (past - begin);
  #pragma unroll
  for (int i = 0; i < 6; ++i) {
    bfloat16_t broadcast_var = bfloat16_t(0x0p+0f/*0.000000e+00*/);
    uint4 condval_2;
    if ((((((int)blockIdx.x) * 32) + (((i * 16) + (((int)threadIdx.x) >> 3)) / 3)) < keys)) {
      condval_2 = *(uint4*)(k + ((((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)192) + ((((((int64_t)((int)blockIdx.x)) * (int64_t)32) + (((((int64_t)i) * (int64_t)16) + (((int64_t)((int)threadIdx.x)) >> (int64_t)3)) / (int64_t)3)) * ((int64_t)kv_heads)) * (int64_t)192)) + (((int64_t)((int)blockIdx.y)) * (int64_t)192)) + ((((((int64_t)i) * (int64_t)128) + ((int64_t)((int)threadIdx.x))) % (int64_t)24) * (int64_t)8)));
    } else {
      condval_2 = make_uint4(__pack_nv_bfloat162(broadcast_var, broadcast_var), __pack_nv_bfloat162(broadcast_var, broadcast_var), __pack_nv_bfloat162(broadcast_var, broadcast_var), __pack_nv_bfloat162(broadcast_var, broadcast_var));
    }
    *(uint4*)(((bfloat16_t*)k_tile) + ((((((((i * 16) + (((int)threadIdx.x) >> 3)) % 3) * 2048) + ((((i * 16) + (((int)threadIdx.x) >> 3)) / 3) * 64)) + (((((((i * 4) + (((int)threadIdx.x) >> 5)) % 6) / 3) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((i * 8) + (((int)threadIdx.x) >> 4)) % 6) / 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((i * 16) + (((int)threadIdx.x) >> 3)) % 6) / 3) + (((int)threadIdx.x) & 1)) & 1) * 8))) = condval_2;
  }
  #pragma unroll
  for (int i_1 = 0; i_1 < 4; ++i_1) {
    bfloat16_t broadcast_var_1 = bfloat16_t(0x0p+0f/*0.000000e+00*/);
    uint4 condval_3;
    if (((((((int)blockIdx.x) * 32) + (i_1 * 8)) + (((int)threadIdx.x) >> 4)) < keys)) {
      condval_3 = *(uint4*)(v + ((((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)128) + (((((((int64_t)((int)blockIdx.x)) * (int64_t)32) + (((int64_t)i_1) * (int64_t)8)) + (((int64_t)((int)threadIdx.x)) >> (int64_t)4)) * ((int64_t)kv_heads)) * (int64_t)128)) + (((int64_t)((int)blockIdx.y)) * (int64_t)128)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)15) * (int64_t)8)));
    } else {
      condval_3 = make_uint4(__pack_nv_bfloat162(broadcast_var_1, broadcast_var_1), __pack_nv_bfloat162(broadcast_var_1, broadcast_var_1), __pack_nv_bfloat162(broadcast_var_1, broadcast_var_1), __pack_nv_bfloat162(broadcast_var_1, broadcast_var_1));
    }
    *(uint4*)(((bfloat16_t*)v_tile) + ((((((((((int)threadIdx.x) & 15) >> 3) * 2048) + (i_1 * 512)) + ((((int)threadIdx.x) >> 4) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((int)threadIdx.x) & 63) >> 5) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))) = condval_3;
  }
  #pragma unroll
  for (int i_2 = 0; i_2 < 12; ++i_2) {
    float broadcast_var_2 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(sum_k + (i_2 * 4)) = make_float4(broadcast_var_2, broadcast_var_2, broadcast_var_2, broadcast_var_2);
  }
  #pragma unroll
  for (int i_3 = 0; i_3 < 8; ++i_3) {
    float broadcast_var_3 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(sum_v + (i_3 * 4)) = make_float4(broadcast_var_3, broadcast_var_3, broadcast_var_3, broadcast_var_3);
  }
  __syncthreads();
  if (0 < count) {
    if (0 < count) {
      int first = begin;
      if (((int)threadIdx.x) < 16) {
        tl::cp_async_gs_conditional<4>((&(((float*)logs)[((int)threadIdx.x)])), (&(lse[((((((int64_t)((int)blockIdx.y)) * (int64_t)16) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)16)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first))]) * ((int64_t)kv_heads)) * (int64_t)16)) + ((int64_t)((int)threadIdx.x)))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first))])));
      }
    }
    tl::cp_async_commit();
  }
  if (0 < count) {
    if (0 < count) {
      int first_1 = begin;
      #pragma unroll
      for (int i_4 = 0; i_4 < 2; ++i_4) {
        tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)dout_tile)[((((((((((int)threadIdx.x) & 15) >> 3) * 1024) + (i_4 * 512)) + ((((int)threadIdx.x) >> 4) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((int)threadIdx.x) & 63) >> 5) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(dout[(((((((int64_t)((int)blockIdx.y)) * (int64_t)2048) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)2048)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_1))]) * ((int64_t)kv_heads)) * (int64_t)2048)) + (((int64_t)i_4) * (int64_t)1024)) + (((int64_t)((int)threadIdx.x)) * (int64_t)8))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_1))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_1))])));
      }
    }
    tl::cp_async_commit();
  }
  if (0 < count) {
    if (0 < count) {
      int first_2 = begin;
      if (((int)threadIdx.x) < 16) {
        tl::cp_async_gs_conditional<4>((&(((float*)rest)[((int)threadIdx.x)])), (&(delta[((((((int64_t)((int)blockIdx.y)) * (int64_t)16) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)16)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_2))]) * ((int64_t)kv_heads)) * (int64_t)16)) + ((int64_t)((int)threadIdx.x)))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_2))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_2))])));
      }
    }
    tl::cp_async_commit();
  }
  if (0 < count) {
    if (0 < count) {
      int first_3 = begin;
      #pragma unroll
      for (int i_5 = 0; i_5 < 3; ++i_5) {
        tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)q_tile)[((((((((i_5 * 16) + (((int)threadIdx.x) >> 3)) % 3) * 1024) + ((((i_5 * 16) + (((int)threadIdx.x) >> 3)) / 3) * 64)) + (((((((i_5 * 4) + (((int)threadIdx.x) >> 5)) % 6) / 3) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((i_5 * 8) + (((int)threadIdx.x) >> 4)) % 6) / 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((i_5 * 16) + (((int)threadIdx.x) >> 3)) % 6) / 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(q[(((((((int64_t)((int)blockIdx.y)) * (int64_t)3072) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)3072)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_3))]) * ((int64_t)kv_heads)) * (int64_t)3072)) + (((int64_t)i_5) * (int64_t)1024)) + (((int64_t)((int)threadIdx.x)) * (int64_t)8))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_3))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_3))])));
      }
    }
    tl::cp_async_commit();
  }
  if (1 < count) {
    if (1 < count) {
      int first_4 = (begin + 1);
      if (((int)threadIdx.x) < 16) {
        tl::cp_async_gs_conditional<4>((&(((float*)logs)[(((int)threadIdx.x) + 16)])), (&(lse[((((((int64_t)((int)blockIdx.y)) * (int64_t)16) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)16)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_4))]) * ((int64_t)kv_heads)) * (int64_t)16)) + ((int64_t)((int)threadIdx.x)))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_4))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_4))])));
      }
    }
    tl::cp_async_commit();
  }
  if (1 < count) {
    if (1 < count) {
      int first_5 = (begin + 1);
      #pragma unroll
      for (int i_6 = 0; i_6 < 2; ++i_6) {
        tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)dout_tile)[(((((((((((int)threadIdx.x) & 15) >> 3) * 1024) + (i_6 * 512)) + ((((int)threadIdx.x) >> 4) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((int)threadIdx.x) & 63) >> 5) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 2048)])), (&(dout[(((((((int64_t)((int)blockIdx.y)) * (int64_t)2048) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)2048)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_5))]) * ((int64_t)kv_heads)) * (int64_t)2048)) + (((int64_t)i_6) * (int64_t)1024)) + (((int64_t)((int)threadIdx.x)) * (int64_t)8))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_5))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_5))])));
      }
    }
    tl::cp_async_commit();
  }
  if (1 < count) {
    if (1 < count) {
      int first_6 = (begin + 1);
      if (((int)threadIdx.x) < 16) {
        tl::cp_async_gs_conditional<4>((&(((float*)rest)[(((int)threadIdx.x) + 16)])), (&(delta[((((((int64_t)((int)blockIdx.y)) * (int64_t)16) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)16)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_6))]) * ((int64_t)kv_heads)) * (int64_t)16)) + ((int64_t)((int)threadIdx.x)))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_6))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_6))])));
      }
    }
    tl::cp_async_commit();
  }
  if (1 < count) {
    if (1 < count) {
      int first_7 = (begin + 1);
      #pragma unroll
      for (int i_7 = 0; i_7 < 3; ++i_7) {
        tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)q_tile)[(((((((((i_7 * 16) + (((int)threadIdx.x) >> 3)) % 3) * 1024) + ((((i_7 * 16) + (((int)threadIdx.x) >> 3)) / 3) * 64)) + (((((((i_7 * 4) + (((int)threadIdx.x) >> 5)) % 6) / 3) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((i_7 * 8) + (((int)threadIdx.x) >> 4)) % 6) / 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((i_7 * 16) + (((int)threadIdx.x) >> 3)) % 6) / 3) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 3072)])), (&(q[(((((((int64_t)((int)blockIdx.y)) * (int64_t)3072) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)3072)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_7))]) * ((int64_t)kv_heads)) * (int64_t)3072)) + (((int64_t)i_7) * (int64_t)1024)) + (((int64_t)((int)threadIdx.x)) * (int64_t)8))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_7))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_7))])));
      }
    }
    tl::cp_async_commit();
  }
  for (int step = 0; step < (count - 2); ++step) {
    int first_8 = (begin + step);
    __syncthreads();
    if (((int)threadIdx.x) < 16) {
      int condval_4;
      if ((first_8 < past)) {
        int condval_5;
        if (((first_8 < entries) && (0 <= first_8))) {
          condval_5 = listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_8))];
        } else {
          condval_5 = 0;
        }
        condval_4 = (q_start + condval_5);
      } else {
        condval_4 = -1;
      }
      ((int*)position)[((int)threadIdx.x)] = condval_4;
    }
    float broadcast_var_4 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 0) = make_float4(broadcast_var_4, broadcast_var_4, broadcast_var_4, broadcast_var_4);
    tl::cp_async_wait<4>();
    __syncthreads();
    {
      bfloat16_t A_local[8];
      bfloat16_t B_local[4];
      for (int ki = 0; ki < 12; ++ki) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[(((((((ki >> 2) * 2048) + (((((int)threadIdx.x) & 63) >> 5) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(A_local[0])));
        tl::ptx_ldmatrix_x2((&(((bfloat16_t*)q_tile)[((((((((step & 1) * 3072) + ((ki >> 2) * 1024)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 512)) + ((((int)threadIdx.x) & 7) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local[0])));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + 0), reinterpret_cast<const unsigned*>(A_local + 0), reinterpret_cast<const unsigned*>(B_local + 0));
      }
    }
    float broadcast_var_5 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(ds + 0) = make_float4(broadcast_var_5, broadcast_var_5, broadcast_var_5, broadcast_var_5);
    tl::cp_async_wait<6>();
    __syncthreads();
    {
      bfloat16_t A_local_1[8];
      bfloat16_t B_local_1[4];
      for (int ki_1 = 0; ki_1 < 8; ++ki_1) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)v_tile)[(((((((ki_1 >> 2) * 2048) + (((((int)threadIdx.x) & 63) >> 5) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_1 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_1 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(A_local_1[0])));
        tl::ptx_ldmatrix_x2((&(((bfloat16_t*)dout_tile)[((((((((step & 1) * 2048) + ((ki_1 >> 2) * 1024)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 512)) + ((((int)threadIdx.x) & 7) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_1 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_1 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_1[0])));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(ds + 0), reinterpret_cast<const unsigned*>(A_local_1 + 0), reinterpret_cast<const unsigned*>(B_local_1 + 0));
      }
    }
    tl::cp_async_wait<7>();
    __syncthreads();
    #pragma unroll
    for (int i_8 = 0; i_8 < 4; ++i_8) {
      float condval_6;
      if (((((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((i_8 >> 1) * 8)) + ((((int)threadIdx.x) & 31) >> 2)) <= ((int*)position)[((((((int)threadIdx.x) >> 6) * 8) + ((((int)threadIdx.x) & 3) * 2)) + (i_8 & 1))]) && (((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((i_8 >> 1) * 8)) + ((((int)threadIdx.x) & 31) >> 2)) < keys))) {
        condval_6 = exp2f((((s[i_8] * scale) - ((float*)logs)[(((((step & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + (i_8 & 1))]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
      } else {
        condval_6 = 0x0p+0f/*0.000000e+00*/;
      }
      s[i_8] = condval_6;
    }
    int first_9 = ((begin + step) + 2);
    __syncthreads();
    if (((int)threadIdx.x) < 16) {
      tl::cp_async_gs_conditional<4>((&(((float*)logs)[(((step & 1) * 16) + ((int)threadIdx.x))])), (&(lse[((((((int64_t)((int)blockIdx.y)) * (int64_t)16) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)16)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_9))]) * ((int64_t)kv_heads)) * (int64_t)16)) + ((int64_t)((int)threadIdx.x)))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_9))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_9))])));
    }
    tl::cp_async_commit();
    __syncthreads();
    #pragma unroll
    for (int i_9 = 0; i_9 < 2; ++i_9) {
      bfloat16_t weights_local_cast[2];
      uint1 __1;
      float2 v_ = *(float2*)(s + (i_9 * 2));
      (reinterpret_cast<__nv_bfloat162*>(&__1))[0] = __float22bfloat162_rn(((float2*)(&v_))[0]);
      *(uint1*)(weights_local_cast + 0) = __1;
      *(uint1*)(((bfloat16_t*)weights) + (((((((((int)threadIdx.x) & 63) >> 5) * 256) + (i_9 * 128)) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 8)) + ((((int)threadIdx.x) & 3) * 2))) = *(uint1*)(weights_local_cast + 0);
    }
    {
      bfloat16_t A_local_2[8];
      bfloat16_t B_local_2[32];
      __syncthreads();
      tl::ptx_ldmatrix_x4((&(((bfloat16_t*)weights)[(((((((int)threadIdx.x) & 63) >> 5) * 256) + ((((int)threadIdx.x) & 15) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 8))])), (&(A_local_2[0])));
      #pragma unroll
      for (int i_10 = 0; i_10 < 4; ++i_10) {
        tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)dout_tile)[(((((((step & 1) * 2048) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + (i_10 >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (i_10 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_2[(i_10 * 8)])));
      }
      for (int j = 0; j < 4; ++j) {
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_v + (j * 8)), reinterpret_cast<const unsigned*>(A_local_2 + 0), reinterpret_cast<const unsigned*>(B_local_2 + (j * 8)));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_v + ((j * 8) + 4)), reinterpret_cast<const unsigned*>(A_local_2 + 0), reinterpret_cast<const unsigned*>(B_local_2 + ((j * 8) + 4)));
      }
    }
    int first_10 = ((begin + step) + 2);
    __syncthreads();
    #pragma unroll
    for (int i_11 = 0; i_11 < 2; ++i_11) {
      tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)dout_tile)[((((((((step & 1) * 2048) + (((((int)threadIdx.x) & 15) >> 3) * 1024)) + (i_11 * 512)) + ((((int)threadIdx.x) >> 4) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((int)threadIdx.x) & 63) >> 5) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(dout[(((((((int64_t)((int)blockIdx.y)) * (int64_t)2048) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)2048)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_10))]) * ((int64_t)kv_heads)) * (int64_t)2048)) + (((int64_t)i_11) * (int64_t)1024)) + (((int64_t)((int)threadIdx.x)) * (int64_t)8))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_10))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_10))])));
    }
    tl::cp_async_commit();
    tl::cp_async_wait<7>();
    __syncthreads();
    #pragma unroll
    for (int i_12 = 0; i_12 < 2; ++i_12) {
      float2 __2;
        float2 v__1 = *(float2*)(s + (i_12 * 2));
        float2 __3;
          float2 v__2 = *(float2*)(ds + (i_12 * 2));
          float2 v__3 = *(float2*)(((float*)rest) + ((((step & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2)));
          __3.x = (v__2.x-v__3.x);
          __3.y = (v__2.y-v__3.y);
        __2.x = (v__1.x*__3.x);
        __2.y = (v__1.y*__3.y);
      *(float2*)(ds + (i_12 * 2)) = __2;
    }
    int first_11 = ((begin + step) + 2);
    __syncthreads();
    if (((int)threadIdx.x) < 16) {
      tl::cp_async_gs_conditional<4>((&(((float*)rest)[(((step & 1) * 16) + ((int)threadIdx.x))])), (&(delta[((((((int64_t)((int)blockIdx.y)) * (int64_t)16) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)16)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_11))]) * ((int64_t)kv_heads)) * (int64_t)16)) + ((int64_t)((int)threadIdx.x)))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_11))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_11))])));
    }
    tl::cp_async_commit();
    __syncthreads();
    #pragma unroll
    for (int i_13 = 0; i_13 < 2; ++i_13) {
      bfloat16_t weights_local_cast_1[2];
      uint1 __4;
      float2 v__4 = *(float2*)(ds + (i_13 * 2));
      (reinterpret_cast<__nv_bfloat162*>(&__4))[0] = __float22bfloat162_rn(((float2*)(&v__4))[0]);
      *(uint1*)(weights_local_cast_1 + 0) = __4;
      *(uint1*)(((bfloat16_t*)weights) + (((((((((int)threadIdx.x) & 63) >> 5) * 256) + (i_13 * 128)) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 8)) + ((((int)threadIdx.x) & 3) * 2))) = *(uint1*)(weights_local_cast_1 + 0);
    }
    {
      bfloat16_t A_local_3[8];
      bfloat16_t B_local_3[48];
      __syncthreads();
      tl::ptx_ldmatrix_x4((&(((bfloat16_t*)weights)[(((((((int)threadIdx.x) & 63) >> 5) * 256) + ((((int)threadIdx.x) & 15) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 8))])), (&(A_local_3[0])));
      #pragma unroll
      for (int i_14 = 0; i_14 < 6; ++i_14) {
        tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[(((((((step & 1) * 3072) + (((((((int)threadIdx.x) >> 6) * 3) + (i_14 >> 1)) >> 1) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + (((((((int)threadIdx.x) >> 6) * 6) + i_14) & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (i_14 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_3[(i_14 * 8)])));
      }
      for (int j_1 = 0; j_1 < 6; ++j_1) {
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_k + (j_1 * 8)), reinterpret_cast<const unsigned*>(A_local_3 + 0), reinterpret_cast<const unsigned*>(B_local_3 + (j_1 * 8)));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_k + ((j_1 * 8) + 4)), reinterpret_cast<const unsigned*>(A_local_3 + 0), reinterpret_cast<const unsigned*>(B_local_3 + ((j_1 * 8) + 4)));
      }
    }
    int first_12 = ((begin + step) + 2);
    __syncthreads();
    #pragma unroll
    for (int i_15 = 0; i_15 < 3; ++i_15) {
      tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)q_tile)[(((((((step & 1) * 3072) + ((((i_15 * 16) + (((int)threadIdx.x) >> 3)) % 3) * 1024)) + ((((i_15 * 16) + (((int)threadIdx.x) >> 3)) / 3) * 64)) + (((((((i_15 * 4) + (((int)threadIdx.x) >> 5)) % 6) / 3) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((i_15 * 8) + (((int)threadIdx.x) >> 4)) % 6) / 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((i_15 * 16) + (((int)threadIdx.x) >> 3)) % 6) / 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(q[(((((((int64_t)((int)blockIdx.y)) * (int64_t)3072) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)3072)) + ((((int64_t)listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_12))]) * ((int64_t)kv_heads)) * (int64_t)3072)) + (((int64_t)i_15) * (int64_t)1024)) + (((int64_t)((int)threadIdx.x)) * (int64_t)8))])), ((listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_12))] < tokens) && (0 <= listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_12))])));
    }
    tl::cp_async_commit();
  }
  __syncthreads();
  if (2 <= count) {
    int first_13 = ((begin + count) - 2);
    if (((int)threadIdx.x) < 16) {
      int condval_7;
      if ((first_13 < past)) {
        int condval_8;
        if (((first_13 < entries) && (0 <= first_13))) {
          condval_8 = listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_13))];
        } else {
          condval_8 = 0;
        }
        condval_7 = (q_start + condval_8);
      } else {
        condval_7 = -1;
      }
      ((int*)position)[((int)threadIdx.x)] = condval_7;
    }
  }
  if (2 <= count) {
    float broadcast_var_6 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 0) = make_float4(broadcast_var_6, broadcast_var_6, broadcast_var_6, broadcast_var_6);
  }
  tl::cp_async_wait<4>();
  __syncthreads();
  if (2 <= count) {
    {
      bfloat16_t A_local_4[8];
      bfloat16_t B_local_4[4];
      for (int ki_2 = 0; ki_2 < 12; ++ki_2) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[(((((((ki_2 >> 2) * 2048) + (((((int)threadIdx.x) & 63) >> 5) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_2 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_2 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(A_local_4[0])));
        tl::ptx_ldmatrix_x2((&(((bfloat16_t*)q_tile)[((((((((count & 1) * 3072) + ((ki_2 >> 2) * 1024)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 512)) + ((((int)threadIdx.x) & 7) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_2 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_2 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_4[0])));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + 0), reinterpret_cast<const unsigned*>(A_local_4 + 0), reinterpret_cast<const unsigned*>(B_local_4 + 0));
      }
    }
  }
  if (2 <= count) {
    float broadcast_var_7 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(ds + 0) = make_float4(broadcast_var_7, broadcast_var_7, broadcast_var_7, broadcast_var_7);
  }
  tl::cp_async_wait<6>();
  __syncthreads();
  if (2 <= count) {
    {
      bfloat16_t A_local_5[8];
      bfloat16_t B_local_5[4];
      for (int ki_3 = 0; ki_3 < 8; ++ki_3) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)v_tile)[(((((((ki_3 >> 2) * 2048) + (((((int)threadIdx.x) & 63) >> 5) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_3 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_3 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(A_local_5[0])));
        tl::ptx_ldmatrix_x2((&(((bfloat16_t*)dout_tile)[((((((((count & 1) * 2048) + ((ki_3 >> 2) * 1024)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 512)) + ((((int)threadIdx.x) & 7) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_3 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_3 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_5[0])));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(ds + 0), reinterpret_cast<const unsigned*>(A_local_5 + 0), reinterpret_cast<const unsigned*>(B_local_5 + 0));
      }
    }
  }
  tl::cp_async_wait<7>();
  __syncthreads();
  if (2 <= count) {
    float condval_9;
    if ((((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) <= ((int*)position)[(((((int)threadIdx.x) >> 6) * 8) + ((((int)threadIdx.x) & 3) * 2))]) && ((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) < keys))) {
      condval_9 = exp2f((((s[0] * scale) - ((float*)logs)[((((count & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2))]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_9 = 0x0p+0f/*0.000000e+00*/;
    }
    s[0] = condval_9;
    float condval_10;
    if ((((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) <= ((int*)position)[((((((int)threadIdx.x) >> 6) * 8) + ((((int)threadIdx.x) & 3) * 2)) + 1)]) && ((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) < keys))) {
      condval_10 = exp2f((((s[1] * scale) - ((float*)logs)[(((((count & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + 1)]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_10 = 0x0p+0f/*0.000000e+00*/;
    }
    s[1] = condval_10;
    float condval_11;
    if (((((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + 8) <= ((int*)position)[(((((int)threadIdx.x) >> 6) * 8) + ((((int)threadIdx.x) & 3) * 2))]) && (((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + 8) < keys))) {
      condval_11 = exp2f((((s[2] * scale) - ((float*)logs)[((((count & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2))]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_11 = 0x0p+0f/*0.000000e+00*/;
    }
    s[2] = condval_11;
    float condval_12;
    if (((((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + 8) <= ((int*)position)[((((((int)threadIdx.x) >> 6) * 8) + ((((int)threadIdx.x) & 3) * 2)) + 1)]) && (((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + 8) < keys))) {
      condval_12 = exp2f((((s[3] * scale) - ((float*)logs)[(((((count & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + 1)]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_12 = 0x0p+0f/*0.000000e+00*/;
    }
    s[3] = condval_12;
  }
  if (2 <= count) {
    {
      bfloat16_t weights_local_cast_2[2];
      uint1 __5;
      float2 v__5 = *(float2*)(s + 0);
      (reinterpret_cast<__nv_bfloat162*>(&__5))[0] = __float22bfloat162_rn(((float2*)(&v__5))[0]);
      *(uint1*)(weights_local_cast_2 + 0) = __5;
      *(uint1*)(((bfloat16_t*)weights) + ((((((((int)threadIdx.x) & 63) >> 5) * 256) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 8)) + ((((int)threadIdx.x) & 3) * 2))) = *(uint1*)(weights_local_cast_2 + 0);
    }
    {
      bfloat16_t weights_local_cast_2_1[2];
      uint1 __6;
      float2 v__6 = *(float2*)(s + 2);
      (reinterpret_cast<__nv_bfloat162*>(&__6))[0] = __float22bfloat162_rn(((float2*)(&v__6))[0]);
      *(uint1*)(weights_local_cast_2_1 + 0) = __6;
      *(uint1*)(((bfloat16_t*)weights) + (((((((((int)threadIdx.x) & 63) >> 5) * 256) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + 128)) = *(uint1*)(weights_local_cast_2_1 + 0);
    }
  }
  __syncthreads();
  if (2 <= count) {
    {
      bfloat16_t A_local_6[8];
      bfloat16_t B_local_6[32];
      tl::ptx_ldmatrix_x4((&(((bfloat16_t*)weights)[(((((((int)threadIdx.x) & 63) >> 5) * 256) + ((((int)threadIdx.x) & 15) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 8))])), (&(A_local_6[0])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)dout_tile)[((((((count & 1) * 2048) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_6[0])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)dout_tile)[(((((((count & 1) * 2048) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 2) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_6[8])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)dout_tile)[(((((((count & 1) * 2048) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_6[16])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)dout_tile)[(((((((count & 1) * 2048) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_6[24])));
      for (int j_2 = 0; j_2 < 4; ++j_2) {
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_v + (j_2 * 8)), reinterpret_cast<const unsigned*>(A_local_6 + 0), reinterpret_cast<const unsigned*>(B_local_6 + (j_2 * 8)));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_v + ((j_2 * 8) + 4)), reinterpret_cast<const unsigned*>(A_local_6 + 0), reinterpret_cast<const unsigned*>(B_local_6 + ((j_2 * 8) + 4)));
      }
    }
  }
  tl::cp_async_wait<5>();
  __syncthreads();
  if (2 <= count) {
    float2 __7;
      float2 v__7 = *(float2*)(s + 0);
      float2 __8;
        float2 v__8 = *(float2*)(ds + 0);
        float2 v__9 = *(float2*)(((float*)rest) + ((((count & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2)));
        __8.x = (v__8.x-v__9.x);
        __8.y = (v__8.y-v__9.y);
      __7.x = (v__7.x*__8.x);
      __7.y = (v__7.y*__8.y);
    *(float2*)(ds + 0) = __7;
    float2 __9;
      float2 v__10 = *(float2*)(s + 2);
      float2 __10;
        float2 v__11 = *(float2*)(ds + 2);
        float2 v__12 = *(float2*)(((float*)rest) + ((((count & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2)));
        __10.x = (v__11.x-v__12.x);
        __10.y = (v__11.y-v__12.y);
      __9.x = (v__10.x*__10.x);
      __9.y = (v__10.y*__10.y);
    *(float2*)(ds + 2) = __9;
  }
  if (2 <= count) {
    {
      bfloat16_t weights_local_cast_3[2];
      uint1 __11;
      float2 v__13 = *(float2*)(ds + 0);
      (reinterpret_cast<__nv_bfloat162*>(&__11))[0] = __float22bfloat162_rn(((float2*)(&v__13))[0]);
      *(uint1*)(weights_local_cast_3 + 0) = __11;
      *(uint1*)(((bfloat16_t*)weights) + ((((((((int)threadIdx.x) & 63) >> 5) * 256) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 8)) + ((((int)threadIdx.x) & 3) * 2))) = *(uint1*)(weights_local_cast_3 + 0);
    }
    {
      bfloat16_t weights_local_cast_3_1[2];
      uint1 __12;
      float2 v__14 = *(float2*)(ds + 2);
      (reinterpret_cast<__nv_bfloat162*>(&__12))[0] = __float22bfloat162_rn(((float2*)(&v__14))[0]);
      *(uint1*)(weights_local_cast_3_1 + 0) = __12;
      *(uint1*)(((bfloat16_t*)weights) + (((((((((int)threadIdx.x) & 63) >> 5) * 256) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + 128)) = *(uint1*)(weights_local_cast_3_1 + 0);
    }
  }
  __syncthreads();
  if (2 <= count) {
    {
      bfloat16_t A_local_7[8];
      bfloat16_t B_local_7[48];
      tl::ptx_ldmatrix_x4((&(((bfloat16_t*)weights)[(((((((int)threadIdx.x) & 63) >> 5) * 256) + ((((int)threadIdx.x) & 15) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 8))])), (&(A_local_7[0])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[(((((((count & 1) * 3072) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_7[0])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[(((((((count & 1) * 3072) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + (((((((int)threadIdx.x) >> 6) * 6) + 1) & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_7[8])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[(((((((count & 1) * 3072) + (((((((int)threadIdx.x) >> 6) * 3) + 1) >> 1) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + (((((((int)threadIdx.x) >> 6) * 6) + 2) & 3) >> 1)) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_7[16])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[(((((((count & 1) * 3072) + (((((((int)threadIdx.x) >> 6) * 3) + 1) >> 1) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + (((((((int)threadIdx.x) >> 6) * 6) + 3) & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_7[24])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[((((((((count & 1) * 3072) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_7[32])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[((((((((count & 1) * 3072) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + (((((((int)threadIdx.x) >> 6) * 6) + 1) & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_7[40])));
      for (int j_3 = 0; j_3 < 6; ++j_3) {
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_k + (j_3 * 8)), reinterpret_cast<const unsigned*>(A_local_7 + 0), reinterpret_cast<const unsigned*>(B_local_7 + (j_3 * 8)));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_k + ((j_3 * 8) + 4)), reinterpret_cast<const unsigned*>(A_local_7 + 0), reinterpret_cast<const unsigned*>(B_local_7 + ((j_3 * 8) + 4)));
      }
    }
  }
  __syncthreads();
  if (1 <= count) {
    int first_14 = ((begin + count) - 1);
    if (((int)threadIdx.x) < 16) {
      int condval_13;
      if ((first_14 < past)) {
        int condval_14;
        if (((first_14 < entries) && (0 <= first_14))) {
          condval_14 = listing[((((((int64_t)((int)blockIdx.z)) * ((int64_t)entries)) * ((int64_t)kv_heads)) + (((int64_t)((int)blockIdx.y)) * ((int64_t)entries))) + ((int64_t)first_14))];
        } else {
          condval_14 = 0;
        }
        condval_13 = (q_start + condval_14);
      } else {
        condval_13 = -1;
      }
      ((int*)position)[((int)threadIdx.x)] = condval_13;
    }
  }
  if (1 <= count) {
    float broadcast_var_8 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 0) = make_float4(broadcast_var_8, broadcast_var_8, broadcast_var_8, broadcast_var_8);
  }
  tl::cp_async_wait<0>();
  __syncthreads();
  if (1 <= count) {
    {
      bfloat16_t A_local_8[8];
      bfloat16_t B_local_8[4];
      for (int ki_4 = 0; ki_4 < 12; ++ki_4) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[(((((((ki_4 >> 2) * 2048) + (((((int)threadIdx.x) & 63) >> 5) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_4 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_4 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(A_local_8[0])));
        tl::ptx_ldmatrix_x2((&(((bfloat16_t*)q_tile)[(((((((((count + 1) & 1) * 3072) + ((ki_4 >> 2) * 1024)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 512)) + ((((int)threadIdx.x) & 7) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_4 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_4 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_8[0])));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + 0), reinterpret_cast<const unsigned*>(A_local_8 + 0), reinterpret_cast<const unsigned*>(B_local_8 + 0));
      }
    }
  }
  if (1 <= count) {
    float broadcast_var_9 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(ds + 0) = make_float4(broadcast_var_9, broadcast_var_9, broadcast_var_9, broadcast_var_9);
  }
  tl::cp_async_wait<2>();
  __syncthreads();
  if (1 <= count) {
    {
      bfloat16_t A_local_9[8];
      bfloat16_t B_local_9[4];
      for (int ki_5 = 0; ki_5 < 8; ++ki_5) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)v_tile)[(((((((ki_5 >> 2) * 2048) + (((((int)threadIdx.x) & 63) >> 5) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_5 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_5 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(A_local_9[0])));
        tl::ptx_ldmatrix_x2((&(((bfloat16_t*)dout_tile)[(((((((((count + 1) & 1) * 2048) + ((ki_5 >> 2) * 1024)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 512)) + ((((int)threadIdx.x) & 7) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + ((ki_5 & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + (ki_5 & 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_9[0])));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(ds + 0), reinterpret_cast<const unsigned*>(A_local_9 + 0), reinterpret_cast<const unsigned*>(B_local_9 + 0));
      }
    }
  }
  tl::cp_async_wait<3>();
  __syncthreads();
  if (1 <= count) {
    float condval_15;
    if ((((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) <= ((int*)position)[(((((int)threadIdx.x) >> 6) * 8) + ((((int)threadIdx.x) & 3) * 2))]) && ((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) < keys))) {
      condval_15 = exp2f((((s[0] * scale) - ((float*)logs)[((((((count & 1) + 1) & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2))]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_15 = 0x0p+0f/*0.000000e+00*/;
    }
    s[0] = condval_15;
    float condval_16;
    if ((((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) <= ((int*)position)[((((((int)threadIdx.x) >> 6) * 8) + ((((int)threadIdx.x) & 3) * 2)) + 1)]) && ((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) < keys))) {
      condval_16 = exp2f((((s[1] * scale) - ((float*)logs)[(((((((count & 1) + 1) & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + 1)]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_16 = 0x0p+0f/*0.000000e+00*/;
    }
    s[1] = condval_16;
    float condval_17;
    if (((((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + 8) <= ((int*)position)[(((((int)threadIdx.x) >> 6) * 8) + ((((int)threadIdx.x) & 3) * 2))]) && (((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + 8) < keys))) {
      condval_17 = exp2f((((s[2] * scale) - ((float*)logs)[((((((count & 1) + 1) & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2))]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_17 = 0x0p+0f/*0.000000e+00*/;
    }
    s[2] = condval_17;
    float condval_18;
    if (((((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + 8) <= ((int*)position)[((((((int)threadIdx.x) >> 6) * 8) + ((((int)threadIdx.x) & 3) * 2)) + 1)]) && (((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + 8) < keys))) {
      condval_18 = exp2f((((s[3] * scale) - ((float*)logs)[(((((((count & 1) + 1) & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + 1)]) * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_18 = 0x0p+0f/*0.000000e+00*/;
    }
    s[3] = condval_18;
  }
  if (1 <= count) {
    {
      bfloat16_t weights_local_cast_2_2[2];
      uint1 __13;
      float2 v__15 = *(float2*)(s + 0);
      (reinterpret_cast<__nv_bfloat162*>(&__13))[0] = __float22bfloat162_rn(((float2*)(&v__15))[0]);
      *(uint1*)(weights_local_cast_2_2 + 0) = __13;
      *(uint1*)(((bfloat16_t*)weights) + ((((((((int)threadIdx.x) & 63) >> 5) * 256) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 8)) + ((((int)threadIdx.x) & 3) * 2))) = *(uint1*)(weights_local_cast_2_2 + 0);
    }
    {
      bfloat16_t weights_local_cast_2_3[2];
      uint1 __14;
      float2 v__16 = *(float2*)(s + 2);
      (reinterpret_cast<__nv_bfloat162*>(&__14))[0] = __float22bfloat162_rn(((float2*)(&v__16))[0]);
      *(uint1*)(weights_local_cast_2_3 + 0) = __14;
      *(uint1*)(((bfloat16_t*)weights) + (((((((((int)threadIdx.x) & 63) >> 5) * 256) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + 128)) = *(uint1*)(weights_local_cast_2_3 + 0);
    }
  }
  __syncthreads();
  if (1 <= count) {
    {
      bfloat16_t A_local_10[8];
      bfloat16_t B_local_10[32];
      tl::ptx_ldmatrix_x4((&(((bfloat16_t*)weights)[(((((((int)threadIdx.x) & 63) >> 5) * 256) + ((((int)threadIdx.x) & 15) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 8))])), (&(A_local_10[0])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)dout_tile)[(((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_10[0])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)dout_tile)[((((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((int)threadIdx.x) & 7) >> 2) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_10[8])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)dout_tile)[((((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_10[16])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)dout_tile)[((((((((count + 1) & 1) * 2048) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_10[24])));
      for (int j_4 = 0; j_4 < 4; ++j_4) {
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_v + (j_4 * 8)), reinterpret_cast<const unsigned*>(A_local_10 + 0), reinterpret_cast<const unsigned*>(B_local_10 + (j_4 * 8)));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_v + ((j_4 * 8) + 4)), reinterpret_cast<const unsigned*>(A_local_10 + 0), reinterpret_cast<const unsigned*>(B_local_10 + ((j_4 * 8) + 4)));
      }
    }
  }
  tl::cp_async_wait<1>();
  __syncthreads();
  if (1 <= count) {
    float2 __15;
      float2 v__17 = *(float2*)(s + 0);
      float2 __16;
        float2 v__18 = *(float2*)(ds + 0);
        float2 v__19 = *(float2*)(((float*)rest) + ((((((count & 1) + 1) & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2)));
        __16.x = (v__18.x-v__19.x);
        __16.y = (v__18.y-v__19.y);
      __15.x = (v__17.x*__16.x);
      __15.y = (v__17.y*__16.y);
    *(float2*)(ds + 0) = __15;
    float2 __17;
      float2 v__20 = *(float2*)(s + 2);
      float2 __18;
        float2 v__21 = *(float2*)(ds + 2);
        float2 v__22 = *(float2*)(((float*)rest) + ((((((count & 1) + 1) & 1) * 16) + ((((int)threadIdx.x) >> 6) * 8)) + ((((int)threadIdx.x) & 3) * 2)));
        __18.x = (v__21.x-v__22.x);
        __18.y = (v__21.y-v__22.y);
      __17.x = (v__20.x*__18.x);
      __17.y = (v__20.y*__18.y);
    *(float2*)(ds + 2) = __17;
  }
  if (1 <= count) {
    {
      bfloat16_t weights_local_cast_3_2[2];
      uint1 __19;
      float2 v__23 = *(float2*)(ds + 0);
      (reinterpret_cast<__nv_bfloat162*>(&__19))[0] = __float22bfloat162_rn(((float2*)(&v__23))[0]);
      *(uint1*)(weights_local_cast_3_2 + 0) = __19;
      *(uint1*)(((bfloat16_t*)weights) + ((((((((int)threadIdx.x) & 63) >> 5) * 256) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 8)) + ((((int)threadIdx.x) & 3) * 2))) = *(uint1*)(weights_local_cast_3_2 + 0);
    }
    {
      bfloat16_t weights_local_cast_3_3[2];
      uint1 __20;
      float2 v__24 = *(float2*)(ds + 2);
      (reinterpret_cast<__nv_bfloat162*>(&__20))[0] = __float22bfloat162_rn(((float2*)(&v__24))[0]);
      *(uint1*)(weights_local_cast_3_3 + 0) = __20;
      *(uint1*)(((bfloat16_t*)weights) + (((((((((int)threadIdx.x) & 63) >> 5) * 256) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 31) >> 4)) & 1) * 8)) + ((((int)threadIdx.x) & 3) * 2)) + 128)) = *(uint1*)(weights_local_cast_3_3 + 0);
    }
  }
  __syncthreads();
  if (1 <= count) {
    {
      bfloat16_t A_local_11[8];
      bfloat16_t B_local_11[48];
      tl::ptx_ldmatrix_x4((&(((bfloat16_t*)weights)[(((((((int)threadIdx.x) & 63) >> 5) * 256) + ((((int)threadIdx.x) & 15) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 8))])), (&(A_local_11[0])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[((((((((count + 1) & 1) * 3072) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_11[0])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[((((((((count + 1) & 1) * 3072) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + (((((((int)threadIdx.x) >> 6) * 6) + 1) & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_11[8])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[((((((((count + 1) & 1) * 3072) + (((((((int)threadIdx.x) >> 6) * 3) + 1) >> 1) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + (((((((int)threadIdx.x) >> 6) * 6) + 2) & 3) >> 1)) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_11[16])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[((((((((count + 1) & 1) * 3072) + (((((((int)threadIdx.x) >> 6) * 3) + 1) >> 1) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + (((((((int)threadIdx.x) >> 6) * 6) + 3) & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(B_local_11[24])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[(((((((((count + 1) & 1) * 3072) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((int)threadIdx.x) & 3) >> 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_11[32])));
      tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)q_tile)[(((((((((count + 1) & 1) * 3072) + ((((int)threadIdx.x) >> 6) * 1024)) + ((((int)threadIdx.x) & 15) * 64)) + (((((((int)threadIdx.x) & 7) >> 2) + (((((((int)threadIdx.x) >> 6) * 6) + 1) & 3) >> 1)) & 1) * 32)) + (((((((int)threadIdx.x) & 3) >> 1) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(B_local_11[40])));
      for (int j_5 = 0; j_5 < 6; ++j_5) {
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_k + (j_5 * 8)), reinterpret_cast<const unsigned*>(A_local_11 + 0), reinterpret_cast<const unsigned*>(B_local_11 + (j_5 * 8)));
        tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(sum_k + ((j_5 * 8) + 4)), reinterpret_cast<const unsigned*>(A_local_11 + 0), reinterpret_cast<const unsigned*>(B_local_11 + ((j_5 * 8) + 4)));
      }
    }
  }
  #pragma unroll
  for (int i_16 = 0; i_16 < 24; ++i_16) {
    bfloat16_t grad_k_local_cast_4[2];
    if (((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((i_16 & 1) * 8)) + ((((int)threadIdx.x) & 31) >> 2)) < keys) {
      uint1 __21;
      float2 __22;
        float2 v__25 = *(float2*)(sum_k + (i_16 * 2));
        float2 v__26 = make_float2(scale, scale);
        __22.x = (v__25.x*v__26.x);
        __22.y = (v__25.y*v__26.y);
      (reinterpret_cast<__nv_bfloat162*>(&__21))[0] = __float22bfloat162_rn(((float2*)(&__22))[0]);
      *(uint1*)(grad_k_local_cast_4 + 0) = __21;
      *(uint1*)(grad_k + ((((((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)192) + ((((((((int64_t)((int)blockIdx.x)) * (int64_t)32) + (((((int64_t)((int)threadIdx.x)) & (int64_t)63) >> (int64_t)5) * (int64_t)16)) + ((((int64_t)i_16) & (int64_t)1) * (int64_t)8)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)31) >> (int64_t)2)) * ((int64_t)kv_heads)) * (int64_t)192)) + (((int64_t)((int)blockIdx.y)) * (int64_t)192)) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)6) * (int64_t)96)) + ((((int64_t)i_16) >> (int64_t)1) * (int64_t)8)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)2))) = *(uint1*)(grad_k_local_cast_4 + 0);
    }
  }
  #pragma unroll
  for (int i_17 = 0; i_17 < 16; ++i_17) {
    bfloat16_t grad_v_local_cast_5[2];
    if (((((((int)blockIdx.x) * 32) + (((((int)threadIdx.x) & 63) >> 5) * 16)) + ((i_17 & 1) * 8)) + ((((int)threadIdx.x) & 31) >> 2)) < keys) {
      uint1 __23;
      float2 v__27 = *(float2*)(sum_v + (i_17 * 2));
      (reinterpret_cast<__nv_bfloat162*>(&__23))[0] = __float22bfloat162_rn(((float2*)(&v__27))[0]);
      *(uint1*)(grad_v_local_cast_5 + 0) = __23;
      *(uint1*)(grad_v + ((((((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)128) + ((((((((int64_t)((int)blockIdx.x)) * (int64_t)32) + (((((int64_t)((int)threadIdx.x)) & (int64_t)63) >> (int64_t)5) * (int64_t)16)) + ((((int64_t)i_17) & (int64_t)1) * (int64_t)8)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)31) >> (int64_t)2)) * ((int64_t)kv_heads)) * (int64_t)128)) + (((int64_t)((int)blockIdx.y)) * (int64_t)128)) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)6) * (int64_t)64)) + ((((int64_t)i_17) >> (int64_t)1) * (int64_t)8)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)2))) = *(uint1*)(grad_v_local_cast_5 + 0);
    }
  }
}

