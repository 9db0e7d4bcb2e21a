// The 1x1 convolution of training in fp32: a matrix product whose operand is formed, and whose result is summed, block
// by block of pixels while both are in the nearest caches.
#pragma once

#include "cpu/gemm/panels.h"
#include "cpu/isa/isa.h"

namespace effnet::cpu {

// Pixels that are formed, multiplied and finished together.
constexpr int64_t kPointwiseRows = 64;

// y = (gate * act(scale * x + shift)) W, all [batch, rows, channels] dense; vectors of channels; null is a part left
// out.
struct PointwiseParams {
  int64_t batch, rows, in, out;
  int64_t bands;  // of every image; a task is one of them

  const float* x;
  bool forms;  // whether anything happens to x
  Activation act;
  const float* scale;
  const float* shift;
  const float* gate;  // [batch, in]

  const float* weights;  // in panels of columns, [in][width]
  Panels panels;

  float* y;
  float* moments;  // [batch, bands, 3, out]: count, mean, M2 of y

  int64_t tasks() const { return batch * bands; }
  int64_t scratch_floats() const { return kPointwiseRows * (round_up(in, kGroup) + kPanel); }
};

using PointwiseTasks = void(const PointwiseParams& p, int64_t begin, int64_t end, float* scratch);
EFFNET_DECLARE_PER_ISA(PointwiseTasks, pointwise_tasks)

}  // namespace effnet::cpu
