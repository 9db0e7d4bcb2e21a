// Rows of a matrix product to memory, for the stem, the projections and a head whose features are wanted.
#pragma once

#include <algorithm>

#include "cpu/engine/items.h"
#include "cpu/isa/act.h"

namespace effnet::cpu::EFFNET_ISA {

// y[pixels] = act(block + bias) + residual, whole groups.
template <class T, Activation kAct>
void store_block(const float* block, int64_t pixels, int64_t width, const float* bias, const T* residual,
                 int64_t residual_stride, T* y, int64_t stride) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t c = 0; c < width * kGroup; c += kLanes) {
      Vec value = quick_activate<kAct, kIsHalf<T>>(load(block + pixel * kPanel + c) + load(bias + c));
      if (residual != nullptr) value = value + load(residual + pixel * residual_stride + c);
      store(y + pixel * stride + c, value);
    }
  }
}

// The same into the caller's tensor, `channels` of them.
template <class T, class Out, Activation kAct>
void store_final(const float* block, int64_t pixels, int64_t channels, const float* bias, const T* residual,
                 int64_t residual_stride, Out* y, int64_t stride) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      Vec value = quick_activate<kAct, kIsHalf<T>>(load(block + pixel * kPanel + c) + load(bias + c));
      if (residual != nullptr) value = value + load(residual + pixel * residual_stride + c);
      store_lanes(y + pixel * stride + c, value, static_cast<int>(std::min<int64_t>(kLanes, channels - c)));
    }
  }
}

// Pixels [first, end) of one panel; `a` and its segments start at pixel `shift`.
template <class T>
void product_rows(const Step& s, const Gemm& gemm, const T* a, int64_t shift, const void* weights, int64_t image,
                  int64_t panel, int64_t first, int64_t end, float* block) {
  const int64_t width = s.gemm.panels.width(panel), channel = s.gemm.panels.first(panel) * kGroup;
  const float* bias = s.gemm.bias + channel;
  const T* residual = s.residual.data == nullptr
                          ? nullptr
                          : static_cast<const T*>(s.residual.data) + image * s.residual.image_stride + channel;
  const auto store_rows = with_activation(s.gemm.act, [](auto known) { return &store_block<T, known.value>; });
  const auto store_last = with_activation(s.gemm.act, [](auto known) { return &store_final<T, float, known.value>; });
  const auto store_same = with_activation(s.gemm.act, [](auto known) { return &store_final<T, T, known.value>; });
  const int64_t blocks = divide_up(end - first, kBlockPixels);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t from = first + i * (end - first) / blocks, to = first + (i + 1) * (end - first) / blocks;
    multiply(a, gemm, from - shift, static_cast<int>(to - from), weights, panel, block);
    const int64_t at = image * s.out.image_stride + from * s.out.pixel_stride + channel;
    const T* other = residual == nullptr ? nullptr : residual + from * s.residual.pixel_stride;
    const int64_t channels = std::min(width * kGroup, s.final_channels - channel);
    if (s.final_channels > 0 && s.final_dtype != s.dtype) {
      store_last(block, to - from, channels, bias, other, s.residual.pixel_stride, static_cast<float*>(s.out.data) + at,
                 s.out.pixel_stride);
    } else if (s.final_channels > 0) {
      store_same(block, to - from, channels, bias, other, s.residual.pixel_stride, static_cast<T*>(s.out.data) + at,
                 s.out.pixel_stride);
    } else {
      store_rows(block, to - from, width, bias, other, s.residual.pixel_stride, static_cast<T*>(s.out.data) + at,
                 s.out.pixel_stride);
    }
  }
}

}  // namespace effnet::cpu::EFFNET_ISA
