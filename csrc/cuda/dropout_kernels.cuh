#pragma once

#include "cuda/octet.cuh"

namespace torchcalc::cuda {

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const T* x, T* y, int64_t n, const int64_t* seed, int64_t threshold,
                   opmath_t<T> scale, bool aligned) {
  const Octet at = thread_octet(n, aligned);
  if (at.n <= 0) return;
  const auto fetched = fetch(x, at);
  const Kept kept(words_of_octet(*seed, at), threshold);
  Values<opmath_t<T>> v;
  unpack(v, fetched);
  drop(v, kept, scale);
  store(y, v, at);
}

// A template only so that every translation unit may hold it.
template <class Bool>
__global__ void __launch_bounds__(kThreads)
    dropout_mask_kernel(Bool* mask, int64_t n, const int64_t* seed, int64_t threshold,
                        bool aligned) {
  const Octet at = thread_octet(n, aligned);
  if (at.n <= 0) return;
  const Kept kept(words_of_octet(*seed, at), threshold);
  uint2 bytes{};
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) (j < 4 ? bytes.x : bytes.y) |= uint32_t{kept[j]} << j % 4 * 8;
  Bool* const p = mask + at.begin;
  if (at.packed) {
    *reinterpret_cast<uint2*>(p) = bytes;
  } else {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) {
      if (j < at.n) p[j] = kept[j];
    }
  }
}

template <class T>
void dropout(const T* x, T* y, int64_t n, const int64_t* seed, int64_t threshold,
             cudaStream_t stream) {
  launch(dropout_kernel<T>, octet_blocks(n), kThreads, stream, x, y, n, seed, threshold,
         static_cast<opmath_t<T>>(math::dropout_scale(threshold)), are_aligned(x, y));
}

inline void dropout_mask(bool* mask, int64_t n, const int64_t* seed, int64_t threshold,
                         cudaStream_t stream) {
  launch(dropout_mask_kernel<bool>, octet_blocks(n), kThreads, stream, mask, n, seed, threshold,
         are_aligned(mask));
}

}  // namespace torchcalc::cuda
