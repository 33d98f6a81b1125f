#pragma once

#include "common/dispatch.h"
#include "cuda/launch.cuh"
#include "math/group_prox.h"
#include "math/total_variation.h"
#include "ops/groups.h"

// The prox of a penalty by groups on a GPU: a block for each group, or, where groups are small, a
// thread. Arithmetic is in double, so that no sum leaves its range; what it costs is the memory's
// time. `Steps` gives the step of the element at an offset.
namespace torchcalc::cuda {

template <class Op>
struct OneStep {
  Op step;
  TC_HD double operator()(int64_t) const { return step; }
};

template <class Op>
struct EachStep {
  const Op* steps;
  TC_HD double operator()(int64_t at) const { return steps[at]; }
};

// The sum over all threads of a block, in each of them.
template <class Value>
__device__ Value block_sum(Value value) {
  __shared__ Value shared[kThreads];
  shared[threadIdx.x] = value;
  for (unsigned width = blockDim.x / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
  }
  __syncthreads();
  const Value total = shared[0];
  __syncthreads();  // before the next sum writes there
  return total;
}

// How results come back into a tensor of T, `at` its first element.
template <class T>
struct RoundToNearest {
  TC_HD T operator()(int64_t, double v) const { return static_cast<T>(v); }
};

// A group as math/group_prox.h wants it, shared out to the threads of a block.
template <class T, class Steps, class Round>
struct BlockGroup {
  T* w;  // the tensor
  const GroupLayout& layout;
  int64_t begin;  // of the group
  Steps steps;
  Round round;

  static constexpr bool kKeeps = false;  // T may be narrower than double

  __device__ int64_t size() const { return layout.size; }

  template <class F>
  __device__ void each(F f) const {
    for (int64_t i = threadIdx.x; i < layout.size; i += blockDim.x) {
      const int64_t at = begin + layout.inner.offset(i);
      f(i, at, static_cast<double>(w[at]), steps(at));
    }
  }

  template <class F>
  __device__ math::Sums<double> sum(F f) const {
    math::Sums<double> own;
    each([&](int64_t, int64_t, double v, double s) {
      const auto term = f(v, s);
      own.x += term.x, own.y += term.y, own.z += term.z;
    });
    return {block_sum(own.x), block_sum(own.y), block_sum(own.z)};
  }

  template <class F>
  __device__ int64_t count(F f) const {
    int64_t own = 0;
    each([&](int64_t i, int64_t, double v, double s) { own += f(v, s, i); });
    return block_sum(own);
  }

  template <class F>
  __device__ void map(F f) const {
    each([&](int64_t i, int64_t at, double v, double s) { w[at] = round(at, f(v, s, i)); });
  }
};

// Groups that a thread does for itself: element is compared with element.
constexpr int kMostCompared = 64;

TC_HD bool has_thread_for_each(const math::Penalty& g, const GroupLayout& layout) {
  return g.kind == math::PenaltyKind::kLargest && layout.size <= kMostCompared;
}

template <class T, class Steps>
__device__ void keep_largest(T* w, const math::Penalty& g, const GroupLayout& layout, int64_t begin,
                             Steps steps) {
  const auto size = static_cast<int>(layout.size);
  const int64_t kept = math::kept_of(g, size);
  const auto key = [&](int i) {  // again and again: an array of them would lie in memory
    const int64_t at = begin + layout.inner.offset(i);
    return math::key_of(static_cast<double>(w[at]), steps(at));
  };
  uint64_t stay = 0;
  for (int i = 0; i < size; ++i) {
    const auto own = key(i);
    int rank = 0;
    for (int j = 0; j < size; ++j) {
      const auto other = key(j);
      rank += (other > own) | ((other == own) & (j < i));
    }
    stay |= uint64_t{rank < kept} << i;
  }
  for (int i = 0; i < size; ++i) {
    if (!(stay >> i & 1)) w[begin + layout.inner.offset(i)] = T(0);
  }
}

// All groups of a tensor, shared out to the blocks of a grid.
template <class T, class Steps, class Round = RoundToNearest<T>>
__device__ void prox_groups(T* w, const math::Penalty& g, const GroupLayout& layout, Steps steps,
                            Round round = {}) {
  if constexpr (requires { steps.step; }) {
    steps.step = g.one_step(steps.step);
    if (steps.step == 0) return;  // nothing moves
  }
  if (has_thread_for_each(g, layout)) {
    const int64_t all = int64_t{gridDim.x} * blockDim.x;
    for (int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < layout.groups; k += all) {
      keep_largest(w, g, layout, layout.outer.offset(k), steps);
    }
    return;
  }
  for (int64_t k = blockIdx.x; k < layout.groups; k += gridDim.x) {
    const BlockGroup<T, Steps, Round> group{w, layout, layout.outer.offset(k), steps, round};
    math::group_prox<double>(group, g);
  }
}

// A grid for it. Blocks are as large as they may be, but no larger than a group.
struct GroupGrid {
  int64_t blocks;
  unsigned threads;
};

inline GroupGrid group_grid(const math::Penalty& g, const GroupLayout& layout) {
  constexpr int64_t kMostBlocks = 1 << 16;
  if (has_thread_for_each(g, layout)) {
    return {std::min(ceil_div(layout.groups, int64_t{kThreads}), kMostBlocks), kThreads};
  }
  const auto size = static_cast<uint64_t>(std::clamp<int64_t>(layout.size, 32, kThreads));
  return {std::min(layout.groups, kMostBlocks), static_cast<unsigned>(std::bit_ceil(size))};
}

// A thread for each line: it goes from one end to the other and back. `work` has
// total_variation_work(size) for each.
template <class T, class Op>
__global__ void __launch_bounds__(kThreads)
    total_variation_kernel(T* w, const Op* steps, Op step,
                           const __grid_constant__ GroupLayout layout, double lam, double* work) {
  const int64_t line = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (line >= layout.groups) return;
  const int64_t begin = layout.outer.offset(line);
  math::total_variation(w + begin, steps ? steps + begin : steps, step, layout.size,
                        layout.inner.count ? layout.inner.strides[0] : 1, lam,
                        work + line * math::total_variation_work(layout.size));
}

}  // namespace torchcalc::cuda
