#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "common/dispatch.h"
#include "math/activations.h"

// The formulas of 16-bit activations with the largest errors that NVIDIA documents for the GPU's
// exp and division (csrc/cuda/approximate.cuh), for tests/test_approximate.py.
using namespace torchcalc;

namespace {

// x with an error of so many units in the last place of a float.
float with_error(double x, double units) {
  if (x == 0 || !std::isfinite(x)) return static_cast<float>(x);
  const double unit = std::ldexp(1.0, std::max(std::ilogb(x), -126) - 23);
  return static_cast<float>(x + units * unit);
}

struct Injected {
  static constexpr bool kExact = false;
  static inline double exp_sign, divide_sign;

  static float exp(float x) {
    const double units = 2 + std::floor(std::fabs(1.173 * x));
    const float y = with_error(std::exp(double{x}), exp_sign * units);
    return y < std::numeric_limits<float>::min() ? 0.0f : y;
  }

  static float divide(float x, float y) {
    const bool large = std::fabs(y) > 0x1p126f && !std::isinf(y);
    const double q = large ? 0.0 * x : double{x} / y;
    return with_error(q, 2 * divide_sign);
  }
};

enum class Mode { kValue, kFirst, kSecond, kFirstOfScaled };

template <class T, class Arith, class Act>
T apply(const Act& act, Mode mode, T z, float scale) {
  const auto u = static_cast<float>(z);
  switch (mode) {
    case Mode::kValue:
      return static_cast<T>(act.template value<Arith>(u));
    case Mode::kFirst:
      return static_cast<T>(act.template d<1, Arith>(1.0f, u));
    case Mode::kSecond:
      return static_cast<T>(act.template d<2, Arith>(1.0f, u));
    default:
      if constexpr (Act::kFromOutput) {
        return static_cast<T>(
            act.template d_from_output<1, Arith>(1.0f, math::unscaled<T, Arith>(act, u, scale)));
      }
      return T(0);
  }
}

}  // namespace

// y = f(z), f' or f'' of n numbers, with errors of those signs, or as exactly as on a CPU.
extern "C" void sweep(int64_t kind, double a, double b, bool half, int64_t mode, bool exact,
                      double exp_sign, double divide_sign, float scale, const void* z, void* y,
                      int64_t n) {
  Injected::exp_sign = exp_sign;
  Injected::divide_sign = divide_sign;
  const math::Activation activation{math::ActivationKind(kind), a, b};
  math::dispatch_activation<float>(activation, [&](const auto& act) {
    dispatch_bool(half, [&](auto is_half) {
      dispatch_bool(exact, [&](auto is_exact) {
        using T = std::conditional_t<is_half, Half, BFloat16>;
        using Arith = std::conditional_t<is_exact, math::Exact, Injected>;
        for (int64_t i = 0; i < n; ++i) {
          static_cast<T*>(y)[i] =
              apply<T, Arith>(act, Mode(mode), static_cast<const T*>(z)[i], scale);
        }
      });
    });
  });
}
