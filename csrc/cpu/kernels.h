#pragma once

#include "common/dispatch.h"
#include "cpu/linear.h"
#include "ops/args.h"

// Kernels that several families' ops call, for every dtype: linear_act.cpp and gated.cpp define
// them; and Layers, by which the ops know them.
namespace torchcalc::cpu {

template <class T>
void epilogue(const EpilogueArgs<T>& args, int64_t begin, int64_t end);

template <class T>
void act_grad(const ActGradArgs<T, opmath_t<T>>& args);

template <class T>
void gated(const GatedArgs<T>& args);

template <class T>
void gated_grad(const GatedGradArgs<T, opmath_t<T>>& args);

struct Layers : Linear {
  template <class T>
  static void epilogue(const EpilogueArgs<T>& args, int64_t begin, int64_t end) {
    cpu::epilogue(args, begin, end);
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

}  // namespace torchcalc::cpu
