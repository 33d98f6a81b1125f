#pragma once

#include <cuda_runtime.h>

#include "common/dispatch.h"
#include "ops/args.h"

// Launches that several families' ops make, for every dtype: linear_act.cu and gated.cu define
// them.
namespace torchcalc::cuda {

template <class T>
void epilogue(EpilogueArgs<T> args, cudaStream_t stream);

template <class T, class Op>
void act_grad(ActGradArgs<T, Op> args, cudaStream_t stream);

template <class T>
void gated(GatedArgs<T> args, cudaStream_t stream);

template <class T, class Op>
void gated_grad(GatedGradArgs<T, Op> args, cudaStream_t stream);

}  // namespace torchcalc::cuda
