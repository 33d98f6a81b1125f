#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "cpu/segment.h"

namespace torchcalc::cpu {

// Elements below which another thread costs more than it gains.
constexpr int64_t kGrain = 16 * kSegment;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// f(state, i, n) over segments [i, i + n) of [begin, end), in parallel; each thread makes its
// state.
template <class MakeState, class F>
void for_each_segment(int64_t begin, int64_t end, MakeState make_state, F f) {
  torch::stable::parallel_for(0, ceil_div(end - begin, kSegment), kGrain / kSegment,
                              [&](int64_t first, int64_t last) {
                                auto state = make_state();
                                for (int64_t s = first; s < last; ++s) {
                                  const int64_t i = begin + s * kSegment;
                                  f(state, i, std::min(kSegment, end - i));
                                }
                              });
}

// The CPU needs no device guard.
struct NoGuard {
  explicit NoGuard(const torch::stable::Tensor&) {}
};

}  // namespace torchcalc::cpu
