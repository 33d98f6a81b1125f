#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/checks.h"
#include "ops/groups.h"
#include "ops/optim_args.h"
#include "ops/penalty.h"

// Input checks of the multi-tensor optimizer steps, for every device.
//
// A call may bring thousands of small tensors, and what one costs on its way here is more than its
// update. So each state comes as one flat tensor for all parameters, and what does not change from
// step to step as one tensor of integers.
namespace torchcalc {

using TensorList = std::vector<Tensor>;

// The tensors of one call, checked: contiguous, of one dtype, on one device, in bounds.
//
// `states`: flat tensors of params' dtype or all of float32, and behind them `counts` float32
// tensors with a number for each parameter. `places`: int64 on the CPU; for each parameter, one
// after the other, where its elements begin in a flat state, where its number is among the counts,
// how many dimensions it has, its sizes, and which of them tell the groups of a penalty
// (GroupLayout::make).
class OptimCall {
 public:
  OptimCall(const char* op, const TensorList& params, const TensorList& grads,
            const TensorList& states, size_t counts, const Tensor& places)
      : op_(op), params_(params), grads_(grads), kind_(params.at(0)) {
    STD_TORCH_CHECK(grads.size() == params.size(), op, ": grads has another length than params");
    STD_TORCH_CHECK(counts <= states.size() && states.size() - counts <= kMostStates && counts <= 1,
                    op, ": states has a wrong length");
    for (size_t i = 0; i < states.size(); ++i) {
      const bool count = i >= states.size() - counts;
      Kind kind = kind_;
      const bool is_half =
          kind_.dtype == aoti_torch_dtype_float16() || kind_.dtype == aoti_torch_dtype_bfloat16();
      if (i == 0 && !count) wide_ = is_half && states[0].scalar_type() == ScalarType::Float;
      if (count || wide_) kind.dtype = aoti_torch_dtype_float32();
      STD_TORCH_CHECK(Kind(states[i]) == kind && states[i].is_contiguous(), op,
                      ": a state is of another dtype or device than params, or not contiguous");
      (count ? numbers_ : flats_).push_back({states[i].data_ptr(), states[i].numel()});
    }
    STD_TORCH_CHECK(
        places.scalar_type() == ScalarType::Long && places.is_cpu() && places.is_contiguous(), op,
        ": places is not a contiguous int64 tensor on the CPU");
    place_ = static_cast<const int64_t*>(places.data_ptr());
    places_end_ = place_ + places.numel();
  }

  // With `layouts`, how the tensors fall into groups as well.
  template <class T>
  std::vector<OptimTensor<T>> tensors(const math::Penalty& penalty,
                                      std::vector<GroupLayout>& layouts) {
    std::vector<OptimTensor<T>> tensors(params_.size());
    for (size_t k = 0; k < tensors.size(); ++k) {
      OptimTensor<T>& t = tensors[k];
      const int64_t offset = next(), number = next(), position = next(), dims = next();
      STD_TORCH_CHECK(dims >= 0 && dims <= places_end_ - place_, op_, ": places is too short");
      check(params_[k], dims, "params");
      check(grads_[k], dims, "grads");
      t.n = params_[k].numel();
      const int64_t* const sizes = place_;
      place_ += dims;
      const int64_t indexes = next();
      if (penalty.by_groups()) {
        const bool by_block = penalty.kind == math::PenaltyKind::kLargest;
        STD_TORCH_CHECK(
            layouts.emplace_back().make(sizes, dims, indexes,
                                        by_block ? static_cast<int64_t>(penalty.factor) : 0),
            op_, ": a parameter does not fall into the groups of the penalty");
      }
      t.param = static_cast<T*>(params_[k].data_ptr());
      t.grad = static_cast<const T*>(grads_[k].data_ptr());
      for (size_t i = 0; i < flats_.size(); ++i) {
        STD_TORCH_CHECK(offset >= 0 && offset <= flats_[i].size - t.n, op_,
                        ": places reach beyond a state");
        t.state[i] = static_cast<char*>(flats_[i].data) +
                     offset * static_cast<int64_t>(wide_ ? sizeof(opmath_t<T>) : sizeof(T));
      }
      t.wide = wide_;
      t.number = static_cast<uint32_t>(position);
      for (const Flat& numbers : numbers_) {
        STD_TORCH_CHECK(number >= 0 && number < numbers.size, op_, ": places reach beyond steps");
        t.step = static_cast<float*>(numbers.data) + number;
      }
    }
    return tensors;
  }

 private:
  struct Flat {
    void* data;
    int64_t size;
  };

  int64_t next() {
    STD_TORCH_CHECK(place_ < places_end_, op_, ": places is too short");
    return *place_++;
  }

  // The sizes are next in places.
  void check(const Tensor& t, int64_t dims, const char* name) const {
    STD_TORCH_CHECK(Kind(t) == kind_, op_, ": ", name,
                    " holds a tensor of another dtype or device than the first of params");
    const auto sizes = t.sizes();
    STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), place_, place_ + dims), op_, ": ", name,
                    " holds a tensor of another shape than in places");
    STD_TORCH_CHECK(t.is_contiguous(), op_, ": ", name, " holds a tensor that is not contiguous");
  }

  const char* op_;
  const TensorList& params_;
  const TensorList& grads_;
  Kind kind_;
  bool wide_ = false;  // states are float32, and params of a half type
  std::vector<Flat> flats_, numbers_;
  const int64_t *place_, *places_end_;
};

// f(tensors, layouts), the checked tensors of a call in their C++ type and, for a penalty by
// groups, how they fall into these.
template <class F>
void dispatch_call(const char* op, const TensorList& params, const TensorList& grads,
                   const TensorList& states, size_t counts, const Tensor& places,
                   const math::Penalty& penalty, F f) {
  dispatch_dtype(params[0].scalar_type(), op, [&]<class T>(std::type_identity<T>) {
    std::vector<GroupLayout> layouts;
    OptimCall call(op, params, grads, states, counts, places);
    const auto tensors = call.tensors<T>(penalty, layouts);
    f(tensors, layouts);
  });
}

// Raises what a step with these tensors would raise, and writes nothing: of several steps that
// belong together, none has begun when one is refused.
inline void optim_check(const TensorList& params, const TensorList& grads, const TensorList& states,
                        int64_t counts, const Tensor& places) {
  if (params.empty()) return;
  dispatch_call("optim_check", params, grads, states, static_cast<size_t>(counts), places,
                math::Penalty{}, [](const auto&, const auto&) {});
}

// Where the numbers are that tensors on the device hold: which each is, `fields` tells.
inline void read_live(const char* op, const Tensor& param, const TensorList& live,
                      const std::vector<int64_t>& fields, StepOptions& options) {
  STD_TORCH_CHECK(live.size() == fields.size(), op, ": live has another length than fields");
  for (size_t i = 0; i < live.size(); ++i) {
    STD_TORCH_CHECK(fields[i] >= 0 && fields[i] < kLiveFields, op, ": unknown field");
    const bool is_double = live[i].scalar_type() == ScalarType::Double;
    STD_TORCH_CHECK((is_double || live[i].scalar_type() == ScalarType::Float) &&
                        live[i].numel() == 1 && live[i].device() == param.device(),
                    op, ": live holds no float32 or float64 number on the device of params");
    options.live[fields[i]] = {live[i].data_ptr(), is_double};
  }
}

// params = prox(update(params)), rounded stochastically where rounding_seed is not negative.
// States: those of the options' rule, and with kCounts the numbers of steps, to each of which it
// adds 1.
template <class Device, class Options>
void optim_step(const char* op, const TensorList& params, const TensorList& grads,
                const TensorList& states, const Tensor& places, const TensorList& live,
                const std::vector<int64_t>& fields, int64_t rounding_seed, Options options) {
  if (params.empty()) return;
  constexpr size_t counts = Options::kCounts;
  STD_TORCH_CHECK(states.size() == static_cast<size_t>(options.states()) + counts, op,
                  ": states has a wrong length");
  STD_TORCH_CHECK(options.prox_clip >= 0, op, ": prox_clip is negative or NaN");
  read_live(op, params[0], live, fields, options);
  options.rounds = rounding_seed >= 0;
  options.seed = static_cast<uint64_t>(rounding_seed);
  const typename Device::Guard guard(params[0]);
  dispatch_call(
      op, params, grads, states, counts, places, options.penalty,
      [&]<class T>(const std::vector<OptimTensor<T>>& tensors,
                   const std::vector<GroupLayout>& layouts) {
        options.template with_rule<opmath_t<T>>([&]<class Rule>(std::type_identity<Rule>) {
          Device::template step<Rule>(tensors, layouts, options, Kind(params[0]));
        });
      });
}

// The ops. State: momentum_buffer, or none where momentum is 0.
template <class Device>
void sgd_step(const TensorList& params, const TensorList& grads, const TensorList& states,
              const Tensor& places, double lr, double momentum, double dampening,
              double weight_decay, bool nesterov, bool maximize, bool first_step, int64_t penalty,
              const std::vector<double>& numbers, const TensorList& live,
              const std::vector<int64_t>& fields, int64_t rounding_seed) {
  constexpr const char* op = "sgd_step";
  optim_step<Device>(op, params, grads, states, places, live, fields, rounding_seed,
                     SgdOptions{{checked_penalty(op, penalty, numbers, INFINITY)},
                                lr,
                                momentum,
                                dampening,
                                weight_decay,
                                nesterov,
                                maximize,
                                first_step});
}

// State: exp_avg, exp_avg_sq, with amsgrad max_exp_avg_sq.
template <class Device>
void adam_step(const TensorList& params, const TensorList& grads, const TensorList& states,
               const Tensor& places, double lr, double beta1, double beta2, double eps,
               double weight_decay, bool amsgrad, bool decoupled, bool maximize, int64_t penalty,
               const std::vector<double>& numbers, bool adaptive, double prox_clip,
               const TensorList& live, const std::vector<int64_t>& fields, int64_t rounding_seed) {
  constexpr const char* op = "adam_step";
  optim_step<Device>(op, params, grads, states, places, live, fields, rounding_seed,
                     AdamOptions{{checked_penalty(op, penalty, numbers, INFINITY), prox_clip},
                                 lr,
                                 beta1,
                                 beta2,
                                 eps,
                                 weight_decay,
                                 amsgrad,
                                 decoupled,
                                 maximize,
                                 adaptive});
}

// State: sum.
template <class Device>
void adagrad_step(const TensorList& params, const TensorList& grads, const TensorList& states,
                  const Tensor& places, double lr, double lr_decay, double weight_decay, double eps,
                  bool maximize, int64_t penalty, const std::vector<double>& numbers, bool adaptive,
                  double prox_clip, const TensorList& live, const std::vector<int64_t>& fields,
                  int64_t rounding_seed) {
  constexpr const char* op = "adagrad_step";
  optim_step<Device>(op, params, grads, states, places, live, fields, rounding_seed,
                     AdagradOptions{{checked_penalty(op, penalty, numbers, INFINITY), prox_clip},
                                    lr,
                                    lr_decay,
                                    weight_decay,
                                    eps,
                                    maximize,
                                    adaptive});
}

// State: square_avg, with momentum momentum_buffer, centered grad_avg.
template <class Device>
void rmsprop_step(const TensorList& params, const TensorList& grads, const TensorList& states,
                  const Tensor& places, double lr, double alpha, double eps, double weight_decay,
                  double momentum, bool centered, bool maximize, int64_t penalty,
                  const std::vector<double>& numbers, bool adaptive, double prox_clip,
                  const TensorList& live, const std::vector<int64_t>& fields,
                  int64_t rounding_seed) {
  constexpr const char* op = "rmsprop_step";
  optim_step<Device>(op, params, grads, states, places, live, fields, rounding_seed,
                     RmspropOptions{{checked_penalty(op, penalty, numbers, INFINITY), prox_clip},
                                    lr,
                                    alpha,
                                    eps,
                                    weight_decay,
                                    momentum,
                                    centered,
                                    maximize,
                                    adaptive});
}

// State: z, n.
template <class Device>
void ftrl_step(const TensorList& params, const TensorList& grads, const TensorList& states,
               const Tensor& places, double lr, double lr_before, double lr_power, double beta,
               bool maximize, int64_t penalty, const std::vector<double>& numbers,
               const TensorList& live, const std::vector<int64_t>& fields, int64_t rounding_seed) {
  constexpr const char* op = "ftrl_step";
  optim_step<Device>(op, params, grads, states, places, live, fields, rounding_seed,
                     FtrlOptions{{checked_penalty(op, penalty, numbers, INFINITY)},
                                 lr,
                                 lr_before,
                                 lr_power,
                                 beta,
                                 maximize});
}

}  // namespace torchcalc
