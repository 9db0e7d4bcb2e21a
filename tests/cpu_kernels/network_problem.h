// A small network, its weights packed by the kernels' own packing, run step by step as the engine does, and the same as
// plain loops in fp64.
#pragma once

#include <functional>
#include <string>

#include "cpu/engine/compile.h"
#include "cpu/engine/plan.h"
#include "cpu/engine/steps.h"
#include "product.h"

namespace network {

using effnet::Activation;
using effnet::StorageType;
using effnet::cpu::Step;
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

inline effnet::cpu::LayerSource source(const Layer& layer) {
  effnet::cpu::LayerSource s{};
  s.weight = layer.weight.data(), s.bias = layer.bias.data();
  s.out = layer.out, s.in = layer.in, s.kernel = layer.kernel, s.stride = layer.stride, s.act = layer.act;
  s.left = s.right = s.top = s.bottom = layer.kernel / 2;
  return s;
}

inline void run_items(const Step& step, float* scratch) {
  ThreadState state{scratch, nullptr, 0};
  for (int64_t item = 0; item < step.items; ++item) effnet::cpu::baseline::network_item(step, item, state);
}

// Memory that begins on a line of the cache, filled with the byte.
struct Lines {
  std::vector<char> bytes;
  char* begin;

  Lines(int64_t size, int fill)
      : bytes(static_cast<size_t>(size) + 64, static_cast<char>(fill)),
        begin(bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64) {}
};

// A batch of images [N, C, H, W] through all steps, one item after the other.
inline std::vector<float> run(const Network& net, StorageType dtype, const std::vector<float>& x, int64_t batch,
                              int64_t height, int64_t width, int64_t threads) {
  effnet::cpu::Packer packer(dtype);
  effnet::cpu::Program compiled{};
  compiled.dtype = dtype, compiled.pool = true;
  compiled.stem = packer.conv(source(net.stem)), compiled.head = packer.conv(source(net.head));
  compiled.classifier = packer.linear(source(net.classifier));
  for (const Block& b : net.blocks) {
    compiled.blocks.push_back(packer.block(
        {source(b.expand), source(b.depthwise), source(b.squeeze), source(b.excite), source(b.project), b.residual}));
  }
  // Through its numbers, as programs travel.
  const std::vector<int64_t> numbers = effnet::cpu::to_numbers(compiled);
  std::string wrong;
  const effnet::cpu::Program program =
      effnet::cpu::from_numbers(numbers.data(), static_cast<int64_t>(numbers.size()), &wrong);
  if (!wrong.empty()) abort();
  const Lines weights(packer.bytes(), 0xff);
  const std::vector<effnet::cpu::Packing> packings = packer.packings(weights.begin);
  run_items(effnet::cpu::pack_step(packings), nullptr);
  effnet::cpu::NetworkCall call{};
  call.x = x.data(), call.x_dtype = StorageType::kFloat32;
  call.batch = batch, call.height = height, call.width = width, call.threads = threads;
  const int64_t pixels = height * width, strides[4] = {net.stem.in * pixels, pixels, width, 1};
  std::copy_n(strides, 4, call.x_strides);
  const int64_t size = effnet::cpu::plan_network(program, call).workspace_bytes;
  std::vector<float> out(static_cast<size_t>(batch * net.classifier.out), NAN);
  // NaN wherever something is read before it is written.
  const Lines workspace(size, 0xff);
  call.weights = weights.begin, call.out = out.data(), call.workspace = workspace.begin;
  const effnet::cpu::NetworkPlan plan = effnet::cpu::plan_network(program, call);
  const Lines scratch(plan.scratch_floats * static_cast<int64_t>(sizeof(float)), 0xff);
  for (const Step& step : plan.steps) run_items(step, reinterpret_cast<float*>(scratch.begin));
  return out;
}

}  // namespace network
