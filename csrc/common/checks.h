#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "common/dispatch.h"
#include "math/philox.h"

// What every op holds true of its inputs before it touches memory. Python has validated already and
// names arguments in its errors; these checks keep a raw call from reading or writing out of
// bounds.
namespace torchcalc {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.is_cpu() == b.is_cpu() &&
         a.get_device_index() == b.get_device_index();
}

inline void check_like(const Tensor& a, const Tensor& reference, const char* op, const char* name) {
  STD_TORCH_CHECK(a.scalar_type() == reference.scalar_type(), op, ": ", name,
                  " has another dtype than the first input");
  STD_TORCH_CHECK(same_device(a, reference), op, ": ", name,
                  " is on another device than the first input");
}

inline void check_same(const Tensor& a, const Tensor& reference, const char* op, const char* name) {
  check_like(a, reference, op, name);
  STD_TORCH_CHECK(same_shape(a, reference), op, ": ", name,
                  " has another shape than the first input");
}

inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline std::optional<Tensor> as_contiguous(const OptionalTensor& t) {
  return t ? std::optional<Tensor>(as_contiguous(*t)) : std::nullopt;
}

inline Tensor empty_like_with(const Tensor& like, std::initializer_list<int64_t> shape,
                              std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, {shape.begin(), shape.size()},
                                  dtype ? dtype : like.scalar_type());
}

template <class T>
T* data_or_null(const OptionalTensor& t) {
  return t ? static_cast<T*>(t->data_ptr()) : nullptr;
}

// The seed's address, or null where nothing is dropped. It is read where the kernel runs, so that a
// seed on a GPU costs no synchronisation.
inline const int64_t* checked_seed(const OptionalTensor& seed, int64_t threshold,
                                   const Tensor& reference, const char* op) {
  STD_TORCH_CHECK(threshold >= 0 && threshold <= math::kLaneRange, op,
                  ": threshold is not in [0, 65536]");
  if (threshold == 0) return nullptr;
  STD_TORCH_CHECK(seed.has_value(), op, ": dropout needs a seed");
  STD_TORCH_CHECK(seed->numel() == 1 && seed->scalar_type() == ScalarType::Long, op,
                  ": seed is not one int64 element");
  STD_TORCH_CHECK(same_device(*seed, reference), op, ": seed is on another device");
  return static_cast<const int64_t*>(seed->data_ptr());
}

}  // namespace torchcalc
