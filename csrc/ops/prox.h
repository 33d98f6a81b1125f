#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/checks.h"
#include "ops/args.h"

// Input checks and allocation of prox and its two derivatives, for every device.
//
// A strength is a tensor (of one element or of x's shape) or, where that is absent, a number.
// Results are elementwise: the gradients of one-element strengths are still to be summed. Those of
// numbers are empty.
namespace torchcalc {

struct ProxInputs {
  const char* op;
  Tensor x;
  Kind kind;
  OptionalTensor l1, l2;
  double l1_value, l2_value;

  ProxInputs(const char* op, const Tensor& x, const OptionalTensor& l1, const OptionalTensor& l2,
             double l1_value, double l2_value)
      : op(op),
        x(as_contiguous(x)),
        kind(x),
        l1(l1),
        l2(l2),
        l1_value(l1_value),
        l2_value(l2_value) {
    check_strength(this->l1, "l1");
    check_strength(this->l2, "l2");
  }

  // t as contiguous as x and of its shape, dtype and device.
  OptionalTensor like_x(const OptionalTensor& t, const char* name) const {
    if (t) check_same(*t, x, op, name);
    return as_contiguous(t);
  }

  Tensor result(bool wanted = true) const {
    return wanted ? empty_like(x, kind) : empty({0}, kind);
  }

  template <class T>
  static Strength<T, opmath_t<T>> strength(const OptionalTensor& t, double value) {
    using Op = opmath_t<T>;
    const auto number = static_cast<Op>(value);
    if (t && !std::is_same_v<T, Op> && t->numel() == 1 && Kind(*t) == Kind(*t).opmath()) {
      return {nullptr, false, number, static_cast<const Op*>(t->data_ptr())};
    }
    return {data_or_null<const T>(t), t && t->numel() > 1, number};
  }

 private:
  void check_strength(OptionalTensor& t, const char* name) {
    if (!t) return;
    if (!(t->numel() == 1 && Kind(*t) == kind.opmath())) check_like(*t, kind, op, name);
    STD_TORCH_CHECK(t->numel() == 1 || same_shape(*t, x), op, ": ", name,
                    " has neither one element nor x's shape");
    t = as_contiguous(t);
  }
};

template <class Device>
Tensor prox(const Tensor& x, const OptionalTensor& l1, const OptionalTensor& l2, double l1_value,
            double l2_value) {
  const ProxInputs in("prox", x, l1, l2, l1_value, l2_value);
  const typename Device::Guard guard(in.x);
  const Tensor y = in.result();
  if (in.x.numel() == 0) return y;
  dispatch_dtype(in.x.scalar_type(), in.op, [&]<class T>(std::type_identity<T>) {
    Device::prox(ProxArgs<T, opmath_t<T>>{
        .x = static_cast<const T*>(in.x.data_ptr()),
        .l1 = in.strength<T>(in.l1, l1_value),
        .l2 = in.strength<T>(in.l2, l2_value),
        .y = static_cast<T*>(y.data_ptr()),
        .n = in.x.numel(),
    });
  });
  return y;
}

// dx [, dl1, dl2] into what there is memory for.
template <class Device>
void prox_grad_into(const ProxInputs& in, const Tensor& grad, const Tensor& dx, const Tensor* dl1,
                    const Tensor* dl2) {
  const OptionalTensor g = in.like_x(grad, "grad");
  if (in.x.numel() == 0) return;
  dispatch_dtype(in.x.scalar_type(), in.op, [&]<class T>(std::type_identity<T>) {
    Device::prox_grad(ProxGradArgs<T, opmath_t<T>>{
        .grad = data_or_null<const T>(g),
        .x = static_cast<const T*>(in.x.data_ptr()),
        .l1 = in.strength<T>(in.l1, in.l1_value),
        .l2 = in.strength<T>(in.l2, in.l2_value),
        .dx = static_cast<T*>(dx.data_ptr()),
        .dl1 = dl1 ? static_cast<T*>(dl1->data_ptr()) : nullptr,
        .dl2 = dl2 ? static_cast<T*>(dl2->data_ptr()) : nullptr,
        .n = in.x.numel(),
    });
  });
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> prox_grad(const Tensor& grad, const Tensor& x,
                                             const OptionalTensor& l1, const OptionalTensor& l2,
                                             double l1_value, double l2_value) {
  const ProxInputs in("prox_grad", x, l1, l2, l1_value, l2_value);
  const typename Device::Guard guard(in.x);
  const Tensor dx = in.result(), dl1 = in.result(!!l1), dl2 = in.result(!!l2);
  prox_grad_into<Device>(in, grad, dx, l1 ? &dl1 : nullptr, l2 ? &dl2 : nullptr);
  return {dx, dl1, dl2};
}

// dx alone: all that there is to know where the strengths are numbers, or no parameters.
template <class Device>
Tensor prox_x_grad(const Tensor& grad, const Tensor& x, const OptionalTensor& l1,
                   const OptionalTensor& l2, double l1_value, double l2_value) {
  const ProxInputs in("prox_x_grad", x, l1, l2, l1_value, l2_value);
  const typename Device::Guard guard(in.x);
  const Tensor dx = in.result();
  prox_grad_into<Device>(in, grad, dx, nullptr, nullptr);
  return dx;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> prox_grad_grad(
    const OptionalTensor& cx, const OptionalTensor& c1, const OptionalTensor& c2,
    const Tensor& grad, const Tensor& x, const OptionalTensor& l1, const OptionalTensor& l2,
    double l1_value, double l2_value) {
  const ProxInputs in("prox_grad_grad", x, l1, l2, l1_value, l2_value);
  const OptionalTensor dense_cx = in.like_x(cx, "cx"), dense_c1 = in.like_x(c1, "c1"),
                       dense_c2 = in.like_x(c2, "c2"), dense_grad = in.like_x(grad, "grad");
  const typename Device::Guard guard(in.x);
  const Tensor dgrad = in.result(), dx = in.result();
  const Tensor dl1 = in.result(!!l1), dl2 = in.result(!!l2);
  if (in.x.numel() == 0) return {dgrad, dx, dl1, dl2};
  dispatch_dtype(in.x.scalar_type(), in.op, [&]<class T>(std::type_identity<T>) {
    Device::prox_grad_grad(ProxGradGradArgs<T, opmath_t<T>>{
        .cx = data_or_null<const T>(dense_cx),
        .c1 = data_or_null<const T>(dense_c1),
        .c2 = data_or_null<const T>(dense_c2),
        .grad = data_or_null<const T>(dense_grad),
        .x = static_cast<const T*>(in.x.data_ptr()),
        .l1 = in.strength<T>(in.l1, l1_value),
        .l2 = in.strength<T>(in.l2, l2_value),
        .dgrad = static_cast<T*>(dgrad.data_ptr()),
        .dx = static_cast<T*>(dx.data_ptr()),
        .dl1 = l1 ? static_cast<T*>(dl1.data_ptr()) : nullptr,
        .dl2 = l2 ? static_cast<T*>(dl2.data_ptr()) : nullptr,
        .n = in.x.numel(),
    });
  });
  return {dgrad, dx, dl1, dl2};
}

}  // namespace torchcalc
