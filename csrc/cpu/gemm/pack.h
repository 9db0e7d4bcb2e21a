// Bringing weights and images into the order in which kernels read them.
#pragma once

#include <cstdint>

#include "common/params.h"
#include "cpu/gemm/panels.h"

namespace effnet::cpu {

constexpr int64_t kPackedPixels = 256;  // of an image, in one item of packing

// Something to bring into a kernel's order: a weight [outputs, depth], each row times its scale (null: 1), into panels
// of columns, rows in pairs for bfloat16's dot product or one by one; or rows of channels, padded with zeros to groups.
struct Packing {
  const void* from;
  DType from_dtype;
  int64_t outputs, depth, row_stride;  // elements from output to output
  const float* scale;
  float factor = 1.0f;  // of everything
  void* to;
  DType to_dtype;
  bool pairs;
  bool image;     // [pixels = outputs][channels = depth] to [pixels][groups of channels]
  Panels panels;  // of a weight; a group alone is a panel of width 1
  int64_t items;
};

}  // namespace effnet::cpu
