#pragma once

#include <cmath>

#include "math/prox.h"

// Optimizer updates of one coordinate: the plain update v first, then the prox of the penalty with
// that coordinate's own step s, so that
//   w = argmin_w  lr g(w) + (d / 2) (w - v)^2,   s = lr / d.
namespace torchcalc::math {

// Strengths of l1 |w| + (l2 / 2) w^2.
template <class T>
struct Penalty {
  T l1, l2;
  TC_HD T apply(T v, T step) const { return prox(v, step * l1, step * l2); }
};

// The hyperparameters of torch.optim.SGD; sign is -1 to maximize. `first` is the step at which the
// momentum buffer starts.
template <class T, bool Momentum, bool Penalised>
struct SgdRule {
  T lr, momentum, gain, weight_decay, sign;  // gain = 1 - dampening
  bool nesterov, first;
  Penalty<T> penalty;

  // g += weight_decay w;  b = momentum b + (1 - dampening) g, or g at first;
  // v = w - lr (g + momentum b) with Nesterov, else w - lr b;  s = lr.
  TC_HD T operator()(T w, T g, T& buffer) const {
    g = sign * g + weight_decay * w;
    if constexpr (Momentum) {
      buffer = first ? g : momentum * buffer + gain * g;
      g = nesterov ? g + momentum * buffer : buffer;
    }
    const T v = w - lr * g;
    return Penalised ? penalty.apply(v, lr) : v;
  }
};

// The hyperparameters of torch.optim.AdamW (Loshchilov & Hutter, ICLR 2019), and what a step makes
// of them: step_size = lr / (1 - beta1^k), bias2_sqrt = sqrt(1 - beta2^k) at step k, each from
// double.
template <class T, bool Penalised>
struct AdamWRule {
  T lr, beta2, eps, sign;
  T gain1, gain2, decay;  // 1 - beta1, 1 - beta2, 1 - lr weight_decay
  T step_size, bias2_sqrt;
  bool adaptive;
  Penalty<T> penalty;

  // m += (1 - beta1) (g - m);  n = beta2 n + (1 - beta2) g^2;  d = sqrt(n) / bias2_sqrt + eps;
  // v = decay w - step_size m / d;  s = lr / d, or lr where not adaptive.
  TC_HD T operator()(T w, T g, T& m, T& n) const {
    g = sign * g;
    m += gain1 * (g - m);
    n = beta2 * n + gain2 * g * g;
    const T d = std::sqrt(n) / bias2_sqrt + eps;
    const T v = decay * w - step_size * m / d;
    return Penalised ? penalty.apply(v, adaptive ? lr / d : lr) : v;
  }
};

}  // namespace torchcalc::math
