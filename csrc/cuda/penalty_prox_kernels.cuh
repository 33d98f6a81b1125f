#pragma once

#include "cuda/group_prox.cuh"
#include "cuda/octet.cuh"
#include "ops/args.h"

namespace torchcalc::cuda {

// v becomes its prox, with a step for each coordinate. The norms are apart: a kernel that knows all
// penalties takes so many registers that fewer of its blocks run at a time.
template <bool kNorm, class Op>
__device__ void apply_penalty(const math::Penalty& penalty, Values<Op>& v,
                              const Values<Op>& steps) {
  const auto apply = [&](const auto& prox) {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) v[j] = prox(v[j], steps[j]);
  };
  if constexpr (kNorm) {
    math::dispatch_norm<Op>(penalty, apply);
  } else {
    math::dispatch_penalty<Op>(penalty, apply);
  }
}

template <class T, class Op>
__global__ void __launch_bounds__(kThreads)
    penalty_prox_kernel(PenaltyProxArgs<T, Op> args, bool aligned) {
  const Octet at = thread_octet(args.n, aligned);
  if (at.n <= 0) return;
  const auto fetched_v = fetch(args.v, at);
  const auto fetched_steps = fetch_if(args.steps, at);
  Values<Op> v, steps;
  unpack(v, fetched_v);
  unpack(steps, fetched_steps);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) steps[j] = args.steps ? steps[j] : args.step;
  apply_penalty<false>(args.penalty, v, steps);
  store(args.y, v, at);
}

template <class T, class Op>
__global__ void __launch_bounds__(kThreads)
    group_prox_kernel(PenaltyProxArgs<T, Op> args, const __grid_constant__ GroupLayout layout) {
  if (args.steps) {
    prox_groups(args.y, args.penalty, layout, EachStep<Op>{args.steps});
  } else {
    prox_groups(args.y, args.penalty, layout, OneStep<Op>{args.step});
  }
}

template <class T, class Op>
void penalty_prox(const PenaltyProxArgs<T, Op>& args, cudaStream_t stream) {
  launch(penalty_prox_kernel<T, Op>, octet_blocks(args.n), kThreads, stream, args,
         are_aligned(args.v, args.steps, args.y));
}

// y holds v.
template <class T, class Op>
void group_prox(const PenaltyProxArgs<T, Op>& args, const GroupLayout& layout,
                cudaStream_t stream) {
  const GroupGrid grid = group_grid(args.penalty, layout);
  launch(group_prox_kernel<T, Op>, grid.blocks, grid.threads, stream, args, layout);
}

template <class T, class Op>
void total_variation(const PenaltyProxArgs<T, Op>& args, const GroupLayout& layout, double* work,
                     cudaStream_t stream) {
  launch(total_variation_kernel<T, Op>, ceil_div(layout.groups, int64_t{kThreads}), kThreads,
         stream, args.y, args.steps, args.step, layout, args.penalty.lam, work);
}

}  // namespace torchcalc::cuda
