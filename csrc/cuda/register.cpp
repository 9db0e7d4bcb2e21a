// The only file of the `_cuda` library that includes torch: checks, allocation, stream, registration.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <limits>
#include <optional>

#include "squeeze_excite.h"

namespace effnet::cuda {

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

Activation activation_of(int64_t number, const char* argument) {
  STD_TORCH_CHECK(number >= 0 && number < kActivationCount, "squeeze_excite: ", argument, " must be in [0, ",
                  kActivationCount, "), got ", number);
  return static_cast<Activation>(number);
}

WeightType weight_type(ScalarType dtype) {
  if (dtype == ScalarType::Float) return WeightType::kFloat;
  if (dtype == ScalarType::Half) return WeightType::kHalf;
  STD_TORCH_CHECK(dtype == ScalarType::BFloat16, "squeeze_excite: w1 must be float32, float16 or bfloat16");
  return WeightType::kBFloat16;
}

void check_weight(const Tensor& w, const char* argument, const Tensor& like, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(w.dim() == 2 && w.size(0) == rows && w.size(1) == columns, "squeeze_excite: ", argument,
                  " must be [", rows, ", ", columns, "]");
  STD_TORCH_CHECK(w.scalar_type() == like.scalar_type() && w.get_device() == like.get_device() && w.is_contiguous(),
                  "squeeze_excite: ", argument, " must be contiguous, with the dtype and device of w1");
}

const void* check_bias(const Optional& b, const char* argument, const Tensor& like, int64_t length) {
  if (!b.has_value()) return nullptr;
  STD_TORCH_CHECK(b->dim() == 1 && b->size(0) == length, "squeeze_excite: ", argument, " must be [", length, "]");
  STD_TORCH_CHECK(b->scalar_type() == like.scalar_type() && b->get_device() == like.get_device() && b->is_contiguous(),
                  "squeeze_excite: ", argument, " must be contiguous, with the dtype and device of w1");
  return b->const_data_ptr();
}

Tensor squeeze_excite(const Tensor& pooled, const Tensor& w1, const Optional& b1, const Tensor& w2, const Optional& b2,
                      int64_t act, int64_t gate_act) {
  STD_TORCH_CHECK(pooled.dim() == 2 && pooled.scalar_type() == ScalarType::Float && pooled.is_contiguous(),
                  "squeeze_excite: pooled must be a contiguous float32 [N, C]");
  STD_TORCH_CHECK(w1.dim() == 2 && w1.get_device() == pooled.get_device(),
                  "squeeze_excite: w1 must be [R, C] on the device of pooled");
  const int64_t images = pooled.size(0), channels = pooled.size(1), reduced = w1.size(0);
  STD_TORCH_CHECK(images <= std::numeric_limits<int32_t>::max(), "squeeze_excite: at most 2^31 - 1 images, got ",
                  images);
  check_weight(w1, "w1", w1, reduced, channels);
  check_weight(w2, "w2", w1, channels, reduced);

  SqueezeExciteParams p{};
  p.b1 = check_bias(b1, "b1", w1, reduced);
  p.b2 = check_bias(b2, "b2", w1, channels);
  p.act = activation_of(act, "act");
  p.gate_act = activation_of(gate_act, "gate_act");
  STD_TORCH_CHECK(channels + reduced <= static_cast<int64_t>(kSqueezeExciteSharedLimit / sizeof(float)),
                  "squeeze_excite: at most ", kSqueezeExciteSharedLimit / sizeof(float), " channels (C + R), got ",
                  channels + reduced);
  const WeightType type = weight_type(w1.scalar_type());

  const torch::stable::accelerator::DeviceGuard guard(pooled.get_device());
  Tensor gate = torch::stable::empty_like(pooled);
  if (pooled.numel() == 0) return gate;
  p.pooled = static_cast<const float*>(pooled.const_data_ptr());
  p.w1 = w1.const_data_ptr();
  p.w2 = w2.const_data_ptr();
  p.gate = static_cast<float*>(gate.mutable_data_ptr());
  p.images = images;
  p.channels = static_cast<int>(channels);
  p.reduced = static_cast<int>(reduced);
  STD_CUDA_CHECK(squeeze_excite_forward(p, type, current_stream(pooled)));
  return gate;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CUDA, m) { m.impl("squeeze_excite", TORCH_BOX(&squeeze_excite)); }

}  // namespace effnet::cuda
