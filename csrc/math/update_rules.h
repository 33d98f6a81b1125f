#pragma once

#include <cmath>

#include "math/penalty.h"

// Optimizer updates of one coordinate: first the plain update v, and with it the step s that the
// coordinate makes in the long run; then the prox of the penalty with that step, so that
//   w = argmin_w  g(w) + sum (w - v)^2 / (2 s).
// A rule knows nothing of penalties, and a penalty nothing of rules. Each rule has
//   kStates, how many numbers it keeps of a coordinate: state[0], state[1], ...;
//   one_step, the step of all coordinates where theirs are not wanted;
//   gradient, of what is minimised;
//   rule(w, g, state), the update with that gradient g, which writes the states;
//   rule.metric(), which makes the coordinate's step again from what was written, where a penalty
//   by groups may need it.
namespace torchcalc::math {

template <class T>
struct Updated {
  T v, step;  // the step may be infinite, which few penalties take
};

// The gradient of what is minimised: sign is -1 to maximize; with an l2 penalty in the loss.
template <class T>
struct Gradient {
  T sign, weight_decay;

  // Not 0 times w: w may be infinite.
  TC_HD T operator()(T w, T g) const {
    return weight_decay == T(0) ? sign * g : sign * g + weight_decay * w;
  }
};

// The step lr / d, given 1 / d; lr where no gradient was ever seen.
template <class T>
TC_HD T step_of(T lr, T inverse, bool unseen) {
  return unseen ? lr : lr * inverse;
}

// 1 / d for d = scale sqrt(n) + eps.
template <class T>
TC_HD T inverse_root(T n, T scale, T eps) {
  return T(1) / (scale * std::sqrt(n) + eps);
}

// The steps of coordinates, one_step / d, from the states of any rule: which of them are n, the
// mean m whose square n is lessened by and what else is 0 where no gradient was ever seen, each -1
// for none.
template <class T>
struct Metric {
  T one_step, scale = 1, eps = 0;
  int squares = -1, mean = -1, seen = -1;

  // state(i) is the coordinate's state i.
  template <class State>
  TC_HD T operator()(State state) const {
    if (squares < 0) return one_step;
    const T m = mean < 0 ? T(0) : state(mean), n = state(squares);
    const bool unseen = (n == T(0)) & (seen < 0 || state(seen) == T(0));
    return finite(step_of(one_step, inverse_root(n - m * m, scale, eps), unseen));
  }
};

// torch.optim.SGD.
template <class T, bool kMomentum>
struct SgdRule {
  static constexpr int kStates = kMomentum;
  Gradient<T> gradient;
  T lr, momentum, one_step;
  T keep, gain;  // momentum and 1 - dampening, but 0 and 1 where the momentum buffer starts
  bool nesterov;

  // g += weight_decay w;  v = w - lr g. With momentum b = momentum b + (1 - dampening) g;
  // v = w - lr (g + momentum b) with Nesterov, else w - lr b.
  TC_HD Updated<T> operator()(T w, T g, T* state) const {
    if constexpr (kMomentum) {
      const T b = state[0] = keep * state[0] + gain * g;
      g = nesterov ? g + momentum * b : b;
    }
    return {w - lr * g, one_step};
  }

  TC_HD Metric<T> metric() const { return {one_step}; }
};

// a b, a finite, rounded before anything is added to it. GCC makes a fused multiply-add of a
// product across statements and its own barriers, but not of a choice between the product and an
// operand.
template <class T>
TC_HD T rounded_product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) > 4) {
    return __dmul_rn(a, b);
  } else {
    return __fmul_rn(a, b);
  }
#else
  const T product = a * b;
  return b == T(0) ? b : product;
#endif
}

// torch.optim.Adam (Kingma & Ba, ICLR 2015) and AdamW (Loshchilov & Hutter, ICLR 2019); amsgrad:
// Reddi, Kale & Kumar, ICLR 2018. step_size = lr / (1 - beta1^k), bias2 = 1 / sqrt(1 - beta2^k) at
// step k, each from double.
template <class T, bool kAmsgrad>
struct AdamRule {
  static constexpr int kStates = kAmsgrad ? 3 : 2;
  Gradient<T> gradient;
  T one_step, beta2, eps;
  T gain1, gain2;  // 1 - beta1, 1 - beta2
  T decay;         // decoupled: 1 - lr weight_decay, else 1
  T step_size, bias2;

  // g += l2 w;  m += (1 - beta1) (g - m);  n = beta2 n + (1 - beta2) g^2;  d = bias2 sqrt(n) + eps,
  // with amsgrad of the largest n so far;  v = decay w - step_size m / d. One reciprocal serves
  // both v and the step.
  TC_HD Updated<T> operator()(T w, T g, T* state) const {
    T &m = state[0], &n = state[1];
    m += gain1 * (g - m);
    n = beta2 * n + gain2 * g * g;
    if constexpr (kAmsgrad) {
      state[2] = (n > state[2]) | (n != n) ? n : state[2];  // NaN of either
    }
    const T most = state[kStates - 1], inverse = inverse_root(most, bias2, eps);
    const bool unseen = (m == T(0)) & (most == T(0));
    // torch rounds a weight after its decay, too: w changes so slowly that the difference would
    // keep its sign over many steps.
    const T decayed = rounded_product(decay, w);
    return {decayed - step_size * m * inverse, step_of(one_step, inverse, unseen)};
  }

  TC_HD Metric<T> metric() const {
    return {.one_step = one_step, .scale = bias2, .eps = eps, .squares = kStates - 1, .seen = 0};
  }
};

// torch.optim.Adagrad (Duchi, Hazan & Singer, JMLR 2011).
template <class T>
struct AdagradRule {
  static constexpr int kStates = 1;
  Gradient<T> gradient;
  T one_step, eps;  // one_step: lr / (1 + (k - 1) lr_decay) at step k

  // g += weight_decay w;  n += g^2;  d = sqrt(n) + eps;  v = w - lr g / d.
  TC_HD Updated<T> operator()(T w, T g, T* state) const {
    state[0] += g * g;
    const T inverse = inverse_root(state[0], T(1), eps);
    return {w - one_step * g * inverse, step_of(one_step, inverse, state[0] == T(0))};
  }

  TC_HD Metric<T> metric() const { return {.one_step = one_step, .eps = eps, .squares = 0}; }
};

// torch.optim.RMSprop (Hinton, 2012; centered: Graves, 2013).
template <class T, bool kMomentum, bool kCentered>
struct RmspropRule {
  static constexpr int kStates = 1 + kMomentum + kCentered;
  static constexpr int kBuffer = 1, kMean = 1 + kMomentum;  // behind the average of squares
  Gradient<T> gradient;
  T lr, alpha, gain, eps, momentum;  // gain = 1 - alpha
  T one_step;                        // lr / (1 - momentum)

  // g += weight_decay w;  n = alpha n + (1 - alpha) g^2;  d = sqrt(n) + eps, centered
  // sqrt(n - mean^2) + eps with mean += (1 - alpha) (g - mean);  v = w - lr g / d, with momentum
  // b = momentum b + g / d;  v = w - lr b.
  TC_HD Updated<T> operator()(T w, T g, T* state) const {
    state[0] = alpha * state[0] + gain * g * g;
    if constexpr (kCentered) state[kMean] += gain * (g - state[kMean]);
    const T mean = kCentered ? state[kMean] : T(0);
    const T inverse = inverse_root(state[0] - mean * mean, T(1), eps);
    T d = g * inverse;
    if constexpr (kMomentum) d = state[kBuffer] = momentum * state[kBuffer] + d;
    return {w - lr * d, step_of(one_step, inverse, state[0] == T(0))};
  }

  TC_HD Metric<T> metric() const {
    return {.one_step = one_step, .eps = eps, .squares = 0, .mean = kCentered ? kMean : -1};
  }
};

// FTRL-Proximal (McMahan et al., "Ad click prediction", KDD 2013), any power of the sum of squares;
// no penalty by groups.
template <class T, bool kRoot>
struct FtrlRule {
  static constexpr int kStates = 2;
  Gradient<T> gradient;
  T inverse_lr, beta, power;
  T drift;     // 1 / lr - 1 / lr_before
  T one_step;  // lr; its steps are always wanted

  // n' = n + g^2;  d' = (beta + n'^power) / lr, where d was made with lr_before;
  // z += g - (d' - d) w;  v = -z / d'.
  TC_HD Updated<T> operator()(T w, T g, T* state) const {
    T &z = state[0], &n = state[1];
    const T before = raised(n);
    n += g * g;
    z += g - ((raised(n) - before) * inverse_lr + (beta + before) * drift) * w;
    const T s = finite(T(1) / ((beta + raised(n)) * inverse_lr));
    return {-z * s, s};
  }

  TC_HD Metric<T> metric() const { return {one_step}; }

 private:
  TC_HD T raised(T n) const { return kRoot ? std::sqrt(n) : std::pow(n, power); }
};

}  // namespace torchcalc::math
