#include <type_traits>

#include "common/dispatch.h"
#include "common/macros.h"
#include "math/activations.h"

// Activations and their derivatives for tests/test_activations.py: from the input, from the output,
// or from the bit that tells it.
using namespace torchcalc;

namespace {

enum class Mode { kValue, kFirst, kSecond, kFirstOfOutput, kSecondOfOutput, kFirstOfBit };

template <Mode mode, class Act, class T>
TC_HD T apply(const Act& act, T c, T u) {
  if constexpr (mode == Mode::kValue) return act.value(u);
  if constexpr (mode == Mode::kFirst) return act.template d<1>(c, u);
  if constexpr (mode == Mode::kSecond) return act.template d<2>(c, u);
  if constexpr (Act::kFromOutput && mode == Mode::kFirstOfOutput) {
    return act.template d_from_output<1>(c, u);
  }
  if constexpr (Act::kFromOutput && mode == Mode::kSecondOfOutput) {
    return act.template d_from_output<2>(c, u);
  }
  if constexpr (Act::kTwoSlopes && mode == Mode::kFirstOfBit) {
    return act.template d<1>(c, act.representative(act.is_on(u)));
  }
  return u;
}

template <Mode mode, class Act, class T>
TC_SIMD void loop(const Act& act, T c, T* u, int64_t n) {
  for (int64_t i = 0; i < n; ++i) u[i] = apply<mode>(act, c, u[i]);
}

template <class T>
void sweep(const math::Activation& activation, int64_t mode, T c, T* u, int64_t n) {
  math::dispatch_activation<T>(activation, [&](const auto& act) {
    switch (Mode(mode)) {
      case Mode::kValue:
        return loop<Mode::kValue>(act, c, u, n);
      case Mode::kFirst:
        return loop<Mode::kFirst>(act, c, u, n);
      case Mode::kSecond:
        return loop<Mode::kSecond>(act, c, u, n);
      case Mode::kFirstOfOutput:
        return loop<Mode::kFirstOfOutput>(act, c, u, n);
      case Mode::kSecondOfOutput:
        return loop<Mode::kSecondOfOutput>(act, c, u, n);
      case Mode::kFirstOfBit:
        return loop<Mode::kFirstOfBit>(act, c, u, n);
    }
  });
}

}  // namespace

extern "C" void sweep(int64_t kind, double a, double b, int64_t mode, bool wide, double c, void* u,
                      int64_t n) {
  const math::Activation activation{math::ActivationKind(kind), a, b};
  if (wide) return sweep(activation, mode, c, static_cast<double*>(u), n);
  sweep(activation, mode, static_cast<float>(c), static_cast<float*>(u), n);
}

extern "C" bool output_tells(int64_t kind, double a, double b, bool scaled) {
  return math::output_tells({math::ActivationKind(kind), a, b}, scaled);
}

extern "C" bool has_two_slopes(int64_t kind, double a, double b) {
  return math::has_two_slopes({math::ActivationKind(kind), a, b});
}
