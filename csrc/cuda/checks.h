// From tensors to pointers: each check fails with one line that names op, argument, what was expected and what came.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "depthwise.h"

namespace effnet::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using TensorList = std::vector<OptionalTensor>;  // a record's
using Shape = std::vector<int64_t>;

inline std::string to_text(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

inline Shape shape_of(const Tensor& t) {
  Shape shape;
  for (int64_t i = 0; i < t.dim(); ++i) shape.push_back(t.size(i));
  return shape;
}

// The checks of one call, with the op's name and the tensor that fixes the device.
class Checks {
 public:
  Checks(const char* op, const Tensor& like) : op_(op), device_(like.get_device_index()) {}

  [[noreturn]] void fail(const char* argument, const std::string& expected, const std::string& got) const {
    STD_TORCH_CHECK(false, "effnet_fast.", op_, ": ", argument, ": expected ", expected, ", got ", got);
    __builtin_unreachable();
  }

  StorageType storage(const Tensor& t, const char* argument) const {
    switch (t.scalar_type()) {
      case ScalarType::Float:
        return StorageType::kFloat32;
      case ScalarType::Half:
        return StorageType::kFloat16;
      case ScalarType::BFloat16:
        return StorageType::kBFloat16;
      default:
        fail(argument, "float32, float16 or bfloat16", torch::headeronly::toString(t.scalar_type()));
    }
  }

  void common(const Tensor& t, const char* argument, ScalarType dtype, const Shape& shape) const {
    if (!t.is_cuda() || t.get_device_index() != device_)
      fail(argument, "the CUDA device of the first tensor", "another");
    if (t.scalar_type() != dtype)
      fail(argument, torch::headeronly::toString(dtype), torch::headeronly::toString(t.scalar_type()));
    if (!has_shape(t, shape)) fail(argument, "shape " + to_text(shape), to_text(shape_of(t)));
  }

  // [N, C, H, W] whose memory is dense [N, H, W, C]. Strides of axes of length 1 mean nothing.
  void activations(const Tensor& t, const char* argument, ScalarType dtype, const Shape& shape) const {
    common(t, argument, dtype, shape);
    const int64_t c = shape[1], h = shape[2], w = shape[3];
    const int64_t expected[] = {h * w * c, 1, w * c, c};
    for (int64_t i = 0; i < 4; ++i) {
      if (shape[i] > 1 && t.numel() > 0 && t.stride(i) != expected[i]) {
        fail(argument, "dense channels_last memory", "other strides");
      }
    }
  }

  void contiguous(const Tensor& t, const char* argument, ScalarType dtype, const Shape& shape) const {
    common(t, argument, dtype, shape);
    if (!t.is_contiguous()) fail(argument, "a contiguous tensor", "other strides");
  }

  // The dtype that the forward's weight is to have: float32, which it reads beside any x, or that of x.
  static ScalarType forward_weight(const Tensor& x, const Tensor& weight) {
    return weight.scalar_type() == ScalarType::Float ? ScalarType::Float : x.scalar_type();
  }

  // A vector over the channels in any dtype of the kernels.
  ChannelVector any_vector(const OptionalTensor& t, const char* argument, const Shape& shape) const {
    if (!t.has_value()) return {nullptr, StorageType::kFloat32};
    contiguous(*t, argument, t->scalar_type(), shape);
    return {t->const_data_ptr(), storage(*t, argument)};
  }

  const float* vector(const OptionalTensor& t, const char* argument, const Shape& shape) const {
    if (!t.has_value()) return nullptr;
    contiguous(*t, argument, ScalarType::Float, shape);
    return static_cast<const float*>(t->const_data_ptr());
  }

  Activation activation(int64_t number, const char* argument) const {
    if (number < 0 || number >= kActivationCount)
      fail(argument, "an activation number below 7", std::to_string(number));
    return static_cast<Activation>(number);
  }

  int size(int64_t value, const char* argument) const {
    if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
      fail(argument, "sizes below 2^31", std::to_string(value));
    }
    return static_cast<int>(value);
  }

 private:
  const char* op_;
  int32_t device_;
};

// The tensors of one call as records are read (common/records.h): images have one dtype.
struct Operands {
  const Checks& checks;
  ScalarType dtype;

  [[noreturn]] void fail(const char* argument, const std::string& expected, const std::string& got) const {
    checks.fail(argument, expected, got);
  }
  const void* image(const OptionalTensor& t, const char* argument, const Shape& shape) const {
    if (!t.has_value()) return nullptr;
    checks.activations(*t, argument, dtype, shape);
    return t->const_data_ptr();
  }
  const float* vector(const OptionalTensor& t, const char* argument, const Shape& shape) const {
    return checks.vector(t, argument, shape);
  }
};

inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline Tensor new_vector(const Tensor& like, const Shape& shape) {
  return torch::stable::empty(shape, ScalarType::Float, std::nullopt, like.device());
}

inline Tensor new_activations(const Tensor& like, const Shape& shape) {
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

inline float* floats(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

}  // namespace effnet::cuda
