#include "ops/gated.h"

#include "cuda/gated_kernels.cuh"
#include "cuda/kernels.h"

namespace torchcalc::cuda {

#define TC_INSTANTIATE(T)                          \
  template void gated(GatedArgs<T>, cudaStream_t); \
  template void gated_grad(GatedGradArgs<T, opmath_t<T>>, cudaStream_t);
TC_INSTANTIATE(float)
TC_INSTANTIATE(double)
TC_INSTANTIATE(BFloat16)
TC_INSTANTIATE(Half)
#undef TC_INSTANTIATE

namespace {

struct Cuda : Layers {
  template <class T, class Op>
  static void gated_grad_grad(const GatedGradGradArgs<T, Op>& args) {
    cuda::gated_grad_grad(args, current_stream());
  }
};

}  // namespace
}  // namespace torchcalc::cuda

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  m.impl("gated_linear", TORCH_BOX(&torchcalc::gated_linear<torchcalc::cuda::Cuda>));
  m.impl("gated_linear_keep", TORCH_BOX(&torchcalc::gated_linear_keep<torchcalc::cuda::Cuda>));
  m.impl("gated_grad", TORCH_BOX(&torchcalc::gated_grad<torchcalc::cuda::Cuda>));
  m.impl("gated_bias_grad", TORCH_BOX(&torchcalc::gated_bias_grad<torchcalc::cuda::Cuda>));
  m.impl("gated_linear_grad", TORCH_BOX(&torchcalc::gated_linear_grad<torchcalc::cuda::Cuda>));
  m.impl("gated_grad_grad", TORCH_BOX(&torchcalc::gated_grad_grad<torchcalc::cuda::Cuda>));
}
