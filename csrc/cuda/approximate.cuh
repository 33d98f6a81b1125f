#pragma once

#include <cmath>
#include <type_traits>

#include "common/macros.h"
#include "math/elementary.h"

namespace torchcalc::cuda {

// exp and division by the GPU's special function units, for results that are rounded to 16 bits.
//
// NVIDIA documents (CUDA programming guide, mathematical functions; the ISA of PTX):
//   exp     as __expf: 2 + floor(|1.173 x|) units in the last place; e^x below the smallest normal
//           number becomes 0, -inf gives 0, inf gives inf, NaN gives NaN
//   divide  as __fdividef: 2 units in the last place where 2^-126 <= |y| <= 2^126, 0 beyond that
//           (of an infinite x NaN); the formulas divide by 1 and more, and finite numbers
// tests/test_approximate.py puts those errors into every 16-bit number's results.
struct Approximate {
  static constexpr bool kExact = false;

  // __expf would spend three more instructions on results below the smallest normal number.
  static TC_HD float exp(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.44269504f * x));
    return y;
#else
    return std::exp(x);
#endif
  }

  // Where 1 would take its digits, the series.
  static TC_HD float expm1(float x) {
    const float near_zero =
        x * math::polynomial(x, 1.0f, 0.5f, 0.166666667f, 0.0416666667f, 0.00833333333f);
    return x > -0.5f && x < 0.5f ? near_zero : exp(x) - 1.0f;
  }

  static TC_HD float divide(float x, float y) {
#if defined(__CUDA_ARCH__)
    return __fdividef(x, y);
#else
    return x / y;
#endif
  }
};

template <class T>
using arith_t = std::conditional_t<sizeof(T) == 2, Approximate, math::Exact>;

}  // namespace torchcalc::cuda
