// stream_attention_fwd(bfloat16, dk=32, dv=32, group=1) in [t-63, t+1)
// schedule rows=64 key_tile=32 stages=2 threads=128
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

extern "C" __global__ void stream_attention_kernel(const bfloat16_t* __restrict__ k, float* __restrict__ lse, bfloat16_t* __restrict__ out, const bfloat16_t* __restrict__ q, const bfloat16_t* __restrict__ v, int batch, int keys, int kv_heads, int q_start, float scale, int tokens);
extern "C" __global__ void __launch_bounds__(128, 1) stream_attention_kernel(const bfloat16_t* __restrict__ k, float* __restrict__ lse, bfloat16_t* __restrict__ out, const bfloat16_t* __restrict__ q, const bfloat16_t* __restrict__ v, int batch, int keys, int kv_heads, int q_start, float scale, int tokens) {
  extern __shared__ __align__(1024) uchar buf_dyn_shmem[];
  void* q_tile = ((void*)((char*)buf_dyn_shmem + 0));
  void* k_tile = ((void*)((char*)buf_dyn_shmem + 4096));
  void* v_tile = ((void*)((char*)buf_dyn_shmem + 8192));
  int bounds[6];
  int count = 0;
  float o[16];
  float total[2];
  float top[2];
  float s[16];
  float before[2];
  float scaled[2];
  float summed[2];
  bfloat16_t weights[16];
  float top_clear[2];
  float top_clear_1[2];
  bounds[2] = 0;
  bounds[0] = max(0, min((((((int)blockIdx.x) * 64) + q_start) - 63), keys));
  bounds[1] = max(bounds[0], max(0, min((min(((((int)blockIdx.x) * 64) + 64), tokens) + q_start), keys)));
  bounds[5] = ((((bounds[1] + 31) - bounds[0]) >> 5) + bounds[2]);
  count = bounds[5];
  #pragma unroll
  for (int i = 0; i < 2; ++i) {
    bfloat16_t broadcast_var = bfloat16_t(0x0p+0f/*0.000000e+00*/);
    uint4 condval;
    if ((1 <= tokens)) {
      condval = *(uint4*)(q + ((((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((min((((((int64_t)((int)blockIdx.x)) * (int64_t)64) + (((int64_t)i) * (int64_t)32)) + (((int64_t)((int)threadIdx.x)) >> (int64_t)2)), (((int64_t)tokens) - (int64_t)1)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)((int)blockIdx.y)) * (int64_t)32)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)8)));
    } else {
      condval = make_uint4(__pack_nv_bfloat162(broadcast_var, broadcast_var), __pack_nv_bfloat162(broadcast_var, broadcast_var), __pack_nv_bfloat162(broadcast_var, broadcast_var), __pack_nv_bfloat162(broadcast_var, broadcast_var));
    }
    *(uint4*)(((bfloat16_t*)q_tile) + ((((i * 1024) + ((((int)threadIdx.x) >> 2) * 32)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))) = condval;
  }
  __syncthreads();
  #pragma unroll
  for (int i_1 = 0; i_1 < 4; ++i_1) {
    float broadcast_var_1 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(o + (i_1 * 4)) = make_float4(broadcast_var_1, broadcast_var_1, broadcast_var_1, broadcast_var_1);
  }
  float broadcast_var_2 = 0x0p+0f/*0.000000e+00*/;
  *(float2*)(total + 0) = make_float2(broadcast_var_2, broadcast_var_2);
  float broadcast_var_3 = -CUDART_INF_F;
  *(float2*)(top + 0) = make_float2(broadcast_var_3, broadcast_var_3);
  if (0 < count) {
    if (0 < count) {
      int j0_1 = (bounds[0] - (bounds[2] * 32));
      tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)k_tile)[((((((int)threadIdx.x) >> 2) * 32) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(k[((((((int64_t)((int)blockIdx.y)) * (int64_t)32) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)32)) + ((((((int64_t)((int)threadIdx.x)) >> (int64_t)2) + ((int64_t)j0_1)) * ((int64_t)kv_heads)) * (int64_t)32)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)8))])), ((((((((int)threadIdx.x) >> 2) + j0_1) < keys) && (0 <= ((((int)threadIdx.x) >> 2) + j0_1))) && (((((int)threadIdx.x) >> 2) + j0_1) < keys)) && (0 <= ((((int)threadIdx.x) >> 2) + j0_1))));
    }
    tl::cp_async_commit();
  }
  if (0 < count) {
    if (0 < count) {
      int j0_2 = (bounds[0] - (bounds[2] * 32));
      tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)v_tile)[((((((int)threadIdx.x) >> 2) * 32) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(v[((((((int64_t)((int)blockIdx.y)) * (int64_t)32) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)32)) + ((((((int64_t)((int)threadIdx.x)) >> (int64_t)2) + ((int64_t)j0_2)) * ((int64_t)kv_heads)) * (int64_t)32)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)8))])), ((((((((int)threadIdx.x) >> 2) + j0_2) < keys) && (0 <= ((((int)threadIdx.x) >> 2) + j0_2))) && (((((int)threadIdx.x) >> 2) + j0_2) < keys)) && (0 <= ((((int)threadIdx.x) >> 2) + j0_2))));
    }
    tl::cp_async_commit();
  }
  if (1 < count) {
    if (1 < count) {
      int j0_3 = ((bounds[0] + 32) - (bounds[2] * 32));
      tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)k_tile)[(((((((int)threadIdx.x) >> 2) * 32) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(k[((((((int64_t)((int)blockIdx.y)) * (int64_t)32) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)32)) + ((((((int64_t)((int)threadIdx.x)) >> (int64_t)2) + ((int64_t)j0_3)) * ((int64_t)kv_heads)) * (int64_t)32)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)8))])), ((((((((int)threadIdx.x) >> 2) + j0_3) < keys) && (0 <= ((((int)threadIdx.x) >> 2) + j0_3))) && (((((int)threadIdx.x) >> 2) + j0_3) < keys)) && (0 <= ((((int)threadIdx.x) >> 2) + j0_3))));
    }
    tl::cp_async_commit();
  }
  if (1 < count) {
    if (1 < count) {
      int j0_4 = ((bounds[0] + 32) - (bounds[2] * 32));
      tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)v_tile)[(((((((int)threadIdx.x) >> 2) * 32) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 1024)])), (&(v[((((((int64_t)((int)blockIdx.y)) * (int64_t)32) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)32)) + ((((((int64_t)((int)threadIdx.x)) >> (int64_t)2) + ((int64_t)j0_4)) * ((int64_t)kv_heads)) * (int64_t)32)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)8))])), ((((((((int)threadIdx.x) >> 2) + j0_4) < keys) && (0 <= ((((int)threadIdx.x) >> 2) + j0_4))) && (((((int)threadIdx.x) >> 2) + j0_4) < keys)) && (0 <= ((((int)threadIdx.x) >> 2) + j0_4))));
    }
    tl::cp_async_commit();
  }
  for (int step = 0; step < (count - 2); ++step) {
    #pragma unroll
    for (int i_2 = 0; i_2 < 4; ++i_2) {
      float broadcast_var_4 = 0x0p+0f/*0.000000e+00*/;
      *(float4*)(s + (i_2 * 4)) = make_float4(broadcast_var_4, broadcast_var_4, broadcast_var_4, broadcast_var_4);
    }
    tl::cp_async_wait<3>();
    __syncthreads();
    {
      bfloat16_t A_local[8];
      bfloat16_t B_local[16];
      for (int ki = 0; ki < 2; ++ki) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)q_tile)[(((((((int)threadIdx.x) >> 5) * 512) + ((((int)threadIdx.x) & 15) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + ki) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(A_local[0])));
        #pragma unroll
        for (int i_3 = 0; i_3 < 2; ++i_3) {
          tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[(((((((step & 1) * 1024) + (i_3 * 512)) + (((((int)threadIdx.x) & 31) >> 4) * 256)) + ((((int)threadIdx.x) & 7) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + ki) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(B_local[(i_3 * 8)])));
        }
        for (int j = 0; j < 2; ++j) {
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + (j * 8)), reinterpret_cast<const unsigned*>(A_local + 0), reinterpret_cast<const unsigned*>(B_local + (j * 8)));
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + ((j * 8) + 4)), reinterpret_cast<const unsigned*>(A_local + 0), reinterpret_cast<const unsigned*>(B_local + ((j * 8) + 4)));
        }
      }
    }
    int j0_5 = ((((step * 32) + bounds[0]) + 64) - (bounds[2] * 32));
    __syncthreads();
    tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)k_tile)[(((((step & 1) * 1024) + ((((int)threadIdx.x) >> 2) * 32)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(k[((((((int64_t)((int)blockIdx.y)) * (int64_t)32) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)32)) + ((((((int64_t)((int)threadIdx.x)) >> (int64_t)2) + ((int64_t)j0_5)) * ((int64_t)kv_heads)) * (int64_t)32)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)8))])), ((((((((int)threadIdx.x) >> 2) + j0_5) < keys) && (0 <= ((((int)threadIdx.x) >> 2) + j0_5))) && (((((int)threadIdx.x) >> 2) + j0_5) < keys)) && (0 <= ((((int)threadIdx.x) >> 2) + j0_5))));
    tl::cp_async_commit();
    int j0_6 = (((step * 32) + bounds[0]) - (bounds[2] * 32));
    #pragma unroll
    for (int i_4 = 0; i_4 < 16; ++i_4) {
      float condval_1;
      if ((((0 <= (((((i_4 >> 2) * 8) + ((((int)threadIdx.x) & 3) * 2)) + j0_6) + (i_4 & 1))) && (((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + (((i_4 & 3) >> 1) * 8)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((i_4 >> 2) * 8) + ((((int)threadIdx.x) & 3) * 2)) + j0_6) + (i_4 & 1)) + 63)) || (keys <= (((((i_4 >> 2) * 8) + ((((int)threadIdx.x) & 3) * 2)) + j0_6) + (i_4 & 1))))) && (((((((i_4 >> 2) * 8) + ((((int)threadIdx.x) & 3) * 2)) + j0_6) + (i_4 & 1)) < 0) || (((((((i_4 >> 2) * 8) + ((((int)threadIdx.x) & 3) * 2)) + j0_6) + (i_4 & 1)) <= (((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + (((i_4 & 3) >> 1) * 8)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && ((((((i_4 >> 2) * 8) + ((((int)threadIdx.x) & 3) * 2)) + j0_6) + (i_4 & 1)) < keys))))) {
        condval_1 = (s[i_4] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
      } else {
        condval_1 = -CUDART_INF_F;
      }
      s[i_4] = condval_1;
    }
    *(float2*)(before + 0) = *(float2*)(top + 0);
    #pragma unroll
    for (int i_5 = 0; i_5 < 2; ++i_5) {
      top_clear[i_5] = -CUDART_INF_F;
      #pragma unroll
      for (int rv = 0; rv < 8; ++rv) {
        top_clear[i_5] = max(top_clear[i_5], s[((((rv & 3) * 4) + (i_5 * 2)) + (rv >> 2))]);
      }
      top_clear[i_5] = tl::AllReduce<tl::MaxOp, 4, 1, 0, tl::NamedBarrier<128>>::run(top_clear[i_5]);
      top[i_5] = max(top[i_5], top_clear[i_5]);
    }
    #pragma unroll
    for (int i_6 = 0; i_6 < 2; ++i_6) {
      float condval_2;
      if ((top[i_6] == -CUDART_INF_F)) {
        condval_2 = 0x0p+0f/*0.000000e+00*/;
      } else {
        condval_2 = top[i_6];
      }
      scaled[i_6] = condval_2;
    }
    #pragma unroll
    for (int i_7 = 0; i_7 < 8; ++i_7) {
      float2 __1;
      float2 __2;
        float2 v_ = *(float2*)(s + (i_7 * 2));
        float2 v__1 = make_float2(scaled[(i_7 & 1)], scaled[(i_7 & 1)]);
        __2.x = (v_.x-v__1.x);
        __2.y = (v_.y-v__1.y);
      __1.x = exp2f(__2.x);
      __1.y = exp2f(__2.y);
      *(float2*)(s + (i_7 * 2)) = __1;
    }
    #pragma unroll
    for (int i_8 = 0; i_8 < 2; ++i_8) {
      summed[i_8] = 0x0p+0f/*0.000000e+00*/;
      #pragma unroll
      for (int rv_1 = 0; rv_1 < 8; ++rv_1) {
        summed[i_8] = (summed[i_8] + s[((((rv_1 & 3) * 4) + (i_8 * 2)) + (rv_1 >> 2))]);
      }
      summed[i_8] = tl::AllReduce<tl::SumOp, 4, 1, 0, tl::NamedBarrier<128>>::run(summed[i_8]);
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
    for (int i_9 = 0; i_9 < 4; ++i_9) {
      uint2 __7;
      float4 v__7 = *(float4*)(s + (i_9 * 4));
      (reinterpret_cast<__nv_bfloat162*>(&__7))[0] = __float22bfloat162_rn(((float2*)(&v__7))[0]);
      (reinterpret_cast<__nv_bfloat162*>(&__7))[1] = __float22bfloat162_rn(((float2*)(&v__7))[1]);
      *(uint2*)(weights + (i_9 * 4)) = __7;
    }
    #pragma unroll
    for (int i_10 = 0; i_10 < 8; ++i_10) {
      float2 __8;
        float2 v__8 = *(float2*)(o + (i_10 * 2));
        float2 v__9 = make_float2(before[(i_10 & 1)], before[(i_10 & 1)]);
        __8.x = (v__8.x*v__9.x);
        __8.y = (v__8.y*v__9.y);
      *(float2*)(o + (i_10 * 2)) = __8;
    }
    tl::cp_async_wait<3>();
    __syncthreads();
    {
      bfloat16_t B_local_1[16];
      for (int ki_1 = 0; ki_1 < 2; ++ki_1) {
        #pragma unroll
        for (int i_11 = 0; i_11 < 2; ++i_11) {
          tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((step & 1) * 1024) + (ki_1 * 512)) + ((((int)threadIdx.x) & 15) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + i_11) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(B_local_1[(i_11 * 8)])));
        }
        for (int j_1 = 0; j_1 < 2; ++j_1) {
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + (j_1 * 8)), reinterpret_cast<const unsigned*>(weights + (ki_1 * 8)), reinterpret_cast<const unsigned*>(B_local_1 + (j_1 * 8)));
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + ((j_1 * 8) + 4)), reinterpret_cast<const unsigned*>(weights + (ki_1 * 8)), reinterpret_cast<const unsigned*>(B_local_1 + ((j_1 * 8) + 4)));
        }
      }
    }
    int j0_7 = ((((step * 32) + bounds[0]) + 64) - (bounds[2] * 32));
    __syncthreads();
    tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)v_tile)[(((((step & 1) * 1024) + ((((int)threadIdx.x) >> 2) * 32)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(v[((((((int64_t)((int)blockIdx.y)) * (int64_t)32) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)32)) + ((((((int64_t)((int)threadIdx.x)) >> (int64_t)2) + ((int64_t)j0_7)) * ((int64_t)kv_heads)) * (int64_t)32)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)8))])), ((((((((int)threadIdx.x) >> 2) + j0_7) < keys) && (0 <= ((((int)threadIdx.x) >> 2) + j0_7))) && (((((int)threadIdx.x) >> 2) + j0_7) < keys)) && (0 <= ((((int)threadIdx.x) >> 2) + j0_7))));
    tl::cp_async_commit();
  }
  if (2 <= count) {
    float broadcast_var_5 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 0) = make_float4(broadcast_var_5, broadcast_var_5, broadcast_var_5, broadcast_var_5);
    float broadcast_var_6 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 4) = make_float4(broadcast_var_6, broadcast_var_6, broadcast_var_6, broadcast_var_6);
    float broadcast_var_7 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 8) = make_float4(broadcast_var_7, broadcast_var_7, broadcast_var_7, broadcast_var_7);
    float broadcast_var_8 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 12) = make_float4(broadcast_var_8, broadcast_var_8, broadcast_var_8, broadcast_var_8);
  }
  tl::cp_async_wait<3>();
  __syncthreads();
  if (2 <= count) {
    {
      bfloat16_t A_local_1[8];
      bfloat16_t B_local_2[16];
      for (int ki_2 = 0; ki_2 < 2; ++ki_2) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)q_tile)[(((((((int)threadIdx.x) >> 5) * 512) + ((((int)threadIdx.x) & 15) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + ki_2) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(A_local_1[0])));
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[((((((count & 1) * 1024) + (((((int)threadIdx.x) & 31) >> 4) * 256)) + ((((int)threadIdx.x) & 7) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + ki_2) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(B_local_2[0])));
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[(((((((count & 1) * 1024) + (((((int)threadIdx.x) & 31) >> 4) * 256)) + ((((int)threadIdx.x) & 7) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + ki_2) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8)) + 512)])), (&(B_local_2[8])));
        for (int j_2 = 0; j_2 < 2; ++j_2) {
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + (j_2 * 8)), reinterpret_cast<const unsigned*>(A_local_1 + 0), reinterpret_cast<const unsigned*>(B_local_2 + (j_2 * 8)));
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + ((j_2 * 8) + 4)), reinterpret_cast<const unsigned*>(A_local_1 + 0), reinterpret_cast<const unsigned*>(B_local_2 + ((j_2 * 8) + 4)));
        }
      }
    }
  }
  if (2 <= count) {
    int j0_8 = ((((count * 32) + bounds[0]) - (bounds[2] * 32)) - 64);
    float condval_3;
    if ((((0 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 63)) || (keys <= (((((int)threadIdx.x) & 3) * 2) + j0_8)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < 0) || (((((((int)threadIdx.x) & 3) * 2) + j0_8) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && ((((((int)threadIdx.x) & 3) * 2) + j0_8) < keys))))) {
      condval_3 = (s[0] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_3 = -CUDART_INF_F;
    }
    s[0] = condval_3;
    float condval_4;
    if ((((-1 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 64)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 1)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -1) || (((((((int)threadIdx.x) & 3) * 2) + j0_8) < ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 1) < keys))))) {
      condval_4 = (s[1] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_4 = -CUDART_INF_F;
    }
    s[1] = condval_4;
    float condval_5;
    if ((((0 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 55)) || (keys <= (((((int)threadIdx.x) & 3) * 2) + j0_8)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < 0) || (((((((int)threadIdx.x) & 3) * 2) + j0_8) <= (((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) + 8)) && ((((((int)threadIdx.x) & 3) * 2) + j0_8) < keys))))) {
      condval_5 = (s[2] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_5 = -CUDART_INF_F;
    }
    s[2] = condval_5;
    float condval_6;
    if ((((-1 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 56)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 1)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -1) || (((((((int)threadIdx.x) & 3) * 2) + j0_8) <= (((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) + 7)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 1) < keys))))) {
      condval_6 = (s[3] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_6 = -CUDART_INF_F;
    }
    s[3] = condval_6;
    float condval_7;
    if ((((-8 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 71)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 8)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -8) || ((((((((int)threadIdx.x) & 3) * 2) + j0_8) + 8) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 8) < keys))))) {
      condval_7 = (s[4] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_7 = -CUDART_INF_F;
    }
    s[4] = condval_7;
    float condval_8;
    if ((((-9 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 72)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 9)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -9) || ((((((((int)threadIdx.x) & 3) * 2) + j0_8) + 9) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 9) < keys))))) {
      condval_8 = (s[5] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_8 = -CUDART_INF_F;
    }
    s[5] = condval_8;
    float condval_9;
    if ((((-8 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 63)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 8)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -8) || (((((((int)threadIdx.x) & 3) * 2) + j0_8) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 8) < keys))))) {
      condval_9 = (s[6] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_9 = -CUDART_INF_F;
    }
    s[6] = condval_9;
    float condval_10;
    if ((((-9 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 64)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 9)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -9) || (((((((int)threadIdx.x) & 3) * 2) + j0_8) < ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 9) < keys))))) {
      condval_10 = (s[7] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_10 = -CUDART_INF_F;
    }
    s[7] = condval_10;
    float condval_11;
    if ((((-16 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 79)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 16)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -16) || ((((((((int)threadIdx.x) & 3) * 2) + j0_8) + 16) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 16) < keys))))) {
      condval_11 = (s[8] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_11 = -CUDART_INF_F;
    }
    s[8] = condval_11;
    float condval_12;
    if ((((-17 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 80)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 17)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -17) || ((((((((int)threadIdx.x) & 3) * 2) + j0_8) + 17) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 17) < keys))))) {
      condval_12 = (s[9] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_12 = -CUDART_INF_F;
    }
    s[9] = condval_12;
    float condval_13;
    if ((((-16 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 71)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 16)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -16) || ((((((((int)threadIdx.x) & 3) * 2) + j0_8) + 8) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 16) < keys))))) {
      condval_13 = (s[10] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_13 = -CUDART_INF_F;
    }
    s[10] = condval_13;
    float condval_14;
    if ((((-17 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 72)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 17)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -17) || ((((((((int)threadIdx.x) & 3) * 2) + j0_8) + 9) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 17) < keys))))) {
      condval_14 = (s[11] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_14 = -CUDART_INF_F;
    }
    s[11] = condval_14;
    float condval_15;
    if ((((-24 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 87)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 24)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -24) || ((((((((int)threadIdx.x) & 3) * 2) + j0_8) + 24) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 24) < keys))))) {
      condval_15 = (s[12] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_15 = -CUDART_INF_F;
    }
    s[12] = condval_15;
    float condval_16;
    if ((((-25 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 88)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 25)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -25) || ((((((((int)threadIdx.x) & 3) * 2) + j0_8) + 25) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 25) < keys))))) {
      condval_16 = (s[13] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_16 = -CUDART_INF_F;
    }
    s[13] = condval_16;
    float condval_17;
    if ((((-24 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 79)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 24)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -24) || ((((((((int)threadIdx.x) & 3) * 2) + j0_8) + 16) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 24) < keys))))) {
      condval_17 = (s[14] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_17 = -CUDART_INF_F;
    }
    s[14] = condval_17;
    float condval_18;
    if ((((-25 <= (((((int)threadIdx.x) & 3) * 2) + j0_8)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 80)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_8) + 25)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) < -25) || ((((((((int)threadIdx.x) & 3) * 2) + j0_8) + 17) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_8) + 25) < keys))))) {
      condval_18 = (s[15] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_18 = -CUDART_INF_F;
    }
    s[15] = condval_18;
  }
  if (2 <= count) {
    *(float2*)(before + 0) = *(float2*)(top + 0);
  }
  if (2 <= count) {
    top_clear_1[0] = -CUDART_INF_F;
    top_clear_1[0] = max(top_clear_1[0], s[0]);
    top_clear_1[0] = max(top_clear_1[0], s[4]);
    top_clear_1[0] = max(top_clear_1[0], s[8]);
    top_clear_1[0] = max(top_clear_1[0], s[12]);
    top_clear_1[0] = max(top_clear_1[0], s[1]);
    top_clear_1[0] = max(top_clear_1[0], s[5]);
    top_clear_1[0] = max(top_clear_1[0], s[9]);
    top_clear_1[0] = max(top_clear_1[0], s[13]);
    top_clear_1[0] = tl::AllReduce<tl::MaxOp, 4, 1, 0, tl::NamedBarrier<128>>::run(top_clear_1[0]);
    top[0] = max(top[0], top_clear_1[0]);
    top_clear_1[1] = -CUDART_INF_F;
    top_clear_1[1] = max(top_clear_1[1], s[2]);
    top_clear_1[1] = max(top_clear_1[1], s[6]);
    top_clear_1[1] = max(top_clear_1[1], s[10]);
    top_clear_1[1] = max(top_clear_1[1], s[14]);
    top_clear_1[1] = max(top_clear_1[1], s[3]);
    top_clear_1[1] = max(top_clear_1[1], s[7]);
    top_clear_1[1] = max(top_clear_1[1], s[11]);
    top_clear_1[1] = max(top_clear_1[1], s[15]);
    top_clear_1[1] = tl::AllReduce<tl::MaxOp, 4, 1, 0, tl::NamedBarrier<128>>::run(top_clear_1[1]);
    top[1] = max(top[1], top_clear_1[1]);
  }
  if (2 <= count) {
    float condval_19;
    if ((top[0] == -CUDART_INF_F)) {
      condval_19 = 0x0p+0f/*0.000000e+00*/;
    } else {
      condval_19 = top[0];
    }
    scaled[0] = condval_19;
    float condval_20;
    if ((top[1] == -CUDART_INF_F)) {
      condval_20 = 0x0p+0f/*0.000000e+00*/;
    } else {
      condval_20 = top[1];
    }
    scaled[1] = condval_20;
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
    float2 __17;
    float2 __18;
      float2 v__18 = *(float2*)(s + 8);
      float2 v__19 = make_float2(scaled[0], scaled[0]);
      __18.x = (v__18.x-v__19.x);
      __18.y = (v__18.y-v__19.y);
    __17.x = exp2f(__18.x);
    __17.y = exp2f(__18.y);
    *(float2*)(s + 8) = __17;
    float2 __19;
    float2 __20;
      float2 v__20 = *(float2*)(s + 10);
      float2 v__21 = make_float2(scaled[1], scaled[1]);
      __20.x = (v__20.x-v__21.x);
      __20.y = (v__20.y-v__21.y);
    __19.x = exp2f(__20.x);
    __19.y = exp2f(__20.y);
    *(float2*)(s + 10) = __19;
    float2 __21;
    float2 __22;
      float2 v__22 = *(float2*)(s + 12);
      float2 v__23 = make_float2(scaled[0], scaled[0]);
      __22.x = (v__22.x-v__23.x);
      __22.y = (v__22.y-v__23.y);
    __21.x = exp2f(__22.x);
    __21.y = exp2f(__22.y);
    *(float2*)(s + 12) = __21;
    float2 __23;
    float2 __24;
      float2 v__24 = *(float2*)(s + 14);
      float2 v__25 = make_float2(scaled[1], scaled[1]);
      __24.x = (v__24.x-v__25.x);
      __24.y = (v__24.y-v__25.y);
    __23.x = exp2f(__24.x);
    __23.y = exp2f(__24.y);
    *(float2*)(s + 14) = __23;
  }
  if (2 <= count) {
    summed[0] = 0x0p+0f/*0.000000e+00*/;
    summed[0] = (summed[0] + s[0]);
    summed[0] = (summed[0] + s[4]);
    summed[0] = (summed[0] + s[8]);
    summed[0] = (summed[0] + s[12]);
    summed[0] = (summed[0] + s[1]);
    summed[0] = (summed[0] + s[5]);
    summed[0] = (summed[0] + s[9]);
    summed[0] = (summed[0] + s[13]);
    summed[0] = tl::AllReduce<tl::SumOp, 4, 1, 0, tl::NamedBarrier<128>>::run(summed[0]);
    summed[1] = 0x0p+0f/*0.000000e+00*/;
    summed[1] = (summed[1] + s[2]);
    summed[1] = (summed[1] + s[6]);
    summed[1] = (summed[1] + s[10]);
    summed[1] = (summed[1] + s[14]);
    summed[1] = (summed[1] + s[3]);
    summed[1] = (summed[1] + s[7]);
    summed[1] = (summed[1] + s[11]);
    summed[1] = (summed[1] + s[15]);
    summed[1] = tl::AllReduce<tl::SumOp, 4, 1, 0, tl::NamedBarrier<128>>::run(summed[1]);
  }
  if (2 <= count) {
    float2 __25;
    float2 __26;
      float2 v__26 = *(float2*)(before + 0);
      float2 v__27 = *(float2*)(scaled + 0);
      __26.x = (v__26.x-v__27.x);
      __26.y = (v__26.y-v__27.y);
    __25.x = exp2f(__26.x);
    __25.y = exp2f(__26.y);
    *(float2*)(before + 0) = __25;
    float2 __27;
      float2 __28;
        float2 v__28 = *(float2*)(total + 0);
        float2 v__29 = *(float2*)(before + 0);
        __28.x = (v__28.x*v__29.x);
        __28.y = (v__28.y*v__29.y);
      float2 v__30 = *(float2*)(summed + 0);
      __27.x = (__28.x+v__30.x);
      __27.y = (__28.y+v__30.y);
    *(float2*)(total + 0) = __27;
  }
  if (2 <= count) {
    uint2 __29;
    float4 v__31 = *(float4*)(s + 0);
    (reinterpret_cast<__nv_bfloat162*>(&__29))[0] = __float22bfloat162_rn(((float2*)(&v__31))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__29))[1] = __float22bfloat162_rn(((float2*)(&v__31))[1]);
    *(uint2*)(weights + 0) = __29;
    uint2 __30;
    float4 v__32 = *(float4*)(s + 4);
    (reinterpret_cast<__nv_bfloat162*>(&__30))[0] = __float22bfloat162_rn(((float2*)(&v__32))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__30))[1] = __float22bfloat162_rn(((float2*)(&v__32))[1]);
    *(uint2*)(weights + 4) = __30;
    uint2 __31;
    float4 v__33 = *(float4*)(s + 8);
    (reinterpret_cast<__nv_bfloat162*>(&__31))[0] = __float22bfloat162_rn(((float2*)(&v__33))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__31))[1] = __float22bfloat162_rn(((float2*)(&v__33))[1]);
    *(uint2*)(weights + 8) = __31;
    uint2 __32;
    float4 v__34 = *(float4*)(s + 12);
    (reinterpret_cast<__nv_bfloat162*>(&__32))[0] = __float22bfloat162_rn(((float2*)(&v__34))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__32))[1] = __float22bfloat162_rn(((float2*)(&v__34))[1]);
    *(uint2*)(weights + 12) = __32;
  }
  if (2 <= count) {
    float2 __33;
      float2 v__35 = *(float2*)(o + 0);
      float2 v__36 = make_float2(before[0], before[0]);
      __33.x = (v__35.x*v__36.x);
      __33.y = (v__35.y*v__36.y);
    *(float2*)(o + 0) = __33;
    float2 __34;
      float2 v__37 = *(float2*)(o + 2);
      float2 v__38 = make_float2(before[1], before[1]);
      __34.x = (v__37.x*v__38.x);
      __34.y = (v__37.y*v__38.y);
    *(float2*)(o + 2) = __34;
    float2 __35;
      float2 v__39 = *(float2*)(o + 4);
      float2 v__40 = make_float2(before[0], before[0]);
      __35.x = (v__39.x*v__40.x);
      __35.y = (v__39.y*v__40.y);
    *(float2*)(o + 4) = __35;
    float2 __36;
      float2 v__41 = *(float2*)(o + 6);
      float2 v__42 = make_float2(before[1], before[1]);
      __36.x = (v__41.x*v__42.x);
      __36.y = (v__41.y*v__42.y);
    *(float2*)(o + 6) = __36;
    float2 __37;
      float2 v__43 = *(float2*)(o + 8);
      float2 v__44 = make_float2(before[0], before[0]);
      __37.x = (v__43.x*v__44.x);
      __37.y = (v__43.y*v__44.y);
    *(float2*)(o + 8) = __37;
    float2 __38;
      float2 v__45 = *(float2*)(o + 10);
      float2 v__46 = make_float2(before[1], before[1]);
      __38.x = (v__45.x*v__46.x);
      __38.y = (v__45.y*v__46.y);
    *(float2*)(o + 10) = __38;
    float2 __39;
      float2 v__47 = *(float2*)(o + 12);
      float2 v__48 = make_float2(before[0], before[0]);
      __39.x = (v__47.x*v__48.x);
      __39.y = (v__47.y*v__48.y);
    *(float2*)(o + 12) = __39;
    float2 __40;
      float2 v__49 = *(float2*)(o + 14);
      float2 v__50 = make_float2(before[1], before[1]);
      __40.x = (v__49.x*v__50.x);
      __40.y = (v__49.y*v__50.y);
    *(float2*)(o + 14) = __40;
  }
  tl::cp_async_wait<2>();
  __syncthreads();
  if (2 <= count) {
    {
      bfloat16_t B_local_3[16];
      for (int ki_3 = 0; ki_3 < 2; ++ki_3) {
        tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((count & 1) * 1024) + (ki_3 * 512)) + ((((int)threadIdx.x) & 15) * 32)) + (((((int)threadIdx.x) & 7) >> 2) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(B_local_3[0])));
        tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[((((((count & 1) * 1024) + (ki_3 * 512)) + ((((int)threadIdx.x) & 15) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(B_local_3[8])));
        for (int j_3 = 0; j_3 < 2; ++j_3) {
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + (j_3 * 8)), reinterpret_cast<const unsigned*>(weights + (ki_3 * 8)), reinterpret_cast<const unsigned*>(B_local_3 + (j_3 * 8)));
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + ((j_3 * 8) + 4)), reinterpret_cast<const unsigned*>(weights + (ki_3 * 8)), reinterpret_cast<const unsigned*>(B_local_3 + ((j_3 * 8) + 4)));
        }
      }
    }
  }
  if (1 <= count) {
    float broadcast_var_9 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 0) = make_float4(broadcast_var_9, broadcast_var_9, broadcast_var_9, broadcast_var_9);
    float broadcast_var_10 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 4) = make_float4(broadcast_var_10, broadcast_var_10, broadcast_var_10, broadcast_var_10);
    float broadcast_var_11 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 8) = make_float4(broadcast_var_11, broadcast_var_11, broadcast_var_11, broadcast_var_11);
    float broadcast_var_12 = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(s + 12) = make_float4(broadcast_var_12, broadcast_var_12, broadcast_var_12, broadcast_var_12);
  }
  tl::cp_async_wait<1>();
  __syncthreads();
  if (1 <= count) {
    {
      bfloat16_t A_local_2[8];
      bfloat16_t B_local_4[16];
      for (int ki_4 = 0; ki_4 < 2; ++ki_4) {
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)q_tile)[(((((((int)threadIdx.x) >> 5) * 512) + ((((int)threadIdx.x) & 15) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + ki_4) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(A_local_2[0])));
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[(((((((count + 1) & 1) * 1024) + (((((int)threadIdx.x) & 31) >> 4) * 256)) + ((((int)threadIdx.x) & 7) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + ki_4) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(B_local_4[0])));
        tl::ptx_ldmatrix_x4((&(((bfloat16_t*)k_tile)[((((((((count + 1) & 1) * 1024) + (((((int)threadIdx.x) & 31) >> 4) * 256)) + ((((int)threadIdx.x) & 7) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + ki_4) & 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8)) + 512)])), (&(B_local_4[8])));
        for (int j_4 = 0; j_4 < 2; ++j_4) {
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + (j_4 * 8)), reinterpret_cast<const unsigned*>(A_local_2 + 0), reinterpret_cast<const unsigned*>(B_local_4 + (j_4 * 8)));
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(s + ((j_4 * 8) + 4)), reinterpret_cast<const unsigned*>(A_local_2 + 0), reinterpret_cast<const unsigned*>(B_local_4 + ((j_4 * 8) + 4)));
        }
      }
    }
  }
  if (1 <= count) {
    int j0_9 = ((((count * 32) + bounds[0]) - (bounds[2] * 32)) - 32);
    float condval_21;
    if ((((0 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 63)) || (keys <= (((((int)threadIdx.x) & 3) * 2) + j0_9)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < 0) || (((((((int)threadIdx.x) & 3) * 2) + j0_9) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && ((((((int)threadIdx.x) & 3) * 2) + j0_9) < keys))))) {
      condval_21 = (s[0] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_21 = -CUDART_INF_F;
    }
    s[0] = condval_21;
    float condval_22;
    if ((((-1 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 64)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 1)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -1) || (((((((int)threadIdx.x) & 3) * 2) + j0_9) < ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 1) < keys))))) {
      condval_22 = (s[1] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_22 = -CUDART_INF_F;
    }
    s[1] = condval_22;
    float condval_23;
    if ((((0 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 55)) || (keys <= (((((int)threadIdx.x) & 3) * 2) + j0_9)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < 0) || (((((((int)threadIdx.x) & 3) * 2) + j0_9) <= (((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) + 8)) && ((((((int)threadIdx.x) & 3) * 2) + j0_9) < keys))))) {
      condval_23 = (s[2] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_23 = -CUDART_INF_F;
    }
    s[2] = condval_23;
    float condval_24;
    if ((((-1 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 56)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 1)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -1) || (((((((int)threadIdx.x) & 3) * 2) + j0_9) <= (((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) + 7)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 1) < keys))))) {
      condval_24 = (s[3] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_24 = -CUDART_INF_F;
    }
    s[3] = condval_24;
    float condval_25;
    if ((((-8 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 71)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 8)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -8) || ((((((((int)threadIdx.x) & 3) * 2) + j0_9) + 8) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 8) < keys))))) {
      condval_25 = (s[4] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_25 = -CUDART_INF_F;
    }
    s[4] = condval_25;
    float condval_26;
    if ((((-9 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 72)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 9)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -9) || ((((((((int)threadIdx.x) & 3) * 2) + j0_9) + 9) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 9) < keys))))) {
      condval_26 = (s[5] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_26 = -CUDART_INF_F;
    }
    s[5] = condval_26;
    float condval_27;
    if ((((-8 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 63)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 8)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -8) || (((((((int)threadIdx.x) & 3) * 2) + j0_9) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 8) < keys))))) {
      condval_27 = (s[6] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_27 = -CUDART_INF_F;
    }
    s[6] = condval_27;
    float condval_28;
    if ((((-9 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 64)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 9)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -9) || (((((((int)threadIdx.x) & 3) * 2) + j0_9) < ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 9) < keys))))) {
      condval_28 = (s[7] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_28 = -CUDART_INF_F;
    }
    s[7] = condval_28;
    float condval_29;
    if ((((-16 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 79)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 16)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -16) || ((((((((int)threadIdx.x) & 3) * 2) + j0_9) + 16) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 16) < keys))))) {
      condval_29 = (s[8] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_29 = -CUDART_INF_F;
    }
    s[8] = condval_29;
    float condval_30;
    if ((((-17 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 80)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 17)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -17) || ((((((((int)threadIdx.x) & 3) * 2) + j0_9) + 17) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 17) < keys))))) {
      condval_30 = (s[9] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_30 = -CUDART_INF_F;
    }
    s[9] = condval_30;
    float condval_31;
    if ((((-16 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 71)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 16)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -16) || ((((((((int)threadIdx.x) & 3) * 2) + j0_9) + 8) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 16) < keys))))) {
      condval_31 = (s[10] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_31 = -CUDART_INF_F;
    }
    s[10] = condval_31;
    float condval_32;
    if ((((-17 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 72)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 17)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -17) || ((((((((int)threadIdx.x) & 3) * 2) + j0_9) + 9) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 17) < keys))))) {
      condval_32 = (s[11] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_32 = -CUDART_INF_F;
    }
    s[11] = condval_32;
    float condval_33;
    if ((((-24 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 87)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 24)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -24) || ((((((((int)threadIdx.x) & 3) * 2) + j0_9) + 24) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 24) < keys))))) {
      condval_33 = (s[12] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_33 = -CUDART_INF_F;
    }
    s[12] = condval_33;
    float condval_34;
    if ((((-25 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 88)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 25)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -25) || ((((((((int)threadIdx.x) & 3) * 2) + j0_9) + 25) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 25) < keys))))) {
      condval_34 = (s[13] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_34 = -CUDART_INF_F;
    }
    s[13] = condval_34;
    float condval_35;
    if ((((-24 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 79)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 24)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -24) || ((((((((int)threadIdx.x) & 3) * 2) + j0_9) + 16) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 24) < keys))))) {
      condval_35 = (s[14] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_35 = -CUDART_INF_F;
    }
    s[14] = condval_35;
    float condval_36;
    if ((((-25 <= (((((int)threadIdx.x) & 3) * 2) + j0_9)) && ((((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start) <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 80)) || (keys <= ((((((int)threadIdx.x) & 3) * 2) + j0_9) + 25)))) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) < -25) || ((((((((int)threadIdx.x) & 3) * 2) + j0_9) + 17) <= ((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((((int)threadIdx.x) & 31) >> 2)) + q_start)) && (((((((int)threadIdx.x) & 3) * 2) + j0_9) + 25) < keys))))) {
      condval_36 = (s[15] * (scale * 0x1.71547652b82fep+0f/*1.442695e+00*/));
    } else {
      condval_36 = -CUDART_INF_F;
    }
    s[15] = condval_36;
  }
  if (1 <= count) {
    *(float2*)(before + 0) = *(float2*)(top + 0);
  }
  if (1 <= count) {
    top_clear_1[0] = -CUDART_INF_F;
    top_clear_1[0] = max(top_clear_1[0], s[0]);
    top_clear_1[0] = max(top_clear_1[0], s[4]);
    top_clear_1[0] = max(top_clear_1[0], s[8]);
    top_clear_1[0] = max(top_clear_1[0], s[12]);
    top_clear_1[0] = max(top_clear_1[0], s[1]);
    top_clear_1[0] = max(top_clear_1[0], s[5]);
    top_clear_1[0] = max(top_clear_1[0], s[9]);
    top_clear_1[0] = max(top_clear_1[0], s[13]);
    top_clear_1[0] = tl::AllReduce<tl::MaxOp, 4, 1, 0, tl::NamedBarrier<128>>::run(top_clear_1[0]);
    top[0] = max(top[0], top_clear_1[0]);
    top_clear_1[1] = -CUDART_INF_F;
    top_clear_1[1] = max(top_clear_1[1], s[2]);
    top_clear_1[1] = max(top_clear_1[1], s[6]);
    top_clear_1[1] = max(top_clear_1[1], s[10]);
    top_clear_1[1] = max(top_clear_1[1], s[14]);
    top_clear_1[1] = max(top_clear_1[1], s[3]);
    top_clear_1[1] = max(top_clear_1[1], s[7]);
    top_clear_1[1] = max(top_clear_1[1], s[11]);
    top_clear_1[1] = max(top_clear_1[1], s[15]);
    top_clear_1[1] = tl::AllReduce<tl::MaxOp, 4, 1, 0, tl::NamedBarrier<128>>::run(top_clear_1[1]);
    top[1] = max(top[1], top_clear_1[1]);
  }
  if (1 <= count) {
    float condval_37;
    if ((top[0] == -CUDART_INF_F)) {
      condval_37 = 0x0p+0f/*0.000000e+00*/;
    } else {
      condval_37 = top[0];
    }
    scaled[0] = condval_37;
    float condval_38;
    if ((top[1] == -CUDART_INF_F)) {
      condval_38 = 0x0p+0f/*0.000000e+00*/;
    } else {
      condval_38 = top[1];
    }
    scaled[1] = condval_38;
  }
  if (1 <= count) {
    float2 __41;
    float2 __42;
      float2 v__51 = *(float2*)(s + 0);
      float2 v__52 = make_float2(scaled[0], scaled[0]);
      __42.x = (v__51.x-v__52.x);
      __42.y = (v__51.y-v__52.y);
    __41.x = exp2f(__42.x);
    __41.y = exp2f(__42.y);
    *(float2*)(s + 0) = __41;
    float2 __43;
    float2 __44;
      float2 v__53 = *(float2*)(s + 2);
      float2 v__54 = make_float2(scaled[1], scaled[1]);
      __44.x = (v__53.x-v__54.x);
      __44.y = (v__53.y-v__54.y);
    __43.x = exp2f(__44.x);
    __43.y = exp2f(__44.y);
    *(float2*)(s + 2) = __43;
    float2 __45;
    float2 __46;
      float2 v__55 = *(float2*)(s + 4);
      float2 v__56 = make_float2(scaled[0], scaled[0]);
      __46.x = (v__55.x-v__56.x);
      __46.y = (v__55.y-v__56.y);
    __45.x = exp2f(__46.x);
    __45.y = exp2f(__46.y);
    *(float2*)(s + 4) = __45;
    float2 __47;
    float2 __48;
      float2 v__57 = *(float2*)(s + 6);
      float2 v__58 = make_float2(scaled[1], scaled[1]);
      __48.x = (v__57.x-v__58.x);
      __48.y = (v__57.y-v__58.y);
    __47.x = exp2f(__48.x);
    __47.y = exp2f(__48.y);
    *(float2*)(s + 6) = __47;
    float2 __49;
    float2 __50;
      float2 v__59 = *(float2*)(s + 8);
      float2 v__60 = make_float2(scaled[0], scaled[0]);
      __50.x = (v__59.x-v__60.x);
      __50.y = (v__59.y-v__60.y);
    __49.x = exp2f(__50.x);
    __49.y = exp2f(__50.y);
    *(float2*)(s + 8) = __49;
    float2 __51;
    float2 __52;
      float2 v__61 = *(float2*)(s + 10);
      float2 v__62 = make_float2(scaled[1], scaled[1]);
      __52.x = (v__61.x-v__62.x);
      __52.y = (v__61.y-v__62.y);
    __51.x = exp2f(__52.x);
    __51.y = exp2f(__52.y);
    *(float2*)(s + 10) = __51;
    float2 __53;
    float2 __54;
      float2 v__63 = *(float2*)(s + 12);
      float2 v__64 = make_float2(scaled[0], scaled[0]);
      __54.x = (v__63.x-v__64.x);
      __54.y = (v__63.y-v__64.y);
    __53.x = exp2f(__54.x);
    __53.y = exp2f(__54.y);
    *(float2*)(s + 12) = __53;
    float2 __55;
    float2 __56;
      float2 v__65 = *(float2*)(s + 14);
      float2 v__66 = make_float2(scaled[1], scaled[1]);
      __56.x = (v__65.x-v__66.x);
      __56.y = (v__65.y-v__66.y);
    __55.x = exp2f(__56.x);
    __55.y = exp2f(__56.y);
    *(float2*)(s + 14) = __55;
  }
  if (1 <= count) {
    summed[0] = 0x0p+0f/*0.000000e+00*/;
    summed[0] = (summed[0] + s[0]);
    summed[0] = (summed[0] + s[4]);
    summed[0] = (summed[0] + s[8]);
    summed[0] = (summed[0] + s[12]);
    summed[0] = (summed[0] + s[1]);
    summed[0] = (summed[0] + s[5]);
    summed[0] = (summed[0] + s[9]);
    summed[0] = (summed[0] + s[13]);
    summed[0] = tl::AllReduce<tl::SumOp, 4, 1, 0, tl::NamedBarrier<128>>::run(summed[0]);
    summed[1] = 0x0p+0f/*0.000000e+00*/;
    summed[1] = (summed[1] + s[2]);
    summed[1] = (summed[1] + s[6]);
    summed[1] = (summed[1] + s[10]);
    summed[1] = (summed[1] + s[14]);
    summed[1] = (summed[1] + s[3]);
    summed[1] = (summed[1] + s[7]);
    summed[1] = (summed[1] + s[11]);
    summed[1] = (summed[1] + s[15]);
    summed[1] = tl::AllReduce<tl::SumOp, 4, 1, 0, tl::NamedBarrier<128>>::run(summed[1]);
  }
  if (1 <= count) {
    float2 __57;
    float2 __58;
      float2 v__67 = *(float2*)(before + 0);
      float2 v__68 = *(float2*)(scaled + 0);
      __58.x = (v__67.x-v__68.x);
      __58.y = (v__67.y-v__68.y);
    __57.x = exp2f(__58.x);
    __57.y = exp2f(__58.y);
    *(float2*)(before + 0) = __57;
    float2 __59;
      float2 __60;
        float2 v__69 = *(float2*)(total + 0);
        float2 v__70 = *(float2*)(before + 0);
        __60.x = (v__69.x*v__70.x);
        __60.y = (v__69.y*v__70.y);
      float2 v__71 = *(float2*)(summed + 0);
      __59.x = (__60.x+v__71.x);
      __59.y = (__60.y+v__71.y);
    *(float2*)(total + 0) = __59;
  }
  if (1 <= count) {
    uint2 __61;
    float4 v__72 = *(float4*)(s + 0);
    (reinterpret_cast<__nv_bfloat162*>(&__61))[0] = __float22bfloat162_rn(((float2*)(&v__72))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__61))[1] = __float22bfloat162_rn(((float2*)(&v__72))[1]);
    *(uint2*)(weights + 0) = __61;
    uint2 __62;
    float4 v__73 = *(float4*)(s + 4);
    (reinterpret_cast<__nv_bfloat162*>(&__62))[0] = __float22bfloat162_rn(((float2*)(&v__73))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__62))[1] = __float22bfloat162_rn(((float2*)(&v__73))[1]);
    *(uint2*)(weights + 4) = __62;
    uint2 __63;
    float4 v__74 = *(float4*)(s + 8);
    (reinterpret_cast<__nv_bfloat162*>(&__63))[0] = __float22bfloat162_rn(((float2*)(&v__74))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__63))[1] = __float22bfloat162_rn(((float2*)(&v__74))[1]);
    *(uint2*)(weights + 8) = __63;
    uint2 __64;
    float4 v__75 = *(float4*)(s + 12);
    (reinterpret_cast<__nv_bfloat162*>(&__64))[0] = __float22bfloat162_rn(((float2*)(&v__75))[0]);
    (reinterpret_cast<__nv_bfloat162*>(&__64))[1] = __float22bfloat162_rn(((float2*)(&v__75))[1]);
    *(uint2*)(weights + 12) = __64;
  }
  if (1 <= count) {
    float2 __65;
      float2 v__76 = *(float2*)(o + 0);
      float2 v__77 = make_float2(before[0], before[0]);
      __65.x = (v__76.x*v__77.x);
      __65.y = (v__76.y*v__77.y);
    *(float2*)(o + 0) = __65;
    float2 __66;
      float2 v__78 = *(float2*)(o + 2);
      float2 v__79 = make_float2(before[1], before[1]);
      __66.x = (v__78.x*v__79.x);
      __66.y = (v__78.y*v__79.y);
    *(float2*)(o + 2) = __66;
    float2 __67;
      float2 v__80 = *(float2*)(o + 4);
      float2 v__81 = make_float2(before[0], before[0]);
      __67.x = (v__80.x*v__81.x);
      __67.y = (v__80.y*v__81.y);
    *(float2*)(o + 4) = __67;
    float2 __68;
      float2 v__82 = *(float2*)(o + 6);
      float2 v__83 = make_float2(before[1], before[1]);
      __68.x = (v__82.x*v__83.x);
      __68.y = (v__82.y*v__83.y);
    *(float2*)(o + 6) = __68;
    float2 __69;
      float2 v__84 = *(float2*)(o + 8);
      float2 v__85 = make_float2(before[0], before[0]);
      __69.x = (v__84.x*v__85.x);
      __69.y = (v__84.y*v__85.y);
    *(float2*)(o + 8) = __69;
    float2 __70;
      float2 v__86 = *(float2*)(o + 10);
      float2 v__87 = make_float2(before[1], before[1]);
      __70.x = (v__86.x*v__87.x);
      __70.y = (v__86.y*v__87.y);
    *(float2*)(o + 10) = __70;
    float2 __71;
      float2 v__88 = *(float2*)(o + 12);
      float2 v__89 = make_float2(before[0], before[0]);
      __71.x = (v__88.x*v__89.x);
      __71.y = (v__88.y*v__89.y);
    *(float2*)(o + 12) = __71;
    float2 __72;
      float2 v__90 = *(float2*)(o + 14);
      float2 v__91 = make_float2(before[1], before[1]);
      __72.x = (v__90.x*v__91.x);
      __72.y = (v__90.y*v__91.y);
    *(float2*)(o + 14) = __72;
  }
  tl::cp_async_wait<0>();
  __syncthreads();
  if (1 <= count) {
    {
      bfloat16_t B_local_5[16];
      for (int ki_5 = 0; ki_5 < 2; ++ki_5) {
        tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((((count + 1) & 1) * 1024) + (ki_5 * 512)) + ((((int)threadIdx.x) & 15) * 32)) + (((((int)threadIdx.x) & 7) >> 2) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(B_local_5[0])));
        tl::ptx_ldmatrix_x4_trans((&(((bfloat16_t*)v_tile)[(((((((count + 1) & 1) * 1024) + (ki_5 * 512)) + ((((int)threadIdx.x) & 15) * 32)) + (((((((int)threadIdx.x) & 7) >> 2) + 1) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 8))])), (&(B_local_5[8])));
        for (int j_5 = 0; j_5 < 2; ++j_5) {
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + (j_5 * 8)), reinterpret_cast<const unsigned*>(weights + (ki_5 * 8)), reinterpret_cast<const unsigned*>(B_local_5 + (j_5 * 8)));
          tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, true>(reinterpret_cast<float*>(o + ((j_5 * 8) + 4)), reinterpret_cast<const unsigned*>(weights + (ki_5 * 8)), reinterpret_cast<const unsigned*>(B_local_5 + ((j_5 * 8) + 4)));
        }
      }
    }
  }
  #pragma unroll
  for (int i_12 = 0; i_12 < 8; ++i_12) {
    float broadcast_var_13 = 0x0p+0f/*0.000000e+00*/;
    float2 condval_39;
    if ((0x0p+0f/*0.000000e+00*/ < total[(i_12 & 1)])) {
      float2 __73;
        float2 v__92 = *(float2*)(o + (i_12 * 2));
        float2 v__93 = make_float2(total[(i_12 & 1)], total[(i_12 & 1)]);
        __73.x = (v__92.x/v__93.x);
        __73.y = (v__92.y/v__93.y);
      condval_39 = __73;
    } else {
      condval_39 = make_float2(broadcast_var_13, broadcast_var_13);
    }
    *(float2*)(o + (i_12 * 2)) = condval_39;
  }
  #pragma unroll
  for (int i_13 = 0; i_13 < 2; ++i_13) {
    float condval_40;
    if ((0x0p+0f/*0.000000e+00*/ < total[i_13])) {
      condval_40 = ((top[i_13] + log2f(total[i_13])) * 0x1.62e42fefa39efp-1f/*6.931472e-01*/);
    } else {
      condval_40 = -CUDART_INF_F;
    }
    top[i_13] = condval_40;
  }
  #pragma unroll
  for (int i_14 = 0; i_14 < 8; ++i_14) {
    bfloat16_t out_local_cast[2];
    if (((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + ((i_14 & 1) * 8)) + ((((int)threadIdx.x) & 31) >> 2)) < tokens) {
      uint1 __74;
      float2 v__94 = *(float2*)(o + (i_14 * 2));
      (reinterpret_cast<__nv_bfloat162*>(&__74))[0] = __float22bfloat162_rn(((float2*)(&v__94))[0]);
      *(uint1*)(out_local_cast + 0) = __74;
      *(uint1*)(out + (((((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) * (int64_t)32) + ((((((((int64_t)((int)blockIdx.x)) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)5) * (int64_t)16)) + ((((int64_t)i_14) & (int64_t)1) * (int64_t)8)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)31) >> (int64_t)2)) * ((int64_t)kv_heads)) * (int64_t)32)) + (((int64_t)((int)blockIdx.y)) * (int64_t)32)) + ((((int64_t)i_14) >> (int64_t)1) * (int64_t)8)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)2))) = *(uint1*)(out_local_cast + 0);
    }
  }
  if ((((int)threadIdx.x) % 4) == 0) {
    #pragma unroll
    for (int i_15 = 0; i_15 < 2; ++i_15) {
      if (((((((int)blockIdx.x) * 64) + ((((int)threadIdx.x) >> 5) * 16)) + (i_15 * 8)) + ((((int)threadIdx.x) & 31) >> 2)) < tokens) {
        lse[((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)tokens)) + (((((((int64_t)((int)blockIdx.x)) * (int64_t)64) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)5) * (int64_t)16)) + (((int64_t)i_15) * (int64_t)8)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)31) >> (int64_t)2)) * ((int64_t)kv_heads))) + ((int64_t)((int)blockIdx.y)))] = top[i_15];
      }
    }
  }
}

