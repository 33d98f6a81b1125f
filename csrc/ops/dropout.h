#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/checks.h"

// Input checks and allocation of dropout and dropout_mask, for every device.
namespace torchcalc {

// y = kept ? x * 65536 / (65536 - threshold) : 0, for x of any shape; y is contiguous.
template <class Device>
Tensor dropout(const Tensor& x, const Tensor& seed, int64_t threshold) {
  constexpr const char* op = "dropout";
  STD_TORCH_CHECK(threshold > 0, op, ": threshold is not positive");
  const Kind kind(x);
  const int64_t* seed_ptr = checked_seed(seed, threshold, kind, op);
  const typename Device::Guard guard(x);
  const Tensor dense = as_contiguous(x), y = empty_like(dense, kind);
  if (x.numel() == 0) return y;
  dispatch_dtype(x.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    Device::dropout(static_cast<const T*>(dense.data_ptr()), static_cast<T*>(y.data_ptr()),
                    x.numel(), seed_ptr, threshold);
  });
  return y;
}

// The mask itself: bool, true where an element is kept, on the seed's device.
template <class Device>
Tensor dropout_mask(std::vector<int64_t> shape, const Tensor& seed, int64_t threshold) {
  constexpr const char* op = "dropout_mask";
  STD_TORCH_CHECK(threshold > 0, op, ": threshold is not positive");
  Kind kind(seed);
  const int64_t* seed_ptr = checked_seed(seed, threshold, kind, op);
  const typename Device::Guard guard(seed);
  kind.dtype = aoti_torch_dtype_bool();
  const Tensor mask = empty(shape, kind);
  if (mask.numel() > 0) {
    Device::dropout_mask(static_cast<bool*>(mask.data_ptr()), mask.numel(), seed_ptr, threshold);
  }
  return mask;
}

}  // namespace torchcalc
