#pragma once

#include <algorithm>
#include <bit>

#include "cuda/octet.cuh"
#include "cuda/reduce.cuh"
#include "ops/args.h"

namespace torchcalc::cuda {

// One octet of the flat matrix for each thread.
template <class Act, class T>
__global__ void __launch_bounds__(kThreads)
    epilogue_kernel(EpilogueArgs<T> args, int64_t total, opmath_t<T> scale, bool aligned) {
  const Octet at = thread_octet(total, aligned);
  if (at.n <= 0) return;
  const auto z = fetch(args.z, at);
  const auto residual = fetch_if(args.residual, at);
  const uint64_t seed = args.threshold > 0 ? *args.seed : 0;
  Values<opmath_t<T>> v;
  unpack(v, z);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) v[j] = Act::template value<arith_t<T>>(v[j]);
  if (args.a) [[unlikely]]
    store(args.a, v, at);
  if (args.threshold > 0) drop(v, Kept(words_of_octet(seed, at), args.threshold), scale);
  if (args.residual) {
    Values<opmath_t<T>> added;
    unpack(added, residual);
    add(v, added);
  }
  store(args.y, v, at);
}

// dz of one octet: stored, and left in v.
template <class Act, int Order, class T, class Op>
__device__ void act_grad_octet(Values<Op>& v, const ActGradArgs<T, Op>& args, Octet at) {
  using Arith = arith_t<T>;
  const auto grad = fetch(args.grad, at);
  const auto saved = fetch_if(args.saved, at);
  const uint64_t seed = args.threshold > 0 ? *args.seed : 0;
  Values<Op> u;
  unpack(u, saved);
  if constexpr (Act::kFromOutput) {
    if (args.saved_scale != Op(1)) {
      TC_UNROLL
      for (int j = 0; j < kOctet; ++j) u[j] = math::unscaled<Act, T, Arith>(u[j], args.saved_scale);
    }
  }
  unpack(v, grad);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) v[j] = Act::template d<Order, Arith>(v[j], u[j]);
  if (args.threshold > 0) drop(v, Kept(words_of_octet(seed, at), args.threshold), args.factor);
  store(args.dz, v, at);
}

// One octet of the flat matrix for each thread.
template <class Act, int Order, class T, class Op>
__global__ void __launch_bounds__(kThreads)
    act_grad_kernel(ActGradArgs<T, Op> args, int64_t total, bool aligned) {
  const Octet at = thread_octet(total, aligned);
  if (at.n <= 0) return;
  Values<Op> v;
  act_grad_octet<Act, Order>(v, args, at);
}

// A block does one chunk of rows and 8 blockDim.x columns of it: a thread holds an octet of columns
// and goes down the rows, and the block's partial sums of dbias go to args.partial.
template <class Act, class T, class Op>
__global__ void __launch_bounds__(kThreads)
    act_bias_grad_kernel(ActGradArgs<T, Op> args, bool aligned) {
  const int64_t block_cols = int64_t{kOctet} * blockDim.x;
  const int64_t blocks_across = ceil_div(args.cols, block_cols);
  const int64_t chunk = blockIdx.x / blocks_across;
  const int64_t first_row = chunk * kRowsPerChunk;
  const int64_t first_col = blockIdx.x % blocks_across * block_cols;
  const auto rows = static_cast<int>(std::min(args.rows - first_row, int64_t{kRowsPerChunk}));
  const auto cols = static_cast<int>(std::min(block_cols, args.cols - first_col));
  const auto [col, n, packed] = octet_at(kOctet * threadIdx.x, cols, aligned);
  Values<Op> sums = {};
  if (n > 0) {
    for (int row = threadIdx.y; row < rows; row += blockDim.y) {
      Values<Op> v;
      act_grad_octet<Act, 1>(v, args, {(first_row + row) * args.cols + first_col + col, n, packed});
      add(sums, v);
    }
  }
  const Op total = sum_over_rows(sums);
  const int thread = threadIdx.x + blockDim.x * threadIdx.y;
  if (thread < cols) args.partial[chunk * args.cols + first_col + thread] = total;
}

// dbias = partial summed over chunks: each thread has one column and every blockDim.y-th chunk.
template <class T, class Op>
__global__ void __launch_bounds__(kThreads) sum_chunks_kernel(ActGradArgs<T, Op> args) {
  const int64_t chunks = row_chunks(args.rows);
  const int64_t first_col = int64_t{blockIdx.x} * blockDim.x;
  const int64_t col = first_col + threadIdx.x;
  Op sum[1] = {};
  if (col < args.cols) {
#pragma unroll 4  // four loads at a time on their way
    for (int64_t chunk = threadIdx.y; chunk < chunks; chunk += blockDim.y) {
      sum[0] += args.partial[chunk * args.cols + col];
    }
  }
  const Op total = sum_over_rows(sum);
  if (threadIdx.y == 0 && col < args.cols) args.dbias[col] = static_cast<T>(total);
}

template <class T>
void epilogue(math::Activation activation, const EpilogueArgs<T>& args, cudaStream_t stream) {
  const int64_t total = args.rows * args.cols;
  math::dispatch_activation(activation, [&]<class Act>(Act) {
    launch(epilogue_kernel<Act, T>, octet_blocks(total), kThreads, stream, args, total,
           static_cast<opmath_t<T>>(math::dropout_scale(args.threshold)),
           are_aligned(args.z, args.y, args.a, args.residual));
  });
}

template <class T, class Op>
void act_grad(math::Activation activation, int64_t order, const ActGradArgs<T, Op>& args,
              cudaStream_t stream) {
  // Eight octets of bf16 are a cache line; where the matrix is narrower, threads go to more rows.
  constexpr int64_t kLine = 8;
  const auto octets = static_cast<unsigned>(std::min(ceil_div(args.cols, kOctet), kLine));
  const unsigned across = std::bit_ceil(octets);
  const dim3 block(across, std::min<unsigned>(kThreads / across, kRowsPerChunk));
  const int64_t total = args.rows * args.cols;
  const bool aligned = are_aligned(args.grad, args.saved, args.dz);
  const bool rows_aligned = aligned && args.cols % Pack<T>::kSize == 0;
  math::dispatch_activation(activation, [&]<class Act>(Act) {
    if (args.dbias) {
      const int64_t blocks = row_chunks(args.rows) * ceil_div(args.cols, int64_t{kOctet} * across);
      launch(act_bias_grad_kernel<Act, T, Op>, blocks, block, stream, args, rows_aligned);
    } else {
      const auto kernel =
          order == 1 ? act_grad_kernel<Act, 1, T, Op> : act_grad_kernel<Act, 2, T, Op>;
      launch(kernel, octet_blocks(total), kThreads, stream, args, total, aligned);
    }
  });
  if (args.dbias) {
    launch(sum_chunks_kernel<T, Op>, ceil_div(args.cols, kLine), dim3(kLine, kThreads / kLine),
           stream, args);
  }
}

}  // namespace torchcalc::cuda
