#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/checks.h"
#include "ops/args.h"

// Input checks of the multi-tensor optimizer steps, for every device.
// All tensors of a call are contiguous and share one dtype and one device.
namespace torchcalc {

using TensorList = std::vector<Tensor>;

inline void check_optim_list(const TensorList& list, const TensorList& params, const char* op,
                             const char* name) {
  STD_TORCH_CHECK(list.size() == params.size(), op, ": ", name, " has another length than params");
  for (size_t k = 0; k < list.size(); ++k) {
    check_like(list[k], params[0], op, name);
    STD_TORCH_CHECK(list[k].numel() == params[k].numel() && list[k].is_contiguous(), op, ": ", name,
                    " holds a tensor that does not fit its parameter or is not contiguous");
  }
}

// The tensors of one call as plain pointers, those without elements left out.
template <class T>
std::vector<OptimTensor<T>> optim_tensors(const TensorList& params, const TensorList& grads,
                                          const TensorList* state1, const TensorList* state2,
                                          const TensorList* steps) {
  const auto at = [](const TensorList* list, size_t k) {
    return list ? static_cast<T*>((*list)[k].data_ptr()) : nullptr;
  };
  std::vector<OptimTensor<T>> tensors;
  tensors.reserve(params.size());
  for (size_t k = 0; k < params.size(); ++k) {
    tensors.push_back({.param = static_cast<T*>(params[k].data_ptr()),
                       .grad = static_cast<const T*>(grads[k].data_ptr()),
                       .state1 = at(state1, k),
                       .state2 = at(state2, k),
                       .step = steps ? static_cast<float*>((*steps)[k].data_ptr()) : nullptr,
                       .n = params[k].numel()});
  }
  return tensors;
}

// params = prox(SGD(params)); updates momentum_buffers, which is empty where momentum is 0.
template <class Device>
void sgd_step(TensorList params, TensorList grads, TensorList momentum_buffers, double lr,
              double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
              bool first_step, double l1, double l2) {
  constexpr const char* op = "sgd_step";
  if (params.empty()) return;
  check_optim_list(params, params, op, "params");
  check_optim_list(grads, params, op, "grads");
  if (momentum != 0) check_optim_list(momentum_buffers, params, op, "momentum_buffers");
  const typename Device::Guard guard(params[0]);
  const SgdOptions options{lr,       momentum, dampening,  weight_decay, nesterov,
                           maximize, first_step, l1, l2};
  dispatch_dtype(params[0].scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    Device::sgd(optim_tensors<T>(params, grads, momentum != 0 ? &momentum_buffers : nullptr, nullptr,
                                 nullptr),
                options, params[0]);
  });
}

// params = prox(AdamW(params)); updates exp_avgs, exp_avg_sqs and adds 1 to each of steps.
template <class Device>
void adamw_step(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                TensorList steps, double lr, double beta1, double beta2, double eps,
                double weight_decay, bool maximize, double l1, double l2, bool adaptive) {
  constexpr const char* op = "adamw_step";
  if (params.empty()) return;
  check_optim_list(params, params, op, "params");
  check_optim_list(grads, params, op, "grads");
  check_optim_list(exp_avgs, params, op, "exp_avgs");
  check_optim_list(exp_avg_sqs, params, op, "exp_avg_sqs");
  STD_TORCH_CHECK(steps.size() == params.size(), op, ": steps has another length than params");
  for (const Tensor& step : steps) {
    STD_TORCH_CHECK(step.numel() == 1 && step.scalar_type() == ScalarType::Float &&
                        same_device(step, params[0]),
                    op, ": steps holds a tensor that is not one float32 on the params' device");
  }
  const typename Device::Guard guard(params[0]);
  const AdamWOptions options{lr, beta1, beta2, eps, weight_decay, maximize, l1, l2, adaptive};
  dispatch_dtype(params[0].scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    Device::adamw(optim_tensors<T>(params, grads, &exp_avgs, &exp_avg_sqs, &steps), options,
                  params[0]);
  });
}

}  // namespace torchcalc
