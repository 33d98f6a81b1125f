#pragma once

#include <numeric>
#include <optional>
#include <vector>

#include "common/checks.h"
#include "math/mask.h"

// Checks of what tells a kernel which mask it draws: the same arguments in every op that has one.
namespace torchcalc {

using OptionalInts = std::optional<std::vector<int64_t>>;

// block = [*shape, *offset, *size]: a sample is the part of `size` of a tensor of `shape` that
// begins at `offset`.
inline math::Block checked_block(const std::vector<int64_t>& block, int64_t draws, const char* op) {
  const size_t n = block.size() / 3;
  STD_TORCH_CHECK(block.size() == 3 * n && n > 0, op, ": block is not three lists");
  const int64_t *shape = block.data(), *offset = shape + n, *size = offset + n;
  math::Block result;
  int64_t total = 1, stride = 1;
  std::vector<std::pair<int64_t, int64_t>> dims;  // size and stride, the last first
  for (size_t k = n; k-- > 0;) {
    STD_TORCH_CHECK(
        size[k] >= 0 && offset[k] >= 0 && size[k] <= shape[k] && offset[k] <= shape[k] - size[k],
        op, ": the block lies outside of the shape");
    STD_TORCH_CHECK(!__builtin_mul_overflow(total, size[k], &total), op,
                    ": the block is too large");
    result.begin += offset[k] * stride;
    if (size[k] != 1) {
      if (!dims.empty() && stride == dims.back().first * dims.back().second) {
        dims.back().first *= size[k];
      } else {
        dims.emplace_back(size[k], stride);
      }
    }
    STD_TORCH_CHECK(!__builtin_mul_overflow(stride, std::max<int64_t>(shape[k], 1), &stride), op,
                    ": the shape is too large");
  }
  STD_TORCH_CHECK(total == draws, op, ": the block is of another size than the tensor");
  // A last dimension of one element is one, too: draws are consecutive in it.
  if (dims.empty() || dims.front().second != 1) dims.insert(dims.begin(), {1, 1});
  STD_TORCH_CHECK(dims.size() <= math::kMaxBlockDims, op, ": the block has too many dimensions");
  result.dims = static_cast<int>(dims.size());
  for (size_t k = 0; k < dims.size(); ++k) {
    result.size[result.dims - 1 - k] = dims[k].first;
    result.stride[result.dims - 1 - k] = dims[k].second;
  }
  return result;
}

// The mask of `numel` elements on `reference`'s device. Seeds are read where the kernel runs, so
// that one on a GPU costs no synchronisation.
inline math::MaskArgs checked_mask(const OptionalTensor& seed, int64_t threshold, int64_t samples,
                                   const OptionalInts& block, int64_t shared, int64_t numel,
                                   const Kind& reference, const char* op) {
  STD_TORCH_CHECK(threshold >= 0 && threshold <= math::kLaneRange, op,
                  ": threshold is not in [0, 65536]");
  math::MaskArgs mask{.seeds = nullptr,
                      .threshold = threshold,
                      .seed_for_each = false,
                      .sample = std::max<int64_t>(numel, 1),
                      .shared = 1,
                      .block = {},
                      .plain = true};
  if (threshold == 0 || numel == 0) return mask;
  STD_TORCH_CHECK(seed.has_value(), op, ": dropout needs a seed");
  const int64_t seeds = seed->numel();
  STD_TORCH_CHECK(samples > 0 && numel % samples == 0, op, ": samples do not divide the tensor");
  STD_TORCH_CHECK((seeds == 1 || seeds == samples) && seed->scalar_type() == ScalarType::Long &&
                      seed->is_contiguous(),
                  op, ": seed is not one int64 element, or one for each sample");
  STD_TORCH_CHECK(Kind(*seed).same_device(reference), op, ": seed is on another device");
  mask.seeds = static_cast<const int64_t*>(seed->data_ptr());
  if (samples == 1 && !block && shared == 1) return mask;
  const int64_t sample = numel / samples;
  STD_TORCH_CHECK(shared > 0 && sample % shared == 0, op, ": shared does not divide a sample");
  mask.plain = false;
  mask.seed_for_each = seeds > 1;
  mask.sample = std::max<int64_t>(sample, 1);
  mask.shared = shared;
  if (block) mask.block = checked_block(*block, sample / shared, op);
  return mask;
}

}  // namespace torchcalc
