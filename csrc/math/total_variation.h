#pragma once

#include <cstdint>

#include "common/macros.h"

namespace torchcalc::math {

// Doubles of memory that total_variation needs for a line of n.
TC_HD int64_t total_variation_work(int64_t n) { return 2 * n + 3 * (2 * n + 2); }

// argmin_x  lam sum |x_(i+1) - x_i| + sum (x_i - v_i)^2 / (2 s_i)  over a line, x in place of v.
// Element i of it is stride elements from the first.
//
// By dynamic programming: let M_i(x) be the least that elements 0 to i cost where element i is x.
// Its derivative is piecewise linear and increasing; with the next difference it is clipped to
// [-lam, lam], which it reaches at low_i and high_i. x_i is what lies between them and is nearest
// to x_(i+1). Each step adds two knots and passes by those that are clipped, so it is linear in n.
// A line that is not finite becomes NaN.
// (Johnson, "A dynamic programming algorithm for the fused lasso and L0-segmentation", 2013.)
template <class T, class S>
TC_HD void total_variation(T* v, const S* s, S step, int64_t n, int64_t stride, double lam,
                           double* work) {
  struct Knot {
    double x, slope, offset;  // from x on the derivative is slope x + offset more
  };
  struct Line {
    double slope, offset;
    TC_HD double at(double x) const { return slope * x + offset; }
    TC_HD double reaches(double y) const { return (y - offset) / slope; }
    TC_HD void add(const Knot& k, double sign) {
      slope += sign * k.slope, offset += sign * k.offset;
    }
  };
  double *const low = work, *const high = work + n;
  Knot* const knots = reinterpret_cast<Knot*>(work + 2 * n);
  int64_t first = n, last = n - 1;  // the knots that there are
  Line left{0, 0}, right{0, 0};     // the derivative before the first knot, and behind the last
  double finite = 0;                // else NaN
  const double penalty = s ? lam : lam * static_cast<double>(step);
  if (n == 0 || penalty == 0) return;
  for (int64_t i = 0;; ++i) {
    const double weight = s ? 1 / static_cast<double>(s[i * stride]) : 1;
    const double pull = weight * static_cast<double>(v[i * stride]);
    left.slope += weight, left.offset -= pull;
    right.slope += weight, right.offset -= pull;
    finite += 0 * pull;
    if (i == n - 1) break;
    while (first <= last && left.at(knots[first].x) < -penalty) left.add(knots[first++], 1);
    while (first <= last && right.at(knots[last].x) > penalty) right.add(knots[last--], -1);
    low[i] = left.reaches(-penalty), high[i] = right.reaches(penalty);
    knots[--first] = {low[i], left.slope, left.offset + penalty};
    knots[++last] = {high[i], -right.slope, penalty - right.offset};
    left = {0, -penalty}, right = {0, penalty};
  }
  while (first <= last && left.at(knots[first].x) < 0) left.add(knots[first++], 1);
  double x = left.reaches(0) + finite;
  for (int64_t i = n - 1;; --i) {
    v[i * stride] = static_cast<T>(x);
    if (i == 0) break;
    x = x < low[i - 1] ? low[i - 1] : x;  // NaN stays
    x = x > high[i - 1] ? high[i - 1] : x;
  }
}

}  // namespace torchcalc::math
