// The stencil's inner loops over one row of fp32 values, shared by the forward and the backward of the depthwise
// convolution; compiled once per instruction set.
#pragma once

#include "cpu/isa/column_blocks.h"
#include "cpu/isa/vec.h"
#include "cpu/stencil/forward.h"

namespace effnet::cpu::EFFNET_ISA {

// Output columns accumulated in registers at once: kMaxColumns accumulators, `kernel` weights and one input fit the 16
// registers of AVX2 up to 7x7, and eight independent chains hide the latency of a fused multiply-add.
constexpr int kMaxColumns = 8;

// What one output row needs: the input rows inside the image and the weights that go with them. `rows` point at the
// input column under the first output column's first tap; columns are `column_stride` floats apart.
struct Taps {
  int count;
  int64_t column_stride;
  const float* rows[7];
  const float* weights[7];
  // The input row that comes next, fetched ahead: its pixels are too far apart for the hardware to foresee (32 channels
  // of 112 x 112: 188 to 120 us). A hint: that it may point outside x at the right edge does no harm.
  const char* next_row;
  int64_t next_stride;
};

template <int kKernel, int kStride, int kColumns>
inline __attribute__((always_inline)) void convolve_block(const Taps& taps, int64_t column, float* out) {
  Vec sums[kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < kColumns; ++i) sums[i] = Vec(0.0f);
#pragma GCC unroll 16
  for (int i = 0; i < kColumns * kStride; ++i) {
    __builtin_prefetch(taps.next_row + (column * kStride + i) * taps.next_stride, 0, 2);
  }
  for (int tap = 0; tap < taps.count; ++tap) {
    const float* row = taps.rows[tap] + column * kStride * taps.column_stride;
    Vec weights[kKernel];
#pragma GCC unroll 8
    for (int k = 0; k < kKernel; ++k) weights[k] = load(taps.weights[tap] + k * kChunk);
#pragma GCC unroll 32
    for (int j = 0; j < (kColumns - 1) * kStride + kKernel; ++j) {
      Vec x = load(row);
      keep_in_register(x);
      row += taps.column_stride;
#pragma GCC unroll 8
      for (int i = 0; i < kColumns; ++i) {
        const int k = j - i * kStride;
        if (k >= 0 && k < kKernel) sums[i] = multiply_add(x, weights[k], sums[i]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kColumns; ++i) store(out + (column + i) * kLanes, sums[i]);
}

// Output columns [0, columns) of one row, kLanes channels: out[columns][kLanes].
template <int kKernel, int kStride>
void convolve_row(const Taps& taps, int64_t columns, float* out) {
  for_column_blocks<kMaxColumns>(columns, [&](int64_t column, auto count) __attribute__((always_inline)) {
    convolve_block<kKernel, kStride, count.value>(taps, column, out);
  });
}

using ConvolveRow = decltype(&convolve_row<3, 1>);

}  // namespace effnet::cpu::EFFNET_ISA
