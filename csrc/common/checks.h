#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/dispatch.h"
#include "common/errors.h"

// What every op holds true of its inputs before it touches memory. These checks are the gate: what
// they let through is right. Of what they refuse, Python says why, and names the argument.
namespace torchcalc {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Its dtype and device, in one call each to torch.
struct Kind {
  int32_t dtype, device_type, device_index;

  explicit Kind(const Tensor& t) {
    torch_check(aoti_torch_get_dtype(t.get(), &dtype), "reading a dtype");
    torch_check(aoti_torch_get_device_type(t.get(), &device_type), "reading a device");
    torch_check(aoti_torch_get_device_index(t.get(), &device_index), "reading a device");
  }

  bool same_device(const Kind& other) const {
    return device_type == other.device_type && device_index == other.device_index;
  }
  bool operator==(const Kind&) const = default;

  // The same in the type that arithmetic is done in.
  Kind opmath() const {
    Kind kind = *this;
    if (dtype != aoti_torch_dtype_float64()) kind.dtype = aoti_torch_dtype_float32();
    return kind;
  }
};

inline bool same_shape(const Tensor& a, const Tensor& b) {
  const auto m = a.sizes(), n = b.sizes();
  return std::equal(m.begin(), m.end(), n.begin(), n.end());
}

inline void check_like(const Tensor& a, const Kind& reference, const char* op, const char* name) {
  STD_TORCH_CHECK(Kind(a) == reference, op, ": ", name,
                  " has another dtype or device than the first input");
}

inline void check_same(const Tensor& a, const Tensor& reference, const char* op, const char* name) {
  check_like(a, Kind(reference), op, name);
  STD_TORCH_CHECK(same_shape(a, reference), op, ": ", name,
                  " has another shape than the first input");
}

using Shape = std::vector<int64_t>;

inline Shape shape_of(const Tensor& t) { return Shape(t.sizes().begin(), t.sizes().end()); }

inline Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;) {
    strides[d - 1] = strides[d] * std::max<int64_t>(shape[d], 1);
  }
  return strides;
}

// What Python recognizes: it asks torch for as much, to raise what torch does (ops/_autograd.py).
inline std::string no_memory(size_t dim, const int64_t* shape, const Kind& kind) {
  std::string message = "allocating a tensor of [";
  for (size_t d = 0; d < dim; ++d) message += std::to_string(shape[d]) + ", ";
  return message + std::to_string(aoti_torch_dtype_element_size(kind.dtype)) + "] bytes";
}

// As torch::stable::new_empty, without the way by the dispatcher.
inline Tensor empty_strided(size_t dim, const int64_t* shape, const int64_t* strides,
                            const Kind& kind) {
  AtenTensorHandle handle = nullptr;
  const auto error = aoti_torch_empty_strided(static_cast<int64_t>(dim), shape, strides, kind.dtype,
                                              kind.device_type, kind.device_index, &handle);
  if (error != AOTI_TORCH_SUCCESS) torch_check(error, no_memory(dim, shape, kind).c_str());
  return Tensor(handle);
}

inline Tensor empty(const Shape& shape, const Kind& kind) {
  return empty_strided(shape.size(), shape.data(), contiguous_strides(shape).data(), kind);
}

inline Tensor empty_like(const Tensor& contiguous, const Kind& kind) {
  const auto shape = contiguous.sizes(), strides = contiguous.strides();
  return empty_strided(shape.size(), shape.data(), strides.data(), kind);
}

// As torch::stable::contiguous, whose failures lose torch's text.
inline Tensor as_contiguous(const Tensor& t) {
  if (t.is_contiguous()) return t;
  const Tensor copy = empty(shape_of(t), Kind(t));
  torch_check(aoti_torch_copy_(copy.get(), t.get(), 0), "copying a tensor");
  return copy;
}

inline OptionalTensor as_contiguous(const OptionalTensor& t) {
  return t ? OptionalTensor(as_contiguous(*t)) : std::nullopt;
}

inline OptionalTensor empty_if(bool wanted, const Shape& shape, const Kind& kind) {
  if (!wanted) return std::nullopt;
  return empty(shape, kind);
}

// Another view of t's memory, `offset` elements behind its beginning.
inline Tensor view(const Tensor& t, const Shape& shape, const Shape& strides, int64_t offset = 0) {
  AtenTensorHandle handle = nullptr;
  torch_check(aoti_torch__reinterpret_tensor(t.get(), static_cast<int64_t>(shape.size()),
                                             shape.data(), strides.data(), offset, &handle),
              "making a view");
  return Tensor(handle);
}

template <class T>
T* data_or_null(const OptionalTensor& t) {
  return t ? static_cast<T*>(t->data_ptr()) : nullptr;
}

}  // namespace torchcalc
