#include "ops/prox.h"

#include "cpu/parallel.h"

namespace torchcalc::cpu {
namespace {

template <class Args>
TC_SIMD void prox_range(const Args& shared, int64_t begin, int64_t end) {
  const Args args = shared;
  for (int64_t i = begin; i < end; ++i) prox_element(args, i);
}

template <class Args>
TC_SIMD void prox_grad_range(const Args& shared, int64_t begin, int64_t end) {
  const Args args = shared;
  for (int64_t i = begin; i < end; ++i) prox_grad_element(args, i);
}

template <class Args>
TC_SIMD void prox_grad_grad_range(const Args& shared, int64_t begin, int64_t end) {
  const Args args = shared;
  for (int64_t i = begin; i < end; ++i) prox_grad_grad_element(args, i);
}

template <auto range, class Args>
void run(const Args& args) {
  torch::stable::parallel_for(0, args.n, kGrain,
                              [&](int64_t begin, int64_t end) { range(args, begin, end); });
}

struct Cpu {
  using Guard = NoGuard;

  template <class Args>
  static void prox(const Args& args) {
    run<&prox_range<Args>>(args);
  }

  template <class Args>
  static void prox_grad(const Args& args) {
    run<&prox_grad_range<Args>>(args);
  }

  template <class Args>
  static void prox_grad_grad(const Args& args) {
    run<&prox_grad_grad_range<Args>>(args);
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("prox", TORCH_BOX(&torchcalc::prox<torchcalc::cpu::Cpu>));
  m.impl("prox_grad", TORCH_BOX(&torchcalc::prox_grad<torchcalc::cpu::Cpu>));
  m.impl("prox_grad_grad", TORCH_BOX(&torchcalc::prox_grad_grad<torchcalc::cpu::Cpu>));
}
