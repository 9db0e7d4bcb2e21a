// The few calls of the CUDA runtime that the launchers make.
#pragma once

#include "cuda_on_cpu.h"

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CudaOnCpuStream*;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };

struct cudaLaunchAttributeValue {
  int cooperative;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// A machine of two multiprocessors: small cooperative grids, and plans that cut small shapes.
constexpr int kCudaOnCpuMultiprocessors = 2;
constexpr int kCudaOnCpuSharedBytes = 64 * 1024;

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? kCudaOnCpuMultiprocessors : kCudaOnCpuSharedBytes;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int value) {
  return value <= kCudaOnCpuSharedBytes ? cudaSuccess : cudaErrorInvalidValue;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

template <class... Expected, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Actual&&... arguments) {
  const bool cooperative = config->numAttrs == 1 && config->attrs[0].val.cooperative != 0;
  if (config->gridDim.x == 0 || config->blockDim.x == 0 || config->blockDim.x > 1024) {
    return cudaErrorInvalidConfiguration;
  }
  if (config->dynamicSmemBytes > kCudaOnCpuSharedBytes) return cudaErrorInvalidConfiguration;
  cuda_on_cpu::run([&] { kernel(arguments...); }, config->gridDim, config->blockDim, config->dynamicSmemBytes,
                   cooperative);
  return cudaSuccess;
}
