// compress_bwd(bfloat16, dim=128, hidden=256, kernel=32, method=mlp, part=tokens, stride=16)
// schedule rows=128 key_tile=16 stages=3 threads=128 specialized=0
// target sm_90a (H100, wgmma, 227 KB shared per block)
// emitted by TileLang 0.1.15
#if defined(_MSC_VER) && !defined(__clang__) && _MSC_VER < 1940
#define _tl_orig_alignas alignas
#define alignas(N) _tl_orig_alignas((N) <= 64 ? (N) : 64)
#include <cuda.h>
#undef alignas
#define alignas _tl_orig_alignas
#endif
#include <tl_templates/cuda/instruction/wgmma.h>
#include <tl_templates/cuda/intrin.h>
#include <tl_templates/cuda/barrier.h>
#include <tl_templates/cuda/copy.h>
#include <tl_templates/cuda/reduce.h>
#include <tl_templates/cuda/scan.h>
#include <tl_templates/cuda/ldsm.h>
#include <tl_templates/cuda/threadblock_swizzle.h>
#include <tl_templates/cuda/debug.h>
#ifdef ENABLE_BF16
#include <tl_templates/cuda/cuda_bf16_fallbacks.cuh>
#endif

extern "C" __global__ void compress_tokens_kernel(bfloat16_t* __restrict__ dx, const bfloat16_t* __restrict__ dz, const bfloat16_t* __restrict__ w1, int batch, int keys, int kv_heads, int windows);
extern "C" __global__ void __launch_bounds__(128, 1) compress_tokens_kernel(bfloat16_t* __restrict__ dx, const bfloat16_t* __restrict__ dz, const bfloat16_t* __restrict__ w1, int batch, int keys, int kv_heads, int windows) {
  extern __shared__ __align__(1024) uchar buf_dyn_shmem[];
  void* dz_tile = ((void*)((char*)buf_dyn_shmem + 0));
  void* w1_tile = ((void*)((char*)buf_dyn_shmem + 12288));
  float total[128];
  #pragma unroll
  for (int i = 0; i < 32; ++i) {
    float broadcast_var = 0x0p+0f/*0.000000e+00*/;
    *(float4*)(total + (i * 4)) = make_float4(broadcast_var, broadcast_var, broadcast_var, broadcast_var);
  }
  #pragma unroll
  for (int i_1 = 0; i_1 < 2; ++i_1) {
    tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)dz_tile)[(((i_1 * 1024) + ((((int)threadIdx.x) >> 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(dz[(((((((((int64_t)((int)blockIdx.x)) / (int64_t)16) * (int64_t)32768) + (((int64_t)i_1) * (int64_t)16384)) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)1) * (int64_t)256)) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)windows)) * ((int64_t)kv_heads)) * (int64_t)256)) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)windows)) * (int64_t)256)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)1) * (int64_t)8))])), ((((((((int)blockIdx.x) / 16) * 128) + (i_1 * 64)) + (((int)threadIdx.x) >> 1)) < windows) && (((((((int)blockIdx.x) / 16) * 128) + (i_1 * 64)) + (((int)threadIdx.x) >> 1)) < windows)));
  }
  #pragma unroll
  for (int i_2 = 0; i_2 < 2; ++i_2) {
    tl::cp_async_gs<16>((&(((bfloat16_t*)w1_tile)[((((((((((int)threadIdx.x) & 15) >> 3) * 1024) + (i_2 * 512)) + ((((int)threadIdx.x) >> 4) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((int)threadIdx.x) & 63) >> 5) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(w1[((((i_2 * 32768) + ((((int)threadIdx.x) >> 4) * 4096)) + ((((int)blockIdx.x) % 16) * 128)) + ((((int)threadIdx.x) & 15) * 8))])));
  }
  tl::cp_async_commit();
  #pragma unroll
  for (int i_3 = 0; i_3 < 2; ++i_3) {
    tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)dz_tile)[((((i_3 * 1024) + ((((int)threadIdx.x) >> 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 2048)])), (&(dz[((((((((((int64_t)((int)blockIdx.x)) / (int64_t)16) * (int64_t)32768) + (((int64_t)i_3) * (int64_t)16384)) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)1) * (int64_t)256)) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)windows)) * ((int64_t)kv_heads)) * (int64_t)256)) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)windows)) * (int64_t)256)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)1) * (int64_t)8)) + (int64_t)16)])), ((((((((int)blockIdx.x) / 16) * 128) + (i_3 * 64)) + (((int)threadIdx.x) >> 1)) < windows) && (((((((int)blockIdx.x) / 16) * 128) + (i_3 * 64)) + (((int)threadIdx.x) >> 1)) < windows)));
  }
  #pragma unroll
  for (int i_4 = 0; i_4 < 2; ++i_4) {
    tl::cp_async_gs<16>((&(((bfloat16_t*)w1_tile)[(((((((((((int)threadIdx.x) & 15) >> 3) * 1024) + (i_4 * 512)) + ((((int)threadIdx.x) >> 4) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((int)threadIdx.x) & 63) >> 5) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8)) + 2048)])), (&(w1[(((((i_4 * 32768) + ((((int)threadIdx.x) >> 4) * 4096)) + ((((int)blockIdx.x) % 16) * 128)) + ((((int)threadIdx.x) & 15) * 8)) + 65536)])));
  }
  tl::cp_async_commit();
  for (int step = 0; step < 30; ++step) {
    __syncthreads();
    #pragma unroll
    for (int i_5 = 0; i_5 < 2; ++i_5) {
      tl::cp_async_gs_conditional<16>((&(((bfloat16_t*)dz_tile)[((((((step + 2) % 3) * 2048) + (i_5 * 1024)) + ((((int)threadIdx.x) >> 1) * 16)) + (((((((int)threadIdx.x) & 15) >> 3) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(dz[(((((((((((int64_t)((int)blockIdx.x)) / (int64_t)16) * (int64_t)32768) + (((int64_t)i_5) * (int64_t)16384)) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)1) * (int64_t)256)) + (((((int64_t)((int)blockIdx.z)) * ((int64_t)windows)) * ((int64_t)kv_heads)) * (int64_t)256)) + ((((int64_t)((int)blockIdx.y)) * ((int64_t)windows)) * (int64_t)256)) + (((((int64_t)step) + (int64_t)2) % (int64_t)16) * (int64_t)16)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)1) * (int64_t)8)) - (((((int64_t)step) + (int64_t)2) / (int64_t)16) * (int64_t)256))])), (((((((((((int)blockIdx.x) / 16) * 128) + (i_5 * 64)) + (((int)threadIdx.x) >> 1)) - ((step + 2) / 16)) < windows) && (0 <= (((((((int)blockIdx.x) / 16) * 128) + (i_5 * 64)) + (((int)threadIdx.x) >> 1)) - ((step + 2) / 16)))) && ((((((((int)blockIdx.x) / 16) * 128) + (i_5 * 64)) + (((int)threadIdx.x) >> 1)) - ((step + 2) / 16)) < windows)) && (0 <= (((((((int)blockIdx.x) / 16) * 128) + (i_5 * 64)) + (((int)threadIdx.x) >> 1)) - ((step + 2) / 16)))));
    }
    #pragma unroll
    for (int i_6 = 0; i_6 < 2; ++i_6) {
      tl::cp_async_gs<16>((&(((bfloat16_t*)w1_tile)[(((((((((step + 2) % 3) * 2048) + (((((int)threadIdx.x) & 15) >> 3) * 1024)) + (i_6 * 512)) + ((((int)threadIdx.x) >> 4) * 64)) + ((((((int)threadIdx.x) >> 6) + ((((int)threadIdx.x) & 7) >> 2)) & 1) * 32)) + (((((((int)threadIdx.x) & 63) >> 5) + ((((int)threadIdx.x) & 3) >> 1)) & 1) * 16)) + (((((((int)threadIdx.x) & 31) >> 4) + (((int)threadIdx.x) & 1)) & 1) * 8))])), (&(w1[((((((((step + 2) % 16) * 65536) + (i_6 * 32768)) + ((((int)threadIdx.x) >> 4) * 4096)) + (((step + 2) / 16) * 2048)) + ((((int)blockIdx.x) % 16) * 128)) + ((((int)threadIdx.x) & 15) * 8))])));
    }
    tl::cp_async_commit();
    tl::cp_async_wait<2>();
    __syncthreads();
    {
      tl::GmmaDescriptor desc_a;
      tl::GmmaDescriptor desc_b;
      tl::initialize_wgmma_descriptor<3, 1, 16>(desc_a, (&(((bfloat16_t*)dz_tile)[0])));
      tl::increase_descriptor_offset<int>(desc_a, ((step % 3) * 4096));
      tl::initialize_wgmma_descriptor<1, 128, 64>(desc_b, (&(((bfloat16_t*)w1_tile)[0])));
      tl::increase_descriptor_offset<int>(desc_b, ((step % 3) * 4096));
      tl::warpgroup_fence_operand(reinterpret_cast<float*>(total + 0), 128);
      tl::warpgroup_arrive();
      tl::fence_proxy_async();
      #pragma unroll
      for (int i_7 = 0; i_7 < 2; ++i_7) {
        tl::wgmma_ss<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 64, 128, 16, false, true, 1, 1>(uint64_t(desc_a + ((i_7 * 2048) >> 4)), uint64_t(desc_b + 0), ((uint32_t*)(total + (i_7 * 64))), 1);
      }
      tl::warpgroup_commit_batch();
      tl::warpgroup_wait<0>();
      tl::warpgroup_fence_operand(reinterpret_cast<float*>(total + 0), 128);
    }
  }
  tl::cp_async_wait<1>();
  __syncthreads();
  {
    tl::GmmaDescriptor desc_a_1;
    tl::GmmaDescriptor desc_b_1;
    tl::initialize_wgmma_descriptor<3, 1, 16>(desc_a_1, (&(((bfloat16_t*)dz_tile)[0])));
    tl::initialize_wgmma_descriptor<1, 128, 64>(desc_b_1, (&(((bfloat16_t*)w1_tile)[0])));
    tl::warpgroup_fence_operand(reinterpret_cast<float*>(total + 0), 128);
    tl::warpgroup_arrive();
    tl::fence_proxy_async();
    #pragma unroll
    for (int i_8 = 0; i_8 < 2; ++i_8) {
      tl::wgmma_ss<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 64, 128, 16, false, true, 1, 1>(uint64_t(desc_a_1 + ((i_8 * 2048) >> 4)), uint64_t(desc_b_1 + 0), ((uint32_t*)(total + (i_8 * 64))), 1);
    }
    tl::warpgroup_commit_batch();
    tl::warpgroup_wait<0>();
    tl::warpgroup_fence_operand(reinterpret_cast<float*>(total + 0), 128);
  }
  tl::cp_async_wait<0>();
  __syncthreads();
  {
    tl::GmmaDescriptor desc_a_2;
    tl::GmmaDescriptor desc_b_2;
    tl::initialize_wgmma_descriptor<3, 1, 16>(desc_a_2, ((void*)((char*)(&(((bfloat16_t*)dz_tile)[0])) + 4096)));
    tl::initialize_wgmma_descriptor<1, 128, 64>(desc_b_2, ((void*)((char*)(&(((bfloat16_t*)w1_tile)[0])) + 4096)));
    tl::warpgroup_fence_operand(reinterpret_cast<float*>(total + 0), 128);
    tl::warpgroup_arrive();
    tl::fence_proxy_async();
    #pragma unroll
    for (int i_9 = 0; i_9 < 2; ++i_9) {
      tl::wgmma_ss<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 64, 128, 16, false, true, 1, 1>(uint64_t(desc_a_2 + ((i_9 * 2048) >> 4)), uint64_t(desc_b_2 + 0), ((uint32_t*)(total + (i_9 * 64))), 1);
    }
    tl::warpgroup_commit_batch();
    tl::warpgroup_wait<0>();
    tl::warpgroup_fence_operand(reinterpret_cast<float*>(total + 0), 128);
  }
  #pragma unroll
  for (int i_10 = 0; i_10 < 64; ++i_10) {
    bfloat16_t dx_local_cast[2];
    if ((((((((((int)blockIdx.x) / 16) * 2048) + ((i_10 >> 5) * 1024)) + ((((int)threadIdx.x) >> 5) * 256)) + ((i_10 & 1) * 128)) + (((((int)threadIdx.x) & 31) >> 2) * 16)) + (((int)blockIdx.x) % 16)) < keys) {
      uint1 __1;
      float2 v_ = *(float2*)(total + (i_10 * 2));
      (reinterpret_cast<__nv_bfloat162*>(&__1))[0] = __float22bfloat162_rn(((float2*)(&v_))[0]);
      *(uint1*)(dx_local_cast + 0) = __1;
      *(uint1*)(dx + (((((((((int64_t)((int)blockIdx.z)) * ((int64_t)kv_heads)) * ((int64_t)keys)) * (int64_t)128) + (((((((((((int64_t)((int)blockIdx.x)) / (int64_t)16) * (int64_t)2048) + ((((int64_t)i_10) >> (int64_t)5) * (int64_t)1024)) + ((((int64_t)((int)threadIdx.x)) >> (int64_t)5) * (int64_t)256)) + ((((int64_t)i_10) & (int64_t)1) * (int64_t)128)) + (((((int64_t)((int)threadIdx.x)) & (int64_t)31) >> (int64_t)2) * (int64_t)16)) + (((int64_t)((int)blockIdx.x)) % (int64_t)16)) * ((int64_t)kv_heads)) * (int64_t)128)) + (((int64_t)((int)blockIdx.y)) * (int64_t)128)) + (((((int64_t)i_10) & (int64_t)31) >> (int64_t)1) * (int64_t)8)) + ((((int64_t)((int)threadIdx.x)) & (int64_t)3) * (int64_t)2))) = *(uint1*)(dx_local_cast + 0);
    }
  }
}

