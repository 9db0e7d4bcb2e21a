// Backward of squeeze-and-excite in one cooperative launch. First every block works through images and leaves the
// gradients of both pre-activations in memory; then, after a barrier of the whole grid, blocks compute tiles of the
// weights' gradients, each a sum over all images in a fixed order.
#pragma once

#include <cooperative_groups.h>

#include "squeeze_excite_fwd.cuh"

namespace effnet::cuda {

constexpr int kSqueezeExciteThreads = 256;
// Units of the hidden layer in a tile of dw1 or dw2; a warp's lanes are the tile's channels.
constexpr int kTileRows = 8;
constexpr int kSqueezeExciteWarps = kSqueezeExciteThreads / kWarp;

constexpr int64_t squeeze_excite_bwd_shared_bytes(const SqueezeExciteParams& p) {
  const int64_t image = 2ll * p.channels + 2ll * p.reduced + kSqueezeExciteThreads;
  const int64_t tile = static_cast<int64_t>(kSqueezeExciteWarps) * (2 * kTileRows + 1) * kWarp;
  return (image > tile ? image : tile) * 4;
}

constexpr int64_t squeeze_excite_bwd_tiles(const SqueezeExciteParams& p) {
  return 2ll * ((p.channels + kWarp - 1) / kWarp) * ((p.reduced + kTileRows - 1) / kTileRows);
}

// sum over c of v[c] * w2[c, r], for every r: lanes along r are neighbours in memory, the others share the rows.
template <class Weight, class Store>
__device__ void transposed_product(const Weight* w, const float* v, int rows, int columns, float* scratch,
                                   Store&& store) {
  for (int first = 0; first < columns; first += blockDim.x) {
    const int width = min(columns - first, static_cast<int>(blockDim.x));
    const int parts = blockDim.x / width;
    const int column = threadIdx.x % width, part = threadIdx.x / width;
    float sum = 0.0f;
    if (part < parts) {
#pragma unroll 4
      for (int row = part; row < rows; row += parts) {
        sum = fmaf(to_float(w[static_cast<int64_t>(row) * columns + first + column]), v[row], sum);
      }
    }
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (part == 0) {
      for (int other = 1; other < parts; ++other) sum += scratch[other * width + column];
      store(first + column, sum);
    }
    __syncthreads();
  }
}

template <class Weight>
__device__ void squeeze_excite_bwd_image(const SqueezeExciteBackwardParams& p, int64_t image, float* shared) {
  const SqueezeExciteParams& f = p.forward;
  const auto* w1 = static_cast<const Weight*>(f.w1);
  const auto* w2 = static_cast<const Weight*>(f.w2);
  float* pooled = shared;
  float* dn2 = pooled + f.channels;
  float* hidden = dn2 + f.channels;
  float* n1 = hidden + f.reduced;
  float* scratch = n1 + f.reduced;
  const int64_t row = image * f.channels, hidden_row = image * f.reduced;
  for (int c = threadIdx.x; c < f.channels; c += blockDim.x) pooled[c] = f.pooled[row + c];
  __syncthreads();
  fully_connected<kFirstLanes, 1, 1>(w1, static_cast<const Weight*>(f.b1), pooled, f.reduced, f.channels,
                                     [&](int, int r, float n) {
                                       n1[r] = n;
                                       hidden[r] = activate_by_name(n, f.act);
                                       p.hidden[hidden_row + r] = hidden[r];
                                     });
  __syncthreads();
  // Summed here, so that the threads' loads are neighbours; pooled has served.
  for (int c = threadIdx.x; c < f.channels; c += blockDim.x) {
    float sum = 0.0f;
#pragma unroll 8
    for (int part = 0; part < p.dgate_parts; ++part) sum += p.dgate[row * p.dgate_parts + part * f.channels + c];
    pooled[c] = sum;
  }
  __syncthreads();
  fully_connected<kSecondLanes, 1, 1>(w2, static_cast<const Weight*>(f.b2), hidden, f.channels, f.reduced,
                                      [&](int, int c, float n) {
                                        dn2[c] = pooled[c] * activate_grad_by_name(n, f.gate_act);
                                        p.dn2[row + c] = dn2[c];
                                      });
  __syncthreads();
  // n1 becomes dn1 in place: each unit belongs to one thread.
  transposed_product(w2, dn2, f.channels, f.reduced, scratch, [&](int r, float dhidden) {
    n1[r] = dhidden * activate_grad_by_name(n1[r], f.act);
    p.dn1[hidden_row + r] = n1[r];
  });
  transposed_product(w1, n1, f.reduced, f.channels, scratch,
                     [&](int c, float dpooled) { p.dpooled[row + c] = dpooled * p.pool_factor; });
}

// One tile of sum over images of u[n, r] * v[n, c]: images are divided among the warps, whose sums are added in order.
// `store(r, c, value)`; `store_u(r, sum of u)` and `store_v(c, sum of v)` are the biases' gradients.
template <class Store, class StoreU, class StoreV>
__device__ void outer_product_tile(const float* u, const float* v, int64_t images, int reduced, int channels,
                                   int first_row, int first_channel, float* shared, Store&& store, StoreU&& store_u,
                                   StoreV&& store_v) {
  constexpr int kSums = 2 * kTileRows + 1;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int c = first_channel + lane;
  const int rows = min(kTileRows, reduced - first_row);
  float sums[kSums] = {};
#pragma unroll 2
  for (int64_t n = warp; n < images; n += kSqueezeExciteWarps) {
    const float value = c < channels ? v[n * channels + c] : 0.0f;
    sums[2 * kTileRows] += value;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const float factor = r < rows ? u[n * reduced + first_row + r] : 0.0f;
      sums[r] = fmaf(factor, value, sums[r]);
      sums[kTileRows + r] += factor;
    }
  }
#pragma unroll
  for (int i = 0; i < kSums; ++i) shared[(warp * kSums + i) * kWarp + lane] = sums[i];
  __syncthreads();
  for (int i = warp; i < kSums; i += kSqueezeExciteWarps) {
    float sum = 0.0f;
    for (int other = 0; other < kSqueezeExciteWarps; ++other) sum += shared[(other * kSums + i) * kWarp + lane];
    if (i < rows) {
      if (c < channels) store(first_row + i, c, sum);
    } else if (i >= kTileRows && i < kTileRows + rows) {
      if (lane == 0) store_u(first_row + i - kTileRows, sum);
    } else if (i == 2 * kTileRows && c < channels) {
      store_v(c, sum);
    }
  }
  __syncthreads();
}

template <class Weight>
__global__ void __launch_bounds__(kSqueezeExciteThreads, 2)
    squeeze_excite_bwd_kernel(const __grid_constant__ SqueezeExciteBackwardParams p) {
  float* shared = reinterpret_cast<float*>(dynamic_shared());
  const SqueezeExciteParams& f = p.forward;
  for (int64_t image = blockIdx.x; image < f.images; image += gridDim.x) {
    squeeze_excite_bwd_image<Weight>(p, image, shared);
  }
  cooperative_groups::this_grid().sync();

  auto* dw1 = static_cast<Weight*>(p.dw1);
  auto* db1 = static_cast<Weight*>(p.db1);
  auto* dw2 = static_cast<Weight*>(p.dw2);
  auto* db2 = static_cast<Weight*>(p.db2);
  const int column_tiles = (f.channels + kWarp - 1) / kWarp;
  const int64_t tiles = squeeze_excite_bwd_tiles(f);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const bool second = tile >= tiles / 2;
    const int index = static_cast<int>(second ? tile - tiles / 2 : tile);
    const int channel = index % column_tiles * kWarp, row = index / column_tiles * kTileRows;
    if (second) {
      outer_product_tile(
          p.hidden, p.dn2, f.images, f.reduced, f.channels, row, channel, shared,
          [&](int r, int c, float value) { dw2[static_cast<int64_t>(c) * f.reduced + r] = from_float<Weight>(value); },
          [](int, float) {},
          [&](int c, float value) {
            if (row == 0 && db2 != nullptr) db2[c] = from_float<Weight>(value);
          });
    } else {
      outer_product_tile(
          p.dn1, f.pooled, f.images, f.reduced, f.channels, row, channel, shared,
          [&](int r, int c, float value) { dw1[static_cast<int64_t>(r) * f.channels + c] = from_float<Weight>(value); },
          [&](int r, float value) {
            if (channel == 0 && db1 != nullptr) db1[r] = from_float<Weight>(value);
          },
          [](int, float) {});
    }
  }
}

}  // namespace effnet::cuda
