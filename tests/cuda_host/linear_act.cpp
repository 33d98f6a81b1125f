#include "cuda/linear_act_kernels.cuh"
#include "request.h"

using namespace torchcalc;

template <class T>
void epilogue(Request& request) {
  const int64_t rows = request.integer("rows"), cols = request.integer("cols");
  T* z = request.input<T>("z");
  const EpilogueArgs<T> args{
      .z = z,
      .y = request.flag("in_place") ? z : request.output<T>("y", rows * cols),
      .a = request.output<T>("a", rows * cols, request.flag("keep_a")),
      .residual = request.input<T>("residual"),
      .seed = request.input<int64_t>("seed"),
      .threshold = request.integer("threshold"),
      .rows = rows,
      .cols = cols,
  };
  cuda::epilogue(static_cast<math::Activation>(request.integer("activation")), args, nullptr);
}

template <class T>
void act_grad(Request& request) {
  using Op = opmath_t<T>;
  const int64_t rows = request.integer("rows"), cols = request.integer("cols");
  const bool bias_grad = request.flag("bias_grad");
  const ActGradArgs<T, Op> args{
      .grad = request.input<T>("grad"),
      .saved = request.input<T>("saved"),
      .dz = request.output<T>("dz", rows * cols),
      .dbias = request.output<T>("dbias", cols, bias_grad),
      .partial = request.output<Op>("partial", row_chunks(rows) * cols, bias_grad),
      .seed = request.input<int64_t>("seed"),
      .threshold = request.integer("threshold"),
      .rows = rows,
      .cols = cols,
      .factor = static_cast<Op>(request.number("factor")),
      .saved_scale = static_cast<Op>(request.number("saved_scale")),
  };
  cuda::act_grad(static_cast<math::Activation>(request.integer("activation")),
                 request.integer("order"), args, nullptr);
}

void answer(Request& request) {
  const bool backward = request.text("op") == "act_grad";
  request.dispatch([&]<class T>(std::type_identity<T>) {
    backward ? act_grad<T>(request) : epilogue<T>(request);
  });
}
