#include "ops/optim.h"

#include "cuda/device.h"
#include "cuda/optim_kernels.cuh"

namespace torchcalc::cuda {
namespace {

struct Cuda {
  using Guard = DeviceGuard;

  template <class T>
  static void sgd(const std::vector<OptimTensor<T>>& tensors,
                  const std::vector<GroupLayout>& layouts, const SgdOptions& options) {
    cuda::sgd(tensors, layouts, options, current_stream());
  }

  template <class T>
  static void adamw(const std::vector<OptimTensor<T>>& tensors,
                    const std::vector<GroupLayout>& layouts, const AdamWOptions& options) {
    cuda::adamw(tensors, layouts, options, current_stream());
  }
};

}  // namespace
}  // namespace torchcalc::cuda

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  m.impl("sgd_step", TORCH_BOX(&torchcalc::sgd_step<torchcalc::cuda::Cuda>));
  m.impl("adamw_step", TORCH_BOX(&torchcalc::adamw_step<torchcalc::cuda::Cuda>));
}
