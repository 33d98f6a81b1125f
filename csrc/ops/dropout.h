#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

#include "ops/args.h"
#include "ops/mask.h"

// Input checks and allocation of dropout and dropout_mask, for every device.
namespace torchcalc {

// y = residual + (kept ? scale x + shift : fill), for x of any shape; y is contiguous.
template <class Device>
Tensor dropout(const Tensor& x, const OptionalTensor& residual, const Tensor& seed,
               int64_t threshold, int64_t samples, const OptionalInts& block, int64_t shared,
               double scale, double shift, double fill) {
  constexpr const char* op = "dropout";
  STD_TORCH_CHECK(threshold > 0, op, ": threshold is not positive");
  const Kind kind(x);
  if (residual) check_same(*residual, x, op, "residual");
  const auto mask = checked_mask(seed, threshold, samples, block, shared, x.numel(), kind, op);
  const typename Device::Guard guard(x);
  const Tensor dense = as_contiguous(x), y = empty_like(dense, kind);
  const OptionalTensor added = as_contiguous(residual);
  if (x.numel() == 0) return y;
  dispatch_dtype(x.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    using Op = opmath_t<T>;
    Device::dropout(DropoutArgs<T, Op>{.x = static_cast<const T*>(dense.data_ptr()),
                                       .residual = data_or_null<const T>(added),
                                       .y = static_cast<T*>(y.data_ptr()),
                                       .mask = mask,
                                       .scale = static_cast<Op>(scale),
                                       // -0 keeps the sign of a zero
                                       .shift = static_cast<Op>(shift == 0 ? -0.0 : shift),
                                       .fill = static_cast<Op>(fill),
                                       .n = x.numel()});
  });
  return y;
}

// The mask itself, true where an element is kept, on the seed's device: bool [*shape]; or packed, a
// bit for each element, uint8 [samples, row_bytes(elements of a sample)], without the first
// dimension where there is one sample.
template <class Device>
Tensor dropout_mask(std::vector<int64_t> shape, const Tensor& seed, int64_t threshold,
                    int64_t samples, const OptionalInts& block, bool packed) {
  constexpr const char* op = "dropout_mask";
  STD_TORCH_CHECK(threshold > 0, op, ": threshold is not positive");
  Kind kind(seed);
  int64_t numel = 1;
  for (const int64_t n : shape) {
    STD_TORCH_CHECK(n >= 0 && !__builtin_mul_overflow(numel, n, &numel), op,
                    ": shape is negative or too large");
  }
  const auto mask = checked_mask(seed, threshold, samples, block, 1, numel, kind, op);
  const typename Device::Guard guard(seed);
  kind.dtype = packed ? aoti_torch_dtype_uint8() : aoti_torch_dtype_bool();
  if (packed) {
    const int64_t bytes = samples > 0 ? row_bytes(numel / samples) : 0;
    shape = samples == 1 ? Shape{bytes} : Shape{samples, bytes};
  }
  const Tensor kept = empty(shape, kind);
  if (kept.numel() == 0) return kept;
  if (packed) {
    Device::packed_mask(static_cast<uint8_t*>(kept.data_ptr()), samples, numel / samples, mask);
  } else {
    Device::dropout_mask(static_cast<bool*>(kept.data_ptr()), numel, mask);
  }
  return kept;
}

}  // namespace torchcalc
