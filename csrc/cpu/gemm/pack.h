// Bringing weights and images into the order in which kernels read them.
#pragma once

#include <cstdint>

#include "common/params.h"
#include "cpu/gemm/panels.h"

namespace effnet::cpu {

constexpr int64_t kPackedPixels = 256;  // of an image, in one item of packing

// Something to bring into a kernel's order: a weight [outputs, depth, taps], each row times its scale (null: 1), into
// panels of columns, tap by tap, rows one by one or as many together as a dot product takes (a tap's depth made a
// multiple); or pixels [outputs, depth] of an image, padded with zeros to groups of channels.
struct Packing {
  const void* from;  // null: zeros
  StorageType from_dtype;
  int64_t outputs, depth, row_stride;  // elements from output to output
  int64_t taps = 1;
  const float* scale;
  double factor = 1.0;  // of every weight
  void* to;
  StorageType to_dtype;
  int64_t together = 1;  // rows of the packed weight that lie side by side
  bool image;
  Panels panels;  // of a weight
  int64_t items;

  // Rows of a packed weight.
  int64_t packed_depth() const { return taps * round_up(depth, together); }
};

}  // namespace effnet::cpu
