#include "cpu/engine/plan.h"

#include <algorithm>

#include "cpu/engine/steps.h"

namespace effnet::cpu {
namespace {

// Images go through the late blocks in groups whose tensors stay in the last-level cache.
constexpr int64_t kGroupBytes = 8 << 20;

class Planner : StepBuilder {
 public:
  Planner(const Program& program, const NetworkCall& call)
      : StepBuilder(program.dtype, call.threads, call.workspace), net_(program), blocks_(program.blocks), call_(call) {
    weights_ = call.weights;
  }

  NetworkPlan run() {
    return plan([this] { emit_network(); });
  }

 private:
  // The caller's tensor as an image of fp32 values.
  Image final_image(int64_t first, int64_t pixels, int64_t channels) const {
    return at_image({call_.out, pixels * channels, channels}, first, 4);
  }

  void emit_network() {
    const int64_t batch = call_.batch;
    const auto blocks = static_cast<int64_t>(blocks_.size());
    std::vector<Padding> shapes{padding_of(net_.stem, call_.height, call_.width)};
    check_shape(shapes[0], "stem");
    for (int64_t i = 0; i < blocks; ++i) {
      shapes.push_back(padding_of(blocks_[i].depthwise, shapes[i].out_height, shapes[i].out_width));
      check_shape(shapes.back(), "depthwise");
    }
    if (plan_.too_small != nullptr) return;
    const int64_t early = early_blocks(shapes);
    const int64_t early_group = std::min(batch, threads_);
    const int64_t late_group = late_images(shapes, early);
    const bool features = net_.head.out == 0;
    const ConvRecord& last_early = early > 0 ? blocks_[early - 1].project : net_.stem;
    const Image middle = early == blocks && features ? final_image(0, pixels(shapes[early]), last_early.out)
                                                     : image(kMiddle, batch, pixels(shapes[early]), last_early.out);
    const int64_t middle_bytes = early == blocks && features ? 4 : element();

    for (int64_t first = 0; first < batch; first += early_group) {
      const int64_t images = std::min(early_group, batch - first);
      Image x =
          early == 0 ? at_image(middle, first, middle_bytes) : image(kEarlyA, images, pixels(shapes[0]), net_.stem.out);
      emit_stem(shapes[0], first, images, x, early == blocks && features && early == 0);
      for (int64_t i = 0; i < early; ++i) {
        const bool last = i + 1 == early;
        const Image y =
            last ? at_image(middle, first, middle_bytes)
                 : image(i % 2 == 0 ? kEarlyB : kEarlyA, images, pixels(shapes[i + 1]), blocks_[i].project.out);
        emit_block(blocks_[i], shapes[i], shapes[i + 1], images, x, y, last && early == blocks && features);
        x = y;
      }
    }
    for (int64_t first = 0; first < batch; first += late_group) {
      const int64_t images = std::min(late_group, batch - first);
      Image x = at_image(middle, first, element());
      for (int64_t i = early; i < blocks; ++i) {
        const bool last = i + 1 == blocks && features;
        const Image y =
            last ? final_image(first, pixels(shapes[i + 1]), blocks_[i].project.out)
                 : image(i % 2 == 0 ? kLateA : kLateB, images, pixels(shapes[i + 1]), blocks_[i].project.out);
        emit_block(blocks_[i], shapes[i], shapes[i + 1], images, x, y, last);
        x = y;
      }
      if (!features) emit_head(shapes[blocks], first, images, x);
    }
    finish(shapes[blocks], features ? (blocks > 0 ? blocks_[blocks - 1].project.out : net_.stem.out) : net_.head.out);
  }

  void check_shape(const Padding& shape, const char* layer) {
    if (plan_.too_small == nullptr && pixels(shape) <= 0) plan_.too_small = layer;
  }

  // Blocks before the first one whose weights are larger than what it makes of an image: through them few images go at
  // a time, so that their tensors stay in cache; through the others many, so that weights do.
  int64_t early_blocks(const std::vector<Padding>& shapes) const {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const BlockRecord& b = blocks_[i];
      const int64_t weights = (b.expand.out > 0 ? b.expand.in : 0) * b.depthwise.out + b.project.out * b.depthwise.out;
      if (weights > pixels(shapes[i]) * b.depthwise.in /
                            std::max<int64_t>(b.depthwise.in / std::max<int64_t>(b.project.out, 1), 1) +
                        pixels(shapes[i + 1]) * b.depthwise.out) {
        return static_cast<int64_t>(i);
      }
    }
    return static_cast<int64_t>(blocks_.size());
  }

  int64_t late_images(const std::vector<Padding>& shapes, int64_t early) const {
    int64_t most = 1;
    for (int64_t i = early; i < static_cast<int64_t>(blocks_.size()); ++i) {
      most = std::max(most, pixels(shapes[i + 1]) * blocks_[i].depthwise.out * element());
    }
    return std::clamp<int64_t>(kGroupBytes / most, std::min(call_.batch, threads_), call_.batch);
  }

  void emit_stem(const Padding& shape, int64_t first, int64_t images, const Image& out, bool final) {
    const ConvRecord& conv = net_.stem;
    Step step = new_step(StepKind::kStem, images);
    step.height = call_.height, step.width = call_.width;
    step.out_height = shape.out_height, step.out_width = shape.out_width;
    step.pad_left = shape.left, step.pad_top = shape.top;
    step.kernel = static_cast<int32_t>(conv.kernel), step.stride = static_cast<int32_t>(conv.stride);
    step.x_dtype = call_.x_dtype;
    std::copy_n(call_.x_strides, 4, step.x_strides);
    const int64_t x_bytes = bytes_of(call_.x_dtype);
    step.in.data = call_.x == nullptr
                       ? nullptr
                       : const_cast<char*>(static_cast<const char*>(call_.x)) + first * call_.x_strides[0] * x_bytes;
    step.in_channels = conv.in, step.tile_channels = even(conv.in);
    step.tile_columns = (shape.out_width - 1) * conv.stride + conv.kernel;
    const int64_t pitch = step.tile_columns * step.tile_channels;
    std::vector<Segment> segments;
    for (int64_t row = 0; row < conv.kernel; ++row) {
      segments.push_back({row * pitch, static_cast<int32_t>(conv.stride * step.tile_channels),
                          static_cast<int32_t>(conv.kernel * step.tile_channels)});
    }
    step.gemm = gemm_of(conv, std::move(segments));
    step.out = out;
    step.final_channels = final ? conv.out : 0;
    const int64_t wanted = divide_up(8 * threads_, images);
    step.band_rows =
        std::clamp<int64_t>(shape.out_height / wanted, 1, std::max<int64_t>((64 << 10) / (pitch * conv.stride), 1));
    step.bands = divide_up(shape.out_height, step.band_rows);
    step.items = images * step.bands;
    step.scratch_floats = kBlockFloats + ((step.band_rows - 1) * conv.stride + conv.kernel) * pitch;
    push(step);
  }

  void emit_head(const Padding& shape, int64_t first, int64_t images, const Image& x) {
    const bool pool = net_.pool;
    Step step = new_step(pool ? StepKind::kPool : StepKind::kProject, images);
    step.height = step.out_height = shape.out_height, step.width = step.out_width = shape.out_width;
    step.gemm = pointwise(net_.head, x);
    step.in = x;
    if (!pool) {
      step.out = final_image(first, pixels(shape), net_.head.out);
      step.final_channels = net_.head.out;
      cut_project(&step);
    } else {
      const bool classify = net_.classifier.out > 0;
      step.vectors_out_stride = classify ? round_up(net_.head.out, kGroup) : net_.head.out;
      float* pooled = classify ? floats(kPooled, call_.batch * step.vectors_out_stride) : call_.out;
      step.vectors_out = pooled == nullptr ? nullptr : pooled + first * step.vectors_out_stride;
      step.final_channels = classify ? 0 : net_.head.out;
      step.pool_divisor = static_cast<float>(pixels(shape));
      step.items = images * step.gemm.panels.count;
      step.scratch_floats = kBlockFloats;
    }
    push(step);
  }

  void finish(const Padding& shape, int64_t channels) {
    if (net_.head.out == 0 || !net_.pool) {
      plan_.out_shape = {call_.batch, shape.out_height, shape.out_width, channels};
      return;
    }
    if (net_.classifier.out == 0) {
      plan_.out_shape = {call_.batch, channels};
      return;
    }
    Step step = linear_step(StepKind::kClassify, net_.classifier, call_.batch);
    step.vector_stride = round_up(channels, kGroup);
    step.vectors = floats(kPooled, call_.batch * step.vector_stride);
    step.vectors_out = call_.out, step.vectors_out_stride = net_.classifier.out;
    step.items = divide_up(net_.classifier.out, kGroup);
    push(step);
    plan_.out_shape = {call_.batch, net_.classifier.out};
  }

  const Program& net_;
  const std::vector<BlockRecord>& blocks_;
  const NetworkCall& call_;
};

}  // namespace

NetworkPlan plan_network(const Program& program, const NetworkCall& call) { return Planner(program, call).run(); }

}  // namespace effnet::cpu
