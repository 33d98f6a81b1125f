#pragma once

#include <cmath>

#include "math/penalty.h"

// Optimizer updates of one coordinate: first the plain update v, and with it the step s that the
// coordinate makes in the long run; then the prox of the penalty with that step, so that
//   w = argmin_w  g(w) + sum (w - v)^2 / (2 s).
// A rule knows nothing of penalties, and a penalty nothing of rules.
namespace torchcalc::math {

// The hyperparameters of torch.optim.SGD; sign is -1 to maximize.
template <class T>
struct SgdRule {
  T lr, momentum, weight_decay, sign;
  T keep, gain;  // momentum and 1 - dampening, but 0 and 1 where the momentum buffer starts
  bool nesterov;

  // g += weight_decay w;  v = w - lr g.
  TC_HD T operator()(T w, T g) const { return w - lr * decayed(w, g); }

  // b = momentum b + (1 - dampening) g;  v = w - lr (g + momentum b) with Nesterov, else w - lr b.
  TC_HD T operator()(T w, T g, T& b) const {
    g = decayed(w, g);
    b = keep * b + gain * g;
    return w - lr * (nesterov ? g + momentum * b : b);
  }

 private:
  // Not 0 times w: w may be infinite.
  TC_HD T decayed(T w, T g) const {
    return weight_decay == T(0) ? sign * g : sign * g + weight_decay * w;
  }
};

template <class T>
struct Updated {
  T v, step;
};

// The hyperparameters of torch.optim.AdamW (Loshchilov & Hutter, ICLR 2019), and what a step makes
// of them: step_size = lr / (1 - beta1^k), bias2 = 1 / sqrt(1 - beta2^k) at step k, each from
// double.
template <class T>
struct AdamWRule {
  T lr, beta2, eps, sign;
  T gain1, gain2, decay;  // 1 - beta1, 1 - beta2, 1 - lr weight_decay
  T step_size, bias2;
  bool adaptive;

  // m += (1 - beta1) (g - m);  n = beta2 n + (1 - beta2) g^2;  d = bias2 sqrt(n) + eps;
  // v = decay w - step_size m / d. One reciprocal serves both v and the step.
  TC_HD Updated<T> operator()(T w, T g, T& m, T& n) const {
    g = sign * g;
    m += gain1 * (g - m);
    n = beta2 * n + gain2 * g * g;
    const T reciprocal = inverse(n);
    return {decay * w - step_size * m * reciprocal, step(m, n, reciprocal)};
  }

  // s = lr / d, but lr where m = n = 0 (no gradient was ever seen) or not adaptive.
  TC_HD T step(T m, T n) const { return step(m, n, inverse(n)); }

 private:
  TC_HD T inverse(T n) const { return T(1) / (bias2 * std::sqrt(n) + eps); }

  TC_HD T step(T m, T n, T reciprocal) const {
    const bool unseen = (m == T(0)) & (n == T(0));
    return !adaptive || unseen ? lr : finite(lr * reciprocal);
  }
};

}  // namespace torchcalc::math
