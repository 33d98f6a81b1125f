#include "ops/penalty_prox.h"

#include "cuda/device.h"
#include "cuda/penalty_prox_kernels.cuh"

namespace torchcalc::cuda {
namespace {

struct Cuda {
  using Guard = DeviceGuard;

  template <class T, class Op>
  static void penalty_prox(const PenaltyProxArgs<T, Op>& args, const GroupLayout& layout,
                           const Kind& kind) {
    const cudaStream_t stream = current_stream();
    PenaltyProxArgs<T, Op> copy = args;
    copy.penalty = {};  // that of 0, whose prox is v
    if (!args.penalty.by_groups()) return cuda::penalty_prox(args, stream);
    cuda::penalty_prox(copy, stream);
    if (args.penalty.kind != math::PenaltyKind::kTotalVariation) {
      return cuda::group_prox(args, layout, stream);
    }
    Kind doubles = kind;
    doubles.dtype = aoti_torch_dtype_float64();
    const Tensor work = empty({layout.groups * math::total_variation_work(layout.size)}, doubles);
    cuda::total_variation(args, layout, static_cast<double*>(work.data_ptr()), stream);
  }
};

}  // namespace
}  // namespace torchcalc::cuda

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  m.impl("penalty_prox", TORCH_BOX(&torchcalc::penalty_prox<torchcalc::cuda::Cuda>));
}
