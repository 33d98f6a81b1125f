#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "cpu/parallel.h"

// What the layers share: the library's GEMM, and the end of bias gradients.
namespace torchcalc::cpu {

struct Linear {
  using Guard = NoGuard;

  // Rows of a product that are added up at a time, whole chunks of them; of one of 16-bit numbers
  // all, because each sum is rounded.
  template <class T>
  static int64_t block_depth(int64_t rows, int64_t cols) {
    return sizeof(T) == 2 ? rows : row_chunks(block_rows(rows, cols)) * kRowsPerChunk;
  }

  // out = x W^T + b, by the library's GEMM: it adds the bias before it rounds, which in bfloat16
  // the epilogue could not.
  static void linear_out(const Tensor& out, const Tensor& x, const Tensor& weight_t,
                         const OptionalTensor& bias) {
    const auto o = out.get(), a = x.get(), w = weight_t.get();
    if (out.dim() == 3) {
      torch_check(bias ? aoti_torch_cpu_baddbmm_out(o, bias->get(), a, w, 1, 1)
                       : aoti_torch_cpu_bmm_out(o, a, w),
                  "linear_act: the matrix products");
    } else {
      torch_check(bias ? aoti_torch_cpu_addmm_out(o, bias->get(), a, w, 1, 1)
                       : aoti_torch_cpu_mm_out(o, a, w),
                  "linear_act: the matrix product");
    }
  }

  // Blocks this high are hardly slower as GEMMs than the whole, and save memory where the product
  // is not kept. Narrow ones are higher, so that there is work for all threads.
  static int64_t block_rows(int64_t, int64_t cols) {
    constexpr int64_t kRows = 2048, kElements = int64_t{1} << 18;
    return std::max(kRows, kElements / std::max<int64_t>(cols, 1));
  }

  // sums = partial [chunks, cols] summed over chunks, in order.
  template <class T, class Op>
  static void sum_chunks(T* sums, const Op* partial, int64_t chunks, int64_t cols) {
    parallel_for(0, ceil_div(cols, kSegment), 1, [&](int64_t first, int64_t last) {
      alignas(64) Op total[kSegment];
      for (int64_t s = first; s < last; ++s) {
        const int64_t col = s * kSegment, n = std::min(kSegment, cols - col);
        std::fill(total, total + n, Op(0));
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          add<Op>(total, partial + chunk * cols + col, n);
        }
        store(sums + col, total, n);
      }
    });
  }
};

}  // namespace torchcalc::cpu
