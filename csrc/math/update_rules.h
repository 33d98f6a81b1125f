#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "math/prox.h"

// Optimizer updates of one coordinate: first the plain update v, and with it the step s that the
// coordinate makes in the long run; then the prox of the penalty with that step, so that
//   w = argmin_w  s g(w) + (w - v)^2 / 2.
// A rule knows nothing of penalties, and a penalty nothing of rules.
namespace torchcalc::math {

// The nearest finite number: 0 times it is 0, and infinity minus it is infinity.
template <class T>
TC_HD T finite(T x) {
  const T most = std::numeric_limits<T>::max();
  return x < most ? x : most;
}

// What of a penalty's prox is there to compute.
enum class Prox { kNone, kSoftThreshold, kShrunk, kShrunkAndClipped };

// g(w) = l1 |w| + (l2 / 2) w^2, which pulls a coordinate by at most `bound` (finite).
template <class T>
struct Penalty {
  T l1, l2, bound;

  // What the step of a coordinate makes of it.
  struct Scaled {
    T threshold, ratio;
  };

  TC_HD Prox prox() const {
    if (l2 == T(0)) return l1 == T(0) ? Prox::kNone : Prox::kSoftThreshold;
    return bound == std::numeric_limits<T>::max() ? Prox::kShrunk : Prox::kShrunkAndClipped;
  }

  TC_HD Scaled scaled(T step) const {
    const T threshold = step * l1;
    return {threshold < bound ? threshold : bound, T(1) / (T(1) + finite(step * l2))};
  }

  // w = v - clip(v - prox(v), bound), and by Moreau v - prox(v) is step times a subgradient of g.
  // (Of L1 that is clipped to the bound by the threshold.)
  template <Prox Kind>
  TC_HD T apply(T v, const Scaled& by) const {
    const T soft = soft_threshold_by_positive(v, by.threshold);
    if constexpr (Kind == Prox::kSoftThreshold) return soft;
    const T shrunk = soft * by.ratio;
    return Kind == Prox::kShrunk ? shrunk : clip(shrunk, v - bound, v + bound);
  }
};

// What is finite in double stays so in T: 0 times it is 0.
template <class T>
TC_HD Penalty<T> penalty(double l1, double l2, double bound) {
  return {finite(T(l1)), finite(T(l2)), finite(T(bound))};
}

// f(std::integral_constant<Prox, Kind>{}), unless there is nothing to compute.
template <class F>
TC_HD void dispatch_prox(Prox kind, F f) {
  switch (kind) {
    case Prox::kNone:
      return;
    case Prox::kSoftThreshold:
      return f(std::integral_constant<Prox, Prox::kSoftThreshold>());
    case Prox::kShrunk:
      return f(std::integral_constant<Prox, Prox::kShrunk>());
    case Prox::kShrunkAndClipped:
      return f(std::integral_constant<Prox, Prox::kShrunkAndClipped>());
  }
}

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
  // v = decay w - step_size m / d;  s = lr / d, but lr where m = n = 0 (no gradient was ever seen)
  // or not adaptive. One reciprocal serves both.
  TC_HD Updated<T> operator()(T w, T g, T& m, T& n) const {
    g = sign * g;
    m += gain1 * (g - m);
    n = beta2 * n + gain2 * g * g;
    const T reciprocal = T(1) / (bias2 * std::sqrt(n) + eps);
    const bool unseen = (m == T(0)) & (n == T(0));
    const T step = !adaptive || unseen ? lr : finite(lr * reciprocal);
    return {decay * w - step_size * m * reciprocal, step};
  }
};

}  // namespace torchcalc::math
