#include "ops/linear_act.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "cpu/parallel.h"

namespace torchcalc::cpu {
namespace {

template <class Act, class T>
void epilogue_segment(const EpilogueArgs<T>& args, Mask& mask, int64_t begin, int64_t n) {
  using Op = opmath_t<T>;
  alignas(64) Op v[kSegment];
  load(v, args.z + begin, n);
  activate<Act>(v, n);
  if (args.a) store(args.a + begin, v, n);
  if (mask.drops()) mask.apply(v, static_cast<Op>(mask.dropout_scale()), begin, n);
  if (args.residual) add(v, args.residual + begin, n);
  store(args.y + begin, v, n);
}

template <class Act, class T, class Op>
TC_SIMD void unscale(Op* u, Op scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) u[i] = math::unscaled<Act, T>(u[i], scale);
}

// Columns [col, col + cols) of one chunk of rows, at most kSegment elements at a time: several rows
// where the whole row is short (and so contiguous with the next), else one.
template <class Act, int Order, class T, class Op>
void act_grad_chunk(const ActGradArgs<T, Op>& args, Mask& mask, int64_t chunk, int64_t col,
                    int64_t cols) {
  alignas(64) Op g[kSegment];
  alignas(64) Op u[kSegment] = {};
  Op* sums = args.partial ? args.partial + chunk * args.cols + col : nullptr;
  if (sums) std::fill(sums, sums + cols, Op(0));
  const int64_t begin = chunk * kRowsPerChunk, end = std::min(begin + kRowsPerChunk, args.rows);
  const int64_t step = std::max<int64_t>(1, kSegment / args.cols);
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = std::min(step, end - row);
    const int64_t i = row * args.cols + col, n = rows * cols;
    load(g, args.grad + i, n);
    if (args.saved) load(u, args.saved + i, n);
    if (args.saved_scale != Op(1)) unscale<Act, T>(u, args.saved_scale, n);
    derive<Act, Order>(g, u, n);
    if (mask.drops()) mask.apply(g, args.factor, i, n);
    store(args.dz + i, g, n);
    if (sums) {
      for (int64_t r = 0; r < rows; ++r) add<Op>(sums, g + r * cols, cols);
    }
  }
}

template <class T, class Op>
void sum_chunks(const ActGradArgs<T, Op>& args) {
  const int64_t chunks = row_chunks(args.rows);
  torch::stable::parallel_for(
      0, ceil_div(args.cols, kSegment), 1, [&](int64_t first, int64_t last) {
        alignas(64) Op total[kSegment];
        for (int64_t s = first; s < last; ++s) {
          const int64_t col = s * kSegment, n = std::min(kSegment, args.cols - col);
          std::fill(total, total + n, Op(0));
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            add<Op>(total, args.partial + chunk * args.cols + col, n);
          }
          store(args.dbias + col, total, n);
        }
      });
}

struct Cpu {
  using Guard = NoGuard;

  // out = x W^T + b, by the library's GEMM: it adds the bias before it rounds, which in bfloat16
  // the epilogue could not.
  static void linear_out(const Tensor& out, const Tensor& x, const Tensor& weight_t,
                         const OptionalTensor& bias) {
    torch_check(
        bias ? aoti_torch_cpu_addmm_out(out.get(), bias->get(), x.get(), weight_t.get(), 1, 1)
             : aoti_torch_cpu_mm_out(out.get(), x.get(), weight_t.get()),
        "linear_act: the matrix product");
  }

  // Blocks this high are no slower as GEMMs than the whole, and their product stays in cache;
  // narrow ones are higher, so that there is work for all threads.
  static int64_t block_rows(int64_t, int64_t cols) {
    constexpr int64_t kRows = 512, kElements = int64_t{1} << 18;
    return std::max(kRows, kElements / std::max<int64_t>(cols, 1));
  }

  template <class T>
  static void epilogue(math::Activation activation, const EpilogueArgs<T>& args, int64_t begin,
                       int64_t end) {
    math::dispatch_activation(activation, [&]<class Act>(Act) {
      for_each_segment(
          begin * args.cols, end * args.cols, [&] { return Mask(args.seed, args.threshold); },
          [&](Mask& mask, int64_t first, int64_t n) {
            epilogue_segment<Act>(args, mask, first, n);
          });
    });
  }

  template <class T, class Op>
  static void act_grad(math::Activation activation, int64_t order, const ActGradArgs<T, Op>& args) {
    math::dispatch_activation(activation, [&]<class Act>(Act) {
      dispatch_bool(order == 1, [&](auto first_order) {
        // Tasks are chunks of rows by segments of columns, so that short and wide inputs split too.
        const int64_t columns = ceil_div(args.cols, kSegment);
        const int64_t grain = ceil_div(kGrain, kRowsPerChunk * std::min(args.cols, kSegment));
        torch::stable::parallel_for(
            0, row_chunks(args.rows) * columns, grain, [&](int64_t first, int64_t last) {
              Mask mask(args.seed, args.threshold);
              for (int64_t task = first; task < last; ++task) {
                const int64_t col = task % columns * kSegment;
                act_grad_chunk<Act, first_order ? 1 : 2>(args, mask, task / columns, col,
                                                         std::min(kSegment, args.cols - col));
              }
            });
      });
    });
    if (args.dbias) sum_chunks(args);
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("linear_act", TORCH_BOX(&torchcalc::linear_act<torchcalc::cpu::Cpu>));
  m.impl("linear_act_keep", TORCH_BOX(&torchcalc::linear_act_keep<torchcalc::cpu::Cpu>));
  m.impl("act_grad", TORCH_BOX(&torchcalc::act_grad<torchcalc::cpu::Cpu>));
  m.impl("act_bias_grad", TORCH_BOX(&torchcalc::act_bias_grad<torchcalc::cpu::Cpu>));
}
