#include "cpu/stencil/backward.h"

#include <algorithm>

#include "cpu/gemm/panels.h"

namespace effnet::cpu {
namespace {

// Enough tasks for the cores of a server; more would only make the merge of their weight gradients longer. A band
// recomputes the kernel - 1 rows of dz that it shares with its neighbour, hence not too thin.
constexpr int64_t kTasks = 64;
constexpr int64_t kMinBandRows = 14;

}  // namespace

DepthwiseBackwardPlan plan_depthwise_backward(const DepthwiseBackwardParams& p) {
  DepthwiseBackwardPlan plan{};
  plan.chunks = divide_up(p.channels, kChunk);
  const int64_t wanted_units = divide_up(kTasks, std::max<int64_t>(plan.chunks, 1));
  const int64_t wanted_bands = divide_up(wanted_units, std::max<int64_t>(p.batch, 1));
  plan.band_rows = std::max<int64_t>(std::max(divide_up(p.height, wanted_bands), kMinBandRows), 1);
  plan.bands = std::max<int64_t>(divide_up(p.height, plan.band_rows), 1);
  plan.groups = std::max<int64_t>(std::min(p.batch * plan.bands, wanted_units), 1);

  int64_t last_column = 0;
  for (int first = 0; first < p.stride; ++first) {
    ColumnPhase& phase = plan.phases[first];
    const int32_t tap = static_cast<int32_t>((first + p.pad_left) % p.stride);
    phase.taps = (p.kernel - tap + p.stride - 1) / p.stride;
    // Packed by tap: the phase of the even taps first.
    phase.first_slot = tap == 0 ? 0 : (p.kernel + 1) / 2;
    phase.columns = divide_up(std::max<int64_t>(p.width - first, 0), p.stride);
    phase.dz_column = (first + p.pad_left - tap) / p.stride - (phase.taps - 1);
    const int64_t end = phase.dz_column + std::max<int64_t>(phase.columns, 1) - 1 + phase.taps;
    plan.first_dz_column = first == 0 ? phase.dz_column : std::min(plan.first_dz_column, phase.dz_column);
    last_column = first == 0 ? end : std::max(last_column, end);
  }
  plan.ring_columns = last_column - plan.first_dz_column;
  for (int first = 0; first < p.stride; ++first) plan.phases[first].dz_column -= plan.first_dz_column;

  const int64_t ring = p.kernel * plan.ring_columns * kChunk;
  const int64_t weights_and_gradient = 2 * int64_t{p.kernel} * p.kernel * kChunk;
  const int64_t vectors = 14 * kChunk;
  const int64_t rows = 3 * divide_up(p.width, p.stride) * p.stride * kChunk;
  plan.scratch_floats = ring + weights_and_gradient + vectors + rows;
  return plan;
}

}  // namespace effnet::cpu
