// k of the k x k depthwise convolutions that have kernels.
#pragma once

#include <cstdint>

namespace effnet {

constexpr bool is_kernel_size(int64_t kernel) { return kernel == 3 || kernel == 5 || kernel == 7; }
// For messages.
constexpr const char* kKernelSizes = "3, 5 or 7";

}  // namespace effnet
