#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/checks.h"
#include "ops/args.h"

// Input checks of the multi-tensor optimizer steps, for every device.
//
// A call may bring thousands of small tensors, and what one costs on its way here is more than its
// update: so states come as one flat tensor with an offset for each parameter.
namespace torchcalc {

using TensorList = std::vector<Tensor>;
using Integers = std::vector<int64_t>;

// The tensors of one call, checked: contiguous, of one dtype, on one device, in bounds.
class OptimCall {
 public:
  OptimCall(const char* op, const TensorList& params, const TensorList& grads)
      : op_(op), params_(params), grads_(grads), kind_(params.at(0)) {
    STD_TORCH_CHECK(grads.size() == params.size(), op, ": grads has another length than params");
  }

  template <class T>
  std::vector<OptimTensor<T>> tensors() const {
    std::vector<OptimTensor<T>> tensors(params_.size());
    for (size_t k = 0; k < tensors.size(); ++k) {
      check(params_[k], "params");
      check(grads_[k], "grads");
      tensors[k].n = params_[k].numel();
      STD_TORCH_CHECK(grads_[k].numel() == tensors[k].n, op_,
                      ": grads holds a tensor of another size than its parameter");
      tensors[k].param = static_cast<T*>(params_[k].data_ptr());
      tensors[k].grad = static_cast<const T*>(grads_[k].data_ptr());
    }
    return tensors;
  }

  // Points member `state` of each tensor into `flat`.
  template <class T>
  void set_state(std::vector<OptimTensor<T>>& tensors, T* OptimTensor<T>::* state,
                 const Tensor& flat, const Integers& offsets, const char* name) const {
    check(flat, name);
    T* data = static_cast<T*>(flat.data_ptr());
    const int64_t size = flat.numel();
    check_length(offsets, "offsets");
    for (size_t k = 0; k < tensors.size(); ++k) {
      STD_TORCH_CHECK(offsets[k] >= 0 && offsets[k] <= size - tensors[k].n, op_,
                      ": offsets reach beyond ", name);
      tensors[k].*state = data + offsets[k];
    }
  }

  // Points member `step` of each tensor to its number in `steps`.
  template <class T>
  void set_steps(std::vector<OptimTensor<T>>& tensors, const Tensor& steps,
                 const Integers& indices) const {
    STD_TORCH_CHECK(steps.scalar_type() == ScalarType::Float && steps.is_contiguous() &&
                        Kind(steps).same_device(kind_),
                    op_, ": steps is not a contiguous float32 tensor on the device of params");
    check_length(indices, "indices");
    float* data = static_cast<float*>(steps.data_ptr());
    const int64_t size = steps.numel();
    for (size_t k = 0; k < tensors.size(); ++k) {
      STD_TORCH_CHECK(indices[k] >= 0 && indices[k] < size, op_, ": indices reach beyond steps");
      tensors[k].step = data + indices[k];
    }
  }

 private:
  void check(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(Kind(t) == kind_, op_, ": ", name,
                    " is of another dtype or device than params");
    STD_TORCH_CHECK(t.is_contiguous(), op_, ": ", name, " is not contiguous");
  }

  void check_length(const Integers& list, const char* name) const {
    STD_TORCH_CHECK(list.size() == params_.size(), op_, ": ", name,
                    " has another length than params");
  }

  const char* op_;
  const TensorList& params_;
  const TensorList& grads_;
  Kind kind_;
};

// params = prox(SGD(params)); updates momentum_buffer, which is absent where momentum is 0.
template <class Device>
void sgd_step(const TensorList& params, const TensorList& grads,
              const OptionalTensor& momentum_buffer, const Integers& offsets, double lr,
              double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
              bool first_step, double l1, double l2) {
  constexpr const char* op = "sgd_step";
  if (params.empty()) return;
  STD_TORCH_CHECK(momentum_buffer.has_value() || momentum == 0, op, ": momentum needs a buffer");
  const typename Device::Guard guard(params[0]);
  const SgdOptions options{lr,         momentum, dampening, weight_decay, nesterov, maximize,
                           first_step, l1,       l2};
  dispatch_dtype(params[0].scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    const OptimCall call(op, params, grads);
    auto tensors = call.tensors<T>();
    if (momentum != 0) {
      call.set_state(tensors, &OptimTensor<T>::state1, *momentum_buffer, offsets,
                     "momentum_buffer");
    }
    Device::sgd(tensors, options, params[0]);
  });
}

// params = prox(AdamW(params)); updates exp_avg and exp_avg_sq, and adds 1 to each of steps.
template <class Device>
void adamw_step(const TensorList& params, const TensorList& grads, const Tensor& exp_avg,
                const Tensor& exp_avg_sq, const Tensor& steps, const Integers& offsets,
                const Integers& indices, double lr, double beta1, double beta2, double eps,
                double weight_decay, bool maximize, double l1, double l2, bool adaptive) {
  constexpr const char* op = "adamw_step";
  if (params.empty()) return;
  const typename Device::Guard guard(params[0]);
  const AdamWOptions options{lr, beta1, beta2, eps, weight_decay, maximize, l1, l2, adaptive};
  dispatch_dtype(params[0].scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    const OptimCall call(op, params, grads);
    auto tensors = call.tensors<T>();
    call.set_state(tensors, &OptimTensor<T>::state1, exp_avg, offsets, "exp_avg");
    call.set_state(tensors, &OptimTensor<T>::state2, exp_avg_sq, offsets, "exp_avg_sq");
    call.set_steps(tensors, steps, indices);
    Device::adamw(tensors, options, params[0]);
  });
}

}  // namespace torchcalc
