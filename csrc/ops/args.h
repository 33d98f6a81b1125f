#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "math/activations.h"
#include "math/prox.h"
#include "math/update_rules.h"

// What a kernel is given: plain pointers into contiguous memory and sizes, the same for CPU and
// CUDA. No torch in here, so that kernels can be compiled and tested without it. Op is T's op-math
// type.
namespace torchcalc {

// y = residual + dropout(f(z)) on a row-major [rows, cols] matrix.
template <class T>
struct EpilogueArgs {
  const T* z;         // [rows, cols]; may be y
  T* y;               // [rows, cols]
  T* a;               // [rows, cols] out, or null
  const T* residual;  // [rows, cols] or null
  const int64_t* seed;
  int64_t threshold;  // 0: no dropout
  int64_t rows, cols;
};

// dz = mask(factor * d<Order>(grad, u)), u = saved / saved_scale;  dbias = sum of dz over rows.
template <class T, class Op>
struct ActGradArgs {
  const T* grad;   // [rows, cols]
  const T* saved;  // [rows, cols], or null where the activation needs none
  T* dz;           // [rows, cols]
  T* dbias;        // [cols] or null
  Op* partial;     // [row_chunks(rows), cols] scratch for dbias, or null
  const int64_t* seed;
  int64_t threshold;
  int64_t rows, cols;
  Op factor, saved_scale;
};

// Bias gradients are summed over chunks of this many rows, then over chunks, both in order: a
// partition by shape alone gives the same bits for any number of threads.
constexpr int64_t kRowsPerChunk = 128;
TC_HD int64_t row_chunks(int64_t rows) { return (rows + kRowsPerChunk - 1) / kRowsPerChunk; }

// A strength of a penalty: a number (both pointers are null), one element for all (`data`, or
// `exact` in op-math type), or one for each.
template <class T, class Op>
struct Strength {
  const T* data;
  bool for_each;
  Op value;
  const Op* exact = nullptr;

  TC_HD Op operator[](int64_t i) const {
    if (exact) return *exact;
    return data ? static_cast<Op>(data[for_each ? i : 0]) : value;
  }
};

// Arrays have n elements. An input that may be null stands for zeros, an output for one not wanted.
template <class T, class Op>
struct ProxArgs {
  const T* x;
  Strength<T, Op> l1, l2;
  T* y;
  int64_t n;
};

template <class T, class Op>
struct ProxGradArgs {
  const T *grad, *x;
  Strength<T, Op> l1, l2;
  T *dx, *dl1, *dl2;  // dl1, dl2 may be null
  int64_t n;
};

template <class T, class Op>
struct ProxGradGradArgs {
  const T *cx, *c1, *c2;  // cotangents of dx, dl1, dl2; may be null
  const T *grad, *x;
  Strength<T, Op> l1, l2;
  T *dgrad, *dx, *dl1, *dl2;  // dl1, dl2 may be null
  int64_t n;
};

// One tensor of a multi-tensor optimizer step. What an optimizer does not keep is null.
template <class T>
struct OptimTensor {
  T* param = nullptr;
  const T* grad = nullptr;
  T* state[2] = {};       // momentum_buffer; exp_avg, exp_avg_sq
  float* step = nullptr;  // how many there were
  int64_t n = 0;
};

// Hyperparameters of a step, and what the kernels make of them: an update rule and a penalty.
struct SgdOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, first_step;
  double l1, l2;

  template <class T>
  math::SgdRule<T> rule() const {
    return {.lr = T(lr),
            .momentum = T(momentum),
            .weight_decay = T(weight_decay),
            .sign = T(maximize ? -1 : 1),
            .keep = T(first_step ? 0 : momentum),
            .gain = T(first_step ? 1 : 1 - dampening),
            .nesterov = nesterov};
  }

  template <class T>
  math::Penalty<T> penalty() const {
    return math::penalty<T>(l1, l2, std::numeric_limits<double>::max());
  }

  // The step that momentum amounts to, with Nesterov as well: a constant gradient g makes a buffer
  // of g (1 - dampening) / (1 - momentum), and Nesterov's (without dampening) g + momentum b = b.
  double prox_step() const { return momentum == 0 ? lr : lr * (1 - dampening) / (1 - momentum); }
};

struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay;
  bool maximize;
  double l1, l2;
  bool adaptive;
  double bound;  // on the penalty's pull

  // The rule of step number `step`. Differences from 1 are taken in double: in float 1 - 0.999
  // would lose three digits.
  template <class T>
  TC_HD math::AdamWRule<T> rule(double step) const {
    return {.lr = T(lr),
            .beta2 = T(beta2),
            .eps = T(eps),
            .sign = T(maximize ? -1 : 1),
            .gain1 = T(1 - beta1),
            .gain2 = T(1 - beta2),
            .decay = T(1 - lr * weight_decay),
            .step_size = T(lr / (1 - ::pow(beta1, step))),
            .bias2 = T(1 / ::sqrt(1 - ::pow(beta2, step))),
            .adaptive = adaptive};
  }

  template <class T>
  TC_HD math::Penalty<T> penalty() const {
    return math::penalty<T>(l1, l2, bound);
  }
};

}  // namespace torchcalc
