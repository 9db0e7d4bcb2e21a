// How a depthwise convolution is cut into tasks, and the entry points of the kernel, one per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/params.h"
#include "cpu/isa/isa.h"

namespace effnet::cpu {

// Channels of a task: a multiple of every vector width, and whole 64-byte lines of bfloat16. A constant, so that the
// inner loop's addresses are immediate offsets.
constexpr int64_t kChunk = 32;

// A task is one band of output rows of kChunk channels of one image. The cut depends on the shape alone, never on
// the number of threads or images: pooled sums are merged in the same order whoever computed them.
struct DepthwisePlan {
  int64_t chunks;     // tasks along C
  int64_t band_rows;  // output rows of a task
  int64_t bands;      // tasks along Ho

  // Columns of one padded input row in the scratch memory.
  int64_t ring_columns;
  // Floats of scratch memory a thread needs.
  int64_t scratch_floats;
  // Sums of y per [image, band, channel] go here when there are several bands and pooling was asked for.
  float* partial_sums;
  // [batch, bands, 3, channels] (count, mean, M2) of y as stored, or null.
  float* partial_stats;

  int64_t tasks(const DepthwiseParams& p) const { return p.batch * bands * chunks; }
};

DepthwisePlan plan_depthwise(const DepthwiseParams& p);

// Runs tasks [begin, end). `scratch` is plan.scratch_floats floats, 64-byte aligned, of the calling thread alone.
using DepthwiseTasks = void(const DepthwiseParams& p, const DepthwisePlan& plan, int64_t begin, int64_t end,
                            float* scratch);

EFFNET_DECLARE_PER_ISA(DepthwiseTasks, depthwise_tasks)

}  // namespace effnet::cpu
