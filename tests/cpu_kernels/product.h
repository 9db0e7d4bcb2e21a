// Random problems for the matrix product of inference: every operand exactly as large as it must be, and the result in
// fp64.
#pragma once

#include <math.h>
#include <stdint.h>

#include <random>
#include <vector>

#include "cpu/gemm/multiply.h"
#include "cpu/isa/storage.h"

namespace product {

using effnet::cpu::Gemm;
using effnet::cpu::kGroup;
using effnet::cpu::kPanel;
using effnet::cpu::Panels;
using effnet::cpu::Segment;
using effnet::cpu::baseline::as_float;
using effnet::cpu::baseline::BFloat16;
using effnet::cpu::baseline::kIsHalf;

inline void put(float* to, float x) { *to = x; }
inline void put(BFloat16* to, float x) { *to = effnet::cpu::baseline::to_bfloat16(x); }

// bfloat16: K is even in every segment.
template <class T>
struct Problem {
  static constexpr int kStep = kIsHalf<T> ? 2 : 1;

  std::vector<Segment> segments;
  std::vector<T> a, weights;
  Gemm gemm{};
  int64_t first;
  int pixels;

  Problem(const Problem&) = delete;

  explicit Problem(std::mt19937& random) {
    const auto draw = [&](int low, int high) { return low + static_cast<int>(random() % unsigned(high - low + 1)); };
    std::normal_distribution<float> normal;
    first = draw(0, 3), pixels = draw(1, 70);
    const int total = static_cast<int>(first) + pixels;
    const int count = draw(1, 4), common = kStep * draw(1, (count == 1 ? 200 : 50) / kStep);
    int64_t offset = 0;
    for (int s = 0; s < count; ++s) {
      const int length = s > 0 && draw(0, 3) == 0 ? kStep * draw(1, 50 / kStep) : common;
      // The last one ends with the memory; strides as in the network, or longer, or shorter as those of the stem.
      const int stride = draw(0, 4) == 0 ? std::max(length / 2, 1) : length + 2 * draw(0, 4);
      segments.push_back({offset, stride, length});
      offset += static_cast<int64_t>(stride) * (total - 1) + length;
      gemm.depth += length;
    }
    a.resize(static_cast<size_t>(offset));
    gemm.channels = draw(1, 130), gemm.panels = Panels::of(gemm.channels);
    weights.resize(static_cast<size_t>(gemm.depth * gemm.panels.groups * kGroup));
    const float scale = 1.0f / sqrtf(static_cast<float>(gemm.depth));
    for (T& x : a) put(&x, normal(random));
    // Those of channels that there are not are zeros, as in packed weights.
    for (int64_t panel = 0; panel < gemm.panels.count; ++panel) {
      for (int64_t column = 0; column < columns(panel); ++column) {
        const bool valid = gemm.panels.first(panel) * kGroup + column < gemm.channels;
        for (int64_t k = 0; k < gemm.depth; ++k) {
          put(&weights[at(panel, k, column)], valid ? normal(random) * scale : 0.0f);
        }
      }
    }
    gemm.segments = segments.data(), gemm.segment_count = count;
  }

  int64_t columns(int64_t panel) const { return gemm.panels.width(panel) * kGroup; }

  const T* panel_weights(int64_t panel) const {
    return weights.data() + gemm.panels.first(panel) * kGroup * gemm.depth;
  }

  // Panels lie one after the other, [K / kStep][width][kStep] each.
  size_t at(int64_t panel, int64_t k, int64_t column) const {
    return static_cast<size_t>(gemm.panels.first(panel) * kGroup * gemm.depth +
                               (k / kStep * columns(panel) + column) * kStep + k % kStep);
  }

  double exact(int64_t panel, int64_t pixel, int64_t column) const {
    double sum = 0;
    int64_t k = 0;
    for (const Segment& s : segments) {
      for (int64_t i = 0; i < s.length; ++i, ++k) {
        sum += double(as_float(a[s.offset + (first + pixel) * s.pixel_stride + i])) *
               double(as_float(weights[at(panel, k, column)]));
      }
    }
    return sum;
  }
};

}  // namespace product
