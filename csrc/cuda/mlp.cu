#include "ops/mlp.h"

#include "cuda/kernels.h"
#include "cuda/linear.h"

namespace torchcalc::cuda {
namespace {

struct Cuda : Linear {
  template <class T>
  static void epilogue(const EpilogueArgs<T>& args) {
    cuda::epilogue(args, current_stream());
  }
  template <class T, class Op>
  static void act_grad(const ActGradArgs<T, Op>& args) {
    cuda::act_grad(args, current_stream());
  }
  template <class T>
  static void gated(const GatedArgs<T>& args) {
    cuda::gated(args, current_stream());
  }
  template <class T, class Op>
  static void gated_grad(const GatedGradArgs<T, Op>& args) {
    cuda::gated_grad(args, current_stream());
  }
};

}  // namespace
}  // namespace torchcalc::cuda

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CUDA, m) {
  m.impl("mlp", TORCH_BOX(&torchcalc::mlp<torchcalc::cuda::Cuda>));
  m.impl("mlp_keep", TORCH_BOX(&torchcalc::mlp_keep<torchcalc::cuda::Cuda>));
  m.impl("mlp_grad", TORCH_BOX(&torchcalc::mlp_grad<torchcalc::cuda::Cuda>));
}
