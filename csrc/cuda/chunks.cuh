#pragma once

#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"

// The end of bias gradients, whose beginning are sums over chunks of rows.
namespace torchcalc::cuda {

// sums = partial [chunks, cols] summed over chunks: each thread has one column and every
// blockDim.y-th chunk.
template <class T, class Op>
__global__ void __launch_bounds__(kThreads)
    sum_chunks_kernel(T* sums, const Op* partial, int64_t chunks, int64_t cols) {
  const int64_t col = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  Op sum[1] = {};
  if (col < cols) {
#pragma unroll 4  // four loads at a time on their way
    for (int64_t chunk = threadIdx.y; chunk < chunks; chunk += blockDim.y) {
      sum[0] += partial[chunk * cols + col];
    }
  }
  const Op total = sum_over_rows(sum);
  if (threadIdx.y == 0 && col < cols) sums[col] = static_cast<T>(total);
}

template <class T, class Op>
void sum_chunks(T* sums, const Op* partial, int64_t chunks, int64_t cols, cudaStream_t stream) {
  launch(sum_chunks_kernel<T, Op>, ceil_div(cols, kLine), dim3(kLine, kThreads / kLine), stream,
         sums, partial, chunks, cols);
}

}  // namespace torchcalc::cuda
