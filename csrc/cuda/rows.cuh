#pragma once

#include <algorithm>
#include <bit>

#include "cuda/octet.cuh"
#include "ops/args.h"

// How a grid's threads share out a matrix where an octet must not reach over two rows: because it
// is a byte of bits, or because a thread adds up columns. A block does 8 blockDim.x columns of some
// rows; `across` blocks do all columns.
namespace torchcalc::cuda {

// Eight octets of bf16 are a cache line; where the matrix is narrower, threads go to more rows.
constexpr int64_t kLine = 8;

inline dim3 row_block(int64_t cols) {
  const auto octets = static_cast<unsigned>(std::min(ceil_div(cols, kOctet), kLine));
  const unsigned across = std::bit_ceil(octets);
  return dim3(across, kThreads / across);
}

inline unsigned blocks_across(int64_t cols, dim3 block) {
  return static_cast<unsigned>(ceil_div(cols, int64_t{kOctet} * block.x));
}

// The first column of this thread's.
__device__ inline int64_t thread_col(unsigned across) {
  return kOctet * (int64_t{blockIdx.x % across} * blockDim.x + threadIdx.x);
}

// The row of this thread, where each has one.
__device__ inline int64_t thread_row(unsigned across) {
  return int64_t{blockIdx.x / across} * blockDim.y + threadIdx.y;
}

// The octet of this thread in a matrix whose rows are apart; a flat one where across is 0.
__device__ inline Octet thread_octet(int64_t rows, int64_t cols, unsigned across, bool aligned) {
  if (across == 0) return thread_octet(rows * cols, aligned);
  const int64_t row = thread_row(across), col = thread_col(across);
  if (row >= rows || col >= cols) return {0, 0, false};
  return octet_at(row * cols + col, (row + 1) * cols, false);
}

// The number of its byte.
__device__ inline int64_t thread_byte(int64_t cols, unsigned across) {
  if (across == 0) return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  return thread_row(across) * row_bytes(cols) + thread_col(across) / kOctet;
}

// A grid for them.
struct MatrixGrid {
  int64_t blocks;
  dim3 block;
  unsigned across;
};

inline MatrixGrid matrix_grid(int64_t rows, int64_t cols, bool rows_apart) {
  if (!rows_apart) return {octet_blocks(rows * cols), kThreads, 0};
  const dim3 block = row_block(cols);
  const unsigned across = blocks_across(cols, block);
  return {ceil_div(rows, int64_t{block.y}) * across, block, across};
}

}  // namespace torchcalc::cuda
