#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/checks.h"
#include "ops/args.h"
#include "ops/groups.h"
#include "ops/penalty.h"

// Input checks and allocation of penalty_prox, for every device.
namespace torchcalc {

// argmin_x  g(x) + sum (x - v)^2 / (2 step).  `step` has v's shape and the type that arithmetic on
// v is done in; without it, all are step_value. `indexes`: see GroupLayout::make.
template <class Device>
Tensor penalty_prox(const Tensor& v, const OptionalTensor& step, double step_value, int64_t penalty,
                    const std::vector<double>& numbers, int64_t indexes) {
  constexpr const char* op = "penalty_prox";
  const math::Penalty g = checked_penalty(op, penalty, numbers, INFINITY);
  const Kind kind(v);
  const Tensor x = as_contiguous(v);
  const typename Device::Guard guard(x);
  OptionalTensor steps;
  if (step) {
    check_like(*step, kind.opmath(), op, "step");
    STD_TORCH_CHECK(same_shape(*step, v), op, ": step has another shape than v");
    steps = as_contiguous(step);
  }
  GroupLayout layout;
  if (g.by_groups()) {
    const auto sizes = x.sizes();
    const int64_t block =
        g.kind == math::PenaltyKind::kLargest ? static_cast<int64_t>(g.factor) : 0;
    STD_TORCH_CHECK(layout.make(sizes.data(), x.dim(), indexes, block), op,
                    ": v does not fall into the groups of the penalty");
  }
  const Tensor y = empty_like(x, kind);
  if (x.numel() == 0) return y;
  dispatch_dtype(x.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    using Op = opmath_t<T>;
    Device::penalty_prox(
        PenaltyProxArgs<T, Op>{
            .v = static_cast<const T*>(x.data_ptr()),
            .steps = data_or_null<const Op>(steps),
            .step = math::finite(static_cast<Op>(step_value)),
            .y = static_cast<T*>(y.data_ptr()),
            .penalty = g,
            .n = x.numel(),
        },
        layout, kind);
  });
  return y;
}

}  // namespace torchcalc
