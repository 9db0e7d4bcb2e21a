// The backward of the 1x1 convolution in fp32: for a run of pixels dz is formed, multiplied by the weight, what follows
// from the result is summed, and the weight's gradient is added up, all while the run is in a core's own caches.
#pragma once

#include <algorithm>

#include "common/records.h"
#include "cpu/pointwise/forward.h"

namespace effnet::cpu {

// dx = dz W (+ residual); dW = dz^T (what the source is). All tensors fp32, dense [batch, rows, channels], null is a
// part left out.
struct PointwiseBackwardParams {
  int64_t batch, rows;
  int64_t in, out;  // channels of x and of dy

  PointwiseIncoming incoming;
  Source source;
  const float* residual;  // like x

  const float* weights;  // [out] rows in panels of columns, [out][width]; for dx
  Panels panels;
  float* dx;       // or, with `sums`, the gradient G of the gated activation
  float* sums;     // [batch, bands, 5, in]: the five sums of band_sums.h
  float* dweight;  // [parts, narrow, wide] of the channels of x and of dy

  const float* dy() const { return static_cast<const float*>(incoming.dy); }
  const float* z() const { return static_cast<const float*>(incoming.z); }
  const float* x() const { return static_cast<const float*>(source.x); }
  bool forms_dz() const { return incoming.z != nullptr || incoming.row_scale != nullptr; }
  bool forms_activation() const {
    return source.scale != nullptr || source.gate != nullptr || source.act != Activation::kNone;
  }
  // Vectors run along the wider side.
  bool transposed() const { return in < out; }
};

// A unit is a band of an image, a task a part of the units one after another, which adds up one gradient of the weight.
// The cut depends on the shape alone.
struct PointwiseBackwardPlan {
  int64_t bands, parts;
  int64_t run_pixels;           // of a run; no unit has more
  int64_t dz_stride, a_stride;  // between pixels of what is formed
  int64_t run_floats;

  // The run, a block of the result, the vectors of dz's formula.
  int64_t scratch_floats() const { return run_floats + kPointwiseRows * kPanel + 4 * dz_stride; }
  int64_t first_row(int64_t band, int64_t rows) const { return band * rows / bands; }
};

inline PointwiseBackwardPlan plan_pointwise_backward(const PointwiseBackwardParams& p) {
  // Three quarters of a core's second cache of 1 MB, which the weight and its gradient pass through; and enough
  // gradients for many cores.
  constexpr int64_t kRunFloats = 3 << 16, kGradientFloats = 1 << 21, kMostParts = 64, kLeastParts = 4;
  constexpr int64_t kMostPixels = 1024, kLeastPixels = 64;
  PointwiseBackwardPlan plan{};
  // An odd number of cache lines: rows of a tile would otherwise share few sets of the nearest cache.
  plan.dz_stride = round_up(p.out, kGroup) | kGroup;
  plan.a_stride = round_up(p.in, kGroup) | kGroup;
  plan.run_pixels = std::clamp(kRunFloats / (plan.dz_stride + plan.a_stride), kLeastPixels, kMostPixels);
  plan.bands = std::max<int64_t>(divide_up(p.rows, plan.run_pixels), 1);
  const int64_t wanted = std::clamp(kGradientFloats / std::max<int64_t>(p.in * p.out, 1), kLeastParts, kMostParts);
  plan.parts = std::min(wanted, p.batch * plan.bands);
  plan.run_floats = plan.run_pixels * (plan.dz_stride + plan.a_stride);
  return plan;
}

using PointwiseBackwardTasks = void(const PointwiseBackwardParams& p, const PointwiseBackwardPlan& plan, int64_t begin,
                                    int64_t end, float* scratch);
EFFNET_DECLARE_PER_ISA(PointwiseBackwardTasks, pointwise_backward_tasks)

}  // namespace effnet::cpu
