#pragma once

#include <bit>
#include <cstring>

#include "common/dispatch.h"
#include "common/macros.h"
#include "cpu/convert.h"
#include "math/activations.h"
#include "math/philox.h"

// Stages over a segment: up to kSegment contiguous elements, held in op-math type in L1 cache. A
// kernel strings stages together, so that each is compiled once per type, not once per combination.
namespace torchcalc::cpu {

constexpr int64_t kSegment = 1024;

template <class T>
TC_SIMD void load(opmath_t<T>* __restrict dst, const T* __restrict src, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = widen(src[i]);
}

template <class T>
TC_SIMD void store(T* __restrict dst, const opmath_t<T>* __restrict src, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = narrow<T>(src[i]);
}

template <class T>
TC_SIMD void add(opmath_t<T>* __restrict dst, const T* __restrict src, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] += widen(src[i]);
}

template <class Op>
TC_SIMD void scale(Op* v, Op factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) v[i] *= factor;
}

template <class Act, class Op>
TC_SIMD void activate(Op* v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) v[i] = Act::value(v[i]);
}

template <class Act, int Order, class Op>
TC_SIMD void derive(Op* __restrict c, const Op* __restrict u, int64_t n) {
  for (int64_t i = 0; i < n; ++i) c[i] = Act::template d<Order>(c[i], u[i]);
}

// The 16-bit lanes of `groups` Philox groups from `group` on, for up to kSegment + 8 elements.
TC_SIMD inline void fill_groups(uint16_t* __restrict lanes, uint64_t seed, uint64_t group,
                                int64_t groups) {
  static_assert(std::endian::native == std::endian::little,
                "lanes are the words' halves, low first");
  constexpr int64_t kGroups = kSegment / math::kLanesPerGroup + 1;
  uint32_t words[4][kGroups];
  for (int64_t k = 0; k < groups; ++k) {
    const math::Words4 w = math::dropout_words(seed, group + static_cast<uint64_t>(k));
    words[0][k] = w.w[0];
    words[1][k] = w.w[1];
    words[2][k] = w.w[2];
    words[3][k] = w.w[3];
  }
  for (int64_t k = 0; k < groups; ++k) {
    for (int j = 0; j < 4; ++j) std::memcpy(lanes + 8 * k + 2 * j, &words[j][k], sizeof(uint32_t));
  }
}

// The mask of one segment.
class Mask {
 public:
  explicit Mask(const int64_t* seed, int64_t threshold)
      : seed_(seed ? static_cast<uint64_t>(*seed) : 0),
        threshold_(static_cast<int32_t>(threshold)) {}

  bool drops() const { return threshold_ > 0; }
  double dropout_scale() const { return math::dropout_scale(threshold_); }

  // Draws elements [begin, begin + n); returns their lanes, valid until the next call.
  const uint16_t* draw(int64_t begin, int64_t n) {
    const int64_t group = begin / math::kLanesPerGroup;
    const int64_t skip = begin % math::kLanesPerGroup;
    const int64_t groups = (skip + n + math::kLanesPerGroup - 1) / math::kLanesPerGroup;
    fill_groups(lanes_, seed_, static_cast<uint64_t>(group), groups);
    return lanes_ + skip;
  }

  // v = kept ? factor * v : 0.
  template <class Op>
  void apply(Op* v, Op factor, int64_t begin, int64_t n) {
    select(v, draw(begin, n), threshold_, factor, n);
  }

  template <class Op>
  TC_SIMD static void select(Op* __restrict v, const uint16_t* __restrict lanes, int32_t threshold,
                             Op factor, int64_t n) {
    for (int64_t i = 0; i < n; ++i) v[i] = lanes[i] >= threshold ? v[i] * factor : Op(0);
  }

  int32_t threshold() const { return threshold_; }

 private:
  uint64_t seed_;
  int32_t threshold_;
  alignas(64) uint16_t lanes_[kSegment + 8];
};

}  // namespace torchcalc::cpu
