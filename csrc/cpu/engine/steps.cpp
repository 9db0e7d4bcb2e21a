#include "cpu/engine/steps.h"

#include <algorithm>

#include "cpu/gemm/multiply_amx.h"

namespace effnet::cpu {
namespace {

// A thread's ring should leave room in 1 MB of second-level cache for the rows of x and the weights.
constexpr int64_t kRingBytes = 256 << 10;
// The depthwise output of a step goes past the caches if it is larger: hardly any of it would still be there when it is
// read, and a line that is written through the caches is read first (150 x 150 x 288 in fp32 takes a fifth longer).
constexpr int64_t kStreamBytes = 4 << 20;
// If threads share an image, already from here on: the lines were last read by another core, which has to give them up
// first. Where that core has another last-level cache the step takes up to a third longer; where it has the same one,
// streaming and not cost the same. In bfloat16, whose rows of 16 are half lines that must be put together first, it
// pays later.
constexpr int64_t kStreamSharedBytes = 256 << 10, kStreamSharedHalfBytes = 1 << 20;
// What a block of pixels of the projection reads, over and over, once per panel.
constexpr int64_t kProjectBytes = 256 << 10;

// TensorFlow's "same": ceil(n / stride) outputs, the odd one of the padding on the right.
void same_padding(int64_t size, const ConvRecord& conv, int64_t* before, int64_t* out) {
  *out = divide_up(size, conv.stride);
  *before = std::max<int64_t>((*out - 1) * conv.stride + conv.kernel - size, 0) / 2;
}

}  // namespace

Padding padding_of(const ConvRecord& conv, int64_t height, int64_t width) {
  Padding p{conv.left, conv.top, 0, 0};
  if (conv.same) {
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

Step pack_step(const std::vector<Packing>& packings) {
  Step step{};
  step.kind = StepKind::kPack;
  step.packings = packings.data();
  for (const Packing& packing : packings) step.items += packing.items;
  return step;
}

Gemm StepBuilder::gemm_of(const ConvRecord& conv, std::vector<Segment> segments) {
  int64_t depth = 0;
  for (const Segment& segment : segments) depth += segment.length;
  plan_.segments.push_back(std::move(segments));
  const std::vector<Segment>& kept = plan_.segments.back();
  Gemm gemm{};
  gemm.weights = weights_at(conv.weight, depth * round_up(conv.out, kGroup), element());
  gemm.bias = vector(conv.bias, conv.out);
  gemm.depth = depth, gemm.panels = Panels::of(conv.out), gemm.channels = conv.out;
  gemm.segments = kept.data(), gemm.segment_count = static_cast<int32_t>(kept.size());
  gemm.act = conv.act;
  if (dtype_ == StorageType::kBFloat16 && active_isa() == Isa::kAmx)
    gemm.tiles = amx::steps_of(kept.data(), gemm.segment_count);
  return gemm;
}

void StepBuilder::emit_block(const BlockRecord& b, const Padding& in_shape, const Padding& shape, int64_t images,
                             const Image& x, const Image& y, bool final) {
  const int64_t channels = b.depthwise.out, groups = divide_up(channels, kGroup), out_pixels = pixels(shape);
  const bool gated = b.squeeze.out > 0;
  Step step = new_step(StepKind::kExpandDepthwise, images);
  step.height = in_shape.out_height, step.width = in_shape.out_width;
  step.out_height = shape.out_height, step.out_width = shape.out_width;
  step.pad_left = shape.left, step.pad_top = shape.top;
  step.kernel = static_cast<int32_t>(b.depthwise.kernel), step.stride = static_cast<int32_t>(b.depthwise.stride);
  step.depthwise_act = b.depthwise.act;
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
  if (b.residual) project.residual = x;
  project.final_channels = final ? b.project.out : 0;
  project.chunks = step.chunks;
  if (gated) emit_gate(b, step, &project);
  cut_project(&project);
  push(project);
}

void StepBuilder::emit_gate(const BlockRecord& b, const Step& depthwise, Step* project) {
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

Step StepBuilder::linear_step(StepKind kind, const LinearRecord& linear, int64_t images) {
  Step step = new_step(kind, images);
  step.linear_weight = weights_at(linear.weight, round_up(linear.out, kGroup) * linear.in, element());
  step.linear_bias = vector(linear.bias, linear.out);
  step.linear_in = linear.in, step.linear_out = linear.out;
  step.linear_act = linear.act;
  step.scratch_floats = 4 * kGroup;
  return step;
}

// Bands let several threads share an image of few chunks; each computes the rows that its kernel needs beyond its own
// anew, so there are as few as an even division of the work allows. Costs in vector instructions.
void StepBuilder::cut_depthwise(Step* step, int64_t depth) const {
  int64_t best = 0;
  const int64_t threads = threads_;
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
  // Two output rows at least share what their tiles have read.
  const int64_t enough = std::max<int64_t>(divide_up(64, step->width * step->stride), 2);
  step->step_rows = std::clamp<int64_t>(std::min(fit, enough), 1, step->band_rows);
  step->ring_rows = (step->step_rows - 1) * step->stride + step->kernel;
  step->items = step->images * step->chunks.count * step->bands;
  const int64_t outputs = step->images * step->out_height * step->out_width * step->chunks.groups * kGroup;
  const int64_t shared_bytes = element() == 4 ? kStreamSharedBytes : kStreamSharedHalfBytes;
  const bool shared = threads > 1 && step->images < threads;
  step->stream = outputs * element() >= (shared ? shared_bytes : kStreamBytes);
  const int64_t copied = step->stream ? step->step_rows * kTileColumns * kPanel : 0;
  step->scratch_floats = step->ring_rows * row_bytes / 4 + kBlockFloats + copied;
}

// Threads share an image's pixels, each reading all weights, or where those are larger than all pixels (and the
// pixels fit a scaled copy per thread), its panels.
void StepBuilder::cut_project(Step* step) {
  const int64_t out_pixels = step->out_height * step->out_width, threads = threads_;
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
  step->scratch_floats = kBlockFloats;
  if (step->scaling == Scaling::kNone) return;
  const int64_t block = divide_up(out_pixels, step->pixel_blocks);
  int64_t scaled = depth * columns, rows = 0;
  if (step->panel_parts > 1) {
    step->scaling = Scaling::kImage, rows = out_pixels;
  } else if (out_pixels < 4 * columns) {
    // A thread copies either its pixels or all weights, once. Four times, for two threads: the copy also brings the
    // pixels into the cache. The number of threads has no say, because the two round differently.
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

}  // namespace effnet::cpu
