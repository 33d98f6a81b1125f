#include "ops/prox.h"

#include "cpu/parallel.h"

namespace torchcalc::cpu {
namespace {

template <class T, class Op>
TC_SIMD void prox_range(const ProxArgs<T, Op>& shared, int64_t begin, int64_t end) {
  const auto args = shared;
  for (int64_t i = begin; i < end; ++i) {
    args.y[i] = static_cast<T>(math::prox<Op>(args.x[i], args.l1[i], args.l2[i]));
  }
}

// want1 and want2 tell whether dl1 and dl2 are wanted: as types, they leave no branch in the loop.
template <class T, class Op, class Want1, class Want2>
TC_SIMD void prox_grad_range(const ProxGradArgs<T, Op>& shared, int64_t begin, int64_t end,
                             Want1 want1, Want2 want2) {
  const auto args = shared;
  for (int64_t i = begin; i < end; ++i) {
    const auto d = math::prox_vjp<Op>(args.grad[i], args.x[i], args.l1[i], args.l2[i]);
    args.dx[i] = static_cast<T>(d.x);
    if (want1) args.dl1[i] = static_cast<T>(d.l1);
    if (want2) args.dl2[i] = static_cast<T>(d.l2);
  }
}

template <class T, class Op, class Want1, class Want2>
TC_SIMD void prox_grad_grad_range(const ProxGradGradArgs<T, Op>& shared, int64_t begin, int64_t end,
                                  Want1 want1, Want2 want2) {
  const auto args = shared;
  for (int64_t i = begin; i < end; ++i) {
    const Op cx = args.cx ? static_cast<Op>(args.cx[i]) : Op(0);
    const Op c1 = args.c1 ? static_cast<Op>(args.c1[i]) : Op(0);
    const Op c2 = args.c2 ? static_cast<Op>(args.c2[i]) : Op(0);
    const auto d =
        math::prox_vjp_vjp<Op>(cx, c1, c2, args.grad[i], args.x[i], args.l1[i], args.l2[i]);
    args.dgrad[i] = static_cast<T>(d.g);
    args.dx[i] = static_cast<T>(d.x);
    if (want1) args.dl1[i] = static_cast<T>(d.l1);
    if (want2) args.dl2[i] = static_cast<T>(d.l2);
  }
}

template <class Args>
Args hoisted(Args args) {
  args.l1 = args.l1.hoisted();
  args.l2 = args.l2.hoisted();
  return args;
}

template <class F>
void parallel(int64_t n, F f) {
  torch::stable::parallel_for(0, n, kGrain, f);
}

struct Cpu {
  using Guard = NoGuard;

  template <class Args>
  static void prox(const Args& given) {
    const Args args = hoisted(given);
    parallel(args.n, [&](int64_t begin, int64_t end) { prox_range(args, begin, end); });
  }

  template <class Args>
  static void prox_grad(const Args& given) {
    const Args args = hoisted(given);
    dispatch_bool(args.dl1, [&](auto want1) {
      dispatch_bool(args.dl2, [&](auto want2) {
        parallel(args.n, [&](int64_t begin, int64_t end) {
          prox_grad_range(args, begin, end, want1, want2);
        });
      });
    });
  }

  template <class Args>
  static void prox_grad_grad(const Args& given) {
    const Args args = hoisted(given);
    dispatch_bool(args.dl1, [&](auto want1) {
      dispatch_bool(args.dl2, [&](auto want2) {
        parallel(args.n, [&](int64_t begin, int64_t end) {
          prox_grad_grad_range(args, begin, end, want1, want2);
        });
      });
    });
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("prox", TORCH_BOX(&torchcalc::prox<torchcalc::cpu::Cpu>));
  m.impl("prox_grad", TORCH_BOX(&torchcalc::prox_grad<torchcalc::cpu::Cpu>));
  m.impl("prox_grad_grad", TORCH_BOX(&torchcalc::prox_grad_grad<torchcalc::cpu::Cpu>));
}
