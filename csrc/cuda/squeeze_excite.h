// What the host knows of the squeeze-and-excite kernels. Free of torch and of device code.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/activation.h"
#include "depthwise.h"

namespace effnet::cuda {

struct SqueezeExciteParams {
  const float* pooled;  // [images, parts, channels], partial means
  const void* w1;       // [reduced, channels]
  const void* b1;       // [reduced] or null
  const void* w2;       // [channels, reduced]
  const void* b2;       // [channels] or null
  float* gate;          // [images, channels]
  int64_t images;
  int parts;  // 1 in the backward
  int channels;
  int reduced;
  Activation act;
  Activation gate_act;
};

struct SqueezeExciteBackwardParams {
  SqueezeExciteParams forward;  // gate unused
  const float* dgate;           // [images, dgate_parts, channels], to be summed over the parts
  int dgate_parts;
  float pool_factor;  // of dpooled
  float* dpooled;     // [images, channels]
  // In the weights' type.
  void* dw1;  // [reduced, channels]
  void* db1;  // [reduced] or null
  void* dw2;  // [channels, reduced]
  void* db2;  // [channels] or null
  // Between the two halves of the kernel.
  float* hidden;  // [images, reduced], act(n1)
  float* dn1;     // [images, reduced]
  float* dn2;     // [images, channels]
};

// The type is the weights' and biases'. Both return cudaErrorInvalidConfiguration where a row of channels exceeds
// shared memory.
cudaError_t squeeze_excite_forward(const SqueezeExciteParams& params, StorageType type, cudaStream_t stream);
cudaError_t squeeze_excite_backward(const SqueezeExciteBackwardParams& params, StorageType type, cudaStream_t stream);

}  // namespace effnet::cuda
