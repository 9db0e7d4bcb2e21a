// A small network, its weights packed by the kernels' own packing, run step by step as the engine does, and the same as
// plain loops in fp64.
#pragma once

#include <functional>

#include "cpu/engine/plan.h"
#include "product.h"

namespace network {

using effnet::Activation;
using effnet::DType;
using effnet::cpu::BlockRecord;
using effnet::cpu::ConvRecord;
using effnet::cpu::divide_up;
using effnet::cpu::kGroup;
using effnet::cpu::LinearRecord;
using effnet::cpu::NetworkRecord;
using effnet::cpu::Packing;
using effnet::cpu::Panels;
using effnet::cpu::round_up;
using effnet::cpu::Step;
using effnet::cpu::StepKind;
using effnet::cpu::ThreadState;

// [channels][height][width] of one image.
struct Map {
  int64_t channels, height, width;
  std::vector<double> data;

  Map(int64_t c, int64_t h, int64_t w) : channels(c), height(h), width(w), data(static_cast<size_t>(c * h * w)) {}
  double& at(int64_t c, int64_t y, int64_t x) { return data[static_cast<size_t>((c * height + y) * width + x)]; }
  double padded(int64_t c, int64_t y, int64_t x) {
    return y < 0 || x < 0 || y >= height || x >= width ? 0.0 : at(c, y, x);
  }
};

inline double activated(Activation act, double x) {
  switch (act) {
    case Activation::kNone:
      return x;
    case Activation::kSilu:
      return x / (1 + exp(-x));
    case Activation::kRelu:
      return fmax(x, 0);
    case Activation::kRelu6:
      return fmin(fmax(x, 0), 6);
    case Activation::kHardswish:
      return x * fmin(fmax(x + 3, 0), 6) / 6;
    case Activation::kSigmoid:
      return 1 / (1 + exp(-x));
    case Activation::kHardsigmoid:
      return fmin(fmax(x + 3, 0), 6) / 6;
  }
  return NAN;
}

// [out][in][kernel][kernel] (depthwise: in = 1), as the network has them.
struct Layer {
  int64_t out, in, kernel, stride;
  Activation act;
  std::vector<float> weight, bias;

  double w(int64_t o, int64_t i, int64_t y, int64_t x) const {
    return weight[static_cast<size_t>(((o * in + i) * kernel + y) * kernel + x)];
  }
};

inline Map convolve(Map& x, const Layer& layer, bool depthwise = false) {
  const int64_t pad = layer.kernel / 2;
  const auto size = [&](int64_t n) { return (n + 2 * pad - layer.kernel) / layer.stride + 1; };
  Map y(layer.out, size(x.height), size(x.width));
  for (int64_t o = 0; o < layer.out; ++o) {
    for (int64_t row = 0; row < y.height; ++row) {
      for (int64_t column = 0; column < y.width; ++column) {
        double sum = layer.bias[static_cast<size_t>(o)];
        for (int64_t i = 0; i < layer.in; ++i) {
          for (int64_t ky = 0; ky < layer.kernel; ++ky) {
            for (int64_t kx = 0; kx < layer.kernel; ++kx) {
              sum += layer.w(o, i, ky, kx) *
                     x.padded(depthwise ? o : i, row * layer.stride - pad + ky, column * layer.stride - pad + kx);
            }
          }
        }
        y.at(o, row, column) = activated(layer.act, sum);
      }
    }
  }
  return y;
}

inline Map mean_of(const Map& x) {
  Map mean(x.channels, 1, 1);
  const int64_t pixels = x.height * x.width;
  for (size_t i = 0; i < x.data.size(); ++i) mean.data[i / pixels] += x.data[i] / static_cast<double>(pixels);
  return mean;
}

struct Block {
  Layer expand, depthwise, squeeze, excite, project;
  bool residual;
};

struct Network {
  Layer stem;
  std::vector<Block> blocks;
  Layer head, classifier;
};

inline std::vector<double> exact(const Network& net, Map x) {
  Map y = convolve(x, net.stem);
  for (const Block& b : net.blocks) {
    Map expanded = convolve(y, b.expand), d = convolve(expanded, b.depthwise, true), mean = mean_of(d);
    Map hidden = convolve(mean, b.squeeze), gate = convolve(hidden, b.excite);
    for (size_t i = 0; i < d.data.size(); ++i) d.data[i] *= gate.data[i / static_cast<size_t>(d.height * d.width)];
    Map p = convolve(d, b.project);
    for (size_t i = 0; b.residual && i < p.data.size(); ++i) p.data[i] += y.data[i];
    y = p;
  }
  Map pooled = convolve(y, net.head);
  Map mean = mean_of(pooled);
  return convolve(mean, net.classifier).data;
}

// The layer with its weights and bias multiplied.
inline Layer times(Layer layer, double factor, double bias_factor) {
  for (float& x : layer.weight) x = static_cast<float>(x * factor);
  for (float& x : layer.bias) x = static_cast<float>(x * bias_factor);
  return layer;
}

// The block as the kernels expect it (kSiluUnit).
inline Block in_units(const Block& b) {
  const double before = effnet::cpu::unit_of(b.expand.act), after = effnet::cpu::unit_of(b.depthwise.act);
  return {times(b.expand, before, before), times(b.depthwise, after / before, after),
          times(b.squeeze, 1 / after, 1),  b.excite,
          times(b.project, 1 / after, 1),  b.residual};
}

inline void pack_item(Step& step, Packing& packing) {
  step.kind = StepKind::kPack, step.packings = &packing;
  ThreadState state{};
  for (int64_t item = 0; item < packing.items; ++item) effnet::cpu::baseline::network_item(step, item, state);
}

// Weights as one piece of memory, and the records that say where they are.
class Packer {
 public:
  explicit Packer(DType dtype) : dtype_(dtype) {}

  const char* bytes() const { return bytes_.data() + shift_; }

  // Panels of columns; a dense k x k layer's K is its rows of pixels of channels, made even.
  ConvRecord dense(const Layer& layer) {
    const int64_t channels = dtype_ == DType::kFloat32 || layer.kernel == 1 ? layer.in : round_up(layer.in, 2);
    const int64_t depth = layer.kernel * layer.kernel * channels;
    std::vector<float> rows(static_cast<size_t>(layer.out * depth));
    for (int64_t o = 0; o < layer.out; ++o) {
      for (int64_t y = 0; y < layer.kernel; ++y) {
        for (int64_t x = 0; x < layer.kernel; ++x) {
          for (int64_t i = 0; i < layer.in; ++i) {
            rows[static_cast<size_t>(o * depth + (y * layer.kernel + x) * channels + i)] =
                static_cast<float>(layer.w(o, i, y, x));
          }
        }
      }
    }
    return record(layer, add(rows, layer.out, depth, dtype_, true, Panels::of(layer.out)));
  }

  ConvRecord depthwise(const Layer& layer) {
    ConvRecord r = record(layer, groups(layer, layer.kernel * layer.kernel, DType::kFloat32));
    r.in = layer.out;
    return r;
  }

  LinearRecord linear(const Layer& layer) {
    const int64_t weight = groups(layer, layer.in, dtype_);
    return {layer.in, layer.out, static_cast<int64_t>(layer.act), weight, bias(layer)};
  }

 private:
  static constexpr size_t kLine = 64;

  ConvRecord record(const Layer& layer, int64_t weight) {
    const int64_t pad = layer.kernel / 2;
    return {layer.in, layer.out,  layer.kernel, layer.stride, 0, pad, pad, pad, pad, static_cast<int64_t>(layer.act),
            weight,   bias(layer)};
  }

  int64_t groups(const Layer& layer, int64_t depth, DType dtype) {
    const int64_t count = divide_up(layer.out, kGroup);
    return add(layer.weight, layer.out, depth, dtype, false, {count, count, 1, 0});
  }

  int64_t bias(const Layer& layer) {
    const int64_t offset = place(static_cast<size_t>(round_up(layer.out, kGroup)) * sizeof(float));
    memcpy(bytes_.data() + shift_ + offset, layer.bias.data(), layer.bias.size() * sizeof(float));
    return offset;
  }

  int64_t add(const std::vector<float>& rows, int64_t outputs, int64_t depth, DType dtype, bool panels,
              Panels columns) {
    const size_t count = static_cast<size_t>(columns.groups * kGroup * round_up(depth, 2));
    const int64_t offset = place(count * (dtype == DType::kFloat32 ? 4 : 2));
    Packing p{};
    p.from = rows.data(), p.from_dtype = DType::kFloat32;
    p.outputs = outputs, p.depth = p.row_stride = depth;
    p.to = bytes_.data() + shift_ + offset, p.to_dtype = dtype, p.pairs = panels && dtype == DType::kBFloat16;
    p.panels = columns, p.items = columns.groups;
    Step step{};
    pack_item(step, p);
    return offset;
  }

  // Zeros, on a line of the cache. Memory never moves: there is enough of it.
  int64_t place(size_t size) {
    if (bytes_.empty()) {
      bytes_.resize(8 << 20);
      shift_ = (kLine - reinterpret_cast<uintptr_t>(bytes_.data()) % kLine) % kLine;
    }
    const size_t offset = used_;
    used_ += (size + kLine - 1) / kLine * kLine;
    if (used_ + kLine > bytes_.size()) abort();
    return static_cast<int64_t>(offset);
  }

  DType dtype_;
  std::vector<char> bytes_;
  size_t shift_ = 0, used_ = 0;
};

// A batch of images [N, C, H, W] through all steps, one item after the other.
inline std::vector<float> run(const Network& net, DType dtype, const std::vector<float>& x, int64_t batch,
                              int64_t height, int64_t width, int64_t threads) {
  Packer packer(dtype);
  std::vector<BlockRecord> blocks;
  NetworkRecord record{dtype == DType::kFloat32 ? 0 : 1,
                       static_cast<int64_t>(net.blocks.size()),
                       1,
                       packer.dense(net.stem),
                       packer.dense(net.head),
                       packer.linear(net.classifier)};
  for (const Block& original : net.blocks) {
    const Block b = in_units(original);
    blocks.push_back({packer.dense(b.expand), packer.depthwise(b.depthwise), packer.linear(b.squeeze),
                      packer.linear(b.excite), packer.dense(b.project), b.residual ? 1 : 0});
  }
  effnet::cpu::NetworkCall call{};
  call.x = x.data(), call.x_dtype = DType::kFloat32;
  call.batch = batch, call.height = height, call.width = width, call.threads = threads;
  const int64_t pixels = height * width, strides[4] = {net.stem.in * pixels, pixels, width, 1};
  std::copy_n(strides, 4, call.x_strides);
  const int64_t size = effnet::cpu::plan_network(record, blocks.data(), call).workspace_bytes;
  std::vector<float> out(static_cast<size_t>(batch * net.classifier.out), NAN);
  // NaN wherever something is read before it is written.
  std::vector<char> workspace(static_cast<size_t>(size) + 64, static_cast<char>(0xff));
  call.weights = packer.bytes(), call.out = out.data();
  call.workspace = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) % 64;
  const effnet::cpu::NetworkPlan plan = effnet::cpu::plan_network(record, blocks.data(), call);
  std::vector<float> scratch(static_cast<size_t>(plan.scratch_floats) + 16, NAN);
  float* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64 / sizeof(float);
  ThreadState state{aligned, nullptr, 0};
  for (const Step& step : plan.steps) {
    for (int64_t item = 0; item < step.items; ++item) effnet::cpu::baseline::network_item(step, item, state);
  }
  return out;
}

}  // namespace network
