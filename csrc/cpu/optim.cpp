#include "ops/optim.h"

#include "cpu/parallel.h"

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

// Penalties as stages: v becomes its prox.

template <math::Prox Kind, class Op>
TC_SIMD void prox(const math::Penalty<Op>& shared, Op* __restrict v, Op step, int64_t n) {
  const auto penalty = shared;
  const auto scaled = penalty.scaled(step);
  for (int64_t i = 0; i < n; ++i) v[i] = penalty.template apply<Kind>(v[i], scaled);
}

template <math::Prox Kind, class Op>
TC_SIMD void prox(const math::Penalty<Op>& shared, Op* __restrict v, const Op* __restrict steps,
                  int64_t n) {
  const auto penalty = shared;
  for (int64_t i = 0; i < n; ++i) {
    v[i] = penalty.template apply<Kind>(v[i], penalty.scaled(steps[i]));
  }
}

// `step`: one for all coordinates, or one for each.
template <class Op, class Step>
void apply_penalty(const math::Penalty<Op>& penalty, Op* v, Step step, int64_t n) {
  math::dispatch_prox(penalty.prox(), [&](auto kind) { prox<kind>(penalty, v, step, n); });
}

// A segment of an array in op-math type: the array itself where that is its type, else a copy.
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

  const opmath_t<T>* read(const T* data, int64_t n) { return read(const_cast<T*>(data), n); }

  void write(T* data, int64_t n) const {
    if constexpr (!kInPlace) store(data, values_, n);
  }

 private:
  static constexpr bool kInPlace = std::is_same_v<T, opmath_t<T>>;
  alignas(64) opmath_t<T> values_[kInPlace ? 1 : kSegment];
};

// f(k, i, n) over segments [i, i + n) of all tensors k, in parallel: few large and many small ones
// alike.
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
    for (int64_t p = first; p < last; ++p) {
      const auto [k, begin, end] = pieces[p];
      for (int64_t i = begin; i < end; i += kSegment) f(k, i, std::min(kSegment, end - i));
    }
  });
}

struct Cpu {
  using Guard = NoGuard;

  template <class T>
  static void sgd(const std::vector<OptimTensor<T>>& tensors, const SgdOptions& options) {
    using Op = opmath_t<T>;
    const auto rule = options.rule<Op>();
    const auto penalty = options.penalty<Op>();
    const auto step = static_cast<Op>(options.prox_step());
    for_each_segment(tensors, [&](size_t k, int64_t i, int64_t n) {
      const OptimTensor<T>& t = tensors[k];
      Segment<T> param, grad, buffer;
      Op* v = param.read(t.param + i, n);
      const Op* g = grad.read(t.grad + i, n);
      if (T* momentum_buffer = t.state[0]) {
        cpu::sgd(rule, v, g, buffer.read(momentum_buffer + i, n), n);
        buffer.write(momentum_buffer + i, n);
      } else {
        cpu::sgd(rule, v, g, n);
      }
      apply_penalty(penalty, v, step, n);
      param.write(t.param + i, n);
    });
  }

  template <class T>
  static void adamw(const std::vector<OptimTensor<T>>& tensors, const AdamWOptions& options) {
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
    const auto penalty = options.penalty<Op>();
    const bool want_steps = options.adaptive && penalty.prox() != math::Prox::kNone;
    for_each_segment(tensors, [&](size_t k, int64_t i, int64_t n) {
      const OptimTensor<T>& t = tensors[k];
      Segment<T> param, grad, exp_avg, exp_avg_sq;
      alignas(64) Op steps[kSegment];
      Op* v = param.read(t.param + i, n);
      dispatch_bool(want_steps, [&](auto want) {
        cpu::adamw(rules[rule_of[k]], v, grad.read(t.grad + i, n), exp_avg.read(t.state[0] + i, n),
                   exp_avg_sq.read(t.state[1] + i, n), steps, n, want);
      });
      if (want_steps) {
        apply_penalty(penalty, v, static_cast<const Op*>(steps), n);
      } else {
        apply_penalty(penalty, v, static_cast<Op>(options.lr), n);
      }
      param.write(t.param + i, n);
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
