// Bringing weights and images into the order in which kernels read them.
#pragma once

#include <cstdint>

#include "common/params.h"
#include "cpu/gemm/panels.h"

namespace effnet::cpu {

constexpr int64_t kPackedPixels = 256;  // of an image, in one item of packing

// Something to bring into a kernel's order: a weight [outputs, depth, taps], each row times its scale (null: 1), into
// panels of columns, tap by tap, rows in pairs for bfloat16's dot product (a tap's depth made even) or one by one; or
// pixels [outputs, depth] of an image, padded with zeros to groups of channels.
struct Packing {
  const void* from;  // null: zeros
  DType from_dtype;
  int64_t outputs, depth, row_stride;  // elements from output to output
  int64_t taps = 1;
  const float* scale;
  double factor = 1.0;  // of every weight
  void* to;
  DType to_dtype;
  bool pairs;
  bool image;
  Panels panels;  // of a weight
  int64_t items;

  // Rows of a packed weight.
  int64_t packed_depth() const { return taps * (pairs ? round_up(depth, 2) : depth); }
};

}  // namespace effnet::cpu
