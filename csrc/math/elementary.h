#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/macros.h"

// exp, expm1, softplus, tanh, sigmoid and the normal distribution, accurate to a few units in the
// last place. They are branch-free, so that a loop over them vectorises; only erfc is the
// library's, in double. NaN goes in and comes out; infinities give the limits.
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

// The same in double, n a double as well: few CPUs shift 64-bit integers arithmetically in vectors.
struct DoubleExpParts {
  double n, t;
};

constexpr double kDoubleShift = 6755399441055744.0;  // 1.5 * 2^52

TC_HD DoubleExpParts exp_parts(double x) {
  const double n = (x * 1.4426950408889634 + kDoubleShift) - kDoubleShift;
  const double r = (x - n * 0.693147180369123816) - n * 1.90821492927058770e-10;
  const double q = polynomial(
      r, 0.500000000000001067, 0.166666666666664115, 0.041666666666529729, 0.00833333333349496133,
      0.00138888889437597802, 0.000198412695058024781, 0.0000248014929497506862,
      2.7557586783278442e-6, 2.76303062403568507e-7, 2.50000239403158133e-8);
  return {n, r + r * r * q};
}

TC_HD double power_of_two(double k) {
  return std::bit_cast<double>(std::bit_cast<uint64_t>(k + (kDoubleShift + 1023)) << 52);
}

TC_HD double exp(double x) {
  x = x < -746.0 ? -746.0 : x;
  x = x > 710.0 ? 710.0 : x;
  const auto [n, t] = exp_parts(x);
  const double half = (n * 0.5 + kDoubleShift) - kDoubleShift;
  return (1.0 + t) * power_of_two(half) * power_of_two(n - half);
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
  x = x < -40.0 ? -40.0 : x;
  x = x > 710.0 ? 710.0 : x;
  const auto [n, t] = exp_parts(x);
  const double half = power_of_two(n - 1.0);
  const double far = 2.0 * (half * t + (half - 0.5));
  return n == 0.0 ? t : far;
}

// log(1 + w), 0 <= w <= 1, accurate near 0 as well: w + w^2 P(w), a minimax fit.
TC_HD float log1p_unit(float w) {
  return w + w * w *
                 polynomial(w, -0.4999993276f, 0.3333051116f, -0.249585857f, 0.1969539155f,
                            -0.1535537011f, 0.1068051092f, -0.05766400262f, 0.02020434935f,
                            -0.003318420209f);
}

// 2 atanh(w / (2 + w)), a minimax fit.
TC_HD double log1p_unit(double w) {
  const double r = w / (2.0 + w), s = r * r;
  const double p = polynomial(s, 0.333333333333331579, 0.200000000000769667, 0.142857142740972505,
                              0.111111119758688868, 0.0909087223921297444, 0.0769327471780270818,
                              0.0665054886499719082, 0.0605259578429393866, 0.0417184628535543039,
                              0.0850621002973227636);
  return 2.0 * (r + r * s * p);
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

// d / (d + 2), d = e^2|x| - 1.
template <class Arith = Exact>
TC_HD double tanh(double x) {
  const double magnitude = x < 0.0 ? -x : x;
  const double d = expm1(2.0 * (magnitude > 20.0 ? 20.0 : magnitude));  // tanh 20 rounds to 1
  return ::copysign(d / (d + 2.0), x);
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
  const float pdf = 0.3989422804f * e, far = z < 0.0f ? tail : 1.0f - tail;
  if constexpr (!Arith::kExact) return {far, pdf};
  // Near 0 the odd part of it, a minimax fit, is smaller than 1/2, and so is its error.
  const float s = z * z;
  const float near_zero =
      0.5f + z * polynomial(s, 0.3989422803f, -0.06649037443f, 0.009973499934f, -0.001187109608f,
                            0.0001150321571f, -9.058440949e-06f, 4.76074825e-07f);
  return {magnitude < 1.25f ? near_zero : far, pdf};
}

// The same, t = 1 / (1 + 0.25 |z|). z^2 in two parts: e^-z^2/2 has many times its rounding error.
template <class Arith = Exact>
TC_HD Normal<double> normal(double z) {
  double magnitude = z < 0.0 ? -z : z;
  magnitude = magnitude > 40.0 ? 40.0 : magnitude;
  const double high =
      std::bit_cast<double>(std::bit_cast<uint64_t>(magnitude) & 0xfffffffff8000000u);
  const double rest = -0.5 * (magnitude - high) * (magnitude + high), exponent = -0.5 * high * high;
  const double e = exponent < -700.0 ? 0.0 : exp(exponent) * (1.0 + (rest + 0.5 * rest * rest));
  const double t = 1.0 / (1.0 + 0.25 * magnitude);
  const double tail =
      e * t *
      polynomial(t, 0.0997355701014384836, 0.0997355700147271703, 0.0935021000950858039,
                 0.0810350808217425781, 0.0635045807843841158, 0.0432326805811230073,
                 0.0235022575609132054, 0.00650700923870353304, 0.000466897587365983916,
                 -0.0212489693137166689, 0.0435182391692905795, -0.129338574828808675,
                 0.274141765940297148, -0.448019213492692125, 0.579187765771926047,
                 -0.55370797332927261, 0.368212342419729276, -0.160604650347843862,
                 0.0414646624351104899, -0.00482714287264152943);
  const double far = z < 0.0 ? tail : 1.0 - tail, s = magnitude * magnitude;
  const double near_zero =
      0.5 + z * polynomial(s, 0.398942280401432678, -0.0664903800669054197, 0.00997355701003500218,
                           -0.0011873282154706717, 0.000115434687555444056, -9.44465603702306337e-6,
                           6.65968834112116406e-7, -4.12258800134220988e-8, 2.27271401071246203e-9,
                           -1.12454620044130275e-10, 4.86806266164614112e-12,
                           -1.48612830575490618e-13);
  return {magnitude < 1.25 ? near_zero : far, 0.39894228040143268 * e};
}

}  // namespace torchcalc::math
