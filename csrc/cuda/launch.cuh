// How kernels are launched, and the switches from run-time numbers to templates. Anything unknown is an error, never a
// default.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "depthwise_traits.cuh"

namespace effnet::cuda {

inline cudaError_t device_limits(DeviceLimits* limits) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto ask = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  };
  ask(&limits->multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&limits->shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  ask(&limits->shared_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return error;
}

// More than 48 KB of shared memory has to be asked for.
template <class Kernel>
cudaError_t allow_shared_bytes(Kernel kernel, int64_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

// One launch of `kernel(params)`. The blocks of a cooperative launch all run at once and may wait for each other.
template <class Params>
cudaError_t launch(void (*kernel)(Params), int64_t blocks, int threads, int64_t shared_bytes, cudaStream_t stream,
                   const Params& params, bool cooperative = false) {
  if (blocks <= 0 || blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const cudaError_t error = allow_shared_bytes(kernel, shared_bytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

// Calls `body` with the DepthwiseTraits of a kernel size and stride.
template <class T, class Body>
cudaError_t with_depthwise_traits(int kernel, int stride, Body&& body) {
  switch (kernel * 10 + stride) {
    case 31:
      return body(DepthwiseTraits<T, 3, 1>{});
    case 32:
      return body(DepthwiseTraits<T, 3, 2>{});
    case 51:
      return body(DepthwiseTraits<T, 5, 1>{});
    case 52:
      return body(DepthwiseTraits<T, 5, 2>{});
    case 71:
      return body(DepthwiseTraits<T, 7, 1>{});
    case 72:
      return body(DepthwiseTraits<T, 7, 2>{});
    default:
      return cudaErrorInvalidValue;
  }
}

inline bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

// One file per storage type and direction instantiates these, so that they compile side by side.
template <class T>
cudaError_t launch_depthwise_forward(DepthwiseForwardParams p, cudaStream_t stream);
template <class T>
cudaError_t launch_depthwise_backward(DepthwiseBackwardParams p, cudaStream_t stream);

extern template cudaError_t launch_depthwise_forward<float>(DepthwiseForwardParams, cudaStream_t);
extern template cudaError_t launch_depthwise_forward<__half>(DepthwiseForwardParams, cudaStream_t);
extern template cudaError_t launch_depthwise_forward<__nv_bfloat16>(DepthwiseForwardParams, cudaStream_t);
extern template cudaError_t launch_depthwise_backward<float>(DepthwiseBackwardParams, cudaStream_t);
extern template cudaError_t launch_depthwise_backward<__half>(DepthwiseBackwardParams, cudaStream_t);
extern template cudaError_t launch_depthwise_backward<__nv_bfloat16>(DepthwiseBackwardParams, cudaStream_t);

}  // namespace effnet::cuda
