#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "common/checks.h"
#include "ops/args.h"

// Input checks, allocation and the GEMM of linear_act and act_grad, for every device.
namespace torchcalc {

// out = x W^T + b, by the library's GEMM: it adds the bias before it rounds, which in bfloat16 the
// epilogue could not.
inline void linear_out(const Tensor& out, const Tensor& x, const Tensor& weight,
                       const OptionalTensor& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(x), from(weight), from(bias), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // take back the reference to out
}

inline math::Activation checked_activation(int64_t activation, const char* op) {
  STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(math::Activation::kSigmoid),
                  op, ": unknown activation");
  return static_cast<math::Activation>(activation);
}

inline Saved checked_saved(int64_t saved, const char* op) {
  STD_TORCH_CHECK(saved >= 0 && saved <= static_cast<int64_t>(Saved::kOutput), op,
                  ": unknown kind of saved tensor");
  return static_cast<Saved>(saved);
}

// y = residual + dropout(f(x W^T + b)).  x [M, K], weight [N, K], bias [N], residual [M, N].
// The GEMM and `Device`'s epilogue take turns, Device::block_rows(M) rows at a time.  Returns y and
// what `saved` asks to keep (else an empty tensor).
template <class Device>
std::tuple<Tensor, Tensor> linear_act(Tensor x, Tensor weight, OptionalTensor bias,
                                      OptionalTensor residual, OptionalTensor seed,
                                      int64_t activation, int64_t threshold, int64_t saved) {
  constexpr const char* op = "linear_act";
  STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 2, op, ": x and weight are not matrices");
  STD_TORCH_CHECK(x.size(1) == weight.size(1), op, ": x and weight differ in their last dimension");
  check_like(weight, x, op, "weight");
  const int64_t rows = x.size(0), cols = weight.size(0);
  if (bias) {
    check_like(*bias, x, op, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == cols, op, ": bias has another size");
  }
  if (residual) {
    check_like(*residual, x, op, "residual");
    STD_TORCH_CHECK(residual->dim() == 2 && residual->size(0) == rows && residual->size(1) == cols,
                    op, ": residual has another shape than the output");
    residual = as_contiguous(residual);
  }
  const auto f = checked_activation(activation, op);
  const auto kind = checked_saved(saved, op);
  const int64_t* seed_ptr = checked_seed(seed, threshold, x, op);
  const typename Device::Guard guard(x);

  const Tensor y = empty_like_with(x, {rows, cols});
  const bool keep_z = kind == Saved::kPreActivation, keep_a = kind == Saved::kActivation;
  const Tensor kept = keep_z || keep_a ? empty_like_with(x, {rows, cols}) : empty_like_with(x, {0});
  if (rows == 0 || cols == 0) return {y, kept};

  Tensor z = keep_z ? kept : y;
  const bool has_epilogue =
      f != math::Activation::kIdentity || residual || threshold > 0 || keep_z || keep_a;
  dispatch_dtype(x.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    const EpilogueArgs<T> args{
        .z = static_cast<const T*>(z.data_ptr()),
        .y = static_cast<T*>(y.data_ptr()),
        .a = keep_a ? static_cast<T*>(kept.data_ptr()) : nullptr,
        .residual = data_or_null<const T>(residual),
        .seed = seed_ptr,
        .threshold = threshold,
        .rows = rows,
        .cols = cols,
    };
    const int64_t block = Device::block_rows(rows);
    for (int64_t begin = 0; begin < rows; begin += block) {
      const int64_t count = std::min(block, rows - begin);
      if (count == rows) {
        linear_out(z, x, weight, bias);
      } else {
        linear_out(torch::stable::narrow(z, 0, begin, count),
                   torch::stable::narrow(x, 0, begin, count), weight, bias);
      }
      if (has_epilogue) Device::epilogue(f, args, begin, begin + count);
    }
  });
  return {y, kept};
}

// One pass: dz = mask(F_order(u) * grad) and, if asked, dbias = dz summed over rows.
// grad, saved [M, N]; saved is what linear_act kept (absent for Saved::kNothing).
template <class Device>
std::tuple<Tensor, Tensor> act_grad(Tensor grad, OptionalTensor saved, OptionalTensor seed,
                                    int64_t activation, int64_t order, int64_t threshold,
                                    int64_t saved_kind, bool bias_grad) {
  constexpr const char* op = "act_grad";
  STD_TORCH_CHECK(grad.dim() == 2, op, ": grad is not a matrix");
  STD_TORCH_CHECK(order == 1 || order == 2, op, ": order is not 1 or 2");
  const auto f = checked_activation(activation, op);
  const auto kind = checked_saved(saved_kind, op);
  STD_TORCH_CHECK(saved.has_value() == (kind != Saved::kNothing), op,
                  ": saved does not fit its kind");
  if (saved) check_same(*saved, grad, op, "saved");
  const int64_t* seed_ptr = checked_seed(seed, threshold, grad, op);
  const typename Device::Guard guard(grad);

  grad = as_contiguous(grad);
  saved = as_contiguous(saved);
  const int64_t rows = grad.size(0), cols = grad.size(1);
  const Tensor dz = empty_like_with(grad, {rows, cols});
  const Tensor dbias = empty_like_with(grad, {bias_grad ? cols : 0});
  // y = scale * a: its derivatives take one power of the scale less for each order.
  const double scale = math::dropout_scale(threshold);
  const bool scaled = kind == Saved::kOutput;
  dispatch_dtype(grad.scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    using Op = opmath_t<T>;
    const Tensor partial =
        empty_like_with(grad, {bias_grad ? row_chunks(rows) : 0, cols},
                        sizeof(Op) == 8 ? ScalarType::Double : ScalarType::Float);
    const ActGradArgs<T, Op> args{
        .grad = static_cast<const T*>(grad.data_ptr()),
        .saved = data_or_null<const T>(saved),
        .dz = static_cast<T*>(dz.data_ptr()),
        .dbias = bias_grad ? static_cast<T*>(dbias.data_ptr()) : nullptr,
        .partial = bias_grad ? static_cast<Op*>(partial.data_ptr()) : nullptr,
        .seed = seed_ptr,
        .threshold = threshold,
        .rows = rows,
        .cols = cols,
        .factor = static_cast<Op>(scaled && order == 2 ? 1.0 : scale),
        .saved_scale = static_cast<Op>(scaled && scale > 0 ? 1.0 / scale : 1.0),
    };
    if (cols > 0) Device::act_grad(f, order, args);
  });
  return {dz, dbias};
}

}  // namespace torchcalc
