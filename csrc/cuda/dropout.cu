#include "ops/dropout.h"

#include "cuda/device.h"
#include "cuda/dropout_kernels.cuh"

namespace torchcalc::cuda {
namespace {

struct Cuda {
  using Guard = DeviceGuard;

  template <class T>
  static void dropout(const T* x, T* y, int64_t n, const int64_t* seed, int64_t threshold) {
    cuda::dropout(x, y, n, seed, threshold, current_stream());
  }

  static void dropout_mask(bool* mask, int64_t n, const int64_t* seed, int64_t threshold) {
    cuda::dropout_mask(mask, n, seed, threshold, current_stream());
  }
};

}  // namespace
}  // namespace torchcalc::cuda

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  m.impl("dropout", TORCH_BOX(&torchcalc::dropout<torchcalc::cuda::Cuda>));
  m.impl("dropout_mask", TORCH_BOX(&torchcalc::dropout_mask<torchcalc::cuda::Cuda>));
}
