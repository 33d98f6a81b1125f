#include "ops/prox.h"

#include "cpu/parallel.h"

namespace torchcalc::cpu {
namespace {

template <class Op>
TC_SIMD void prox_stage(const Op* __restrict x, const Op* __restrict l1, const Op* __restrict l2,
                        Op* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = math::prox(x[i], l1[i], l2[i]);
}

template <class Op>
TC_SIMD void prox_grad_stage(const Op* __restrict g, const Op* __restrict x,
                             const Op* __restrict l1, const Op* __restrict l2, Op* __restrict dx,
                             Op* __restrict dl1, Op* __restrict dl2, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const auto d = math::prox_vjp(g[i], x[i], l1[i], l2[i]);
    dx[i] = d.x, dl1[i] = d.l1, dl2[i] = d.l2;
  }
}

template <class Op>
TC_SIMD void prox_x_grad_stage(const Op* __restrict g, const Op* __restrict x,
                               const Op* __restrict l1, const Op* __restrict l2, Op* __restrict dx,
                               int64_t n) {
  for (int64_t i = 0; i < n; ++i) dx[i] = math::prox_vjp(g[i], x[i], l1[i], l2[i]).x;
}

template <class Op>
TC_SIMD void prox_grad_grad_stage(const Op* __restrict cx, const Op* __restrict c1,
                                  const Op* __restrict c2, const Op* __restrict g,
                                  const Op* __restrict x, const Op* __restrict l1,
                                  const Op* __restrict l2, Op* __restrict dg, Op* __restrict dx,
                                  Op* __restrict dl1, Op* __restrict dl2, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const auto d = math::prox_vjp_vjp(cx[i], c1[i], c2[i], g[i], x[i], l1[i], l2[i]);
    dg[i] = d.g, dx[i] = d.x, dl1[i] = d.l1, dl2[i] = d.l2;
  }
}

// An array as an input; zeros where it is null.
template <class T, class Op>
Strength<T, Op> array(const T* data) {
  return {data, data != nullptr, Op(0)};
}

struct Cpu {
  using Guard = NoGuard;

  template <class T, class Op>
  static void prox(const ProxArgs<T, Op>& a) {
    map_segments(a.n, std::array{array<T, Op>(a.x), a.l1, a.l2}, std::array{a.y},
                 [](auto in, auto out, int64_t n) { prox_stage(in[0], in[1], in[2], out[0], n); });
  }

  template <class T, class Op>
  static void prox_grad(const ProxGradArgs<T, Op>& a) {
    const std::array inputs{array<T, Op>(a.grad), array<T, Op>(a.x), a.l1, a.l2};
    if (!a.dl1 && !a.dl2) {
      map_segments(a.n, inputs, std::array{a.dx}, [](auto in, auto out, int64_t n) {
        prox_x_grad_stage(in[0], in[1], in[2], in[3], out[0], n);
      });
    } else {
      map_segments(a.n, inputs, std::array{a.dx, a.dl1, a.dl2}, [](auto in, auto out, int64_t n) {
        prox_grad_stage(in[0], in[1], in[2], in[3], out[0], out[1], out[2], n);
      });
    }
  }

  template <class T, class Op>
  static void prox_grad_grad(const ProxGradGradArgs<T, Op>& a) {
    map_segments(a.n,
                 std::array{array<T, Op>(a.cx), array<T, Op>(a.c1), array<T, Op>(a.c2),
                            array<T, Op>(a.grad), array<T, Op>(a.x), a.l1, a.l2},
                 std::array{a.dgrad, a.dx, a.dl1, a.dl2}, [](auto in, auto out, int64_t n) {
                   prox_grad_grad_stage(in[0], in[1], in[2], in[3], in[4], in[5], in[6], out[0],
                                        out[1], out[2], out[3], n);
                 });
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("prox", TORCH_BOX(&torchcalc::prox<torchcalc::cpu::Cpu>));
  m.impl("prox_grad", TORCH_BOX(&torchcalc::prox_grad<torchcalc::cpu::Cpu>));
  m.impl("prox_x_grad", TORCH_BOX(&torchcalc::prox_x_grad<torchcalc::cpu::Cpu>));
  m.impl("prox_grad_grad", TORCH_BOX(&torchcalc::prox_grad_grad<torchcalc::cpu::Cpu>));
}
