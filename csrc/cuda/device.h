#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "common/errors.h"

namespace torchcalc::cuda {

// Makes the tensor's device the current one, for as long as it lives.
struct DeviceGuard : torch::stable::accelerator::DeviceGuard {
  explicit DeviceGuard(const torch::stable::Tensor& t)
      : torch::stable::accelerator::DeviceGuard(t.get_device_index()) {}
};

// torch's current stream on the current device.
inline cudaStream_t current_stream() {
  void* stream = nullptr;
  torch_check(aoti_torch_get_current_cuda_stream(
                  torch::stable::accelerator::getCurrentDeviceIndex(), &stream),
              "reading the current stream");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace torchcalc::cuda
