// Inference of one MBConv block whose weights are as the model has them: they are packed on the way, by the threads
// that then run the block.
#include <array>
#include <string>
#include <vector>

#include "cpu/engine/run.h"
#include "cpu/engine/steps.h"
#include "cpu/ops/checks.h"

namespace effnet::cpu {
namespace {

constexpr const char* kOp = "mbconv_inference";

// A weight and what makes its bias: a folded BatchNorm [5, C] (scale and shift are its last two rows) or a vector.
struct Weight {
  Tensor tensor;
  std::optional<Tensor> fold, bias;
  int64_t outputs, depth;
  DType dtype;
};

Weight check_weight(const Tensor& weight, const OptionalTensor& fold, const OptionalTensor& bias, const Shape& shape,
                    const char* name) {
  check_shape(weight, shape, kOp, name);
  Weight w{weight.is_contiguous() ? weight : torch::stable::contiguous(weight),
           std::nullopt,
           std::nullopt,
           shape[0],
           1,
           check_dtype(weight, kOp, name)};
  for (size_t i = 1; i < shape.size(); ++i) w.depth *= shape[i];
  if (fold.has_value()) {
    check_shape(*fold, {5, shape[0]}, kOp, "a folded BatchNorm");
    EFFNET_CHECK(fold->is_cpu() && fold->scalar_type() == ScalarType::Float && fold->is_contiguous(), kOp,
                 "a folded BatchNorm", "dense float32 on the CPU", to_text(*fold));
    w.fold = *fold;
  }
  if (bias.has_value()) {
    check_shape(*bias, {shape[0]}, kOp, "a bias");
    check_dtype(*bias, kOp, "a bias");
    w.bias = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
  }
  return w;
}

struct Block {
  Tensor x;
  std::optional<Weight> expand, squeeze, excite;
  std::optional<Weight> depthwise, project;
  std::array<Activation, 4> acts;  // expand, depthwise, squeeze, gate
  int64_t stride;
  std::vector<int64_t> padding;
  StencilShape shape;
  bool residual;
};

class BlockPlanner : StepBuilder {
 public:
  BlockPlanner(const Block& block, int64_t threads, char* workspace, void* y)
      : StepBuilder(check_dtype(block.x, kOp, "x"), threads, workspace), block_(block), y_(y) {
    // What the depthwise convolution gets and gives is in units of an activation's (kSiluUnit).
    const double before = block.expand.has_value() ? unit_of(block.acts[0]) : 1.0, after = unit_of(block.acts[1]);
    if (block.expand.has_value()) record_.expand = conv(*block.expand, block.acts[0], dtype_, true, before, before);
    record_.depthwise = conv(*block.depthwise, block.acts[1], DType::kFloat32, false, after / before, after);
    record_.depthwise.kernel = block.shape.kernel, record_.depthwise.stride = block.stride;
    record_.depthwise.left = block.padding[0], record_.depthwise.right = block.padding[1];
    record_.depthwise.top = block.padding[2], record_.depthwise.bottom = block.padding[3];
    record_.project = conv(*block.project, Activation::kNone, dtype_, true, 1.0 / after, 1.0);
    if (block.squeeze.has_value()) {
      record_.squeeze = linear(*block.squeeze, block.acts[2], 1.0 / after);
      record_.excite = linear(*block.excite, block.acts[3], 1.0);
    }
    record_.residual = block.residual ? 1 : 0;
  }

  NetworkPlan run() {
    return plan([this] { emit(); });
  }

 private:
  static constexpr int64_t kLine = 64;

  // Space among the packed weights, and what will be put there.
  int64_t pack(Packing packing, int64_t elements) {
    packing.to = reinterpret_cast<void*>(packed_bytes_);
    packing.items = packing.image ? divide_up(packing.outputs, kPackedPixels) : packing.panels.groups;
    offsets_.push_back(packed_bytes_);
    packings_.push_back(packing);
    packed_bytes_ += round_up(elements * (packing.to_dtype == DType::kFloat32 ? 4 : 2), kLine);
    return offsets_.back();
  }

  int64_t matrix(const Weight& w, DType dtype, bool panels, bool pairs, double factor) {
    Packing p{};
    p.factor = static_cast<float>(factor);
    p.from = w.tensor.const_data_ptr(), p.from_dtype = w.dtype;
    p.outputs = w.outputs, p.depth = p.row_stride = w.depth;
    p.scale = w.fold.has_value() ? w.fold->const_data_ptr<float>() + 3 * w.outputs : nullptr;
    p.to_dtype = dtype, p.pairs = pairs && dtype == DType::kBFloat16;
    const int64_t groups = divide_up(w.outputs, kGroup);
    p.panels = panels ? Panels::of(w.outputs) : Panels{groups, groups, 1, 0};
    return pack(p, groups * kGroup * round_up(w.depth, 2));
  }

  int64_t bias(const Weight& w, double factor) {
    Packing p{};
    p.factor = static_cast<float>(factor);
    p.image = true, p.outputs = 1, p.depth = w.outputs;
    if (w.fold.has_value()) p.from = w.fold->const_data_ptr<float>() + 4 * w.outputs;
    if (w.bias.has_value()) {
      p.from = w.bias->const_data_ptr();
      p.from_dtype = check_dtype(*w.bias, kOp, "a bias");
    }
    return pack(p, round_up(w.outputs, kGroup));
  }

  ConvRecord conv(const Weight& w, Activation act, DType dtype, bool panels, double factor, double bias_factor) {
    ConvRecord record{};
    record.in = panels ? w.depth : w.outputs, record.out = w.outputs;
    record.kernel = record.stride = 1;
    record.act = static_cast<int64_t>(act);
    record.weight = matrix(w, dtype, panels, panels, factor), record.bias = bias(w, bias_factor);
    return record;
  }

  LinearRecord linear(const Weight& w, Activation act, double factor) {
    return {w.depth, w.outputs, static_cast<int64_t>(act), matrix(w, dtype_, false, false, factor), bias(w, 1.0)};
  }

  void emit() {
    const int64_t batch = block_.x.size(0), channels = block_.x.size(1);
    const int64_t height = block_.x.size(2), width = block_.x.size(3);
    char* packed = place(kPacked, packed_bytes_);
    weights_ = packed;
    ready_ = packings_;
    for (size_t i = 0; i < ready_.size(); ++i) ready_[i].to = packed == nullptr ? nullptr : packed + offsets_[i];
    Image x{const_cast<void*>(block_.x.const_data_ptr()), height * width * channels, channels};
    if (channels % kGroup != 0) {
      const Image copy = image(kEarlyA, batch, height * width, channels);
      Packing p{};
      p.from = x.data, p.from_dtype = p.to_dtype = dtype_, p.image = true;
      p.outputs = batch * height * width, p.depth = p.row_stride = channels;
      p.to = copy.data, p.items = divide_up(p.outputs, kPackedPixels);
      ready_.push_back(p);
      x = copy;
    }
    Step step = new_step(StepKind::kPack, batch);
    step.packings = ready_.data();
    for (const Packing& p : ready_) step.items += p.items;
    push(step);
    const Padding in{0, 0, height, width};
    const Padding out{block_.padding[0], block_.padding[2], block_.shape.out_height, block_.shape.out_width};
    const int64_t outputs = record_.project.out;
    emit_block(record_, in, out, batch, x, {y_, pixels(out) * outputs, outputs}, true);
    plan_.steps.back().final_dtype = dtype_;
  }

  const Block& block_;
  void* const y_;
  BlockRecord record_{};
  std::vector<Packing> packings_, ready_;
  std::vector<int64_t> offsets_;
  int64_t packed_bytes_ = 0;
};

Tensor mbconv_inference(const Tensor& x, const OptionalTensor& expand, const OptionalTensor& expand_fold,
                        const Tensor& depthwise, const Tensor& depthwise_fold, const Tensor& project,
                        const Tensor& project_fold, const OptionalTensor& w1, const OptionalTensor& b1,
                        const OptionalTensor& w2, const OptionalTensor& b2, int64_t stride,
                        const std::vector<int64_t>& padding, const std::vector<int64_t>& acts, bool residual) {
  EFFNET_CHECK(x.dim() == 4, kOp, "x", "rank 4 [N, C, H, W]", to_text(x));
  EFFNET_CHECK(x.size(0) > 0 && x.size(2) > 0 && x.size(3) > 0, kOp, "x", "at least one pixel", to_text(x));
  EFFNET_CHECK(depthwise.dim() == 4, kOp, "depthwise", "rank 4 [C, 1, k, k]", to_text(depthwise));
  EFFNET_CHECK(project.dim() == 2, kOp, "project", "rank 2 [Cout, C]", to_text(project));
  EFFNET_CHECK(acts.size() == 4, kOp, "acts", "4 numbers", acts.size());
  EFFNET_CHECK(w1.has_value() == w2.has_value() && (!w1.has_value() || w1->dim() == 2), kOp, "w1, w2",
               "both, of rank 2, or none", "something else");
  Block block{};
  block.x = dense_nhwc(x);
  const int64_t channels = depthwise.size(0), outputs = project.size(0);
  if (expand.has_value()) {
    block.expand = check_weight(*expand, expand_fold, std::nullopt, {channels, x.size(1)}, "expand");
  } else {
    EFFNET_CHECK(channels == x.size(1), kOp, "depthwise", std::to_string(x.size(1)) + " channels", channels);
  }
  block.shape = check_stencil(kOp, block.x, depthwise, stride, padding, channels);
  block.depthwise = check_weight(depthwise, depthwise_fold, std::nullopt,
                                 {channels, 1, block.shape.kernel, block.shape.kernel}, "depthwise");
  block.project = check_weight(project, project_fold, std::nullopt, {outputs, channels}, "project");
  if (w1.has_value()) {
    block.squeeze = check_weight(*w1, std::nullopt, b1, {w1->size(0), channels}, "w1");
    block.excite = check_weight(*w2, std::nullopt, b2, {channels, w1->size(0)}, "w2");
  }
  for (size_t i = 0; i < 4; ++i) block.acts[i] = check_activation(acts[i], kOp, "acts");
  block.stride = stride, block.padding = padding, block.residual = residual;
  EFFNET_CHECK(!residual || (stride == 1 && outputs == x.size(1) && block.shape.out_height == x.size(2) &&
                             block.shape.out_width == x.size(3)),
               kOp, "residual", "an output of the shape of x", "another");
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  Tensor y = new_image(block.x, {x.size(0), outputs, block.shape.out_height, block.shape.out_width});
  const int64_t bytes = BlockPlanner(block, threads, nullptr, nullptr).run().workspace_bytes;
  Tensor workspace = torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, kCpu);
  BlockPlanner planner(block, threads, static_cast<char*>(workspace.mutable_data_ptr()), y.mutable_data_ptr());
  run_plan(planner.run(), threads, nullptr);
  return y;
}

}  // namespace
}  // namespace effnet::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CPU, m) {
  m.impl("mbconv_inference", TORCH_BOX(&effnet::cpu::mbconv_inference));
}
