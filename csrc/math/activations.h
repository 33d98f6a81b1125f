#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "math/activations_piecewise.h"
#include "math/activations_smooth.h"
#include "math/elementary.h"

// Activations a = f(z) and their derivatives.
//
// A functor holds the activation's parameters in the op-math type T and has
//   value(z) = f(z)
//   d<Order>(c, z) = c f^(Order)(z), Order 1 or 2.
// Where kFromOutput, the derivative can be told from the output alone, and it has
//   d_from_output<Order>(c, a) = c F_Order(a), F_1(f(z)) = f'(z), F_2 = dF_1/da;
//   and where kSaturates, limits(), the outputs with F_1 = 0 that it tends to.
// Where kTwoSlopes, f' has two values, so that a bit tells it; then it has
//   is_on(z), which of the two, and representative(on), an input that has that one.
// So, u being z or a, with the derivatives in u:
//   VJP of value:   dz = d<1>(c, u)
//   VJP of d<1>:    dc = d<1>(c', u),   du = d<2>(c' * c, u)
// Arith says how exp and divisions are done (math/elementary.h).
namespace torchcalc::math {

// The order is the numbering of the ops' `activation` argument; names as in Python.
enum class ActivationKind : int64_t {
  kIdentity,
  kRelu,
  kGelu,
  kGeluTanh,
  kSilu,
  kTanh,
  kSigmoid,
  kRelu6,
  kLeakyRelu,  // a: the slope where z <= 0
  kReluSquared,
  kElu,   // a: alpha
  kCelu,  // a: alpha
  kSelu,
  kQuickGelu,
  kMish,
  kSoftplus,  // a: beta, b: threshold
  kHardswish,
  kHardsigmoid,
  kHardtanh,  // a: the least value, b: the largest
  kSoftsign
};

constexpr int64_t kActivations = 20;

// An activation as the ops are told it: a and b are its parameters, 0 where it has none.
struct Activation {
  ActivationKind kind;
  double a, b;
};

// What backward is given to tell the derivative by. kScaledOutput: y = dropout(a), which is
// scale * a where the gradient is not 0. kBits: a bit for each element, whether it is_on.
enum class Saved : int64_t { kNothing, kInput, kOutput, kScaledOutput, kBits };

// u = a, told from y = scale a, which was rounded to Stored. Of a saturated unit u would be near
// the limit instead of on it, and its derivative a constant of either sign instead of 0: so where y
// is what a limit gives, u is the limit.
template <class Stored, class Arith = Exact, class Act, class T>
TC_HD T unscaled(const Act& act, T y, T scale) {
  const T u = Arith::divide(y, scale);
  if constexpr (Act::kFromOutput) {
    if constexpr (Act::kSaturates) {
      const auto [low, high] = act.limits();
      const auto rounded = [&](T c) { return static_cast<T>(static_cast<Stored>(scale * c)); };
      return y == rounded(low) ? low : y == rounded(high) ? high : u;
    }
  }
  return u;
}

// Whether it is another value than y. With scale 1, too, limits may have been rounded.
template <class Stored, class Act, class T>
TC_HD bool needs_unscaled(T scale) {
  return scale != T(1) || (Act::kSaturates && !std::is_same_v<Stored, T>);
}

// Calls f with the functor of `activation` in the op-math type T.
template <class T, class F>
TC_HD void dispatch_activation(const Activation& activation, F&& f) {
  const T a = T(activation.a), b = T(activation.b);
  switch (activation.kind) {
    case ActivationKind::kRelu:
      return f(Relu<T>{});
    case ActivationKind::kGelu:
      return f(Gelu<T>{});
    case ActivationKind::kGeluTanh:
      return f(GeluTanh<T>{});
    case ActivationKind::kSilu:
      return f(Swish<T>{T(1)});
    case ActivationKind::kTanh:
      return f(Tanh<T>{});
    case ActivationKind::kSigmoid:
      return f(Sigmoid<T>{});
    case ActivationKind::kRelu6:
      return f(Clamp<T>{T(0), T(6)});
    case ActivationKind::kLeakyRelu:
      return f(LeakyRelu<T>{a});
    case ActivationKind::kReluSquared:
      return f(ReluSquared<T>{});
    case ActivationKind::kElu:
      return f(Elu<T>{T(1), a, T(1)});
    case ActivationKind::kCelu:
      return f(Elu<T>{T(1), a, T(1 / activation.a)});
    case ActivationKind::kSelu: {
      constexpr double kScale = 1.0507009873554804934, kAlpha = 1.6732632423543772848;
      return f(Elu<T>{T(kScale), T(kScale * kAlpha), T(1)});
    }
    case ActivationKind::kQuickGelu:
      return f(Swish<T>{T(1.702)});
    case ActivationKind::kMish:
      return f(Mish<T>{});
    case ActivationKind::kSoftplus:
      return f(Softplus<T>{a, b});
    case ActivationKind::kHardswish:
      return f(HardSwish<T>{});
    case ActivationKind::kHardsigmoid:
      return f(HardSigmoid<T>{});
    case ActivationKind::kHardtanh:
      return f(Clamp<T>{a, b});
    case ActivationKind::kSoftsign:
      return f(Softsign<T>{});
    default:
      return f(Identity<T>{});
  }
}

// Whether x is the same number in every dtype: has 8 significant bits, in float16's range.
inline bool in_every_dtype(double x) {
  int exponent;
  const double mantissa = std::frexp(x, &exponent) * 256;
  return x == 0 || std::isinf(x) ||
         (mantissa == std::floor(mantissa) && exponent > -14 && exponent <= 16);
}

// Whether the rounded output, or with dropout its scaled one, tells the derivative.
inline bool output_tells(const Activation& activation, bool scaled) {
  const double a = activation.a, b = activation.b;
  switch (activation.kind) {
    case ActivationKind::kLeakyRelu:
      return a > 0;  // else a has one sign, or the wrong one
    // F_1 = a + alpha, of which little is left where alpha is large; and outputs of either sign
    // where it is negative.
    case ActivationKind::kElu:
      return a > 0 && a <= 2;
    // F_1 = a / alpha + 1: outputs are no normal numbers of float16 where alpha is tiny.
    case ActivationKind::kCelu:
      return a >= 1e-3 && a <= 1e4;
    // As little is left of beta a where beta is large; outputs on both sides of a low threshold are
    // the same.
    case ActivationKind::kSoftplus:
      return a > 0 && a <= 1e3 && b >= 15;
    // Scaled and rounded, or with ends that are, saturated outputs and inner ones are the same.
    case ActivationKind::kHardtanh:
      return !scaled && a < b && in_every_dtype(a) && in_every_dtype(b);
    case ActivationKind::kRelu6:
    case ActivationKind::kHardsigmoid:
      return !scaled;
    default: {
      bool tells = false;
      dispatch_activation<double>(activation, [&](const auto& act) { tells = act.kFromOutput; });
      return tells;
    }
  }
}

// Whether a bit does.
inline bool has_two_slopes(const Activation& activation) {
  bool has = false;
  dispatch_activation<double>(activation, [&](const auto& act) { has = act.kTwoSlopes; });
  return has;
}

// What linear_act keeps for backward: as little as tells the derivative. Where y does, that is
// nothing more; where y does not tell a, because a residual is added, a does.
inline Saved saved_for(const Activation& activation, bool residual, bool dropout) {
  if (activation.kind == ActivationKind::kIdentity) return Saved::kNothing;
  if (!residual && output_tells(activation, dropout)) return Saved::kScaledOutput;
  if (has_two_slopes(activation)) return Saved::kBits;
  return output_tells(activation, false) ? Saved::kOutput : Saved::kInput;
}

}  // namespace torchcalc::math
