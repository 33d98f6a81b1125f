#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "common/checks.h"
#include "cuda/chunks.cuh"
#include "cuda/device.h"

// What the layers share: the library's GEMM, and the end of bias gradients.
namespace torchcalc::cuda {

struct Linear {
  using Guard = DeviceGuard;

  // out = x W^T + b, by the library's GEMM: it adds the bias before it rounds, which in bfloat16
  // the epilogue could not.
  static void linear_out(const Tensor& out, const Tensor& x, const Tensor& weight_t,
                         const OptionalTensor& bias) {
    const auto o = out.get(), a = x.get(), w = weight_t.get();
    if (out.dim() == 3) {
      torch_check(bias ? aoti_torch_cuda_baddbmm_out(o, bias->get(), a, w, 1, 1)
                       : aoti_torch_cuda_bmm_out(o, a, w),
                  "linear_act: the matrix products");
    } else {
      torch_check(bias ? aoti_torch_cuda_addmm_out(o, bias->get(), a, w, 1, 1)
                       : aoti_torch_cuda_mm_out(o, a, w),
                  "linear_act: the matrix product");
    }
  }

  // One GEMM, then one pass over its product.
  static int64_t block_rows(int64_t rows, int64_t) { return rows; }
  template <class T>
  static int64_t block_depth(int64_t rows, int64_t) {
    return rows;
  }

  template <class T, class Op>
  static void sum_chunks(T* sums, const Op* partial, int64_t chunks, int64_t cols) {
    cuda::sum_chunks(sums, partial, chunks, cols, current_stream());
  }
};

}  // namespace torchcalc::cuda
