#pragma once

#include <algorithm>
#include <bit>

#include "common/dispatch.h"
#include "cuda/launch.cuh"
#include "math/philox.h"

// Stages over an octet: up to eight consecutive elements, held by one thread in op-math type in
// registers. Eight, because one Philox call draws the mask of eight, and because eight bf16 or fp16
// are one 16-byte access. An octet of fewer than eight elements holds zeros behind them.
namespace torchcalc::cuda {

constexpr int kOctet = math::kLanesPerGroup;

template <class Op>
using Values = Op[kOctet];

// Where an octet lies in its arrays. A thread beyond the end has n <= 0. Where `packed`, all arrays
// are accessed in packs of 16 bytes, else one element at a time.
struct Octet {
  int64_t begin;
  int n;
  bool packed;
};

TC_HD Octet octet_at(int64_t begin, int64_t end, bool aligned) {
  const auto n = static_cast<int>(std::min<int64_t>(end - begin, kOctet));
  return {begin, n, aligned && n == kOctet};
}

// The octet of this thread, where the grid's threads share out total elements.
__device__ inline Octet thread_octet(int64_t total, bool aligned) {
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  return octet_at(thread * kOctet, total, aligned);
}

inline int64_t octet_blocks(int64_t total) { return ceil_div(total, int64_t{kThreads} * kOctet); }

// The elements of one 16-byte access. nvcc may take a plain store of them apart, but not __stwb.
template <class T>
struct Pack {
  static constexpr int kSize = sizeof(uint4) / sizeof(T);
  T values[kSize];
};

// Whether arrays begin where a pack may; one that is null does.
template <class... Ps>
TC_HD bool are_aligned(const Ps*... p) {
  return (reinterpret_cast<uintptr_t>(p) | ...) % sizeof(uint4) == 0;
}

// An octet as it lies in memory. A kernel fetches all that it reads before it unpacks any, so that
// its loads are on their way together.
template <class T>
struct Packs {
  static constexpr int kCount = kOctet / Pack<T>::kSize;
  uint4 at[kCount];
};

template <class T>
__device__ Packs<T> fetch(const T* p, Octet at) {
  constexpr int kSize = Pack<T>::kSize;
  p += at.begin;
  Packs<T> packs;
  if (at.packed) {
    TC_UNROLL
    for (int k = 0; k < packs.kCount; ++k) packs.at[k] = reinterpret_cast<const uint4*>(p)[k];
  } else {
    TC_UNROLL
    for (int k = 0; k < packs.kCount; ++k) {
      Pack<T> pack;
      TC_UNROLL
      for (int j = 0; j < kSize; ++j) {
        const int i = k * kSize + j;
        pack.values[j] = i < at.n ? p[i] : T(0);
      }
      packs.at[k] = std::bit_cast<uint4>(pack);
    }
  }
  return packs;
}

// Zeros where p is null.
template <class T>
__device__ Packs<T> fetch_if(const T* p, Octet at) {
  return p ? fetch(p, at) : Packs<T>{};
}

template <class T>
__device__ void unpack(Values<opmath_t<T>>& v, const Packs<T>& packs) {
  constexpr int kSize = Pack<T>::kSize;
  TC_UNROLL
  for (int k = 0; k < packs.kCount; ++k) {
    const auto pack = std::bit_cast<Pack<T>>(packs.at[k]);
    TC_UNROLL
    for (int j = 0; j < kSize; ++j) v[k * kSize + j] = static_cast<opmath_t<T>>(pack.values[j]);
  }
}

// A bfloat16 is the upper half of a float: one instruction for each, which nvcc does not find.
__device__ inline void unpack(Values<float>& v, const Packs<BFloat16>& packs) {
  const auto words = std::bit_cast<math::Words4>(packs.at[0]);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) {
    const uint32_t word = words.w[j / 2];
    v[j] = std::bit_cast<float>(j % 2 ? word & 0xffff0000u : word << 16);
  }
}

// Of its own, so that nvcc converts before the two ways through store part: it copies fewer
// registers.
template <class T>
__device__ Packs<T> pack(const Values<opmath_t<T>>& v) {
  constexpr int kSize = Pack<T>::kSize;
  Packs<T> packs;
  TC_UNROLL
  for (int k = 0; k < packs.kCount; ++k) {
    Pack<T> pack;
    TC_UNROLL
    for (int j = 0; j < kSize; ++j) pack.values[j] = static_cast<T>(v[k * kSize + j]);
    packs.at[k] = std::bit_cast<uint4>(pack);
  }
  return packs;
}

template <class T>
__device__ void store(T* p, const Packs<T>& packs, Octet at) {
  constexpr int kSize = Pack<T>::kSize;
  p += at.begin;
  TC_UNROLL
  for (int k = 0; k < packs.kCount; ++k) {
    const auto pack = std::bit_cast<Pack<T>>(packs.at[k]);
    if (at.packed) {
      __stwb(reinterpret_cast<uint4*>(p) + k, packs.at[k]);
    } else {
      TC_UNROLL
      for (int j = 0; j < kSize; ++j) {
        const int i = k * kSize + j;
        if (i < at.n) p[i] = pack.values[j];
      }
    }
  }
}

template <class T>
__device__ void store(T* p, const Values<opmath_t<T>>& v, Octet at) {
  store(p, pack<T>(v), at);
}

template <class Op>
__device__ void add(Values<Op>& v, const Values<Op>& w) {
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) v[j] += w[j];
}

}  // namespace torchcalc::cuda
