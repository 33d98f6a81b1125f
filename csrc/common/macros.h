#pragma once

// TC_HD marks a formula that runs on the host and on a CUDA device. On the host it must be inlined
// into its caller: only then does it share the instruction set of the SIMD clone that calls it.
#if defined(__CUDACC__)
#define TC_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define TC_HD inline __attribute__((always_inline))
#else
#define TC_HD inline
#endif

// TC_SIMD compiles a function once per x86-64 level and picks one when the library is loaded.
// Thread and address sanitizers run before the dynamic linker's resolvers can, so they get one
// copy.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__CUDACC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define TC_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define TC_HAS_SIMD_CLONES 1
#else
#define TC_SIMD
#define TC_HAS_SIMD_CLONES 0
#endif

// TC_UNROLL unrolls the whole of a loop with a small constant number of rounds. nvcc's own pragma
// is unknown to the compiler that it hands host code to.
#if defined(__CUDA_ARCH__)
#define TC_UNROLL _Pragma("unroll")
#elif defined(__GNUC__) && !defined(__CUDACC__)
#define TC_UNROLL _Pragma("GCC unroll 16")
#else
#define TC_UNROLL
#endif
