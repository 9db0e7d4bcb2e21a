// Kernels that Triton compiled, as plain data, and their launch by the driver.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <string>
#include <vector>

#include "checks.h"

namespace effnet::cuda {

// An argument: a number's bits where `tensor` is 0, else so many bytes into the tensor of number `tensor` - 1.
struct KernelArgument {
  int64_t tensor;
  int64_t value;
};

constexpr int kMostArguments = 48;

struct CompiledKernel {
  uint64_t function;  // CUfunction
  uint32_t programs, threads, shared_bytes;
  int32_t count;
  KernelArgument arguments[kMostArguments];
};

// Kernels compiled elsewhere are launched by the driver, which this library is not linked with: a machine may have
// none.
using LaunchKernel = CUresult (*)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                  CUstream, void**, void**);

inline LaunchKernel launch_kernel() {
  static const LaunchKernel found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    STD_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuLaunchKernel", &function, 12000, cudaEnableDefault, &result));
    STD_TORCH_CHECK(function != nullptr, "effnet_fast: the CUDA driver has no cuLaunchKernel");
    return reinterpret_cast<LaunchKernel>(function);
  }();
  return found;
}

// `tensors` are addresses, by number.
inline void launch(const CompiledKernel& kernel, void* const* tensors, cudaStream_t stream) {
  void* addresses[kMostArguments];
  void* arguments[kMostArguments];
  for (int i = 0; i < kernel.count; ++i) {
    const KernelArgument& argument = kernel.arguments[i];
    if (argument.tensor != 0) addresses[i] = static_cast<char*>(tensors[argument.tensor - 1]) + argument.value;
    // Numbers of 4 bytes are the lower half: every platform of CUDA is little-endian.
    arguments[i] = argument.tensor != 0 ? static_cast<void*>(&addresses[i]) : const_cast<int64_t*>(&argument.value);
  }
  const CUresult error = launch_kernel()(reinterpret_cast<CUfunction>(kernel.function), kernel.programs, 1, 1,
                                         kernel.threads, 1, 1, kernel.shared_bytes, stream, arguments, nullptr);
  STD_TORCH_CHECK(error == CUDA_SUCCESS, "effnet_fast: a launch failed with CUDA error ", static_cast<int>(error));
}

// From handle, programs, threads, bytes of shared memory and a pair of numbers for each argument.
inline CompiledKernel compiled_kernel(const Checks& checks, const int64_t* words, size_t size, int64_t tensors,
                                      const char* argument) {
  constexpr size_t kHead = 4;
  CompiledKernel kernel{};
  if (size < kHead || size % 2 != 0 || (size - kHead) / 2 > kMostArguments) {
    checks.fail(argument, "a kernel's handle, programs, threads, shared memory and pairs of numbers",
                std::to_string(size) + " numbers");
  }
  kernel.function = static_cast<uint64_t>(words[0]);
  kernel.programs = static_cast<uint32_t>(words[1]);
  kernel.threads = static_cast<uint32_t>(words[2]);
  kernel.shared_bytes = static_cast<uint32_t>(words[3]);
  for (size_t i = kHead; i < size; i += 2) {
    if (words[i] < 0 || words[i] > tensors || (words[i] != 0 && words[i + 1] < 0))
      checks.fail(argument, "the number of a tensor and an offset",
                  std::to_string(words[i]) + ", " + std::to_string(words[i + 1]));
    kernel.arguments[kernel.count++] = {words[i], words[i + 1]};
  }
  return kernel;
}

}  // namespace effnet::cuda
