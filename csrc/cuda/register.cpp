// The dispatcher ops of the `_cuda` library: checks, allocation, plan, stream, launch. The only file that includes
// torch.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "checks.h"
#include "depthwise_host.h"
#include "squeeze_excite.h"

namespace effnet::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

DeviceLimits current_limits() {
  DeviceLimits limits{};
  int device = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  limits.multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  limits.shared_per_block = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.shared_per_multiprocessor = ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return limits;
}

DepthwiseShape depthwise_shape(const Checks& checks, const Tensor& x, const Tensor& weight, int64_t stride,
                               const Shape& padding) {
  if (x.dim() != 4) checks.fail("x", "4 dimensions", to_text(shape_of(x)));
  if (weight.dim() != 4) checks.fail("weight", "4 dimensions", to_text(shape_of(weight)));
  const int64_t kernel = weight.size(3);
  if (kernel != 3 && kernel != 5 && kernel != 7) checks.fail("weight", "kernel size 3, 5 or 7", std::to_string(kernel));
  if (stride != 1 && stride != 2) checks.fail("stride", "1 or 2", std::to_string(stride));
  bool negative = padding.size() != 4;
  for (const int64_t side : padding) negative = negative || side < 0;
  if (negative) checks.fail("padding", "four sizes that are not negative", to_text(padding));
  checks.activations(x, "x", x.scalar_type(), shape_of(x));
  checks.contiguous(weight, "weight", x.scalar_type(), {x.size(1), 1, kernel, kernel});

  DepthwiseShape s{};
  s.batch = checks.size(x.size(0), "x");
  s.channels = checks.size(x.size(1), "x");
  s.height = checks.size(x.size(2), "x");
  s.width = checks.size(x.size(3), "x");
  s.kernel = static_cast<int>(kernel);
  s.stride = static_cast<int>(stride);
  s.left = checks.size(padding[0], "padding");
  s.top = checks.size(padding[2], "padding");
  const int64_t height = checks.size(s.height + s.top + padding[3], "padding") - kernel;
  const int64_t width = checks.size(s.width + s.left + padding[1], "padding") - kernel;
  if (height < 0 || width < 0)
    checks.fail("x", "an input at least as large as the kernel, with padding", to_text(shape_of(x)));
  s.out_height = static_cast<int>(height / stride + 1);
  s.out_width = static_cast<int>(width / stride + 1);
  return s;
}

DepthwisePlan plan_for(const Checks& checks, const PlannerRequest& request, int64_t index) {
  DepthwisePlan plan{};
  if (!choose_plan(request, current_limits(), index, &plan)) {
    checks.fail("plan", "the number of a plan that fits the device, or -1", std::to_string(index));
  }
  return plan;
}

std::tuple<Tensor, Tensor, Tensor> depthwise_forward_op(const Tensor& x, const Tensor& weight, int64_t stride,
                                                        const Shape& padding, const OptionalTensor& in_scale,
                                                        const OptionalTensor& in_shift, int64_t in_act,
                                                        const OptionalTensor& scale, const OptionalTensor& shift,
                                                        int64_t act, bool pool, bool stats, int64_t plan) {
  const Checks checks("depthwise", x);
  const StorageType type = checks.storage(x, "x");
  DepthwiseForwardParams p{};
  p.shape = depthwise_shape(checks, x, weight, stride, padding);
  const DepthwiseShape& s = p.shape;
  const Shape channels = {s.channels};
  p.in_scale = checks.vector(in_scale, "in_affine", channels);
  p.in_shift = checks.vector(in_shift, "in_affine", channels);
  p.scale = checks.vector(scale, "affine", channels);
  p.shift = checks.vector(shift, "affine", channels);
  p.in_act = checks.activation(in_act, "in_act");
  p.act = checks.activation(act, "act");

  const DeviceGuard guard(x.get_device_index());
  Tensor y = new_activations(x, {s.batch, s.channels, s.out_height, s.out_width});
  Tensor pooled = new_vector(x, pool ? Shape{s.batch, s.channels} : Shape{0});
  if (s.batch == 0 || s.channels == 0) return {y, pooled, new_vector(x, {0, 3, s.channels})};

  p.plan = plan_for(checks, forward_request(s, type), plan);
  Tensor moments = new_vector(x, {stats ? p.plan.partial_rows() : 0, 3, s.channels});
  const int64_t tiles = p.plan.tiles();
  Tensor partials = pool && tiles > 1 ? new_vector(x, {tiles, s.batch, s.channels}) : pooled;
  p.x = x.const_data_ptr();
  p.weight = weight.const_data_ptr();
  p.y = y.mutable_data_ptr();
  p.pooled = pool ? floats(partials) : nullptr;
  p.stats = stats ? floats(moments) : nullptr;
  const cudaStream_t stream = current_stream(x);
  STD_CUDA_CHECK(depthwise_forward(p, type, stream));
  if (pool && tiles > 1)
    STD_CUDA_CHECK(merge_rows(p.pooled, floats(pooled), tiles, 1, static_cast<int64_t>(s.batch) * s.channels, stream));
  return {y, pooled, moments};
}

std::tuple<Tensor, Tensor, Tensor> depthwise_backward_op(
    const Tensor& dy, const Tensor& x, const Tensor& weight, int64_t stride, const Shape& padding,
    const OptionalTensor& z, const OptionalTensor& scale, const OptionalTensor& shift, int64_t act,
    const OptionalTensor& gate, const OptionalTensor& pool_grad, const OptionalTensor& grad_a,
    const OptionalTensor& grad_b, const OptionalTensor& grad_c, const OptionalTensor& grad_mean,
    const OptionalTensor& in_scale, const OptionalTensor& in_shift, int64_t in_act, const OptionalTensor& in_mean,
    const OptionalTensor& in_invstd, const OptionalTensor& residual_grad, bool need_dx, bool need_dw, int64_t plan) {
  const Checks checks("depthwise_backward", x);
  const StorageType type = checks.storage(x, "x");
  DepthwiseBackwardParams p{};
  p.shape = depthwise_shape(checks, x, weight, stride, padding);
  const DepthwiseShape& s = p.shape;
  const Shape channels = {s.channels}, images = {s.batch, s.channels};
  const Shape outputs = {s.batch, s.channels, s.out_height, s.out_width};
  checks.activations(dy, "dy", x.scalar_type(), outputs);
  if (z.has_value()) checks.activations(*z, "z", x.scalar_type(), outputs);
  if (residual_grad.has_value()) checks.activations(*residual_grad, "residual_grad", x.scalar_type(), shape_of(x));
  p.scale = checks.vector(scale, "affine", channels);
  p.shift = checks.vector(shift, "affine", channels);
  p.act = checks.activation(act, "act");
  p.gate = checks.vector(gate, "gate", images);
  p.pool_grad = checks.vector(pool_grad, "pool_grad", images);
  p.grad_a = checks.vector(grad_a, "grad", channels);
  p.grad_b = checks.vector(grad_b, "grad", channels);
  p.grad_c = checks.vector(grad_c, "grad", channels);
  p.grad_mean = checks.vector(grad_mean, "grad", channels);
  p.in_scale = checks.vector(in_scale, "in_affine", channels);
  p.in_shift = checks.vector(in_shift, "in_affine", channels);
  p.in_act = checks.activation(in_act, "in_act");
  p.in_mean = checks.vector(in_mean, "in_norm", channels);
  p.in_invstd = checks.vector(in_invstd, "in_norm", channels);
  const bool sums = in_scale.has_value();
  if (sums && (p.in_mean == nullptr || p.in_invstd == nullptr)) checks.fail("in_norm", "vectors, for the sums", "None");
  need_dx = need_dx || sums;

  const DeviceGuard guard(x.get_device_index());
  const int64_t taps = static_cast<int64_t>(s.kernel) * s.kernel;
  Tensor dx = need_dx ? new_activations(x, shape_of(x)) : new_vector(x, {0});
  Tensor dweight = new_vector(x, need_dw ? Shape{s.channels, 1, s.kernel, s.kernel} : Shape{0});
  if (x.numel() == 0 || !(need_dx || need_dw)) {
    return {dx, torch::stable::fill_(dweight, 0.0), new_vector(x, {0, 2, s.channels})};
  }

  p.plan = plan_for(checks, backward_request(s, type, need_dx, need_dw, z.has_value()), plan);
  const int64_t rows = p.plan.partial_rows();
  Tensor sum_rows = new_vector(x, {sums ? rows : 0, 2, s.channels});
  Tensor partials = new_vector(x, {need_dw ? rows : 0, taps, s.channels});
  p.dy = dy.const_data_ptr();
  p.z = z.has_value() ? z->const_data_ptr() : nullptr;
  p.x = x.const_data_ptr();
  p.weight = weight.const_data_ptr();
  p.residual = residual_grad.has_value() && !sums ? residual_grad->const_data_ptr() : nullptr;
  p.dx = need_dx ? dx.mutable_data_ptr() : nullptr;
  p.dweight = need_dw ? floats(partials) : nullptr;
  p.sums = sums ? floats(sum_rows) : nullptr;
  const cudaStream_t stream = current_stream(x);
  STD_CUDA_CHECK(depthwise_backward(p, type, stream));
  if (need_dw) STD_CUDA_CHECK(merge_rows(p.dweight, floats(dweight), rows, taps, s.channels, stream));
  return {dx, dweight, sum_rows};
}

SqueezeExciteParams squeeze_excite_params(const Checks& checks, const Tensor& pooled, const Tensor& w1,
                                          const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                                          int64_t act, int64_t gate_act) {
  if (pooled.dim() != 2) checks.fail("pooled", "2 dimensions", to_text(shape_of(pooled)));
  if (w1.dim() != 2) checks.fail("w1", "2 dimensions", to_text(shape_of(w1)));
  const int64_t channels = pooled.size(1), reduced = w1.size(0);
  const ScalarType dtype = w1.scalar_type();
  checks.contiguous(pooled, "pooled", ScalarType::Float, shape_of(pooled));
  checks.contiguous(w1, "w1", dtype, {reduced, channels});
  checks.contiguous(w2, "w2", dtype, {channels, reduced});
  if (b1.has_value()) checks.contiguous(*b1, "b1", dtype, {reduced});
  if (b2.has_value()) checks.contiguous(*b2, "b2", dtype, {channels});
  SqueezeExciteParams p{};
  p.pooled = static_cast<const float*>(pooled.const_data_ptr());
  p.w1 = w1.const_data_ptr();
  p.b1 = b1.has_value() ? b1->const_data_ptr() : nullptr;
  p.w2 = w2.const_data_ptr();
  p.b2 = b2.has_value() ? b2->const_data_ptr() : nullptr;
  p.images = pooled.size(0);
  p.channels = checks.size(channels, "pooled");
  p.reduced = checks.size(reduced, "w1");
  p.act = checks.activation(act, "act");
  p.gate_act = checks.activation(gate_act, "gate_act");
  return p;
}

Tensor squeeze_excite_op(const Tensor& pooled, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
                         const OptionalTensor& b2, int64_t act, int64_t gate_act) {
  const Checks checks("squeeze_excite", pooled);
  SqueezeExciteParams p = squeeze_excite_params(checks, pooled, w1, b1, w2, b2, act, gate_act);
  const StorageType type = checks.storage(w1, "w1");
  const DeviceGuard guard(pooled.get_device_index());
  Tensor gate = new_vector(pooled, shape_of(pooled));
  if (gate.numel() == 0) return gate;
  p.gate = floats(gate);
  STD_CUDA_CHECK(squeeze_excite_forward(p, type, current_stream(pooled)));
  return gate;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> squeeze_excite_backward_op(
    const Tensor& dgate, const Tensor& pooled, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
    const OptionalTensor& b2, int64_t act, int64_t gate_act) {
  const Checks checks("squeeze_excite_backward", pooled);
  SqueezeExciteBackwardParams p{};
  p.forward = squeeze_excite_params(checks, pooled, w1, b1, w2, b2, act, gate_act);
  const StorageType type = checks.storage(w1, "w1");
  checks.contiguous(dgate, "dgate", ScalarType::Float, shape_of(pooled));
  const int64_t images = p.forward.images, channels = p.forward.channels, reduced = p.forward.reduced;

  const DeviceGuard guard(pooled.get_device_index());
  Tensor dpooled = new_vector(pooled, shape_of(pooled));
  Tensor dw1 = new_vector(pooled, {reduced, channels}), db1 = new_vector(pooled, {b1.has_value() ? reduced : 0});
  Tensor dw2 = new_vector(pooled, {channels, reduced}), db2 = new_vector(pooled, {b2.has_value() ? channels : 0});
  if (images == 0 || channels == 0 || reduced == 0) {
    for (Tensor* t : {&dpooled, &dw1, &db1, &dw2, &db2}) torch::stable::fill_(*t, 0.0);
    return {dpooled, dw1, db1, dw2, db2};
  }
  Tensor hidden = new_vector(pooled, {2, images, reduced}), dn2 = new_vector(pooled, {images, channels});
  p.dgate = static_cast<const float*>(dgate.const_data_ptr());
  p.dpooled = floats(dpooled);
  p.dw1 = floats(dw1);
  p.db1 = b1.has_value() ? floats(db1) : nullptr;
  p.dw2 = floats(dw2);
  p.db2 = b2.has_value() ? floats(db2) : nullptr;
  p.hidden = floats(hidden);
  p.dn1 = p.hidden + images * reduced;
  p.dn2 = floats(dn2);
  STD_CUDA_CHECK(squeeze_excite_backward(p, type, current_stream(pooled)));
  return {dpooled, dw1, db1, dw2, db2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CUDA, m) {
  m.impl("depthwise_forward", TORCH_BOX(&depthwise_forward_op));
  m.impl("depthwise_backward", TORCH_BOX(&depthwise_backward_op));
  m.impl("squeeze_excite", TORCH_BOX(&squeeze_excite_op));
  m.impl("squeeze_excite_backward", TORCH_BOX(&squeeze_excite_backward_op));
}

}  // namespace effnet::cuda
