#pragma once

#include "cuda/mask.cuh"
#include "cuda/rows.cuh"

namespace torchcalc::cuda {

// Two of them, because what other masks need would cost plain ones a third of the threads.
template <bool Plain, class T, class Op>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const __grid_constant__ DropoutArgs<T, Op> args, bool aligned) {
  const Octet at = thread_octet(args.n, aligned);
  if (at.n <= 0) return;
  const OctetMask mask(args.mask, Plain, 0, at);
  const auto x = fetch(args.x, at);
  const auto residual = fetch_if(args.residual, at);
  const Kept kept = mask.draw();
  Values<Op> v;
  unpack(v, x);
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) v[j] = kept[j] ? v[j] * args.scale + args.shift : args.fill;
  if (args.residual) {
    Values<Op> added;
    unpack(added, residual);
    add(v, added);
  }
  store(args.y, v, at);
}

// A template only so that every translation unit may hold it.
template <class Bool>
__global__ void __launch_bounds__(kThreads)
    dropout_mask_kernel(Bool* mask, int64_t n, const __grid_constant__ math::MaskArgs args,
                        bool aligned) {
  const Octet at = thread_octet(n, aligned);
  if (at.n <= 0) return;
  const Kept kept = OctetMask(args, args.plain, 0, at).draw();
  uint2 bytes{};
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) (j < 4 ? bytes.x : bytes.y) |= uint32_t{kept[j]} << j % 4 * 8;
  Bool* const p = mask + at.begin;
  if (at.packed) {
    *reinterpret_cast<uint2*>(p) = bytes;
  } else {
    TC_UNROLL
    for (int j = 0; j < kOctet; ++j) {
      if (j < at.n) p[j] = kept[j];
    }
  }
}

// A byte for each thread.
template <class Byte>
__global__ void __launch_bounds__(kThreads)
    packed_mask_kernel(Byte* bits, int64_t samples, int64_t n,
                       const __grid_constant__ math::MaskArgs args, unsigned across) {
  const Octet at = thread_octet(samples, n, across, false);
  if (at.n <= 0) return;
  const Kept kept = OctetMask(args, args.plain, 0, at).draw();
  uint32_t byte = 0;
  TC_UNROLL
  for (int j = 0; j < kOctet; ++j) byte |= uint32_t{kept[j] && j < at.n} << j;
  bits[thread_byte(n, across)] = static_cast<Byte>(byte);
}

template <class T, class Op>
void dropout(const DropoutArgs<T, Op>& args, cudaStream_t stream) {
  const auto kernel = args.mask.plain ? dropout_kernel<true, T, Op> : dropout_kernel<false, T, Op>;
  launch(kernel, octet_blocks(args.n), kThreads, stream, args,
         are_aligned(args.x, args.y, args.residual));
}

inline void dropout_mask(bool* mask, int64_t n, const math::MaskArgs& args, cudaStream_t stream) {
  launch(dropout_mask_kernel<bool>, octet_blocks(n), kThreads, stream, mask, n, args,
         are_aligned(mask));
}

inline void packed_mask(uint8_t* bits, int64_t samples, int64_t n, const math::MaskArgs& args,
                        cudaStream_t stream) {
  const auto [blocks, block, across] = matrix_grid(samples, n, samples > 1);
  launch(packed_mask_kernel<uint8_t>, blocks, block, stream, bits, samples, n, args, across);
}

}  // namespace torchcalc::cuda
