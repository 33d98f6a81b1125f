#pragma once

#include <algorithm>
#include <cstdint>

#include "math/philox.h"

// Which draw of which dropout mask belongs to element i of an array.
//
// Whole tensor: draw i. Under vmap, an array is samples one after the other, and the draws begin
// anew with each. Where whole channels are dropped, consecutive elements share a draw. And where a
// sample is a block of a larger tensor, its draws are those that the larger tensor has there.
namespace torchcalc::math {

constexpr int kMaxBlockDims = 8;

// A block of a row-major tensor whose draws are numbered from 0: size[k] draws that are stride[k]
// numbers apart, the last dimension's consecutive, from number `begin` on. dims == 0: the whole.
struct Block {
  int dims = 0;
  int64_t begin = 0;
  int64_t size[kMaxBlockDims] = {}, stride[kMaxBlockDims] = {};
};

// From an element on, `run` elements have consecutive draws, or where they share draws, the same.
struct Draw {
  uint64_t seed;
  uint64_t index;
  int64_t run;
};

struct MaskArgs {
  const int64_t* seeds;  // one for all samples, or one for each
  int64_t threshold;     // 0: nothing is dropped
  bool seed_for_each;
  int64_t sample;  // elements of a sample
  int64_t shared;  // elements that share a draw
  Block block;
  bool plain;  // element i has draw i of the only seed

  TC_HD bool drops() const { return threshold > 0; }

  TC_HD Draw locate(int64_t i) const {
    const int64_t number = i / sample;
    int64_t j = i - number * sample, run = sample - j;
    if (shared > 1) {
      const int64_t unit = j / shared, left = (unit + 1) * shared - j;
      run = left < run ? left : run;
      j = unit;
    }
    int64_t index = j;
    if (block.dims > 0) {
      index = block.begin;
      for (int k = block.dims - 1; k >= 0; --k) {
        const int64_t rest = j / block.size[k], at = j - rest * block.size[k];
        index += at * block.stride[k];
        if (k == block.dims - 1 && shared == 1 && block.size[k] - at < run) {
          run = block.size[k] - at;
        }
        j = rest;
      }
    }
    return {static_cast<uint64_t>(seeds[seed_for_each ? number : 0]), static_cast<uint64_t>(index),
            run};
  }
};

}  // namespace torchcalc::math
