// Squeeze-and-excite's gate (Hu et al. 2018) for a whole batch in one launch: both fully connected layers of a few
// images in one block, nothing written in between. docs/kernels/squeeze_excite.md has the numbers.
#pragma once

#include <cstdint>

#include "numeric.cuh"
#include "squeeze_excite.h"

namespace effnet::cuda {

constexpr int kWarp = 32;
// Twice the backward's: what a block is short of is loads in flight, and of blocks there is one a multiprocessor.
constexpr int kSqueezeExciteForwardThreads = 512;

template <class Weight>
struct WeightPiece {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(Weight));
  float values[kSize];

  // 16 bytes at an aligned address.
  __device__ __forceinline__ void load(const Weight* from) {
    const float4 bits = *reinterpret_cast<const float4*>(from);
    const auto* packed = reinterpret_cast<const typename Packed<Weight>::Type*>(&bits);
#pragma unroll
    for (int i = 0; i < kSize / 2; ++i) {
      const float2 two = Packed<Weight>::unpack(packed[i]);
      values[2 * i] = two.x;
      values[2 * i + 1] = two.y;
    }
  }
};

// sums[row][image] += weight[row, :] . in[image, :] over this lane's share of the columns.
template <int kLanesPerRow, int kRows, int kImages, class Weight>
__device__ __forceinline__ void partial_dots(float (&sums)[kRows][kImages], const Weight* weight, int rows, int columns,
                                             const float* in, int lane, bool vectors) {
  constexpr int kPiece = WeightPiece<Weight>::kSize;
  if (vectors) {
    // Pieces in flight a lane: kRows of each column of pieces. With one image there are registers for two columns.
#pragma unroll(kImages == 1 ? 2 : 1)
    for (int i = lane * kPiece; i < columns; i += kLanesPerRow * kPiece) {
      WeightPiece<Weight> w[kRows];
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (row < rows) w[row].load(weight + static_cast<int64_t>(row) * columns + i);
      }
#pragma unroll
      for (int image = 0; image < kImages; ++image) {
#pragma unroll
        for (int v = 0; v < kPiece; ++v) {
          const float value = in[image * columns + i + v];
#pragma unroll
          for (int row = 0; row < kRows; ++row) {
            if (row < rows) sums[row][image] = fmaf(w[row].values[v], value, sums[row][image]);
          }
        }
      }
    }
    return;
  }
#pragma unroll(kImages == 1 ? 2 : 1)
  for (int i = lane; i < columns; i += kLanesPerRow) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row >= rows) continue;
      const float w = to_float(weight[static_cast<int64_t>(row) * columns + i]);
#pragma unroll
      for (int image = 0; image < kImages; ++image) {
        sums[row][image] = fmaf(w, in[image * columns + i], sums[row][image]);
      }
    }
  }
}

// For every row and image `store(image, row, weight[row, :] . in[image, :] + bias[row])`; kLanesPerRow lanes share a
// row, and take kRows of them together. `in` is [kImages, columns] in shared memory.
template <int kLanesPerRow, int kRows, int kImages, class Weight, class Store>
__device__ void fully_connected(const Weight* weight, const Weight* bias, const float* in, int rows, int columns,
                                Store&& store) {
  static_assert(kWarp % kLanesPerRow == 0);
  constexpr int kTile = kWarp / kLanesPerRow * kRows;
  const bool vectors = columns % WeightPiece<Weight>::kSize == 0 && reinterpret_cast<uintptr_t>(weight) % 16 == 0;
  const int lane = threadIdx.x % kLanesPerRow;
  const int part = threadIdx.x % kWarp / kLanesPerRow;
  const int warps = blockDim.x / kWarp;
  for (int first = threadIdx.x / kWarp * kTile; first < rows; first += warps * kTile) {
    const int row0 = first + part * kRows;
    float sums[kRows][kImages] = {};
    partial_dots<kLanesPerRow>(sums, weight + static_cast<int64_t>(row0) * columns, rows - row0, columns, in, lane,
                               vectors);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int image = 0; image < kImages; ++image) {
#pragma unroll
        for (int offset = kLanesPerRow / 2; offset > 0; offset /= 2) {
          sums[row][image] += __shfl_xor_sync(0xffffffffu, sums[row][image], offset);
        }
        if (lane == 0 && row0 + row < rows) {
          store(image, row0 + row, bias == nullptr ? sums[row][image] : sums[row][image] + to_float(bias[row0 + row]));
        }
      }
    }
  }
}

__device__ __forceinline__ float activate_by_name(float x, Activation act) {
  float y = x;
  with_activation(act, [&](auto tag) { y = activate_fast<tag()>(x); });
  return y;
}

__device__ __forceinline__ float activate_grad_by_name(float x, Activation act) {
  float y = x;
  with_activation(act, [&](auto tag) { y = activate_grad_fast<tag()>(x); });
  return y;
}

// The first layer's rows are long (channels): a warp each. The second's are short (a twentieth of that): four lanes
// each.
constexpr int kFirstLanes = 32;
constexpr int kSecondLanes = 4;

constexpr int64_t squeeze_excite_fwd_shared_bytes(const SqueezeExciteParams& p, int images) {
  const int64_t lanes = p.parts > 1 ? kSqueezeExciteForwardThreads : 0;
  return (static_cast<int64_t>(images) * (static_cast<int64_t>(p.channels) + p.reduced) + lanes) * 4;
}

// The means of one image: its parts summed in a fixed order. Where a block has more threads than channels, each lane of
// threads sums every `lanes`-th part, and the lanes are summed in order.
__device__ inline void sum_parts(float* means, float* partial, const float* parts, int count, int channels) {
  const int lanes = max(1, static_cast<int>(blockDim.x) / channels);
  for (int i = threadIdx.x; i < lanes * channels; i += blockDim.x) {
    float sum = 0.0f;
#pragma unroll 8
    for (int part = i / channels; part < count; part += lanes) {
      sum += parts[static_cast<int64_t>(part) * channels + i % channels];
    }
    (lanes > 1 ? partial : means)[i] = sum;
  }
  if (lanes == 1) return;
  __syncthreads();
  for (int c = threadIdx.x; c < channels; c += blockDim.x) {
    float sum = 0.0f;
    for (int lane = 0; lane < lanes; ++lane) sum += partial[lane * channels + c];
    means[c] = sum;
  }
  // The next image's lanes overwrite this one's.
  __syncthreads();
}

// Shared memory: pooled [kImages, channels], hidden [kImages, reduced], and with parts one number a thread.
template <class Weight, int kImages, int kRows>
__global__ void __launch_bounds__(kSqueezeExciteForwardThreads, 1)
    squeeze_excite_fwd_kernel(const __grid_constant__ SqueezeExciteParams p) {
  float* pooled = reinterpret_cast<float*>(dynamic_shared());
  float* hidden = pooled + kImages * p.channels;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kImages;
  const int images = static_cast<int>(min(static_cast<int64_t>(kImages), p.images - first));
  for (int i = threadIdx.x; i < kImages * p.channels; i += blockDim.x) {
    pooled[i] = p.parts == 1 && i < images * p.channels ? p.pooled[first * p.channels + i] : 0.0f;
  }
  for (int image = 0; p.parts > 1 && image < images; ++image) {
    if (image == 0) __syncthreads();
    sum_parts(pooled + image * p.channels, hidden + kImages * p.reduced,
              p.pooled + (first + image) * p.parts * p.channels, p.parts, p.channels);
  }
  __syncthreads();
  fully_connected<kFirstLanes, kRows, kImages>(
      static_cast<const Weight*>(p.w1), static_cast<const Weight*>(p.b1), pooled, p.reduced, p.channels,
      [&](int image, int r, float n) { hidden[image * p.reduced + r] = activate_by_name(n, p.act); });
  __syncthreads();
  float* gate = p.gate + first * p.channels;
  fully_connected<kSecondLanes, kRows, kImages>(static_cast<const Weight*>(p.w2), static_cast<const Weight*>(p.b2),
                                                hidden, p.channels, p.reduced, [&](int image, int c, float n) {
                                                  if (image < images)
                                                    gate[static_cast<int64_t>(image) * p.channels + c] =
                                                        activate_by_name(n, p.gate_act);
                                                });
}

}  // namespace effnet::cuda
