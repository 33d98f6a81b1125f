#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "common/dispatch.h"
#include "math/philox.h"

// Stochastic rounding to half types: up with a probability of how far it is from below, so that the
// mean is exact and steps that are too small for the nearest number are taken now and then. What is
// representable stays, zero above all. (Gupta et al., "Deep learning with limited numerical
// precision", ICML 2015.)
namespace torchcalc::math {

// `random` is from 0 to 65535, each alike.
template <class T>
TC_HD T round_randomly(float x, uint32_t random) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) return static_cast<T>(x);  // infinite or NaN
  if constexpr (std::is_same_v<T, BFloat16>) {
    return T(static_cast<uint16_t>((bits + random) >> 16), T::from_bits());
  } else {
    static_assert(std::is_same_v<T, Half>);
    uint32_t h = ((magnitude + (random >> 3)) >> 13) - ((127 - 15) << 10);
    // Below the smallest normal number, in units of the smallest there is.
    const float units = std::bit_cast<float>(magnitude) * 0x1p24f;
    const float up = units + static_cast<float>(random >> 4) * 0x1p-12f;  // exact
    h = magnitude < 0x38800000u ? static_cast<uint32_t>(up) : h;
    h = magnitude >= 0x47800000u ? 0x7c00 : h;
    return T(static_cast<uint16_t>(h | (bits >> 16 & 0x8000u)), T::from_bits());
  }
}

// The random numbers of tensor `number` of an optimizer's group, for one of two times that a step
// rounds it.
struct RandomRounding {
  uint64_t seed = 0;
  uint32_t number = 0, time = 0;

  // Of elements 8 g to 8 g + 7, a lane for each. Another stream than dropout's with this seed.
  TC_HD Words4 words(int64_t group) const {
    const auto g = static_cast<uint64_t>(group);
    return philox4x32_10({{static_cast<uint32_t>(g), static_cast<uint32_t>(g >> 32), number, time}},
                         static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  }

  template <class T>
  TC_HD T at(int64_t i, float x) const {
    // By selection: an index that only a thread knows would put the words into a GPU's memory.
    const auto [w] = words(i / kLanesPerGroup);
    const uint32_t low = i & 2 ? w[1] : w[0], high = i & 2 ? w[3] : w[2], word = i & 4 ? high : low;
    return round_randomly<T>(x, i & 1 ? word >> 16 : word & 0xffffu);
  }
};

}  // namespace torchcalc::math
