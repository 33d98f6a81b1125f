#pragma once

#include "cuda_runtime.h"

namespace cuda_host {

// Says what was wrong, and ends the program.
[[noreturn]] void misuse(const char* what);

// How many times this kernel has started so far. Ends the program unless it may start like this.
unsigned long check_launch(const cudaLaunchConfig_t& config, const void* kernel);

}  // namespace cuda_host
