#pragma once

#include "ops/gated.h"
#include "ops/linear_act.h"

// Two layers, of which the hidden one's output is made again in backward: input checks and the
// order of work, for every device.
namespace torchcalc {

// How a mlp's hidden layer is told: its activation, whether it is a gated linear unit, and its
// mask.
struct Hidden {
  math::Activation f;
  bool gated;
  math::MaskArgs mask;

  // Whether h tells f', so that it is kept in place of z.
  bool is_kept() const {
    const auto saved = math::saved_for(f, false, mask.drops());
    return !gated && (saved == math::Saved::kNothing || saved == math::Saved::kScaledOutput);
  }
};

// h of rows [begin, begin + count) of z, which is h where that is no matter.
template <class Device, class T>
void hidden_rows(const Hidden& layer, const Tensor& z, const Tensor& h, int64_t begin,
                 int64_t count, int64_t width) {
  if (width == 0) return;
  const T* from = static_cast<const T*>(z.data_ptr());
  T* to = static_cast<T*>(h.data_ptr());
  if (layer.gated) {
    Device::gated(GatedArgs<T>{.z = from,
                               .y = to,
                               .activation = layer.f,
                               .mask = layer.mask,
                               .first = begin * width,
                               .rows = count,
                               .cols = width});
  } else if (from != to || layer.mask.drops() || layer.f.kind != math::ActivationKind::kIdentity) {
    const EpilogueArgs<T> args{.z = from,
                               .y = to,
                               .activation = layer.f,
                               .mask = layer.mask,
                               .first = begin * width,
                               .rows = count,
                               .cols = width};
    Device::epilogue(args, 0, count);
  }
}

// h = dropout(f(x W1^T + b1)), or gated dropout(f(g) v) with [g, v] = x W1^T + b1;
// y = residual + dropout(h W2^T + b2).  x [*, K], W1 [H, K] or gated [2 H, K], W2 [N, H], residual
// and y [*, N]; or with batches of weights, as linear_act.  With `keep` also z = x W1^T + b1, or h
// instead where h tells f'. The layers take turns, a block of rows at a time, so that h need not be
// held as a whole.
template <class Device>
LinearActResult mlp_into(const char* op, const Tensor& x, const Tensor& weight1,
                         const OptionalTensor& bias1, const Tensor& weight2,
                         const OptionalTensor& bias2, const OptionalTensor& residual,
                         const OptionalTensor& hidden_seed, const OptionalTensor& seed,
                         const math::Activation& f, bool gated, int64_t hidden_threshold,
                         int64_t threshold, int64_t samples, const OptionalInts& hidden_block,
                         const OptionalInts& block, bool keep) {
  const Kind kind(x);
  const Shape z_shape = checked_linear(op, shape_of(x), weight1, bias1, kind);
  STD_TORCH_CHECK(!gated || z_shape.back() % 2 == 0, op, ": weight1 has an odd number of rows");
  Shape h_shape = z_shape;
  if (gated) h_shape.back() /= 2;
  STD_TORCH_CHECK(weight2.dim() == weight1.dim(), op, ": weight1 and weight2 differ in dimensions");
  const Shape shape = checked_linear(op, h_shape, weight2, bias2, kind);
  if (residual) {
    check_like(*residual, kind, op, "residual");
    STD_TORCH_CHECK(shape_of(*residual) == shape, op, ": residual has another shape than y");
  }
  const int64_t width = h_shape.back(), cols = shape.back();
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < shape.size(); ++d) rows *= shape[d];
  const typename Device::Guard guard(x);
  const Hidden layer{f, gated,
                     checked_mask(hidden_seed, hidden_threshold, samples, hidden_block, 1,
                                  rows * width, kind, op)};
  const auto mask = checked_mask(seed, threshold, samples, block, 1, rows * cols, kind, op);
  const Tensor y = empty(shape, kind);
  const OptionalTensor kept = empty_if(keep, z_shape, kind);
  if (rows == 0 || (cols == 0 && !keep)) return {y, kept};

  const bool keep_h = keep && layer.is_kept(), keep_z = keep && !keep_h;
  const bool batched = weight1.dim() == 3;
  const int64_t height = batched ? rows : std::min(rows, Device::block_rows(rows, z_shape.back()));
  const OptionalTensor added = as_contiguous(residual);
  const Tensor rows_x = batched ? x : as_matrix(x), rows_y = batched ? y : as_matrix(y);
  const Tensor rows_kept = keep && !batched ? as_matrix(*kept) : kept.value_or(y);
  const Tensor weight1_t = transposed(weight1), weight2_t = transposed(weight2);
  const auto scratch = [&](const Shape& whole) {
    return empty(batched ? whole : Shape{height, whole.back()}, kind);
  };
  const Tensor h_scratch = keep_h ? rows_kept : scratch(h_shape);
  const Tensor z_scratch = keep_z ? rows_kept : gated ? scratch(z_shape) : h_scratch;
  dispatch_dtype(x.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    EpilogueArgs<T> args{
        .activation = {math::ActivationKind::kIdentity, 0, 0}, .mask = mask, .cols = cols};
    for (int64_t begin = 0; begin < rows; begin += height) {
      const int64_t count = std::min(height, rows - begin);
      const auto part = [&](const Tensor& t, bool is_scratch = false) {
        return batched ? t : rows_of(t, is_scratch ? 0 : begin, count);
      };
      const Tensor h = part(h_scratch, !keep_h), out = part(rows_y);
      const Tensor z = part(z_scratch, !keep);
      Device::linear_out(z, part(rows_x), weight1_t, bias_rows(bias1));
      hidden_rows<Device, T>(layer, z, h, begin, count, width);
      if (cols == 0) continue;
      Device::linear_out(out, h, weight2_t, bias_rows(bias2));
      if (!residual && !mask.drops()) continue;
      args.y = static_cast<T*>(out.data_ptr());
      args.z = args.y;
      if (added) args.residual = static_cast<const T*>(added->data_ptr()) + begin * cols;
      args.first = begin * cols;
      args.rows = count;
      Device::epilogue(args, 0, count);
    }
  });
  return {y, kept};
}

template <class Device>
Tensor mlp(const Tensor& x, const Tensor& weight1, const OptionalTensor& bias1,
           const Tensor& weight2, const OptionalTensor& bias2, const OptionalTensor& residual,
           const OptionalTensor& hidden_seed, const OptionalTensor& seed, int64_t activation,
           double a, double b, bool gated, int64_t hidden_threshold, int64_t threshold,
           int64_t samples, OptionalInts hidden_block, OptionalInts block) {
  constexpr const char* op = "mlp";
  const auto f = checked_activation(activation, a, b, op);
  return mlp_into<Device>(op, x, weight1, bias1, weight2, bias2, residual, hidden_seed, seed, f,
                          gated, hidden_threshold, threshold, samples, hidden_block, block, false)
      .y;
}

template <class Device>
std::tuple<Tensor, Tensor> mlp_keep(const Tensor& x, const Tensor& weight1,
                                    const OptionalTensor& bias1, const Tensor& weight2,
                                    const OptionalTensor& bias2, const OptionalTensor& residual,
                                    const OptionalTensor& hidden_seed, const OptionalTensor& seed,
                                    int64_t activation, double a, double b, bool gated,
                                    int64_t hidden_threshold, int64_t threshold, int64_t samples,
                                    OptionalInts hidden_block, OptionalInts block) {
  constexpr const char* op = "mlp_keep";
  const auto f = checked_activation(activation, a, b, op);
  const auto [y, kept] =
      mlp_into<Device>(op, x, weight1, bias1, weight2, bias2, residual, hidden_seed, seed, f, gated,
                       hidden_threshold, threshold, samples, hidden_block, block, true);
  return {y, *kept};
}

// The gradients that meet in the hidden layer, of y = h W2^T: dh = grad W2, dz = dh's through f and
// dropout, dW2 = grad^T h, db1 = dz summed over rows; h is made again on the way. A block of rows
// at a time, so that neither dh nor h is held as a whole. grad [*, N], weight2 [N, H], z [*, H], or
// gated [*, 2 H].
template <class Device>
std::tuple<Tensor, Tensor, Tensor> mlp_grad(const Tensor& grad, const Tensor& weight2,
                                            const Tensor& z, const OptionalTensor& hidden_seed,
                                            int64_t activation, double a, double b, bool gated,
                                            int64_t threshold, int64_t samples,
                                            OptionalInts block) {
  constexpr const char* op = "mlp_grad";
  const Kind kind(grad);
  const auto f = checked_activation(activation, a, b, op);
  check_like(weight2, kind, op, "weight2");
  check_like(z, kind, op, "z");
  STD_TORCH_CHECK(grad.dim() > 0 && weight2.dim() == 2, op, ": grad or weight2 is no matrix");
  const int64_t cols = weight2.size(0), width = weight2.size(1),
                z_width = gated ? 2 * width : width;
  Shape shape = shape_of(grad);
  STD_TORCH_CHECK(shape.back() == cols, op, ": grad does not fit weight2");
  shape.back() = z_width;
  STD_TORCH_CHECK(shape_of(z) == shape, op, ": z does not fit weight2 and grad");
  const typename Device::Guard guard(grad);
  const Tensor rows_grad = as_matrix(grad), kept = as_contiguous(z);
  const int64_t rows = rows_grad.size(0);
  const auto mask = checked_mask(hidden_seed, threshold, samples, block, 1, rows * width, kind, op);

  const Tensor dz = empty(shape, kind), dweight2 = empty_as(weight2, kind);
  const Tensor dbias1 = empty({z_width}, kind);
  const Tensor partial = empty({row_chunks(rows), z_width}, kind.opmath());
  dispatch_dtype(grad.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    using Op = opmath_t<T>;
    const auto factor = static_cast<Op>(math::dropout_scale(threshold));
    ActGradArgs<T, Op> args{.activation = f,
                            .saved_as = math::Saved::kInput,
                            .mask = mask,
                            .cols = width,
                            .factor = factor};
    GatedGradArgs<T, Op> gated_args{.activation = f, .mask = mask, .cols = width, .factor = factor};
    const int64_t depth = std::min(rows, Device::template block_depth<T>(rows, z_width));
    const Tensor scratch = empty({depth, width}, kind);  // h; gated, dh before
    const Tensor rows_dz = as_matrix(dz);
    int64_t begin = 0;
    do {  // once without rows: dweight2 is 0 then
      const int64_t count = std::min(depth, rows - begin);
      const Tensor h = rows_of(scratch, 0, count);
      const Tensor dh = gated ? h : rows_of(rows_dz, begin, count);
      const Tensor part = rows_of(rows_grad, begin, count);
      Device::linear_out(dh, part, weight2, std::nullopt);
      const auto fill = [&](auto& to) {
        to.dz = static_cast<T*>(dz.data_ptr()) + begin * z_width;
        to.grad = static_cast<const T*>(dh.data_ptr());
        to.value = static_cast<T*>(h.data_ptr());
        to.partial = static_cast<Op*>(partial.data_ptr()) + row_chunks(begin) * z_width;
        to.first = begin * width;
        to.rows = count;
      };
      const T* told = static_cast<const T*>(kept.data_ptr()) + begin * z_width;
      if (width > 0 && gated) {
        fill(gated_args);
        gated_args.z = told;
        Device::gated_grad(gated_args);
      } else if (width > 0) {
        fill(args);
        args.saved = told;
        Device::act_grad(args);
      }
      Device::linear_out(dweight2, transposed(part), h,
                         begin > 0 ? OptionalTensor(dweight2) : std::nullopt);
      begin += count;
    } while (begin < rows);
    Device::sum_chunks(static_cast<T*>(dbias1.data_ptr()),
                       static_cast<const Op*>(partial.data_ptr()), row_chunks(rows), z_width);
  });
  return {dz, dweight2, dbias1};
}

}  // namespace torchcalc
