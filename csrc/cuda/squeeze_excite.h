// What the registration needs to know of the squeeze-and-excite kernels; free of torch and of device code.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "../common/activation.h"

namespace effnet::cuda {

constexpr int kSqueezeExciteThreads = 256;

enum class WeightType : int32_t { kFloat, kHalf, kBFloat16 };

struct SqueezeExciteParams {
  const float* pooled;  // [images, channels]
  const void* w1;       // [reduced, channels]
  const void* b1;       // [reduced] or null
  const void* w2;       // [channels, reduced]
  const void* b2;       // [channels] or null
  float* gate;          // [images, channels]
  int64_t images;
  int channels;
  int reduced;
  Activation act;
  Activation gate_act;
};

inline size_t squeeze_excite_shared_bytes(const SqueezeExciteParams& p) {
  return sizeof(float) * (static_cast<size_t>(p.channels) + static_cast<size_t>(p.reduced));
}

// Every supported device has this much without opting in; it is three times what EfficientNet-B7 needs.
constexpr size_t kSqueezeExciteSharedLimit = 48 * 1024;

cudaError_t squeeze_excite_forward(const SqueezeExciteParams& p, WeightType weights, cudaStream_t stream);

}  // namespace effnet::cuda
