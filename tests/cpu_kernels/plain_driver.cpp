// Kernels of the baseline instruction set against plain loops in fp64, for processors on which there is no PyTorch to
// compare with. `driver SEED`, or `driver wrong`, which compares with the results of other weights.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/stencil/forward.h"
#include "network_problem.h"

namespace {

using effnet::Activation;
using effnet::StorageType;
using network::Layer;
using network::Map;
using product::BFloat16;

std::mt19937 generator;
int failures = 0;

int draw(int low, int high) { return low + static_cast<int>(generator() % unsigned(high - low + 1)); }

template <class T>
constexpr const char* kName = sizeof(T) == 4 ? "fp32" : "bf16";

struct Error {
  double largest = 0, error = 0;
  void add(float got, double truth) {
    largest = fmax(largest, fabs(truth));
    // Not fmax, which would forget a NaN.
    if (!(fabs(got - truth) <= error)) error = isnan(got) ? INFINITY : fabs(got - truth);
  }
  void check(const char* what, const char* dtype, double limit) const {
    if (error <= limit * largest) return;
    printf("%s, %s: error %.3e, largest value %.3e\n", what, dtype, error, largest);
    ++failures;
  }
};

// bfloat16 operands are exact, so both sum in fp32.
template <class T>
void check_product() {
  const product::Problem<T> p(generator);
  Error error;
  for (int64_t panel = 0; panel < p.gemm.panels.count; ++panel) {
    std::vector<float> out(static_cast<size_t>(p.pixels * product::kPanel), NAN);
    effnet::cpu::baseline::multiply(p.a.data(), p.gemm, p.first, p.pixels, p.weights.data(), panel, out.data());
    for (int64_t i = 0; i < p.pixels; ++i) {
      for (int64_t c = 0; c < p.columns(panel); ++c) error.add(out[i * product::kPanel + c], p.exact(panel, i, c));
    }
  }
  error.check("product", kName<T>, 2e-6);
}

// Values that bfloat16 holds exactly.
std::vector<float> random_values(int64_t count, float scale) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& x : values) {
    BFloat16 half;
    product::put(&half, normal(generator) * scale);
    x = product::as_float(half);
  }
  return values;
}

Layer layer(int64_t out, int64_t in, int64_t kernel, int64_t stride, Activation act) {
  const float scale = 1.5f / sqrtf(static_cast<float>(in * kernel * kernel));
  return {out, in, kernel, stride, act, random_values(out * in * kernel * kernel, scale), random_values(out, 0.25f)};
}

template <class T>
void check_depthwise() {
  const int64_t batch = draw(1, 2), channels = draw(1, 70), height = draw(1, 20), width = draw(1, 20);
  const Layer l = layer(channels, 1, 3 + 2 * draw(0, 2), draw(1, 2), static_cast<Activation>(draw(0, 6)));
  const std::vector<float> values = random_values(batch * height * width * channels, 1.0f);
  std::vector<T> x(values.size());
  for (size_t i = 0; i < x.size(); ++i) product::put(&x[i], values[i]);
  effnet::DepthwiseParams p{};
  const int64_t pad = l.kernel / 2;
  p.batch = batch, p.channels = channels, p.height = height, p.width = width;
  p.out_height = (height + 2 * pad - l.kernel) / l.stride + 1;
  p.out_width = (width + 2 * pad - l.kernel) / l.stride + 1;
  p.pad_left = p.pad_top = pad;
  p.x_col_stride = channels, p.x_row_stride = width * channels, p.x_batch_stride = height * width * channels;
  p.weight_channel_stride = l.kernel * l.kernel, p.weight_row_stride = l.kernel, p.weight_col_stride = 1;
  p.kernel = static_cast<int32_t>(l.kernel), p.stride = static_cast<int32_t>(l.stride), p.act = l.act;
  p.dtype = sizeof(T) == 4 ? StorageType::kFloat32 : StorageType::kBFloat16, p.weight_dtype = StorageType::kFloat32;
  std::vector<T> y(static_cast<size_t>(batch * p.out_height * p.out_width * channels));
  p.x = x.data(), p.weight = l.weight.data(), p.y = y.data(), p.shift = l.bias.data();
  const effnet::cpu::DepthwisePlan plan = effnet::cpu::plan_depthwise(p);
  std::vector<float> scratch(static_cast<size_t>(plan.scratch_floats) + 16, NAN);
  float* aligned = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64 / sizeof(float);
  effnet::cpu::baseline::depthwise_tasks(p, plan, 0, plan.tasks(p), aligned);
  Error error;
  for (int64_t n = 0; n < batch; ++n) {
    Map in(channels, height, width);
    for (int64_t i = 0; i < height * width * channels; ++i) {
      in.at(i % channels, i / channels / width, i / channels % width) = values[n * p.x_batch_stride + i];
    }
    Map out = convolve(in, l, true);
    for (int64_t i = 0; i < p.out_height * p.out_width * channels; ++i) {
      error.add(product::as_float(y[n * p.out_height * p.out_width * channels + i]),
                out.at(i % channels, i / channels / p.out_width, i / channels % p.out_width));
    }
  }
  error.check("depthwise", kName<T>, sizeof(T) == 4 ? 2e-6 : 0x1p-8);
}

network::Block block(int64_t in, int64_t ratio, int64_t out, int64_t kernel, int64_t stride, Activation act) {
  const int64_t wide = in * ratio, hidden = draw(1, 9);
  return {layer(wide, in, 1, 1, act),
          layer(wide, 1, kernel, stride, act),
          layer(hidden, wide, 1, 1, Activation::kSilu),
          layer(wide, hidden, 1, 1, Activation::kSigmoid),
          layer(out, wide, 1, 1, Activation::kNone),
          in == out && stride == 1};
}

void check_network(Activation act, bool wrong) {
  const int64_t width = draw(3, 30), next = draw(5, 60), batch = draw(1, 3), rows = draw(5, 30), columns = draw(5, 30);
  network::Network net{layer(width, 3, 3, 2, act),
                       {block(width, 6, width, 3, 1, act), block(width, 3, next, 5, 2, act)},
                       layer(70, next, 1, 1, Activation::kSilu),
                       layer(11, 70, 1, 1, Activation::kNone)};
  net.blocks.push_back(block(next, 2, next, 7, 1, act));
  const std::vector<float> x = random_values(batch * 3 * rows * columns, 1.0f);
  const std::vector<float> single = network::run(net, StorageType::kFloat32, x, batch, rows, columns, 2);
  const std::vector<float> half = network::run(net, StorageType::kBFloat16, x, batch, rows, columns, 2);
  Error fp32, bf16;
  if (wrong) net.blocks[0].depthwise.weight[4] += 0.25f;
  for (int64_t n = 0; n < batch; ++n) {
    Map in(3, rows, columns);
    for (size_t i = 0; i < in.data.size(); ++i) in.data[i] = x[n * in.data.size() + i];
    const std::vector<double> truth = exact(net, in);
    for (size_t i = 0; i < truth.size(); ++i) {
      fp32.add(single[n * truth.size() + i], truth[i]), bf16.add(half[n * truth.size() + i], truth[i]);
    }
  }
  fp32.check("network", "fp32", 1e-5);
  // A rounding of what is stored between layers is 2^-9, and there are nine of them in a row.
  bf16.check("network", "bf16", 0.03);
}

}  // namespace

int main(int, char** arguments) {
  const bool wrong = strcmp(arguments[1], "wrong") == 0;
  generator.seed(wrong ? 1u : static_cast<unsigned>(atoi(arguments[1])));
  for (int act = 0; act < effnet::kActivationCount; ++act) check_network(static_cast<Activation>(act), wrong);
  for (int i = 0; i < 60; ++i) {
    check_product<float>(), check_product<BFloat16>();
    check_depthwise<float>(), check_depthwise<BFloat16>();
  }
  printf("%d of 254 comparisons failed; %d lanes\n", failures, effnet::cpu::baseline::kLanes);
  return failures > 0 ? 1 : 0;
}
