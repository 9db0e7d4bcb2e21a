// What forward and backward of the training's 1x1 convolution share, block by block of pixels; compiled once per
// instruction set.
#pragma once

#include "cpu/gemm/multiply.h"
#include "cpu/gemm/outer_product.h"
#include "cpu/isa/act.h"
#include "cpu/passes/channel_sums.h"

namespace effnet::cpu::EFFNET_ISA {

// to = gate * act(scale * x + shift) of `rows` pixels; null vectors are parts left out.
struct ActivationForming {
  const float *scale, *shift, *gate;
  int64_t channels, to_stride;
};

template <Activation kAct>
inline void form_activation(const ActivationForming& f, const float* x, int64_t rows, float* to) {
  for (int64_t c = 0; c < f.channels; c += kLanes) {
    const int count = lanes_left(f.channels, c);
    const Vec scale = vector_or(f.scale, c, count, 1.0f), shift = vector_or(f.shift, c, count, 0.0f);
    const Vec factor = vector_or(f.gate, c, count, 1.0f);
    for (int64_t row = 0; row < rows; ++row) {
      const Vec n = multiply_add(load_lanes(x + row * f.channels + c, count), scale, shift);
      fetch_ahead(x + row * f.channels + c);
      store_lanes(to + row * f.to_stride + c, quick_activate<kAct, false>(n) * factor, count);
    }
  }
}

// A matrix whose rows lie `stride` floats apart as the left side of multiply(); both must outlive the product.
inline Gemm rows_times_panels(const Segment& rows, const Panels& panels, int64_t channels) {
  Gemm gemm{};
  gemm.depth = rows.length;
  gemm.panels = panels;
  gemm.channels = channels;
  gemm.segments = &rows;
  gemm.segment_count = 1;
  return gemm;
}

inline Segment rows_of(int64_t depth, int64_t stride) {
  return {0, static_cast<int32_t>(stride), static_cast<int32_t>(depth)};
}

}  // namespace effnet::cpu::EFFNET_ISA
