// The 1x1 convolution of training and its data gradient in fp32: a matrix product whose operand is formed, and whose
// result is finished, block by block of pixels while both are in the nearest caches.
#pragma once

#include "network.h"

namespace effnet::cpu {

// Pixels that are formed, multiplied and finished together.
constexpr int64_t kPointwiseRows = 64;

// What happens to x on its way into the product.
enum class Forming : int32_t {
  kNone,
  kActivation,  // gate * act(scale * x + shift)
  kInputGrad,   // a * row_scale * x + b * (z - mean) + c; without a: row_scale * x
};

// y = form(x) W, all [batch, rows, channels] dense fp32; vectors of channels; null is a part left out.
struct PointwiseParams {
  int64_t batch, rows, in, out;
  int64_t bands;  // of every image; a task is one of them

  const float* x;
  Forming form;
  Activation act;
  const float* scale;
  const float* shift;
  const float* gate;       // [batch, in]
  const float* z;          // like x
  const float* row_scale;  // [batch]
  const float *a, *b, *c, *mean;
  float* formed;  // like x; null: in scratch memory only

  const float* weights;  // in panels of columns, [in][width]
  Panels panels;

  float* y;
  float* moments;  // [batch, bands, 3, out]: count, mean, M2 of y

  // For the gradient y of a gated activation of `input`: the five sums of training.h and the activation itself.
  float* sums;         // [batch, bands, 5, out]
  const float* input;  // like y
  const float *in_scale, *in_shift, *in_mean, *in_invstd;
  const float* in_gate;  // [batch, out]
  Activation in_act;
  float* activation;  // like y

  int64_t tasks() const { return batch * bands; }
  int64_t scratch_floats() const { return kPointwiseRows * (round_up(in, kGroup) + kPanel); }
};

using PointwiseTasks = void(const PointwiseParams& p, int64_t begin, int64_t end, float* scratch);
EFFNET_DECLARE_PER_ISA(PointwiseTasks, pointwise_tasks)

}  // namespace effnet::cpu
