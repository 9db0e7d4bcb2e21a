// The passes over NHWC tensors that only training makes: BatchNorm's statistics and its backward's sums and formula.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/params.h"
#include "cpu/isa/isa.h"

namespace effnet::cpu {

// Rows a kernel sums in registers before it adds to memory: long running sums lose digits, and a tile of this many rows
// stays in cache while its channels are walked through.
constexpr int64_t kTileRows = 64;

// Rows of every image in bands of whole tiles; the cut depends on the shape alone, and so does the order of every sum.
struct BandPlan {
  int64_t band_rows, bands;
};

inline BandPlan plan_bands(int64_t batch, int64_t rows) {
  // As few partial results as keep the cores of a server busy.
  constexpr int64_t kTasks = 64;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t wanted = std::max<int64_t>((kTasks + batch - 1) / std::max<int64_t>(batch, 1), 1);
  const int64_t band_tiles = std::max<int64_t>((tiles + wanted - 1) / wanted, 1);
  return {band_tiles * kTileRows, std::max<int64_t>((tiles + band_tiles - 1) / band_tiles, 1)};
}

// out[part, n, c] = sum over bands of partial[n, band, part, c], always in the same order.
inline void merge_bands(const float* partial, int64_t batch, int64_t bands, int64_t parts, int64_t channels,
                        float* out) {
  std::fill_n(out, parts * batch * channels, 0.0f);
  for (int64_t task = 0; task < batch * bands; ++task) {
    for (int64_t part = 0; part < parts; ++part) {
      float* to = out + (part * batch + task / bands) * channels;
      for (int64_t c = 0; c < channels; ++c) to[c] += *partial++;
    }
  }
}

// All tensors of one size [batch, rows, channels], dense, of one dtype; vectors are fp32; null is a part left out.
struct TrainingParams {
  const void* dy;  // or the gradient G of the gated activation
  const void* z;
  void* out;               // batch_norm_input_grad: dz; gate_and_norm_sums: gate * act(n), or null
  float* partial;          // [batch, bands, parts, channels], per function
  const float* row_scale;  // [batch]
  const float* gate;       // [batch, channels]
  // n = scale * z + shift
  const float* scale;
  const float* shift;
  // z_hat = (z - mean) * invstd
  const float* mean;
  const float* invstd;
  // dz = a * row_scale * dy * act'(n) + b * (z - mean) + c
  const float* a;
  const float* b;
  const float* c;

  int64_t batch, rows, channels;
  BandPlan plan;
  Activation act;
  StorageType dtype;

  int64_t tasks() const { return batch * plan.bands; }
};

using TrainingTasks = void(const TrainingParams& p, int64_t begin, int64_t end);

// partial[3]: count, mean, M2 of z.
EFFNET_DECLARE_PER_ISA(TrainingTasks, channel_stats_tasks)
// partial[2]: sums of g and g * z_hat with g = row_scale * dy * act'(n).
EFFNET_DECLARE_PER_ISA(TrainingTasks, batch_norm_reduce_tasks)
// out = dz
EFFNET_DECLARE_PER_ISA(TrainingTasks, batch_norm_input_grad_tasks)
// partial[5]: sums of G a, G act', G act' z_hat, act', act' z_hat with a = act(n); out = gate * a.
EFFNET_DECLARE_PER_ISA(TrainingTasks, gate_and_norm_sums_tasks)

}  // namespace effnet::cpu
