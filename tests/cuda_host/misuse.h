#pragma once

#include "cuda_runtime.h"

namespace cuda_host {

// Says what was wrong, and ends the program.
[[noreturn]] void misuse(const char* what);

// Ends the program unless a kernel may start like this.
void check_launch(const cudaLaunchConfig_t& config, const void* kernel);

}  // namespace cuda_host
