#include "ops/optim.h"

#include "cpu/group_prox.h"
#include "cpu/parallel.h"
#include "cpu/penalty.h"

namespace torchcalc::cpu {
namespace {

// Update rules as stages: params become v, the plain update.

template <class Op>
TC_SIMD void sgd(const math::SgdRule<Op>& shared, Op* __restrict param, const Op* __restrict grad,
                 int64_t n) {
  const auto rule = shared;
  for (int64_t i = 0; i < n; ++i) param[i] = rule(param[i], grad[i]);
}

template <class Op>
TC_SIMD void sgd(const math::SgdRule<Op>& shared, Op* __restrict param, const Op* __restrict grad,
                 Op* __restrict buffer, int64_t n) {
  const auto rule = shared;
  for (int64_t i = 0; i < n; ++i) {
    Op b = buffer[i];
    param[i] = rule(param[i], grad[i], b);
    buffer[i] = b;
  }
}

// With steps wanted, writes those of the coordinates. (As a type: no branch in the loop.)
template <class Op, class WantSteps>
TC_SIMD void adamw(const math::AdamWRule<Op>& shared, Op* __restrict param,
                   const Op* __restrict grad, Op* __restrict exp_avg, Op* __restrict exp_avg_sq,
                   Op* __restrict steps, int64_t n, WantSteps want_steps) {
  const auto rule = shared;
  for (int64_t i = 0; i < n; ++i) {
    Op m = exp_avg[i], v = exp_avg_sq[i];
    const auto updated = rule(param[i], grad[i], m, v);
    param[i] = updated.v;
    if (want_steps) steps[i] = updated.step;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
  }
}

// Elements of a stage: so few that a core is at work on several stages at a time, and what one
// waits for is hidden behind the others.
constexpr int64_t kStage = 64;

// A step streams through up to five arrays, with arithmetic between that keeps a core from looking
// far ahead by itself: it is told what comes in some stages' time. An address need not exist.
constexpr uintptr_t kAhead = 2048;

template <class T>
void prefetch_behind(const T* data, int64_t n) {
  const auto begin = reinterpret_cast<uintptr_t>(data) + kAhead;
  for (uintptr_t p = begin; p < begin + static_cast<uintptr_t>(n) * sizeof(T); p += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(p));
  }
}

// A stage of an array in op-math type: the array itself where that is its type, else a copy. The
// last use of each array prefetches, so that these requests are spread over update and penalty.
template <class T>
class Segment {
 public:
  opmath_t<T>* read(T* data, int64_t n) {
    if constexpr (kInPlace)
      return data;
    else {
      load(values_, data, n);
      return values_;
    }
  }

  const opmath_t<T>* read(const T* data, int64_t n) {
    prefetch_behind(data, n);
    return read(const_cast<T*>(data), n);
  }

  void write(T* data, int64_t n) const {
    prefetch_behind(data, n);
    if constexpr (!kInPlace) store(data, values_, n);
  }

 private:
  static constexpr bool kInPlace = std::is_same_v<T, opmath_t<T>>;
  alignas(64) opmath_t<T> values_[kInPlace ? 1 : kStage];
};

// f(scratch, k, i, n) over segments [i, i + n) of all tensors k, in parallel: few large and many
// small ones alike. Each thread has its own scratch.
template <class T, class F>
void for_each_segment(const std::vector<OptimTensor<T>>& tensors, F f) {
  struct Piece {
    size_t k;
    int64_t begin, end;
  };
  std::vector<Piece> pieces;
  pieces.reserve(tensors.size());
  int64_t total = 0;
  for (size_t k = 0; k < tensors.size(); ++k) {
    const int64_t n = tensors[k].n;
    total += n;
    for (int64_t begin = 0; begin < n; begin += kGrain) {
      pieces.push_back({k, begin, std::min(begin + kGrain, n)});
    }
  }
  const auto count = static_cast<int64_t>(pieces.size());
  const int64_t grain = total > 0 ? ceil_div(kGrain * count, total) : 1;
  torch::stable::parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
    GroupScratch<opmath_t<T>> scratch;
    for (int64_t p = first; p < last; ++p) {
      const auto [k, begin, end] = pieces[p];
      for (int64_t i = begin; i < end; i += kStage) f(scratch, k, i, std::min(kStage, end - i));
    }
  });
}

// Updates all tensors, and applies the penalty to them: update(k, i, n, v, steps) makes the n
// elements from i on of tensor k the plain update, in v, and writes their steps where that is not
// null. Without `want_steps` they are all `step`.
template <class T, class Update>
void step_all(const std::vector<OptimTensor<T>>& tensors, const std::vector<GroupLayout>& layouts,
              const math::Penalty& penalty, opmath_t<T> step, bool want_steps, Update update) {
  using Op = opmath_t<T>;
  const PenaltyStage<Op> stage(penalty);
  const auto segment = [&](size_t k, int64_t i, int64_t n, Op* steps, auto groups) {
    Segment<T> param;
    Op* const v = param.read(tensors[k].param + i, n);
    update(k, i, n, v, steps);
    stage(v, steps, step, n);
    groups(v);
    param.write(tensors[k].param + i, n);
  };
  // Groups that no stage cuts are within it, and so is their prox.
  const auto is_uncut = [](const GroupLayout& layout) {
    return layout.in_order() && kStage % std::max<int64_t>(layout.size, 1) == 0;
  };
  if (std::all_of(layouts.begin(), layouts.end(), is_uncut)) {  // or there are none
    for_each_segment(tensors, [&](GroupScratch<Op>& scratch, size_t k, int64_t i, int64_t n) {
      alignas(64) Op memory[kStage];
      Op* const steps = want_steps ? memory : nullptr;
      segment(k, i, n, steps, [&](Op* v) {
        if (layouts.empty()) return;
        const int64_t count = n / layouts[k].size;
        prox_some_groups<Op>(penalty, layouts[k], v, steps, step, 0, count, scratch);
      });
    });
    return;
  }
  const auto update_range = [&](size_t k, int64_t begin, int64_t end, Op* steps) {
    for (int64_t i = begin; i < end; i += kStage) {
      segment(k, i, std::min(kStage, end - i), steps ? steps + (i - begin) : nullptr, [](Op*) {});
    }
  };
  for (size_t k = 0; k < tensors.size(); ++k) {
    const GroupLayout& layout = layouts[k];
    if (tensors[k].n == 0) continue;
    T* const w = tensors[k].param;
    if (layout.in_order() && layout.size <= kGrain) {
      // The groups of a stage at a time, of large ones one: their prox finds them in the first
      // cache.
      const int64_t size = layout.size;
      const int64_t block = std::max<int64_t>(1, kStage / size), n = block * size;
      torch::stable::parallel_for(
          0, ceil_div(layout.groups, block), std::max<int64_t>(1, kGrain / n),
          [&](int64_t first, int64_t last) {
            Scratch<Op> scratch;
            GroupScratch<Op> group_scratch;
            for (int64_t b = first; b < last; ++b) {
              const int64_t begin = b * block, count = std::min(block, layout.groups - begin);
              Op* const steps = want_steps ? scratch.of(n) : nullptr;
              update_range(k, begin * size, (begin + count) * size, steps);
              prox_some_groups<T>(penalty, layout, w + begin * size, steps, step, 0, count,
                                  group_scratch);
            }
          });
    } else {
      Scratch<Op> scratch;
      Op* const steps = want_steps ? scratch.of(tensors[k].n) : nullptr;
      cpu::for_each_segment(
          0, tensors[k].n, [] { return 0; },
          [&](int, int64_t i, int64_t n) { update_range(k, i, i + n, steps ? steps + i : steps); });
      prox_groups<T>(penalty, layout, w, steps, step);
    }
  }
}

struct Cpu {
  using Guard = NoGuard;

  template <class T>
  static void sgd(const std::vector<OptimTensor<T>>& tensors,
                  const std::vector<GroupLayout>& layouts, const SgdOptions& options) {
    using Op = opmath_t<T>;
    const auto rule = options.rule<Op>();
    const auto step = static_cast<Op>(options.prox_step());
    step_all(tensors, layouts, options.penalty, step, false,
             [&](size_t k, int64_t i, int64_t n, Op* v, Op*) {
               const OptimTensor<T>& t = tensors[k];
               Segment<T> grad, buffer;
               const Op* g = grad.read(t.grad + i, n);
               if (T* momentum_buffer = t.state[0]) {
                 cpu::sgd(rule, v, g, buffer.read(momentum_buffer + i, n), n);
                 buffer.write(momentum_buffer + i, n);
               } else {
                 cpu::sgd(rule, v, g, n);
               }
             });
  }

  template <class T>
  static void adamw(const std::vector<OptimTensor<T>>& tensors,
                    const std::vector<GroupLayout>& layouts, const AdamWOptions& options) {
    using Op = opmath_t<T>;
    // Most often all tensors are at the same step, and two calls of pow serve them all.
    std::vector<math::AdamWRule<Op>> rules;
    std::vector<size_t> rule_of(tensors.size());
    float rule_step = 0;
    for (size_t k = 0; k < tensors.size(); ++k) {
      const float step = *tensors[k].step += 1;
      if (rules.empty() || step != rule_step) rules.push_back(options.rule<Op>(step));
      rule_step = step;
      rule_of[k] = rules.size() - 1;
    }
    const bool want_steps = options.adaptive && options.penalty.wants_step();
    step_all(tensors, layouts, options.penalty, static_cast<Op>(options.lr), want_steps,
             [&](size_t k, int64_t i, int64_t n, Op* v, Op* steps) {
               const OptimTensor<T>& t = tensors[k];
               Segment<T> grad, exp_avg, exp_avg_sq;
               dispatch_bool(steps != nullptr, [&](auto want) {
                 cpu::adamw(rules[rule_of[k]], v, grad.read(t.grad + i, n),
                            exp_avg.read(t.state[0] + i, n), exp_avg_sq.read(t.state[1] + i, n),
                            steps, n, want);
               });
               exp_avg.write(t.state[0] + i, n);
               exp_avg_sq.write(t.state[1] + i, n);
             });
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("sgd_step", TORCH_BOX(&torchcalc::sgd_step<torchcalc::cpu::Cpu>));
  m.impl("adamw_step", TORCH_BOX(&torchcalc::adamw_step<torchcalc::cpu::Cpu>));
}

// It reads no memory but that of places: the same on every device.
STABLE_TORCH_LIBRARY_IMPL(torchcalc, CompositeExplicitAutograd, m) {
  m.impl("optim_check", TORCH_BOX(&torchcalc::optim_check));
}
