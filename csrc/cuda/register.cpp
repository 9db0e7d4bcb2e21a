// The dispatcher ops of the `_cuda` library: checks, allocation, plan, stream, launch. With block.cpp the only file
// that includes torch.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "checks.h"
#include "depthwise_host.h"
#include "plans.h"
#include "squeeze_excite.h"

namespace effnet::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

std::tuple<Tensor, Tensor, Tensor> depthwise_forward_op(const Tensor& x, const Tensor& weight, int64_t stride,
                                                        const Shape& padding, const OptionalTensor& in_scale,
                                                        const OptionalTensor& in_shift, int64_t in_act,
                                                        const OptionalTensor& scale, const OptionalTensor& shift,
                                                        int64_t act, bool pool, bool stats, int64_t plan,
                                                        const OptionalTensor& mean, const OptionalTensor& var,
                                                        double eps) {
  const Checks checks("depthwise", x);
  const StorageType type = checks.storage(x, "x");
  DepthwiseForwardParams p{};
  p.shape = depthwise_shape(checks, x, weight, stride, padding, Checks::forward_weight(x, weight));
  p.wide_weight = weight.scalar_type() == ScalarType::Float;
  const DepthwiseShape& s = p.shape;
  const Shape channels = {s.channels};
  p.in_scale = checks.vector(in_scale, "in_affine", channels);
  p.in_shift = checks.vector(in_shift, "in_affine", channels);
  p.scale = checks.any_vector(scale, "affine", channels);
  p.shift = checks.any_vector(shift, "affine", channels);
  p.mean = checks.any_vector(mean, "affine", channels);
  p.var = checks.any_vector(var, "affine", channels);
  if (mean.has_value() != var.has_value()) checks.fail("affine", "mean and var, or neither", "one");
  p.eps = static_cast<float>(eps);
  p.in_act = checks.activation(in_act, "in_act");
  p.act = checks.activation(act, "act");

  const DeviceGuard guard(x.get_device_index());
  Tensor y = new_activations(x, {s.batch, s.channels, s.out_height, s.out_width});
  if (s.batch == 0 || s.channels == 0) {
    return {y, new_vector(x, pool ? Shape{s.batch, s.channels} : Shape{0}), new_vector(x, {0, 3, s.channels})};
  }

  p.plan = plan_for(checks, forward_request(s, type), plan);
  Tensor moments = new_vector(x, {stats ? p.plan.partial_rows() : 0, 3, s.channels});
  const int64_t tiles = p.plan.tiles();
  Tensor pooled = new_vector(x, !pool       ? Shape{0}
                                : tiles > 1 ? Shape{s.batch, tiles, s.channels}
                                            : Shape{s.batch, s.channels});
  p.x = x.const_data_ptr();
  p.weight = weight.const_data_ptr();
  p.y = y.mutable_data_ptr();
  p.pooled = pool ? floats(pooled) : nullptr;
  p.stats = stats ? floats(moments) : nullptr;
  STD_CUDA_CHECK(depthwise_forward(p, type, current_stream(x)));
  return {y, pooled, moments};
}

std::tuple<Tensor, Tensor, Tensor> depthwise_backward_op(const TensorList& incoming, int64_t act,
                                                         const TensorList& source, int64_t in_act, const Tensor& weight,
                                                         int64_t stride, const Shape& padding,
                                                         const OptionalTensor& residual_grad, bool need_dx,
                                                         bool need_dw, int64_t plan, bool merge) {
  const Checks checks("depthwise_backward", weight);
  const Tensor& x = leading_tensor(checks, source, "source.x");
  const StorageType type = checks.storage(x, "source.x");
  const Operands operands{checks, x.scalar_type()};
  DepthwiseBackwardParams p{};
  p.shape = depthwise_shape(checks, x, weight, stride, padding, x.scalar_type());
  const DepthwiseShape& s = p.shape;
  read_record(p.incoming, operands, incoming, Shape{s.batch, s.channels, s.out_height, s.out_width});
  read_record(p.source, operands, source, shape_of(x));
  p.incoming.act = checks.activation(act, "incoming.act");
  p.source.act = checks.activation(in_act, "source.act");
  p.residual = operands.image(residual_grad, "residual_grad", shape_of(x));
  if (p.source.gate != nullptr) checks.fail("source.gate", "None (only pointwise has one)", "a tensor");
  const bool sums = p.source.scale != nullptr;
  if (sums && (p.source.norm_mean == nullptr || p.source.invstd == nullptr)) {
    checks.fail("source.norm", "vectors, for the sums that source.affine asks for", "None");
  }
  need_dx = need_dx || sums;

  const DeviceGuard guard(x.get_device_index());
  const int64_t taps = static_cast<int64_t>(s.kernel) * s.kernel;
  Tensor dx = need_dx ? new_activations(x, shape_of(x)) : new_vector(x, {0});
  const Shape merged = {s.channels, 1, s.kernel, s.kernel};
  if (x.numel() == 0 || !(need_dx || need_dw)) {
    Tensor dweight = new_vector(x, !need_dw ? Shape{0} : merge ? merged : Shape{1, taps, s.channels});
    return {dx, torch::stable::fill_(dweight, 0.0), new_vector(x, {0, 2, s.channels})};
  }

  p.plan = plan_for(checks, backward_request(s, type, need_dx, need_dw, p.incoming.z != nullptr), plan);
  const int64_t rows = p.plan.partial_rows();
  Tensor sum_rows = new_vector(x, {sums ? rows : 0, 2, s.channels});
  Tensor partials = new_vector(x, {need_dw ? rows : 0, taps, s.channels});
  p.weight = weight.const_data_ptr();
  if (sums) p.residual = nullptr;
  p.dx = need_dx ? dx.mutable_data_ptr() : nullptr;
  p.dweight = need_dw ? floats(partials) : nullptr;
  p.sums = sums ? floats(sum_rows) : nullptr;
  const cudaStream_t stream = current_stream(x);
  STD_CUDA_CHECK(depthwise_backward(p, type, stream));
  if (!need_dw || !merge) return {dx, partials, sum_rows};
  Tensor dweight = new_vector(x, merged);
  STD_CUDA_CHECK(merge_rows(p.dweight, floats(dweight), rows, taps, s.channels, stream));
  return {dx, dweight, sum_rows};
}

SqueezeExciteParams squeeze_excite_params(const Checks& checks, const Tensor& pooled, const Tensor& w1,
                                          const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2,
                                          int64_t act, int64_t gate_act) {
  const bool parts = pooled.dim() == 3;
  if (!parts && pooled.dim() != 2) checks.fail("pooled", "2 or 3 dimensions", to_text(shape_of(pooled)));
  if (w1.dim() != 2) checks.fail("w1", "2 dimensions", to_text(shape_of(w1)));
  const int64_t channels = pooled.size(parts ? 2 : 1), reduced = w1.size(0);
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
  p.parts = parts ? checks.size(pooled.size(1), "pooled") : 1;
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
  Tensor gate = new_vector(pooled, {p.images, p.channels});
  if (gate.numel() == 0) return gate;
  p.gate = floats(gate);
  STD_CUDA_CHECK(squeeze_excite_forward(p, type, current_stream(pooled)));
  return gate;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> squeeze_excite_backward_op(
    const Tensor& dgate, const Tensor& pooled, const Tensor& w1, const OptionalTensor& b1, const Tensor& w2,
    const OptionalTensor& b2, int64_t act, int64_t gate_act, int64_t area) {
  const Checks checks("squeeze_excite_backward", pooled);
  SqueezeExciteBackwardParams p{};
  p.forward = squeeze_excite_params(checks, pooled, w1, b1, w2, b2, act, gate_act);
  if (pooled.dim() != 2) checks.fail("pooled", "2 dimensions", to_text(shape_of(pooled)));
  const StorageType type = checks.storage(w1, "w1");
  const bool parts = dgate.dim() == 3;
  const Shape dgate_shape = parts ? Shape{pooled.size(0), dgate.size(1), pooled.size(1)} : shape_of(pooled);
  checks.contiguous(dgate, "dgate", ScalarType::Float, dgate_shape);
  if (area < 1) checks.fail("area", "a number of pixels", std::to_string(area));
  const int64_t images = p.forward.images, channels = p.forward.channels, reduced = p.forward.reduced;

  const DeviceGuard guard(pooled.get_device_index());
  Tensor dpooled = new_vector(pooled, shape_of(pooled));
  const auto gradient = [&w1](const Shape& shape) {
    return torch::stable::empty(shape, w1.scalar_type(), std::nullopt, w1.device());
  };
  Tensor dw1 = gradient({reduced, channels}), db1 = gradient({b1.has_value() ? reduced : 0});
  Tensor dw2 = gradient({channels, reduced}), db2 = gradient({b2.has_value() ? channels : 0});
  if (images == 0 || channels == 0 || reduced == 0) {
    for (Tensor* t : {&dpooled, &dw1, &db1, &dw2, &db2}) torch::stable::fill_(*t, 0.0);
    return {dpooled, dw1, db1, dw2, db2};
  }
  Tensor hidden = new_vector(pooled, {2, images, reduced}), dn2 = new_vector(pooled, {images, channels});
  p.dgate = static_cast<const float*>(dgate.const_data_ptr());
  p.dgate_parts = parts ? checks.size(dgate.size(1), "dgate") : 1;
  p.pool_factor = 1.0f / static_cast<float>(area);
  p.dpooled = floats(dpooled);
  p.dw1 = dw1.mutable_data_ptr();
  p.db1 = b1.has_value() ? db1.mutable_data_ptr() : nullptr;
  p.dw2 = dw2.mutable_data_ptr();
  p.db2 = b2.has_value() ? db2.mutable_data_ptr() : nullptr;
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
