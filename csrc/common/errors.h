#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>
#include <string>

// torch's text of the last error in this thread. libtorch has it since 2.13 while the binary may
// run under any since 2.10, and the headers show it to programs that ask for 2.13 only: so it is
// weak, null where it is missing.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace torchcalc {

// Throws unless a call into torch's C interface succeeded. `what` was to be done.
inline void torch_check(AOTITorchError code, const char* what) {
  if (code == AOTI_TORCH_SUCCESS) [[likely]]
    return;
  std::string message = std::string(what) + " failed";
  if (torch_exception_get_what_without_backtrace) {
    message += std::string(": ") + torch_exception_get_what_without_backtrace();
  }
  throw std::runtime_error(message);
}

}  // namespace torchcalc
