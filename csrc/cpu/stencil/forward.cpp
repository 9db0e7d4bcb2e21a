#include "cpu/stencil/forward.h"

#include <algorithm>

#include "cpu/gemm/panels.h"

namespace effnet::cpu {
namespace {

// Enough tasks to keep the cores of a server busy with one image, without bands so thin that reading the
// kernel - stride rows they share with their neighbour costs much.
constexpr int64_t kTasksPerImage = 32;
constexpr int64_t kMinBandRows = 8;

}  // namespace

DepthwisePlan plan_depthwise(const DepthwiseParams& p) {
  DepthwisePlan plan{};
  plan.chunks = divide_up(p.channels, kChunk);
  const int64_t wanted_bands = divide_up(kTasksPerImage, std::max<int64_t>(plan.chunks, 1));
  const int64_t rows = std::max(divide_up(p.out_height, wanted_bands), kMinBandRows);
  // Bands of nearly equal height: 56 rows in bands of 8, not 7 of 8 and a remainder.
  plan.bands = std::max<int64_t>(divide_up(p.out_height, rows), 1);
  plan.band_rows = divide_up(p.out_height, plan.bands);
  plan.bands = plan.band_rows > 0 ? divide_up(p.out_height, plan.band_rows) : 1;
  plan.ring_columns = p.out_width > 0 ? (p.out_width - 1) * p.stride + p.kernel : 0;

  const int64_t ring = p.kernel * plan.ring_columns * kChunk;
  const int64_t weights = int64_t{p.kernel} * p.kernel * kChunk;
  const int64_t vectors = 7 * kChunk;
  const int64_t row = p.out_width * kChunk;
  plan.scratch_floats = ring + weights + vectors + row;
  return plan;
}

}  // namespace effnet::cpu
