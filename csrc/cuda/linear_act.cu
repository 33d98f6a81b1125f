#include "ops/linear_act.h"

#include "cuda/device.h"
#include "cuda/linear_act_kernels.cuh"

namespace torchcalc::cuda {
namespace {

struct Cuda {
  using Guard = DeviceGuard;

  // One GEMM, then one pass over its product.
  static int64_t block_rows(int64_t rows) { return rows; }

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
  m.impl("act_grad", TORCH_BOX(&torchcalc::act_grad<torchcalc::cuda::Cuda>));
}
