// BatchNorm's formulas and squeeze-and-excite's backward on vectors, one call each; compiled once per instruction set.
#pragma once

#include <cstdint>

#include "common/params.h"
#include "cpu/isa/isa.h"

namespace effnet::cpu {

// Partial statistics [parts, 3, channels] = (count, mean, M2), merged by Chan's formula in double; `out` is [5,
// channels]: mean, biased variance, invstd, scale, shift. Null: weight 1, bias 0.
struct BatchNormFinalizeParams {
  const float* stats;
  const float* weight;
  const float* bias;
  float* out;
  int64_t parts, channels;
  double eps;
};

// Sums [parts, 2, channels] of g and g * z_hat -> params [2, channels], and b, c of
// dz = scale * g + b * (z - mean) + c, zero where the statistics are not the batch's.
struct BatchNormBackwardParams {
  const float* sums;
  const float* invstd;
  const float* scale;
  float* params;
  float* formula;  // [2, channels]
  int64_t parts, channels;
  int64_t count;  // values per channel; 0: frozen statistics
};

// From the sums [5, batch, channels] of pointwise_backward to rows [batch, 2, channels].
struct GateSumsParams {
  const float* sums;
  const float* gate;       // [batch, channels], or null for 1
  const float* pool_grad;  // [batch, channels], or null for 0
  float* out;
  int64_t batch, channels;
};

// gate = gate_act(w2 act(w1 pooled + b1) + b2) per image; everything dense, weights of one dtype, the rest fp32.
struct ExciteBackwardParams {
  const float *dgate, *pooled;  // [batch, channels]
  const void *w1, *w2;          // [hidden, channels], [channels, hidden]
  const float *b1, *b2;         // or null
  float *n1, *a1, *dn1;         // [batch, hidden]: before and after the activation, gradient of the former
  float* dn2;                   // [batch, channels]
  float* dpooled;               // [batch, channels]
  float *dw1, *dw2;
  float *db1, *db2;  // or null
  int64_t batch, channels, hidden;
  Activation act, gate_act;
  StorageType dtype;
};

using BatchNormFinalize = void(const BatchNormFinalizeParams& p);
using BatchNormBackward = void(const BatchNormBackwardParams& p);
using GateSums = void(const GateSumsParams& p);
// The first: everything of images [begin, end). The second, after it: rows [begin, end) of the weights' and biases'
// gradients, those of w1 and then those of w2.
using ExciteBackward = void(const ExciteBackwardParams& p, int64_t begin, int64_t end);

EFFNET_DECLARE_PER_ISA(BatchNormFinalize, batch_norm_finalize_vectors)
EFFNET_DECLARE_PER_ISA(BatchNormBackward, batch_norm_backward_vectors)
EFFNET_DECLARE_PER_ISA(GateSums, gate_sums_vectors)
EFFNET_DECLARE_PER_ISA(ExciteBackward, excite_backward_images)
EFFNET_DECLARE_PER_ISA(ExciteBackward, excite_backward_weights)

}  // namespace effnet::cpu
