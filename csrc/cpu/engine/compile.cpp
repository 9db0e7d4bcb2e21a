#include "cpu/engine/compile.h"

namespace effnet::cpu {
namespace {

// Packed weights begin at multiples of a cache line.
constexpr int64_t kLine = 64;

constexpr double unit_of(Activation act) { return act == Activation::kSilu ? kSiluUnit : 1.0; }

Packing weights_of(const LayerSource& layer, double factor, StorageType to) {
  Packing p{};
  p.from = layer.weight, p.from_dtype = layer.weight_dtype;
  p.outputs = layer.out, p.scale = layer.scale, p.factor = factor;
  p.to_dtype = to;
  return p;
}

ConvRecord record_of(const LayerSource& layer) {
  ConvRecord record{};
  record.in = layer.in, record.out = layer.out, record.kernel = layer.kernel, record.stride = layer.stride;
  record.same = layer.same;
  // Where the padding depends on the input these are not read; a program has one form.
  if (!layer.same) {
    record.left = layer.left, record.right = layer.right, record.top = layer.top, record.bottom = layer.bottom;
  }
  record.act = layer.act;
  return record;
}

}  // namespace

BlockRecord Packer::block(const BlockSource& block) {
  const double before = block.expand.out > 0 ? unit_of(block.expand.act) : 1.0, after = unit_of(block.depthwise.act);
  BlockRecord record{};
  if (block.expand.out > 0) record.expand = conv(block.expand, before, before);
  record.depthwise = depthwise(block.depthwise, after / before, after);
  if (block.squeeze.out > 0) {
    record.squeeze = linear(block.squeeze, 1.0 / after);
    record.excite = linear(block.excite, 1.0);
  }
  record.project = conv(block.project, 1.0 / after, 1.0);
  record.residual = block.residual;
  return record;
}

std::vector<Packing> Packer::packings(char* memory) const {
  std::vector<Packing> placed = packings_;
  for (size_t i = 0; i < placed.size(); ++i) placed[i].to = memory == nullptr ? nullptr : memory + offsets_[i];
  return placed;
}

ConvRecord Packer::conv(const LayerSource& layer, double factor, double bias_factor) {
  Packing p = weights_of(layer, factor, dtype_);
  p.together = dot_length(dtype_);
  p.taps = layer.kernel * layer.kernel, p.depth = layer.in;
  p.row_stride = p.taps * p.depth;
  p.panels = Panels::of(layer.out);
  ConvRecord record = record_of(layer);
  record.weight = add(p, p.packed_depth());
  record.bias = bias(layer, bias_factor);
  return record;
}

ConvRecord Packer::depthwise(const LayerSource& layer, double factor, double bias_factor) {
  Packing p = weights_of(layer, factor, StorageType::kFloat32);
  p.depth = p.row_stride = layer.kernel * layer.kernel;
  p.panels = Panels::of_groups(layer.out);
  ConvRecord record = record_of(layer);
  record.weight = add(p, p.packed_depth());
  record.bias = bias(layer, bias_factor);
  return record;
}

LinearRecord Packer::linear(const LayerSource& layer, double factor) {
  Packing p = weights_of(layer, factor, dtype_);
  p.depth = p.row_stride = layer.in;
  p.panels = Panels::of_groups(layer.out);
  LinearRecord record{layer.in, layer.out, layer.act, 0, 0};
  record.weight = add(p, p.packed_depth());
  record.bias = bias(layer, 1.0);
  return record;
}

int64_t Packer::bias(const LayerSource& layer, double factor) {
  Packing p{};
  p.from = layer.bias, p.from_dtype = layer.bias_dtype;
  p.outputs = layer.out, p.depth = p.row_stride = 1, p.factor = factor;
  p.panels = Panels::of_groups(layer.out);
  return add(p, 1);
}

// Space for `rows` rows of the packing's groups.
int64_t Packer::add(const Packing& packing, int64_t rows) {
  Packing p = packing;
  p.items = p.panels.groups;
  packings_.push_back(p);
  offsets_.push_back(bytes_);
  bytes_ += round_up(rows * p.items * kGroup * bytes_of(p.to_dtype), kLine);
  return offsets_.back();
}

}  // namespace effnet::cpu
