#include <sstream>

#include "cuda/optim_kernels.cuh"
#include "request.h"

using namespace torchcalc;

// The tensors of the call, of the sizes in `sizes`: arrays param0, param1, ... and so on.
template <class T>
std::vector<OptimTensor<T>> tensors(Request& request) {
  std::vector<OptimTensor<T>> result;
  std::istringstream sizes(request.text("sizes"));
  for (std::string size; std::getline(sizes, size, ',');) {
    const std::string k = std::to_string(result.size());
    result.push_back({.param = request.input<T>("param" + k),
                      .grad = request.input<T>("grad" + k),
                      .state = {request.input<T>("state1_" + k), request.input<T>("state2_" + k)},
                      .step = request.input<float>("step" + k),
                      .n = std::stoll(size)});
  }
  return result;
}

template <class T>
void sgd(Request& request) {
  const SgdOptions options{
      .lr = request.number("lr"),
      .momentum = request.number("momentum"),
      .dampening = request.number("dampening"),
      .weight_decay = request.number("weight_decay"),
      .nesterov = request.flag("nesterov"),
      .maximize = request.flag("maximize"),
      .first_step = request.flag("first_step"),
      .l1 = request.number("l1"),
      .l2 = request.number("l2"),
  };
  cuda::sgd(tensors<T>(request), options, nullptr);
}

template <class T>
void adamw(Request& request) {
  const AdamWOptions options{
      .lr = request.number("lr"),
      .beta1 = request.number("beta1"),
      .beta2 = request.number("beta2"),
      .eps = request.number("eps"),
      .weight_decay = request.number("weight_decay"),
      .maximize = request.flag("maximize"),
      .l1 = request.number("l1"),
      .l2 = request.number("l2"),
      .adaptive = request.flag("adaptive"),
      .bound = request.number("bound"),
  };
  cuda::adamw(tensors<T>(request), options, nullptr);
}

void answer(Request& request) {
  request.dispatch([&]<class T>(std::type_identity<T>) {
    request.text("op") == "sgd" ? sgd<T>(request) : adamw<T>(request);
  });
}
