#include "ops/mlp.h"

#include "cpu/kernels.h"

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("mlp", TORCH_BOX(&torchcalc::mlp<torchcalc::cpu::Layers>));
  m.impl("mlp_keep", TORCH_BOX(&torchcalc::mlp_keep<torchcalc::cpu::Layers>));
  m.impl("mlp_grad", TORCH_BOX(&torchcalc::mlp_grad<torchcalc::cpu::Layers>));
}
