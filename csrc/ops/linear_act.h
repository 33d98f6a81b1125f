#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "common/checks.h"
#include "ops/args.h"
#include "ops/mask.h"

// Input checks, allocation and the GEMM of linear_act and its gradients, for every device.
namespace torchcalc {

// t [*, cols] as a matrix: itself, a view, or a copy where its strides allow none.
inline Tensor as_matrix(const Tensor& t) {
  const int64_t dim = t.dim();
  if (dim == 2) return t;
  const auto sizes = t.sizes(), strides = t.strides();
  const int64_t cols = sizes[dim - 1];
  int64_t rows = 1, step = cols;  // elements from a row to the next
  bool fits = true;
  for (int64_t d = dim - 2; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (rows == 1) step = strides[d];
    fits = fits && strides[d] == step * rows;
    rows *= sizes[d];
  }
  if (fits) return view(t, {rows, cols}, {step, strides[dim - 1]});
  return view(as_contiguous(t), {rows, cols}, {cols, 1});
}

inline Tensor rows_of(const Tensor& matrix, int64_t begin, int64_t count) {
  const auto strides = matrix.strides();
  return view(matrix, {count, matrix.size(1)}, {strides[0], strides[1]}, begin * strides[0]);
}

inline math::Activation checked_activation(int64_t kind, double a, double b, const char* op) {
  STD_TORCH_CHECK(kind >= 0 && kind < math::kActivations, op, ": unknown activation");
  return {static_cast<math::ActivationKind>(kind), a, b};
}

// The last two dimensions changed places.
inline Tensor transposed(const Tensor& t) {
  Shape shape = shape_of(t), strides(t.strides().begin(), t.strides().end());
  std::iter_swap(shape.end() - 1, shape.end() - 2);
  std::iter_swap(strides.end() - 1, strides.end() - 2);
  return view(t, shape, strides);
}

// The shape of x W^T + b, x being of this one, whose arguments are checked. x [*, K], weight [N,
// K], bias [N]; or, a product for each of B, x [B, M, K], weight [B, N, K], bias [B, N].
inline Shape checked_linear(const char* op, Shape shape, const Tensor& weight,
                            const OptionalTensor& bias, const Kind& kind) {
  const int64_t dim = weight.dim();
  STD_TORCH_CHECK(!shape.empty() && (dim == 2 || (dim == 3 && shape.size() == 3)), op,
                  ": x or weight has another number of dimensions");
  STD_TORCH_CHECK(shape.back() == weight.size(dim - 1), op,
                  ": x and weight differ in their last dimension");
  STD_TORCH_CHECK(dim == 2 || shape[0] == weight.size(0), op,
                  ": x and weight differ in their first dimension");
  check_like(weight, kind, op, "weight");
  shape.back() = weight.size(dim - 2);
  if (bias) {
    check_like(*bias, kind, op, "bias");
    STD_TORCH_CHECK(bias->dim() == dim - 1 && bias->size(dim - 2) == shape.back() &&
                        (dim == 2 || bias->size(0) == shape[0]),
                    op, ": bias has another size");
  }
  return shape;
}

// The bias of each product of a batch as a row; that of one product as it is.
inline OptionalTensor bias_rows(const OptionalTensor& bias) {
  if (!bias || bias->dim() == 1) return bias;
  return view(*bias, {bias->size(0), 1, bias->size(1)}, {bias->stride(0), 0, bias->stride(1)});
}

// dz W in `shape`, or nothing without W: the gradient of x in z = x W^T. dz [rows, N], W [N, K],
// both checked.
template <class Device>
Tensor input_grad(const Tensor& dz, const OptionalTensor& weight, Shape shape, const Kind& kind) {
  if (!weight) return empty({0}, kind);
  shape.back() = weight->size(1);
  const Tensor dx = empty(shape, kind);
  Device::linear_out(as_matrix(dx), dz, *weight, std::nullopt);
  return dx;
}

// A matrix like `weight`, also in memory if that is the transpose of a contiguous one: else
// autograd would copy its gradient into that order.
inline Tensor empty_as(const Tensor& weight, const Kind& kind) {
  const int64_t rows = weight.size(0), cols = weight.size(1);
  const bool by_columns = weight.stride(0) == 1 && weight.stride(1) == rows && rows > 1;
  return by_columns ? transposed(empty({cols, rows}, kind)) : empty({rows, cols}, kind);
}

// dz^T x, or nothing without x: the gradient of W there. dz [rows, N], x [rows, K], both checked,
// as W is, where it is given.
template <class Device>
Tensor weight_grad(const Tensor& dz, const OptionalTensor& x, const OptionalTensor& weight,
                   const Kind& kind) {
  if (!x) return empty({0}, kind);
  const Tensor dweight = weight ? empty_as(*weight, kind) : empty({dz.size(1), x->size(1)}, kind);
  Device::linear_out(dweight, transposed(dz), *x, std::nullopt);
  return dweight;
}

// Refuses what is no factor of z = x W^T where z is like dz.
inline void check_factors(const char* op, const Tensor& grad, const OptionalTensor& x,
                          const OptionalTensor& weight, int64_t features) {
  const Kind kind(grad);
  if (x) {
    check_like(*x, kind, op, "x");
    const auto rows = x->sizes(), expected = grad.sizes();
    STD_TORCH_CHECK(rows.size() == expected.size() &&
                        std::equal(rows.begin(), rows.end() - 1, expected.begin()),
                    op, ": x has other rows than grad");
  }
  if (weight) {
    check_like(*weight, kind, op, "weight");
    STD_TORCH_CHECK(weight->dim() == 2 && weight->size(0) == features, op,
                    ": weight does not fit grad");
  }
}

// z = x W^T + b, and then(begin, end) after so many rows of the matrix z as Device::block_rows
// says: the GEMM and what follows it take turns.
template <class Device, class Then>
void linear_in_blocks(const Tensor& z, const Tensor& x, const Tensor& weight,
                      const OptionalTensor& bias, Then then) {
  const int64_t cols = z.size(z.dim() - 1), rows = z.numel() / cols;
  const Tensor weight_t = transposed(weight);
  if (weight.dim() == 3) {
    Device::linear_out(z, x, weight_t, bias_rows(bias));
    then(int64_t{0}, rows);
    return;
  }
  const Tensor rows_z = as_matrix(z), rows_x = as_matrix(x);
  const int64_t block = Device::block_rows(rows, cols);
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t count = std::min(block, rows - begin);
    if (count == rows) {
      Device::linear_out(rows_z, rows_x, weight_t, bias);
    } else {
      Device::linear_out(rows_of(rows_z, begin, count), rows_of(rows_x, begin, count), weight_t,
                         bias);
    }
    then(begin, begin + count);
  }
}

// What is kept of a tensor of `shape` for backward, besides y.
inline OptionalTensor empty_kept(math::Saved saved, Shape shape, Kind kind) {
  if (saved == math::Saved::kBits) {
    kind.dtype = aoti_torch_dtype_uint8();
    shape.back() = row_bytes(shape.back());
  }
  return empty(shape, kind);
}

struct LinearActResult {
  Tensor y;
  OptionalTensor kept;
};

// y = residual + dropout(f(x W^T + b)).  x [*, K], weight [N, K], bias [N], residual and y [*, N].
// With `keep` also what the derivative is told by, beside y (math::saved_for).
template <class Device>
LinearActResult linear_act_into(const char* op, const Tensor& x, const Tensor& weight,
                                const OptionalTensor& bias, const OptionalTensor& residual,
                                const OptionalTensor& seed, const math::Activation& f,
                                int64_t threshold, int64_t samples, const OptionalInts& block,
                                bool keep) {
  using math::Saved;
  const Kind kind(x);
  const Shape shape = checked_linear(op, shape_of(x), weight, bias, kind);
  if (residual) {
    check_like(*residual, kind, op, "residual");
    STD_TORCH_CHECK(shape_of(*residual) == shape, op, ": residual has another shape than y");
  }
  const typename Device::Guard guard(x);
  const Tensor y = empty(shape, kind);
  const auto mask = checked_mask(seed, threshold, samples, block, 1, y.numel(), kind, op);
  const Saved saved = math::saved_for(f, residual.has_value(), threshold > 0);
  STD_TORCH_CHECK(!keep || (saved != Saved::kNothing && saved != Saved::kScaledOutput), op,
                  ": nothing is to be kept");
  const OptionalTensor kept = keep ? empty_kept(saved, shape, kind) : OptionalTensor();
  if (y.numel() == 0) return {y, kept};

  const OptionalTensor added = as_contiguous(residual);
  const Tensor& z = keep && saved == Saved::kInput ? *kept : y;
  const int64_t cols = shape.back(), rows = y.numel() / cols;
  const bool has_epilogue =
      f.kind != math::ActivationKind::kIdentity || residual || threshold > 0 || keep;
  dispatch_dtype(x.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    const EpilogueArgs<T> args{
        .z = static_cast<const T*>(z.data_ptr()),
        .y = static_cast<T*>(y.data_ptr()),
        .a = keep && saved == Saved::kOutput ? data_or_null<T>(kept) : nullptr,
        .bits = keep && saved == Saved::kBits ? data_or_null<uint8_t>(kept) : nullptr,
        .residual = data_or_null<const T>(added),
        .activation = f,
        .mask = mask,
        .rows = rows,
        .cols = cols,
    };
    linear_in_blocks<Device>(z, x, weight, bias, [&](int64_t begin, int64_t end) {
      if (has_epilogue) Device::epilogue(args, begin, end);
    });
  });
  return {y, kept};
}

template <class Device>
Tensor linear_act(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& residual, const OptionalTensor& seed, int64_t activation,
                  double a, double b, int64_t threshold, int64_t samples, OptionalInts block) {
  constexpr const char* op = "linear_act";
  const auto f = checked_activation(activation, a, b, op);
  return linear_act_into<Device>(op, x, weight, bias, residual, seed, f, threshold, samples, block,
                                 false)
      .y;
}

template <class Device>
std::tuple<Tensor, Tensor> linear_act_keep(const Tensor& x, const Tensor& weight,
                                           const OptionalTensor& bias,
                                           const OptionalTensor& residual,
                                           const OptionalTensor& seed, int64_t activation, double a,
                                           double b, int64_t threshold, int64_t samples,
                                           OptionalInts block) {
  constexpr const char* op = "linear_act_keep";
  const auto f = checked_activation(activation, a, b, op);
  const auto [y, kept] = linear_act_into<Device>(op, x, weight, bias, residual, seed, f, threshold,
                                                 samples, block, true);
  return {y, *kept};
}

// y = residual + dropout(f(z)), z [*, N].
template <class Device>
Tensor act(const Tensor& z, const OptionalTensor& residual, const OptionalTensor& seed,
           int64_t activation, double a, double b, int64_t threshold, int64_t samples,
           OptionalInts block) {
  constexpr const char* op = "act";
  const Kind kind(z);
  const auto f = checked_activation(activation, a, b, op);
  if (residual) check_same(*residual, z, op, "residual");
  const auto mask = checked_mask(seed, threshold, samples, block, 1, z.numel(), kind, op);
  const typename Device::Guard guard(z);
  const Tensor dense = as_contiguous(z), y = empty_like(dense, kind);
  const OptionalTensor added = as_contiguous(residual);
  if (y.numel() == 0) return y;
  dispatch_dtype(z.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    const EpilogueArgs<T> args{
        .z = static_cast<const T*>(dense.data_ptr()),
        .y = static_cast<T*>(y.data_ptr()),
        .residual = data_or_null<const T>(added),
        .activation = f,
        .mask = mask,
        .rows = 1,
        .cols = y.numel(),
    };
    Device::epilogue(args, 0, 1);
  });
  return y;
}

// Refuses what does not tell f'.
inline void check_saved(const char* op, const Tensor& grad, const OptionalTensor& saved,
                        math::Saved saved_as, const math::Activation& f, bool dropout) {
  using math::Saved;
  if (saved_as == Saved::kNothing) {
    STD_TORCH_CHECK(f.kind == math::ActivationKind::kIdentity, op, ": saved is missing");
    STD_TORCH_CHECK(!saved.has_value(), op, ": saved is given, and saved_as says nothing is");
    return;
  }
  STD_TORCH_CHECK(saved.has_value(), op, ": saved is missing");
  if (saved_as == Saved::kBits) {
    STD_TORCH_CHECK(math::has_two_slopes(f), op, ": a bit does not tell the derivative");
    STD_TORCH_CHECK(
        saved->scalar_type() == ScalarType::Byte && Kind(*saved).same_device(Kind(grad)), op,
        ": saved is not uint8, or on another device");
    Shape shape = shape_of(grad);
    shape.back() = row_bytes(shape.back());
    STD_TORCH_CHECK(shape_of(*saved) == shape, op, ": saved has another shape");
    return;
  }
  const bool scaled = saved_as == Saved::kScaledOutput;
  STD_TORCH_CHECK(saved_as == Saved::kInput || ((scaled || saved_as == Saved::kOutput) &&
                                                math::output_tells(f, scaled && dropout)),
                  op, ": saved_as does not tell the derivative");
  check_same(*saved, grad, op, "saved");
}

struct ActGradResult {
  Tensor dz;
  OptionalTensor dbias;
};

// One pass: dz = mask(factor * F_order(u) * grad) and, if asked, dbias = dz summed over rows. grad
// [*, N], saved as `saved_as` says.
template <class Device>
ActGradResult act_grad_into(const char* op, const Tensor& grad, const OptionalTensor& saved,
                            const OptionalTensor& seed, const math::Activation& f,
                            int64_t threshold, int64_t samples, const OptionalInts& block,
                            int64_t saved_as, int64_t order, bool bias_grad) {
  using math::Saved;
  const Kind kind(grad);
  STD_TORCH_CHECK(grad.dim() > 0, op, ": grad has no dimension");
  STD_TORCH_CHECK(order == 1 || order == 2, op, ": order is not 1 or 2");
  const auto how = static_cast<Saved>(saved_as);
  check_saved(op, grad, saved, how, f, threshold > 0);
  const auto mask = checked_mask(seed, threshold, samples, block, 1, grad.numel(), kind, op);
  const typename Device::Guard guard(grad);

  const Tensor g = as_contiguous(grad);
  const OptionalTensor kept = as_contiguous(saved);
  const int64_t cols = g.size(g.dim() - 1), rows = cols > 0 ? g.numel() / cols : 0;
  const Tensor dz = empty_like(g, kind);
  const OptionalTensor dbias = empty_if(bias_grad, {cols}, kind);
  const OptionalTensor partial = empty_if(bias_grad, {row_chunks(rows), cols}, kind.opmath());
  // y = scale * a: its derivatives take one power of the scale less for each order.
  const double scale = math::dropout_scale(threshold);
  const bool scaled = how == Saved::kScaledOutput;
  dispatch_dtype(grad.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    using Op = opmath_t<T>;
    const ActGradArgs<T, Op> args{
        .grad = static_cast<const T*>(g.data_ptr()),
        .saved = how == Saved::kBits ? nullptr : data_or_null<const T>(kept),
        .bits = how == Saved::kBits ? data_or_null<const uint8_t>(kept) : nullptr,
        .dz = static_cast<T*>(dz.data_ptr()),
        .partial = data_or_null<Op>(partial),
        .activation = f,
        .saved_as = how,
        .order = order,
        .mask = mask,
        .rows = rows,
        .cols = cols,
        .factor = static_cast<Op>(scaled && order == 2 ? 1.0 : scale),
        .saved_scale = static_cast<Op>(scaled && scale > 0 ? scale : 1.0),
    };
    if (cols == 0) return;
    Device::act_grad(args);
    if (dbias) Device::sum_chunks(data_or_null<T>(dbias), args.partial, row_chunks(rows), cols);
  });
  return {dz, dbias};
}

template <class Device>
Tensor act_grad(const Tensor& grad, const OptionalTensor& saved, const OptionalTensor& seed,
                int64_t activation, double a, double b, int64_t threshold, int64_t samples,
                OptionalInts block, int64_t saved_as, int64_t order) {
  constexpr const char* op = "act_grad";
  const auto f = checked_activation(activation, a, b, op);
  return act_grad_into<Device>(op, grad, saved, seed, f, threshold, samples, block, saved_as, order,
                               false)
      .dz;
}

template <class Device>
std::tuple<Tensor, Tensor> act_bias_grad(const Tensor& grad, const OptionalTensor& saved,
                                         const OptionalTensor& seed, int64_t activation, double a,
                                         double b, int64_t threshold, int64_t samples,
                                         OptionalInts block, int64_t saved_as) {
  constexpr const char* op = "act_bias_grad";
  const auto f = checked_activation(activation, a, b, op);
  const auto [dz, dbias] =
      act_grad_into<Device>(op, grad, saved, seed, f, threshold, samples, block, saved_as, 1, true);
  return {dz, *dbias};
}

// The gradients of linear_act's x, weight and bias in one call: dz is act_grad's. Given are what
// tells f', and the factors: without weight no dx is wanted, without x no dW; what is not wanted is
// empty. grad [*, N], x [*, K], weight [N, K].
template <class Device>
std::tuple<Tensor, Tensor, Tensor> linear_act_grad(
    const Tensor& grad, const OptionalTensor& x, const OptionalTensor& weight,
    const OptionalTensor& saved, const OptionalTensor& seed, int64_t activation, double a, double b,
    int64_t threshold, int64_t samples, OptionalInts block, int64_t saved_as, bool bias) {
  constexpr const char* op = "linear_act_grad";
  const auto f = checked_activation(activation, a, b, op);
  const bool is_same = static_cast<math::Saved>(saved_as) == math::Saved::kNothing &&
                       f.kind == math::ActivationKind::kIdentity && threshold == 0 && !bias;
  const auto [dz, dbias] = is_same ? ActGradResult{grad, std::nullopt}
                                   : act_grad_into<Device>(op, grad, saved, seed, f, threshold,
                                                           samples, block, saved_as, 1, bias);
  STD_TORCH_CHECK(dz.dim() > 0, op, ": grad has no dimension");
  check_factors(op, grad, x, weight, dz.size(dz.dim() - 1));
  const Kind kind(grad);
  const typename Device::Guard guard(grad);
  const Tensor rows_dz = as_matrix(dz);
  return {input_grad<Device>(rows_dz, weight, shape_of(dz), kind),
          weight_grad<Device>(rows_dz, x ? OptionalTensor(as_matrix(*x)) : x, weight, kind),
          dbias ? *dbias : empty({0}, kind)};
}

}  // namespace torchcalc
