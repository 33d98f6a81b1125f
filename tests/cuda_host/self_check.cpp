#include "cuda/octet.cuh"
#include "cuda/reduce.cuh"
#include "request.h"

// Kernels made of the project's own helpers that are right, or wrong where they are told to be:
// what the sanitizers and the stand-in find in them they find in the real ones.
using namespace torchcalc::cuda;

#ifndef PLANT_OUT_OF_BOUNDS
#define PLANT_OUT_OF_BOUNDS 0
#endif

constexpr int kRows = 32, kCols = 64;

__global__ void column_sums_kernel(const float* x, float* y) {
  Values<float> v;
  const int col = kOctet * threadIdx.x;
  const int begin = kCols * threadIdx.y + col + PLANT_OUT_OF_BOUNDS;
  unpack(v, fetch(x, {begin, kOctet, are_aligned(x + begin)}));
  const float total = sum_over_rows(v);
  const unsigned thread = threadIdx.x + blockDim.x * threadIdx.y;
  if (thread < kCols) y[thread] = total;
}

__global__ void two_barriers_kernel() {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void answer(Request& request) {
  const std::string op = request.text("op");
  if (op == "two_barriers") {
    launch(two_barriers_kernel, 1, dim3(64), nullptr);
  } else if (op == "too_many_threads") {
    launch(two_barriers_kernel, 1, dim3(2048), nullptr);
  } else {
    launch(column_sums_kernel, 1, dim3(kCols / kOctet, kRows), nullptr, request.input<float>("x"),
           request.output<float>("y", kCols));
  }
}
