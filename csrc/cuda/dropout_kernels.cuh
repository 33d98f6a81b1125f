#pragma once

#include "cuda/octet.cuh"

namespace torchcalc::cuda {

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const T* x, T* y, int64_t n, const int64_t* seed, int64_t threshold,
                   opmath_t<T> scale) {
  const Octet at = thread_octet(n);
  if (at.n == 0) return;
  Values<opmath_t<T>> v;
  load(v, x + at.begin, at.n);
  drop(v, kept_of_octet(seed, at, threshold), scale);
  store(y + at.begin, v, at.n);
}

// A template only so that every translation unit may hold it.
template <class Bool>
__global__ void __launch_bounds__(kThreads)
    dropout_mask_kernel(Bool* mask, int64_t n, const int64_t* seed, int64_t threshold) {
  const Octet at = thread_octet(n);
  if (at.n == 0) return;
  const uint32_t kept = kept_of_octet(seed, at, threshold);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) {
    if (j < at.n) mask[at.begin + j] = kept >> j & 1;
  }
}

template <class T>
void dropout(const T* x, T* y, int64_t n, const int64_t* seed, int64_t threshold,
             cudaStream_t stream) {
  launch(dropout_kernel<T>, octet_blocks(n), kThreads, stream, x, y, n, seed, threshold,
         static_cast<opmath_t<T>>(math::dropout_scale(threshold)));
}

inline void dropout_mask(bool* mask, int64_t n, const int64_t* seed, int64_t threshold,
                         cudaStream_t stream) {
  launch(dropout_mask_kernel<bool>, octet_blocks(n), kThreads, stream, mask, n, seed, threshold);
}

}  // namespace torchcalc::cuda
