#include "network_plan.h"

#include <algorithm>

namespace effnet::cpu {
namespace {

// A thread's ring should leave room in 1 MB of second-level cache for the rows of x and the weights.
constexpr int64_t kRingBytes = 128 << 10;
// What a block of pixels of the projection reads, over and over, once per panel.
constexpr int64_t kProjectBytes = 256 << 10;
// Images go through the late blocks in groups whose tensors stay in the last-level cache.
constexpr int64_t kGroupBytes = 8 << 20;

struct Padding {
  int64_t left, top, out_height, out_width;
};

// TensorFlow's "same": ceil(n / stride) outputs, the odd one of the padding on the right.
void same_padding(int64_t size, const ConvRecord& conv, int64_t* before, int64_t* out) {
  *out = divide_up(size, conv.stride);
  *before = std::max<int64_t>((*out - 1) * conv.stride + conv.kernel - size, 0) / 2;
}

Padding padding_of(const ConvRecord& conv, int64_t height, int64_t width) {
  Padding p{conv.left, conv.top, 0, 0};
  if (conv.same != 0) {
    same_padding(width, conv, &p.left, &p.out_width);
    same_padding(height, conv, &p.top, &p.out_height);
  } else {
    const int64_t columns = width + conv.left + conv.right - conv.kernel;
    const int64_t rows = height + conv.top + conv.bottom - conv.kernel;
    p.out_width = columns < 0 ? 0 : columns / conv.stride + 1;
    p.out_height = rows < 0 ? 0 : rows / conv.stride + 1;
  }
  return p;
}

enum Region { kEarlyA, kEarlyB, kMiddle, kLateA, kLateB, kDepthwise, kSums, kHidden, kGates, kPooled, kRegions };

class Planner {
 public:
  Planner(const NetworkRecord& network, const BlockRecord* blocks, const NetworkCall& call)
      : net_(network), blocks_(blocks), call_(call), dtype_(static_cast<DType>(network.dtype)) {}

  NetworkPlan run() {
    // The first pass finds out how large the regions are, the second one knows where they begin.
    emit_network();
    int64_t offset = 0;
    for (int i = 0; i < kRegions; ++i) {
      base_[i] = call_.workspace == nullptr ? nullptr : call_.workspace + offset;
      // Some space between them, so that regions do not begin at the same cache sets.
      offset += round_up(bytes_[i], 64) + 64 * (2 * i + 1);
    }
    plan_ = NetworkPlan{};
    emit_network();
    plan_.workspace_bytes = offset;
    return std::move(plan_);
  }

 private:
  int64_t element() const { return dtype_ == DType::kFloat32 ? 4 : 2; }
  int64_t even(int64_t k) const { return dtype_ == DType::kFloat32 ? k : round_up(k, 2); }

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

  // The caller's tensor as an image of fp32 values.
  Image final_image(int64_t first, int64_t pixels, int64_t channels) const {
    return at_image({call_.out, pixels * channels, channels}, first, 4);
  }

  // `count` weights at an offset that compile_network chose. What lies outside the weights is found out before any is
  // read.
  const void* weights_at(int64_t offset, int64_t count, int64_t element_bytes) {
    plan_.weight_bytes = std::max(plan_.weight_bytes, offset < 0 ? INT64_MAX : offset + count * element_bytes);
    return call_.weights == nullptr ? nullptr : call_.weights + offset;
  }

  const float* vector(int64_t offset, int64_t count) {
    return static_cast<const float*>(weights_at(offset, round_up(count, kGroup), 4));
  }

  Gemm gemm_of(const ConvRecord& conv, std::vector<Segment> segments) {
    int64_t depth = 0;
    for (const Segment& segment : segments) depth += segment.length;
    plan_.segments.push_back(std::move(segments));
    const std::vector<Segment>& kept = plan_.segments.back();
    Gemm gemm{};
    gemm.weights = weights_at(conv.weight, depth * round_up(conv.out, kGroup), element());
    gemm.bias = vector(conv.bias, conv.out);
    gemm.depth = depth, gemm.panels = Panels::of(conv.out), gemm.channels = conv.out;
    gemm.segments = kept.data(), gemm.segment_count = static_cast<int32_t>(kept.size());
    gemm.act = static_cast<Activation>(conv.act);
    return gemm;
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

  void emit_network() {
    const int64_t batch = call_.batch;
    const int64_t blocks = net_.blocks;
    std::vector<Padding> shapes{padding_of(net_.stem, call_.height, call_.width)};
    check_shape(shapes[0], "stem");
    for (int64_t i = 0; i < blocks; ++i) {
      shapes.push_back(padding_of(blocks_[i].depthwise, shapes[i].out_height, shapes[i].out_width));
      check_shape(shapes.back(), "depthwise");
    }
    if (plan_.too_small != nullptr) return;
    const int64_t early = early_blocks(shapes);
    const int64_t early_group = std::min(batch, std::max<int64_t>(call_.threads, 1));
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

  static int64_t pixels(const Padding& shape) { return shape.out_height * shape.out_width; }

  void check_shape(const Padding& shape, const char* layer) {
    if (plan_.too_small == nullptr && pixels(shape) <= 0) plan_.too_small = layer;
  }

  // Blocks before the first one whose weights are larger than what it makes of an image: through them few images go at
  // a time, so that their tensors stay in cache; through the others many, so that weights do.
  int64_t early_blocks(const std::vector<Padding>& shapes) const {
    for (int64_t i = 0; i < net_.blocks; ++i) {
      const BlockRecord& b = blocks_[i];
      const int64_t weights = (b.expand.out > 0 ? b.expand.in : 0) * b.depthwise.out + b.project.out * b.depthwise.out;
      if (weights > pixels(shapes[i]) * b.depthwise.in /
                            std::max<int64_t>(b.depthwise.in / std::max<int64_t>(b.project.out, 1), 1) +
                        pixels(shapes[i + 1]) * b.depthwise.out) {
        return i;
      }
    }
    return net_.blocks;
  }

  int64_t late_images(const std::vector<Padding>& shapes, int64_t early) const {
    int64_t most = 1;
    for (int64_t i = early; i < net_.blocks; ++i) {
      most = std::max(most, pixels(shapes[i + 1]) * blocks_[i].depthwise.out * element());
    }
    return std::clamp<int64_t>(kGroupBytes / most, std::min(call_.batch, call_.threads), call_.batch);
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
    const int64_t x_bytes = call_.x_dtype == DType::kFloat32 ? 4 : 2;
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
    const int64_t wanted = divide_up(8 * call_.threads, images);
    step.band_rows =
        std::clamp<int64_t>(shape.out_height / wanted, 1, std::max<int64_t>((64 << 10) / (pitch * conv.stride), 1));
    step.bands = divide_up(shape.out_height, step.band_rows);
    step.items = images * step.bands;
    step.scratch_floats = kBlockPixels() + ((step.band_rows - 1) * conv.stride + conv.kernel) * pitch;
    push(step);
  }

  // Floats of a block of pixels and some vectors beside it; kernels know the exact number.
  static int64_t kBlockPixels() { return 40 * kPanel; }

  void emit_block(const BlockRecord& b, const Padding& in_shape, const Padding& shape, int64_t images, const Image& x,
                  const Image& y, bool final) {
    const int64_t channels = b.depthwise.out, groups = divide_up(channels, kGroup), out_pixels = pixels(shape);
    const bool gated = b.squeeze.out > 0;
    Step step = new_step(StepKind::kExpandDepthwise, images);
    step.height = in_shape.out_height, step.width = in_shape.out_width;
    step.out_height = shape.out_height, step.out_width = shape.out_width;
    step.pad_left = shape.left, step.pad_top = shape.top;
    step.kernel = static_cast<int32_t>(b.depthwise.kernel), step.stride = static_cast<int32_t>(b.depthwise.stride);
    step.depthwise_act = static_cast<Activation>(b.depthwise.act);
    step.taps = vector(b.depthwise.weight, groups * kGroup * step.kernel * step.kernel);
    step.taps_bias = vector(b.depthwise.bias, channels);
    step.chunks = Panels::of(channels);
    step.in = x;
    step.out = image(kDepthwise, images, out_pixels, channels);
    if (b.expand.out > 0) step.gemm = pointwise(b.expand, x);
    if (gated) step.sums = floats(kSums, images * shape.out_height * groups * kGroup);
    cut_depthwise(&step, b.expand.out > 0 ? b.expand.in : 0);
    push(step);

    std::vector<Segment> segments;
    for (int64_t chunk = 0; chunk < step.chunks.count; ++chunk) {
      const int64_t first = step.chunks.first(chunk) * kGroup, width = step.chunks.width(chunk) * kGroup;
      segments.push_back({first * out_pixels, static_cast<int32_t>(width),
                          static_cast<int32_t>(even(std::min(width, channels - first)))});
    }
    Step project = new_step(StepKind::kProject, images);
    project.height = project.out_height = shape.out_height, project.width = project.out_width = shape.out_width;
    project.gemm = gemm_of(b.project, std::move(segments));
    project.in = step.out, project.out = y;
    if (b.residual != 0) project.residual = x;
    project.final_channels = final ? b.project.out : 0;
    project.chunks = step.chunks;
    if (gated) emit_gate(b, step, &project);
    cut_project(&project);
    push(project);
  }

  void emit_gate(const BlockRecord& b, const Step& depthwise, Step* project) {
    const int64_t hidden_stride = round_up(b.squeeze.out, kGroup), images = depthwise.images;
    float* hidden = floats(kHidden, images * hidden_stride);
    Step squeeze = linear_step(StepKind::kSqueeze, b.squeeze, images);
    squeeze.sums = depthwise.sums, squeeze.chunks = depthwise.chunks, squeeze.out_height = depthwise.out_height;
    squeeze.pool_divisor = static_cast<float>(depthwise.out_height * depthwise.out_width);
    squeeze.vectors_out = hidden, squeeze.vectors_out_stride = hidden_stride;
    squeeze.items = images * divide_up(b.squeeze.out, kGroup);
    squeeze.scratch_floats = depthwise.chunks.groups * kGroup;
    push(squeeze);

    Step excite = linear_step(StepKind::kExcite, b.excite, images);
    excite.vectors = hidden, excite.vector_stride = hidden_stride;
    excite.chunks = depthwise.chunks;
    excite.vectors_out_stride = excite.chunks.groups * kGroup;
    excite.vectors_out = floats(kGates, images * excite.vectors_out_stride);
    excite.items = images * excite.chunks.count;
    push(excite);
    project->vectors = excite.vectors_out, project->vector_stride = excite.vectors_out_stride;
    project->scaling = Scaling::kBlock;
  }

  Step linear_step(StepKind kind, const LinearRecord& linear, int64_t images) {
    Step step = new_step(kind, images);
    step.linear_weight = weights_at(linear.weight, round_up(linear.out, kGroup) * linear.in, element());
    step.linear_bias = vector(linear.bias, linear.out);
    step.linear_in = linear.in, step.linear_out = linear.out;
    step.linear_act = static_cast<Activation>(linear.act);
    step.scratch_floats = 4 * kGroup;
    return step;
  }

  // Bands let several threads share an image of few chunks; each computes the rows that its kernel needs beyond its own
  // anew, so there are as few as an even division of the work allows. Costs in vector instructions.
  void cut_depthwise(Step* step, int64_t depth) const {
    int64_t best = 0;
    const int64_t threads = std::max<int64_t>(call_.threads, 1);
    for (int64_t wanted = 1; wanted <= std::min<int64_t>(step->out_height, 64); ++wanted) {
      const int64_t rows = divide_up(step->out_height, wanted), bands = divide_up(step->out_height, rows);
      // A thread that has the same rows in each layer reads what it has written itself.
      const bool apart = step->images >= threads || bands % threads == 0;
      if (bands > 1 && !apart) continue;
      const int64_t foreign = (step->height * step->width * step->in.pixel_stride +
                               step->out_height * step->out_width * step->out.pixel_stride) *
                              element() / 2;
      const int64_t in_rows = std::min(step->height, (rows - 1) * step->stride + step->kernel);
      const int64_t expand = in_rows * step->width * kPanelGroups * (depth > 0 ? depth + 14 : 2);
      const int64_t convolve = rows * step->out_width * kPanelGroups * (step->kernel * step->kernel + 16);
      const int64_t rounds = divide_up(step->images * step->chunks.count * bands, threads);
      const int64_t cost = rounds * (expand + convolve + 1500) + (apart ? 0 : foreign / 8);
      if (best == 0 || cost < best) {
        best = cost;
        step->band_rows = rows, step->bands = bands;
      }
    }
    step->ring_columns = (step->out_width - 1) * step->stride + step->kernel;
    const int64_t row_bytes = step->ring_columns * kPanel * 4;
    // Rows are made several at a time: 32 pixels and more fill the matrix product's tiles.
    const int64_t fit = (kRingBytes / row_bytes - step->kernel) / step->stride + 1;
    const int64_t enough = divide_up(64, step->width * step->stride);
    step->step_rows = std::clamp<int64_t>(std::min(fit, enough), 1, step->band_rows);
    step->ring_rows = (step->step_rows - 1) * step->stride + step->kernel;
    step->items = step->images * step->chunks.count * step->bands;
    step->scratch_floats = step->ring_rows * row_bytes / 4 + kBlockPixels() + step->out_width * kGroup;
  }

  // Threads share an image's pixels, each reading all weights, or where those are larger than all pixels (and the
  // pixels fit a scaled copy per thread), its panels.
  void cut_project(Step* step) {
    const int64_t out_pixels = step->out_height * step->out_width, threads = std::max<int64_t>(call_.threads, 1);
    const int64_t columns = step->gemm.panels.groups * kGroup, depth = round_up(step->gemm.depth, kGroup);
    step->panel_parts = 1;
    if (step->images < threads && columns > out_pixels && out_pixels * depth * element() <= kProjectBytes) {
      step->panel_parts = step->gemm.panels.count;
      step->pixel_blocks = out_pixels >= 32 ? 2 : 1;
    } else {
      const int64_t cached = divide_up(out_pixels * depth * element(), kProjectBytes);
      const int64_t shared = divide_up(2 * threads, step->images);
      const int64_t blocks = std::max(cached, shared);
      step->pixel_blocks = step->images < threads ? round_up(blocks, threads) : blocks;
      step->pixel_blocks = std::clamp<int64_t>(step->pixel_blocks, 1, std::max<int64_t>(out_pixels / 8, 1));
    }
    step->items = step->images * step->pixel_blocks * step->panel_parts;
    step->scratch_floats = kBlockPixels();
    if (step->scaling == Scaling::kNone) return;
    const int64_t block = divide_up(out_pixels, step->pixel_blocks);
    int64_t scaled = depth * columns, rows = 0;
    if (step->panel_parts > 1) {
      step->scaling = Scaling::kImage, rows = out_pixels;
    } else if (block < columns) {
      step->scaling = Scaling::kBlock, rows = block;
    } else {
      step->scaling = Scaling::kWeights;
    }
    if (rows > 0) {
      scaled = rows * step->chunks.groups * kGroup;
      std::vector<Segment> segments(step->gemm.segments, step->gemm.segments + step->gemm.segment_count);
      for (int64_t i = 0; i < step->chunks.count; ++i) segments[i].offset = step->chunks.first(i) * kGroup * rows;
      plan_.segments.push_back(std::move(segments));
      step->scaled_segments = plan_.segments.back().data();
    }
    step->scratch_floats += scaled;
  }

  void emit_head(const Padding& shape, int64_t first, int64_t images, const Image& x) {
    const bool pool = net_.pool != 0;
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
      step.scratch_floats = kBlockPixels();
    }
    push(step);
  }

  void finish(const Padding& shape, int64_t channels) {
    if (net_.head.out == 0 || net_.pool == 0) {
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

  const NetworkRecord& net_;
  const BlockRecord* blocks_;
  const NetworkCall& call_;
  DType dtype_;
  NetworkPlan plan_;
  char* base_[kRegions] = {};
  int64_t bytes_[kRegions] = {};
};

}  // namespace

NetworkPlan plan_network(const NetworkRecord& network, const BlockRecord* blocks, const NetworkCall& call) {
  return Planner(network, blocks, call).run();
}

}  // namespace effnet::cpu
