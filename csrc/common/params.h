// Runtime facts of one call, without any torch type: what the host checks and what a kernel reads.
#pragma once

#include <cstdint>

#include "activation.h"
#include "storage.h"

namespace effnet {

// z = depthwise(pad(in_act(in_scale * x + in_shift))), y = act(scale * z + shift), pooled = mean of y over rows and
// columns. Padding is zero after the prologue. All strides are in elements; channels of x and y are adjacent in memory.
struct DepthwiseParams {
  const void* x;       // [batch, height, width, channels]
  const void* weight;  // [channels, kernel, kernel]
  void* y;             // [batch, out_height, out_width, channels], dense
  float* pooled;       // [batch, channels], or null
  // [channels] each, or null for scale = 1, shift = 0.
  const float* in_scale;
  const float* in_shift;
  const float* scale;
  const float* shift;

  int64_t batch, channels;
  int64_t height, width;
  int64_t out_height, out_width;
  int64_t pad_left, pad_top;
  int64_t x_batch_stride, x_row_stride, x_col_stride;
  int64_t weight_channel_stride, weight_row_stride, weight_col_stride;
  int32_t kernel, stride;
  Activation in_act, act;
  StorageType dtype, weight_dtype;
};

// y = act(scale * x + shift) * multiplier + residual, pooled = mean of y over the rows of an image.
struct ElementwiseParams {
  const void* x;            // [batch, rows, channels], dense
  const void* residual;     // as x, or null
  void* y;                  // as x, may be x itself; or null when only pooled is wanted
  float* pooled;            // [batch, channels], or null
  const float* scale;       // [channels], or null for 1
  const float* shift;       // [channels], or null for 0
  const float* multiplier;  // [batch, channels], or null for 1

  int64_t batch, rows, channels;
  Activation act;
  StorageType dtype;
};

// out[n, o] = act(bias[o] + sum over i of weight[o, i] * in[n, i])
struct LinearParams {
  const float* in;     // [batch, inputs]
  const void* weight;  // [outputs, inputs], dense
  const void* bias;    // [outputs], dtype of the weight, or null
  float* out;          // [batch, outputs]

  int64_t batch, inputs, outputs;
  Activation act;
  StorageType dtype;
};

}  // namespace effnet
