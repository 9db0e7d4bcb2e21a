// The CPU kernels as dispatcher ops: checks, allocation and threads are here, arithmetic is in the *_kernel.cpp files.
#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/isa/isa.h"
#include "cpu/isa/scratch.h"
#include "cpu/ops/checks.h"
#include "cpu/passes/elementwise.h"
#include "cpu/stencil/forward.h"

namespace effnet::cpu {
namespace {

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

std::tuple<Tensor, Tensor, Tensor> depthwise(const Tensor& x_in, const Tensor& weight, int64_t stride,
                                             const std::vector<int64_t>& padding, const OptionalTensor& in_scale,
                                             const OptionalTensor& in_shift, int64_t in_act,
                                             const OptionalTensor& scale, const OptionalTensor& shift, int64_t act,
                                             bool pool, bool stats, int64_t plan_number, const OptionalTensor& mean,
                                             const OptionalTensor& var, double /*eps*/) {
  constexpr const char* op = "depthwise";
  EFFNET_CHECK(!mean.has_value() && !var.has_value(), op, "mean, var", "None (the CPU takes a folded affine)",
               "tensors");
  EFFNET_CHECK(plan_number == -1, op, "plan", "-1 (the CPU has one plan a shape)", plan_number);
  EFFNET_CHECK(x_in.dim() == 4, op, "x", "rank 4 [N, C, H, W]", to_text(x_in));
  DepthwiseParams p{};
  p.dtype = check_dtype(x_in, op, "x");
  p.weight_dtype = check_dtype(weight, op, "weight");
  p.batch = x_in.size(0), p.channels = x_in.size(1), p.height = x_in.size(2), p.width = x_in.size(3);
  const StencilShape shape = check_stencil(op, x_in, weight, stride, padding);
  p.kernel = shape.kernel, p.stride = static_cast<int32_t>(stride);
  p.out_height = shape.out_height, p.out_width = shape.out_width;
  p.pad_left = padding[0], p.pad_top = padding[2];
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
  Tensor moments = new_vector(stats ? Shape{p.batch * plan.bands, 3, p.channels} : Shape{0});
  if (stats) plan.partial_stats = moments.mutable_data_ptr<float>();
  const auto kernel = EFFNET_SELECT_ISA(depthwise_tasks);
  torch::stable::parallel_for(0, plan.tasks(p), 1, [&](int64_t begin, int64_t end) {
    kernel(p, plan, begin, end, thread_scratch(plan.scratch_floats));
  });
  if (pool) merge_sums(plan.partial_sums, p.batch, plan.bands, p.channels, p.out_height * p.out_width, p.pooled);
  return {y, pooled, moments};
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
  m.impl("depthwise_forward", TORCH_BOX(&effnet::cpu::depthwise));
  m.impl("elementwise", TORCH_BOX(&effnet::cpu::elementwise));
  m.impl("elementwise_", TORCH_BOX(&effnet::cpu::elementwise_in_place));
  m.impl("squeeze_excite", TORCH_BOX(&effnet::cpu::squeeze_excite));
  m.impl("batch_norm_fold", TORCH_BOX(&effnet::cpu::batch_norm_fold));
}

// No tensor among its arguments, so no device to dispatch on.
STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&effnet::cpu::cpu_isa));
}
