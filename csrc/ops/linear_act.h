#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "common/checks.h"
#include "ops/args.h"

// Input checks, allocation and the GEMM of linear_act and its gradients, for every device.
namespace torchcalc {

// t [*, cols] as a matrix: itself, a view, or a copy where its strides allow none.
inline Tensor as_matrix(const Tensor& t) {
  if (t.dim() == 2) return t;
  const Tensor dense = as_contiguous(t);
  const int64_t cols = t.size(t.dim() - 1);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) rows *= t.size(d);
  return view(dense, {rows, cols}, {cols, 1});
}

inline Tensor rows_of(const Tensor& matrix, int64_t begin, int64_t count) {
  const auto strides = matrix.strides();
  return view(matrix, {count, matrix.size(1)}, {strides[0], strides[1]}, begin * strides[0]);
}

inline math::Activation checked_activation(int64_t activation, const char* op) {
  STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(math::Activation::kSigmoid),
                  op, ": unknown activation");
  return static_cast<math::Activation>(activation);
}

struct LinearActResult {
  Tensor y;
  OptionalTensor kept;
};

// y = residual + dropout(f(x W^T + b)).  x [*, K], weight [N, K], bias [N], residual and y [*, N].
// The GEMM and `Device`'s epilogue take turns, Device::block_rows(M, N) rows at a time. With `keep`
// also what the derivative is told by: a where f' can be told from it, else z.
template <class Device>
LinearActResult linear_act_into(const char* op, const Tensor& x, const Tensor& weight,
                                const OptionalTensor& bias, const OptionalTensor& residual,
                                const OptionalTensor& seed, int64_t activation, int64_t threshold,
                                bool keep) {
  const Kind kind(x);
  STD_TORCH_CHECK(x.dim() > 0 && weight.dim() == 2, op, ": x or weight has too few dimensions");
  Shape shape = shape_of(x);
  const int64_t inner = weight.size(1), cols = weight.size(0);
  STD_TORCH_CHECK(shape.back() == inner, op, ": x and weight differ in their last dimension");
  check_like(weight, kind, op, "weight");
  shape.back() = cols;
  if (bias) {
    check_like(*bias, kind, op, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == cols, op, ": bias has another size");
  }
  if (residual) {
    check_like(*residual, kind, op, "residual");
    STD_TORCH_CHECK(shape_of(*residual) == shape, op, ": residual has another shape than y");
  }
  const auto f = checked_activation(activation, op);
  const int64_t* seed_ptr = checked_seed(seed, threshold, kind, op);
  const typename Device::Guard guard(x);

  const Tensor y = empty(shape, kind);
  const OptionalTensor kept = empty_if(keep, shape, kind);
  if (y.numel() == 0) return {y, kept};

  const bool keep_z = keep && !math::derivative_from_output(f);
  const OptionalTensor added = as_contiguous(residual);
  const Tensor rows_x = as_matrix(x), z = as_matrix(keep_z ? *kept : y);
  const Tensor weight_t = view(weight, {inner, cols}, {weight.stride(1), weight.stride(0)});
  const int64_t rows = z.size(0), block = Device::block_rows(rows, cols);
  const bool has_epilogue = f != math::Activation::kIdentity || residual || threshold > 0 || keep;
  dispatch_dtype(x.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    const EpilogueArgs<T> args{
        .z = static_cast<const T*>(z.data_ptr()),
        .y = static_cast<T*>(y.data_ptr()),
        .a = keep && !keep_z ? static_cast<T*>(kept->data_ptr()) : nullptr,
        .residual = data_or_null<const T>(added),
        .seed = seed_ptr,
        .threshold = threshold,
        .rows = rows,
        .cols = cols,
    };
    for (int64_t begin = 0; begin < rows; begin += block) {
      const int64_t count = std::min(block, rows - begin);
      if (count == rows) {
        Device::linear_out(z, rows_x, weight_t, bias);
      } else {
        Device::linear_out(rows_of(z, begin, count), rows_of(rows_x, begin, count), weight_t, bias);
      }
      if (has_epilogue) Device::epilogue(f, args, begin, begin + count);
    }
  });
  return {y, kept};
}

template <class Device>
Tensor linear_act(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& residual, const OptionalTensor& seed, int64_t activation,
                  int64_t threshold) {
  return linear_act_into<Device>("linear_act", x, weight, bias, residual, seed, activation,
                                 threshold, false)
      .y;
}

template <class Device>
std::tuple<Tensor, Tensor> linear_act_keep(const Tensor& x, const Tensor& weight,
                                           const OptionalTensor& bias,
                                           const OptionalTensor& residual,
                                           const OptionalTensor& seed, int64_t activation,
                                           int64_t threshold) {
  const auto [y, kept] = linear_act_into<Device>("linear_act_keep", x, weight, bias, residual, seed,
                                                 activation, threshold, true);
  return {y, *kept};
}

struct ActGradResult {
  Tensor dz;
  OptionalTensor dbias;
};

// One pass: dz = mask(factor * F_order(u) * grad) and, if asked, dbias = dz summed over rows.
// grad, saved [*, N]; saved is what linear_act_keep kept, or with `scaled` y itself (u = y /
// scale), and may be absent where the activation needs none.
template <class Device>
ActGradResult act_grad_into(const char* op, const Tensor& grad, const OptionalTensor& saved,
                            const OptionalTensor& seed, int64_t activation, int64_t order,
                            int64_t threshold, bool scaled, bool bias_grad) {
  const Kind kind(grad);
  STD_TORCH_CHECK(grad.dim() > 0, op, ": grad has no dimension");
  STD_TORCH_CHECK(order == 1 || order == 2, op, ": order is not 1 or 2");
  const auto f = checked_activation(activation, op);
  STD_TORCH_CHECK(saved || f == math::Activation::kIdentity, op, ": saved is missing");
  if (saved) check_same(*saved, grad, op, "saved");
  const int64_t* seed_ptr = checked_seed(seed, threshold, kind, op);
  const typename Device::Guard guard(grad);

  const Tensor g = as_contiguous(grad);
  const OptionalTensor kept = as_contiguous(saved);
  const int64_t cols = g.size(g.dim() - 1), rows = cols > 0 ? g.numel() / cols : 0;
  const Tensor dz = empty_like(g, kind);
  const OptionalTensor dbias = empty_if(bias_grad, {cols}, kind);
  const OptionalTensor partial = empty_if(bias_grad, {row_chunks(rows), cols}, kind.opmath());
  // y = scale * a: its derivatives take one power of the scale less for each order.
  const double scale = math::dropout_scale(threshold);
  dispatch_dtype(grad.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    using Op = opmath_t<T>;
    const ActGradArgs<T, Op> args{
        .grad = static_cast<const T*>(g.data_ptr()),
        .saved = data_or_null<const T>(kept),
        .dz = static_cast<T*>(dz.data_ptr()),
        .dbias = data_or_null<T>(dbias),
        .partial = data_or_null<Op>(partial),
        .seed = seed_ptr,
        .threshold = threshold,
        .rows = rows,
        .cols = cols,
        .factor = static_cast<Op>(scaled && order == 2 ? 1.0 : scale),
        .saved_scale = static_cast<Op>(scaled && scale > 0 ? scale : 1.0),
    };
    if (cols > 0) Device::act_grad(f, order, args);
  });
  return {dz, dbias};
}

template <class Device>
Tensor act_grad(const Tensor& grad, const OptionalTensor& saved, const OptionalTensor& seed,
                int64_t activation, int64_t order, int64_t threshold, bool scaled) {
  return act_grad_into<Device>("act_grad", grad, saved, seed, activation, order, threshold, scaled,
                               false)
      .dz;
}

template <class Device>
std::tuple<Tensor, Tensor> act_bias_grad(const Tensor& grad, const OptionalTensor& saved,
                                         const OptionalTensor& seed, int64_t activation,
                                         int64_t threshold, bool scaled) {
  const auto [dz, dbias] = act_grad_into<Device>("act_bias_grad", grad, saved, seed, activation, 1,
                                                 threshold, scaled, true);
  return {dz, *dbias};
}

}  // namespace torchcalc
