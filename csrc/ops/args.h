#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "math/activations.h"
#include "math/mask.h"
#include "math/penalty.h"
#include "math/prox.h"

// What a kernel is given: plain pointers into contiguous memory and sizes, the same for CPU and
// CUDA. No torch in here, so that kernels can be compiled and tested without it. Op is T's op-math
// type.
namespace torchcalc {

// y = residual + dropout(f(z)) on a row-major [rows, cols] matrix.
template <class T>
struct EpilogueArgs {
  const T* z = nullptr;         // [rows, cols]; may be y
  T* y = nullptr;               // [rows, cols]
  T* a = nullptr;               // [rows, cols] out, or null
  uint8_t* bits = nullptr;      // [rows, row_bytes(cols)] out: where f is_on, or null
  const T* residual = nullptr;  // [rows, cols] or null
  math::Activation activation;
  math::MaskArgs mask;
  int64_t first = 0;  // elements of the mask before these
  int64_t rows = 0, cols = 0;
};

// dz = mask(factor * d<Order>(grad, u)), u being z, a or y / saved_scale;  value = dropout(f(z));
// partial = sums of dz over chunks of rows.
template <class T, class Op>
struct ActGradArgs {
  const T* grad = nullptr;        // [rows, cols]; may be dz
  const T* saved = nullptr;       // [rows, cols], or null
  const uint8_t* bits = nullptr;  // [rows, row_bytes(cols)], or null
  T* dz = nullptr;                // [rows, cols]
  T* value = nullptr;             // [rows, cols], or null; only where z is saved and order is 1
  Op* partial = nullptr;          // [row_chunks(rows), cols], or null
  math::Activation activation;
  math::Saved saved_as;
  int64_t order = 1;
  math::MaskArgs mask;
  int64_t first = 0;  // elements of the mask before these
  int64_t rows = 0, cols = 0;
  Op factor = 1, saved_scale = 1;
};

// y = dropout(f(g) v) on a row-major [rows, cols] matrix, z = [g, v].
template <class T>
struct GatedArgs {
  const T* z = nullptr;  // [rows, 2 cols]
  T* y = nullptr;        // [rows, cols]
  math::Activation activation;
  math::MaskArgs mask;
  int64_t first = 0;  // elements of the mask before these
  int64_t rows = 0, cols = 0;
};

// The gradient dz of z, factor being the dropout scale;  value = dropout(f(g) v);  partial = sums
// of dz over chunks of rows.
template <class T, class Op>
struct GatedGradArgs {
  const T* grad = nullptr;  // [rows, cols]
  const T* z = nullptr;     // [rows, 2 cols]
  T* dz = nullptr;          // [rows, 2 cols]
  T* value = nullptr;       // [rows, cols], or null; may be grad
  Op* partial = nullptr;    // [row_chunks(rows), 2 cols], or null
  math::Activation activation;
  math::MaskArgs mask;
  int64_t first = 0;  // elements of the mask before these
  int64_t rows = 0, cols = 0;
  Op factor = 1;
};

// The gradients of the above's grad and z, c being the cotangent of its dz.
template <class T, class Op>
struct GatedGradGradArgs {
  const T* c = nullptr;     // [rows, 2 cols]
  const T* grad = nullptr;  // [rows, cols]
  const T* z = nullptr;     // [rows, 2 cols]
  T* dgrad = nullptr;       // [rows, cols]
  T* dz = nullptr;          // [rows, 2 cols]
  math::Activation activation;
  math::MaskArgs mask;
  int64_t rows = 0, cols = 0;
  Op factor = 1;
};

// A row of bits begins with a byte; its first element is the lowest bit.
TC_HD int64_t row_bytes(int64_t cols) { return (cols + 7) / 8; }

// Bias gradients are summed over chunks of this many rows, then over chunks, both in order: a
// partition by shape alone gives the same bits for any number of threads.
constexpr int64_t kRowsPerChunk = 128;
TC_HD int64_t row_chunks(int64_t rows) { return (rows + kRowsPerChunk - 1) / kRowsPerChunk; }

// y = residual + (kept ? scale x + shift : fill) on n elements.
template <class T, class Op>
struct DropoutArgs {
  const T* x;
  const T* residual;  // or null
  T* y;
  math::MaskArgs mask;
  Op scale, shift, fill;
  int64_t n;
};

// A strength of a penalty: a number (both pointers are null), one element for all (`data`, or
// `exact` in op-math type), or one for each.
template <class T, class Op>
struct Strength {
  const T* data;
  bool for_each;
  Op value;
  const Op* exact = nullptr;

  TC_HD Op operator[](int64_t i) const {
    if (exact) return *exact;
    return data ? static_cast<Op>(data[for_each ? i : 0]) : value;
  }
};

// y = prox of a penalty at v.
template <class T, class Op>
struct PenaltyProxArgs {
  const T* v;
  const Op* steps;  // or null: then all are
  Op step;
  T* y;
  math::Penalty penalty;
  int64_t n;
};

// Arrays have n elements. An input that may be null stands for zeros, an output for one not wanted.
template <class T, class Op>
struct ProxArgs {
  const T* x;
  Strength<T, Op> l1, l2;
  T* y;
  int64_t n;
};

template <class T, class Op>
struct ProxGradArgs {
  const T *grad, *x;
  Strength<T, Op> l1, l2;
  T *dx, *dl1, *dl2;  // dl1, dl2 may be null
  int64_t n;
};

template <class T, class Op>
struct ProxGradGradArgs {
  const T *cx, *c1, *c2;  // cotangents of dx, dl1, dl2; may be null
  const T *grad, *x;
  Strength<T, Op> l1, l2;
  T *dgrad, *dx, *dl1, *dl2;  // dl1, dl2 may be null
  int64_t n;
};

}  // namespace torchcalc
