#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "common/macros.h"
#include "math/polynomial.h"

// The functions of elementary.h in double. A GPU has them in its library; a CPU's library takes one
// number at a time, so here they are written as in float, with longer polynomials.
namespace torchcalc::math {

// The standard normal distribution: cdf = P(Z <= z), pdf = exp(-z^2 / 2) / sqrt(2 pi).
template <class T>
struct Normal {
  T cdf;
  T pdf;
};

#ifdef __CUDA_ARCH__

TC_HD double exp(double x) { return ::exp(x); }
TC_HD double expm1_double(double x) { return ::expm1(x); }
TC_HD double log1p_unit(double w) { return ::log1p(w); }
TC_HD double tanh_double(double x) { return ::tanh(x); }
TC_HD Normal<double> normal_double(double z) {
  return {0.5 * ::erfc(-0.70710678118654752 * z), 0.39894228040143268 * ::exp(-0.5 * z * z)};
}

#else

// n is a double as well: few CPUs shift 64-bit integers arithmetically in vectors.
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

TC_HD double expm1_double(double x) {
  x = x < -40.0 ? -40.0 : x;
  x = x > 710.0 ? 710.0 : x;
  const auto [n, t] = exp_parts(x);
  const double half = power_of_two(n - 1.0);
  const double far = 2.0 * (half * t + (half - 0.5));
  return n == 0.0 ? t : far;
}

// log(1 + w), 0 <= w <= 1: 2 atanh(w / (2 + w)), a minimax fit.
TC_HD double log1p_unit(double w) {
  const double r = w / (2.0 + w), s = r * r;
  const double p = polynomial(s, 0.333333333333331579, 0.200000000000769667, 0.142857142740972505,
                              0.111111119758688868, 0.0909087223921297444, 0.0769327471780270818,
                              0.0665054886499719082, 0.0605259578429393866, 0.0417184628535543039,
                              0.0850621002973227636);
  return 2.0 * (r + r * s * p);
}

// tanh x: d / (d + 2), d = e^2|x| - 1; elsewhere 1 - 2 / (d + 2), which errs less.
TC_HD double tanh_double(double x) {
  double magnitude = x < 0.0 ? -x : x;
  magnitude = magnitude > 20.0 ? 20.0 : magnitude;  // tanh 20 rounds to 1
  const double d = expm1_double(2.0 * magnitude), sum = d + 2.0;
  const double near_zero = d / sum, far = 1.0 - 2.0 / sum;
  return ::copysign(d < 1.0 ? near_zero : far, x);
}

// The tail as in float, t = 1 / (1 + 0.25 |z|). z^2 in two parts: e^-z^2/2 has many times its
// rounding error.
TC_HD Normal<double> normal_double(double z) {
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

#endif

}  // namespace torchcalc::math
