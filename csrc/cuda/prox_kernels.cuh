#pragma once

#include "cuda/octet.cuh"
#include "ops/args.h"

namespace torchcalc::cuda {

// An output that may be null is not wanted.
template <class T, class Op>
__device__ void store_if(T* p, const Values<Op>& v, Octet at) {
  if (p) store(p, v, at);
}

// The array of a strength for each element, or null.
template <class T, class Op>
TC_HD const T* each(const Strength<T, Op>& strength) {
  return strength.for_each ? strength.data : nullptr;
}

template <class T, class Op>
__device__ Packs<T> fetch(const Strength<T, Op>& strength, Octet at) {
  return fetch_if(each(strength), at);
}

template <class T, class Op>
__device__ void unpack(Values<Op>& v, const Packs<T>& packs, const Strength<T, Op>& strength) {
  if (each(strength)) {
    unpack(v, packs);
  } else {
    const Op all = strength[0];
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) v[j] = all;
  }
}

template <class T, class Op>
__global__ void __launch_bounds__(kThreads) prox_kernel(ProxArgs<T, Op> args, bool aligned) {
  const Octet at = thread_octet(args.n, aligned);
  if (at.n <= 0) return;
  const auto fetched_x = fetch(args.x, at);
  const auto fetched_l1 = fetch(args.l1, at);
  const auto fetched_l2 = fetch(args.l2, at);
  Values<Op> x, l1, l2;
  unpack(x, fetched_x);
  unpack(l1, fetched_l1, args.l1);
  unpack(l2, fetched_l2, args.l2);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) x[j] = math::prox(x[j], l1[j], l2[j]);
  store(args.y, x, at);
}

template <class T, class Op>
__global__ void __launch_bounds__(kThreads)
    prox_grad_kernel(ProxGradArgs<T, Op> args, bool aligned) {
  const Octet at = thread_octet(args.n, aligned);
  if (at.n <= 0) return;
  const auto fetched_g = fetch(args.grad, at);
  const auto fetched_x = fetch(args.x, at);
  const auto fetched_l1 = fetch(args.l1, at);
  const auto fetched_l2 = fetch(args.l2, at);
  Values<Op> g, x, l1, l2;
  unpack(g, fetched_g);
  unpack(x, fetched_x);
  unpack(l1, fetched_l1, args.l1);
  unpack(l2, fetched_l2, args.l2);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) {
    const auto d = math::prox_vjp(g[j], x[j], l1[j], l2[j]);
    x[j] = d.x, l1[j] = d.l1, l2[j] = d.l2;
  }
  store(args.dx, x, at);
  store_if(args.dl1, l1, at);
  store_if(args.dl2, l2, at);
}

template <class T, class Op>
__global__ void __launch_bounds__(kThreads)
    prox_grad_grad_kernel(ProxGradGradArgs<T, Op> args, bool aligned) {
  const Octet at = thread_octet(args.n, aligned);
  if (at.n <= 0) return;
  const auto fetched_cx = fetch_if(args.cx, at);
  const auto fetched_c1 = fetch_if(args.c1, at);
  const auto fetched_c2 = fetch_if(args.c2, at);
  const auto fetched_g = fetch(args.grad, at);
  const auto fetched_x = fetch(args.x, at);
  const auto fetched_l1 = fetch(args.l1, at);
  const auto fetched_l2 = fetch(args.l2, at);
  Values<Op> cx, c1, c2, g, x, l1, l2;
  unpack(cx, fetched_cx);
  unpack(c1, fetched_c1);
  unpack(c2, fetched_c2);
  unpack(g, fetched_g);
  unpack(x, fetched_x);
  unpack(l1, fetched_l1, args.l1);
  unpack(l2, fetched_l2, args.l2);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) {
    const auto d = math::prox_vjp_vjp(cx[j], c1[j], c2[j], g[j], x[j], l1[j], l2[j]);
    g[j] = d.g, x[j] = d.x, l1[j] = d.l1, l2[j] = d.l2;
  }
  store(args.dgrad, g, at);
  store(args.dx, x, at);
  store_if(args.dl1, l1, at);
  store_if(args.dl2, l2, at);
}

template <class T, class Op>
void prox(const ProxArgs<T, Op>& args, cudaStream_t stream) {
  launch(prox_kernel<T, Op>, octet_blocks(args.n), kThreads, stream, args,
         are_aligned(args.x, each(args.l1), each(args.l2), args.y));
}

template <class T, class Op>
void prox_grad(const ProxGradArgs<T, Op>& args, cudaStream_t stream) {
  launch(prox_grad_kernel<T, Op>, octet_blocks(args.n), kThreads, stream, args,
         are_aligned(args.grad, args.x, each(args.l1), each(args.l2), args.dx, args.dl1, args.dl2));
}

template <class T, class Op>
void prox_grad_grad(const ProxGradGradArgs<T, Op>& args, cudaStream_t stream) {
  launch(prox_grad_grad_kernel<T, Op>, octet_blocks(args.n), kThreads, stream, args,
         are_aligned(args.cx, args.c1, args.c2, args.grad, args.x, each(args.l1), each(args.l2),
                     args.dgrad, args.dx, args.dl1, args.dl2));
}

}  // namespace torchcalc::cuda
