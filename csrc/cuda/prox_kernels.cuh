#pragma once

#include "cuda/octet.cuh"
#include "ops/args.h"

namespace torchcalc::cuda {

// An input that may be null stands for zeros, an output that may be null is not wanted.
template <class T, class Op>
__device__ void load_if(Values<Op>& v, const T* p, Octet at) {
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) v[j] = Op(0);
  if (p) load(v, p + at.begin, at.n);
}

template <class T, class Op>
__device__ void store_if(T* p, const Values<Op>& v, Octet at) {
  if (p) store(p + at.begin, v, at.n);
}

template <class T, class Op>
__device__ void load(Values<Op>& v, const Strength<T, Op>& strength, Octet at) {
  if (strength.data && strength.for_each) {
    load(v, strength.data + at.begin, at.n);
  } else {
    const Op all = strength[0];
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) v[j] = all;
  }
}

template <class T, class Op>
__global__ void __launch_bounds__(kThreads) prox_kernel(ProxArgs<T, Op> args) {
  const Octet at = thread_octet(args.n);
  if (at.n == 0) return;
  Values<Op> x, l1, l2;
  load(x, args.x + at.begin, at.n);
  load(l1, args.l1, at);
  load(l2, args.l2, at);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) x[j] = math::prox(x[j], l1[j], l2[j]);
  store(args.y + at.begin, x, at.n);
}

template <class T, class Op>
__global__ void __launch_bounds__(kThreads) prox_grad_kernel(ProxGradArgs<T, Op> args) {
  const Octet at = thread_octet(args.n);
  if (at.n == 0) return;
  Values<Op> g, x, l1, l2;
  load(g, args.grad + at.begin, at.n);
  load(x, args.x + at.begin, at.n);
  load(l1, args.l1, at);
  load(l2, args.l2, at);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) {
    const auto d = math::prox_vjp(g[j], x[j], l1[j], l2[j]);
    x[j] = d.x, l1[j] = d.l1, l2[j] = d.l2;
  }
  store(args.dx + at.begin, x, at.n);
  store_if(args.dl1, l1, at);
  store_if(args.dl2, l2, at);
}

template <class T, class Op>
__global__ void __launch_bounds__(kThreads) prox_grad_grad_kernel(ProxGradGradArgs<T, Op> args) {
  const Octet at = thread_octet(args.n);
  if (at.n == 0) return;
  Values<Op> cx, c1, c2, g, x, l1, l2;
  load_if(cx, args.cx, at);
  load_if(c1, args.c1, at);
  load_if(c2, args.c2, at);
  load(g, args.grad + at.begin, at.n);
  load(x, args.x + at.begin, at.n);
  load(l1, args.l1, at);
  load(l2, args.l2, at);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) {
    const auto d = math::prox_vjp_vjp(cx[j], c1[j], c2[j], g[j], x[j], l1[j], l2[j]);
    g[j] = d.g, x[j] = d.x, l1[j] = d.l1, l2[j] = d.l2;
  }
  store(args.dgrad + at.begin, g, at.n);
  store(args.dx + at.begin, x, at.n);
  store_if(args.dl1, l1, at);
  store_if(args.dl2, l2, at);
}

template <class T, class Op>
void prox(const ProxArgs<T, Op>& args, cudaStream_t stream) {
  launch(prox_kernel<T, Op>, octet_blocks(args.n), kThreads, stream, args);
}

template <class T, class Op>
void prox_grad(const ProxGradArgs<T, Op>& args, cudaStream_t stream) {
  launch(prox_grad_kernel<T, Op>, octet_blocks(args.n), kThreads, stream, args);
}

template <class T, class Op>
void prox_grad_grad(const ProxGradGradArgs<T, Op>& args, cudaStream_t stream) {
  launch(prox_grad_grad_kernel<T, Op>, octet_blocks(args.n), kThreads, stream, args);
}

}  // namespace torchcalc::cuda
