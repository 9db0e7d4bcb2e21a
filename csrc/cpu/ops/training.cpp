// The CPU's training kernels as dispatcher ops: checks, allocation and threads; arithmetic is in the *_kernel.cpp
// files.
#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/isa/scratch.h"
#include "cpu/ops/checks.h"
#include "cpu/passes/band_sums.h"
#include "cpu/stencil/backward.h"

namespace effnet::cpu {
namespace {

// The tensors and vectors of one pass; they must outlive it.
class Pass {
 public:
  TrainingParams p{};

  Pass(const char* op, const Tensor& z, const char* name) : operands_(op, z, name), like_(z) {
    EFFNET_CHECK(z.dim() == 4, op, name, "rank 4 [N, C, H, W]", to_text(z));
    p.dtype = operands_.dtype;
    shape_ = {z.size(0), z.size(1), z.size(2), z.size(3)};
    p.batch = z.size(0), p.channels = z.size(1), p.rows = z.size(2) * z.size(3);
    p.plan = plan_bands(p.batch, p.rows);
    p.z = image(z, name);
  }

  // A tensor like z.
  const void* image(const Tensor& t, const char* name) { return operands_.image(t, name, shape_); }

  const float* vector(const OptionalTensor& t, const char* name, const Shape& shape) {
    return operands_.vector(t, name, shape);
  }
  const float* channels(const OptionalTensor& t, const char* name) { return vector(t, name, {p.channels}); }

  Tensor new_output() {
    Tensor out = new_image(like_, shape_);
    p.out = out.mutable_data_ptr();
    return out;
  }

  Tensor new_partial(int64_t parts) {
    Tensor partial = new_vector({p.tasks(), parts, p.channels});
    p.partial = partial.mutable_data_ptr<float>();
    return partial;
  }

  void run(TrainingTasks* kernel) const {
    torch::stable::parallel_for(0, p.tasks(), 1, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  }

 private:
  Operands operands_;
  const Tensor like_;
  Shape shape_;
};

Tensor channel_stats(const Tensor& z) {
  Pass pass("channel_stats", z, "z");
  Tensor partial = pass.new_partial(3);
  pass.run(EFFNET_SELECT_ISA(channel_stats_tasks));
  return partial;
}

Tensor batch_norm_reduce(const Tensor& dy, const Tensor& z, const Tensor& mean, const Tensor& invstd,
                         const OptionalTensor& row_scale, const OptionalTensor& scale, const OptionalTensor& shift,
                         int64_t act) {
  constexpr const char* op = "batch_norm_reduce";
  Pass pass(op, z, "z");
  TrainingParams& p = pass.p;
  p.dy = pass.image(dy, "dy");
  p.mean = pass.channels(mean, "mean");
  p.invstd = pass.channels(invstd, "invstd");
  p.row_scale = pass.vector(row_scale, "row_scale", {p.batch});
  p.scale = pass.channels(scale, "scale");
  p.shift = pass.channels(shift, "shift");
  p.act = check_activation(act, op, "act");
  Tensor partial = pass.new_partial(2);
  pass.run(EFFNET_SELECT_ISA(batch_norm_reduce_tasks));
  return partial;
}

Tensor batch_norm_input_grad(const Tensor& dy, const Tensor& z, const Tensor& a, const Tensor& b, const Tensor& c,
                             const Tensor& mean, const OptionalTensor& row_scale, const OptionalTensor& scale,
                             const OptionalTensor& shift, int64_t act) {
  Pass pass("batch_norm_input_grad", z, "z");
  TrainingParams& p = pass.p;
  p.dy = pass.image(dy, "dy");
  p.a = pass.channels(a, "a");
  p.b = pass.channels(b, "b");
  p.c = pass.channels(c, "c");
  p.mean = pass.channels(mean, "mean");
  p.row_scale = pass.vector(row_scale, "row_scale", {p.batch});
  p.scale = pass.channels(scale, "scale");
  p.shift = pass.channels(shift, "shift");
  p.act = check_activation(act, "batch_norm_input_grad", "act");
  Tensor dz = pass.new_output();
  pass.run(EFFNET_SELECT_ISA(batch_norm_input_grad_tasks));
  return dz;
}

std::tuple<Tensor, Tensor> gate_and_norm_sums(const Tensor& g, const Tensor& x, const Tensor& scale,
                                              const Tensor& shift, int64_t act, const Tensor& mean,
                                              const Tensor& invstd, const OptionalTensor& gate, bool write) {
  constexpr const char* op = "gate_and_norm_sums";
  Pass pass(op, x, "x");
  TrainingParams& p = pass.p;
  p.dy = pass.image(g, "g");
  p.scale = pass.channels(scale, "scale");
  p.shift = pass.channels(shift, "shift");
  p.mean = pass.channels(mean, "mean");
  p.invstd = pass.channels(invstd, "invstd");
  p.gate = pass.vector(gate, "gate", {p.batch, p.channels});
  p.act = check_activation(act, op, "act");
  Tensor activation = write ? pass.new_output() : new_vector({0});
  const Tensor partial = pass.new_partial(5);
  pass.run(EFFNET_SELECT_ISA(gate_and_norm_sums_tasks));
  Tensor sums = new_vector({5, p.batch, p.channels});
  merge_bands(p.partial, p.batch, p.plan.bands, 5, p.channels, sums.mutable_data_ptr<float>());
  return {sums, activation};
}

// dweight[c, row, col] = sum over groups of partial[group, row, slot of col, c], always in the same order.
void merge_dw(const DepthwiseBackwardParams& p, const DepthwiseBackwardPlan& plan, float* dweight) {
  const int64_t kernel = p.kernel;
  for (int64_t col = 0; col < kernel; ++col) {
    const int64_t phase = col % p.stride;
    const int64_t taps = (kernel - phase + p.stride - 1) / p.stride;
    const int64_t slot = (phase == 0 ? 0 : (kernel + 1) / 2) + taps - 1 - col / p.stride;
    for (int64_t row = 0; row < kernel; ++row) {
      for (int64_t c = 0; c < p.channels; ++c) {
        const float* from = plan.partial_dw + (row * kernel + slot) * p.channels + c;
        float sum = 0.0f;
        for (int64_t group = 0; group < plan.groups; ++group) sum += from[group * kernel * kernel * p.channels];
        dweight[(c * kernel + row) * kernel + col] = sum;
      }
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> depthwise_backward(const TensorList& incoming, int64_t act, const TensorList& source,
                                                      int64_t in_act, const Tensor& weight, int64_t stride,
                                                      const Shape& padding, const OptionalTensor& residual_grad,
                                                      bool need_dx, bool need_dw, int64_t plan_number, bool merge) {
  constexpr const char* op = "depthwise_backward";
  EFFNET_CHECK(merge, op, "merge", "true (the CPU's gradient is whole)", "false");
  EFFNET_CHECK(plan_number == -1, op, "plan", "-1 (the CPU has one plan a shape)", plan_number);
  const Tensor& x = leading_tensor(Failure{op}, source, "source.x");
  EFFNET_CHECK(x.dim() == 4, op, "source.x", "rank 4 [N, C, H, W]", to_text(x));
  Operands operands(op, x, "source.x");
  DepthwiseBackwardParams p{};
  p.dtype = operands.dtype;
  p.batch = x.size(0), p.channels = x.size(1), p.height = x.size(2), p.width = x.size(3);
  const StencilShape shape = check_stencil(op, x, weight, stride, padding);
  p.weight_dtype = check_dtype(weight, op, "weight");
  p.kernel = shape.kernel, p.stride = static_cast<int32_t>(stride);
  p.out_height = shape.out_height, p.out_width = shape.out_width;
  p.pad_left = padding[0], p.pad_top = padding[2];
  p.weight = weight.const_data_ptr();
  p.weight_channel_stride = weight.stride(0);
  p.weight_row_stride = weight.stride(2), p.weight_col_stride = weight.stride(3);

  const Shape in_shape = {p.batch, p.channels, p.height, p.width};
  read_record(p.incoming, operands, incoming, Shape{p.batch, p.channels, p.out_height, p.out_width});
  read_record(p.source, operands, source, in_shape);
  p.incoming.act = check_activation(act, op, "incoming.act");
  p.source.act = check_activation(in_act, op, "source.act");
  p.residual_grad = operands.image(residual_grad, "residual_grad", in_shape);
  EFFNET_CHECK(p.source.gate == nullptr, op, "source.gate", "None (only pointwise has one)", "a tensor");
  const bool sums = p.source.scale != nullptr;
  EFFNET_CHECK(!sums || (p.source.norm_mean != nullptr && p.source.invstd != nullptr), op, "source.norm",
               "vectors, for the sums that source.affine asks for", "None");

  DepthwiseBackwardPlan plan = plan_depthwise_backward(p);
  const bool writes_dx = need_dx || sums;
  Tensor dx = writes_dx ? new_image(x, in_shape) : new_vector({0});
  if (writes_dx) p.dx = dx.mutable_data_ptr();
  Tensor partial_sums = new_vector(sums ? Shape{plan.groups, 2, p.channels} : Shape{0});
  if (sums) plan.partial_sums = partial_sums.mutable_data_ptr<float>();
  const int64_t taps = int64_t{p.kernel} * p.kernel;
  Tensor partial_dw = new_vector(need_dw ? Shape{plan.groups, taps, p.channels} : Shape{0});
  Tensor dweight = new_vector(need_dw ? Shape{p.channels, 1, p.kernel, p.kernel} : Shape{0});
  if (need_dw) plan.partial_dw = partial_dw.mutable_data_ptr<float>();
  const auto kernel = EFFNET_SELECT_ISA(depthwise_backward_tasks);
  torch::stable::parallel_for(0, plan.tasks(), 1, [&](int64_t begin, int64_t end) {
    kernel(p, plan, begin, end, thread_scratch(plan.scratch_floats));
  });
  if (need_dw) merge_dw(p, plan, dweight.mutable_data_ptr<float>());
  return {dx, dweight, partial_sums};
}

}  // namespace
}  // namespace effnet::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CPU, m) {
  m.impl("channel_stats", TORCH_BOX(&effnet::cpu::channel_stats));
  m.impl("batch_norm_reduce", TORCH_BOX(&effnet::cpu::batch_norm_reduce));
  m.impl("batch_norm_input_grad", TORCH_BOX(&effnet::cpu::batch_norm_input_grad));
  m.impl("gate_and_norm_sums", TORCH_BOX(&effnet::cpu::gate_and_norm_sums));
  m.impl("depthwise_backward", TORCH_BOX(&effnet::cpu::depthwise_backward));
}
