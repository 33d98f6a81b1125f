// A .cu file, SOURCE, registered for the CPU: its checks, guards, launches and kernels run on CPU
// tensors, in place of the CPU's own.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#define CUDA \
  CPU  // the dispatch key that STABLE_TORCH_LIBRARY_IMPL spells out; torch's headers are in
#include SOURCE
