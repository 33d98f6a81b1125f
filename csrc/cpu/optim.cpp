#include "ops/optim.h"

#include <array>
#include <utility>

#include "cpu/group_prox.h"
#include "cpu/parallel.h"
#include "cpu/penalty.h"

namespace torchcalc::cpu {
namespace {

struct Unpenalized {
  template <class Op>
  TC_HD Op operator()(Op v, Op) const {
    return v;
  }
};

// A step streams through up to five arrays, with arithmetic between that keeps a core from looking
// far ahead by itself: with each block of elements it is told what comes kAhead bytes later, so
// that these requests are spread over the arithmetic. An address need not exist.
constexpr int64_t kBlock = 64;
constexpr uintptr_t kAhead = 2048, kLine = 64;

class Stream {
 public:
  template <class T>
  explicit Stream(const T* data)
      : at_(reinterpret_cast<uintptr_t>(data) + kAhead), bytes_(kBlock * sizeof(T)) {}

  void prefetch_block() {
    for (const uintptr_t end = at_ + bytes_; at_ < end; at_ += kLine) {
      __builtin_prefetch(reinterpret_cast<const void*>(at_));
    }
  }

 private:
  uintptr_t at_, bytes_;
};

// An update rule as a stage: params become v, the plain update, or its prox at once. The steps are
// the coordinates' own or one; those are stored if `steps` is not null. (Types: no branch in the
// loop.)
template <class Rule, class Prox, class Op, class Own, class Stored, size_t kStreams,
          class... State>
TC_SIMD void update(const Rule& shared, const Prox& shared_prox, Op* __restrict param,
                    const Op* __restrict grad, Op* __restrict steps, int64_t n, Own, Stored,
                    std::array<Stream, kStreams> streams, State* __restrict... state) {
  static_assert(sizeof...(State) == Rule::kStates);
  const auto rule = shared;
  const auto prox = shared_prox;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    for (Stream& stream : streams) stream.prefetch_block();
    const int64_t end = std::min(begin + kBlock, n);
    for (int64_t i = begin; i < end; ++i) {
      Op kept[] = {state[i]..., Op()};
      const auto updated = rule(param[i], rule.gradient(param[i], grad[i]), kept);
      param[i] = prox(updated.v, Own::value ? updated.step : rule.one_step);
      if constexpr (Stored::value) steps[i] = math::finite(updated.step);
      size_t k = 0;
      ((state[i] = kept[k++]), ...);
    }
  }
}

// Elements of a stage: of a penalty that is a pass of its own, what the first cache keeps.
constexpr int64_t kStage = 2 * kBlock;

// A stage of an array in op-math type: the array itself where that is its type, else a copy.
template <class T>
class Segment {
 public:
  opmath_t<T>* read(T* data, int64_t n) {
    if constexpr (kInPlace)
      return data;
    else {
      load(values_, data, n);
      return values_;
    }
  }

  const opmath_t<T>* read(const T* data, int64_t n) { return read(const_cast<T*>(data), n); }

  void write(T* data, int64_t n) const {
    if constexpr (!kInPlace) store(data, values_, n);
  }

 private:
  static constexpr bool kInPlace = std::is_same_v<T, opmath_t<T>>;
  alignas(64) opmath_t<T> values_[kInPlace ? 1 : kStage];
};

// A stage of a state, of T or of its op-math type.
template <class T>
class StateSegment {
 public:
  opmath_t<T>* read(void* data, bool wide, int64_t i, int64_t n) {
    if (wide) return static_cast<opmath_t<T>*>(data) + i;
    return narrow_.read(static_cast<T*>(data) + i, n);
  }

  void write(void* data, bool wide, int64_t i, int64_t n) const {
    if (!wide) narrow_.write(static_cast<T*>(data) + i, n);
  }

  static Stream stream(const void* data, bool wide, int64_t i) {
    if (wide) return Stream(static_cast<const opmath_t<T>*>(data) + i);
    return Stream(static_cast<const T*>(data) + i);
  }

 private:
  Segment<T> narrow_;
};

// f(k, begin, end, scratch) over pieces of all tensors k, in parallel: few large and many small
// ones alike. Each thread has its own scratch.
template <class T, class F>
void for_each_piece(const std::vector<OptimTensor<T>>& tensors, F f) {
  struct Piece {
    size_t k;
    int64_t begin, end;
  };
  std::vector<Piece> pieces;
  pieces.reserve(tensors.size());
  int64_t total = 0;
  for (size_t k = 0; k < tensors.size(); ++k) {
    const int64_t n = tensors[k].n;
    total += n;
    for (int64_t begin = 0; begin < n; begin += kGrain) {
      pieces.push_back({k, begin, std::min(begin + kGrain, n)});
    }
  }
  const auto count = static_cast<int64_t>(pieces.size());
  const int64_t grain = total > 0 ? ceil_div(kGrain * count, total) : 1;
  parallel_for(0, count, grain, [&](int64_t first, int64_t last) {
    GroupScratch<opmath_t<T>> scratch;
    for (int64_t p = first; p < last; ++p) {
      f(pieces[p].k, pieces[p].begin, pieces[p].end, scratch);
    }
  });
}

// The rule and the penalty of tensors that are at the same step.
template <class Rule, class Op>
struct Stages {
  Rule rule;
  math::Penalty penalty;
  PenaltyStage<Op> prox;

  template <class Options>
  static Stages at(const Options& options, double step) {
    Rule rule;
    options.set(rule, step);
    const math::Penalty penalty = options.bounded(rule);
    return {rule, penalty, PenaltyStage<Op>(penalty)};
  }
};

// Updates all tensors, and applies the penalty to them.
template <class T, class Rule>
class Step {
 public:
  using Op = opmath_t<T>;

  template <class Options>
  Step(const std::vector<OptimTensor<T>>& tensors, const std::vector<GroupLayout>& layouts,
       const Options& options)
      : tensors_(tensors),
        layouts_(layouts),
        rounds_(options.rounds),
        seed_(options.seed),
        stages_of_(tensors.size()) {
    // Most often all tensors are at the same step, and its numbers are made once.
    float made_for = 0;
    for (size_t k = 0; k < tensors.size(); ++k) {
      float step = 0;
      if constexpr (Options::kCounts) step = *tensors[k].step += 1;
      if (stages_.empty() || step != made_for)
        stages_.push_back(Stages<Rule, Op>::at(options, step));
      made_for = step;
      stages_of_[k] = stages_.size() - 1;
    }
    // With lr = 0 all steps are 0: a constraint is met in the metric of one step for all.
    want_steps_ = options.by_coordinate() && options.penalty.wants_step() && options.lr != 0;
  }

  void run() const {
    // Groups that no stage cuts are within it, and so is their prox.
    const auto is_uncut = [](const GroupLayout& layout) {
      return layout.in_order() && kStage % std::max<int64_t>(layout.size, 1) == 0;
    };
    if (std::all_of(layouts_.begin(), layouts_.end(), is_uncut)) {  // or there are none
      return for_each_piece(tensors_, [&](size_t k, int64_t begin, int64_t end, auto& scratch) {
        alignas(64) Op steps[kStage];
        const auto prox = [&](Op* v, int64_t n) {
          if (layouts_.empty()) return;
          prox_some_groups<Op>(at(k).penalty, layouts_[k], v, want_steps_ ? steps : nullptr,
                               at(k).rule.one_step, 0, n / layouts_[k].size, scratch);
        };
        range(k, begin, end, [&](int64_t) { return steps; }, prox);
      });
    }
    for (size_t k = 0; k < tensors_.size(); ++k) {
      if (tensors_[k].n == 0) continue;
      layouts_[k].in_order() && layouts_[k].size <= kGrain ? run_groups(k) : run_whole(k);
    }
  }

 private:
  const Stages<Rule, Op>& at(size_t k) const { return stages_[stages_of_[k]]; }

  // Elements [begin, end) of tensor k become v and its prox, stage by stage; steps_of(i) is where
  // the steps of stage i go, and groups(v, n) what comes then.
  template <class StepsOf, class Groups>
  void range(size_t k, int64_t begin, int64_t end, StepsOf steps_of, Groups groups) const {
    const OptimTensor<T> t = tensors_[k];
    const Stages<Rule, Op> stages = at(k);
    const auto run = [&](const auto& round, const auto& prox, auto own, auto stored) {
      for (int64_t i = begin; i < end; i += kStage) {
        const int64_t n = std::min(kStage, end - i);
        Segment<T> param, grad;
        std::array<StateSegment<T>, Rule::kStates> states;
        Op* const v = param.read(t.param + i, n);
        const Op* const g = grad.read(t.grad + i, n);
        Op* const steps = stored ? steps_of(i) : nullptr;
        [&]<size_t... I>(std::index_sequence<I...>) {
          const std::array streams{Stream(t.grad + i),
                                   StateSegment<T>::stream(t.state[I], t.wide, i)...};
          update(stages.rule, prox, v, g, steps, n, own, stored, streams,
                 states[I].read(t.state[I], t.wide, i, n)...);
          (states[I].write(t.state[I], t.wide, i, n), ...);
        }(std::make_index_sequence<Rule::kStates>());
        // A penalty that is a pass of its own has room for requests, too.
        Stream params(t.param + i);
        params.prefetch_block();
        if constexpr (std::is_same_v<std::decay_t<decltype(prox)>, Unpenalized>) {
          stages.prox(v, steps, stages.rule.one_step, n);
        }
        params.prefetch_block();
        groups(v, n);
        if constexpr (std::is_same_v<std::decay_t<decltype(round)>, RoundToNearest>) {
          param.write(t.param + i, n);
        } else {
          round.store(t.param, i, v, n);
        }
      }
    };
    rounded(t, 1, 0, [&](const auto& round) {
      dispatch_bool(want_steps_, [&](auto own) {
        // L1, which most use, is taken while v is in a register; of others v is read again.
        if (const auto* l1 = stages.prox.template find<math::SoftThreshold<Op>>()) {
          run(round, *l1, own, std::false_type());
        } else {
          run(round, Unpenalized(), own, own);
        }
      });
    });
  }

  // f(how v is rounded): parameters of half types stochastically, if that is wanted.
  template <class F>
  void rounded(const OptimTensor<T>& t, uint32_t time, int64_t before, F f) const {
    if constexpr (!std::is_same_v<T, Op>) {
      if (rounds_) return f(RoundRandomly{{seed_, t.number, time}, before});
    }
    f(RoundToNearest{});
  }

  // Steps go to where those of the range begin.
  void range(size_t k, int64_t begin, int64_t end, Op* steps) const {
    range(k, begin, end, [=](int64_t i) { return steps + (i - begin); }, [](Op*, int64_t) {});
  }

  // The groups of a stage at a time, of large ones one: their prox finds them in the first cache.
  void run_groups(size_t k) const {
    const GroupLayout& layout = layouts_[k];
    const int64_t size = layout.size;
    const int64_t block = std::max<int64_t>(1, kStage / size), n = block * size;
    parallel_for(
        0, ceil_div(layout.groups, block), std::max<int64_t>(1, kGrain / n),
        [&](int64_t first, int64_t last) {
          Scratch<Op> scratch;
          GroupScratch<Op> group_scratch;
          for (int64_t b = first; b < last; ++b) {
            const int64_t begin = b * block, count = std::min(block, layout.groups - begin);
            Op* const steps = want_steps_ ? scratch.of(n) : nullptr;
            range(k, begin * size, (begin + count) * size, steps);
            rounded(tensors_[k], 2, begin * size, [&](const auto& round) {
              prox_some_groups<T>(at(k).penalty, layout, tensors_[k].param + begin * size, steps,
                                  at(k).rule.one_step, 0, count, group_scratch, round);
            });
          }
        });
  }

  // The tensor, and then its groups.
  void run_whole(size_t k) const {
    Scratch<Op> scratch;
    Op* const steps = want_steps_ ? scratch.of(tensors_[k].n) : nullptr;
    for_each_segment(
        0, tensors_[k].n, [] { return 0; },
        [&](int, int64_t i, int64_t n) { range(k, i, i + n, steps ? steps + i : steps); });
    rounded(tensors_[k], 2, 0, [&](const auto& round) {
      prox_groups<T>(at(k).penalty, layouts_[k], tensors_[k].param, steps, at(k).rule.one_step,
                     round);
    });
  }

  const std::vector<OptimTensor<T>>& tensors_;
  const std::vector<GroupLayout>& layouts_;
  const bool rounds_;
  const uint64_t seed_;
  bool want_steps_;
  std::vector<Stages<Rule, Op>> stages_;
  std::vector<size_t> stages_of_;
};

struct Cpu {
  using Guard = NoGuard;

  template <class Rule, class T, class Options>
  static void step(const std::vector<OptimTensor<T>>& tensors,
                   const std::vector<GroupLayout>& layouts, const Options& options, const Kind&) {
    if (options.is_skipped()) return;
    // Averages of gradients that have become 0 would end as subnormal numbers, and stay there.
    const SubnormalMode flush(kFlush);
    Options now = options;
    now.refresh();
    Step<T, Rule>(tensors, layouts, now).run();
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  using torchcalc::cpu::Cpu;
  m.impl("sgd_step", TORCH_BOX(&torchcalc::sgd_step<Cpu>));
  m.impl("adam_step", TORCH_BOX(&torchcalc::adam_step<Cpu>));
  m.impl("adagrad_step", TORCH_BOX(&torchcalc::adagrad_step<Cpu>));
  m.impl("rmsprop_step", TORCH_BOX(&torchcalc::rmsprop_step<Cpu>));
  m.impl("ftrl_step", TORCH_BOX(&torchcalc::ftrl_step<Cpu>));
}

// It reads no memory but that of places: the same on every device.
STABLE_TORCH_LIBRARY_IMPL(torchcalc, CompositeExplicitAutograd, m) {
  m.impl("optim_check", TORCH_BOX(&torchcalc::optim_check));
}
