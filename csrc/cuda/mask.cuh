#pragma once

#include "cuda/octet.cuh"
#include "math/mask.h"

// The mask of an octet.
namespace torchcalc::cuda {

// Which lanes are kept. A lane is compared in the upper half of a word: one of two is there
// already.
class Kept {
 public:
  __device__ Kept(const math::Words4& words, int threshold)
      : words_(words),
        some_(threshold < math::kLaneRange),
        bound_(static_cast<uint32_t>(threshold) << 16) {}

  __device__ bool operator[](int j) const {
    const uint32_t word = words_.w[j / 2];
    return some_ && (j % 2 ? word : word << 16) >= bound_;
  }

 private:
  math::Words4 words_;
  bool some_;
  uint32_t bound_;
};

// A lane that is not known before the program runs, in the upper half of a word.
TC_HD uint32_t upper_lane(const math::Words4& words, uint32_t at) {
  const uint32_t low = at & 2 ? words.w[1] : words.w[0], high = at & 2 ? words.w[3] : words.w[2];
  const uint32_t word = at & 4 ? high : low;
  return at & 1 ? word & 0xffff0000u : word << 16;
}

// Comes in behind the eighth; the first goes out.
TC_HD void push_lane(math::Words4& words, uint32_t upper) {
  TC_UNROLL
  for (int k = 0; k < 3; ++k) words.w[k] = words.w[k] >> 16 | words.w[k + 1] << 16;
  words.w[3] = words.w[3] >> 16 | upper;
}

// The lanes of elements [begin, begin + n), wherever they are drawn: run after run. Not unrolled,
// and called where little else is held, so that it asks for no more registers than what follows.
__device__ inline math::Words4 gather_words(const math::MaskArgs& mask, int64_t begin, int n) {
  math::Words4 words{};
  const int shared = mask.shared > 1;
#pragma unroll 1
  for (int j = 0; j < n;) {
    auto [seed, index, run] = mask.locate(begin + j);
    const auto end = static_cast<int>(std::min<int64_t>(j + run, n));
    math::Words4 group{};
    bool is_drawn = false;
#pragma unroll 1
    for (; j < end; ++j) {
      const auto at = static_cast<uint32_t>(index % math::kLanesPerGroup);
      if (!is_drawn) group = math::dropout_words(seed, index / math::kLanesPerGroup);
      push_lane(words, upper_lane(group, at));
      is_drawn = shared || at + 1 < math::kLanesPerGroup;
      index += !shared;
    }
  }
#pragma unroll 1
  for (int j = n; j < kOctet; ++j) push_lane(words, 0);
  return words;
}

// The draws of an octet of an array that begins at element `first` of the mask. Made before the
// octet is fetched, it draws what must be gathered; where the mask is plain, it draws a group when
// all loads are on their way.
class OctetMask {
 public:
  __device__ OctetMask(const math::MaskArgs& args, bool plain, int64_t first, Octet at)
      : plain_(plain),
        threshold_(static_cast<int>(args.threshold)),
        group_(static_cast<uint64_t>(at.begin) / math::kLanesPerGroup) {
    if (!drops()) return;
    if (plain) [[likely]] {
      seed_ = static_cast<uint64_t>(*args.seeds);
    } else {
      words_ = gather_words(args, first + at.begin, at.n);
    }
  }

  __device__ bool drops() const { return threshold_ > 0; }

  __device__ Kept draw() const {
    return Kept(drops() && plain_ ? math::dropout_words(seed_, group_) : words_, threshold_);
  }

 private:
  bool plain_;
  int threshold_;
  uint64_t group_, seed_ = 0;
  math::Words4 words_{};
};

// A mask as kernels are given it: `plain` also says that each octet is one Philox group, which it
// is where the array is the mask's beginning and octets begin at multiples of eight.
inline math::MaskArgs mask_of_octets(math::MaskArgs mask, int64_t first, bool multiples) {
  mask.plain = mask.plain && first == 0 && multiples;
  return mask;
}

// v = kept ? factor * v : 0, by selection: a dropped NaN is 0 as well.
template <class Op>
__device__ void drop(Values<Op>& v, const Kept& kept, Op factor) {
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) v[j] = kept[j] ? factor * v[j] : Op(0);
}

}  // namespace torchcalc::cuda
