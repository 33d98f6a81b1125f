#pragma once

#include <limits>

#include "common/macros.h"
#include "math/elementary.h"

// Activations made of straight lines and parabolas; math/activations.h says what a functor has.
// All select, so that an infinite c gives 0 where the unit is off.
namespace torchcalc::math {

template <class T>
struct Identity {
  static constexpr bool kFromOutput = true, kTwoSlopes = false, kSaturates = false;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    return z;
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T) const {
    return Order == 1 ? c : T(0);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d_from_output(T c, T) const {
    return Order == 1 ? c : T(0);
  }
};

// f = max(z, 0). A selection, so that an infinite c gives 0 where the unit is off.
template <class T>
struct Relu {
  static constexpr bool kFromOutput = true, kTwoSlopes = true, kSaturates = false;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    return z < T(0) ? T(0) : z;
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    return Order == 1 && is_on(z) ? c : T(0);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d_from_output(T c, T a) const {
    return d<Order, Arith>(c, a);
  }
  TC_HD bool is_on(T z) const { return !(z <= T(0)); }
  TC_HD T representative(bool on) const { return on ? T(1) : T(0); }
};

// f = z where z > 0, slope z elsewhere.
template <class T>
struct LeakyRelu {
  static constexpr bool kFromOutput = true, kTwoSlopes = true, kSaturates = false;
  T slope;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    const T off = slope * z;
    return is_on(z) ? z : off;
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    const T off = slope * c;
    return Order == 2 ? T(0) : is_on(z) ? c : off;
  }
  template <int Order, class Arith = Exact>
  TC_HD T d_from_output(T c, T a) const {
    return d<Order, Arith>(c, a);
  }
  TC_HD bool is_on(T z) const { return z > T(0); }
  TC_HD T representative(bool on) const { return on ? T(1) : T(0); }
};

// f = max(z, 0)^2.
template <class T>
struct ReluSquared {
  static constexpr bool kFromOutput = false, kTwoSlopes = false;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    return z < T(0) ? T(0) : z * z;
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    return z <= T(0) ? T(0) : T(2) * c * (Order == 1 ? z : T(1));
  }
};

// f = min(max(z, low), high): hardtanh, relu6. f' = 0 at the ends, and of NaN.
template <class T>
struct Clamp {
  static constexpr bool kFromOutput = true, kTwoSlopes = true, kSaturates = false;
  T low, high;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    z = z < low ? low : z;
    return z > high ? high : z;
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    return Order == 1 && is_on(z) ? c : T(0);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d_from_output(T c, T a) const {
    return d<Order, Arith>(c, a);
  }
  TC_HD bool is_on(T z) const { return (z > low) & (z < high); }  // no branch
  // The middle, of finite ends. Where it is one of them, there is no number between.
  TC_HD T representative(bool on) const {
    constexpr T kLargest = std::numeric_limits<T>::max();
    const T first = low < -kLargest ? -kLargest : low, last = high > kLargest ? kLargest : high;
    return on ? T(0.5) * first + T(0.5) * last : low;
  }
};

// f = min(max(z + 3, 0), 6) / 6, above 0 as 1 - (3 - z) / 6: only z >= 3 rounds to 1. f' = 0 at the
// ends, and of NaN.
template <class T>
struct HardSigmoid {
  static constexpr bool kFromOutput = true, kTwoSlopes = true, kSaturates = false;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    const T below = z <= T(-3) ? T(0) : (z + T(3)) / T(6);
    const T above = z >= T(3) ? T(1) : T(1) - (T(3) - z) / T(6);
    return z > T(0) ? above : below;
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    return Order == 1 && is_on(z) ? c / T(6) : T(0);
  }
  template <int Order, class Arith = Exact>
  TC_HD T d_from_output(T c, T a) const {
    return Order == 1 && a > T(0) && a < T(1) ? c / T(6) : T(0);
  }
  TC_HD bool is_on(T z) const { return z > T(-3) && z < T(3); }
  TC_HD T representative(bool on) const { return on ? T(0) : T(3); }
};

// f = 0 where z <= -3, z where z >= 3, z (z + 3) / 6 between;  f' = 0, 1, z / 3 + 1/2.
template <class T>
struct HardSwish {
  static constexpr bool kFromOutput = false, kTwoSlopes = false;
  template <class Arith = Exact>
  TC_HD T value(T z) const {
    const T between = z * (z + T(3)) / T(6);
    return z <= T(-3) ? T(0) : z >= T(3) ? z : between;
  }
  template <int Order, class Arith = Exact>
  TC_HD T d(T c, T z) const {
    if constexpr (Order == 1) {
      return z <= T(-3) ? T(0) : z >= T(3) ? c : c * (z / T(3) + T(0.5));
    } else {
      return z > T(-3) && z < T(3) ? c / T(3) : T(0);
    }
  }
};

}  // namespace torchcalc::math
