#include "ops/linear_act.h"

#include "cuda/kernels.h"
#include "cuda/linear_act_kernels.cuh"

namespace torchcalc::cuda {

#define TC_INSTANTIATE(T)                                \
  template void epilogue(EpilogueArgs<T>, cudaStream_t); \
  template void act_grad(ActGradArgs<T, opmath_t<T>>, cudaStream_t);
TC_INSTANTIATE(float)
TC_INSTANTIATE(double)
TC_INSTANTIATE(BFloat16)
TC_INSTANTIATE(Half)
#undef TC_INSTANTIATE

}  // namespace torchcalc::cuda

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  m.impl("linear_act", TORCH_BOX(&torchcalc::linear_act<torchcalc::cuda::Layers>));
  m.impl("linear_act_keep", TORCH_BOX(&torchcalc::linear_act_keep<torchcalc::cuda::Layers>));
  m.impl("act", TORCH_BOX(&torchcalc::act<torchcalc::cuda::Layers>));
  m.impl("act_grad", TORCH_BOX(&torchcalc::act_grad<torchcalc::cuda::Layers>));
  m.impl("act_bias_grad", TORCH_BOX(&torchcalc::act_bias_grad<torchcalc::cuda::Layers>));
  m.impl("linear_act_grad", TORCH_BOX(&torchcalc::linear_act_grad<torchcalc::cuda::Layers>));
}
