// What plans are made of: regions of a workspace, and the steps of a block.
#pragma once

#include <algorithm>

#include "cpu/engine/plan.h"

namespace effnet::cpu {

// A convolution's output and what is added to its input before the first row and column.
struct Padding {
  int64_t left, top, out_height, out_width;
};
Padding padding_of(const ConvRecord& conv, int64_t height, int64_t width);

EFFNET_INLINE int64_t pixels(const Padding& shape) { return shape.out_height * shape.out_width; }

enum Region {
  kEarlyA,
  kEarlyB,
  kMiddle,
  kLateA,
  kLateB,
  kDepthwise,
  kSums,
  kHidden,
  kGates,
  kPooled,
  kPacked,
  kRegions
};

// All of `packings`, which must outlive the step.
Step pack_step(const std::vector<Packing>& packings);

class StepBuilder {
 protected:
  StepBuilder(StorageType dtype, int64_t threads, char* workspace)
      : dtype_(dtype), threads_(std::max<int64_t>(threads, 1)), workspace_(workspace) {}

  // `emit` makes all steps. The first time it finds out how large the regions are, the second time it knows where they
  // begin.
  template <class Emit>
  NetworkPlan plan(Emit emit) {
    emit();
    int64_t offset = 0;
    for (int i = 0; i < kRegions; ++i) {
      base_[i] = workspace_ == nullptr ? nullptr : workspace_ + offset;
      // Some space between them, so that regions do not begin at the same cache sets.
      offset += round_up(bytes_[i], 64) + 64 * (2 * i + 1);
    }
    plan_ = NetworkPlan{};
    emit();
    plan_.workspace_bytes = offset;
    return std::move(plan_);
  }

  int64_t element() const { return bytes_of(dtype_); }
  int64_t even(int64_t k) const { return round_up(k, dot_length(dtype_)); }

  char* place(Region region, int64_t bytes) {
    bytes_[region] = std::max(bytes_[region], bytes);
    return base_[region];
  }

  float* floats(Region region, int64_t count) { return reinterpret_cast<float*>(place(region, count * 4)); }

  Image image(Region region, int64_t images, int64_t pixels, int64_t channels) {
    const int64_t stride = round_up(channels, kGroup);
    return {place(region, images * pixels * stride * element()), pixels * stride, stride};
  }

  Image at_image(Image image, int64_t index, int64_t element_bytes) const {
    image.data =
        image.data == nullptr ? nullptr : static_cast<char*>(image.data) + index * image.image_stride * element_bytes;
    return image;
  }

  // `count` weights at an offset of a record. What lies outside the weights is found out before any is
  // read.
  const void* weights_at(int64_t offset, int64_t count, int64_t element_bytes) {
    plan_.weight_bytes = std::max(plan_.weight_bytes, offset < 0 ? INT64_MAX : offset + count * element_bytes);
    return weights_ == nullptr ? nullptr : weights_ + offset;
  }

  const float* vector(int64_t offset, int64_t count) {
    return static_cast<const float*>(weights_at(offset, round_up(count, kGroup), 4));
  }

  // A 1x1 convolution of an image.
  Gemm pointwise(const ConvRecord& conv, const Image& in) {
    return gemm_of(conv, {{0, static_cast<int32_t>(in.pixel_stride), static_cast<int32_t>(even(conv.in))}});
  }

  void push(Step step) {
    plan_.scratch_floats = std::max(plan_.scratch_floats, step.scratch_floats);
    plan_.steps.push_back(step);
  }

  Step new_step(StepKind kind, int64_t images) const {
    Step step{};
    step.kind = kind, step.dtype = dtype_, step.images = images;
    return step;
  }

  // Floats of a block of pixels and some vectors beside it; kernels know the exact number.
  static constexpr int64_t kBlockFloats = 40 * kPanel;

  Gemm gemm_of(const ConvRecord& conv, std::vector<Segment> segments);
  Step linear_step(StepKind kind, const LinearRecord& linear, int64_t images);
  // final: y is the caller's, with exactly the projection's channels.
  void emit_block(const BlockRecord& b, const Padding& in_shape, const Padding& shape, int64_t images, const Image& x,
                  const Image& y, bool final);
  void cut_project(Step* step);

  const StorageType dtype_;
  const int64_t threads_;
  char* const workspace_;
  const char* weights_ = nullptr;
  NetworkPlan plan_;

 private:
  void emit_gate(const BlockRecord& b, const Step& depthwise, Step* project);
  void cut_depthwise(Step* step, int64_t depth) const;

  char* base_[kRegions] = {};
  int64_t bytes_[kRegions] = {};
};

}  // namespace effnet::cpu
