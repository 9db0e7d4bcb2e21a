// An item of any step; the projection and the head with its mean. Compiled once per instruction set.
#include <algorithm>

#include "cpu/engine/rows.h"

namespace effnet::cpu::EFFNET_ISA {
namespace {

// The gate times pixels [first, end) of one image, chunk after chunk as `scaled_segments` say.
template <class T>
void scale_pixels(const Step& s, int64_t image, int64_t first, int64_t end, T* to) {
  const T* from = static_cast<const T*>(s.in.data) + image * s.in.image_stride;
  const float* gate = s.vectors + image * s.vector_stride;
  for (int64_t chunk = 0; chunk < s.chunks.count; ++chunk) {
    const int64_t width = s.chunks.width(chunk) * kGroup;
    const T* in = from + s.gemm.segments[chunk].offset + first * width;
    T* out = to + s.scaled_segments[chunk].offset;
    for (int64_t pixel = first; pixel < end; ++pixel) {
      for (int64_t c = 0; c < width; c += kLanes) store(out + c, load(in + c) * load(gate + c));
      in += width;
      out += width;
    }
    gate += width;
  }
}

void scale_rows(const float* from, int64_t rows, int64_t columns, const float* gate, float* to) {
  for (int64_t row = 0; row < rows; ++row) {
    const Vec factor(gate[row]);
    for (int64_t c = 0; c < columns; c += kLanes)
      store(to + row * columns + c, load(from + row * columns + c) * factor);
  }
}

inline Uint rounded(Vec x) {
  const Uint bits = (Uint)x.v;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Rows lie in pairs. The gate of a row that only makes their number even multiplies zeros.
void scale_rows(const BFloat16* from, int64_t rows, int64_t columns, const float* gate, BFloat16* to) {
  for (int64_t row = 0; row < rows; row += 2) {
    const Vec even(gate[row]), odd(gate[row + 1]);
    for (int64_t c = 0; c < 2 * columns; c += 2 * kLanes) {
      Uint pairs;
      std::memcpy(&pairs, from + row * columns + c, sizeof pairs);
      const Vec first((Float)(pairs << 16)), second((Float)(pairs & 0xffff0000u));
      const Uint scaled = rounded(first * even) | (rounded(second * odd) << 16);
      std::memcpy(to + row * columns + c, &scaled, sizeof scaled);
    }
  }
}

template <class T>
void scale_weights(const Step& s, int64_t image, T* to) {
  for (int64_t panel = 0; panel < s.gemm.panels.count; ++panel) {
    const T* from = panel_of<T>(s.gemm, s.gemm.weights, panel);
    scale_rows(from, s.gemm.depth, s.gemm.panels.width(panel) * kGroup, s.vectors + image * s.vector_stride,
               to + (from - static_cast<const T*>(s.gemm.weights)));
  }
}

template <class T>
void project_item(const Step& s, int64_t item, ThreadState& state) {
  const int64_t pixels = s.out_height * s.out_width;
  const int64_t block = item % s.pixel_blocks, part = item / s.pixel_blocks % s.panel_parts;
  const int64_t image = item / s.pixel_blocks / s.panel_parts;
  const int64_t first = block * pixels / s.pixel_blocks, end = (block + 1) * pixels / s.pixel_blocks;
  const T* a = static_cast<const T*>(s.in.data) + image * s.in.image_stride;
  const void* weights = s.gemm.weights;
  int64_t shift = 0;
  Gemm gemm = s.gemm;
  float* product = state.scratch;
  T* scaled = reinterpret_cast<T*>(state.scratch + kBlockPixels * kPanel);
  if (s.scaling != Scaling::kNone) {
    const bool ready = state.scaled_step == &s && state.scaled_image == image && s.scaling != Scaling::kBlock;
    state.scaled_step = &s, state.scaled_image = image;
    if (s.scaling == Scaling::kWeights) {
      if (!ready) scale_weights(s, image, scaled);
      weights = scaled;
    } else {
      shift = s.scaling == Scaling::kBlock ? first : 0;
      if (!ready) scale_pixels(s, image, shift, s.scaling == Scaling::kBlock ? end : pixels, scaled);
      a = scaled, gemm.segments = s.scaled_segments;
    }
  }
  const int64_t panels = s.gemm.panels.count;
  if (s.gemm.segment_count > 1 && s.scaling != Scaling::kImage) {
    gemm.ahead = static_cast<const T*>(s.in.data) + image * s.in.image_stride;
    gemm.ahead_segments = s.gemm.segments;
    // The next block's where this one is a copy, else the next pixels.
    gemm.pixels_ahead = s.scaling == Scaling::kBlock ? end : kBlockPixels;
  }
  for (int64_t panel = part * panels / s.panel_parts; panel < (part + 1) * panels / s.panel_parts; ++panel) {
    product_rows(s, gemm, a, shift, weights, image, panel, first, end, product);
    // The pixels are in the second-level cache now.
    gemm.ahead = nullptr;
  }
}

template <class T, Activation kAct>
void add_block(const float* block, int64_t pixels, int64_t width, const float* bias, float* sums) {
  for (int64_t c = 0; c < width * kGroup; c += kLanes) {
    const Vec shift = load(bias + c);
    Vec sum(0.0f);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      sum = sum + quick_activate<kAct, kIsHalf<T>>(load(block + pixel * kPanel + c) + shift);
    }
    store(sums + c, load(sums + c) + sum);
  }
}

// One panel of the head of one image, of which only the mean is kept.
template <class T>
void pool_item(const Step& s, int64_t item, float* scratch) {
  const int64_t panels = s.gemm.panels.count, panel = item % panels, image = item / panels;
  const int64_t pixels = s.out_height * s.out_width, width = s.gemm.panels.width(panel);
  const int64_t channel = s.gemm.panels.first(panel) * kGroup, blocks = divide_up(pixels, kBlockPixels);
  const T* a = static_cast<const T*>(s.in.data) + image * s.in.image_stride;
  const auto add = with_activation(s.gemm.act, [](auto known) { return &add_block<T, known.value>; });
  float* sums = scratch + kBlockPixels * kPanel;
  std::fill_n(sums, kPanel, 0.0f);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t from = i * pixels / blocks, to = (i + 1) * pixels / blocks;
    multiply(a, s.gemm, from, static_cast<int>(to - from), s.gemm.weights, panel, scratch);
    add(scratch, to - from, width, s.gemm.bias + channel, sums);
  }
  float* out = s.vectors_out + image * s.vectors_out_stride + channel;
  const int64_t count = s.final_channels > 0 ? std::min(width * kGroup, s.final_channels - channel) : width * kGroup;
  for (int64_t c = 0; c < count; ++c) out[c] = sums[c] / s.pool_divisor;
}

}  // namespace

void network_item(const Step& step, int64_t item, ThreadState& state) {
  switch (step.kind) {
    case StepKind::kStem:
      return stem_item(step, item, state.scratch);
    case StepKind::kExpandDepthwise:
      return expand_depthwise_item(step, item, state.scratch);
    case StepKind::kSqueeze:
    case StepKind::kExcite:
    case StepKind::kClassify:
      return vectors_item(step, item, state.scratch);
    case StepKind::kProject:
      return with_storage(step.dtype, [&](auto stored) { project_item<decltype(stored)>(step, item, state); });
    case StepKind::kPool:
      return with_storage(step.dtype, [&](auto stored) { pool_item<decltype(stored)>(step, item, state.scratch); });
    case StepKind::kPack:
      return pack_item(step.packings, item);
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
