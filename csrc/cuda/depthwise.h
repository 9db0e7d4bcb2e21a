// What the host knows of the depthwise kernels: run-time facts, plan, entry points. Free of torch and of device code.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/activation.h"
#include "../common/records.h"
#include "../common/storage.h"
#include "planner.h"

namespace effnet::cuda {

// A vector over the channels, dense, as the model keeps it.
struct ChannelVector {
  const void* data;  // or null
  StorageType type;
};

// Channels of a pixel are adjacent, pixels dense: NHWC.
struct DepthwiseForwardParams {
  DepthwiseShape shape;
  DepthwisePlan plan;
  const void* x;          // [batch, height, width, channels]
  const void* weight;     // [channels, kernel, kernel], dense
  bool wide_weight;       // it is float32 whatever the other tensors are
  const float* in_scale;  // [channels] each, or null for 1 and 0
  const float* in_shift;
  // [channels] each, or null for 1 and 0. With mean and var they are a BatchNorm's weight and bias, and the kernel
  // folds: scale = weight / sqrt(var + eps), shift = bias - mean * scale.
  ChannelVector scale, shift, mean, var;
  float eps;
  void* y;        // [batch, out_height, out_width, channels]
  float* pooled;  // [batch, tiles, channels] partial means, or null
  float* stats;   // [partial rows, 3, channels] = count, mean, M2; or null
  Activation in_act, act;
  // Set by the launcher: every 16-byte piece of x is aligned, every pair of channels of y is.
  bool vectors, pairs;
};

struct DepthwiseBackwardParams {
  DepthwiseShape shape;
  DepthwisePlan plan;
  DepthwiseIncoming incoming;
  Source source;
  const void* weight;    // [channels, kernel, kernel], dense
  const void* residual;  // as the source's x, added to dx; or null
  void* dx;              // as the source's x, or null
  float* dweight;        // [partial rows, kernel * kernel, channels], or null
  float* sums;           // [partial rows, 2, channels], or null
  bool vectors, pairs;
};

// Launches on `stream`; every pointer must be of `type` where it is void. Returns the launch's error.
cudaError_t depthwise_forward(const DepthwiseForwardParams& params, StorageType type, cudaStream_t stream);
cudaError_t depthwise_backward(const DepthwiseBackwardParams& params, StorageType type, cudaStream_t stream);

// out[(m % channels) * taps + m / channels] = sum over rows of in[row, m], m < taps * channels, in a fixed order.
cudaError_t merge_rows(const float* in, float* out, int64_t rows, int64_t taps, int64_t channels, cudaStream_t stream);

}  // namespace effnet::cuda
