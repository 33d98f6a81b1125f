#include "ops/prox.h"

#include "cuda/device.h"
#include "cuda/prox_kernels.cuh"

namespace torchcalc::cuda {
namespace {

struct Cuda {
  using Guard = DeviceGuard;

  template <class Args>
  static void prox(const Args& args) {
    cuda::prox(args, current_stream());
  }

  template <class Args>
  static void prox_grad(const Args& args) {
    cuda::prox_grad(args, current_stream());
  }

  template <class Args>
  static void prox_grad_grad(const Args& args) {
    cuda::prox_grad_grad(args, current_stream());
  }
};

}  // namespace
}  // namespace torchcalc::cuda

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  m.impl("prox", TORCH_BOX(&torchcalc::prox<torchcalc::cuda::Cuda>));
  m.impl("prox_grad", TORCH_BOX(&torchcalc::prox_grad<torchcalc::cuda::Cuda>));
  m.impl("prox_x_grad", TORCH_BOX(&torchcalc::prox_x_grad<torchcalc::cuda::Cuda>));
  m.impl("prox_grad_grad", TORCH_BOX(&torchcalc::prox_grad_grad<torchcalc::cuda::Cuda>));
}
