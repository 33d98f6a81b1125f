#pragma once

#include <algorithm>
#include <vector>

#include "cuda/penalty_prox_kernels.cuh"

// Steps of many tensors at once. Tensors go to the GPU in batches, as kernel arguments: no copy to
// the device and no synchronisation, so that a step can be captured in a CUDA graph.
namespace torchcalc::cuda {

// Elements that a block updates: enough to make up for finding its tensor and making its rule, and
// so few that one tensor of 2^20 is 256 blocks, two for almost each of 132 SMs, in one wave.
constexpr int64_t kBlockElements = 4096;

template <class T>
struct OptimBatch {
  static constexpr int kTensors = 52;
  OptimTensor<T> tensors[kTensors];
  int64_t first_block[kTensors + 1];  // of each tensor, and the number of all blocks
  int count;
};

// f(begin, batch) over batches of the tensors, from number `begin` on.
template <class Options, class T, class F>
void for_each_batch(const std::vector<OptimTensor<T>>& tensors, F f) {
  // What a kernel may take as arguments on every GPU is 4 KB.
  static_assert(sizeof(OptimBatch<T>) + sizeof(Options) + sizeof(void*) <= 4096);
  for (size_t begin = 0; begin < tensors.size(); begin += OptimBatch<T>::kTensors) {
    OptimBatch<T> batch;
    batch.count =
        static_cast<int>(std::min<size_t>(OptimBatch<T>::kTensors, tensors.size() - begin));
    batch.first_block[0] = 0;
    for (int k = 0; k < batch.count; ++k) {
      batch.tensors[k] = tensors[begin + k];
      batch.first_block[k + 1] =
          batch.first_block[k] + ceil_div(batch.tensors[k].n, kBlockElements);
    }
    f(begin, batch);
  }
}

// The number of the tensor that this block works on: the last that begins at or before it.
template <class T>
__device__ int block_tensor(const OptimBatch<T>& batch) {
  int k = 0, end = batch.count;
  while (end - k > 1) {
    const int middle = (k + end) / 2;
    (batch.first_block[middle] <= blockIdx.x ? k : end) = middle;
  }
  return k;
}

// f(octet) over this thread's octets of tensor k.
template <class T, class F>
__device__ void for_each_octet(const OptimBatch<T>& batch, int k, F f) {
  const int64_t begin = (blockIdx.x - batch.first_block[k]) * kBlockElements;
  const OptimTensor<T>& t = batch.tensors[k];
  const int64_t end = std::min(begin + kBlockElements, t.n);
  const bool aligned = are_aligned(t.param, t.grad, t.state[0], t.state[1], t.state[2]);
  for (int64_t i = begin + kOctet * threadIdx.x; i < end; i += int64_t{kOctet} * blockDim.x) {
    f(octet_at(i, end, aligned));
  }
}

template <class T>
__global__ void increment_steps_kernel(const __grid_constant__ OptimBatch<T> batch,
                                       const __grid_constant__ StepOptions options) {
  if (options.is_skipped()) return;
  if (static_cast<int>(threadIdx.x) < batch.count) *batch.tensors[threadIdx.x].step += 1;
}

// What a block makes of the options for its tensor: Adam's rule takes two powers in double, too
// dear for every thread.
template <class Rule>
struct BlockRule {
  Rule rule;
  math::Penalty penalty;
  bool by_coordinate;
};

// What make(it) has made of it, for all threads of a block.
template <class It, class Make>
__device__ const It& made_once(Make make) {
  // As bytes: members have initial values, which shared memory must not.
  alignas(It) __shared__ unsigned char memory[sizeof(It)];
  It& shared = *reinterpret_cast<It*>(memory);
  if (threadIdx.x == 0) make(shared);
  __syncthreads();
  return shared;
}

template <class Rule, class T, class Options>
__device__ const BlockRule<Rule>& block_rule(const OptimTensor<T>& t, const Options& options) {
  return made_once<BlockRule<Rule>>([&](BlockRule<Rule>& shared) {
    Options now = options;
    now.refresh();
    now.set(shared.rule, t.step ? *t.step : 0);
    shared.penalty = now.bounded(shared.rule);
    // With lr = 0 all steps are 0: a constraint is met in the metric of one step for all.
    shared.by_coordinate = now.by_coordinate() && now.lr != 0;
  });
}

// What a step leaves for the groups of a tensor: one kernel serves all rules.
template <class T>
struct StepMade {
  math::Metric<T> metric;
  math::Penalty penalty;
  bool by_coordinate;
};

// S is the type of states: T or, of half types, its op-math type. Other penalties than norms, and
// doubles, get the registers that they need: else nvcc keeps some of it in memory.
template <class T, class S, class Rule, bool kNorm, class Options>
__global__ void __launch_bounds__(kThreads, kNorm && sizeof(T) <= 4 ? 0 : 1)
    optim_kernel(const __grid_constant__ OptimBatch<T> batch,
                 const __grid_constant__ Options options, StepMade<opmath_t<T>>* made) {
  using Op = opmath_t<T>;
  constexpr int kStates = Rule::kStates;
  if (options.is_skipped()) return;
  const int k = block_tensor(batch);
  const OptimTensor<T> t = batch.tensors[k];
  const BlockRule<Rule>& shared = block_rule<Rule>(t, options);
  const Rule rule = shared.rule;
  const bool by_coordinate = shared.by_coordinate;
  if (made && threadIdx.x == 0 && blockIdx.x == batch.first_block[k]) {
    made[k] = {rule.metric(), shared.penalty, by_coordinate};
  }
  for_each_octet(batch, k, [&](Octet at) {
    const auto fetched_param = fetch(t.param, at);
    const auto fetched_grad = fetch(t.grad, at);
    Packs<S> fetched[kStates + 1];
    TC_UNROLL
    for (int s = 0; s < kStates; ++s) fetched[s] = fetch(static_cast<const S*>(t.state[s]), at);
    Values<Op> param, grad, states[kStates + 1], steps;
    unpack(param, fetched_param);
    unpack(grad, fetched_grad);
    TC_UNROLL
    for (int s = 0; s < kStates; ++s) unpack(states[s], fetched[s]);
    // A branch of all threads, not a selection for each element.
    if (rule.gradient.weight_decay == Op(0)) {
      TC_UNROLL
      for (int j = 0; j < kOctet; ++j) grad[j] *= rule.gradient.sign;
    } else {
      TC_UNROLL
      for (int j = 0; j < kOctet; ++j) grad[j] = rule.gradient(param[j], grad[j]);
    }
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) {
      Op kept[kStates + 1];
      TC_UNROLL
      for (int s = 0; s < kStates; ++s) kept[s] = states[s][j];
      const auto updated = rule(param[j], grad[j], kept);
      param[j] = updated.v;
      steps[j] = by_coordinate ? math::finite(updated.step) : rule.one_step;
      TC_UNROLL
      for (int s = 0; s < kStates; ++s) states[s][j] = kept[s];
    }
    TC_UNROLL  // at once: what follows has the registers for itself
        for (int s = 0; s < kStates; ++s) store(static_cast<S*>(t.state[s]), states[s], at);
    apply_penalty<kNorm>(shared.penalty, param, steps);
    if constexpr (!std::is_same_v<T, Op>) {
      if (options.rounds) {
        const math::RandomRounding random{options.seed, t.number, 1};
        const math::Words4 words = random.words(at.begin / kOctet);
        TC_UNROLL
        for (int j = 0; j < kOctet; ++j) {  // a float that the store need not round
          const T rounded = math::round_randomly<T>(param[j], math::lane_of(words, j));
          param[j] = static_cast<Op>(rounded);
        }
      }
    }
    store(t.param, param, at);
  });
}

// The steps of a tensor's coordinates, made again from its states; or one for all.
template <class T>
struct MetricSteps {
  const math::Metric<opmath_t<T>>& metric;
  const OptimTensor<T>& t;
  bool by_coordinate;
  opmath_t<T> step;

  TC_HD double operator()(int64_t at) const {
    if (!by_coordinate) return step;
    return metric([&](int i) {
      using Op = opmath_t<T>;
      if (std::is_same_v<T, Op> || t.wide) return static_cast<const Op*>(t.state[i])[at];
      return static_cast<Op>(static_cast<const T*>(t.state[i])[at]);
    });
  }
};

// The second time that a step rounds a parameter: stochastically where the first was.
template <class T>
struct OptimRound {
  math::RandomRounding random;
  bool is_random;

  TC_HD T operator()(int64_t at, double v) const {
    if constexpr (!std::is_same_v<T, opmath_t<T>>) {
      if (is_random) return random.at<T>(at, static_cast<float>(v));
    }
    return static_cast<T>(v);
  }
};

// Two blocks on an SM: where more may be, nvcc keeps what it needs in memory.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    optim_groups_kernel(const __grid_constant__ OptimTensor<T> t,
                        const __grid_constant__ GroupLayout layout,
                        const __grid_constant__ StepOptions options,
                        const StepMade<opmath_t<T>>* made) {
  if (options.is_skipped()) return;
  using Made = StepMade<opmath_t<T>>;
  const Made& of = made_once<Made>([=](Made& shared) { shared = *made; });
  const auto step = of.penalty.one_step(of.metric.one_step);
  if (!of.by_coordinate && step == 0) return;  // nothing moves
  prox_groups(t.param, of.penalty, layout, MetricSteps<T>{of.metric, t, of.by_coordinate, step},
              OptimRound<T>{{options.seed, t.number, 2}, options.rounds});
}

template <class Rule, class T, class Options>
void optim_step(const std::vector<OptimTensor<T>>& tensors, const std::vector<GroupLayout>& layouts,
                const Options& options, const Kind& kind, cudaStream_t stream) {
  using Op = opmath_t<T>;
  using Made = StepMade<Op>;
  static_assert(sizeof(Made) % sizeof(Op) == 0 && std::is_trivially_copyable_v<Made>);
  const Tensor memory =
      empty({static_cast<int64_t>(layouts.size() * sizeof(Made) / sizeof(Op))}, kind.opmath());
  Made* const made = layouts.empty() ? nullptr : reinterpret_cast<Made*>(memory.data_ptr());
  const StepOptions& shared = options;
  for_each_batch<Options>(tensors, [&](size_t begin, const OptimBatch<T>& batch) {
    if (Options::kCounts) {
      launch(increment_steps_kernel<T>, 1, batch.kTensors, stream, batch, shared);
    }
    const auto run = [&](auto kernel) {
      launch(kernel, batch.first_block[batch.count], kThreads, stream, batch, options,
             made ? made + begin : nullptr);
    };
    if constexpr (!std::is_same_v<T, Op> && Rule::kStates > 0) {  // few ask for it: one kernel
      if (batch.tensors[0].wide) return run(optim_kernel<T, Op, Rule, false, Options>);
    }
    dispatch_bool(options.penalty.is_norm(),
                  [&](auto norm) { run(optim_kernel<T, T, Rule, norm, Options>); });
  });
  for (size_t k = 0; k < layouts.size(); ++k) {
    if (tensors[k].n == 0) continue;
    const GroupGrid grid = group_grid(options.penalty, layouts[k]);
    launch(optim_groups_kernel<T>, grid.blocks, grid.threads, stream, tensors[k], layouts[k],
           shared, made + k);
  }
}

}  // namespace torchcalc::cuda
