#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/macros.h"

// exp, tanh, sigmoid and the normal distribution. In float they are branch-free, so that a loop
// over them vectorises, and accurate to a few units in the last place; in double they are the
// library's. NaN goes in and comes out; infinities give the limits.
//
// An Arith says how the float formulas take exp and divide: Exact below, or for results that are
// rounded to 16 bits whatever is accurate enough for them (cuda/approximate.cuh).
namespace torchcalc::math {

template <class T>
TC_HD T polynomial(T, T c) {
  return c;
}

// c0 + c1 x + c2 x^2 + ... by Horner's rule.
template <class T, class... Rest>
TC_HD T polynomial(T x, T c0, T c1, Rest... rest) {
  return c0 + x * polynomial(x, c1, rest...);
}

// e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln(2) / 2.
TC_HD float exp(float x) {
  // Outside of these bounds e^x is 0 or infinite. A comparison with NaN is false, so NaN stays.
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504f + kShift;
  const float n = shifted - kShift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  const float p = polynomial(r, 1.0f, 1.0f, 0.4999999345f, 0.1666652069f, 0.04166838737f,
                             0.008368709843f, 0.001381461298f);
  // 2^n in two factors, because n + 127 may lie outside of the exponent's range.
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kShift);
  const int32_t half = exponent >> 1;
  const auto power_of_two = [](int32_t k) { return std::bit_cast<float>((k + 127) << 23); };
  return p * power_of_two(half) * power_of_two(exponent - half);
}

TC_HD double exp(double x) { return ::exp(x); }

struct Exact {
  static constexpr bool kExact = true;
  template <class T>
  static TC_HD T exp(T x) {
    return math::exp(x);
  }
  template <class T>
  static TC_HD T divide(T x, T y) {
    return x / y;
  }
};

template <class Arith = Exact, class T>
TC_HD T sigmoid(T x) {
  return Arith::divide(T(1), T(1) + Arith::exp(-x));
}

// x + x^3 P(x^2) near 0, a minimax fit; 1 - 2 / (e^2|x| + 1) elsewhere. Within 0.95 units in the
// last place. For 16 bits two terms of the series do, nearer to 0.
template <class Arith = Exact>
TC_HD float tanh(float x) {
  const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7fffffffu);
  const float s = x * x;
  if constexpr (!Arith::kExact) {
    const float far = 1.0f - Arith::divide(2.0f, Arith::exp(2.0f * x) + 1.0f);
    return magnitude < 0.0625f ? x - x * s * 0.333333333f : far;
  }
  const float near_zero =
      x + x * s *
              polynomial(s, -0.3333329543f, 0.1333234453f, -0.05387979997f, 0.02148664957f,
                         -0.007946094517f, 0.002301355813f, -0.0003584494604f);
  const float e = exp(2.0f * (magnitude > 10.0f ? 10.0f : magnitude));  // tanh 10 rounds to 1
  const float sum = e + 1.0f, lost = e - (sum - 1.0f);  // what rounding took from sum
  const float r = 1.0f / sum, q = 2.0f * r;
  const float far = 1.0f - (q - q * (lost * r));
  const float signed_far = x < 0.0f ? -far : far;
  return magnitude < 1.0f ? near_zero : signed_far;
}

template <class Arith = Exact>
TC_HD double tanh(double x) {
  return ::tanh(x);
}

// s = sigmoid(x) and r = 1 - s, where s is near 1 as well.
template <class T>
struct Logistic {
  T s, r;
};

template <class Arith = Exact, class T>
TC_HD Logistic<T> logistic(T x) {
  if constexpr (Arith::kExact) {
    const T s = sigmoid(x);
    return {s, T(1) - s};
  } else {
    // 1 - s would be the error of s. Where e^-x is infinite, s is 0 and r anything but NaN.
    const T e = Arith::exp(-x), s = Arith::divide(T(1), T(1) + e), r = e * s;
    return {s, r < T(1) ? r : T(1)};
  }
}

// t = tanh x, 1 + t and sech^2 x = 1 - t^2.
template <class T>
struct TanhParts {
  T t, one_plus, sech2;
};

template <class Arith = Exact, class T>
TC_HD TanhParts<T> tanh_parts(T x) {
  if constexpr (Arith::kExact) {
    const T t = tanh(x);
    return {t, T(1) + t, T(1) - t * t};
  } else {
    const auto [s, r] = logistic<Arith>(T(2) * x);
    return {s - r, T(2) * s, T(4) * s * r};
  }
}

// The standard normal distribution: cdf = P(Z <= z), pdf = exp(-z^2 / 2) / sqrt(2 pi).
template <class T>
struct Normal {
  T cdf;
  T pdf;
};

template <class Arith = Exact>
TC_HD Normal<float> normal(float z) {
  const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(z) & 0x7fffffffu);
  // Beyond |z| = 12.6 it is below 1e-34: 0, because arithmetic on subnormal numbers is slow on a
  // CPU.
  const float exponent = -0.5f * z * z;
  const float e = Arith::kExact && exponent < -80.0f ? 0.0f : Arith::exp(exponent);
  // P(Z > |z|) = e * t * polynomial(t), t = 1 / (1 + 0.35 |z|): a minimax fit, 3e-8 relative error.
  const float t = Arith::divide(1.0f, 1.0f + 0.35f * magnitude);
  const float tail =
      e * t *
      polynomial(t, 0.1396213068f, 0.1398635154f, 0.1198212879f, 0.1055525015f, -0.02321235211f,
                 0.1593196939f, -0.2558390030f, 0.1440309192f, -0.02915788572f);
  return {z < 0.0f ? tail : 1.0f - tail, 0.3989422804f * e};
}

template <class Arith = Exact>
TC_HD Normal<double> normal(double z) {
  return {0.5 * ::erfc(-0.70710678118654752 * z), 0.39894228040143268 * ::exp(-0.5 * z * z)};
}

}  // namespace torchcalc::math
