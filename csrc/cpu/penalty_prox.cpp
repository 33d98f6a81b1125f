#include "ops/penalty_prox.h"

#include "cpu/group_prox.h"
#include "cpu/penalty.h"

namespace torchcalc::cpu {
namespace {

struct Cpu {
  using Guard = NoGuard;

  template <class T, class Op>
  static void penalty_prox(const PenaltyProxArgs<T, Op>& a, const GroupLayout& layout,
                           const Kind&) {
    const auto each = [&](auto f) { for_each_segment(0, a.n, [] { return 0; }, f); };
    if (a.penalty.by_groups()) {
      each([&](int, int64_t i, int64_t n) { std::copy_n(a.v + i, n, a.y + i); });
      return prox_groups(a.penalty, layout, a.y, a.steps, a.step);
    }
    const PenaltyStage<Op> stage(a.penalty);
    each([&](int, int64_t i, int64_t n) {
      alignas(64) Op values[kSegment];
      load(values, a.v + i, n);
      stage(values, a.steps ? a.steps + i : nullptr, a.step, n);
      store(a.y + i, values, n);
    });
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("penalty_prox", TORCH_BOX(&torchcalc::penalty_prox<torchcalc::cpu::Cpu>));
}
