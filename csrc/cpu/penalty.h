#pragma once

#include <array>
#include <cstring>
#include <type_traits>

#include "common/macros.h"
#include "math/penalty.h"

namespace torchcalc::cpu {

template <class Prox, class Op>
TC_SIMD void prox_stage(const Prox& shared, Op* __restrict v, Op step, int64_t n) {
  const auto prox = shared;
  for (int64_t i = 0; i < n; ++i) v[i] = prox(v[i], step);
}

template <class Prox, class Op>
TC_SIMD void prox_stage(const Prox& shared, Op* __restrict v, const Op* __restrict steps,
                        int64_t n) {
  const auto prox = shared;
  for (int64_t i = 0; i < n; ++i) v[i] = prox(v[i], steps[i]);
}

// A separable penalty as a stage over a segment: v becomes its prox. Which one is looked up once,
// not for each segment.
template <class Op>
class PenaltyStage {
 public:
  explicit PenaltyStage(const math::Penalty& penalty) {
    math::dispatch_penalty<Op>(penalty, [&]<class Prox>(const Prox& prox) {
      static_assert(sizeof(Prox) <= sizeof(prox_) && std::is_trivially_copyable_v<Prox>);
      std::memcpy(prox_.data(), &prox, sizeof(Prox));
      tag_ = &kTag<Prox>;
      run_ = [](const void* prox, Op* v, const Op* steps, Op step, int64_t n) {
        if (steps) {
          prox_stage(*static_cast<const Prox*>(prox), v, steps, n);
        } else {
          prox_stage(*static_cast<const Prox*>(prox), v, step, n);
        }
      };
    });
  }

  // With a step for each element or, where `steps` is null, one for all.
  void operator()(Op* v, const Op* steps, Op step, int64_t n) const {
    if (run_) run_(prox_.data(), v, steps, step, n);
  }

  // The penalty's functor if it is of this type, else null.
  template <class Prox>
  const Prox* find() const {
    return tag_ == &kTag<Prox> ? reinterpret_cast<const Prox*>(prox_.data()) : nullptr;
  }

 private:
  template <class Prox>
  static constexpr char kTag = 0;  // its address names the type

  alignas(Op) std::array<Op, 10> prox_;
  const char* tag_ = nullptr;
  void (*run_)(const void*, Op*, const Op*, Op, int64_t) = nullptr;
};

}  // namespace torchcalc::cpu
