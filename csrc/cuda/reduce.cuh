#pragma once

#include "cuda/launch.cuh"

namespace torchcalc::cuda {

constexpr int kMaxReducedColumns = 64;

// Sums over a block's rows of threads. Thread (x, y) holds N columns, those from N x on; thread
// number c = x + blockDim.x y gets the total of column c, those behind the last column get 0. The
// block's shape alone fixes the order of the sum. Every thread of the block must call it, once in a
// kernel. blockDim.x is a power of two <= 32, the block is whole warps, N blockDim.x <= 64.
template <int N, class Op>
__device__ Op sum_over_rows(Op (&v)[N]) {
  __shared__ Op warp_sums[kThreads / kWarpSize][kMaxReducedColumns];
  const unsigned columns = N * blockDim.x;
  const unsigned thread = threadIdx.x + blockDim.x * threadIdx.y;
  const unsigned warps = blockDim.x * blockDim.y / kWarpSize;
  // A warp holds 32 / blockDim.x rows: halve them until one is left.
  TC_UNROLL
  for (int j = 0; j < N; ++j) {
    for (unsigned lanes = kWarpSize / 2; lanes >= blockDim.x; lanes /= 2) {
      v[j] += __shfl_down_sync(0xffffffffu, v[j], lanes);
    }
  }
  if (thread % kWarpSize < blockDim.x) {
    TC_UNROLL
    for (int j = 0; j < N; ++j) warp_sums[thread / kWarpSize][N * threadIdx.x + j] = v[j];
  }
  __syncthreads();
  Op total = 0;
  if (thread < columns) {
    for (unsigned warp = 0; warp < warps; ++warp) total += warp_sums[warp][thread];
  }
  return total;
}

}  // namespace torchcalc::cuda
