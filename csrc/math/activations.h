#pragma once

#include <cstdint>
#include <limits>

#include "math/elementary.h"

// Activations a = f(z) and their derivatives.
//
// A functor has value(z) = f(z) and d<Order>(c, u) = c * F_Order(u). Where kFromOutput is false, u
// is the pre-activation z, F_1 = f'(z) and F_2 = f''(z). Where it is true the derivative can be
// told from the output alone: u is a, F_1(a) = f'(z) and F_2 = dF_1/da. So, in both cases,
//   VJP of value:   dz = d<1>(c, u)
//   VJP of d<1>:    dc = d<1>(c', u),   du = d<2>(c' * c, u)
// Arith says how exp and divisions are done (math/elementary.h).
namespace torchcalc::math {

// z, but where it is finite no farther from 0 than where the derivatives of gelu, gelu_tanh have
// reached their limits: none of their factors overflows then. Infinities and NaN stay.
template <class T>
TC_HD T within_reach(T z) {
  constexpr T kReach = 64, kLargest = std::numeric_limits<T>::max();
  z = z > kReach && z <= kLargest ? kReach : z;
  return z < -kReach && z >= -kLargest ? -kReach : z;
}

// The order is the numbering of the ops' `activation` argument; names as in Python.
enum class Activation : int64_t { kIdentity, kRelu, kGelu, kGeluTanh, kSilu, kTanh, kSigmoid };

struct Identity {
  static constexpr bool kFromOutput = true;
  template <class Arith = Exact, class T>
  static TC_HD T value(T z) {
    return z;
  }
  template <int Order, class Arith = Exact, class T>
  static TC_HD T d(T c, T) {
    return Order == 1 ? c : T(0);
  }
};

// f = max(z, 0). A selection, so that an infinite c gives 0 where the unit is off.
struct Relu {
  static constexpr bool kFromOutput = true;
  template <class Arith = Exact, class T>
  static TC_HD T value(T z) {
    return z < T(0) ? T(0) : z;
  }
  template <int Order, class Arith = Exact, class T>
  static TC_HD T d(T c, T a) {
    return Order == 1 && !(a <= T(0)) ? c : T(0);
  }
};

// f = z Phi(z);  f' = Phi + z phi;  f'' = (2 - z^2) phi.
struct Gelu {
  static constexpr bool kFromOutput = false;
  template <class Arith = Exact, class T>
  static TC_HD T value(T z) {
    return z * normal<Arith>(z).cdf;
  }
  template <int Order, class Arith = Exact, class T>
  static TC_HD T d(T c, T z) {
    if constexpr (Order == 2) z = within_reach(z);
    const auto [cdf, pdf] = normal<Arith>(z);
    return c * (Order == 1 ? cdf + z * pdf : (T(2) - z * z) * pdf);
  }
};

// f = z (1 + t) / 2,  t = tanh(w),  w = k (z + 0.044715 z^3),  k = sqrt(2 / pi).
// f' = (1 + t) / 2 + z (1 - t^2) w' / 2;  f'' = (1 - t^2) (w' + z (w'' - 2 t w'^2) / 2).
struct GeluTanh {
  static constexpr bool kFromOutput = false;
  static constexpr double kScale = 0.79788456080286536;
  static constexpr double kCubic = 0.044715;
  template <class Arith, class T>
  static TC_HD TanhParts<T> inner_tanh(T z) {
    return tanh_parts<Arith>(T(kScale) * (z + T(kCubic) * z * z * z));
  }
  template <class Arith = Exact, class T>
  static TC_HD T value(T z) {
    return T(0.5) * z * inner_tanh<Arith>(z).one_plus;
  }
  template <int Order, class Arith = Exact, class T>
  static TC_HD T d(T c, T z) {
    z = within_reach(z);
    const auto [t, one_plus, sech2] = inner_tanh<Arith>(z);
    const T dw = T(kScale) * (T(1) + T(3 * kCubic) * z * z);
    if constexpr (Order == 1) {
      return c * T(0.5) * (one_plus + z * sech2 * dw);
    } else {
      const T ddw = T(6 * kScale * kCubic) * z;
      return c * sech2 * (dw + T(0.5) * z * (ddw - T(2) * t * dw * dw));
    }
  }
};

// f = z s,  s = sigmoid(z);  f' = s (1 + z (1 - s));  f'' = s (1 - s) (2 + z (1 - 2 s)).
struct Silu {
  static constexpr bool kFromOutput = false;
  template <class Arith = Exact, class T>
  static TC_HD T value(T z) {
    return z * sigmoid<Arith>(z);
  }
  template <int Order, class Arith = Exact, class T>
  static TC_HD T d(T c, T z) {
    const auto [s, r] = logistic<Arith>(z);
    return c * s * (Order == 1 ? T(1) + z * r : r * (T(2) + z * (r - s)));
  }
};

// a = tanh z;  F_1 = 1 - a^2;  F_2 = -2 a.
struct Tanh {
  static constexpr bool kFromOutput = true;
  template <class Arith = Exact, class T>
  static TC_HD T value(T z) {
    return tanh<Arith>(z);
  }
  template <int Order, class Arith = Exact, class T>
  static TC_HD T d(T c, T a) {
    return c * (Order == 1 ? T(1) - a * a : T(-2) * a);
  }
};

// a = 1 / (1 + e^-z);  F_1 = a (1 - a);  F_2 = 1 - 2 a.
struct Sigmoid {
  static constexpr bool kFromOutput = true;
  template <class Arith = Exact, class T>
  static TC_HD T value(T z) {
    return sigmoid<Arith>(z);
  }
  template <int Order, class Arith = Exact, class T>
  static TC_HD T d(T c, T a) {
    return c * (Order == 1 ? a * (T(1) - a) : T(1) - T(2) * a);
  }
};

// u = a, told from y = scale a, which was rounded to T. Of a saturated unit u would be near the
// limit instead of on it, and its derivative a constant of either sign instead of 0: so where y is
// what a limit c with F_1(c) = 0 gives, u is c.
template <class Act, class T, class Arith = Exact, class Op>
TC_HD Op unscaled(Op y, Op scale) {
  const Op u = Arith::divide(y, scale), c = u > Op(0.5) ? Op(1) : u < Op(-0.5) ? Op(-1) : Op(0);
  const bool is_limit = y == c * static_cast<Op>(static_cast<T>(scale));
  return is_limit && Act::template d<1>(Op(1), c) == Op(0) ? c : u;
}

// Calls f with the functor of `activation`.
template <class F>
auto dispatch_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::kRelu:
      return f(Relu{});
    case Activation::kGelu:
      return f(Gelu{});
    case Activation::kGeluTanh:
      return f(GeluTanh{});
    case Activation::kSilu:
      return f(Silu{});
    case Activation::kTanh:
      return f(Tanh{});
    case Activation::kSigmoid:
      return f(Sigmoid{});
    default:
      return f(Identity{});
  }
}

// Whether F_1 and F_2 are functions of the output a (else of z).
inline bool derivative_from_output(Activation activation) {
  return dispatch_activation(activation, []<class Act>(Act) { return Act::kFromOutput; });
}

}  // namespace torchcalc::math
