#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "math/penalty.h"

// Proximal operators over a group of coordinates, in the metric of their steps:
//   prox(v, s) = argmin_x  g(x) + sum_i (x_i - v_i)^2 / (2 s_i).
// Each comes down to one number for the group, the root of an equation of sums over it; so the
// formulas are here, and how a sum is made is the device's. A Group<T> has
//   size();   sum(f), the sums of f(v_i, s_i), a Sums<T>, in double;
//   count(f), how many f(v_i, s_i, i) are true;   map(f), v_i = f(v_i, s_i, i);
//   kKeeps, whether that keeps all that f gives.
// On a GPU all threads of a block run this with the same sums.
namespace torchcalc::math {

#if defined(__CUDACC__)
#define TC_TERM
#else
#define TC_TERM __attribute__((always_inline))
#endif

template <class T>
struct Sums {
  T x = 0, y = 0, z = 0;
};

// Squares within these are in the range of T, and so are sums of very many of them; else the group
// is to be computed in double. There all that is left are zero, infinity and NaN.
template <class T>
TC_HD bool in_range(double sum) {
  return sizeof(T) > 4 || (sum > 1e-30 && sum < 1e30);
}

template <class T>
struct Term {
  T a, c;
};

// The largest t >= 0 with  sum a_i^2 / (t + c_i)^2 = r^2,  c >= 0, r > 0; 0 if there is none. f(v,
// s) gives a and c, `moments` are the sums of a^2, a^2 c, a^2 c^2.
//
// Newton's method on sum^(-1/2) - 1/r, which is nearly linear in t: where all c are equal it is
// linear. It is concave and increasing, so steps from the left never pass the root, and one from
// the right goes to the left of it. By Jensen sqrt(sum a^2) / r - sum a^2 c / sum a^2 lies to the
// left. The second derivative is at most 3 / t times the first, which bounds what is left after a
// step d by 1.5 d^2 / t. (More & Sorensen, "Computing a trust region step", 1983.)
template <class T, class Group, class F>
TC_HD double secular_root(const Group& group, const Sums<double>& moments, double r, F f) {
  constexpr double kEps = std::numeric_limits<T>::epsilon() / 4;
  const double root = std::sqrt(moments.x) / r, mean = moments.y / moments.x;
  double low = root - mean, high = root, t = low;
  const double variance = std::fabs(moments.z / moments.x - mean * mean);
  if (low > 0 && 1.5 * variance * root * root * root <= kEps * low * low * low * low * low)
    return t;
  if (!(low > 0)) {
    const auto at_zero = group.sum([=](T v, T s) TC_TERM {
      const auto [a, c] = f(v, s);
      const T q = a == T(0) ? T(0) : a / c;
      return Sums<T>{q * q};
    });
    if (at_zero.x <= r * r) return 0;
    low = 0;
    t = high;
  }
  for (int round = 0; round < 200; ++round) {
    const T at = static_cast<T>(t);
    const auto sums = group.sum([=](T v, T s) TC_TERM {
      const auto [a, c] = f(v, s);
      const T inverse = reciprocal(at + c), q = a * inverse;
      return Sums<T>{q * q, q * q * inverse};
    });
    const double step = (std::sqrt(sums.x) / r - 1) * sums.x / sums.y;
    (step >= 0 ? low : high) = t;
    const double next = t + step;
    t = next >= low && next <= high ? next : (low + high) / 2;
    if (1.5 * step * step <= kEps * t * t || high <= low) break;
  }
  return t;
}

// The t with  sum max(a_i - c_i t, 0) = r,  where at first all terms count. Newton's method on a
// convex, decreasing, piecewise linear function, from the left: it ends after finitely many steps.
// (Held, Wolfe & Crowder, 1974; Condat, "Fast projection onto the simplex", 2016.)
template <class T, class Group, class F>
TC_HD double water_level(const Group& group, double r, F f) {
  double t = -INFINITY;
  for (;;) {
    const T at = static_cast<T>(t);
    const auto sums = group.sum([=](T v, T s) TC_TERM {
      const auto [a, c] = f(v, s);
      const bool counts = !(a <= c * at);  // NaN counts
      return Sums<T>{counts ? a : T(0), counts ? c : T(0)};
    });
    const double next = (sums.x - r) / sums.y;
    if (!(next > t)) return next != next ? next : t;
    t = next;
  }
}

// x = v - theta (v - prox(v)), with theta so that it is at most `bound` from v.
template <class T, class Group, class F>
TC_HD void map_bounded(const Group& group, double bound, bool surely_within, F prox) {
  if (bound < INFINITY && !surely_within) {
    const auto pull = group.sum([=](T v, T s) TC_TERM {
      const T p = v - prox(v, s);
      return Sums<T>{p * p};
    });
    if (pull.x > bound * bound) {
      const T theta = static_cast<T>(bound / std::sqrt(pull.x));
      group.map([=](T v, T s, int64_t) TC_TERM { return v - theta * (v - prox(v, s)); });
      return;
    }
  }
  group.map([=](T v, T s, int64_t) TC_TERM { return prox(v, s); });
}

// lam ||x|| + l1 ||x||_1:  x_i = a_i / (1 + s_i lam / t),  a = S(v, s l1), t = ||x||.
// (Yuan & Lin, 2006; Simon et al., "A sparse-group lasso", 2013. In the metric: derived.)
template <class T, bool kSparse, class Group>
TC_HD bool group_l2(const Group& group, const Penalty& g, double bound) {
  const T lam = finite(T(g.lam)), l1 = finite(T(g.l1));
  const auto shrunk = [=](T v, T s) TC_TERM {
    return kSparse ? soft_threshold_by_positive(v, finite(s * l1)) : v;
  };
  auto moments = group.sum([=](T v, T s) TC_TERM {
    const T a = shrunk(v, s), square = a * a, with_s = square * s;
    return Sums<T>{square, with_s, with_s * s};
  });
  if (!in_range<T>(moments.x)) return false;
  moments.y *= g.lam, moments.z *= g.lam * g.lam;
  // Of a norm that is infinite, 0 or NaN there is nothing to solve.
  const bool solvable = moments.x > 0 && moments.x < INFINITY;
  const double t =
      !solvable ? moments.x : secular_root<T>(group, moments, 1, [=](T v, T s) TC_TERM {
        return Term<T>{shrunk(v, s), at_most<T>(s * lam)};
      });
  // For all i, t / (t + c_i) < 1: this is more than the norm of v - x.
  const bool within = !kSparse && moments.z <= bound * bound * t * t;
  const T slope = at_most<T>(g.lam / t);  // t = 0: infinite
  if (t <= 0) {
    map_bounded<T>(group, bound, false, [](T, T) TC_TERM { return T(0); });
  } else {
    map_bounded<T>(group, bound, within, [=](T v, T s) TC_TERM {
      return shrunk(v, s) * reciprocal(at_most<T>(T(1) + s * slope));
    });
  }
  return true;
}

// Projections of what is infinite, and all but NaN's own: there is no such point.
template <class T, class Group>
TC_HD bool nothing(const Group& group) {
  group.map([](T, T, int64_t) TC_TERM { return std::numeric_limits<T>::quiet_NaN(); });
  return true;
}

// ||x|| <= radius:  x_i = v_i / (1 + t s_i) = (v_i / s_i) / (t + 1 / s_i).
template <class T, class Group>
TC_HD bool l2_ball(const Group& group, const Penalty& g) {
  const auto square = group.sum([=](T v, T) TC_TERM { return Sums<T>{v * v}; });
  if (!in_range<T>(square.x)) return false;
  if (!(square.x < INFINITY)) return nothing<T>(group);
  if (square.x <= g.lam * g.lam) return true;
  const auto terms = [=](T v, T s) TC_TERM { return Term<T>{v / s, T(1) / s}; };
  const auto moments = group.sum([=](T v, T s) TC_TERM {
    const auto [a, c] = terms(v, s);
    const T aa = a * a;
    return Sums<T>{aa, aa * c, aa * c * c};
  });
  if (!in_range<T>(moments.x)) return false;
  const double t = g.lam == 0 ? INFINITY : secular_root<T>(group, moments, g.lam, terms);
  const T at = static_cast<T>(t);
  group.map([=](T v, T s, int64_t) TC_TERM { return v / (T(1) + at * s); });
  return true;
}

// x = f(v, s), times what makes the sum of |x| the one that is wanted: where these are small
// differences of large numbers, rounding makes it another. Where a group keeps what f gives, the
// sum is that of what was kept: in another loop the compiler may round f otherwise.
template <class T, class Group, class F>
TC_HD void map_to_sum(const Group& group, double wanted, F f) {
  const auto scaled = [&](auto value) TC_TERM {
    const double sum =
        group.sum([=](T v, T s) TC_TERM { return Sums<T>{std::fabs(value(v, s))}; }).x;
    const T factor = sum > 0 ? static_cast<T>(wanted / sum) : T(1);
    group.map([=](T v, T s, int64_t) TC_TERM { return factor * value(v, s); });
  };
  if constexpr (Group::kKeeps) {
    group.map([=](T v, T s, int64_t) TC_TERM { return f(v, s); });
    scaled([](T v, T) TC_TERM { return v; });
  } else {
    scaled(f);
  }
}

// ||x||_1 <= radius:  S(v_i, t s_i).  (Duchi et al., "Efficient projections onto the l1-ball",
// 2008; in the metric the threshold is s_i times one number.)
template <class T, class Group>
TC_HD bool l1_ball(const Group& group, const Penalty& g) {
  const auto norm = group.sum([=](T v, T) TC_TERM { return Sums<T>{std::fabs(v)}; });
  if (!(norm.x < INFINITY)) return sizeof(T) > 4 && nothing<T>(group);
  if (norm.x <= g.lam) return true;
  const double t = g.lam == 0 ? INFINITY : water_level<T>(group, g.lam, [](T v, T s) TC_TERM {
    return Term<T>{std::fabs(v), s};
  });
  const T at = static_cast<T>(t);
  map_to_sum<T>(group, g.lam, [=](T v, T s) TC_TERM { return soft_threshold(v, at * s); });
  return true;
}

// x >= 0, sum x = total:  max(v_i - t s_i, 0).
template <class T, class Group>
TC_HD bool simplex(const Group& group, const Penalty& g) {
  const auto norm = group.sum([=](T v, T) TC_TERM { return Sums<T>{std::fabs(v)}; });
  if (!(norm.x < INFINITY)) return sizeof(T) > 4 && nothing<T>(group);
  const double t =
      g.lam == 0 ? INFINITY
                 : water_level<T>(group, g.lam, [](T v, T s) TC_TERM { return Term<T>{v, s}; });
  const T at = static_cast<T>(t);
  map_to_sum<T>(group, g.lam, [=](T v, T s) TC_TERM { return above(v - at * s, T(0)); });
  return true;
}

// lam max |x_i|:  clip(v_i, -t, t),  sum max(|v_i| - t, 0) / s_i = lam.  (By Moreau from the
// projection on the l1 ball, whose norm is the dual one.)
template <class T, class Group>
TC_HD bool l_inf(const Group& group, const Penalty& g, double bound) {
  if (g.lam == 0) return true;
  const auto norm = group.sum([=](T v, T s) TC_TERM { return Sums<T>{std::fabs(v) / s, v * v}; });
  if (!(norm.x < INFINITY && in_range<T>(1 + norm.y))) return sizeof(T) > 4 && nothing<T>(group);
  const double t = norm.x <= g.lam ? 0 : water_level<T>(group, g.lam, [](T v, T s) TC_TERM {
    const T c = T(1) / s;
    return Term<T>{std::fabs(v) * c, c};
  });
  const T at = static_cast<T>(t);
  map_bounded<T>(group, bound, false, [=](T v, T) TC_TERM { return clip(v, -at, at); });
  return true;
}

// How large v^2 / s is: the bits of its root, as a number >= 0. NaN is the largest.
template <class T>
using Key = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <class T>
TC_HD Key<T> key_of(T v, T s) {
  return std::bit_cast<Key<T>>(std::fabs(v * reciprocal_root(s)));
}

// How many a group of so many keeps: g.lam, or the share g.shape of them.
TC_HD int64_t kept_of(const Penalty& g, int64_t size) {
  if (g.lam > 0) return static_cast<int64_t>(g.lam);
  const auto k = static_cast<int64_t>(std::nearbyint(g.shape * static_cast<double>(size)));
  return k > 1 ? k : 1;
}

// At most k are not 0: the k largest v_i^2 / s_i stay, of equals those of the lowest index. The
// key of the k-th is found bit by bit, and so is the index up to which those that equal it stay.
template <class T, class Group>
TC_HD bool largest(const Group& group, const Penalty& g) {
  const int64_t k = kept_of(g, group.size());
  if (k >= group.size()) return true;
  Key<T> kth = 0;
  for (int bit = 8 * sizeof(T) - 2; bit >= 0; --bit) {
    const Key<T> trial = kth | Key<T>(1) << bit;
    if (group.count([=](T v, T s, int64_t) TC_TERM { return key_of(v, s) >= trial; }) >= k) {
      kth = trial;
    }
  }
  int64_t ties = k - group.count([=](T v, T s, int64_t) TC_TERM { return key_of(v, s) > kth; });
  int64_t until = 0;  // the largest number of elements that hold no more than `ties` ties
  for (int64_t bit = std::bit_floor(static_cast<uint64_t>(group.size())); bit > 0; bit /= 2) {
    const int64_t trial = until + bit;
    if (trial > group.size()) continue;
    if (group.count([=](T v, T s, int64_t i)
                        TC_TERM { return (key_of(v, s) == kth) & (i < trial); }) <= ties) {
      until = trial;
    }
  }
  group.map([=](T v, T s, int64_t i) TC_TERM {
    const Key<T> key = key_of(v, s);
    return (key > kth) | ((key == kth) & (i < until)) ? v : T(0);
  });
  return true;
}

// False where the group is to be computed in double, which then is true.
template <class T, class Group>
TC_HD bool group_prox(const Group& group, const Penalty& g) {
  // The bound is one for each coordinate, and they may take turns.
  const double bound = g.bound * std::sqrt(static_cast<double>(group.size()));
  switch (g.kind) {
    case PenaltyKind::kGroupL2:
      return g.l1 > 0 ? group_l2<T, true>(group, g, bound) : group_l2<T, false>(group, g, bound);
    case PenaltyKind::kLInf:
      return l_inf<T>(group, g, bound);
    case PenaltyKind::kL1Ball:
      return l1_ball<T>(group, g);
    case PenaltyKind::kL2Ball:
      return l2_ball<T>(group, g);
    case PenaltyKind::kSimplex:
      return simplex<T>(group, g);
    case PenaltyKind::kLargest:
      return largest<T>(group, g);
    default:
      return true;
  }
}

}  // namespace torchcalc::math
