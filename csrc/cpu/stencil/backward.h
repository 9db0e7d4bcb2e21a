// The backward of the depthwise convolution: parameters, how it is cut into tasks, entry points.
#pragma once

#include <cstdint>

#include "common/params.h"
#include "common/records.h"
#include "cpu/isa/isa.h"
#include "cpu/stencil/forward.h"

namespace effnet::cpu {

// da = transposed convolution of dz; dx = da * act'(scale * x + shift) of the source, with its sums, or
// da + residual_grad; dweight = correlation of dz with what the source is. All tensors NHWC, dense, of one dtype; null
// is a part left out.
struct DepthwiseBackwardParams {
  DepthwiseIncoming incoming;
  Source source;
  const void* residual_grad;  // as the source's x
  const void* weight;         // [channels, kernel, kernel]
  void* dx;                   // as the source's x

  int64_t batch, channels;
  int64_t height, width;
  int64_t out_height, out_width;
  int64_t pad_left, pad_top;
  int64_t weight_channel_stride, weight_row_stride, weight_col_stride;
  int32_t kernel, stride;
  StorageType dtype, weight_dtype;
};

// Columns w = first, first + stride, ... of the input see the same taps, `taps` columns of dz in a row: for them the
// backward is a convolution of stride 1.
struct ColumnPhase {
  int64_t columns;     // how many there are
  int64_t dz_column;   // where column `first` begins to read in the ring
  int32_t taps;        // 1, 2, 3, 4, 5 or 7
  int32_t first_slot;  // of its `taps` weights among the kernel's, which are packed phase by phase, last tap first
};

// A unit is a band of input rows of one image; a task is kChunk channels of a group of units, which it adds up. The cut
// depends on the shape alone.
struct DepthwiseBackwardPlan {
  ColumnPhase phases[2];
  int64_t chunks, groups;
  int64_t band_rows, bands;
  int64_t ring_columns, first_dz_column;  // the ring's column 0 is this column of dz, which may be negative
  int64_t scratch_floats;
  float* partial_dw;    // [groups, kernel * kernel, channels], or null
  float* partial_sums;  // [groups, 2, channels], or null

  int64_t tasks() const { return groups * chunks; }
};

DepthwiseBackwardPlan plan_depthwise_backward(const DepthwiseBackwardParams& p);

// Runs tasks [begin, end). `scratch` is plan.scratch_floats floats, 64-byte aligned, of the calling thread alone.
using DepthwiseBackwardTasks = void(const DepthwiseBackwardParams& p, const DepthwiseBackwardPlan& plan, int64_t begin,
                                    int64_t end, float* scratch);

EFFNET_DECLARE_PER_ISA(DepthwiseBackwardTasks, depthwise_backward_tasks)

}  // namespace effnet::cpu
