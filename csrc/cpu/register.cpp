// The CPU kernels as dispatcher ops: checks, allocation and threads are here, arithmetic is in the *_kernel.cpp files.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "depthwise.h"
#include "elementwise.h"
#include "isa.h"

namespace effnet::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

// One line that names op, argument, what was expected and what came.
#define EFFNET_CHECK(condition, op, argument, expected, ...) \
  STD_TORCH_CHECK(condition, "effnet_fast.", op, ": ", argument, ": expected ", expected, ", got ", __VA_ARGS__)

std::string to_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(t.size(i));
  return text + "]";
}

DType check_dtype(const Tensor& t, const char* op, const char* argument) {
  const ScalarType type = t.scalar_type();
  EFFNET_CHECK(t.is_cpu(), op, argument, "a CPU tensor", "a tensor on another device");
  EFFNET_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, op, argument, "float32 or bfloat16",
               torch::headeronly::toString(type));
  return type == ScalarType::Float ? DType::kFloat32 : DType::kBFloat16;
}

Activation check_activation(int64_t act, const char* op, const char* argument) {
  EFFNET_CHECK(act >= 0 && act < kActivationCount, op, argument, "an activation number below 7", act);
  return static_cast<Activation>(act);
}

void check_shape(const Tensor& t, const Shape& shape, const char* op, const char* argument) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  std::string expected;
  for (size_t i = 0; i < shape.size(); ++i) {
    same = same && t.size(static_cast<int64_t>(i)) == shape[i];
    expected += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  EFFNET_CHECK(same, op, argument, "shape [" + expected + "]", to_text(t));
}

// Small fp32 operands (vectors, gates), made dense where they are not; they must outlive the kernel, hence the copy.
struct Vectors {
  std::vector<Tensor> kept;

  const float* pointer(const OptionalTensor& t, const Shape& shape, const char* op, const char* argument) {
    if (!t.has_value()) return nullptr;
    check_shape(*t, shape, op, argument);
    EFFNET_CHECK(t->is_cpu() && t->scalar_type() == ScalarType::Float, op, argument, "a float32 CPU tensor",
                 torch::headeronly::toString(t->scalar_type()));
    kept.push_back(t->is_contiguous() ? *t : torch::stable::contiguous(*t));
    return kept.back().const_data_ptr<float>();
  }
};

const torch::stable::Device kCpu(torch::headeronly::DeviceType::CPU);

Tensor new_vector(const Shape& shape) { return torch::stable::empty(shape, ScalarType::Float, std::nullopt, kCpu); }

Tensor new_image(const Tensor& like, const Shape& shape) {
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, kCpu, std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

bool is_dense_nhwc(const Tensor& t) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  return (c == 1 || t.stride(1) == 1) && (w == 1 || t.stride(3) == c) && (h == 1 || t.stride(2) == w * c) &&
         (t.size(0) == 1 || t.stride(0) == h * w * c);
}

// NHWC with nothing between the elements. contiguous() alone may leave ambiguous strides, which is_dense_nhwc ignores.
Tensor dense_nhwc(const Tensor& t) {
  return is_dense_nhwc(t) ? t : torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
}

// pooled[n, c] = sum over bands of partial[n, band, c] / count, always in the same order.
void merge_sums(const float* partial, int64_t batch, int64_t bands, int64_t channels, int64_t count, float* pooled) {
  const float divisor = static_cast<float>(count);
  for (int64_t n = 0; n < batch; ++n) {
    float* out = pooled + n * channels;
    std::fill(out, out + channels, 0.0f);
    for (int64_t band = 0; band < bands; ++band) {
      const float* row = partial + (n * bands + band) * channels;
      for (int64_t c = 0; c < channels; ++c) out[c] += row[c];
    }
    for (int64_t c = 0; c < channels; ++c) out[c] /= divisor;
  }
}

std::tuple<Tensor, Tensor> depthwise(const Tensor& x_in, const Tensor& weight, int64_t stride,
                                     const std::vector<int64_t>& padding, const OptionalTensor& in_scale,
                                     const OptionalTensor& in_shift, int64_t in_act, const OptionalTensor& scale,
                                     const OptionalTensor& shift, int64_t act, bool pool) {
  constexpr const char* op = "depthwise";
  EFFNET_CHECK(x_in.dim() == 4, op, "x", "rank 4 [N, C, H, W]", to_text(x_in));
  DepthwiseParams p{};
  p.dtype = check_dtype(x_in, op, "x");
  p.weight_dtype = check_dtype(weight, op, "weight");
  p.batch = x_in.size(0), p.channels = x_in.size(1), p.height = x_in.size(2), p.width = x_in.size(3);
  EFFNET_CHECK(weight.dim() == 4, op, "weight", "rank 4 [C, 1, k, k]", to_text(weight));
  p.kernel = static_cast<int32_t>(weight.size(2));
  EFFNET_CHECK(p.kernel == 3 || p.kernel == 5 || p.kernel == 7, op, "weight", "kernel size 3, 5 or 7", p.kernel);
  check_shape(weight, {p.channels, 1, p.kernel, p.kernel}, op, "weight");
  EFFNET_CHECK(stride == 1 || stride == 2, op, "stride", "1 or 2", stride);
  p.stride = static_cast<int32_t>(stride);
  EFFNET_CHECK(padding.size() == 4, op, "padding", "4 numbers (left, right, top, bottom)", padding.size());
  EFFNET_CHECK(*std::min_element(padding.begin(), padding.end()) >= 0, op, "padding", "numbers >= 0",
               *std::min_element(padding.begin(), padding.end()));
  p.pad_left = padding[0], p.pad_top = padding[2];
  const int64_t padded_width = p.width + padding[0] + padding[1];
  const int64_t padded_height = p.height + padding[2] + padding[3];
  EFFNET_CHECK(padded_width >= p.kernel && padded_height >= p.kernel, op, "x",
               "at least the kernel's " + std::to_string(p.kernel) + " rows and columns after padding",
               std::to_string(padded_height) + " x " + std::to_string(padded_width));
  p.out_width = (padded_width - p.kernel) / stride + 1;
  p.out_height = (padded_height - p.kernel) / stride + 1;
  p.in_act = check_activation(in_act, op, "in_act");
  p.act = check_activation(act, op, "act");

  // Rows and columns may be strided (a slice of a larger image); channels must be adjacent.
  const Tensor x = p.channels <= 1 || x_in.stride(1) == 1
                       ? x_in
                       : torch::stable::contiguous(x_in, torch::headeronly::MemoryFormat::ChannelsLast);
  p.x = x.const_data_ptr();
  p.x_batch_stride = x.stride(0), p.x_row_stride = x.stride(2), p.x_col_stride = x.stride(3);
  p.weight = weight.const_data_ptr();
  p.weight_channel_stride = weight.stride(0);
  p.weight_row_stride = weight.stride(2), p.weight_col_stride = weight.stride(3);
  Vectors vectors;
  p.in_scale = vectors.pointer(in_scale, {p.channels}, op, "in_scale");
  p.in_shift = vectors.pointer(in_shift, {p.channels}, op, "in_shift");
  p.scale = vectors.pointer(scale, {p.channels}, op, "scale");
  p.shift = vectors.pointer(shift, {p.channels}, op, "shift");

  DepthwisePlan plan = plan_depthwise(p);
  Tensor y = new_image(x, {p.batch, p.channels, p.out_height, p.out_width});
  Tensor pooled = new_vector(pool ? Shape{p.batch, p.channels} : Shape{0});
  Tensor partial = new_vector(pool ? Shape{p.batch, plan.bands, p.channels} : Shape{0});
  p.y = y.mutable_data_ptr();
  if (pool) {
    p.pooled = pooled.mutable_data_ptr<float>();
    plan.partial_sums = partial.mutable_data_ptr<float>();
  }
  const auto kernel = EFFNET_SELECT_ISA(depthwise_tasks);
  torch::stable::parallel_for(0, plan.tasks(p), 1, [&](int64_t begin, int64_t end) {
    // A thread keeps its scratch memory from call to call: fresh pages would cost more than the convolution.
    thread_local std::unique_ptr<float[], void (*)(float*)> memory(
        nullptr, [](float* owned) { ::operator delete[](owned, std::align_val_t{64}); });
    thread_local int64_t floats = 0;
    if (floats < plan.scratch_floats) {
      memory.reset(static_cast<float*>(
          ::operator new[](sizeof(float) * static_cast<size_t>(plan.scratch_floats), std::align_val_t{64})));
      floats = plan.scratch_floats;
    }
    kernel(p, plan, begin, end, memory.get());
  });
  if (pool) merge_sums(plan.partial_sums, p.batch, plan.bands, p.channels, p.out_height * p.out_width, p.pooled);
  return {y, pooled};
}

// act(scale * x + shift) * multiplier + residual into `y`: x itself, a tensor to be made, or nowhere.
enum class Output { kInPlace, kNew, kNone };

std::tuple<Tensor, Tensor> run_elementwise(const Tensor& x_in, const OptionalTensor& scale, const OptionalTensor& shift,
                                           int64_t act, const OptionalTensor& multiplier,
                                           const OptionalTensor& residual, bool pool, Output output) {
  constexpr const char* op = "elementwise";
  EFFNET_CHECK(x_in.dim() == 4, op, "x", "rank 4 [N, C, H, W]", to_text(x_in));
  ElementwiseParams p{};
  p.dtype = check_dtype(x_in, op, "x");
  p.batch = x_in.size(0), p.channels = x_in.size(1), p.rows = x_in.size(2) * x_in.size(3);
  p.act = check_activation(act, op, "act");
  EFFNET_CHECK(output != Output::kInPlace || is_dense_nhwc(x_in), op, "x", "channels_last memory", "other strides");
  const Tensor x = dense_nhwc(x_in);
  Vectors vectors;
  p.scale = vectors.pointer(scale, {p.channels}, op, "scale");
  p.shift = vectors.pointer(shift, {p.channels}, op, "shift");
  p.multiplier = vectors.pointer(multiplier, {p.batch, p.channels}, op, "multiplier");
  std::optional<Tensor> dense_residual;
  if (residual.has_value()) {
    check_shape(*residual, {p.batch, p.channels, x.size(2), x.size(3)}, op, "residual");
    EFFNET_CHECK(check_dtype(*residual, op, "residual") == p.dtype, op, "residual", "the dtype of x", "another");
    dense_residual = dense_nhwc(*residual);
    p.residual = dense_residual->const_data_ptr();
  }
  p.x = x.const_data_ptr();
  Tensor y = output == Output::kInPlace ? x_in
             : output == Output::kNew   ? new_image(x, {p.batch, p.channels, x.size(2), x.size(3)})
                                        : new_vector({0});
  Tensor pooled = new_vector(pool ? Shape{p.batch, p.channels} : Shape{0});
  p.pooled = pool ? pooled.mutable_data_ptr<float>() : nullptr;
  ElementwisePlan plan = plan_elementwise(p);
  Tensor partial = new_vector(pool ? Shape{p.batch, plan.bands, p.channels} : Shape{0});
  p.y = output == Output::kNone ? nullptr : y.mutable_data_ptr();
  plan.partial_sums = pool ? partial.mutable_data_ptr<float>() : nullptr;
  const auto kernel = EFFNET_SELECT_ISA(elementwise_tasks);
  torch::stable::parallel_for(0, plan.tasks(p), 1, [&](int64_t begin, int64_t end) { kernel(p, plan, begin, end); });
  if (pool) merge_sums(plan.partial_sums, p.batch, plan.bands, p.channels, p.rows, p.pooled);
  return {y, pooled};
}

std::tuple<Tensor, Tensor> elementwise(const Tensor& x, const OptionalTensor& scale, const OptionalTensor& shift,
                                       int64_t act, const OptionalTensor& multiplier, const OptionalTensor& residual,
                                       bool pool, bool write) {
  return run_elementwise(x, scale, shift, act, multiplier, residual, pool, write ? Output::kNew : Output::kNone);
}

Tensor elementwise_in_place(const Tensor& x, const OptionalTensor& scale, const OptionalTensor& shift, int64_t act,
                            const OptionalTensor& multiplier, const OptionalTensor& residual, bool pool) {
  return std::get<1>(run_elementwise(x, scale, shift, act, multiplier, residual, pool, Output::kInPlace));
}

Tensor linear(const Tensor& in, const Tensor& weight_in, const OptionalTensor& bias, Activation act, int64_t outputs,
              const char* weight_name, const char* bias_name) {
  constexpr const char* op = "squeeze_excite";
  LinearParams p{};
  p.batch = in.size(0), p.inputs = in.size(1), p.outputs = outputs, p.act = act;
  p.dtype = check_dtype(weight_in, op, weight_name);
  check_shape(weight_in, {outputs, p.inputs}, op, weight_name);
  const Tensor weight = weight_in.is_contiguous() ? weight_in : torch::stable::contiguous(weight_in);
  p.weight = weight.const_data_ptr();
  std::optional<Tensor> dense_bias;
  if (bias.has_value()) {
    check_shape(*bias, {outputs}, op, bias_name);
    EFFNET_CHECK(check_dtype(*bias, op, bias_name) == p.dtype, op, bias_name, "the dtype of its weight", "another");
    dense_bias = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
    p.bias = dense_bias->const_data_ptr();
  }
  Tensor out = new_vector({p.batch, outputs});
  p.in = in.const_data_ptr<float>();
  p.out = out.mutable_data_ptr<float>();
  const auto kernel = EFFNET_SELECT_ISA(linear_tasks);
  // Below 64k multiply-adds a second thread costs more than it saves.
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(p.inputs, 1));
  torch::stable::parallel_for(0, p.batch * outputs, grain, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return out;
}

Tensor squeeze_excite(const Tensor& pooled, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
                      const OptionalTensor& b2, int64_t act, int64_t gate_act) {
  constexpr const char* op = "squeeze_excite";
  EFFNET_CHECK(pooled.dim() == 2, op, "pooled", "rank 2 [N, C]", to_text(pooled));
  EFFNET_CHECK(pooled.is_cpu() && pooled.scalar_type() == ScalarType::Float, op, "pooled", "a float32 CPU tensor",
               torch::headeronly::toString(pooled.scalar_type()));
  EFFNET_CHECK(w1.dim() == 2, op, "w1", "rank 2 [R, C]", to_text(w1));
  const Activation hidden_act = check_activation(act, op, "act");
  const Activation last_act = check_activation(gate_act, op, "gate_act");
  const Tensor in = pooled.is_contiguous() ? pooled : torch::stable::contiguous(pooled);
  const Tensor hidden = linear(in, w1, b1, hidden_act, w1.size(0), "w1", "b1");
  return linear(hidden, w2, b2, last_act, pooled.size(1), "w2", "b2");
}

// Rows mean, var, invstd, scale, shift of one [5, C] tensor.
Tensor batch_norm_fold(const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean, const Tensor& var,
                       double eps) {
  constexpr const char* op = "batch_norm_fold";
  EFFNET_CHECK(mean.dim() == 1, op, "mean", "rank 1 [C]", to_text(mean));
  const int64_t channels = mean.size(0);
  Vectors vectors;
  const float* weights = vectors.pointer(weight, {channels}, op, "weight");
  const float* biases = vectors.pointer(bias, {channels}, op, "bias");
  const float* means = vectors.pointer(mean, {channels}, op, "mean");
  const float* vars = vectors.pointer(var, {channels}, op, "var");
  Tensor out = new_vector({5, channels});
  float* row = out.mutable_data_ptr<float>();
  for (int64_t c = 0; c < channels; ++c) {
    const float invstd = 1.0f / std::sqrt(vars[c] + static_cast<float>(eps));
    const float scale = weights == nullptr ? invstd : weights[c] * invstd;
    row[c] = means[c];
    row[channels + c] = vars[c];
    row[2 * channels + c] = invstd;
    row[3 * channels + c] = scale;
    row[4 * channels + c] = (biases == nullptr ? 0.0f : biases[c]) - means[c] * scale;
  }
  return out;
}

// The instruction set in use, after switching to `requested` unless that is negative.
int64_t cpu_isa(int64_t requested) {
  if (requested >= 0) set_active_isa(static_cast<Isa>(std::min<int64_t>(requested, kIsaCount - 1)));
  return static_cast<int64_t>(active_isa());
}

}  // namespace
}  // namespace effnet::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CPU, m) {
  m.impl("depthwise", TORCH_BOX(&effnet::cpu::depthwise));
  m.impl("elementwise", TORCH_BOX(&effnet::cpu::elementwise));
  m.impl("elementwise_", TORCH_BOX(&effnet::cpu::elementwise_in_place));
  m.impl("squeeze_excite", TORCH_BOX(&effnet::cpu::squeeze_excite));
  m.impl("batch_norm_fold", TORCH_BOX(&effnet::cpu::batch_norm_fold));
}

// No tensor among its arguments, so no device to dispatch on.
STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&effnet::cpu::cpu_isa));
}
