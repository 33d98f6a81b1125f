// What torch's CUDA libraries would give, for CPU tensors: guards, the stream, GEMMs. Each ends the
// program where it is misused. Linked with -Bsymbolic, so that the library calls these and not
// libtorch's own.
#include <dlfcn.h>
#include <stdio.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "misuse.h"

namespace {

using cuda_host::misuse;

constexpr int32_t kDevice = -1;  // the index of the CPU
void* const kStream = reinterpret_cast<void*>(0x5eed);

thread_local int guards;
std::map<const void*, unsigned long> launches;  // of each kernel
int errors = STDERR_FILENO;

// libtorch's function of this name.
template <class F>
F* in_torch(const char* name) {
  void* function = dlsym(RTLD_NEXT, name);
  if (!function) misuse(dlerror());
  return reinterpret_cast<F*>(function);
}

}  // namespace

namespace cuda_host {

void misuse(const char* what) {
  dprintf(errors, "cuda_host: %s\n", what);
  std::abort();
}

unsigned long check_launch(const cudaLaunchConfig_t& config, const void* kernel) {
  if (guards == 0) misuse("a launch outside of a device guard");
  if (config.stream != kStream) misuse("a launch on another stream than torch's");
  if (config.gridDim.y * config.gridDim.z != 1) misuse("grids have one dimension here");
  return launches[kernel]++;
}

}  // namespace cuda_host

extern "C" {

AOTITorchError aoti_torch_create_device_guard(int32_t index, DeviceGuardHandle* guard) {
  if (index != kDevice) misuse("a guard of another device than the tensor's");
  ++guards;
  *guard = reinterpret_cast<DeviceGuardHandle>(&guards);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) {
  --guards;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_current_device_index(int32_t* index) {
  if (guards == 0) misuse("the current device asked for outside of a guard");
  *index = kDevice;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t index, void** stream) {
  if (index != kDevice || guards == 0) misuse("a stream of another device");
  *stream = kStream;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cuda_mm_out(AtenTensorHandle out, AtenTensorHandle self,
                                      AtenTensorHandle mat2) {
  if (guards == 0) misuse("a GEMM outside of a device guard");
  return aoti_torch_cpu_mm_out(out, self, mat2);
}

AOTITorchError aoti_torch_cuda_addmm_out(AtenTensorHandle out, AtenTensorHandle self,
                                         AtenTensorHandle mat1, AtenTensorHandle mat2, double beta,
                                         double alpha) {
  if (guards == 0) misuse("a GEMM outside of a device guard");
  return aoti_torch_cpu_addmm_out(out, self, mat1, mat2, beta, alpha);
}

AOTITorchError aoti_torch_cuda_bmm_out(AtenTensorHandle out, AtenTensorHandle self,
                                       AtenTensorHandle mat2) {
  if (guards == 0) misuse("a GEMM outside of a device guard");
  return aoti_torch_cpu_bmm_out(out, self, mat2);
}

AOTITorchError aoti_torch_cuda_baddbmm_out(AtenTensorHandle out, AtenTensorHandle self,
                                           AtenTensorHandle batch1, AtenTensorHandle batch2,
                                           double beta, double alpha) {
  if (guards == 0) misuse("a GEMM outside of a device guard");
  return aoti_torch_cpu_baddbmm_out(out, self, batch1, batch2, beta, alpha);
}

// New memory holds NaN: what no kernel has written shows.
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides,
                                        int32_t dtype, int32_t device_type, int32_t device_index,
                                        AtenTensorHandle* result) {
  static const auto empty =
      in_torch<decltype(aoti_torch_empty_strided)>("aoti_torch_empty_strided");
  const auto error = empty(dim, sizes, strides, dtype, device_type, device_index, result);
  if (error != AOTI_TORCH_SUCCESS) return error;
  void* data = nullptr;
  int64_t bytes = 0;
  aoti_torch_get_data_ptr(*result, &data);
  aoti_torch_get_storage_size(*result, &bytes);
  if (bytes > 0) std::memset(data, 0xff, static_cast<size_t>(bytes));
  return AOTI_TORCH_SUCCESS;
}

// What Python asks (see plugin.py).

__attribute__((visibility("default"))) void cuda_host_set_errors(int file) { errors = file; }

// The k-th of the kernels that were launched: its offset in this library, and how many times.
__attribute__((visibility("default"))) bool cuda_host_launched(size_t k, unsigned long* offset,
                                                               unsigned long* times) {
  if (k >= launches.size()) return false;
  const auto& [kernel, count] = *std::next(launches.begin(), static_cast<std::ptrdiff_t>(k));
  Dl_info library;
  dladdr(kernel, &library);
  *offset = reinterpret_cast<uintptr_t>(kernel) - reinterpret_cast<uintptr_t>(library.dli_fbase);
  *times = count;
  return true;
}
}
