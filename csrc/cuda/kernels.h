#pragma once

#include <cuda_runtime.h>

#include "common/dispatch.h"
#include "cuda/linear.h"
#include "ops/args.h"

// Launches that several families' ops make, for every dtype: linear_act.cu and gated.cu define
// them; and Layers, by which the ops know them.
namespace torchcalc::cuda {

template <class T>
void epilogue(EpilogueArgs<T> args, cudaStream_t stream);

template <class T, class Op>
void act_grad(ActGradArgs<T, Op> args, cudaStream_t stream);

template <class T>
void gated(GatedArgs<T> args, cudaStream_t stream);

template <class T, class Op>
void gated_grad(GatedGradArgs<T, Op> args, cudaStream_t stream);

struct Layers : Linear {
  template <class T>
  static void epilogue(const EpilogueArgs<T>& args, int64_t, int64_t) {
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

}  // namespace torchcalc::cuda
