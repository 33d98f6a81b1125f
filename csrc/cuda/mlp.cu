#include "ops/mlp.h"

#include "cuda/kernels.h"

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  m.impl("mlp", TORCH_BOX(&torchcalc::mlp<torchcalc::cuda::Layers>));
  m.impl("mlp_keep", TORCH_BOX(&torchcalc::mlp_keep<torchcalc::cuda::Layers>));
  m.impl("mlp_grad", TORCH_BOX(&torchcalc::mlp_grad<torchcalc::cuda::Layers>));
}
