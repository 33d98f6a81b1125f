#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "common/dispatch.h"
#include "math/rounding.h"
#include "math/update_rules.h"

// What an optimizer step is given: tensors, and the options of each optimizer, the same for CPU and
// CUDA. Options have
//   penalty, its bound not yet set, and prox_clip, that bound in units of the rule's one_step;
//   refresh(), which reads the numbers that are in tensors;
//   kCounts, whether a number of steps is kept for each tensor;   states(), how many flat states;
//   by_coordinate(), whether each coordinate has a step of its own;
//   with_rule<T>(f), which calls f with the type of the update rule;
//   set(rule, k), the rule's numbers at step k, each made in double: in float 1 - 0.999 would lose
//   three digits.
namespace torchcalc {

constexpr int kMostStates = 3;

// One tensor of a multi-tensor optimizer step. What an optimizer does not keep is null.
template <class T>
struct OptimTensor {
  T* param = nullptr;
  const T* grad = nullptr;
  void* state[kMostStates] = {};  // of T or, where wide, of its op-math type
  float* step = nullptr;          // how many there were
  int64_t n = 0;
  uint32_t number = 0;  // in its group
  bool wide = false;
};

// A number that may be in a tensor on the device: a kernel reads it, and nothing waits for it.
struct LiveNumber {
  const void* at = nullptr;
  bool is_double = false;

  TC_HD double or_else(double given) const {
    if (at == nullptr) return given;
    return is_double ? *static_cast<const double*>(at)
                     : static_cast<double>(*static_cast<const float*>(at));
  }
};

// The order is the numbering of the ops' `fields` argument.
enum LiveField { kGradScale, kFoundInf, kLr, kBeta1, kBeta2, kLrBefore, kLiveFields };

// What all options have.
struct StepOptions {
  math::Penalty penalty;
  double prox_clip = INFINITY;
  LiveNumber live[kLiveFields] = {};
  bool rounds = false;  // params of half types stochastically, with this seed
  uint64_t seed = 0;

  // Whether gradients overflowed, and the step is to do nothing (torch.amp.GradScaler).
  TC_HD bool is_skipped() const { return live[kFoundInf].or_else(0) != 0; }

  template <class T>
  TC_HD math::Gradient<T> gradient(bool maximize, double weight_decay) const {
    return {T((maximize ? -1 : 1) / live[kGradScale].or_else(1)), T(weight_decay)};
  }

  // The penalty at a rule's step: the bound of its pull goes with lr.
  template <class Rule>
  TC_HD math::Penalty bounded(const Rule& rule) const {
    math::Penalty g = penalty;
    if (prox_clip < INFINITY) g.bound = prox_clip * static_cast<double>(rule.one_step);
    return g;
  }
};

struct SgdOptions : StepOptions {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, first_step;

  static constexpr bool kCounts = false;
  TC_HD void refresh() { lr = live[kLr].or_else(lr); }
  int states() const { return momentum != 0; }
  TC_HD bool by_coordinate() const { return false; }

  template <class T, class F>
  void with_rule(F f) const {
    dispatch_bool(momentum != 0,
                  [&](auto kept) { f(std::type_identity<math::SgdRule<T, kept>>{}); });
  }

  template <class T, bool kMomentum>
  TC_HD void set(math::SgdRule<T, kMomentum>& rule, double) const {
    // The step that momentum amounts to, with Nesterov as well: a constant gradient g makes a
    // buffer of g (1 - dampening) / (1 - momentum), and Nesterov's (without dampening) g + momentum
    // b = b.
    const double step = kMomentum ? lr * (1 - dampening) / (1 - momentum) : lr;
    rule = {.gradient = gradient<T>(maximize, weight_decay),
            .lr = T(lr),
            .momentum = T(momentum),
            .one_step = T(step),
            .keep = T(first_step ? 0 : momentum),
            .gain = T(first_step ? 1 : 1 - dampening),
            .nesterov = nesterov};
  }
};

struct AdamOptions : StepOptions {
  double lr, beta1, beta2, eps, weight_decay;
  bool amsgrad, decoupled, maximize, adaptive;

  static constexpr bool kCounts = true;
  TC_HD void refresh() {
    lr = live[kLr].or_else(lr);
    beta1 = live[kBeta1].or_else(beta1);
    beta2 = live[kBeta2].or_else(beta2);
  }
  int states() const { return amsgrad ? 3 : 2; }
  TC_HD bool by_coordinate() const { return adaptive; }

  template <class T, class F>
  void with_rule(F f) const {
    dispatch_bool(amsgrad, [&](auto most) { f(std::type_identity<math::AdamRule<T, most>>{}); });
  }

  template <class T, bool kAmsgrad>
  TC_HD void set(math::AdamRule<T, kAmsgrad>& rule, double step) const {
    rule = {.gradient = gradient<T>(maximize, decoupled ? 0 : weight_decay),
            .one_step = T(lr),
            .beta2 = T(beta2),
            .eps = T(eps),
            .gain1 = T(1 - beta1),
            .gain2 = T(1 - beta2),
            .decay = T(decoupled ? 1 - lr * weight_decay : 1),
            .step_size = T(lr / (1 - ::pow(beta1, step))),
            .bias2 = T(1 / ::sqrt(1 - ::pow(beta2, step)))};
  }
};

struct AdagradOptions : StepOptions {
  double lr, lr_decay, weight_decay, eps;
  bool maximize, adaptive;

  static constexpr bool kCounts = true;
  TC_HD void refresh() { lr = live[kLr].or_else(lr); }
  int states() const { return 1; }
  TC_HD bool by_coordinate() const { return adaptive; }

  template <class T, class F>
  void with_rule(F f) const {
    f(std::type_identity<math::AdagradRule<T>>{});
  }

  template <class T>
  TC_HD void set(math::AdagradRule<T>& rule, double step) const {
    rule = {.gradient = gradient<T>(maximize, weight_decay),
            .one_step = T(lr / (1 + (step - 1) * lr_decay)),
            .eps = T(eps)};
  }
};

struct RmspropOptions : StepOptions {
  double lr, alpha, eps, weight_decay, momentum;
  bool centered, maximize, adaptive;

  static constexpr bool kCounts = true;
  TC_HD void refresh() { lr = live[kLr].or_else(lr); }
  int states() const { return 1 + (momentum != 0) + centered; }
  TC_HD bool by_coordinate() const { return adaptive; }

  template <class T, class F>
  void with_rule(F f) const {
    dispatch_bool(momentum != 0, [&](auto kept) {
      dispatch_bool(centered,
                    [&](auto mean) { f(std::type_identity<math::RmspropRule<T, kept, mean>>{}); });
    });
  }

  template <class T, bool kMomentum, bool kCentered>
  TC_HD void set(math::RmspropRule<T, kMomentum, kCentered>& rule, double) const {
    rule = {.gradient = gradient<T>(maximize, weight_decay),
            .lr = T(lr),
            .alpha = T(alpha),
            .gain = T(1 - alpha),
            .eps = T(eps),
            .momentum = T(momentum),
            .one_step = T(lr / (1 - momentum))};
  }
};

struct FtrlOptions : StepOptions {
  double lr, lr_before, lr_power, beta;
  bool maximize;

  static constexpr bool kCounts = false;
  TC_HD void refresh() {
    lr = live[kLr].or_else(lr);
    lr_before = live[kLrBefore].or_else(lr_before);
  }
  int states() const { return 2; }
  TC_HD bool by_coordinate() const { return true; }

  template <class T, class F>
  void with_rule(F f) const {
    dispatch_bool(lr_power == -0.5,
                  [&](auto root) { f(std::type_identity<math::FtrlRule<T, root>>{}); });
  }

  template <class T, bool kRoot>
  TC_HD void set(math::FtrlRule<T, kRoot>& rule, double) const {
    rule = {.gradient = gradient<T>(maximize, 0),
            .inverse_lr = T(1 / lr),
            .beta = T(beta),
            .power = T(-lr_power),
            .drift = T(1 / lr - 1 / lr_before),
            .one_step = T(lr)};
  }
};

}  // namespace torchcalc
