// Weights into a program: the only place that knows the order in which the engine's kernels read them.
#pragma once

#include <vector>

#include "cpu/engine/program.h"
#include "cpu/gemm/pack.h"

namespace effnet::cpu {

// SiLU of a block's expansion and depthwise convolution is computed in units: with u = kSiluUnit and t = u x,
// u silu(x) = t / (1 + 2^t), which takes fewer instructions than silu(x). So what such an activation gets and gives is
// u times what the model says, and the weights around it are packed so that it is: those before it times u, those after
// it by u.
constexpr double kSiluUnit = -1.4426950408889634;  // -log2(e)

// A layer as the model has it: dense weights [out, in, k, k] (a linear layer's [out, in], a depthwise convolution's
// [out, 1, k, k]), the rest as in ConvRecord. out = 0: there is no such layer.
struct LayerSource {
  const void* weight;
  StorageType weight_dtype;
  int64_t in, out, kernel, stride;
  bool same;
  int64_t left, right, top, bottom;
  Activation act;
  const float* scale;  // [out], of each output's weights, or null
  const void* bias;    // [out], or null: zeros
  StorageType bias_dtype;
};

struct BlockSource {
  LayerSource expand, depthwise, squeeze, excite, project;
  bool residual;
};

// Makes the records of layers and remembers what has to be packed for them.
class Packer {
 public:
  explicit Packer(StorageType dtype) : dtype_(dtype) {}

  ConvRecord conv(const LayerSource& layer) { return conv(layer, 1.0, 1.0); }
  LinearRecord linear(const LayerSource& layer) { return linear(layer, 1.0); }
  BlockRecord block(const BlockSource& block);

  int64_t bytes() const { return bytes_; }
  // The work itself, for weights that lie from `memory` on; null where only its amount matters.
  std::vector<Packing> packings(char* memory) const;

 private:
  // `factor` multiplies the weights, `bias_factor` the bias.
  ConvRecord conv(const LayerSource& layer, double factor, double bias_factor);
  ConvRecord depthwise(const LayerSource& layer, double factor, double bias_factor);
  LinearRecord linear(const LayerSource& layer, double factor);
  int64_t add(const Packing& packing, int64_t elements);
  int64_t bias(const LayerSource& layer, double factor);

  const StorageType dtype_;
  std::vector<Packing> packings_;
  std::vector<int64_t> offsets_;
  int64_t bytes_ = 0;
};

}  // namespace effnet::cpu
