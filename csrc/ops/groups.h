#pragma once

#include <cstdint>
#include <vector>

#include "common/macros.h"

namespace torchcalc {

// Some dimensions of a row-major tensor, as one index that counts through them.
struct Axes {
  static constexpr int kMost = 4;  // neighbours are one: more than tensors have in practice
  int64_t sizes[kMost], strides[kMost];
  int count = 0;

  TC_HD int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < count; ++d) n *= sizes[d];
    return n;
  }

  TC_HD int64_t offset(int64_t i) const {
    if (count == 1) return i * strides[0];
    int64_t offset = 0;
    for (int d = count - 1; d >= 0; --d) {
      offset += i % sizes[d] * strides[d];
      i /= sizes[d];
    }
    return offset;
  }

  // From the last dimension to the first; false where there are too many.
  bool push(int64_t size, int64_t stride) {
    if (size == 1) return true;
    if (count > 0 && sizes[0] * strides[0] == stride) {
      sizes[0] *= size;
      return true;
    }
    if (count == kMost) return false;
    for (int d = count++; d > 0; --d) sizes[d] = sizes[d - 1], strides[d] = strides[d - 1];
    sizes[0] = size, strides[0] = stride;
    return true;
  }
};

// How a contiguous tensor falls into groups: `outer` tells the groups, `inner` what is in one.
struct GroupLayout {
  Axes outer, inner;
  int64_t groups, size;

  // One group after the other, each without gaps.
  TC_HD bool in_order() const {
    return (size == 1 || (inner.count == 1 && inner.strides[0] == 1)) &&
           (groups == 1 || (outer.count == 1 && outer.strides[0] == size));
  }

  // Each group one element behind the one before.
  bool adjacent() const { return outer.count == 1 && outer.strides[0] == 1; }

  // False where it has too many dimensions. Bit d of `indexes`: dimension d tells the groups.
  // Others are in groups, whole or, where `block` > 0, in groups of so many neighbours.
  bool make(const int64_t* sizes, int64_t dims, int64_t indexes, int64_t block) {
    int64_t stride = 1;
    bool fits = true;
    for (int64_t d = dims - 1; d >= 0; --d) {
      const bool is_outer = indexes >> d & 1;
      if (is_outer || block <= 0) {
        fits = fits && (is_outer ? outer : inner).push(sizes[d], stride);
      } else {
        fits = fits && sizes[d] % block == 0 && inner.push(block, stride) &&
               outer.push(sizes[d] / block, stride * block);
      }
      stride *= sizes[d];
    }
    groups = outer.numel(), size = inner.numel();
    return fits;
  }
};

}  // namespace torchcalc
