// The gradient of a 1x1 convolution's weight: a product over pixels.
#pragma once

#include <cstdint>

namespace effnet::cpu::EFFNET_ISA {

// out[i, j] += sum over pixels of a[pixel, i] * b[pixel, j]; out is dense.
struct OuterProduct {
  const float* a;
  int64_t a_stride, a_channels;
  const float* b;
  int64_t b_stride, b_channels;
  int64_t pixels;
  float* out;
};
void add_outer_product(const OuterProduct& product);

}  // namespace effnet::cpu::EFFNET_ISA
