#pragma once

#include "cuda/approximate.cuh"
#include "cuda/octet.cuh"
#include "math/activations.h"

// Activations of an octet. Which one is the same for the whole grid: a switch, so that a kernel is
// compiled once and not once for each.
namespace torchcalc::cuda {

// v = f(v).
template <class Arith, class Op>
__device__ void activate(const math::Activation& activation, Values<Op>& v) {
  math::dispatch_activation<Op>(activation, [&](const auto& act) {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) v[j] = act.template value<Arith>(v[j]);
  });
}

// c = c f'(z) and z = f(z).
template <class Arith, class Op>
__device__ void derive_and_activate(const math::Activation& activation, Values<Op>& c,
                                    Values<Op>& z) {
  math::dispatch_activation<Op>(activation, [&](const auto& act) {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) {
      c[j] = act.template d<1, Arith>(c[j], z[j]);
      z[j] = act.template value<Arith>(z[j]);
    }
  });
}

// c = c F_Order(u), where u is what was saved: of an output, scale times it, rounded to T.
template <int Order, class T, class Op>
__device__ void derive(const math::Activation& activation, math::Saved saved_as, Op scale,
                       Values<Op>& c, const Values<Op>& u) {
  using Arith = arith_t<T>;
  const bool is_output = saved_as == math::Saved::kOutput || saved_as == math::Saved::kScaledOutput;
  math::dispatch_activation<Op>(activation, [&]<class Act>(const Act& act) {
    if constexpr (Act::kFromOutput) {
      if (is_output) {
        TC_UNROLL
        for (int j = 0; j < kOctet; ++j) {
          const Op a = math::needs_unscaled<T, Act>(scale)
                           ? math::unscaled<T, Arith>(act, u[j], scale)
                           : u[j];
          c[j] = act.template d_from_output<Order, Arith>(c[j], a);
        }
        return;
      }
    }
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) c[j] = act.template d<Order, Arith>(c[j], u[j]);
  });
}

// A bit for each of n elements, the lowest the first's: whether f is_on at z.
template <class Op>
__device__ uint32_t slopes(const math::Activation& activation, const Values<Op>& z, int n) {
  uint32_t bits = 0;
  math::dispatch_activation<Op>(activation, [&]<class Act>(const Act& act) {
    if constexpr (Act::kTwoSlopes) {
      TC_UNROLL
      for (int j = 0; j < kOctet; ++j) bits |= uint32_t{act.is_on(z[j])} << j;
    }
  });
  return bits & ((1u << n) - 1);
}

// Numbers at which f has the slopes that these bits say.
template <class Op>
__device__ void unpack_slopes(Values<Op>& u, const math::Activation& activation, uint32_t bits) {
  Op on = 0, off = 0;
  math::dispatch_activation<Op>(activation, [&]<class Act>(const Act& act) {
    if constexpr (Act::kTwoSlopes) on = act.representative(true), off = act.representative(false);
  });
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) u[j] = bits >> j & 1 ? on : off;
}

}  // namespace torchcalc::cuda
