#include "cuda/prox_kernels.cuh"
#include "request.h"

using namespace torchcalc;

// A strength is a number, or an array of one element or of n.
template <class T>
Strength<T, opmath_t<T>> strength(Request& request, const char* name) {
  const T* data = request.input<T>(name);
  return {data, data && request.flag(std::string(name) + "_each"),
          static_cast<opmath_t<T>>(request.number(std::string(name) + "_value"))};
}

template <class T>
void run(Request& request) {
  using Op = opmath_t<T>;
  const std::string op = request.text("op");
  const int64_t n = request.integer("n");
  const T* x = request.input<T>("x");
  const auto l1 = strength<T>(request, "l1"), l2 = strength<T>(request, "l2");
  if (op == "prox") {
    cuda::prox(ProxArgs<T, Op>{x, l1, l2, request.output<T>("y", n), n}, nullptr);
    return;
  }
  const T* grad = request.input<T>("grad");
  T* dx = request.output<T>("dx", n);
  T* dl1 = request.output<T>("dl1", n, l1.data != nullptr);
  T* dl2 = request.output<T>("dl2", n, l2.data != nullptr);
  if (op == "prox_grad") {
    cuda::prox_grad(ProxGradArgs<T, Op>{grad, x, l1, l2, dx, dl1, dl2, n}, nullptr);
    return;
  }
  cuda::prox_grad_grad(ProxGradGradArgs<T, Op>{request.input<T>("cx"), request.input<T>("c1"),
                                               request.input<T>("c2"), grad, x, l1, l2,
                                               request.output<T>("dgrad", n), dx, dl1, dl2, n},
                       nullptr);
}

void answer(Request& request) {
  request.dispatch([&]<class T>(std::type_identity<T>) { run<T>(request); });
}
