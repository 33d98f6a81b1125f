#include "ops/dropout.h"

#include "cuda/device.h"
#include "cuda/dropout_kernels.cuh"

namespace torchcalc::cuda {
namespace {

struct Cuda {
  using Guard = DeviceGuard;

  template <class T, class Op>
  static void dropout(const DropoutArgs<T, Op>& args) {
    cuda::dropout(args, current_stream());
  }

  static void dropout_mask(bool* mask, int64_t n, const math::MaskArgs& args) {
    cuda::dropout_mask(mask, n, args, current_stream());
  }

  static void packed_mask(uint8_t* bits, int64_t samples, int64_t n, const math::MaskArgs& args) {
    cuda::packed_mask(bits, samples, n, args, current_stream());
  }
};

}  // namespace
}  // namespace torchcalc::cuda

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  m.impl("dropout", TORCH_BOX(&torchcalc::dropout<torchcalc::cuda::Cuda>));
  m.impl("dropout_mask", TORCH_BOX(&torchcalc::dropout_mask<torchcalc::cuda::Cuda>));
}
