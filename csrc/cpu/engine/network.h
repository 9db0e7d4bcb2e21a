// Inference of a whole network in one call: the steps that a compiled network becomes for one input shape, and the
// entry point of the kernels, one per instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "common/params.h"
#include "cpu/gemm/pack.h"
#include "cpu/gemm/panels.h"
#include "cpu/isa/isa.h"

namespace effnet::cpu {

enum class StepKind : int32_t { kStem, kExpandDepthwise, kSqueeze, kExcite, kProject, kPool, kClassify, kPack };

// Columns of a row that the depthwise convolution computes at once.
constexpr int64_t kTileColumns = 40;

// NHWC with channels padded to `stride`, or fp32 with exactly `channels` where the caller gets it.
struct Image {
  void* data;
  int64_t image_stride, pixel_stride;  // elements
};

enum class Scaling : int32_t { kNone, kWeights, kBlock, kImage };

// One layer, or a part of one, of some images; every item can be computed by any thread, and only what a step before
// has written is read. Numbers do not depend on how the items are cut.
struct Step {
  StepKind kind;
  StorageType dtype;
  int64_t items;
  int64_t images;
  int64_t scratch_floats;
  int64_t height, width, out_height, out_width;

  Image in, out;
  Image residual;          // data null: none
  int64_t final_channels;  // > 0: `out` is the caller's and has this many channels
  StorageType final_dtype;
  Gemm gemm;

  // Strides of the caller's x [N, C, H, W] and how the stem's input rows lie in the scratch memory.
  StorageType x_dtype;
  int64_t x_strides[4];
  int64_t in_channels, tile_channels, tile_columns;

  // Depthwise; gemm is the expansion, without segments where there is none.
  const float* taps;
  const float* taps_bias;
  int32_t kernel, stride;
  int64_t pad_left, pad_top;
  Activation depthwise_act;
  Panels chunks;
  int64_t bands, band_rows, step_rows, ring_rows, ring_columns;
  bool stream;  // the output goes past the caches
  // [images, out_height, channels made a multiple of 16] sums of y, or null.
  float* sums;

  // Squeeze and excite, classifier: out = act(in . weight + bias).
  const void* linear_weight;
  const float* linear_bias;
  int64_t linear_in, linear_out;
  Activation linear_act;
  const float* vectors;  // [images, vector_stride]
  float* vectors_out;    // [images, vectors_out_stride]
  int64_t vector_stride, vectors_out_stride;
  float pool_divisor;

  const Packing* packings;

  // Projection: an item is a block of pixels times a part of the panels. The gate, `vectors`, multiplies a copy in the
  // thread's own scratch memory of what is smaller: the weights or the pixels.
  int64_t pixel_blocks, panel_parts;
  Scaling scaling;
  const Segment* scaled_segments;  // of the copied pixels
};

// What a thread keeps between the items it computes.
struct ThreadState {
  float* scratch;
  // Whose scaled copy lies in the scratch memory.
  const Step* scaled_step;
  int64_t scaled_image;
};

using NetworkItem = void(const Step& step, int64_t item, ThreadState& state);

EFFNET_DECLARE_PER_ISA(NetworkItem, network_item)

}  // namespace effnet::cpu
