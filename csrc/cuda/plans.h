// From tensors to a depthwise shape and its plan; plans are remembered, because the planner weighs a hundred
// candidates.
#pragma once

#include <array>
#include <map>
#include <mutex>

#include "../common/kernel_size.h"
#include "checks.h"
#include "depthwise_host.h"

namespace effnet::cuda {

inline DeviceLimits limits_of(int device) {
  DeviceLimits limits{};
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

inline DepthwiseShape depthwise_shape(const Checks& checks, const Tensor& x, const Tensor& weight, int64_t stride,
                                      const Shape& padding, ScalarType weight_dtype) {
  if (x.dim() != 4) checks.fail("x", "4 dimensions", to_text(shape_of(x)));
  if (weight.dim() != 4) checks.fail("weight", "4 dimensions", to_text(shape_of(weight)));
  const int64_t kernel = weight.size(3);
  if (!is_kernel_size(kernel))
    checks.fail("weight", std::string("kernel size ") + kKernelSizes, std::to_string(kernel));
  if (stride != 1 && stride != 2) checks.fail("stride", "1 or 2", std::to_string(stride));
  bool negative = padding.size() != 4;
  for (const int64_t side : padding) negative = negative || side < 0;
  if (negative) checks.fail("padding", "four sizes that are not negative", to_text(padding));
  checks.activations(x, "x", x.scalar_type(), shape_of(x));
  checks.contiguous(weight, "weight", weight_dtype, {x.size(1), 1, kernel, kernel});

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

// The planner's choice for the current device, or the plan of a number.
inline DepthwisePlan plan_for(const Checks& checks, const PlannerRequest& request, int64_t index) {
  static std::mutex mutex;
  static std::map<std::array<int, 16>, DepthwisePlan> remembered;
  int device = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  const DepthwiseShape& s = request.shape;
  const std::array<int, 16> key = {device,           s.batch,       s.height,      s.width, s.channels, s.out_height,
                                   s.out_width,      s.kernel,      s.stride,      s.left,  s.top,      request.element,
                                   request.backward, request.roles, request.has_z, 0};
  const std::lock_guard<std::mutex> lock(mutex);
  if (index < 0) {
    const auto found = remembered.find(key);
    if (found != remembered.end()) return found->second;
  }
  DepthwisePlan plan{};
  if (!choose_plan(request, limits_of(device), index, &plan)) {
    checks.fail("plan", "the number of a plan that fits the device, or -1", std::to_string(index));
  }
  // Sizes that change with every batch must not fill the memory.
  constexpr size_t kMost = 4096;
  if (remembered.size() >= kMost) remembered.clear();
  if (index < 0) remembered.emplace(key, plan);
  return plan;
}

}  // namespace effnet::cuda
