// Mean and sum of squared deviations of channels, kLanes at a time; compiled once per instruction set.
#pragma once

#include <cfloat>

#include "cpu/isa/vec.h"

namespace effnet::cpu::EFFNET_ISA {

// Of `count` values per lane. Two passes over the values, which are in cache: sums of squares would lose every digit of
// a deviation that is small beside the mean.
struct Moments {
  Vec mean, m2;
  float count;
};

// Calls add(chain, row) for rows [0, rows) in four chains, which hides the latency of an addition.
template <class F>
inline void in_four_chains(int64_t rows, F add) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    for (int chain = 0; chain < 4; ++chain) add(chain, row + chain);
  }
  for (; row < rows; ++row) add(0, row);
}

inline Vec sum_of(const Vec (&chains)[4]) { return (chains[0] + chains[1]) + (chains[2] + chains[3]); }

// Of rows [0, rows), rows > 0, `stride` elements apart, the first `count` lanes of each.
template <class T>
Moments moments_of(const T* from, int64_t stride, int64_t rows, int count) {
  const float number = static_cast<float>(rows);
  Vec sums[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
  in_four_chains(rows, [&](int i, int64_t row) { sums[i] = sums[i] + load_lanes(from + row * stride, count); });
  const Vec mean = sum_of(sums) / Vec(number);
  Vec rests[4] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)}, squares[4] = {rests[0], rests[0], rests[0], rests[0]};
  in_four_chains(rows, [&](int i, int64_t row) {
    const Vec deviation = load_lanes(from + row * stride, count) - mean;
    rests[i] = rests[i] + deviation;
    squares[i] = multiply_add(deviation, deviation, squares[i]);
  });
  // What the first pass missed of the mean, by rounding.
  const Vec rest = sum_of(rests) / Vec(number);
  // Overflow is infinity, never the difference of two.
  const Vec sum = sum_of(squares), corrected = sum - rest * rest * Vec(number);
  return {mean + rest, Vec(sum.v > FLT_MAX ? sum.v : corrected.v), number};
}

// Chan's merge of `more` into the moments that lie at `mean` and `m2`, `count` values so far.
inline void merge_moments(const Moments& more, float count, float* mean, float* m2, int lanes) {
  const float total = count + more.count;
  const Vec old = load_lanes(mean, lanes);
  const Vec delta = more.mean - old;
  const Vec spread = load_lanes(m2, lanes) + more.m2;
  store_lanes(mean, multiply_add(delta, Vec(more.count / total), old), lanes);
  // In this order because the square of a large delta is infinite, which times a count of zero is NaN.
  store_lanes(m2, multiply_add(delta * Vec(count * more.count / total), delta, spread), lanes);
}

}  // namespace effnet::cpu::EFFNET_ISA
