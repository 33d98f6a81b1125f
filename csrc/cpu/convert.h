#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "common/dispatch.h"
#include "common/macros.h"

// Conversions between a storage type and its op-math type in integer arithmetic without branches:
// loops over them vectorise, for any instruction set. Loops over the casts of BFloat16 and Half do
// not: those test for NaN in a branch, or are too long to be inlined.
namespace torchcalc::cpu {

TC_HD float widen_half(uint16_t h) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t magnitude = h & 0x7fffu;
  uint32_t bits = (magnitude << 13) + kRebias;
  bits += magnitude >= 0x7c00 ? kRebias : 0;  // infinity, NaN
  // One exponent higher, a subnormal number is 2^-14 too large.
  const float subnormal = std::bit_cast<float>((magnitude << 13) + kRebias + (1u << 23)) - 0x1p-14f;
  bits = magnitude < 0x0400 ? std::bit_cast<uint32_t>(subnormal) : bits;
  return std::bit_cast<float>(bits | (h & 0x8000u) << 16);
}

// To the nearest, ties to even.
TC_HD uint16_t narrow_to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  uint32_t h = (rounded >> 13) - ((127 - 15) << 10);
  // Below the smallest normal number: the sum with 1/2 has a half's subnormals as its last digits.
  const uint32_t sum = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f);
  h = magnitude < 0x38800000 ? sum - std::bit_cast<uint32_t>(0.5f) : h;
  h = magnitude >= 0x477ff000 ? 0x7c00 : h;  // from here on infinity is the nearest
  h = magnitude > 0x7f800000 ? 0x7e00 : h;   // NaN
  return static_cast<uint16_t>(h | (bits >> 16 & 0x8000));
}

TC_HD float widen_bfloat16(uint16_t b) { return std::bit_cast<float>(uint32_t{b} << 16); }

// To the nearest, ties to even.
TC_HD uint16_t narrow_to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

template <class T>
TC_HD opmath_t<T> widen(T x) {
  if constexpr (std::is_same_v<T, Half>) {
    return widen_half(x.x);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return widen_bfloat16(x.x);
  } else {
    return x;
  }
}

template <class T>
TC_HD T narrow(opmath_t<T> x) {
  if constexpr (std::is_same_v<T, Half>) {
    return T(narrow_to_half(x), T::from_bits());
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return T(narrow_to_bfloat16(x), T::from_bits());
  } else {
    return x;
  }
}

}  // namespace torchcalc::cpu
