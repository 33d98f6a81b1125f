#include "ops/gated.h"

#include "cpu/kernels.h"
#include "math/gated.h"

namespace torchcalc::cpu {
namespace {

// g = f(g) v.
template <class Act, class Op>
TC_SIMD void gate(const Act& act, Op* __restrict g, const Op* __restrict v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) g[i] = math::gated(act, g[i], v[i]);
}

// Gradients take the places of g and v.
template <class Act, class Op>
TC_SIMD void gate_grad(const Act& act, const Op* __restrict c, Op* __restrict g, Op* __restrict v,
                       int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const auto [dg, dv] = math::gated_grad(act, c[i], g[i], v[i]);
    g[i] = dg;
    v[i] = dv;
  }
}

// The same, and in the place of c the value.
template <class Act, class Op>
TC_SIMD void gate_grad_and_value(const Act& act, Op* __restrict c, Op* __restrict g,
                                 Op* __restrict v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const auto [dg, dv] = math::gated_grad(act, c[i], g[i], v[i]);
    c[i] = math::gated(act, g[i], v[i]);
    g[i] = dg;
    v[i] = dv;
  }
}

// The gradients of gate_grad, in the places of c, g and v.
template <class Act, class Op>
TC_SIMD void gate_grad_grad(const Act& act, const Op* __restrict cg, const Op* __restrict cv,
                            Op* __restrict c, Op* __restrict g, Op* __restrict v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const auto [dc, dg, dv] = math::gated_grad_grad(act, cg[i], cv[i], c[i], g[i], v[i]);
    c[i] = dc;
    g[i] = dg;
    v[i] = dv;
  }
}

// A part of a [rows, cols] matrix of at most kSegment elements, which are held one after the other:
// several whole rows where they are short, else a part of one.
struct Tile {
  int64_t row, rows, col, cols;

  int64_t size() const { return rows * cols; }
};

template <class T>
void load_tile(opmath_t<T>* dst, const T* src, int64_t stride, const Tile& tile) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    load(dst + r * tile.cols, src + (tile.row + r) * stride + tile.col, tile.cols);
  }
}

template <class T>
void store_tile(T* dst, const opmath_t<T>* src, int64_t stride, const Tile& tile) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    store(dst + (tile.row + r) * stride + tile.col, src + r * tile.cols, tile.cols);
  }
}

// f(mask, tile) over the matrix, in parallel: chunks of rows by segments of columns, so that short
// and wide inputs split too.
template <class F>
void for_each_tile(int64_t rows, int64_t cols, const math::MaskArgs& mask_args, F f) {
  const int64_t across = ceil_div(cols, kSegment), step = std::max<int64_t>(1, kSegment / cols);
  const int64_t grain = ceil_div(kGrain, kRowsPerChunk * std::min(cols, kSegment));
  parallel_for(0, row_chunks(rows) * across, grain, [&](int64_t first, int64_t last) {
    Mask mask(mask_args);
    for (int64_t task = first; task < last; ++task) {
      const int64_t col = task % across * kSegment, n = std::min(kSegment, cols - col);
      const int64_t begin = task / across * kRowsPerChunk;
      const int64_t end = std::min(begin + kRowsPerChunk, rows);
      for (int64_t row = begin; row < end; row += step) {
        f(mask, Tile{row, std::min(step, end - row), col, n});
      }
    }
  });
}

}  // namespace

template <class T>
void gated(const GatedArgs<T>& args) {
  using Op = opmath_t<T>;
  const int64_t cols = args.cols;
  for_each_tile(args.rows, cols, args.mask, [&](Mask& mask, const Tile& tile) {
    alignas(64) Op g[kSegment];
    alignas(64) Op v[kSegment];
    load_tile(g, args.z, 2 * cols, tile);
    load_tile(v, args.z + cols, 2 * cols, tile);
    math::dispatch_activation<Op>(args.activation,
                                  [&](const auto& act) { gate(act, g, v, tile.size()); });
    const int64_t i = tile.row * cols + tile.col;
    if (mask.drops()) {
      mask.apply(g, static_cast<Op>(mask.dropout_scale()), args.first + i, tile.size());
    }
    store(args.y + i, g, tile.size());
  });
}

template <class T>
void gated_grad(const GatedGradArgs<T, opmath_t<T>>& args) {
  using Op = opmath_t<T>;
  const int64_t cols = args.cols;
  for_each_tile(args.rows, cols, args.mask, [&](Mask& mask, const Tile& tile) {
    alignas(64) Op c[kSegment];
    alignas(64) Op g[kSegment];
    alignas(64) Op v[kSegment];
    const int64_t i = tile.row * cols + tile.col, n = tile.size();
    load(c, args.grad + i, n);
    load_tile(g, args.z, 2 * cols, tile);
    load_tile(v, args.z + cols, 2 * cols, tile);
    math::dispatch_activation<Op>(args.activation, [&](const auto& act) {
      args.value ? gate_grad_and_value(act, c, g, v, n) : gate_grad(act, c, g, v, n);
    });
    if (mask.drops()) {
      const uint16_t* lanes = mask.draw(args.first + i, n);
      for (Op* d : {g, v}) Mask::select(d, lanes, mask.threshold(), args.factor, n);
      if (args.value) Mask::select(c, lanes, mask.threshold(), args.factor, n);
    }
    if (args.value) store(args.value + i, c, n);
    store_tile(args.dz, g, 2 * cols, tile);
    store_tile(args.dz + cols, v, 2 * cols, tile);
    if (!args.partial) return;
    Op* sums = args.partial + tile.row / kRowsPerChunk * 2 * cols + tile.col;
    for (const Op* d : {g, v}) {
      if (tile.row % kRowsPerChunk == 0) std::fill(sums, sums + tile.cols, Op(0));
      for (int64_t r = 0; r < tile.rows; ++r) add<Op>(sums, d + r * tile.cols, tile.cols);
      sums += cols;
    }
  });
}

#define TC_INSTANTIATE(T)                   \
  template void gated(const GatedArgs<T>&); \
  template void gated_grad<T>(const GatedGradArgs<T, opmath_t<T>>&);
TC_INSTANTIATE(float)
TC_INSTANTIATE(double)
TC_INSTANTIATE(BFloat16)
TC_INSTANTIATE(Half)
#undef TC_INSTANTIATE

namespace {

struct Cpu : Layers {
  template <class T, class Op>
  static void gated_grad_grad(const GatedGradGradArgs<T, Op>& args) {
    const int64_t cols = args.cols;
    for_each_tile(args.rows, cols, args.mask, [&](Mask& mask, const Tile& tile) {
      alignas(64) Op cg[kSegment];
      alignas(64) Op cv[kSegment];
      alignas(64) Op c[kSegment];
      alignas(64) Op g[kSegment];
      alignas(64) Op v[kSegment];
      const int64_t i = tile.row * cols + tile.col, n = tile.size();
      load_tile(cg, args.c, 2 * cols, tile);
      load_tile(cv, args.c + cols, 2 * cols, tile);
      load(c, args.grad + i, n);
      load_tile(g, args.z, 2 * cols, tile);
      load_tile(v, args.z + cols, 2 * cols, tile);
      math::dispatch_activation<Op>(
          args.activation, [&](const auto& act) { gate_grad_grad(act, cg, cv, c, g, v, n); });
      if (mask.drops()) {
        const uint16_t* lanes = mask.draw(i, n);
        for (Op* d : {c, g, v}) Mask::select(d, lanes, mask.threshold(), args.factor, n);
      }
      store(args.dgrad + i, c, n);
      store_tile(args.dz, g, 2 * cols, tile);
      store_tile(args.dz + cols, v, 2 * cols, tile);
    });
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("gated_linear", TORCH_BOX(&torchcalc::gated_linear<torchcalc::cpu::Cpu>));
  m.impl("gated_linear_keep", TORCH_BOX(&torchcalc::gated_linear_keep<torchcalc::cpu::Cpu>));
  m.impl("gated_grad", TORCH_BOX(&torchcalc::gated_grad<torchcalc::cpu::Cpu>));
  m.impl("gated_bias_grad", TORCH_BOX(&torchcalc::gated_bias_grad<torchcalc::cpu::Cpu>));
  m.impl("gated_linear_grad", TORCH_BOX(&torchcalc::gated_linear_grad<torchcalc::cpu::Cpu>));
  m.impl("gated_grad_grad", TORCH_BOX(&torchcalc::gated_grad_grad<torchcalc::cpu::Cpu>));
}
