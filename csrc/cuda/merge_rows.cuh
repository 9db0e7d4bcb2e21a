// Sum of partial rows in a fixed order: the second, small launch behind sums that no single block can finish.
#pragma once

#include "launch.cuh"

namespace effnet::cuda {

struct MergeParams {
  const float* in;  // [rows, taps, channels]
  float* out;       // [channels, taps]
  int64_t rows, taps, channels;
};

constexpr int kMergeColumns = 32;
constexpr int kMergeLanes = 8;

// A lane sums every eighth row, then the lanes are summed in order.
__global__ void __launch_bounds__(kMergeColumns* kMergeLanes) merge_rows_kernel(const __grid_constant__ MergeParams p) {
  float* lanes = reinterpret_cast<float*>(dynamic_shared());  // [kMergeLanes, kMergeColumns]
  const int column = threadIdx.x % kMergeColumns, lane = threadIdx.x / kMergeColumns;
  const int64_t all = p.taps * p.channels;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kMergeColumns + column;
  float sum = 0.0f;
  if (i < all) {
#pragma unroll 4
    for (int64_t row = lane; row < p.rows; row += kMergeLanes) sum += p.in[row * all + i];
  }
  lanes[lane * kMergeColumns + column] = sum;
  __syncthreads();
  if (lane != 0 || i >= all) return;
  for (int other = 1; other < kMergeLanes; ++other) sum += lanes[other * kMergeColumns + column];
  p.out[i % p.channels * p.taps + i / p.channels] = sum;
}

}  // namespace effnet::cuda
