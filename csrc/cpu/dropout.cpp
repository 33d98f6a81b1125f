#include "ops/dropout.h"

#include "cpu/parallel.h"

namespace torchcalc::cpu {
namespace {

template <class T>
TC_SIMD void drop(T* __restrict y, const T* __restrict x, const uint16_t* __restrict lanes,
                  int32_t threshold, opmath_t<T> scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const opmath_t<T> kept = static_cast<opmath_t<T>>(x[i]) * scale;
    y[i] = static_cast<T>(lanes[i] >= threshold ? kept : opmath_t<T>(0));
  }
}

TC_SIMD void compare(bool* __restrict mask, const uint16_t* __restrict lanes, int32_t threshold,
                     int64_t n) {
  for (int64_t i = 0; i < n; ++i) mask[i] = lanes[i] >= threshold;
}

struct Cpu {
  using Guard = NoGuard;

  template <class T>
  static void dropout(const T* x, T* y, int64_t n, const int64_t* seed, int64_t threshold) {
    const auto scale = static_cast<opmath_t<T>>(math::dropout_scale(threshold));
    for_each_segment(
        0, n, [&] { return Mask(seed, threshold); },
        [&](Mask& mask, int64_t begin, int64_t count) {
          drop(y + begin, x + begin, mask.draw(begin, count), mask.threshold(), scale, count);
        });
  }

  static void dropout_mask(bool* kept, int64_t n, const int64_t* seed, int64_t threshold) {
    for_each_segment(
        0, n, [&] { return Mask(seed, threshold); },
        [&](Mask& mask, int64_t begin, int64_t count) {
          compare(kept + begin, mask.draw(begin, count), mask.threshold(), count);
        });
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("dropout", TORCH_BOX(&torchcalc::dropout<torchcalc::cpu::Cpu>));
  m.impl("dropout_mask", TORCH_BOX(&torchcalc::dropout_mask<torchcalc::cpu::Cpu>));
}
