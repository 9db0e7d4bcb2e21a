// One pass over an NHWC tensor: affine, activation, gate or row scale, residual, mean over the image.
#pragma once

#include <cstdint>

#include "common/params.h"
#include "cpu/isa/isa.h"

namespace effnet::cpu {

// Tasks are bands of rows of one image, cut by the shape alone (see DepthwisePlan).
struct ElementwisePlan {
  int64_t band_rows;
  int64_t bands;
  float* partial_sums;  // [batch, bands, channels] sums of y, when pooling

  int64_t tasks(const ElementwiseParams& p) const { return p.batch * bands; }
};

inline ElementwisePlan plan_elementwise(const ElementwiseParams& p) {
  // About 32k elements a task: a few microseconds, far above the cost of handing it out.
  constexpr int64_t kTaskElements = 1 << 15;
  ElementwisePlan plan{};
  plan.band_rows = p.channels < kTaskElements ? kTaskElements / (p.channels > 0 ? p.channels : 1) : 1;
  // Sums of 64 terms, then a sum of those: errors of a long running sum grow with its length.
  constexpr int64_t kSumRows = 64;
  if (p.pooled != nullptr && plan.band_rows > kSumRows) plan.band_rows = kSumRows;
  plan.bands = p.rows > 0 ? (p.rows + plan.band_rows - 1) / plan.band_rows : 1;
  return plan;
}

using ElementwiseTasks = void(const ElementwiseParams& p, const ElementwisePlan& plan, int64_t begin, int64_t end);
// Work items [begin, end) are (image, output) pairs.
using LinearTasks = void(const LinearParams& p, int64_t begin, int64_t end);

EFFNET_DECLARE_PER_ISA(ElementwiseTasks, elementwise_tasks)
EFFNET_DECLARE_PER_ISA(LinearTasks, linear_tasks)

}  // namespace effnet::cpu
