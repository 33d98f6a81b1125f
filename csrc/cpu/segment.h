#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/dispatch.h"
#include "common/macros.h"
#include "cpu/convert.h"
#include "math/activations.h"
#include "math/mask.h"

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

// The lowest bit of a byte is its first element.
template <class Act, class Op>
TC_SIMD void pack_bits(const Act& act, uint8_t* __restrict bits, const Op* __restrict z,
                       int64_t n) {
  for (int64_t k = 0; k < n / 8; ++k) {
    uint32_t byte = 0;
    for (int j = 0; j < 8; ++j) byte |= uint32_t{act.is_on(z[8 * k + j])} << j;
    bits[k] = static_cast<uint8_t>(byte);
  }
  if (n % 8) {
    uint32_t byte = 0;
    for (int64_t i = n / 8 * 8; i < n; ++i) byte |= uint32_t{act.is_on(z[i])} << i % 8;
    bits[n / 8] = static_cast<uint8_t>(byte);
  }
}

// Eight bits become eight bytes at once: bit by bit it would not vectorise.
template <class Op>
TC_SIMD void unpack_bits(Op* __restrict v, const uint8_t* __restrict bits, Op on, Op off,
                         int64_t n) {
  static_assert(std::endian::native == std::endian::little, "byte j of a word is its j-th lowest");
  alignas(64) uint8_t flags[kSegment];
  for (int64_t k = 0; k < (n + 7) / 8; ++k) {
    const uint64_t each = bits[k] * 0x0101010101010101u & 0x8040201008040201u;
    std::memcpy(flags + 8 * k, &each, sizeof(each));
  }
  for (int64_t i = 0; i < n; ++i) v[i] = flags[i] ? on : off;
}

template <class Act, class Op>
TC_SIMD void activate(const Act& act, Op* v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) v[i] = act.value(v[i]);
}

template <int Order, class Act, class Op>
TC_SIMD void derive(const Act& act, Op* __restrict c, const Op* __restrict z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) c[i] = act.template d<Order>(c[i], z[i]);
}

template <int Order, class Act, class Op>
TC_SIMD void derive_from_output(const Act& act, Op* __restrict c, const Op* __restrict a,
                                int64_t n) {
  for (int64_t i = 0; i < n; ++i) c[i] = act.template d_from_output<Order>(c[i], a[i]);
}

template <class Stored, class Act, class Op>
TC_SIMD void unscale(const Act& act, Op* y, Op scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = math::unscaled<Stored>(act, y[i], scale);
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
  explicit Mask(const math::MaskArgs& args) : args_(args) {}

  bool drops() const { return args_.drops(); }
  int32_t threshold() const { return static_cast<int32_t>(args_.threshold); }
  double dropout_scale() const { return math::dropout_scale(args_.threshold); }

  // Draws for elements [begin, begin + n), which share none; returns their lanes, valid until the
  // next call.
  const uint16_t* draw(int64_t begin, int64_t n) {
    if (args_.plain) {
      return fill(lanes_, static_cast<uint64_t>(*args_.seeds), static_cast<uint64_t>(begin), n);
    }
    for (int64_t done = 0; done < n;) {
      const math::Draw draw = args_.locate(begin + done);
      const int64_t count = std::min(draw.run, n - done);
      const uint16_t* drawn = fill(run_, draw.seed, draw.index, count);
      std::copy_n(drawn, count, lanes_ + done);
      done += count;
    }
    return lanes_;
  }

  // f(kept, begin, n) for runs of elements [begin, begin + n) that share a draw.
  template <class F>
  void each_run(int64_t begin, int64_t n, F f) const {
    for (const int64_t end = begin + n; begin < end;) {
      const math::Draw draw = args_.locate(begin);
      const int64_t count = std::min(draw.run, end - begin);
      const auto words = math::dropout_words(draw.seed, draw.index / math::kLanesPerGroup);
      const auto lane = static_cast<int>(draw.index % math::kLanesPerGroup);
      f(static_cast<int32_t>(math::lane_of(words, lane)) >= threshold(), begin, count);
      begin += count;
    }
  }

  // v = kept ? factor * v : 0.
  template <class Op>
  void apply(Op* v, Op factor, int64_t begin, int64_t n) {
    select(v, draw(begin, n), threshold(), factor, n);
  }

  template <class Op>
  TC_SIMD static void select(Op* __restrict v, const uint16_t* __restrict lanes, int32_t threshold,
                             Op factor, int64_t n) {
    for (int64_t i = 0; i < n; ++i) v[i] = lanes[i] >= threshold ? v[i] * factor : Op(0);
  }

 private:
  // The lanes of draws [index, index + n).
  static const uint16_t* fill(uint16_t* lanes, uint64_t seed, uint64_t index, int64_t n) {
    const uint64_t group = index / math::kLanesPerGroup;
    const auto skip = static_cast<int64_t>(index % math::kLanesPerGroup);
    fill_groups(lanes, seed, group, (skip + n + math::kLanesPerGroup - 1) / math::kLanesPerGroup);
    return lanes + skip;
  }

  math::MaskArgs args_;
  alignas(64) uint16_t lanes_[kSegment + 8];
  alignas(64) uint16_t run_[kSegment + 8];  // of one run of draws
};

}  // namespace torchcalc::cpu
