#pragma once

#include "common/macros.h"

namespace torchcalc::math {

template <class T>
TC_HD T polynomial(T, T c) {
  return c;
}

// c0 + c1 x + c2 x^2 + ... by Horner's rule.
template <class T, class... Rest>
TC_HD T polynomial(T x, T c0, T c1, Rest... rest) {
  return c0 + x * polynomial(x, c1, rest...);
}

}  // namespace torchcalc::math
