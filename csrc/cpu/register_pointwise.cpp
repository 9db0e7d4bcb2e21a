// The 1x1 convolution of training as dispatcher ops: checks, allocation and threads; arithmetic is in
// pointwise_kernel.cpp.
#include <algorithm>
#include <tuple>
#include <vector>

#include "checks.h"
#include "pointwise.h"
#include "training.h"

namespace effnet::cpu {
namespace {

// The tensors and vectors of one product; they must outlive it.
class Product {
 public:
  PointwiseParams p{};

  // `weight` is [columns of the result or of x][the other]; transposed: rows are columns of the result.
  Product(const char* op, const Tensor& x, const char* name, const Tensor& weight, bool transposed) : op_(op) {
    EFFNET_CHECK(x.dim() == 4, op, name, "rank 4 [N, C, H, W]", to_text(x));
    EFFNET_CHECK(weight.dim() == 2, op, "weight", "rank 2 [Cout, Cin]", to_text(weight));
    p.batch = x.size(0), p.in = x.size(1), p.rows = x.size(2) * x.size(3);
    p.out = weight.size(transposed ? 0 : 1);
    check_shape(weight, transposed ? Shape{p.out, p.in} : Shape{p.in, p.out}, op, "weight");
    in_shape_ = {p.batch, p.in, x.size(2), x.size(3)};
    out_shape_ = {p.batch, p.out, x.size(2), x.size(3)};
    p.bands = plan_bands(p.batch, p.rows).bands;
    p.x = image(x, name, in_shape_);
    pack(weight, transposed);
  }

  const Shape& in_shape() const { return in_shape_; }
  const Shape& out_shape() const { return out_shape_; }

  const float* image(const OptionalTensor& t, const char* name, const Shape& shape) {
    if (!t.has_value()) return nullptr;
    check_shape(*t, shape, op_, name);
    check_float(*t, name);
    kept_.push_back(dense_nhwc(*t));
    return kept_.back().const_data_ptr<float>();
  }

  // A tensor to write into, as it lies in memory.
  float* target(Tensor& t, const char* name, const Shape& shape) {
    check_shape(t, shape, op_, name);
    check_float(t, name);
    EFFNET_CHECK(is_dense_nhwc(t), op_, name, "channels_last memory", "other strides");
    return t.mutable_data_ptr<float>();
  }

  Tensor new_like(const Shape& shape) const { return new_image(kept_.front(), shape); }

  const float* vector(const OptionalTensor& t, const char* name, const Shape& shape) {
    return vectors_.pointer(t, shape, op_, name);
  }

  void run() const {
    const auto kernel = EFFNET_SELECT_ISA(pointwise_tasks);
    torch::stable::parallel_for(0, p.tasks(), 1, [&](int64_t begin, int64_t end) {
      kernel(p, begin, end, thread_scratch(p.scratch_floats()));
    });
  }

 private:
  void check_float(const Tensor& t, const char* name) const {
    EFFNET_CHECK(check_dtype(t, op_, name) == DType::kFloat32, op_, name, "float32", "bfloat16");
  }

  void pack(const Tensor& weight, bool transposed) {
    check_float(weight, "weight");
    const float* from = weight.const_data_ptr<float>();
    const int64_t column_stride = weight.stride(transposed ? 0 : 1), row_stride = weight.stride(transposed ? 1 : 0);
    p.panels = Panels::of(p.out);
    packed_ = new_vector({round_up(p.out, kGroup) * p.in});
    float* to = packed_.mutable_data_ptr<float>();
    p.weights = to;
    for (int64_t panel = 0; panel < p.panels.count; ++panel) {
      const int64_t first = p.panels.first(panel) * kGroup, width = p.panels.width(panel) * kGroup;
      const int64_t valid = std::min(width, p.out - first);
      for (int64_t k = 0; k < p.in; ++k, to += width) {
        const float* row = from + k * row_stride + first * column_stride;
        for (int64_t i = 0; i < valid; ++i) to[i] = row[i * column_stride];
        std::fill(to + valid, to + width, 0.0f);
      }
    }
  }

  const char* op_;
  Shape in_shape_, out_shape_;
  std::vector<Tensor> kept_;
  Vectors vectors_;
  Tensor packed_;
};

std::tuple<Tensor, Tensor> pointwise_forward(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                                             const OptionalTensor& shift, int64_t act, const OptionalTensor& gate,
                                             bool stats) {
  constexpr const char* op = "pointwise_forward";
  Product product(op, x, "x", weight, true);
  PointwiseParams& p = product.p;
  p.act = check_activation(act, op, "act");
  p.scale = product.vector(scale, "scale", {p.in});
  p.shift = product.vector(shift, "shift", {p.in});
  p.gate = product.vector(gate, "gate", {p.batch, p.in});
  const bool forms = p.scale != nullptr || p.shift != nullptr || p.gate != nullptr || p.act != Activation::kNone;
  p.form = forms ? Forming::kActivation : Forming::kNone;
  Tensor y = product.new_like(product.out_shape());
  p.y = y.mutable_data_ptr<float>();
  Tensor moments = new_vector(stats ? Shape{p.tasks(), 3, p.out} : Shape{0});
  if (stats) p.moments = moments.mutable_data_ptr<float>();
  product.run();
  return {y, moments};
}

std::tuple<Tensor, Tensor, Tensor> pointwise_data_grad(
    const Tensor& dy, const Tensor& weight, Tensor dx, const OptionalTensor& z, const OptionalTensor& a,
    const OptionalTensor& b, const OptionalTensor& c, const OptionalTensor& mean, const OptionalTensor& row_scale,
    const OptionalTensor& input, const OptionalTensor& scale, const OptionalTensor& shift, int64_t act,
    const OptionalTensor& in_mean, const OptionalTensor& in_invstd, const OptionalTensor& gate, bool write) {
  constexpr const char* op = "pointwise_data_grad";
  Product product(op, dy, "dy", weight, false);
  PointwiseParams& p = product.p;
  p.y = product.target(dx, "dx", product.out_shape());
  p.z = product.image(z, "z", product.in_shape());
  p.a = product.vector(a, "a", {p.in});
  p.b = product.vector(b, "b", {p.in});
  p.c = product.vector(c, "c", {p.in});
  p.mean = product.vector(mean, "mean", {p.in});
  p.row_scale = product.vector(row_scale, "row_scale", {p.batch});
  p.form = p.z != nullptr || p.row_scale != nullptr ? Forming::kInputGrad : Forming::kNone;
  const bool forms = p.form != Forming::kNone && write;
  Tensor dz = forms ? product.new_like(product.in_shape()) : new_vector({0});
  if (forms) p.formed = dz.mutable_data_ptr<float>();

  p.input = product.image(input, "input", product.out_shape());
  const bool sums = p.input != nullptr;
  EFFNET_CHECK(!sums || (scale.has_value() && shift.has_value() && in_mean.has_value() && in_invstd.has_value()), op,
               "input", "scale, shift, in_mean and in_invstd beside it", "some of them missing");
  p.in_scale = product.vector(scale, "scale", {p.out});
  p.in_shift = product.vector(shift, "shift", {p.out});
  p.in_mean = product.vector(in_mean, "in_mean", {p.out});
  p.in_invstd = product.vector(in_invstd, "in_invstd", {p.out});
  p.in_gate = product.vector(gate, "gate", {p.batch, p.out});
  p.in_act = check_activation(act, op, "act");
  Tensor activation = sums && write ? product.new_like(product.out_shape()) : new_vector({0});
  if (sums && write) p.activation = activation.mutable_data_ptr<float>();
  Tensor partial = new_vector(sums ? Shape{p.tasks(), 5, p.out} : Shape{0});
  Tensor merged = new_vector(sums ? Shape{5, p.batch, p.out} : Shape{0});
  if (sums) p.sums = partial.mutable_data_ptr<float>();
  product.run();
  if (sums) merge_bands(p.sums, p.batch, p.bands, 5, p.out, merged.mutable_data_ptr<float>());
  return {dz, activation, merged};
}

}  // namespace
}  // namespace effnet::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CPU, m) {
  m.impl("pointwise_forward", TORCH_BOX(&effnet::cpu::pointwise_forward));
  m.impl("pointwise_data_grad", TORCH_BOX(&effnet::cpu::pointwise_data_grad));
}
