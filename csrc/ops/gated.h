#pragma once

#include "ops/linear_act.h"

// Gated linear units: input checks, allocation and the order of work, for every device.
namespace torchcalc {

// The left (0) or right (1) half of t's columns.
inline Tensor half_of(const Tensor& t, int64_t which) {
  Shape shape = shape_of(t), strides(t.strides().begin(), t.strides().end());
  shape.back() /= 2;
  return view(t, shape, strides, which * shape.back() * strides.back());
}

// The shape of y, of arguments that are checked. weight [2 N, K] and bias [2 N], gates first; or
// [N, K] and [N], and those of the values beside them.
inline Shape checked_gated_linear(const char* op, const Tensor& x, const Tensor& weight,
                                  const OptionalTensor& weight_value, const OptionalTensor& bias,
                                  const OptionalTensor& bias_value, const Kind& kind) {
  Shape shape = checked_linear(op, shape_of(x), weight, bias, kind);
  if (weight_value) {
    STD_TORCH_CHECK(same_shape(*weight_value, weight), op, ": the weights differ in shape");
    STD_TORCH_CHECK(bias.has_value() == bias_value.has_value(), op, ": one bias is missing");
    checked_linear(op, shape_of(x), *weight_value, bias_value, kind);
    return shape;
  }
  STD_TORCH_CHECK(!bias_value, op, ": two biases and one weight");
  STD_TORCH_CHECK(shape.back() % 2 == 0, op, ": weight has an odd number of rows");
  shape.back() /= 2;
  return shape;
}

struct GatedResult {
  Tensor y;
  OptionalTensor z;
};

// y = dropout(f(g) v), z = [g, v] = [x Wg^T + bg, x Wv^T + bv].  x [*, K], y [*, N], z [*, 2 N]; or
// with batches of weights, as linear_act.  Only with `keep` is z held as a whole.
template <class Device>
GatedResult gated_linear_into(const char* op, const Tensor& x, const Tensor& weight,
                              const OptionalTensor& weight_value, const OptionalTensor& bias,
                              const OptionalTensor& bias_value, const OptionalTensor& seed,
                              const math::Activation& f, int64_t threshold, int64_t samples,
                              const OptionalInts& block, bool keep) {
  const Kind kind(x);
  const Shape shape = checked_gated_linear(op, x, weight, weight_value, bias, bias_value, kind);
  const typename Device::Guard guard(x);
  const int64_t cols = shape.back();
  Shape z_shape = shape;
  z_shape.back() = 2 * cols;
  const Tensor y = empty(shape, kind);
  const auto mask = checked_mask(seed, threshold, samples, block, 1, y.numel(), kind, op);
  const OptionalTensor kept = empty_if(keep, z_shape, kind);
  if (y.numel() == 0) return {y, kept};

  const bool batched = weight.dim() == 3;
  const int64_t rows = y.numel() / cols;
  const int64_t height = batched ? rows : std::min(rows, Device::block_rows(rows, 2 * cols));
  const Tensor whole_x = batched ? x : as_matrix(x);
  const Tensor whole_z = !keep     ? empty(batched ? z_shape : Shape{height, 2 * cols}, kind)
                         : batched ? *kept
                                   : as_matrix(*kept);
  const Tensor weight_t = transposed(weight);
  const OptionalTensor value_t =
      weight_value ? OptionalTensor(transposed(*weight_value)) : std::nullopt;
  const auto part = [&](const Tensor& t, int64_t begin, int64_t count) {
    return batched || count == t.size(0) ? t : rows_of(t, begin, count);
  };
  dispatch_dtype(x.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    GatedArgs<T> args{.activation = f, .mask = mask, .cols = cols};
    for (int64_t begin = 0; begin < rows; begin += height) {
      const int64_t count = std::min(height, rows - begin);
      const Tensor z = part(whole_z, keep ? begin : 0, count), x_part = part(whole_x, begin, count);
      if (value_t) {
        Device::linear_out(half_of(z, 0), x_part, weight_t, bias_rows(bias));
        Device::linear_out(half_of(z, 1), x_part, *value_t, bias_rows(bias_value));
      } else {
        Device::linear_out(z, x_part, weight_t, bias_rows(bias));
      }
      args.z = static_cast<const T*>(z.data_ptr());
      args.y = static_cast<T*>(y.data_ptr()) + begin * cols;
      args.first = begin * cols;
      args.rows = count;
      Device::gated(args);
    }
  });
  return {y, kept};
}

template <class Device>
Tensor gated_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& weight_value,
                    const OptionalTensor& bias, const OptionalTensor& bias_value,
                    const OptionalTensor& seed, int64_t activation, double a, double b,
                    int64_t threshold, int64_t samples, OptionalInts block) {
  constexpr const char* op = "gated_linear";
  const auto f = checked_activation(activation, a, b, op);
  return gated_linear_into<Device>(op, x, weight, weight_value, bias, bias_value, seed, f,
                                   threshold, samples, block, false)
      .y;
}

template <class Device>
std::tuple<Tensor, Tensor> gated_linear_keep(const Tensor& x, const Tensor& weight,
                                             const OptionalTensor& weight_value,
                                             const OptionalTensor& bias,
                                             const OptionalTensor& bias_value,
                                             const OptionalTensor& seed, int64_t activation,
                                             double a, double b, int64_t threshold, int64_t samples,
                                             OptionalInts block) {
  constexpr const char* op = "gated_linear_keep";
  const auto f = checked_activation(activation, a, b, op);
  const auto [y, z] = gated_linear_into<Device>(op, x, weight, weight_value, bias, bias_value, seed,
                                                f, threshold, samples, block, true);
  return {y, *z};
}

// Refuses z that is not [*, 2 N] where grad is [*, N].
inline void check_halves(const char* op, const Tensor& z, const Tensor& grad, const char* name) {
  check_like(z, Kind(grad), op, name);
  STD_TORCH_CHECK(grad.dim() > 0, op, ": grad has no dimension");
  Shape shape = shape_of(grad);
  shape.back() *= 2;
  STD_TORCH_CHECK(shape_of(z) == shape, op, ": ", name, " is not twice as wide as grad");
}

struct GatedGradResult {
  Tensor dz;
  OptionalTensor dbias;
};

// One pass: the gradient dz of z and, if asked, its sums over rows.
template <class Device>
GatedGradResult gated_grad_into(const char* op, const Tensor& grad, const Tensor& z,
                                const OptionalTensor& seed, const math::Activation& f,
                                int64_t threshold, int64_t samples, const OptionalInts& block,
                                bool bias_grad) {
  const Kind kind(grad);
  check_halves(op, z, grad, "z");
  const auto mask = checked_mask(seed, threshold, samples, block, 1, grad.numel(), kind, op);
  const typename Device::Guard guard(grad);

  const Tensor g = as_contiguous(grad), kept = as_contiguous(z);
  const int64_t cols = g.size(g.dim() - 1), rows = cols > 0 ? g.numel() / cols : 0;
  const Tensor dz = empty_like(kept, kind);
  const OptionalTensor dbias = empty_if(bias_grad, {2 * cols}, kind);
  const OptionalTensor partial = empty_if(bias_grad, {row_chunks(rows), 2 * cols}, kind.opmath());
  dispatch_dtype(grad.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    using Op = opmath_t<T>;
    const GatedGradArgs<T, Op> args{
        .grad = static_cast<const T*>(g.data_ptr()),
        .z = static_cast<const T*>(kept.data_ptr()),
        .dz = static_cast<T*>(dz.data_ptr()),
        .partial = data_or_null<Op>(partial),
        .activation = f,
        .mask = mask,
        .rows = rows,
        .cols = cols,
        .factor = static_cast<Op>(math::dropout_scale(threshold)),
    };
    if (cols == 0) return;
    Device::gated_grad(args);
    if (dbias) {
      Device::sum_chunks(data_or_null<T>(dbias), args.partial, row_chunks(rows), 2 * cols);
    }
  });
  return {dz, dbias};
}

template <class Device>
Tensor gated_grad(const Tensor& grad, const Tensor& z, const OptionalTensor& seed,
                  int64_t activation, double a, double b, int64_t threshold, int64_t samples,
                  OptionalInts block) {
  constexpr const char* op = "gated_grad";
  const auto f = checked_activation(activation, a, b, op);
  return gated_grad_into<Device>(op, grad, z, seed, f, threshold, samples, block, false).dz;
}

template <class Device>
std::tuple<Tensor, Tensor> gated_bias_grad(const Tensor& grad, const Tensor& z,
                                           const OptionalTensor& seed, int64_t activation, double a,
                                           double b, int64_t threshold, int64_t samples,
                                           OptionalInts block) {
  constexpr const char* op = "gated_bias_grad";
  const auto f = checked_activation(activation, a, b, op);
  const auto [dz, dbias] =
      gated_grad_into<Device>(op, grad, z, seed, f, threshold, samples, block, true);
  return {dz, *dbias};
}

// The gradients of gated_linear's x, weights and biases in one call, as linear_act_grad; dbias is
// [2 N], the gates' first.
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> gated_linear_grad(
    const Tensor& grad, const OptionalTensor& x, const OptionalTensor& weight,
    const OptionalTensor& weight_value, const Tensor& z, const OptionalTensor& seed,
    int64_t activation, double a, double b, int64_t threshold, int64_t samples, OptionalInts block,
    bool pair, bool bias) {
  constexpr const char* op = "gated_linear_grad";
  const auto f = checked_activation(activation, a, b, op);
  const auto [dz, dbias] =
      gated_grad_into<Device>(op, grad, z, seed, f, threshold, samples, block, bias);
  const int64_t features = dz.size(dz.dim() - 1) / (pair ? 2 : 1);
  check_factors(op, grad, x, weight, features);
  check_factors(op, grad, x, weight_value, features);
  STD_TORCH_CHECK(weight_value.has_value() == (pair && weight.has_value()), op,
                  ": weight and weight_value are no pair");
  const Kind kind(grad);
  const typename Device::Guard guard(grad);
  const OptionalTensor rows_x = x ? OptionalTensor(as_matrix(*x)) : x;
  const Tensor rows_dz = as_matrix(dz), none = empty({0}, kind), db = dbias ? *dbias : none;
  if (!pair) {
    return {input_grad<Device>(rows_dz, weight, shape_of(dz), kind),
            weight_grad<Device>(rows_dz, rows_x, weight, kind), none, db};
  }
  const Tensor dg = half_of(rows_dz, 0), dv = half_of(rows_dz, 1);
  const Tensor dx = input_grad<Device>(dg, weight, shape_of(dz), kind);
  if (weight) {
    const Tensor rows_dx = as_matrix(dx);
    Device::linear_out(rows_dx, dv, *weight_value, rows_dx);
  }
  return {dx, weight_grad<Device>(dg, rows_x, weight, kind),
          weight_grad<Device>(dv, rows_x, weight_value, kind), db};
}

// The gradients of gated_grad's arguments grad and z, c being the cotangent of its result.
template <class Device>
std::tuple<Tensor, Tensor> gated_grad_grad(const Tensor& c, const Tensor& grad, const Tensor& z,
                                           const OptionalTensor& seed, int64_t activation, double a,
                                           double b, int64_t threshold, int64_t samples,
                                           OptionalInts block) {
  constexpr const char* op = "gated_grad_grad";
  const Kind kind(grad);
  const auto f = checked_activation(activation, a, b, op);
  check_halves(op, c, grad, "c");
  check_halves(op, z, grad, "z");
  const auto mask = checked_mask(seed, threshold, samples, block, 1, grad.numel(), kind, op);
  const typename Device::Guard guard(grad);

  const Tensor cotangent = as_contiguous(c), g = as_contiguous(grad), kept = as_contiguous(z);
  const int64_t cols = g.size(g.dim() - 1), rows = cols > 0 ? g.numel() / cols : 0;
  const Tensor dgrad = empty_like(g, kind), dz = empty_like(kept, kind);
  dispatch_dtype(grad.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    using Op = opmath_t<T>;
    const GatedGradGradArgs<T, Op> args{
        .c = static_cast<const T*>(cotangent.data_ptr()),
        .grad = static_cast<const T*>(g.data_ptr()),
        .z = static_cast<const T*>(kept.data_ptr()),
        .dgrad = static_cast<T*>(dgrad.data_ptr()),
        .dz = static_cast<T*>(dz.data_ptr()),
        .activation = f,
        .mask = mask,
        .rows = rows,
        .cols = cols,
        .factor = static_cast<Op>(math::dropout_scale(threshold)),
    };
    if (cols > 0) Device::gated_grad_grad(args);
  });
  return {dgrad, dz};
}

}  // namespace torchcalc
