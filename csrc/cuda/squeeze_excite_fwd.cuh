// Squeeze-and-excite's gate (Hu et al. 2018) for a whole batch in one launch: a block per image, both fully connected
// layers with their activations, nothing written in between.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "../common/activation.h"
#include "squeeze_excite.h"

namespace effnet::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

// The activation is a run-time value: it is evaluated C + R times an image, which no launch would notice.
__device__ __forceinline__ float activate_by_name(float v, Activation act) {
  switch (act) {
    case Activation::kSilu:
      return activate<Activation::kSilu>(v);
    case Activation::kRelu:
      return activate<Activation::kRelu>(v);
    case Activation::kRelu6:
      return activate<Activation::kRelu6>(v);
    case Activation::kHardswish:
      return activate<Activation::kHardswish>(v);
    case Activation::kSigmoid:
      return activate<Activation::kSigmoid>(v);
    case Activation::kHardsigmoid:
      return activate<Activation::kHardsigmoid>(v);
    default:
      return v;
  }
}

// out[row] = act(weight[row, :] . in + bias[row]): a warp per row, its lanes side by side in memory.
template <class Weight>
__device__ void fully_connected(const Weight* weight, const Weight* bias, const float* in, float* out, int rows,
                                int columns, Activation act) {
  const int lane = threadIdx.x % kWarp;
  const int warps = blockDim.x / kWarp;
  for (int row = threadIdx.x / kWarp; row < rows; row += warps) {
    const Weight* w = weight + static_cast<int64_t>(row) * columns;
    float sum = 0.0f;
    for (int i = lane; i < columns; i += kWarp) {
      sum += to_float(w[i]) * in[i];
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    }
    if (lane == 0) {
      out[row] = activate_by_name(bias == nullptr ? sum : sum + to_float(bias[row]), act);
    }
  }
}

// Shared memory: pooled [C], then hidden [R].
template <class Weight>
__global__ void __launch_bounds__(kSqueezeExciteThreads) squeeze_excite_fwd_kernel(SqueezeExciteParams p) {
  extern __shared__ float shared[];
  float* pooled = shared;
  float* hidden = shared + p.channels;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * p.channels;
  for (int c = threadIdx.x; c < p.channels; c += blockDim.x) {
    pooled[c] = p.pooled[row + c];
  }
  __syncthreads();
  fully_connected(static_cast<const Weight*>(p.w1), static_cast<const Weight*>(p.b1), pooled, hidden, p.reduced,
                  p.channels, p.act);
  __syncthreads();
  fully_connected(static_cast<const Weight*>(p.w2), static_cast<const Weight*>(p.b2), hidden, p.gate + row, p.channels,
                  p.reduced, p.gate_act);
}

}  // namespace effnet::cuda
