#include "ops/optim.h"

#include "cpu/parallel.h"

namespace torchcalc::cpu {
namespace {

template <class T, class Rule>
TC_SIMD void sgd_range(const Rule& shared_rule, T* __restrict param, const T* __restrict grad,
                       T* __restrict buffer, int64_t n) {
  using Op = opmath_t<T>;
  const Rule rule = shared_rule;
  for (int64_t i = 0; i < n; ++i) {
    Op b = buffer ? static_cast<Op>(buffer[i]) : Op(0);
    param[i] = static_cast<T>(rule(static_cast<Op>(param[i]), static_cast<Op>(grad[i]), b));
    if (buffer) buffer[i] = static_cast<T>(b);
  }
}

template <class T, class Rule>
TC_SIMD void adamw_range(const Rule& shared_rule, T* __restrict param, const T* __restrict grad,
                         T* __restrict exp_avg, T* __restrict exp_avg_sq, int64_t n) {
  using Op = opmath_t<T>;
  const Rule rule = shared_rule;
  for (int64_t i = 0; i < n; ++i) {
    Op m = static_cast<Op>(exp_avg[i]), v = static_cast<Op>(exp_avg_sq[i]);
    param[i] = static_cast<T>(rule(static_cast<Op>(param[i]), static_cast<Op>(grad[i]), m, v));
    exp_avg[i] = static_cast<T>(m);
    exp_avg_sq[i] = static_cast<T>(v);
  }
}

// f(k, begin, n) over pieces of all tensors k, in parallel: few large and many small ones alike.
template <class T, class F>
void for_each_piece(const std::vector<OptimTensor<T>>& tensors, F f) {
  struct Piece {
    size_t k;
    int64_t begin, n;
  };
  std::vector<Piece> pieces;
  int64_t total = 0;
  for (size_t k = 0; k < tensors.size(); ++k) {
    total += tensors[k].n;
    for (int64_t begin = 0; begin < tensors[k].n; begin += kGrain) {
      pieces.push_back({k, begin, std::min(kGrain, tensors[k].n - begin)});
    }
  }
  const auto count = static_cast<int64_t>(pieces.size());
  const int64_t grain = total > 0 ? ceil_div(kGrain * count, total) : 1;
  torch::stable::parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) f(pieces[p].k, pieces[p].begin, pieces[p].n);
  });
}

struct Cpu {
  using Guard = NoGuard;

  template <class T>
  static void sgd(const std::vector<OptimTensor<T>>& tensors, const SgdOptions& options,
                  const Tensor&) {
    dispatch_bool(options.momentum != 0, [&](auto momentum) {
      dispatch_bool(options.l1 != 0 || options.l2 != 0, [&](auto penalised) {
        const auto rule = options.rule<opmath_t<T>, momentum, penalised>();
        for_each_piece(tensors, [&](size_t k, int64_t begin, int64_t n) {
          const auto& t = tensors[k];
          sgd_range(rule, t.param + begin, t.grad + begin, momentum ? t.state1 + begin : nullptr,
                    n);
        });
      });
    });
  }

  template <class T>
  static void adamw(const std::vector<OptimTensor<T>>& tensors, const AdamWOptions& options,
                    const Tensor&) {
    dispatch_bool(options.l1 != 0 || options.l2 != 0, [&](auto penalised) {
      // Most often all tensors are at the same step, and two calls of pow serve them all.
      using Rule = math::AdamWRule<opmath_t<T>, penalised>;
      std::vector<Rule> rules;
      rules.reserve(tensors.size());
      float rule_step = 0;
      for (const auto& t : tensors) {
        const float step = *t.step += 1;
        rules.push_back(!rules.empty() && step == rule_step
                            ? rules.back()
                            : options.rule<opmath_t<T>, penalised>(step));
        rule_step = step;
      }
      for_each_piece(tensors, [&](size_t k, int64_t begin, int64_t n) {
        const auto& t = tensors[k];
        adamw_range(rules[k], t.param + begin, t.grad + begin, t.state1 + begin, t.state2 + begin,
                    n);
      });
    });
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("sgd_step", TORCH_BOX(&torchcalc::sgd_step<torchcalc::cpu::Cpu>));
  m.impl("adamw_step", TORCH_BOX(&torchcalc::adamw_step<torchcalc::cpu::Cpu>));
}
