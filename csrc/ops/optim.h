#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/checks.h"
#include "ops/args.h"

// Input checks of the multi-tensor optimizer steps, for every device.
// All tensors of a call are contiguous and share one dtype and one device.
namespace torchcalc {

using TensorList = std::vector<Tensor>;

// Walks the lists of a call in step with params. A call may bring thousands of small tensors, each
// question to one of which costs a call into torch: each is asked once, and no more than needed.
class OptimLists {
 public:
  OptimLists(const char* op, const TensorList& params) : op_(op), kind_(params.at(0)) {
    sizes_.reserve(params.size());
    for (const Tensor& t : params) sizes_.push_back(t.numel());
  }

  // set(k, address) for tensor k of a list whose tensors have the sizes of params.
  template <class T, class F>
  void each(const TensorList& list, const char* name, F set) const {
    each<T>(list, name, kind_, [this](size_t k) { return sizes_[k]; }, set);
  }

  // The same for a list of one float32 each.
  template <class F>
  void each_scalar(const TensorList& list, const char* name, F set) const {
    const Kind kind{aoti_torch_dtype_float32(), kind_.device_type, kind_.device_index};
    each<float>(list, name, kind, [](size_t) { return 1; }, set);
  }

  template <class T>
  std::vector<OptimTensor<T>> tensors() const {
    std::vector<OptimTensor<T>> tensors(sizes_.size());
    for (size_t k = 0; k < sizes_.size(); ++k) tensors[k].n = sizes_[k];
    return tensors;
  }

 private:
  struct Kind {
    int32_t dtype, device_type, device_index;

    Kind(int32_t dtype, int32_t device_type, int32_t device_index)
        : dtype(dtype), device_type(device_type), device_index(device_index) {}

    explicit Kind(const Tensor& t) {
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &device_index));
    }

    bool operator==(const Kind&) const = default;
  };

  template <class T, class Size, class F>
  void each(const TensorList& list, const char* name, const Kind& kind, Size size, F set) const {
    STD_TORCH_CHECK(list.size() == sizes_.size(), op_, ": ", name,
                    " has another length than params");
    for (size_t k = 0; k < list.size(); ++k) {
      const Tensor& t = list[k];
      STD_TORCH_CHECK(Kind(t) == kind, op_, ": ", name,
                      " holds a tensor of another dtype or device than params");
      STD_TORCH_CHECK(t.numel() == size(k) && t.is_contiguous(), op_, ": ", name,
                      " holds a tensor that does not fit its parameter or is not contiguous");
      set(k, static_cast<T*>(t.data_ptr()));
    }
  }

  const char* op_;
  Kind kind_;
  std::vector<int64_t> sizes_;
};

// params = prox(SGD(params)); updates momentum_buffers, which is empty where momentum is 0.
template <class Device>
void sgd_step(const TensorList& params, const TensorList& grads, const TensorList& momentum_buffers,
              double lr, double momentum, double dampening, double weight_decay, bool nesterov,
              bool maximize, bool first_step, double l1, double l2) {
  constexpr const char* op = "sgd_step";
  if (params.empty()) return;
  const typename Device::Guard guard(params[0]);
  const SgdOptions options{lr,         momentum, dampening, weight_decay, nesterov, maximize,
                           first_step, l1,       l2};
  dispatch_dtype(params[0].scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    const OptimLists lists(op, params);
    auto tensors = lists.tensors<T>();
    lists.each<T>(params, "params", [&](size_t k, T* data) { tensors[k].param = data; });
    lists.each<T>(grads, "grads", [&](size_t k, T* data) { tensors[k].grad = data; });
    if (momentum != 0) {
      lists.each<T>(momentum_buffers, "momentum_buffers",
                    [&](size_t k, T* data) { tensors[k].state1 = data; });
    }
    Device::sgd(tensors, options, params[0]);
  });
}

// params = prox(AdamW(params)); updates exp_avgs, exp_avg_sqs and adds 1 to each of steps.
template <class Device>
void adamw_step(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                const TensorList& exp_avg_sqs, const TensorList& steps, double lr, double beta1,
                double beta2, double eps, double weight_decay, bool maximize, double l1, double l2,
                bool adaptive) {
  constexpr const char* op = "adamw_step";
  if (params.empty()) return;
  const typename Device::Guard guard(params[0]);
  const AdamWOptions options{lr, beta1, beta2, eps, weight_decay, maximize, l1, l2, adaptive};
  dispatch_dtype(params[0].scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    const OptimLists lists(op, params);
    auto tensors = lists.tensors<T>();
    lists.each<T>(params, "params", [&](size_t k, T* data) { tensors[k].param = data; });
    lists.each<T>(grads, "grads", [&](size_t k, T* data) { tensors[k].grad = data; });
    lists.each<T>(exp_avgs, "exp_avgs", [&](size_t k, T* data) { tensors[k].state1 = data; });
    lists.each<T>(exp_avg_sqs, "exp_avg_sqs", [&](size_t k, T* data) { tensors[k].state2 = data; });
    lists.each_scalar(steps, "steps", [&](size_t k, float* data) { tensors[k].step = data; });
    Device::adamw(tensors, options, params[0]);
  });
}

}  // namespace torchcalc
