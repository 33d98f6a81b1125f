#pragma once

#include "common/macros.h"

// Proximal operators of l1 |y| + (l2 / 2) y^2, coordinate by coordinate:
//   prox(x) = argmin_y  l1 |y| + (l2 / 2) y^2 + (y - x)^2 / 2 = S(x, l1) / (1 + l2).
// L1 is l2 = 0, squared L2 is l1 = 0. (Parikh & Boyd, "Proximal algorithms", 2014, section 6.5.)
namespace torchcalc::math {

// S(x, t) = sign(x) max(|x| - t, 0). NaN in x or t gives NaN; exactly 0 where |x| <= t. A learned t
// may cross 0: from there on |x| grows by -t, and the gradient leads back.
template <class T>
TC_HD T soft_threshold(T x, T t) {
  const T magnitude = (x < T(0) ? -x : x) - t;
  const T shrunk = x < T(0) ? -magnitude : magnitude;
  return magnitude <= T(0) ? T(0) : shrunk;
}

template <class T>
TC_HD T clip(T x, T low, T high) {
  const T y = x < high ? x : high;
  return y > low ? y : low;
}

// S(x, t) where t >= 0 is known: the same in half of the operations.
template <class T>
TC_HD T soft_threshold_by_positive(T x, T t) {
  return x - clip(x, -t, t);
}

template <class T>
TC_HD T prox(T x, T l1, T l2) {
  return soft_threshold(x, l1) / (T(1) + l2);
}

// What the derivatives are made of: y = S r, with a = 1 where |x| > l1 (else 0), s = sign(x) a. a
// is a selection: where it is 0, so are the derivatives along infinite cotangents.
template <class T>
struct ProxParts {
  T x, magnitude, soft, ratio;  // magnitude = |x| - l1

  TC_HD T select(T v) const { return magnitude <= T(0) ? T(0) : v; }     // a v
  TC_HD T sign(T v) const { return x < T(0) ? -select(v) : select(v); }  // s v
};

template <class T>
TC_HD ProxParts<T> prox_parts(T x, T l1, T l2) {
  return {x, (x < T(0) ? -x : x) - l1, soft_threshold(x, l1), T(1) / (T(1) + l2)};
}

template <class T>
struct ProxGrads {
  T x, l1, l2;
};

// VJP of prox:  dx = g a r,  dl1 = -g s r,  dl2 = -g S r^2.
template <class T>
TC_HD ProxGrads<T> prox_vjp(T g, T x, T l1, T l2) {
  const auto parts = prox_parts(x, l1, l2);
  const T gr = parts.select(g) * parts.ratio;
  return {gr, -parts.sign(gr), -gr * parts.soft * parts.ratio};
}

template <class T>
struct ProxSecondGrads {
  T g, x, l1, l2;
};

// VJP of prox_vjp for the cotangents (cx, c1, c2) of its three results:
//   dg  = (cx a - c1 s - c2 S r) r          (which is also the JVP of prox along (cx, c1, c2))
//   dx  = -g c2 a r^2,   dl1 = g c2 s r^2,   dl2 = g r^2 (c1 s - cx a + 2 c2 S r)
template <class T>
TC_HD ProxSecondGrads<T> prox_vjp_vjp(T cx, T c1, T c2, T g, T x, T l1, T l2) {
  const auto parts = prox_parts(x, l1, l2);
  const T r = parts.ratio;
  const T gr2 = parts.select(g) * r * r, c2S = parts.select(c2) * parts.soft * r;
  const T along = parts.select(cx) - parts.sign(c1);
  const T across = gr2 * parts.select(c2);
  return {(along - c2S) * r, -across, parts.sign(across), gr2 * (T(2) * c2S - along)};
}

}  // namespace torchcalc::math
