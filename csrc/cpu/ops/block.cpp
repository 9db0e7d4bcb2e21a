// Inference of one MBConv block whose weights are as the model has them: they are packed on the way, by the threads
// that then run the block.
#include <string>
#include <vector>

#include "cpu/engine/compile.h"
#include "cpu/engine/run.h"
#include "cpu/engine/steps.h"
#include "cpu/ops/checks.h"

namespace effnet::cpu {
namespace {

constexpr const char* kOp = "mbconv_inference";

// A layer whose tensors must outlive the source that points to them.
struct Layer {
  LayerSource source{};
  std::vector<Tensor> kept;

  const void* keep(const Tensor& t) {
    kept.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
    return kept.back().const_data_ptr();
  }
};

// `fold` is a folded BatchNorm, [5, out]: scale and shift are its last two rows. Without it the bias is a vector.
Layer read_layer(const Tensor& weight, const OptionalTensor& fold, const OptionalTensor& bias, const Shape& shape,
                 Activation act, const char* name) {
  check_shape(weight, shape, kOp, name);
  Layer layer;
  LayerSource& s = layer.source;
  s.out = shape[0], s.in = shape[1], s.kernel = shape.size() == 4 ? shape[2] : 1, s.stride = 1;
  s.act = act;
  s.weight_dtype = check_dtype(weight, kOp, name);
  s.weight = layer.keep(weight);
  if (fold.has_value()) {
    check_shape(*fold, {5, s.out}, kOp, "a folded BatchNorm");
    EFFNET_CHECK(fold->is_cpu() && fold->scalar_type() == ScalarType::Float && fold->is_contiguous(), kOp,
                 "a folded BatchNorm", "dense float32 on the CPU", to_text(*fold));
    s.scale = static_cast<const float*>(layer.keep(*fold)) + 3 * s.out;
    s.bias = s.scale + s.out;
  }
  if (bias.has_value()) {
    check_shape(*bias, {s.out}, kOp, "a bias");
    s.bias_dtype = check_dtype(*bias, kOp, "a bias");
    s.bias = layer.keep(*bias);
  }
  return layer;
}

struct Block {
  Tensor x;
  BlockSource source;
  StencilShape shape;
};

class BlockPlanner : StepBuilder {
 public:
  BlockPlanner(const Block& block, int64_t threads, char* workspace, void* y)
      : StepBuilder(check_dtype(block.x, kOp, "x"), threads, workspace), block_(block), y_(y), packer_(dtype_) {
    record_ = packer_.block(block.source);
  }

  NetworkPlan run() {
    return plan([this] { emit(); });
  }

 private:
  void emit() {
    const int64_t batch = block_.x.size(0), channels = block_.x.size(1);
    const int64_t height = block_.x.size(2), width = block_.x.size(3);
    char* packed = place(kPacked, packer_.bytes());
    weights_ = packed;
    packings_ = packer_.packings(packed);
    Image x{const_cast<void*>(block_.x.const_data_ptr()), height * width * channels, channels};
    if (channels % kGroup != 0) {
      const Image copy = image(kEarlyA, batch, height * width, channels);
      Packing p{};
      p.from = x.data, p.from_dtype = p.to_dtype = dtype_, p.image = true;
      p.outputs = batch * height * width, p.depth = p.row_stride = channels;
      p.to = copy.data, p.items = divide_up(p.outputs, kPackedPixels);
      packings_.push_back(p);
      x = copy;
    }
    push(pack_step(packings_));
    const Padding in{0, 0, height, width};
    const Padding out{record_.depthwise.left, record_.depthwise.top, block_.shape.out_height, block_.shape.out_width};
    const int64_t outputs = record_.project.out;
    emit_block(record_, in, out, batch, x, {y_, pixels(out) * outputs, outputs}, true);
    plan_.steps.back().final_dtype = dtype_;
  }

  const Block& block_;
  void* const y_;
  Packer packer_;
  BlockRecord record_{};
  std::vector<Packing> packings_;
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
  Activation act[4];
  for (size_t i = 0; i < 4; ++i) act[i] = check_activation(acts[i], kOp, "acts");
  Block block{};
  block.x = dense_nhwc(x);
  const int64_t channels = depthwise.size(0), outputs = project.size(0);
  Layer layers[5];
  if (expand.has_value()) {
    layers[0] = read_layer(*expand, expand_fold, std::nullopt, {channels, x.size(1)}, act[0], "expand");
  } else {
    EFFNET_CHECK(channels == x.size(1), kOp, "depthwise", std::to_string(x.size(1)) + " channels", channels);
  }
  block.shape = check_stencil(kOp, block.x, depthwise, stride, padding, channels);
  const int64_t kernel = block.shape.kernel;
  layers[1] = read_layer(depthwise, depthwise_fold, std::nullopt, {channels, 1, kernel, kernel}, act[1], "depthwise");
  LayerSource& stencil = layers[1].source;
  stencil.stride = stride, stencil.left = padding[0], stencil.right = padding[1];
  stencil.top = padding[2], stencil.bottom = padding[3];
  if (w1.has_value()) {
    layers[2] = read_layer(*w1, std::nullopt, b1, {w1->size(0), channels}, act[2], "w1");
    layers[3] = read_layer(*w2, std::nullopt, b2, {channels, w1->size(0)}, act[3], "w2");
  }
  layers[4] = read_layer(project, project_fold, std::nullopt, {outputs, channels}, Activation::kNone, "project");
  EFFNET_CHECK(!residual || (stride == 1 && outputs == x.size(1) && block.shape.out_height == x.size(2) &&
                             block.shape.out_width == x.size(3)),
               kOp, "residual", "an output of the shape of x", "another");
  block.source = {layers[0].source, stencil, layers[2].source, layers[3].source, layers[4].source, residual};
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
