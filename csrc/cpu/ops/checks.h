// What every entry point of the CPU library shares: checks with one-line errors, allocation, scratch memory.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "common/kernel_size.h"
#include "common/params.h"
#include "common/records.h"

namespace effnet::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using TensorList = std::vector<OptionalTensor>;  // a record's
using Shape = std::vector<int64_t>;

// One line that names op, argument, what was expected and what came.
#define EFFNET_CHECK(condition, op, argument, expected, ...) \
  STD_TORCH_CHECK(condition, "effnet_fast.", op, ": ", argument, ": expected ", expected, ", got ", __VA_ARGS__)

struct Failure {
  const char* op;

  [[noreturn]] void fail(const char* argument, const std::string& expected, const std::string& got) const {
    EFFNET_CHECK(false, op, argument, expected, got);
    __builtin_unreachable();
  }
};

inline std::string to_text(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(t.size(i));
  return text + "]";
}

inline StorageType check_dtype(const Tensor& t, const char* op, const char* argument) {
  EFFNET_CHECK(t.is_cpu(), op, argument, "a CPU tensor", "a tensor on another device");
  if (t.scalar_type() == ScalarType::Float) return StorageType::kFloat32;
  EFFNET_CHECK(t.scalar_type() == ScalarType::BFloat16, op, argument, "float32 or bfloat16",
               torch::headeronly::toString(t.scalar_type()));
  return StorageType::kBFloat16;
}

inline Activation check_activation(int64_t act, const char* op, const char* argument) {
  EFFNET_CHECK(act >= 0 && act < kActivationCount, op, argument, "an activation number below 7", act);
  return static_cast<Activation>(act);
}

inline void check_shape(const Tensor& t, const Shape& shape, const char* op, const char* argument) {
  if (has_shape(t, shape)) return;
  std::string expected;
  for (size_t i = 0; i < shape.size(); ++i) expected += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  EFFNET_CHECK(false, op, argument, "shape [" + expected + "]", to_text(t));
}

// What follows from the shapes of a depthwise convolution's x, rank 4, and weight; `channels` where x is still to be
// expanded to them.
struct StencilShape {
  int32_t kernel;
  int64_t out_height, out_width;
};

inline StencilShape check_stencil(const char* op, const Tensor& x, const Tensor& weight, int64_t stride,
                                  const Shape& padding, int64_t channels = -1) {
  EFFNET_CHECK(weight.dim() == 4, op, "weight", "rank 4 [C, 1, k, k]", to_text(weight));
  const int64_t kernel = weight.size(2);
  EFFNET_CHECK(is_kernel_size(kernel), op, "weight", std::string("kernel size ") + kKernelSizes, kernel);
  check_shape(weight, {channels < 0 ? x.size(1) : channels, 1, kernel, kernel}, op, "weight");
  EFFNET_CHECK(stride == 1 || stride == 2, op, "stride", "1 or 2", stride);
  EFFNET_CHECK(padding.size() == 4, op, "padding", "4 numbers (left, right, top, bottom)", padding.size());
  const int64_t least = *std::min_element(padding.begin(), padding.end());
  EFFNET_CHECK(least >= 0, op, "padding", "numbers >= 0", least);
  const int64_t width = x.size(3) + padding[0] + padding[1], height = x.size(2) + padding[2] + padding[3];
  EFFNET_CHECK(width >= kernel && height >= kernel, op, "x",
               "at least the kernel's " + std::to_string(kernel) + " rows and columns after padding",
               std::to_string(height) + " x " + std::to_string(width));
  return {static_cast<int32_t>(kernel), (height - kernel) / stride + 1, (width - kernel) / stride + 1};
}

// Small fp32 operands (vectors, gates), made dense where they are not; they must outlive the kernel, hence the copy.
struct Vectors {
  std::vector<Tensor> kept;

  Vectors() { kept.reserve(16); }

  const float* pointer(const OptionalTensor& t, const Shape& shape, const char* op, const char* argument) {
    if (!t.has_value()) return nullptr;
    check_shape(*t, shape, op, argument);
    EFFNET_CHECK(t->is_cpu() && t->scalar_type() == ScalarType::Float, op, argument, "a float32 CPU tensor",
                 torch::headeronly::toString(t->scalar_type()));
    kept.push_back(t->is_contiguous() ? *t : torch::stable::contiguous(*t));
    return kept.back().const_data_ptr<float>();
  }
};

inline const torch::stable::Device kCpu(torch::headeronly::DeviceType::CPU);

inline Tensor new_vector(const Shape& shape) {
  return torch::stable::empty(shape, ScalarType::Float, std::nullopt, kCpu);
}

// Asks the system for pages of 2 MB in memory that was not touched yet; a hint, without which everything works.
inline void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t end = begin + static_cast<uintptr_t>(bytes);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = end / kHugePage * kHugePage;
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

inline Tensor new_image(const Tensor& like, const Shape& shape) {
  Tensor image = torch::stable::empty(shape, like.scalar_type(), std::nullopt, kCpu, std::nullopt,
                                      torch::headeronly::MemoryFormat::ChannelsLast);
  // Large ones are fresh memory at every call: a fault for each 4 KB costs more than an elementwise pass.
  prefer_huge_pages(image.mutable_data_ptr(), image.numel() * static_cast<int64_t>(image.element_size()));
  return image;
}

inline bool is_dense_nhwc(const Tensor& t) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  return (c == 1 || t.stride(1) == 1) && (w == 1 || t.stride(3) == c) && (h == 1 || t.stride(2) == w * c) &&
         (t.size(0) == 1 || t.stride(0) == h * w * c);
}

// NHWC with nothing between the elements. contiguous() alone may leave ambiguous strides, which is_dense_nhwc ignores.
inline Tensor dense_nhwc(const Tensor& t) {
  return is_dense_nhwc(t) ? t : torch::stable::contiguous(t, torch::headeronly::MemoryFormat::ChannelsLast);
}

// The tensors of one call as kernels read them (common/records.h): images are dense and have one dtype. It must outlive
// the kernel.
class Operands : public Failure {
 public:
  const StorageType dtype;

  Operands(const char* op, const Tensor& like, const char* argument)
      : Failure{op}, dtype(check_dtype(like, op, argument)) {
    images_.reserve(4);
  }

  const void* image(const OptionalTensor& t, const char* argument, const Shape& shape) {
    if (!t.has_value()) return nullptr;
    check_shape(*t, shape, op, argument);
    EFFNET_CHECK(check_dtype(*t, op, argument) == dtype, op, argument, "the dtype of the other tensors", "another");
    images_.push_back(dense_nhwc(*t));
    return images_.back().const_data_ptr();
  }

  const float* vector(const OptionalTensor& t, const char* argument, const Shape& shape) {
    return vectors_.pointer(t, shape, op, argument);
  }

 private:
  std::vector<Tensor> images_;
  Vectors vectors_;
};

}  // namespace effnet::cpu
