#include "ops/optim.h"

#include "cuda/device.h"
#include "cuda/optim_kernels.cuh"

namespace torchcalc::cuda {
namespace {

struct Cuda {
  using Guard = DeviceGuard;

  template <class Rule, class T, class Options>
  static void step(const std::vector<OptimTensor<T>>& tensors,
                   const std::vector<GroupLayout>& layouts, const Options& options,
                   const Kind& kind) {
    optim_step<Rule>(tensors, layouts, options, kind, current_stream());
  }
};

}  // namespace
}  // namespace torchcalc::cuda

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  using torchcalc::cuda::Cuda;
  m.impl("sgd_step", TORCH_BOX(&torchcalc::sgd_step<Cuda>));
  m.impl("adam_step", TORCH_BOX(&torchcalc::adam_step<Cuda>));
  m.impl("adagrad_step", TORCH_BOX(&torchcalc::adagrad_step<Cuda>));
  m.impl("rmsprop_step", TORCH_BOX(&torchcalc::rmsprop_step<Cuda>));
  m.impl("ftrl_step", TORCH_BOX(&torchcalc::ftrl_step<Cuda>));
}
