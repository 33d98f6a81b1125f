#pragma once

#include <cstdint>
#include <tuple>
#include <utility>

// Stands in for CUDA's header of this name, so that the .cu files compile as plain C++ and run
// without a GPU: a fiber for each thread of a block, blocks one after another, shared memory as
// static variables. It has what the project's kernels use and no more.

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) [[gnu::may_alias]] uint2 {
  uint32_t x, y;
};

struct alignas(16) [[gnu::may_alias]] uint4 {
  uint32_t x, y, z, w;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

inline void __stwb(uint4* p, uint4 value) { *p = value; }

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace cuda_host {

// Calls body(context) in every thread of the grid; they have ended when this returns. `kernel`
// tells one kernel from another.
cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, void (*body)(const void*),
                const void* context);

// Waits for all threads of the block. `place` tells one barrier of the kernel from another: that
// threads wait at different ones is undefined in CUDA, and ends the program here.
void sync_threads(int place);

// Sets `bytes` bytes at value to those of the warp's lane `delta` further on, if there is one.
void shuffle_down(void* value, unsigned bytes, unsigned mask, unsigned delta);

}  // namespace cuda_host

#define __syncthreads() cuda_host::sync_threads(__LINE__)

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  cuda_host::shuffle_down(&value, sizeof(T), mask, delta);
  return value;
}

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               const Args&... args) {
  static_assert((sizeof(Params) + ... + 0) <= 4096, "more arguments than every GPU takes");
  using Call = std::pair<void (*)(Params...), std::tuple<Params...>>;
  const Call call{kernel, {args...}};
  const auto body = [](const void* context) {
    const auto& [function, values] = *static_cast<const Call*>(context);
    std::apply(function, values);
  };
  return cuda_host::run(*config, reinterpret_cast<const void*>(kernel), body, &call);
}
