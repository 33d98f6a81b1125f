#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/macros.h"
#include "math/elementary_double.h"
#include "math/polynomial.h"

// exp, expm1, softplus, tanh, sigmoid and the normal distribution, accurate to a few units in the
// last place. They are branch-free, so that a loop over them vectorises; those in double are in
// elementary_double.h. NaN goes in and comes out; infinities give the limits.
//
// An Arith says how the float formulas take exp and divide: Exact below, or for results that are
// rounded to 16 bits whatever is accurate enough for them (cuda/approximate.cuh).
namespace torchcalc::math {

// x = n ln 2 + r, n = round(x / ln 2), |r| <= ln(2) / 2:  e^x = 2^n (1 + t),  t = e^r - 1.
struct ExpParts {
  int32_t n;
  float t;
};

TC_HD ExpParts exp_parts(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504f + kShift;
  const float n = shifted - kShift;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  const float q =
      polynomial(r, 0.4999999345f, 0.1666652069f, 0.04166838737f, 0.008368709843f, 0.001381461298f);
  return {std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kShift), r + r * r * q};
}

TC_HD float power_of_two(int32_t k) { return std::bit_cast<float>((k + 127) << 23); }

TC_HD float exp(float x) {
  // Outside of these bounds e^x is 0 or infinite. A comparison with NaN is false, so NaN stays.
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const auto [n, t] = exp_parts(x);
  // 2^n in two factors, because n + 127 may lie outside of the exponent's range.
  const int32_t half = n >> 1;
  return (1.0f + t) * power_of_two(half) * power_of_two(n - half);
}

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

// e^x - 1, accurate near 0 as well. For 16 bits three terms of the series do there.
template <class Arith = Exact>
TC_HD float expm1(float x) {
  if constexpr (!Arith::kExact) {
    const bool near_zero = x < 0.0625f && x > -0.0625f;
    return near_zero ? x + x * x * (0.5f + 0.166666667f * x) : Arith::exp(x) - 1.0f;
  }
  x = x < -30.0f ? -30.0f : x;  // where it rounds to -1
  x = x > 89.0f ? 89.0f : x;
  const auto [n, t] = exp_parts(x);
  const float half = power_of_two(n - 1);  // of 2^n, which may overflow
  const float far = 2.0f * (half * t + (half - 0.5f));
  return n == 0 ? t : far;
}

template <class Arith = Exact>
TC_HD double expm1(double x) {
  return expm1_double(x);
}

// log(1 + w), 0 <= w <= 1, accurate near 0 as well: w + w^2 P(w), a minimax fit.
TC_HD float log1p_unit(float w) {
  return w + w * w *
                 polynomial(w, -0.4999993276f, 0.3333051116f, -0.249585857f, 0.1969539155f,
                            -0.1535537011f, 0.1068051092f, -0.05766400262f, 0.02020434935f,
                            -0.003318420209f);
}

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), near 0 log 2 + x / 2 + x^2 / 8 - ...
template <class Arith = Exact, class T>
TC_HD T softplus(T x) {
  const T s = x * x;
  const T near_zero =
      T(0.69314718055994531) +
      (T(0.5) * x + s * polynomial(s, T(0.1249999988), T(-0.00520821981), T(0.0003440808839)));
  const T far = (x < T(0) ? T(0) : x) + log1p_unit(Arith::exp(x < T(0) ? x : -x));
  const bool is_near = std::is_same_v<T, float> && x < T(0.25) && x > T(-0.25);
  return is_near ? near_zero : far;
}

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
  return tanh_double(x);
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
  const float pdf = 0.3989422804f * e, far = z < 0.0f ? tail : 1.0f - tail;
  if constexpr (!Arith::kExact) return {far, pdf};
  // Near 0 the odd part of it, a minimax fit, is smaller than 1/2, and so is its error.
  const float s = z * z;
  const float near_zero =
      0.5f + z * polynomial(s, 0.3989422803f, -0.06649037443f, 0.009973499934f, -0.001187109608f,
                            0.0001150321571f, -9.058440949e-06f, 4.76074825e-07f);
  return {magnitude < 1.25f ? near_zero : far, pdf};
}

template <class Arith = Exact>
TC_HD Normal<double> normal(double z) {
  return normal_double(z);
}

}  // namespace torchcalc::math
