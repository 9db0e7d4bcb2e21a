// What a matrix product is made of: channels in groups and panels, an A of segments, weights in panels.
#pragma once

#include <cstdint>

#include "common/params.h"

namespace effnet::cpu {

// Channels are counted in groups of 16: every tensor inside the network has a multiple of 16 channels in memory (those
// past its own come from zero weights), so that no kernel ever stores a partial vector.
constexpr int64_t kGroup = 16;
// A panel is what one pass of a matrix product computes: up to 48 output channels. MBConv expands by 6 from multiples
// of 8, so expanded channels fill panels of 48 without a remainder.
constexpr int64_t kPanelGroups = 3;
constexpr int64_t kPanel = kPanelGroups * kGroup;

#define EFFNET_INLINE inline __attribute__((always_inline))

EFFNET_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
EFFNET_INLINE int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Neighbours along K that one instruction multiplies and adds: they lie side by side in packed weights, and K is made a
// multiple of it.
constexpr int64_t dot_length(StorageType type) { return type == StorageType::kBFloat16 ? 2 : 1; }

// How `channels` are cut into panels of nearly equal width. The depthwise convolution's chunks are cut the same way:
// the expansion fills one chunk with one panel.
struct Panels {
  int64_t groups, count, base, extra;

  static EFFNET_INLINE Panels of(int64_t channels) {
    const int64_t groups = divide_up(channels, kGroup), count = divide_up(groups, kPanelGroups);
    return {groups, count, count > 0 ? groups / count : 0, count > 0 ? groups % count : 0};
  }
  // Each group a panel.
  static EFFNET_INLINE Panels of_groups(int64_t channels) {
    const int64_t groups = divide_up(channels, kGroup);
    return {groups, groups, 1, 0};
  }
  EFFNET_INLINE int64_t first(int64_t panel) const { return panel * base + (panel < extra ? panel : extra); }
  EFFNET_INLINE int64_t width(int64_t panel) const { return base + (panel < extra ? 1 : 0); }
};

// A run of the K dimension that is adjacent in memory: element k of pixel p is at offset + p * pixel_stride + k.
struct Segment {
  int64_t offset;
  int32_t pixel_stride;
  int32_t length;
};

// How AMX cuts the K dimension: every segment into steps of `full` elements and one of `rest`, or none where `full`
// divides it. Zeros: a product that is not for AMX.
struct TileSteps {
  int16_t full, rest;
};

// out = act(A W + bias)
struct Gemm {
  const void* weights;
  const float* bias;
  int64_t depth;  // rows of a panel
  Panels panels;
  int64_t channels;  // of the result
  const Segment* segments;
  int32_t segment_count;
  Activation act;
  // Not null: while a pixel is multiplied, the one `pixels_ahead` further on is fetched from this A, whose segments
  // have the lengths and strides of `segments`. Many segments are many short streams, which the hardware does not
  // foresee (150 x 150 x 288 in fp32: 55 % of the peak without).
  const void* ahead;
  const Segment* ahead_segments;
  int64_t pixels_ahead;
  TileSteps tiles;
};

}  // namespace effnet::cpu
