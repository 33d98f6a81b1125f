#pragma once

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

// Where an octet lies in its array. A thread beyond the end has n = 0.
struct Octet {
  int64_t begin;
  int n;
};

TC_HD Octet octet_at(int64_t begin, int64_t end) {
  const int64_t left = end - begin;
  return {begin, left >= kOctet ? kOctet : left > 0 ? static_cast<int>(left) : 0};
}

// The octet of this thread, where the grid's threads share out total elements.
__device__ inline Octet thread_octet(int64_t total) {
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  return octet_at(thread * kOctet, total);
}

inline int64_t octet_blocks(int64_t total) { return ceil_div(total, int64_t{kThreads} * kOctet); }

// The elements of one 16-byte access. nvcc may take a plain store of them apart, but not __stwb.
template <class T>
struct Pack {
  static constexpr int kSize = sizeof(uint4) / sizeof(T);
  T values[kSize];
};

template <class T>
__device__ bool is_packed(const T* p, int n) {
  return n == kOctet && reinterpret_cast<uintptr_t>(p) % sizeof(uint4) == 0;
}

template <class T>
__device__ void load(Values<opmath_t<T>>& v, const T* p, int n) {
  using Op = opmath_t<T>;
  if (is_packed(p, n)) {
    constexpr int kSize = Pack<T>::kSize;
    TC_UNROLL
    for (int k = 0; k < kOctet / kSize; ++k) {
      const auto pack = std::bit_cast<Pack<T>>(reinterpret_cast<const uint4*>(p)[k]);
      TC_UNROLL
      for (int j = 0; j < kSize; ++j) v[k * kSize + j] = static_cast<Op>(pack.values[j]);
    }
  } else {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) v[j] = j < n ? static_cast<Op>(p[j]) : Op(0);
  }
}

template <class T>
__device__ void store(T* p, const Values<opmath_t<T>>& v, int n) {
  if (is_packed(p, n)) {
    constexpr int kSize = Pack<T>::kSize;
    TC_UNROLL
    for (int k = 0; k < kOctet / kSize; ++k) {
      Pack<T> pack;
      TC_UNROLL
      for (int j = 0; j < kSize; ++j) pack.values[j] = static_cast<T>(v[k * kSize + j]);
      __stwb(reinterpret_cast<uint4*>(p) + k, std::bit_cast<uint4>(pack));
    }
  } else {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) {
      if (j < n) p[j] = static_cast<T>(v[j]);
    }
  }
}

template <class Op>
__device__ void add(Values<Op>& v, const Values<Op>& w) {
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) v[j] += w[j];
}

// Bit j is set where element j of one Philox group is kept.
__device__ inline uint32_t kept_of_group(uint64_t seed, uint64_t group, uint32_t threshold) {
  const math::Words4 words = math::dropout_words(seed, group);
  uint32_t kept = 0;
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) {
    const uint32_t lane = words.w[j / 2] >> (j % 2 * 16) & 0xffffu;
    kept |= static_cast<uint32_t>(lane >= threshold) << j;
  }
  return kept;
}

// Bit j is set where element begin + j is kept. Octets of a flat array are Philox groups; those of
// a matrix's row, where its width is not a multiple of eight, reach over two groups.
__device__ inline uint32_t kept_of_octet(const int64_t* seed, Octet at, int64_t threshold) {
  const auto group = static_cast<uint64_t>(at.begin) / kOctet;
  const auto skip = static_cast<int>(at.begin % kOctet);
  const auto draw = [&](uint64_t g) {
    return kept_of_group(static_cast<uint64_t>(*seed), g, static_cast<uint32_t>(threshold));
  };
  uint32_t kept = draw(group);
  if (skip + at.n > kOctet) kept |= draw(group + 1) << kOctet;
  return kept >> skip;
}

// v = kept ? factor * v : 0, by selection: a dropped NaN is 0 as well.
template <class Op>
__device__ void drop(Values<Op>& v, uint32_t kept, Op factor) {
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) v[j] = kept >> j & 1 ? factor * v[j] : Op(0);
}

}  // namespace torchcalc::cuda
