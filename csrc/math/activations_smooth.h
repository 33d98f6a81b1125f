#pragma once

#include <limits>

#include "common/macros.h"
#include "math/elementary.h"

// Activations made of exp, tanh and the normal distribution; math/activations.h says what a functor
// has.
namespace torchcalc::math {

// Outputs a with F_1(a) = 0.
template <class T>
struct Limits {
  T low, high;
};

// z, but where it is finite no farther from 0 than where the derivatives of gelu, gelu_tanh have
// reached their limits: none of their factors overflows then. Infinities and NaN stay.
template <class T>
TC_HD T within_reach(T z) {
  constexpr T kReach = 64, kLargest = std::numeric_limits<T>::max();
  z = z > kReach && z <= kLargest ? kReach : z;
  return z < -kReach && z >= -kLargest ? -kReach : z;
}

// c f^(Order)(z) of an activation whose derivative is told from its output.
template <int Order, class Arith, class Act, class T>
TC_HD T through_output(const Act& act, T c, T z) {
  const T a = act.template value<Arith>(z);
  const T first = act.template d_from_output<1, Arith>(c, a);
  if constexpr (Order == 1) {
    return first;
  } else {
    return act.template d_from_output<1, Arith>(act.template d_from_output<2, Arith>(c, a), a);
  }
}

// f = z Phi(z);  f' = Phi + z phi;  f'' = (2 - z^2) phi.
template <class T>
struct Gelu {
  static constexpr bool kFromOutput = false, kTwoSlopes = false;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    return z * normal<Arith>(z).cdf;
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    if constexpr (Order == 2) z = within_reach(z);
    const auto [cdf, pdf] = normal<Arith>(z);
    return c * (Order == 1 ? cdf + z * pdf : (T(2) - z * z) * pdf);
  }
};

// f = z (1 + t) / 2 = z sigmoid(2 w),  t = tanh(w),  w = k (z + 0.044715 z^3),  k = sqrt(2 / pi).
// f' = (1 + t) / 2 + z (1 - t^2) w' / 2;  f'' = (1 - t^2) (w' + z (w'' - 2 t w'^2) / 2).
template <class T>
struct GeluTanh {
  static constexpr bool kFromOutput = false, kTwoSlopes = false;
  static constexpr double kScale = 0.79788456080286536;
  static constexpr double kCubic = 0.044715;
  static TC_HD T inner(T z) { return T(kScale) * (z + T(kCubic) * z * z * z); }
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    const T w = inner(z);
    if (!Arith::kExact || w < T(-0.5)) return z * sigmoid<Arith>(T(2) * w);  // nothing cancels
    return T(0.5) * z * (T(1) + tanh<Arith>(w));
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    z = within_reach(z);
    const auto [t, one_plus, sech2] = tanh_parts<Arith>(inner(z));
    const T dw = T(kScale) * (T(1) + T(3 * kCubic) * z * z);
    if constexpr (Order == 1) {
      return c * T(0.5) * (one_plus + z * sech2 * dw);
    } else {
      const T ddw = T(6 * kScale * kCubic) * z;
      return c * sech2 * (dw + T(0.5) * z * (ddw - T(2) * t * dw * dw));
    }
  }
};

// f = z s,  s = sigmoid(k z): silu, and with k = 1.702 quick_gelu.
// f' = s + k z s (1 - s);  f'' = k s (1 - s) (2 + k z (1 - 2 s)).
template <class T>
struct Swish {
  static constexpr bool kFromOutput = false, kTwoSlopes = false;
  T k;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    return z * sigmoid<Arith>(k * z);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    const auto [s, r] = logistic<Arith>(k * z);
    const T p = k * s * r, q = p * z;  // k z may overflow
    return c * (Order == 1 ? s + q : T(2) * p + k * q * (r - s));
  }
};

// f = z t,  t = tanh(log(1 + e)) = m / (1 + m),  m = e + e^2 / 2,  e = e^z.
// t' = e (e + 1) / (1 + m)^2;  t'' = e (1 + m (1 - 2 e)) / (1 + m)^3.
// f' = t + z t';  f'' = 2 t' + z t''.
template <class T>
struct Mish {
  static constexpr bool kFromOutput = false, kTwoSlopes = false;
  static TC_HD T below_43(T z) { return z > T(43) ? T(43) : z; }  // where t = 1, t' = 0
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    const T e = Arith::exp(below_43(z)), m = e + T(0.5) * e * e;
    const T q = Arith::divide(m, T(1) + m);
    return z * (m < T(0.25) ? m - m * q : q);  // a small m loses less so
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    z = below_43(z);
    const T e = Arith::exp(z), m = e + T(0.5) * e * e;
    const T v = Arith::divide(T(1), T(1) + m), t = m * v;
    const T dt = (e * v) * ((e + T(1)) * v);
    if constexpr (Order == 1) {
      return c * (t + z * dt);
    } else {
      const T ddt = (e * v) * v * (v + t * (T(1) - T(2) * e));
      return c * (T(2) * dt + z * ddt);
    }
  }
};

// a = tanh z;  F_1 = 1 - a^2;  F_2 = -2 a.
template <class T>
struct Tanh {
  static constexpr bool kFromOutput = true, kTwoSlopes = false, kSaturates = true;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    return tanh<Arith>(z);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    return through_output<Order, Arith>(*this, c, z);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d_from_output(T c, T a) const {
    return c * (Order == 1 ? T(1) - a * a : T(-2) * a);
  }
  TC_HD Limits<T> limits() const { return {T(-1), T(1)}; }
};

// a = 1 / (1 + e^-z);  F_1 = a (1 - a);  F_2 = 1 - 2 a.
template <class T>
struct Sigmoid {
  static constexpr bool kFromOutput = true, kTwoSlopes = false, kSaturates = true;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    return sigmoid<Arith>(z);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    return through_output<Order, Arith>(*this, c, z);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d_from_output(T c, T a) const {
    return c * (Order == 1 ? a * (T(1) - a) : T(1) - T(2) * a);
  }
  TC_HD Limits<T> limits() const { return {T(0), T(1)}; }
};

// a = z / (1 + |z|);  F_1 = (1 - |a|)^2;  F_2 = -2 sign(a) (1 - |a|).
template <class T>
struct Softsign {
  static constexpr bool kFromOutput = true, kTwoSlopes = false, kSaturates = true;
  // |z|, but no farther than where a = 1 and F_1 = 0: 1 + |z| is a number to divide by.
  static TC_HD T magnitude(T z) {
    constexpr T kFar = 1e30;
    const T m = z < T(0) ? -z : z;
    return m > kFar ? kFar : m;
  }
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    const T m = magnitude(z), a = Arith::divide(m, T(1) + m);
    return z < T(0) ? -a : a;
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    const T q = Arith::divide(T(1), T(1) + magnitude(z));
    return c * (Order == 1 ? q * q : twice_minus_sign(z) * q * q * q);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d_from_output(T c, T a) const {
    const T q = T(1) - (a < T(0) ? -a : a);
    return c * (Order == 1 ? q * q : twice_minus_sign(a) * q);
  }
  static TC_HD T twice_minus_sign(T u) { return u > T(0) ? T(-2) : u < T(0) ? T(2) : T(0); }
  TC_HD Limits<T> limits() const { return {T(-1), T(1)}; }
};

// a = positive z where z > 0, negative (e^(k z) - 1) elsewhere: elu, celu, selu.
// F_1 = positive, or k (a + negative);  F_2 = 0, or k.
template <class T>
struct Elu {
  static constexpr bool kFromOutput = true, kTwoSlopes = false, kSaturates = true;
  T positive, negative, k;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    return z > T(0) ? positive * z : negative * expm1<Arith>(k * z);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    const T slope = k * negative * Arith::exp(k * z);
    if constexpr (Order == 1) {
      const T above = c * positive, below = c * slope;  // a branch, else
      return z > T(0) ? above : below;
    } else {
      return z >= T(0) ? T(0) : c * k * slope;  // 0 at 0, as PyTorch's
    }
  }
  template <int Order, class Arith = Exact>
  TC_HD T d_from_output(T c, T a) const {
    if constexpr (Order == 1) {
      const T above = c * positive, below = c * (k * (a + negative));
      return a > T(0) ? above : below;
    } else {
      const T below = c * k;
      return a < T(0) ? below : T(0);
    }
  }
  TC_HD Limits<T> limits() const { return {-negative, -negative}; }
};

// a = log(1 + e^(beta z)) / beta, z where beta z > threshold.
// F_1 = 1 - e^(-beta a);  F_2 = beta e^(-beta a); beyond the threshold 1 and 0.
template <class T>
struct Softplus {
  static constexpr bool kFromOutput = true, kTwoSlopes = false, kSaturates = false;
  T beta, threshold;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    const T x = beta * z;
    return x > threshold ? z : Arith::divide(softplus<Arith>(x), beta);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    const T x = beta * z;
    const auto [s, r] = logistic<Arith>(x);
    if constexpr (Order == 1) {
      return x > threshold ? c : c * s;
    } else {
      return x >= threshold ? T(0) : c * (beta * s * r);
    }
  }
  template <int Order, class Arith = Exact>
  TC_HD T d_from_output(T c, T a) const {
    const T x = beta * a;
    if constexpr (Order == 1) {
      return x > threshold ? c : -c * expm1<Arith>(-x);
    } else {
      return x > threshold ? T(0) : c * (beta * Arith::exp(-x));
    }
  }
};

}  // namespace torchcalc::math
