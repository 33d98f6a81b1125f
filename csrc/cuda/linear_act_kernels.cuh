#pragma once

#include <algorithm>

#include "cuda/activate.cuh"
#include "cuda/mask.cuh"
#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"
#include "ops/args.h"

namespace torchcalc::cuda {

// One octet of the matrix for each thread.
template <class T>
__global__ void __launch_bounds__(kThreads)
    epilogue_kernel(const __grid_constant__ EpilogueArgs<T> args, opmath_t<T> scale,
                    unsigned across, bool aligned) {
  const Octet at = thread_octet(args.rows, args.cols, across, aligned);
  if (at.n <= 0) return;
  const OctetMask mask(args.mask, args.mask.plain, args.first, at);
  const auto z = fetch(args.z, at);
  const auto residual = fetch_if(args.residual, at);
  const Kept kept = mask.draw();
  Values<opmath_t<T>> v;
  unpack(v, z);
  if (args.bits) [[unlikely]]
    args.bits[thread_byte(args.cols, across)] =
        static_cast<uint8_t>(slopes(args.activation, v, at.n));
  activate<arith_t<T>>(args.activation, v);
  if (args.a) [[unlikely]]
    store(args.a, v, at);
  if (mask.drops()) drop(v, kept, scale);
  if (args.residual) {
    Values<opmath_t<T>> added;
    unpack(added, residual);
    add(v, added);
  }
  store(args.y, v, at);
}

// dz of one octet: stored, and left in v. With WithValue, the value as well.
template <int Order, bool WithValue, class T, class Op>
__device__ void act_grad_octet(Values<Op>& v, const ActGradArgs<T, Op>& args, Octet at,
                               int64_t byte) {
  const OctetMask mask(args.mask, args.mask.plain, args.first, at);
  const uint32_t bits = args.bits ? args.bits[byte] : 0;
  const auto grad = fetch(args.grad, at);
  const auto saved = fetch_if(args.saved, at);
  const Kept kept = mask.draw();
  Values<Op> u;
  unpack(u, saved);
  if (args.bits) unpack_slopes(u, args.activation, bits);
  unpack(v, grad);
  if constexpr (WithValue) {
    derive_and_activate<arith_t<T>>(args.activation, v, u);
    if (mask.drops()) drop(u, kept, args.factor);
    store(args.value, u, at);
  } else {
    derive<Order, T>(args.activation, args.saved_as, args.saved_scale, v, u);
  }
  if (mask.drops()) drop(v, kept, args.factor);
  store(args.dz, v, at);
}

// One octet of the matrix for each thread.
template <int Order, class T, class Op>
__global__ void __launch_bounds__(kThreads)
    act_grad_kernel(const __grid_constant__ ActGradArgs<T, Op> args, unsigned across,
                    bool aligned) {
  const Octet at = thread_octet(args.rows, args.cols, across, aligned);
  if (at.n <= 0) return;
  Values<Op> v;
  act_grad_octet<Order, false>(v, args, at, thread_byte(args.cols, across));
}

// Blocks of act_bias_grad_kernel on an SM: with more, it would spill registers.
template <class Op>
constexpr int kBiasBlocks = sizeof(Op) == 4 ? 3 : 1;

// A block does one chunk of rows: a thread holds an octet of columns and goes down the rows, and
// the block's partial sums of dbias go to args.partial, if it is there.
template <bool WithValue, class T, class Op>
__global__ void __launch_bounds__(kThreads, kBiasBlocks<Op>)
    act_bias_grad_kernel(const __grid_constant__ ActGradArgs<T, Op> args, unsigned across,
                         bool aligned) {
  const int64_t chunk = blockIdx.x / across, first_row = chunk * kRowsPerChunk;
  const auto rows = static_cast<int>(std::min(args.rows - first_row, int64_t{kRowsPerChunk}));
  const int64_t col = thread_col(across);
  const auto [_, n, packed] = octet_at(col, args.cols, aligned);
  Values<Op> sums = {};
  if (n > 0) {
    for (int row = threadIdx.y; row < rows; row += blockDim.y) {
      const int64_t begin = (first_row + row) * args.cols + col;
      Values<Op> v;
      act_grad_octet<1, WithValue>(v, args, {begin, n, packed},
                                   (first_row + row) * row_bytes(args.cols) + col / kOctet);
      add(sums, v);
    }
  }
  const Op total = sum_over_rows(sums);
  const int thread = threadIdx.x + blockDim.x * threadIdx.y;
  const int64_t summed = col - kOctet * threadIdx.x + thread;
  if (args.partial && thread < kOctet * blockDim.x && summed < args.cols) {
    args.partial[chunk * args.cols + summed] = total;
  }
}

template <class T>
void epilogue(EpilogueArgs<T> args, cudaStream_t stream) {
  const auto [blocks, block, across] =
      matrix_grid(args.rows, args.cols, args.bits && args.cols % kOctet);
  args.mask = mask_of_octets(args.mask, args.first, across == 0);
  launch(epilogue_kernel<T>, blocks, block, stream, args,
         static_cast<opmath_t<T>>(math::dropout_scale(args.mask.threshold)), across,
         are_aligned(args.z, args.y, args.a, args.residual));
}

template <class T, class Op>
void act_bias_grad(ActGradArgs<T, Op> args, bool aligned, cudaStream_t stream) {
  dim3 block = row_block(args.cols);
  block.y = std::min<unsigned>(block.y, kRowsPerChunk);
  const unsigned across = blocks_across(args.cols, block);
  args.mask = mask_of_octets(args.mask, args.first, args.cols % kOctet == 0);
  const auto kernel =
      args.value ? act_bias_grad_kernel<true, T, Op> : act_bias_grad_kernel<false, T, Op>;
  launch(kernel, row_chunks(args.rows) * across, block, stream, args, across,
         aligned && args.cols % Pack<T>::kSize == 0);
}

template <class T, class Op>
void act_grad(ActGradArgs<T, Op> args, cudaStream_t stream) {
  const bool aligned = are_aligned(args.grad, args.saved, args.dz, args.value);
  if (args.partial || args.value) return act_bias_grad(args, aligned, stream);
  const auto [blocks, block, across] =
      matrix_grid(args.rows, args.cols, args.bits && args.cols % kOctet);
  args.mask = mask_of_octets(args.mask, args.first, across == 0);
  launch(args.order == 1 ? act_grad_kernel<1, T, Op> : act_grad_kernel<2, T, Op>, blocks, block,
         stream, args, across, aligned);
}

}  // namespace torchcalc::cuda
