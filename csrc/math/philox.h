#pragma once

#include <cstdint>

#include "common/macros.h"

// The dropout mask as a pure function of (seed, i).
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11) with key =
// (seed low, seed high) and counter = (g low, g high, 0, 0), g = i / 8, gives four words: eight
// lanes of 16 bits, low half first. Element i takes lane i % 8 and is kept iff lane >= threshold,
// where threshold = round(65536 p); kept values are scaled by 65536 / (65536 - threshold), so E[y]
// = x exactly.
namespace torchcalc::math {

constexpr int kLanesPerGroup = 8;
constexpr int64_t kLaneRange = 65536;

struct Words4 {
  uint32_t w[4];
};

// a b in 64 bits. nvcc widens a first and then adds a product of zeros, unless told not to.
TC_HD uint64_t wide_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return uint64_t{a} * b;
#endif
}

TC_HD Words4 philox4x32_10(Words4 counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.w[0], c1 = counter.w[1], c2 = counter.w[2], c3 = counter.w[3];
  TC_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = wide_product(c0, 0xD2511F53u);
    const uint64_t p1 = wide_product(c2, 0xCD9E8D57u);
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;  // Weyl sequences: the golden ratio and sqrt(3) - 1
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The words of group g: the mask bits of elements 8 g to 8 g + 7.
TC_HD Words4 dropout_words(uint64_t seed, uint64_t group) {
  return philox4x32_10({{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), 0u, 0u}},
                       static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// Lane j of a group.
TC_HD uint32_t lane_of(const Words4& words, int j) {
  const uint32_t word = words.w[j / 2];
  return j % 2 ? word >> 16 : word & 0xffffu;
}

// The factor of kept values; 0 where nothing is kept.
TC_HD double dropout_scale(int64_t threshold) {
  return threshold >= kLaneRange
             ? 0.0
             : static_cast<double>(kLaneRange) / static_cast<double>(kLaneRange - threshold);
}

}  // namespace torchcalc::math
