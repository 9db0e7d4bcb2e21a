// Sums over a block's outputs, in shared memory: [strips, channels] floats each, a pair of which belongs to one thread
// until the strips are merged, in a fixed order.
#pragma once

#include <cfloat>

#include "depthwise_traits.cuh"

namespace effnet::cuda {

// How many of a strip's columns the image has, when `tile_columns` are left from the tile's first column on.
__device__ __forceinline__ int strip_columns(int tile_columns, int strip, int columns) {
  return min(max(tile_columns - strip * columns, 0), columns);
}

template <int kColumns>
__device__ __forceinline__ void add_to_sum(float* own, const float2 (&values)[kColumns], int columns) {
  float2 sum = load_pair(own);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    if (j < columns) sum = sum + values[j];
  }
  *reinterpret_cast<float2*>(own) = sum;
}

// Sum and sum of squares, shifted by the thread's first value, so that |mean| >> deviation loses nothing. The three lie
// `stride` floats apart: shift, sum, squares.
template <int kColumns>
__device__ __forceinline__ void add_to_moments(float* own, int stride, const float2 (&values)[kColumns], int columns,
                                               bool first) {
  if (first) *reinterpret_cast<float2*>(own) = values[0];
  const float2 shift = load_pair(own);
  float2 sum = load_pair(own + stride), square = load_pair(own + 2 * stride);
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    if (j < columns) {
      const float2 centred = values[j] - shift;
      sum = sum + centred;
      square = fma(centred, centred, square);
    }
  }
  *reinterpret_cast<float2*>(own + stride) = sum;
  *reinterpret_cast<float2*>(own + 2 * stride) = square;
}

// One partial row (count, mean, M2), each [all_channels], from the strips' moments: Chan's merge (Chan, Golub and
// LeVeque 1983). A strip has `rows` values for each column of the image it covers.
template <int kColumns>
__device__ void merge_moments(const float* moments, int stride, int strips, int block_channels, int tile_columns,
                              int rows, int channels, int all_channels, float* to) {
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    float count = 0.0f, mean = 0.0f, m2 = 0.0f;
    for (int strip = 0; strip < strips; ++strip) {
      const float other = static_cast<float>(strip_columns(tile_columns, strip, kColumns)) * static_cast<float>(rows);
      if (other == 0.0f) break;
      const float* own = moments + strip * block_channels + c;
      const float centre = own[stride] / other;
      const float total = count + other;
      const float delta = own[0] + centre - mean;
      // Overflow is infinity, never NaN: normalized by it a channel is its bias, as PyTorch has it.
      const float squares = own[2 * stride];
      m2 += squares > FLT_MAX ? squares : squares - own[stride] * centre;
      m2 += delta * (count * other / total) * delta;
      mean += delta * (other / total);
      count = total;
    }
    to[c] = count;
    to[all_channels + c] = mean;
    to[2 * all_channels + c] = effnet::maximum(0.0f, m2);
  }
}

}  // namespace effnet::cuda
