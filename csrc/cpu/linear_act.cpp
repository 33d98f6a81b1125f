#include "ops/linear_act.h"

#include "cpu/kernels.h"

namespace torchcalc::cpu {
namespace {

template <class T>
void epilogue_segment(const EpilogueArgs<T>& args, Mask& mask, int64_t begin, int64_t n) {
  using Op = opmath_t<T>;
  alignas(64) Op v[kSegment];
  load(v, args.z + begin, n);
  math::dispatch_activation<Op>(args.activation, [&]<class Act>(const Act& act) {
    if constexpr (Act::kTwoSlopes) {
      if (args.bits) pack_bits(act, bits_of(args.bits, begin, args.cols), v, n);
    }
    activate(act, v, n);
  });
  if (args.a) store(args.a + begin, v, n);
  if (mask.drops()) mask.apply(v, static_cast<Op>(mask.dropout_scale()), args.first + begin, n);
  if (args.residual) add(v, args.residual + begin, n);
  store(args.y + begin, v, n);
}

// u of n elements: what is saved, in op-math type.
template <class T, class Op>
void load_saved(Op* u, const ActGradArgs<T, Op>& args, int64_t begin, int64_t rows, int64_t cols) {
  if (args.saved) load(u, args.saved + begin, rows * cols);
  if (!args.bits) return;
  math::dispatch_activation<Op>(args.activation, [&]<class Act>(const Act& act) {
    if constexpr (Act::kTwoSlopes) {
      const Op on = act.representative(true), off = act.representative(false);
      for (int64_t r = 0; r < rows; ++r) {
        const uint8_t* bits = bits_of(args.bits, begin + r * args.cols, args.cols);
        unpack_bits(u + r * cols, bits, on, off, cols);
      }
    }
  });
}

template <class Act, class Op>
TC_SIMD void derive_and_activate(const Act& act, Op* __restrict c, Op* __restrict z, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    c[i] = act.template d<1>(c[i], z[i]);
    z[i] = act.value(z[i]);
  }
}

// c = c F_order(u), and u = f(u) where the value is wanted.
template <class T, class Op>
void derive_saved(const ActGradArgs<T, Op>& args, Op* c, Op* u, int64_t n) {
  const bool is_output =
      args.saved_as == math::Saved::kOutput || args.saved_as == math::Saved::kScaledOutput;
  math::dispatch_activation<Op>(args.activation, [&]<class Act>(const Act& act) {
    if constexpr (Act::kFromOutput) {
      if (is_output) {
        if (math::needs_unscaled<T, Act>(args.saved_scale)) {
          unscale<T>(act, u, args.saved_scale, n);
        }
        return args.order == 1 ? derive_from_output<1>(act, c, u, n)
                               : derive_from_output<2>(act, c, u, n);
      }
    }
    if (args.value) return derive_and_activate(act, c, u, n);
    args.order == 1 ? derive<1>(act, c, u, n) : derive<2>(act, c, u, n);
  });
}

// Columns [col, col + cols) of one chunk of rows, at most kSegment elements at a time: several rows
// where the whole row is short (and so contiguous with the next), else one.
template <class T, class Op>
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
    load_saved(u, args, i, rows, cols);
    derive_saved(args, g, u, n);
    if (mask.drops()) {
      const uint16_t* lanes = mask.draw(args.first + i, n);
      Mask::select(g, lanes, mask.threshold(), args.factor, n);
      if (args.value) Mask::select(u, lanes, mask.threshold(), args.factor, n);
    }
    store(args.dz + i, g, n);
    if (args.value) store(args.value + i, u, n);
    if (sums) {
      for (int64_t r = 0; r < rows; ++r) add<Op>(sums, g + r * cols, cols);
    }
  }
}

}  // namespace

template <class T>
void epilogue(const EpilogueArgs<T>& args, int64_t begin, int64_t end) {
  const auto segment = [&](Mask& mask, int64_t first, int64_t n) {
    epilogue_segment(args, mask, first, n);
  };
  const auto make_mask = [&] { return Mask(args.mask); };
  if (args.bits && args.cols % 8) {
    for_each_row_segment(begin, end, args.cols, make_mask, segment);
  } else {
    for_each_segment(begin * args.cols, end * args.cols, make_mask, segment);
  }
}

template <class T>
void act_grad(const ActGradArgs<T, opmath_t<T>>& args) {
  // Tasks are chunks of rows by segments of columns, so that short and wide inputs split too.
  const int64_t columns = ceil_div(args.cols, kSegment);
  const int64_t grain = ceil_div(kGrain, kRowsPerChunk * std::min(args.cols, kSegment));
  parallel_for(0, row_chunks(args.rows) * columns, grain, [&](int64_t first, int64_t last) {
    Mask mask(args.mask);
    for (int64_t task = first; task < last; ++task) {
      const int64_t col = task % columns * kSegment;
      act_grad_chunk(args, mask, task / columns, col, std::min(kSegment, args.cols - col));
    }
  });
}

#define TC_INSTANTIATE(T)                                           \
  template void epilogue(const EpilogueArgs<T>&, int64_t, int64_t); \
  template void act_grad<T>(const ActGradArgs<T, opmath_t<T>>&);
TC_INSTANTIATE(float)
TC_INSTANTIATE(double)
TC_INSTANTIATE(BFloat16)
TC_INSTANTIATE(Half)
#undef TC_INSTANTIATE

}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("linear_act", TORCH_BOX(&torchcalc::linear_act<torchcalc::cpu::Layers>));
  m.impl("linear_act_keep", TORCH_BOX(&torchcalc::linear_act_keep<torchcalc::cpu::Layers>));
  m.impl("act", TORCH_BOX(&torchcalc::act<torchcalc::cpu::Layers>));
  m.impl("act_grad", TORCH_BOX(&torchcalc::act_grad<torchcalc::cpu::Layers>));
  m.impl("act_bias_grad", TORCH_BOX(&torchcalc::act_bias_grad<torchcalc::cpu::Layers>));
  m.impl("linear_act_grad", TORCH_BOX(&torchcalc::linear_act_grad<torchcalc::cpu::Layers>));
}
