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
  static constexpr int kTensors = 64;
  OptimTensor<T> tensors[kTensors];
  int64_t first_block[kTensors + 1];  // of each tensor, and the number of all blocks
  int count;
};
// What a kernel may take as arguments on every GPU is 4 KB.
static_assert(sizeof(OptimBatch<double>) + sizeof(AdamWOptions) <= 4096);

// f(batch) over batches of the tensors.
template <class T, class F>
void for_each_batch(const std::vector<OptimTensor<T>>& tensors, F f) {
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
    f(batch);
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
  const bool aligned = are_aligned(t.param, t.grad, t.state[0], t.state[1]);
  for (int64_t i = begin + kOctet * threadIdx.x; i < end; i += int64_t{kOctet} * blockDim.x) {
    f(octet_at(i, end, aligned));
  }
}

template <class T, bool kNorm>
__global__ void __launch_bounds__(kThreads)
    sgd_kernel(const __grid_constant__ OptimBatch<T> batch, math::SgdRule<opmath_t<T>> rule,
               const __grid_constant__ math::Penalty penalty, opmath_t<T> step) {
  using Op = opmath_t<T>;
  const int k = block_tensor(batch);
  const OptimTensor<T> t = batch.tensors[k];
  T* const momentum_buffer = t.state[0];
  for_each_octet(batch, k, [&](Octet at) {
    const auto fetched_param = fetch(t.param, at);
    const auto fetched_grad = fetch(t.grad, at);
    const auto fetched_buffer = fetch_if(momentum_buffer, at);
    Values<Op> param, grad, buffer, steps;
    unpack(param, fetched_param);
    unpack(grad, fetched_grad);
    unpack(buffer, fetched_buffer);
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) {
      param[j] = momentum_buffer ? rule(param[j], grad[j], buffer[j]) : rule(param[j], grad[j]);
      steps[j] = step;
    }
    apply_penalty<kNorm>(penalty, param, steps);
    store(t.param, param, at);
    if (momentum_buffer) store(momentum_buffer, buffer, at);
  });
}

template <class T>
__global__ void increment_steps_kernel(const __grid_constant__ OptimBatch<T> batch) {
  if (static_cast<int>(threadIdx.x) < batch.count) *batch.tensors[threadIdx.x].step += 1;
}

template <class T, bool kNorm>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const __grid_constant__ OptimBatch<T> batch, AdamWOptions options) {
  using Op = opmath_t<T>;
  const int k = block_tensor(batch);
  const OptimTensor<T> t = batch.tensors[k];
  // Two double-precision powers: too dear for every thread.
  __shared__ math::AdamWRule<Op> shared_rule;
  if (threadIdx.x == 0) shared_rule = options.rule<Op>(*t.step);
  __syncthreads();
  const auto rule = shared_rule;
  for_each_octet(batch, k, [&](Octet at) {
    const auto fetched_param = fetch(t.param, at);
    const auto fetched_grad = fetch(t.grad, at);
    const auto fetched_m = fetch(t.state[0], at);
    const auto fetched_v = fetch(t.state[1], at);
    Values<Op> param, grad, m, v, steps;
    unpack(param, fetched_param);
    unpack(grad, fetched_grad);
    unpack(m, fetched_m);
    unpack(v, fetched_v);
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) {
      const auto updated = rule(param[j], grad[j], m[j], v[j]);
      param[j] = updated.v;
      steps[j] = updated.step;
    }
    apply_penalty<kNorm>(options.penalty, param, steps);
    store(t.param, param, at);
    store(t.state[0], m, at);
    store(t.state[1], v, at);
  });
}

// The steps of AdamW's coordinates, made again from the states; or one for all.
template <class T>
struct AdamWSteps {
  math::AdamWRule<opmath_t<T>> rule;
  const T *m, *v;
  opmath_t<T> step;

  TC_HD double operator()(int64_t at) const {
    using Op = opmath_t<T>;
    return rule.adaptive ? rule.step(static_cast<Op>(m[at]), static_cast<Op>(v[at])) : step;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    sgd_groups_kernel(const __grid_constant__ OptimTensor<T> t,
                      const __grid_constant__ GroupLayout layout,
                      const __grid_constant__ math::Penalty penalty, opmath_t<T> step) {
  prox_groups(t.param, penalty, layout, OneStep<opmath_t<T>>{step});
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    adamw_groups_kernel(const __grid_constant__ OptimTensor<T> t,
                        const __grid_constant__ GroupLayout layout,
                        const __grid_constant__ AdamWOptions options) {
  __shared__ math::AdamWRule<opmath_t<T>> shared_rule;
  const auto step = options.penalty.one_step(static_cast<opmath_t<T>>(options.lr));
  if (!options.adaptive && step == 0) return;  // nothing moves
  if (threadIdx.x == 0) shared_rule = options.rule<opmath_t<T>>(*t.step);
  __syncthreads();
  prox_groups(t.param, options.penalty, layout,
              AdamWSteps<T>{shared_rule, t.state[0], t.state[1], step});
}

// kernel(tensor, layout, args...) on the tensors that have elements, if there are layouts.
template <class T, class Kernel, class... Args>
void launch_groups(Kernel kernel, const std::vector<OptimTensor<T>>& tensors,
                   const std::vector<GroupLayout>& layouts, const math::Penalty& penalty,
                   cudaStream_t stream, const Args&... args) {
  for (size_t k = 0; k < layouts.size(); ++k) {
    if (tensors[k].n == 0) continue;
    const GroupGrid grid = group_grid(penalty, layouts[k]);
    launch(kernel, grid.blocks, grid.threads, stream, tensors[k], layouts[k], args...);
  }
}

template <class T>
void sgd(const std::vector<OptimTensor<T>>& tensors, const std::vector<GroupLayout>& layouts,
         const SgdOptions& options, cudaStream_t stream) {
  using Op = opmath_t<T>;
  const auto step = static_cast<Op>(options.prox_step());
  for_each_batch(tensors, [&](const OptimBatch<T>& batch) {
    dispatch_bool(options.penalty.is_norm(), [&](auto norm) {
      launch(sgd_kernel<T, norm>, batch.first_block[batch.count], kThreads, stream, batch,
             options.rule<Op>(), options.penalty, step);
    });
  });
  launch_groups(sgd_groups_kernel<T>, tensors, layouts, options.penalty, stream, options.penalty,
                step);
}

template <class T>
void adamw(const std::vector<OptimTensor<T>>& tensors, const std::vector<GroupLayout>& layouts,
           const AdamWOptions& options, cudaStream_t stream) {
  for_each_batch(tensors, [&](const OptimBatch<T>& batch) {
    launch(increment_steps_kernel<T>, 1, OptimBatch<T>::kTensors, stream, batch);
    dispatch_bool(options.penalty.is_norm(), [&](auto norm) {
      launch(adamw_kernel<T, norm>, batch.first_block[batch.count], kThreads, stream, batch,
             options);
    });
  });
  launch_groups(adamw_groups_kernel<T>, tensors, layouts, options.penalty, stream, options);
}

}  // namespace torchcalc::cuda
