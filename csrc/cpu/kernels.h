#pragma once

#include "common/dispatch.h"
#include "ops/args.h"

// Kernels that several families call, for every dtype: linear_act.cpp and gated.cpp define them.
namespace torchcalc::cpu {

template <class T>
void epilogue(const EpilogueArgs<T>& args, int64_t begin, int64_t end);

template <class T>
void act_grad(const ActGradArgs<T, opmath_t<T>>& args);

template <class T>
void gated(const GatedArgs<T>& args);

template <class T>
void gated_grad(const GatedGradArgs<T, opmath_t<T>>& args);

}  // namespace torchcalc::cpu
