#include "ops/mlp.h"

#include "cpu/kernels.h"
#include "cpu/linear.h"

namespace torchcalc::cpu {
namespace {

struct Cpu : Linear {
  template <class T>
  static void epilogue(const EpilogueArgs<T>& args) {
    cpu::epilogue(args, 0, args.rows);
  }
  template <class T, class Op>
  static void act_grad(const ActGradArgs<T, Op>& args) {
    cpu::act_grad<T>(args);
  }
  template <class T>
  static void gated(const GatedArgs<T>& args) {
    cpu::gated(args);
  }
  template <class T, class Op>
  static void gated_grad(const GatedGradArgs<T, Op>& args) {
    cpu::gated_grad<T>(args);
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("mlp", TORCH_BOX(&torchcalc::mlp<torchcalc::cpu::Cpu>));
  m.impl("mlp_keep", TORCH_BOX(&torchcalc::mlp_keep<torchcalc::cpu::Cpu>));
  m.impl("mlp_grad", TORCH_BOX(&torchcalc::mlp_grad<torchcalc::cpu::Cpu>));
}
