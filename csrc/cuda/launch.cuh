#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <limits>

#include "common/macros.h"

namespace torchcalc::cuda {

constexpr int kThreads = 256;  // of a block, at most
constexpr int kWarpSize = 32;

TC_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Runs kernel(args...) on a grid of `blocks` blocks; the one place where kernels start. An empty
// grid is an error to CUDA: here it is nothing to do. Grids have one dimension, because only the
// first may be large; kernels tell rows from columns themselves.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), int64_t blocks, dim3 block, cudaStream_t stream,
            const Args&... args) {
  if (blocks == 0) return;
  STD_TORCH_CHECK(blocks > 0 && blocks <= std::numeric_limits<int32_t>::max(),
                  "torchcalc: ", blocks, " blocks are too many for one CUDA kernel launch");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = block;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // take the error back, or the next call of another library reports it again
  STD_TORCH_CHECK(false, "torchcalc: launch of a CUDA kernel with ", blocks, " blocks of ",
                  block.x * block.y, " threads failed: ", cudaGetErrorString(error));
}

}  // namespace torchcalc::cuda
