#pragma once

#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "math/penalty.h"

namespace torchcalc {

// `penalty` is its number and `numbers` are lam, shape, factor, l1, l2, low, high, as
// math/penalty.h has them.
inline math::Penalty checked_penalty(const char* op, int64_t penalty,
                                     const std::vector<double>& numbers, double bound) {
  STD_TORCH_CHECK(penalty >= 0 && penalty < math::kPenalties, op, ": unknown penalty");
  STD_TORCH_CHECK(numbers.size() == 7, op, ": a penalty has seven numbers");
  const math::Penalty g{static_cast<math::PenaltyKind>(penalty),
                        numbers[0],
                        numbers[1],
                        numbers[2],
                        numbers[3],
                        numbers[4],
                        numbers[5],
                        numbers[6],
                        bound};
  STD_TORCH_CHECK(g.lam >= 0 && g.shape >= 0 && g.factor >= 0 && g.l1 >= 0 && g.l2 >= 0 &&
                      g.low <= g.high && g.bound >= 0,
                  op, ": a number of the penalty is negative or NaN, or low is above high");
  return g;
}

}  // namespace torchcalc
