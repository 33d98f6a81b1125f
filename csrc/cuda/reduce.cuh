#pragma once

#include "cuda/launch.cuh"

namespace torchcalc::cuda {

constexpr int kMaxReducedColumns = 64;

// Sums over a block's rows of threads: thread (x, y) holds N columns, those from N x on, and thread
// number c = x + blockDim.x y < N blockDim.x gets the total of column c. Every thread of the block
// must call it, and only once in a kernel. The order of the sum is fixed by the block's shape.
// blockDim.x is a power of two <= 32, the block is whole warps and N blockDim.x <= 64 threads or more.
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
