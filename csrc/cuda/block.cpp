// The dispatcher ops behind block.h.
#include "block.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "checks.h"
#include "plans.h"

namespace effnet::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

// Dense and, because the kernels are compiled for it, at an address of a multiple of 16.
bool usable(const Tensor& t, bool image) {
  if (reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 != 0) return false;
  if (!image) return t.is_contiguous();
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const int64_t expected[] = {h * w * c, 1, w * c, c};
  for (int64_t i = 0; i < 4; ++i) {
    if (t.size(i) > 1 && t.stride(i) != expected[i]) return false;
  }
  return true;
}

TensorFacts facts_of(const Tensor& t) {
  TensorFacts facts{1, static_cast<int32_t>(t.scalar_type()), t.dim(), {}};
  for (int64_t i = 0; i < std::min<int64_t>(t.dim(), 4); ++i) facts.sizes[i] = t.size(i);
  return facts;
}

bool still(const TensorFacts& facts, const Tensor& t, int device, bool image) {
  const TensorFacts now = facts_of(t);
  return std::memcmp(&facts, &now, sizeof(now)) == 0 && t.is_cuda() && t.get_device_index() == device &&
         usable(t, image);
}

int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

Tensor mbconv_prepare(const Tensor& x, const std::vector<OptionalTensor>& weights, const std::vector<double>& eps,
                      int64_t stride, const Shape& padding, const std::vector<int64_t>& acts,
                      const std::vector<int64_t>& expand, const std::vector<int64_t>& project) {
  const Checks checks("mbconv", x);
  if (weights.size() != kInputs - 1) checks.fail("weights", "19 tensors or None", std::to_string(weights.size()));
  if (eps.size() != 3 || acts.size() != 3) checks.fail("eps, acts", "3 each", std::to_string(eps.size()));
  const auto weight = [&](int slot) -> const OptionalTensor& { return weights[slot - 1]; };
  if (!weight(kDepthwise) || !weight(kProject)) checks.fail("weights", "depthwise and project", "None");
  PreparedBlock block{};
  block.size = sizeof(block);
  block.device = x.get_device_index();
  block.type = checks.storage(x, "x");
  block.expands = weight(kExpand).has_value();
  block.squeezes = weight(kW1).has_value();
  checks.activations(x, "x", x.scalar_type(), shape_of(x));
  block.tensors[kX] = facts_of(x);
  for (int slot = kX + 1; slot < kInputs; ++slot) {
    if (!weight(slot)) continue;
    if (!usable(*weight(slot), false) || !weight(slot)->is_cuda() || weight(slot)->get_device_index() != block.device)
      checks.fail("weights", "contiguous, aligned tensors on the device of x", "another");
    block.tensors[slot] = facts_of(*weight(slot));
  }
  // What Triton compiled knows the dtypes; sizes are checked here for it.
  const Shape channels = {weight(kDepthwise)->size(0)};
  block.out_channels = weight(kProject)->size(0);
  for (const int slot : {kExpand, kProject}) {
    const int64_t outs = slot == kExpand ? channels[0] : block.out_channels;
    const int64_t ins = slot == kExpand ? x.size(1) : channels[0];
    if (!weight(slot)) continue;
    if (weight(slot)->size(0) != outs || weight(slot)->numel() != outs * ins) {
      checks.fail("weights", "1x1 weights of the block's channels", to_text(shape_of(*weight(slot))));
    }
    for (int i = 1; i <= 4; ++i) checks.any_vector(weight(slot + i), "weights", {outs});
    if (!weight(slot + 3) || !weight(slot + 4)) checks.fail("weights", "running statistics", "None");
  }
  if (!block.expands && channels[0] != x.size(1)) checks.fail("x", "the block's channels", to_text(shape_of(x)));

  const DeviceGuard guard(block.device);
  DepthwiseForwardParams& p = block.depthwise;
  // The shape is that of the expanded image, which is not there yet.
  const Tensor expanded = !block.expands ? x : new_activations(x, {x.size(0), channels[0], x.size(2), x.size(3)});
  const Tensor& stencil = *weight(kDepthwise);
  p.shape = depthwise_shape(checks, expanded, stencil, stride, padding, Checks::forward_weight(x, stencil));
  p.wide_weight = stencil.scalar_type() == ScalarType::Float;
  p.plan = plan_for(checks, forward_request(p.shape, block.type), -1);
  p.scale = checks.any_vector(weight(kDepthwise + 1), "weights", channels);
  p.shift = checks.any_vector(weight(kDepthwise + 2), "weights", channels);
  p.mean = checks.any_vector(weight(kDepthwise + 3), "weights", channels);
  p.var = checks.any_vector(weight(kDepthwise + 4), "weights", channels);
  if (p.mean.data == nullptr || p.var.data == nullptr) checks.fail("weights", "running statistics", "None");
  p.eps = static_cast<float>(eps[1]);
  p.act = checks.activation(acts[0], "act");

  const auto element = static_cast<int>(bytes_of(block.type));
  const int64_t pixels = static_cast<int64_t>(p.shape.batch) * p.shape.out_height * p.shape.out_width;
  block.activated_at = block.expands ? padded(x.numel() / x.size(1) * channels[0] * element) : 0;
  block.pooled_at = block.activated_at + padded(pixels * channels[0] * element);
  block.gate_at = block.workspace_bytes = block.pooled_at;
  if (block.squeezes) {
    SqueezeExciteParams& se = block.squeeze_excite;
    const Tensor& w1 = *weight(kW1);
    const int64_t reduced = w1.size(0);
    block.squeeze_excite_type = checks.storage(w1, "weights");
    for (const int slot : {kB1, kW2, kB2}) {
      if (slot == kW2 && !weight(slot)) checks.fail("weights", "w2", "None");
      if (weight(slot) && weight(slot)->scalar_type() != w1.scalar_type())
        checks.fail("weights", "one dtype in squeeze-and-excite", "several");
    }
    if (w1.numel() != reduced * channels[0] || weight(kW2)->numel() != reduced * channels[0] ||
        (weight(kB1) && weight(kB1)->numel() != reduced) || (weight(kB2) && weight(kB2)->numel() != channels[0])) {
      checks.fail("weights", "squeeze-and-excite of the block's channels", to_text(shape_of(w1)));
    }
    se.images = p.shape.batch;
    se.parts = p.plan.tiles();
    se.channels = p.shape.channels;
    se.reduced = checks.size(reduced, "weights");
    se.act = checks.activation(acts[1], "act");
    se.gate_act = checks.activation(acts[2], "gate_act");
    block.gate_at = block.pooled_at + padded(se.images * se.parts * se.channels * 4);
    block.workspace_bytes = block.gate_at + padded(se.images * se.channels * 4);
  }
  if (block.expands) block.expand = compiled_kernel(checks, expand.data(), expand.size(), kSlots, "expand");
  block.project = compiled_kernel(checks, project.data(), project.size(), kSlots, "project");
  launch_kernel();
  Tensor prepared = torch::stable::empty({static_cast<int64_t>(sizeof(block))}, ScalarType::Byte);
  std::memcpy(prepared.mutable_data_ptr(), &block, sizeof(block));
  return prepared;
}

Tensor mbconv_run(const Tensor& x, const std::vector<Tensor>& weights, const Tensor& prepared) {
  STD_TORCH_CHECK(prepared.is_cpu() && prepared.scalar_type() == ScalarType::Byte && prepared.is_contiguous() &&
                      prepared.numel() == static_cast<int64_t>(sizeof(PreparedBlock)),
                  "effnet_fast.mbconv: prepared: expected what mbconv_prepare returned, got another tensor");
  const auto& block = *static_cast<const PreparedBlock*>(prepared.const_data_ptr());
  void* slots[kSlots] = {};
  const auto pointer = [](const Tensor& t) { return const_cast<void*>(t.const_data_ptr()); };
  size_t given = 0;
  bool same = still(block.tensors[kX], x, block.device, true);
  slots[kX] = pointer(x);
  for (int slot = kX + 1; slot < kInputs && same; ++slot) {
    if (!block.tensors[slot].present) continue;
    same = given < weights.size() && still(block.tensors[slot], weights[given], block.device, false);
    if (same) slots[slot] = pointer(weights[given++]);
  }
  if (!same || given != weights.size()) return torch::stable::empty({0}, x.scalar_type(), std::nullopt, x.device());

  const DeviceGuard guard(block.device);
  const cudaStream_t stream = current_stream(x);
  DepthwiseForwardParams p = block.depthwise;
  const Tensor workspace = torch::stable::empty({block.workspace_bytes}, ScalarType::Byte, std::nullopt, x.device());
  Tensor y = new_activations(x, {p.shape.batch, block.out_channels, p.shape.out_height, p.shape.out_width});
  char* memory = static_cast<char*>(workspace.mutable_data_ptr());
  slots[kExpanded] = block.expands ? memory : slots[kX];
  slots[kActivated] = memory + block.activated_at;
  slots[kGate] = memory + block.gate_at;
  slots[kY] = y.mutable_data_ptr();

  if (block.expands) launch(block.expand, slots, stream);
  p.x = slots[kExpanded];
  p.weight = slots[kDepthwise];
  p.scale.data = slots[kDepthwise + 1];
  p.shift.data = slots[kDepthwise + 2];
  p.mean.data = slots[kDepthwise + 3];
  p.var.data = slots[kDepthwise + 4];
  p.y = slots[kActivated];
  p.pooled = block.squeezes ? reinterpret_cast<float*>(memory + block.pooled_at) : nullptr;
  STD_CUDA_CHECK(depthwise_forward(p, block.type, stream));
  if (block.squeezes) {
    SqueezeExciteParams se = block.squeeze_excite;
    se.pooled = p.pooled;
    se.w1 = slots[kW1];
    se.b1 = slots[kB1];
    se.w2 = slots[kW2];
    se.b2 = slots[kB2];
    se.gate = static_cast<float*>(slots[kGate]);
    STD_CUDA_CHECK(squeeze_excite_forward(se, block.squeeze_excite_type, stream));
  }
  launch(block.project, slots, stream);
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CUDA, m) {
  m.impl("mbconv_prepare", TORCH_BOX(&mbconv_prepare));
  m.impl("mbconv_run", TORCH_BOX(&mbconv_run));
}

}  // namespace effnet::cuda
