#include "cuda/dropout_kernels.cuh"
#include "request.h"

using namespace torchcalc;

void answer(Request& request) {
  const int64_t n = request.integer("n"), threshold = request.integer("threshold");
  const auto* seed = request.input<int64_t>("seed");
  if (request.text("dtype") == "bool") {
    cuda::dropout_mask(request.output<bool>("mask", n), n, seed, threshold, nullptr);
    return;
  }
  request.dispatch([&]<class T>(std::type_identity<T>) {
    cuda::dropout<T>(request.input<T>("x"), request.output<T>("y", n), n, seed, threshold, nullptr);
  });
}
