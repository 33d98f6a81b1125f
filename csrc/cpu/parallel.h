#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "cpu/segment.h"
#include "cpu/subnormals.h"
#include "ops/args.h"

namespace torchcalc::cpu {

// Elements below which another thread costs more than it gains.
constexpr int64_t kGrain = 16 * kSegment;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// torch's, whose threads take subnormal numbers as the caller does: results are the same for any
// number of threads.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const ControlWord word = control_word();
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    const SubnormalMode as_the_caller(word);
    f(first, last);
  });
}

// f(state, i, n) over segments [i, i + n) of [begin, end), in parallel; each thread makes its
// state.
template <class MakeState, class F>
void for_each_segment(int64_t begin, int64_t end, MakeState make_state, F f) {
  parallel_for(0, ceil_div(end - begin, kSegment), kGrain / kSegment,
               [&](int64_t first, int64_t last) {
                 auto state = make_state();
                 for (int64_t s = first; s < last; ++s) {
                   const int64_t i = begin + s * kSegment;
                   f(state, i, std::min(kSegment, end - i));
                 }
               });
}

// The same over rows [begin, end) of a matrix, where no segment reaches into another row.
template <class MakeState, class F>
void for_each_row_segment(int64_t begin, int64_t end, int64_t cols, MakeState make_state, F f) {
  const int64_t across = ceil_div(cols, kSegment);
  parallel_for(0, (end - begin) * across, ceil_div(kGrain, std::min(cols, kSegment)),
               [&](int64_t first, int64_t last) {
                 auto state = make_state();
                 for (int64_t s = first; s < last; ++s) {
                   const int64_t col = s % across * kSegment;
                   f(state, (begin + s / across) * cols + col, std::min(kSegment, cols - col));
                 }
               });
}

// Where the bits of element i are: it is the first of a byte.
template <class Byte>
Byte* bits_of(Byte* bits, int64_t i, int64_t cols) {
  return bits + i / cols * row_bytes(cols) + i % cols / 8;
}

// stage(in, out, n) over segments of elementwise inputs and results, in parallel: arrays of
// pointers to n elements each, in op-math type. An input may be one number for all elements, and a
// result may be null: it goes nowhere.
template <class T, class Op, size_t Ins, size_t Outs, class Stage>
void map_segments(int64_t total, const std::array<Strength<T, Op>, Ins>& inputs,
                  const std::array<T*, Outs>& results, Stage stage) {
  constexpr bool kInPlace = std::is_same_v<T, Op>;  // no conversion: the arrays themselves
  struct Buffers {
    alignas(64) Op in[Ins][kSegment];
    alignas(64) Op out[Outs][kSegment];

    Buffers(const std::array<Strength<T, Op>, Ins>& inputs, int64_t n) {
      for (size_t k = 0; k < Ins; ++k) {
        if (!inputs[k].for_each) std::fill_n(in[k], n, inputs[k][0]);
      }
    }
  };
  for_each_segment(
      0, total, [&] { return Buffers(inputs, std::min(total, kSegment)); },
      [&](Buffers& buffers, int64_t i, int64_t n) {
        std::array<const Op*, Ins> in;
        std::array<Op*, Outs> out;
        for (size_t k = 0; k < Ins; ++k) {
          in[k] = buffers.in[k];
          if (!inputs[k].for_each) continue;
          if constexpr (kInPlace) {
            in[k] = inputs[k].data + i;
          } else {
            load(buffers.in[k], inputs[k].data + i, n);
          }
        }
        for (size_t k = 0; k < Outs; ++k) {
          out[k] = buffers.out[k];
          if constexpr (kInPlace) {
            if (results[k]) out[k] = results[k] + i;
          }
        }
        stage(in, out, n);
        if constexpr (!kInPlace) {
          for (size_t k = 0; k < Outs; ++k) {
            if (results[k]) store(results[k] + i, out[k], n);
          }
        }
      });
}

// The CPU needs no device guard.
struct NoGuard {
  explicit NoGuard(const torch::stable::Tensor&) {}
};

}  // namespace torchcalc::cpu
