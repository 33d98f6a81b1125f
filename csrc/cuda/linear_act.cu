#include "ops/linear_act.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "cuda/device.h"
#include "cuda/linear_act_kernels.cuh"

namespace torchcalc::cuda {
namespace {

struct Cuda {
  using Guard = DeviceGuard;

  // out = x W^T + b, by the library's GEMM: it adds the bias before it rounds, which in bfloat16
  // the epilogue could not.
  static void linear_out(const Tensor& out, const Tensor& x, const Tensor& weight_t,
                         const OptionalTensor& bias) {
    torch_check(
        bias ? aoti_torch_cuda_addmm_out(out.get(), bias->get(), x.get(), weight_t.get(), 1, 1)
             : aoti_torch_cuda_mm_out(out.get(), x.get(), weight_t.get()),
        "linear_act: the matrix product");
  }

  // One GEMM, then one pass over its product.
  static int64_t block_rows(int64_t rows, int64_t) { return rows; }

  template <class T>
  static void epilogue(math::Activation activation, const EpilogueArgs<T>& args, int64_t, int64_t) {
    cuda::epilogue(activation, args, current_stream());
  }

  template <class T, class Op>
  static void act_grad(math::Activation activation, int64_t order, const ActGradArgs<T, Op>& args) {
    cuda::act_grad(activation, order, args, current_stream());
  }
};

}  // namespace
}  // namespace torchcalc::cuda

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  m.impl("linear_act", TORCH_BOX(&torchcalc::linear_act<torchcalc::cuda::Cuda>));
  m.impl("linear_act_keep", TORCH_BOX(&torchcalc::linear_act_keep<torchcalc::cuda::Cuda>));
  m.impl("act_grad", TORCH_BOX(&torchcalc::act_grad<torchcalc::cuda::Cuda>));
  m.impl("act_bias_grad", TORCH_BOX(&torchcalc::act_bias_grad<torchcalc::cuda::Cuda>));
}
