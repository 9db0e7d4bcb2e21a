// Loops over tiles of rows that sum per channel; compiled once per instruction set.
#pragma once

#include <algorithm>

#include "cpu/isa/vec_grad.h"
#include "cpu/passes/band_sums.h"

namespace effnet::cpu::EFFNET_ISA {

inline Vec vector_or(const float* from, int64_t c, int count, float otherwise) {
  return from == nullptr ? Vec(otherwise) : load_lanes(from + c, count);
}

// Channels are walked through across rows that lie far apart, which the hardware does not foresee. A hint: that it may
// point past the tensor does no harm.
template <class T>
inline void fetch_ahead(const T* from) {
  __builtin_prefetch(from + 2 * kLanes);
}

// sums[i] = sum over rows [row, end) of what add(sums, row) adds: few rows at a time, because the error of a running
// sum grows with its length.
template <int kParts, class F>
inline void sum_rows(int64_t row, int64_t end, Vec (&sums)[kParts], F add) {
  constexpr int64_t kBlock = 16;
  for (Vec& sum : sums) sum = Vec(0.0f);
  while (row < end) {
    Vec block[kParts];
    for (Vec& sum : block) sum = Vec(0.0f);
    for (const int64_t stop = std::min(row + kBlock, end); row < stop; ++row) add(block, row);
    for (int i = 0; i < kParts; ++i) sums[i] = sums[i] + block[i];
  }
}

// f(first row, last row, channel, lanes) for every tile and vector of channels of the band.
template <class F>
inline void for_tiles(int64_t first_row, int64_t last_row, int64_t channels, F f) {
  for (int64_t tile = first_row; tile < last_row; tile += cpu::kTileRows) {
    const int64_t end = std::min(tile + cpu::kTileRows, last_row);
    for (int64_t c = 0; c < channels; c += kLanes) f(tile, end, c, lanes_left(channels, c));
  }
}

template <int kParts>
inline void add_sums(const Vec (&sums)[kParts], float* partial, int64_t channels, int64_t c, int count) {
  for (int i = 0; i < kParts; ++i) {
    float* to = partial + i * channels + c;
    store_lanes(to, load_lanes(to, count) + sums[i], count);
  }
}

// What one value z with gradient g of its gated activation adds to the five sums of band_sums.h.
template <Activation kAct>
inline ValueAndGrad add_gate_and_norm(Vec g, Vec z, Vec scale, Vec shift, Vec mean, Vec invstd, Vec (&sums)[5]) {
  const ValueAndGrad act = activate_with_grad<kAct>(multiply_add(z, scale, shift));
  const Vec z_hat = (z - mean) * invstd;
  const Vec through = g * act.grad;
  sums[0] = multiply_add(g, act.value, sums[0]);
  sums[1] = sums[1] + through;
  sums[2] = multiply_add(through, z_hat, sums[2]);
  sums[3] = sums[3] + act.grad;
  sums[4] = multiply_add(act.grad, z_hat, sums[4]);
  return act;
}

}  // namespace effnet::cpu::EFFNET_ISA
