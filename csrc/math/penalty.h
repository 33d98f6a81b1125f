#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "math/polynomial.h"
#include "math/prox.h"

// Penalties g that are sums over coordinates, by their proximal operators
//   prox(v, s) = argmin_x  g(x) + (x - v)^2 / (2 s),   s >= 0 and finite,
// as functors over one coordinate. A step s as large as Adam makes it turns the penalties that are
// not convex into hard thresholds. Where two points are the argmin it is the smaller one. NaN in v
// gives NaN; branches are selections, so that loops vectorise.
namespace torchcalc::math {

// The nearest finite number: 0 times it is 0, and infinity minus it is infinity.
template <class T>
TC_HD T finite(T x) {
  const T most = std::numeric_limits<T>::max();
  return x < most ? x : most;
}

// 1 / x for x from 2^-126 to 2^125, to within two units in the last place; in float on a CPU
// without a division: an update keeps the divider busy, and this goes on beside it. The bits of the
// first guess are those of -log2 x, roughly. A Newton step, its constant chosen so that errors of
// both signs are alike, leaves e = 0.0013; the series 1 + e + e^2 + ... takes that away.
template <class T>
TC_HD T reciprocal(T x) {
#if !defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float>) {
    float y = std::bit_cast<float>(0x7ef33400u - std::bit_cast<uint32_t>(x));
    y *= 2.00128f - x * y;
    const float e = 1.0f - x * y;
    return y + y * (e + e * e);
  }
#endif
  return T(1) / x;
}

// 1 / sqrt(x) for x >= 0, finite where x = 0, in the same way.
template <class T>
TC_HD T reciprocal_root(T x) {
#if !defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float>) {
    float y = std::bit_cast<float>(0x5f379000u - (std::bit_cast<uint32_t>(x) >> 1));
    y *= 1.501f - 0.5f * x * y * y;
    const float e = 1.0f - x * y * y;
    return y + y * (e * (0.5f + 0.375f * e));
  }
#endif
  return x > T(0) ? T(1) / std::sqrt(x) : T(1);
}

// What may be added to what is to be inverted: where it is more, the inverse is 0 for all that
// matters. NaN stays.
template <class T, class Number>
TC_HD T at_most(Number x) {
  constexpr T most = sizeof(T) > 4 ? T(1e300) : T(1e37);
  return most < x ? most : static_cast<T>(x);
}

// The order is the numbering of the ops' `penalty` argument.
enum class PenaltyKind : int64_t {
  kElasticNet,
  kHuber,
  kL0,
  kLHalf,
  kMcp,
  kScad,
  kGroupL2,  // from here on by groups: math/group_prox.h
  kLargest,
  kLInf,
  kL1Ball,
  kL2Ball,
  kSimplex,
  kTotalVariation  // math/total_variation.h: groups are lines
};

constexpr int64_t kPenalties = 13, kSeparable = 6;

// A penalty as the ops are told it, in the order of their `numbers`:
//   g(x) = factor f(x; lam, shape) + l1 |x| + (l2 / 2) x^2,  low <= x <= high
// where f is that of the kind, and 0 for kElasticNet. Of a kind by groups, `shape` and `factor` are
// what math/group_prox.h says. `bound` is how far g, but not low and high, may pull a coordinate.
struct Penalty {
  PenaltyKind kind = PenaltyKind::kElasticNet;
  double lam = 0, shape = 0, factor = 1;
  double l1 = 0, l2 = 0, low = -INFINITY, high = INFINITY;
  double bound = INFINITY;

  TC_HD bool is_set_of_groups() const {
    return kind == PenaltyKind::kLargest || kind == PenaltyKind::kL1Ball ||
           kind == PenaltyKind::kL2Ball || kind == PenaltyKind::kSimplex;
  }
  // A projection is the same with any one step for all.
  template <class T>
  TC_HD T one_step(T step) const {
    return is_set_of_groups() ? T(1) : step;
  }
  TC_HD bool by_groups() const { return static_cast<int64_t>(kind) >= kSeparable; }
  TC_HD bool is_plain() const { return kind == PenaltyKind::kElasticNet; }
  TC_HD bool projects() const { return low > -INFINITY || high < INFINITY; }
  // What most have, and what a GPU has kernels of their own for.
  TC_HD bool is_norm() const { return is_plain() && !projects(); }
  // A projection on an interval is the same with any step.
  TC_HD bool wants_step() const { return !is_plain() || l1 != 0 || l2 != 0; }
};

// NaN stays.
template <class T>
struct Within {
  T low, high;

  TC_HD T operator()(T v, T) const {
    const T x = low > v ? low : v;
    return high < x ? high : x;
  }
};

// l1 |x|, l1 > 0: S(v, s l1). Clipping the threshold bounds the pull, and s may be infinite.
template <class T>
struct SoftThreshold {
  T l1, bound;

  TC_HD T operator()(T v, T s) const {
    const T threshold = s * l1;
    return soft_threshold_by_positive(v, threshold < bound ? threshold : bound);
  }
};

// l1 |x| within [low, high].
template <class T>
struct Projected {
  SoftThreshold<T> shrink;
  Within<T> within;

  TC_HD T operator()(T v, T s) const { return within(shrink(v, s), s); }
};

// The other penalties are even and grow with |x|: their proxes keep the sign, and shrink. So they
// are functors over m = |v|, whose results are in [0, m].

// max(x, y), and NaN where x is.
template <class T>
TC_HD T above(T x, T y) {
  return y > x ? y : x;
}

// min(x, y), and NaN where x is.
template <class T>
TC_HD T below(T x, T y) {
  return y < x ? y : x;
}

// (l2 / 2) x^2: m / (1 + s l2).
template <class T>
struct Ridge {
  T l2;

  TC_HD T ratio(T s) const { return reciprocal(T(1) + at_most<T>(s * l2)); }
  TC_HD T operator()(T m, T s) const { return m * ratio(s); }
};

// l1 |x| + (l2 / 2) x^2: S(m, s l1) / (1 + s l2).
template <class T>
struct Shrink {
  T l1;
  Ridge<T> ridge;

  TC_HD T operator()(T m, T s) const { return ridge(above(m - finite(s * l1), T(0)), s); }
};

// lam times x^2 / 2 up to delta, delta |x| - delta^2 / 2 beyond: the larger of m / (1 + s lam) and
// m - s lam delta. (Beck, "First-order methods in optimization", 2017, example 6.66.)
template <class T>
struct Huber {
  Ridge<T> ridge;
  T slope;  // lam delta

  TC_HD T operator()(T m, T s) const { return above(ridge(m, s), m - s * slope); }
};

// lam where x != 0: 0 up to sqrt(2 s lam), m beyond. (Blumensath & Davies, 2008.)
template <class T>
struct L0 {
  T unit;  // 1 / sqrt(2 lam)

  TC_HD T operator()(T m, T s) const {
    const T q = m * unit;  // lam = 0: infinite, or NaN where m = 0
    return (q * q <= s) & (s > T(0)) ? T(0) : m;
  }
};

// lam sqrt|x|. With x = m z^2 its stationary points solve z^3 - z + k = 0, k = s lam / (2 m^1.5);
// the largest root is the argmin while k < sqrt(2 / 27), which is z > sqrt(2 / 3); beyond it is 0.
// (The threshold (3 / 2) (s lam)^(2/3) is that of Xu et al., "L1/2 regularization", 2012.)
template <class T>
struct LHalf {
  T half;  // lam / 2

  TC_HD T operator()(T m, T s) const {
    const T h = finite(s * half), r = reciprocal_root(at_most<T>(m));
    const T k = h * r * r * r;  // m = 0: large, or 0; no factor but the last leaves the range
    const T z = largest_root(k < T(0.2722) ? k : T(0.2722));
    // Times m: NaN stays.
    const T x = m * (k >= T(0.27216552697590867757747600830) ? T(0) : z * z);
    return h > T(0) ? x : m;
  }

 private:
  // A minimax fit, 1e-8 absolute error; Newton's steps square that 2.5-fold.
  static TC_HD T largest_root(T k) {
    T z = T(1) - k * polynomial(k, T(0.5000000127), T(0.3749887121), T(0.5016363461),
                                T(0.7288978381), T(4.08295716), T(-38.91664774), T(419.1226002),
                                T(-2520.944704), T(9491.129524), T(-19795.02756), T(18387.32289));
    if constexpr (sizeof(T) > 4) z = newton(newton(z, k), k);
    return z;
  }
  static TC_HD T newton(T z, T k) { return z - (z * (z * z - T(1)) + k) / (T(3) * z * z - T(1)); }
};

// For x above this: its inverse is finite.
template <class T>
TC_HD T invertible(T x) {
  return above(x, T(sizeof(T) > 4 ? 1e-300 : 1e-37));
}

// The integral of max(lam - |x| / gamma, 0) over |x|. While s < gamma: S(m, s lam) / (1 - s /
// gamma) up to gamma lam, m beyond. With a larger step g + (x - m)^2 / 2s is concave up to gamma
// lam, and its argmin 0, which S is there, or m: a hard threshold where both cost the same,
// m^2 / 2s = gamma lam^2 / 2. (Zhang, "Minimax concave penalty", 2010; the latter derived.)
template <class T>
struct Mcp {
  T lam, gamma, unit, inverse;  // 1 / lam, 1 / gamma

  TC_HD T operator()(T m, T s) const {
    const T q = m * unit;  // squared: a root costs as much as the update's
    const T ratio = reciprocal(invertible(T(1) - s * inverse));
    const T inner = above(m - lam * s, T(0)) * ratio;
    // Near s = gamma all from 0 to m cost the same, but for rounding.
    return q * q <= finite(gamma * above(s, gamma)) ? below(inner, m) : m;
  }
};

// The integral of lam up to |x| = lam, (a lam - |x|) / (a - 1) up to a lam, 0 beyond. With small
// steps: S(m, s lam), then, as far as that is larger, ((a - 1) m - s a lam) / (a - 1 - s) up to a
// lam, then m. From s = a - 1 on the second is no minimum, and S(m, s lam) goes over to m where
// both cost the same, m = lam (a + 1 + s) / 2; from s = a + 1 on 0, which S then is, goes over to
// m, at m^2 / 2s = lam^2 (a + 1) / 2. (Fan & Li, 2001; the large steps derived.)
template <class T>
struct Scad {
  T lam, a, factor, unit, inverse;  // 1 / lam, 1 / (a - 1)

  TC_HD T operator()(T m, T step) const {
    const T s = finite(step * factor), q = m * unit, b = a + T(1);
    const T half = T(0.5) * above(b - s, T(0));
    const T end = above(s * b + half * half, a * a);  // ((b + s) / 2)^2 up to s = b
    const T ratio = reciprocal(invertible(T(1) - s * inverse));
    const T line = (m - lam * a * inverse * s) * ratio;
    const T inner = above(above(m - lam * s, line), T(0));
    return q * q <= finite(end) ? below(inner, m) : m;
  }
};

// x with the sign of v, and 0 without one.
template <class T>
TC_HD T with_sign_of(T v, T x) {
  return std::copysign(x, v) + T(0);
}

// The prox of one of these, bounded.
template <class T, class Prox>
struct Bounded {
  Prox prox;
  T bound;

  TC_HD T operator()(T v, T s) const {
    const T m = std::fabs(v);
    return with_sign_of(v, above(prox(m, s), m - bound));
  }
};

// f + l1 |x| + (l2 / 2) x^2 within [low, high]. What is linear and quadratic goes into m and s: for
// x >= 0 that is all that l1 |x| is. A convex function of one variable has its minimum over an
// interval next to its own minimum; one that is not convex, over x >= 0: what is negative becomes
// 0.
template <class T, class Prox>
struct Summed {
  Prox prox;
  Shrink<T> shrink;
  Within<T> within;
  T bound;

  TC_HD T operator()(T v, T s) const {
    const T m = std::fabs(v);
    const T x = prox(shrink(m, s), s * shrink.ridge.ratio(s));
    return within(with_sign_of(v, above(x, m - bound)), T(0));
  }
};

// f = 0, for Summed.
template <class T>
struct Unchanged {
  TC_HD T operator()(T m, T) const { return m; }
};

template <class T, class F, class Prox>
TC_HD void with_rest(const Penalty& g, const F& f, const Prox& prox) {
  const T bound = finite(T(g.bound));
  if (g.l1 == 0 && g.l2 == 0 && !g.projects()) return f(Bounded<T, Prox>{prox, bound});
  const Shrink<T> shrink{finite(T(g.l1)), {finite(T(g.l2))}};
  f(Summed<T, Prox>{prox, shrink, {T(g.low), T(g.high)}, bound});
}

// f(prox) with the functor of l1 |x| + (l2 / 2) x^2; unless there is nothing to compute.
template <class T, class F>
TC_HD void dispatch_norm(const Penalty& g, const F& f) {
  const T l1 = finite(T(g.l1)), bound = finite(T(g.bound));
  const Ridge<T> l2{finite(T(g.l2))};
  if (g.l2 == 0) {
    if (g.l1 != 0) f(SoftThreshold<T>{l1, bound});
  } else if (g.l1 == 0) {
    f(Bounded<T, Ridge<T>>{l2, bound});
  } else {
    f(Bounded<T, Shrink<T>>{{l1, l2}, bound});
  }
}

// f(prox) with the functor of a separable penalty; unless there is nothing to compute.
template <class T, class F>
TC_HD void dispatch_penalty(const Penalty& g, const F& f) {
  const T lam = finite(T(g.lam)), shape = finite(T(g.shape));
  const Within<T> within{T(g.low), T(g.high)};
  switch (g.kind) {
    case PenaltyKind::kElasticNet:
      if (!g.projects()) return dispatch_norm<T>(g, f);
      if (g.l2 != 0) return with_rest<T>(g, f, Unchanged<T>());
      if (g.l1 == 0) return f(within);
      return f(Projected<T>{{finite(T(g.l1)), finite(T(g.bound))}, within});
    case PenaltyKind::kHuber:
      return with_rest<T>(g, f, Huber<T>{{lam}, finite(T(g.lam * g.shape))});
    case PenaltyKind::kL0:
      return with_rest<T>(g, f, L0<T>{T(1) / std::sqrt(T(2) * lam)});
    case PenaltyKind::kLHalf:
      return with_rest<T>(g, f, LHalf<T>{T(0.5) * lam});
    case PenaltyKind::kMcp:
      return with_rest<T>(g, f, Mcp<T>{lam, shape, T(1) / lam, T(1) / shape});
    case PenaltyKind::kScad:
      return with_rest<T>(
          g, f, Scad<T>{lam, shape, finite(T(g.factor)), T(1) / lam, T(1) / (shape - T(1))});
    default:
      return;  // by groups
  }
}

}  // namespace torchcalc::math
