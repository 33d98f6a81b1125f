#include "ops/dropout.h"

#include "cpu/parallel.h"

namespace torchcalc::cpu {
namespace {

template <class T, class Op>
TC_SIMD void drop(const DropoutArgs<T, Op>& args, const uint16_t* __restrict lanes,
                  int32_t threshold, int64_t begin, int64_t n) {
  const T* __restrict x = args.x + begin;
  T* __restrict y = args.y + begin;
  const Op scale = args.scale, shift = args.shift, fill = args.fill;
  for (int64_t i = 0; i < n; ++i) {
    y[i] = narrow<T>(lanes[i] >= threshold ? widen(x[i]) * scale + shift : fill);
  }
}

template <class T, class Op>
TC_SIMD void drop_and_add(const DropoutArgs<T, Op>& args, const uint16_t* __restrict lanes,
                          int32_t threshold, int64_t begin, int64_t n) {
  const T* __restrict x = args.x + begin;
  const T* __restrict residual = args.residual + begin;
  T* __restrict y = args.y + begin;
  const Op scale = args.scale, shift = args.shift, fill = args.fill;
  for (int64_t i = 0; i < n; ++i) {
    const Op v = lanes[i] >= threshold ? widen(x[i]) * scale + shift : fill;
    y[i] = narrow<T>(widen(residual[i]) + v);
  }
}

// Elements that share a draw. Where they are dropped, x is not read.
template <class T, class Op>
TC_SIMD void drop_run(const DropoutArgs<T, Op>& args, bool kept, int64_t begin, int64_t n) {
  const T* __restrict x = args.x + begin;
  T* __restrict y = args.y + begin;
  const Op scale = args.scale, shift = args.shift;
  const T fill = narrow<T>(args.fill);
  if (kept) {
    for (int64_t i = 0; i < n; ++i) y[i] = narrow<T>(widen(x[i]) * scale + shift);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = fill;
  }
}

template <class T, class Op>
TC_SIMD void drop_run_and_add(const DropoutArgs<T, Op>& args, bool kept, int64_t begin, int64_t n) {
  const T* __restrict x = args.x + begin;
  const T* __restrict residual = args.residual + begin;
  T* __restrict y = args.y + begin;
  const Op scale = args.scale, shift = args.shift, fill = args.fill;
  if (kept) {
    for (int64_t i = 0; i < n; ++i) {
      y[i] = narrow<T>(widen(residual[i]) + (widen(x[i]) * scale + shift));
    }
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = narrow<T>(widen(residual[i]) + fill);
  }
}

TC_SIMD void compare(bool* __restrict mask, const uint16_t* __restrict lanes, int32_t threshold,
                     int64_t n) {
  for (int64_t i = 0; i < n; ++i) mask[i] = lanes[i] >= threshold;
}

struct IsKept {
  int32_t threshold;
  TC_HD bool is_on(uint16_t lane) const { return lane >= threshold; }
};

struct Cpu {
  using Guard = NoGuard;

  template <class T, class Op>
  static void dropout(const DropoutArgs<T, Op>& args) {
    for_each_segment(
        0, args.n, [&] { return Mask(args.mask); },
        [&](Mask& mask, int64_t begin, int64_t n) {
          if (args.mask.shared > 1) {
            mask.each_run(begin, n, [&](bool kept, int64_t at, int64_t count) {
              args.residual ? drop_run_and_add(args, kept, at, count)
                            : drop_run(args, kept, at, count);
            });
            return;
          }
          const uint16_t* lanes = mask.draw(begin, n);
          args.residual ? drop_and_add(args, lanes, mask.threshold(), begin, n)
                        : drop(args, lanes, mask.threshold(), begin, n);
        });
  }

  static void dropout_mask(bool* kept, int64_t n, const math::MaskArgs& args) {
    for_each_segment(
        0, n, [&] { return Mask(args); },
        [&](Mask& mask, int64_t begin, int64_t count) {
          compare(kept + begin, mask.draw(begin, count), mask.threshold(), count);
        });
  }

  static void packed_mask(uint8_t* bits, int64_t samples, int64_t n, const math::MaskArgs& args) {
    for_each_row_segment(
        0, samples, n, [&] { return Mask(args); },
        [&](Mask& mask, int64_t begin, int64_t count) {
          pack_bits(IsKept{mask.threshold()}, bits_of(bits, begin, n), mask.draw(begin, count),
                    count);
        });
  }
};

}  // namespace
}  // namespace torchcalc::cpu

STABLE_TORCH_LIBRARY_IMPL(torchcalc, CPU, m) {
  m.impl("dropout", TORCH_BOX(&torchcalc::dropout<torchcalc::cpu::Cpu>));
  m.impl("dropout_mask", TORCH_BOX(&torchcalc::dropout_mask<torchcalc::cpu::Cpu>));
}
