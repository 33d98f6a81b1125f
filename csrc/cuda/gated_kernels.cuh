#pragma once

#include <algorithm>

#include "cuda/approximate.cuh"
#include "cuda/mask.cuh"
#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"
#include "math/gated.h"
#include "ops/args.h"

namespace torchcalc::cuda {

// Where z = [g, v] has what belongs to an octet of y: its gates; its values are `cols` behind.
__device__ inline Octet gate_octet(Octet at, int64_t cols) {
  return {at.begin + at.begin / cols * cols, at.n, at.packed};
}

// g = f(g) v.
template <class Arith, class Op>
__device__ void gate(const math::Activation& activation, Values<Op>& g, const Values<Op>& v) {
  math::dispatch_activation<Op>(activation, [&](const auto& act) {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) g[j] = math::gated<Arith>(act, g[j], v[j]);
  });
}

// Gradients take the places of g and v.
template <class Arith, class Op>
__device__ void gate_grad(const math::Activation& activation, const Values<Op>& c, Values<Op>& g,
                          Values<Op>& v) {
  math::dispatch_activation<Op>(activation, [&](const auto& act) {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) {
      const auto [dg, dv] = math::gated_grad<Arith>(act, c[j], g[j], v[j]);
      g[j] = dg;
      v[j] = dv;
    }
  });
}

// And the value that of c.
template <class Arith, class Op>
__device__ void gate_grad_and_value(const math::Activation& activation, Values<Op>& c,
                                    Values<Op>& g, Values<Op>& v) {
  math::dispatch_activation<Op>(activation, [&](const auto& act) {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) {
      const auto [dg, dv] = math::gated_grad<Arith>(act, c[j], g[j], v[j]);
      c[j] = math::gated<Arith>(act, g[j], v[j]);
      g[j] = dg;
      v[j] = dv;
    }
  });
}

// And here those of c, g and v.
template <class Arith, class Op>
__device__ void gate_grad_grad(const math::Activation& activation, const Values<Op>& cg,
                               const Values<Op>& cv, Values<Op>& c, Values<Op>& g, Values<Op>& v) {
  math::dispatch_activation<Op>(activation, [&](const auto& act) {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) {
      const auto [dc, dg, dv] = math::gated_grad_grad<Arith>(act, cg[j], cv[j], c[j], g[j], v[j]);
      c[j] = dc;
      g[j] = dg;
      v[j] = dv;
    }
  });
}

// One octet of y for each thread.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gated_kernel(const __grid_constant__ GatedArgs<T> args, opmath_t<T> scale, unsigned across,
                 bool aligned) {
  const Octet at = thread_octet(args.rows, args.cols, across, aligned);
  if (at.n <= 0) return;
  const OctetMask mask(args.mask, args.mask.plain, args.first, at);
  const Octet z_at = gate_octet(at, args.cols);
  const auto gates = fetch(args.z, z_at), values = fetch(args.z + args.cols, z_at);
  const Kept kept = mask.draw();
  Values<opmath_t<T>> g, v;
  unpack(g, gates);
  unpack(v, values);
  gate<arith_t<T>>(args.activation, g, v);
  if (mask.drops()) drop(g, kept, scale);
  store(args.y, g, at);
}

// dz of one octet of y: stored, and left in g and v. With WithValue, the value as well.
template <bool WithValue, class T, class Op>
__device__ void gated_grad_octet(Values<Op>& g, Values<Op>& v, const GatedGradArgs<T, Op>& args,
                                 Octet at) {
  const OctetMask mask(args.mask, args.mask.plain, args.first, at);
  const Octet z_at = gate_octet(at, args.cols);
  const auto grad = fetch(args.grad, at);
  const auto gates = fetch(args.z, z_at), values = fetch(args.z + args.cols, z_at);
  const Kept kept = mask.draw();
  Values<Op> c;
  unpack(c, grad);
  unpack(g, gates);
  unpack(v, values);
  if constexpr (WithValue) {
    gate_grad_and_value<arith_t<T>>(args.activation, c, g, v);
    if (mask.drops()) drop(c, kept, args.factor);
    store(args.value, c, at);
  } else {
    gate_grad<arith_t<T>>(args.activation, c, g, v);
  }
  if (mask.drops()) {
    drop(g, kept, args.factor);
    drop(v, kept, args.factor);
  }
  store(args.dz, g, z_at);
  store(args.dz + args.cols, v, z_at);
}

// One octet of y for each thread.
template <class T, class Op>
__global__ void __launch_bounds__(kThreads)
    gated_grad_kernel(const __grid_constant__ GatedGradArgs<T, Op> args, unsigned across,
                      bool aligned) {
  const Octet at = thread_octet(args.rows, args.cols, across, aligned);
  if (at.n <= 0) return;
  Values<Op> g, v;
  gated_grad_octet<false>(g, v, args, at);
}

// Blocks of gated_bias_grad_kernel on an SM: with more, it would spill registers.
template <class Op>
constexpr int kGatedBiasBlocks = sizeof(Op) == 4 ? 2 : 1;

// A block does one chunk of rows: a thread holds an octet of columns of y and goes down the rows,
// and the block's partial sums of both bias gradients go to args.partial.
template <bool WithValue, class T, class Op>
__global__ void __launch_bounds__(kThreads, kGatedBiasBlocks<Op>)
    gated_bias_grad_kernel(const __grid_constant__ GatedGradArgs<T, Op> args, unsigned across,
                           bool aligned) {
  const int64_t chunk = blockIdx.x / across, first_row = chunk * kRowsPerChunk;
  const auto rows = static_cast<int>(std::min(args.rows - first_row, int64_t{kRowsPerChunk}));
  const int64_t col = thread_col(across);
  const auto [_, n, packed] = octet_at(col, args.cols, aligned);
  Values<Op> gate_sums = {}, value_sums = {};
  if (n > 0) {
    for (int row = threadIdx.y; row < rows; row += blockDim.y) {
      Values<Op> g, v;
      gated_grad_octet<WithValue>(g, v, args, {(first_row + row) * args.cols + col, n, packed});
      add(gate_sums, g);
      add(value_sums, v);
    }
  }
  const Op gate_total = sum_over_rows(gate_sums);
  __syncthreads();  // the second sum takes the first one's shared memory
  const Op value_total = sum_over_rows(value_sums);
  const int thread = threadIdx.x + blockDim.x * threadIdx.y;
  const int64_t summed = col - kOctet * threadIdx.x + thread;
  if (thread < kOctet * blockDim.x && summed < args.cols) {
    Op* partial = args.partial + chunk * 2 * args.cols + summed;
    partial[0] = gate_total;
    partial[args.cols] = value_total;
  }
}

// One octet of grad for each thread.
template <class T, class Op>
__global__ void __launch_bounds__(kThreads)
    gated_grad_grad_kernel(const __grid_constant__ GatedGradGradArgs<T, Op> args, unsigned across,
                           bool aligned) {
  const Octet at = thread_octet(args.rows, args.cols, across, aligned);
  if (at.n <= 0) return;
  const OctetMask mask(args.mask, args.mask.plain, 0, at);
  const Octet z_at = gate_octet(at, args.cols);
  const auto of_gates = fetch(args.c, z_at), of_values = fetch(args.c + args.cols, z_at);
  const auto grad = fetch(args.grad, at);
  const auto gates = fetch(args.z, z_at), values = fetch(args.z + args.cols, z_at);
  const Kept kept = mask.draw();
  Values<Op> cg, cv, c, g, v;
  unpack(cg, of_gates);
  unpack(cv, of_values);
  unpack(c, grad);
  unpack(g, gates);
  unpack(v, values);
  gate_grad_grad<arith_t<T>>(args.activation, cg, cv, c, g, v);
  if (mask.drops()) {
    drop(c, kept, args.factor);
    drop(g, kept, args.factor);
    drop(v, kept, args.factor);
  }
  store(args.dgrad, c, at);
  store(args.dz, g, z_at);
  store(args.dz + args.cols, v, z_at);
}

template <class T>
void gated(GatedArgs<T> args, cudaStream_t stream) {
  const auto [blocks, block, across] = matrix_grid(args.rows, args.cols, args.cols % kOctet);
  args.mask = mask_of_octets(args.mask, args.first, across == 0);
  launch(gated_kernel<T>, blocks, block, stream, args,
         static_cast<opmath_t<T>>(math::dropout_scale(args.mask.threshold)), across,
         are_aligned(args.z, args.y));
}

template <class T, class Op>
void gated_grad(GatedGradArgs<T, Op> args, cudaStream_t stream) {
  const bool aligned = are_aligned(args.grad, args.z, args.dz, args.value);
  const bool multiples = args.cols % kOctet == 0;
  args.mask = mask_of_octets(args.mask, args.first, multiples);
  if (args.partial) {
    dim3 block = row_block(args.cols);
    block.y = std::min<unsigned>(block.y, kRowsPerChunk);
    const unsigned across = blocks_across(args.cols, block);
    const auto kernel =
        args.value ? gated_bias_grad_kernel<true, T, Op> : gated_bias_grad_kernel<false, T, Op>;
    launch(kernel, row_chunks(args.rows) * across, block, stream, args, across,
           aligned && multiples);
    return;
  }
  const auto [blocks, block, across] = matrix_grid(args.rows, args.cols, !multiples);
  launch(gated_grad_kernel<T, Op>, blocks, block, stream, args, across, aligned);
}

template <class T, class Op>
void gated_grad_grad(GatedGradGradArgs<T, Op> args, cudaStream_t stream) {
  const auto [blocks, block, across] = matrix_grid(args.rows, args.cols, args.cols % kOctet);
  args.mask = mask_of_octets(args.mask, 0, across == 0);
  launch(gated_grad_grad_kernel<T, Op>, blocks, block, stream, args, across,
         are_aligned(args.c, args.grad, args.z, args.dgrad, args.dz));
}

}  // namespace torchcalc::cuda
