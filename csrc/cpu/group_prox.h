#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "cpu/parallel.h"
#include "math/group_prox.h"
#include "math/rounding.h"
#include "math/total_variation.h"
#include "ops/groups.h"

// The prox of a penalty by groups on the CPU. A group is worked on as a contiguous array: in place
// where it is one, of the op-math type; else in a copy.
namespace torchcalc::cpu {

// Memory that starts uninitialized, as aligned as the widest vectors.
template <class T>
class Scratch {
 public:
  T* of(int64_t n) {
    if (n > size_) {
      data_.reset(static_cast<T*>(::operator new(static_cast<size_t>(n) * sizeof(T), kLine)));
      size_ = n;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Delete {
    void operator()(T* p) const { ::operator delete(p, kLine); }
  };

  std::unique_ptr<T, Delete> data_;
  int64_t size_ = 0;
};

template <class T, class F>
TC_SIMD math::Sums<T> sum_segment(const T* __restrict v, const T* __restrict s, int64_t n, F f) {
  T x = 0, y = 0, z = 0;
#pragma omp simd reduction(+ : x, y, z)
  for (int64_t i = 0; i < n; ++i) {
    const auto term = f(v[i], s[i]);
    x += term.x, y += term.y, z += term.z;
  }
  return {x, y, z};
}

template <class T, class F>
TC_SIMD int64_t count_segment(const T* __restrict v, const T* __restrict s, int64_t first,
                              int64_t n, F f) {
  int64_t count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t i = 0; i < n; ++i) count += f(v[i], s[i], first + i);
  return count;
}

template <class T, class F>
TC_SIMD void map_segment(T* __restrict v, const T* __restrict s, int64_t first, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++i) v[i] = f(v[i], s[i], first + i);
}

// A group as math/group_prox.h wants it. Sums are those of segments, added in order within chunks
// and over chunks: the same bits for any number of threads.
template <class T>
class Group {
 public:
  Group(T* v, const T* s, int64_t n) : v_(v), s_(s), n_(n) {}

  static constexpr bool kKeeps = true;

  int64_t size() const { return n_; }

  template <class F>
  math::Sums<double> sum(F f) const {
    return over_chunks<math::Sums<double>>(
        [&](math::Sums<double>& total, int64_t i, int64_t n) {
          const auto part = sum_segment(v_ + i, s_ + i, n, f);
          total.x += part.x, total.y += part.y, total.z += part.z;
        },
        [](math::Sums<double>& total, const math::Sums<double>& part) {
          total.x += part.x, total.y += part.y, total.z += part.z;
        });
  }

  template <class F>
  int64_t count(F f) const {
    return over_chunks<int64_t>([&](int64_t& total, int64_t i,
                                    int64_t n) { total += count_segment(v_ + i, s_ + i, i, n, f); },
                                [](int64_t& total, int64_t part) { total += part; });
  }

  template <class F>
  void map(F f) const {
    if (n_ <= kGrain) return map_segment(v_, s_, 0, n_, f);
    for_each_segment(
        0, n_, [] { return 0; },
        [&](int, int64_t i, int64_t n) { map_segment(v_ + i, s_ + i, i, n, f); });
  }

 private:
  template <class Total, class Add, class Join>
  Total over_chunks(Add add, Join join) const {
    const auto chunk = [&](int64_t begin) {
      Total total{};
      const int64_t end = std::min(begin + kGrain, n_);
      for (int64_t i = begin; i < end; i += kSegment) add(total, i, std::min(kSegment, end - i));
      return total;
    };
    if (n_ <= kGrain) return chunk(0);
    std::vector<Total> parts(static_cast<size_t>(ceil_div(n_, kGrain)));
    parallel_for(0, static_cast<int64_t>(parts.size()), 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        parts[static_cast<size_t>(c)] = chunk(c * kGrain);
      }
    });
    Total total{};
    for (const Total& part : parts) join(total, part);
    return total;
  }

  T* v_;
  const T* s_;
  int64_t n_;
};

template <class Op>
void prox_group(const math::Penalty& g, Op* v, const Op* s, int64_t n) {
  if (math::group_prox<Op>(Group<Op>(v, s, n), g)) return;
  if constexpr (!std::is_same_v<Op, double>) {
    std::vector<double> wide_v(v, v + n), wide_s(s, s + n);
    math::group_prox<double>(Group<double>(wide_v.data(), wide_s.data(), n), g);
    std::copy(wide_v.begin(), wide_v.end(), v);
  }
}

// Of each of `groups` groups of M (or, where that is 0, m) one after the other, the `kept` largest
// stay; of equals, those of the lowest index. Each element is compared with all of its group.
constexpr int64_t kMostCompared = 64;

template <int M, class T>
TC_SIMD void keep_largest(T* __restrict v, const T* __restrict s, int64_t groups, int64_t m,
                          int kept) {
  const int64_t size = M > 0 ? M : m;
  for (int64_t k = 0; k < groups; ++k) {
    math::Key<T> keys[M > 0 ? M : kMostCompared];
    T* const group = v + k * size;
    for (int64_t i = 0; i < size; ++i) keys[i] = math::key_of(group[i], s[k * size + i]);
    TC_UNROLL
    for (int64_t i = 0; i < size; ++i) {
      int rank = 0;
      TC_UNROLL
      for (int64_t j = 0; j < size; ++j) {
        rank += (keys[j] > keys[i]) | ((keys[j] == keys[i]) & (j < i));
      }
      group[i] = rank < kept ? group[i] : T(0);
    }
  }
}

// Of `groups` groups, each `pitch` elements behind the one before.
template <class Op>
void prox_in_order(const math::Penalty& g, Op* v, const Op* s, int64_t groups, int64_t size,
                   int64_t pitch) {
  if (g.kind == math::PenaltyKind::kLargest && size <= kMostCompared) {
    const auto kept = static_cast<int>(std::min(math::kept_of(g, size), size));
    if (size == 2) return keep_largest<2>(v, s, groups, size, kept);
    if (size == 4) return keep_largest<4>(v, s, groups, size, kept);
    if (size == 8) return keep_largest<8>(v, s, groups, size, kept);
    return keep_largest<0>(v, s, groups, size, kept);
  }
  if (g.kind == math::PenaltyKind::kTotalVariation) {
    std::vector<double> work(static_cast<size_t>(math::total_variation_work(size)));
    for (int64_t k = 0; k < groups; ++k) {
      math::total_variation(v + k * pitch, s + k * pitch, Op(1), size, 1, g.lam, work.data());
    }
    return;
  }
  for (int64_t k = 0; k < groups; ++k) prox_group(g, v + k * pitch, s + k * pitch, size);
}

// What a thread needs to work on groups that are not arrays of the op-math type.
template <class Op>
struct GroupScratch {
  Scratch<Op> values, metric;
};

// How results come back into a tensor of T; `at` is where, counted from its first element.
struct RoundToNearest {
  template <class T>
  void store(T* w, int64_t at, const opmath_t<T>* v, int64_t n) const {
    cpu::store(w + at, v, n);
  }
  template <class T>
  T one(int64_t, opmath_t<T> v) const {
    return narrow<T>(v);
  }
};

struct RoundRandomly {
  math::RandomRounding random;
  int64_t before = 0;  // elements of the tensor before w

  template <class T>
  void store(T* w, int64_t at, const opmath_t<T>* v, int64_t n) const {
    constexpr int64_t lanes = math::kLanesPerGroup;
    for (int64_t i = 0; i < n;) {
      const int64_t element = before + at + i;
      const math::Words4 words = random.words(element / lanes);
      for (auto lane = static_cast<int>(element % lanes); lane < lanes && i < n; ++lane, ++i) {
        w[at + i] = math::round_randomly<T>(v[i], math::lane_of(words, lane));
      }
    }
  }
  template <class T>
  T one(int64_t at, opmath_t<T> v) const {
    return random.at<T>(before + at, v);
  }
};

// Groups [begin, begin + count) of w, a tensor of this layout, become their prox. `steps` is null
// or has one for each element, with the same offsets.
template <class T, class Round = RoundToNearest>
void prox_some_groups(const math::Penalty& g, const GroupLayout& layout, T* w,
                      const opmath_t<T>* steps, opmath_t<T> step, int64_t begin, int64_t count,
                      GroupScratch<opmath_t<T>>& scratch, const Round& round = {}) {
  using Op = opmath_t<T>;
  if (!steps && g.one_step(step) == 0) return;  // nothing moves
  const int64_t size = layout.size;
  const bool in_order = layout.in_order();
  // Groups that are copied lie a line apart: of rows of 2^k elements all would share their places
  // in the cache.
  const int64_t pitch = in_order || size <= kMostCompared ? size : size + 16;
  const int64_t n = count * pitch;
  const int64_t first = begin * size;  // where they are in order
  const Op* s = nullptr;
  if (steps && in_order) {
    s = steps + first;
  } else if (!steps) {
    s = scratch.metric.of(n);
    std::fill_n(scratch.metric.of(n), n, g.one_step(step));
  }
  if constexpr (std::is_same_v<T, Op>) {
    if (in_order) return prox_in_order(g, w + first, s, count, size, pitch);
  }
  Op* const v = scratch.values.of(n);
  if (in_order) {
    load(v, w + first, n);
    prox_in_order(g, v, s, count, size, pitch);
    return round.store(w, first, v, n);
  }
  const auto each = [&](auto f) {
    for (int64_t j = 0; j < size; ++j) {
      const int64_t inner = layout.inner.offset(j);
      if (layout.adjacent()) {  // groups lie next to each other, element by element
        const int64_t at = layout.outer.offset(begin) + inner;
        for (int64_t i = 0; i < count; ++i) f(at + i, i * pitch + j);
      } else {
        for (int64_t i = 0; i < count; ++i) {
          f(layout.outer.offset(begin + i) + inner, i * pitch + j);
        }
      }
    }
  };
  Op* const metric = scratch.metric.of(n);
  each([&](int64_t at, int64_t to) { v[to] = widen(w[at]); });
  if (steps) each([&](int64_t at, int64_t to) { metric[to] = steps[at]; });
  prox_in_order(g, v, static_cast<const Op*>(metric), count, size, pitch);
  each([&](int64_t at, int64_t from) { w[at] = round.template one<T>(at, v[from]); });
}

// All groups, in parallel; one that is large, by all threads.
template <class T, class Round = RoundToNearest>
void prox_groups(const math::Penalty& g, const GroupLayout& layout, T* w, const opmath_t<T>* steps,
                 opmath_t<T> step, const Round& round = {}) {
  const int64_t size = std::max<int64_t>(layout.size, 1);
  // Groups at a time: neighbours that are not in order share cache lines.
  const int64_t tile = layout.in_order() ? std::max<int64_t>(1, kSegment / size) : 16;
  parallel_for(0, ceil_div(layout.groups, tile), std::max<int64_t>(1, kGrain / (tile * size)),
               [&](int64_t first, int64_t last) {
                 GroupScratch<opmath_t<T>> scratch;
                 for (int64_t k = first; k < last; ++k) {
                   const int64_t begin = k * tile, count = std::min(tile, layout.groups - begin);
                   prox_some_groups(g, layout, w, steps, step, begin, count, scratch, round);
                 }
               });
}

}  // namespace torchcalc::cpu
