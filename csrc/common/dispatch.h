#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>
#include <utility>

namespace torchcalc {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

// The type in which arithmetic on T is done.
template <class T>
struct OpMath {
  using type = float;
};
template <>
struct OpMath<double> {
  using type = double;
};
template <class T>
using opmath_t = typename OpMath<T>::type;

// Calls f(std::type_identity<T>{}) with the C++ type of `dtype`. The one list of dtypes.
template <class F>
decltype(auto) dispatch_dtype(ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(std::type_identity<float>{});
    case ScalarType::Double:
      return f(std::type_identity<double>{});
    case ScalarType::BFloat16:
      return f(std::type_identity<BFloat16>{});
    case ScalarType::Half:
      return f(std::type_identity<Half>{});
    default:
      STD_TORCH_CHECK(false, op, ": dtype is not float32, float64, bfloat16 or float16");
  }
}

// Calls f(std::bool_constant<flag>{}): turns a run-time flag into a template argument.
template <class F>
decltype(auto) dispatch_bool(bool flag, F&& f) {
  return flag ? f(std::true_type{}) : f(std::false_type{});
}

}  // namespace torchcalc
