// The 1x1 convolution of training as dispatcher ops: checks, allocation and threads; arithmetic is in
// pointwise_kernel.cpp and pointwise_backward_kernel.cpp.
#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/isa/scratch.h"
#include "cpu/ops/checks.h"
#include "cpu/passes/band_sums.h"
#include "cpu/pointwise/backward.h"
#include "cpu/pointwise/forward.h"

namespace effnet::cpu {
namespace {

void check_float(const Tensor& t, const char* op, const char* name) {
  EFFNET_CHECK(check_dtype(t, op, name) == StorageType::kFloat32, op, name, "float32", "bfloat16");
}

// The tensors and vectors of one product; they must outlive it.
class Product : public Operands {
 public:
  Product(const char* op, const Tensor& x, const char* name, const Tensor& weight) : Operands(op, x, name) {
    EFFNET_CHECK(x.dim() == 4, op, name, "rank 4 [N, C, H, W]", to_text(x));
    check_float(x, op, name);
    EFFNET_CHECK(weight.dim() == 2, op, "weight", "rank 2 [Cout, Cin]", to_text(weight));
    batch = x.size(0), rows = x.size(2) * x.size(3), in = x.size(1), out = weight.size(0);
    check_shape(weight, {out, in}, op, "weight");
    check_float(weight, op, "weight");
    in_shape = {batch, in, x.size(2), x.size(3)};
    out_shape = {batch, out, x.size(2), x.size(3)};
  }

  // A matrix of `depth` rows, element (k, column) at k * row_stride + column * column_stride, in panels of columns.
  const float* pack(const Tensor& weight, int64_t depth, int64_t row_stride, int64_t columns, int64_t column_stride) {
    const float* from = weight.const_data_ptr<float>();
    const Panels panels = Panels::of(columns);
    packed_.push_back(new_vector({round_up(columns, kGroup) * depth}));
    float* to = packed_.back().mutable_data_ptr<float>();
    for (int64_t panel = 0; panel < panels.count; ++panel) {
      const int64_t first = panels.first(panel) * kGroup, width = panels.width(panel) * kGroup;
      const int64_t valid = std::min(width, columns - first);
      for (int64_t k = 0; k < depth; ++k, to += width) {
        const float* row = from + k * row_stride + first * column_stride;
        for (int64_t i = 0; i < valid; ++i) to[i] = row[i * column_stride];
        std::fill(to + valid, to + width, 0.0f);
      }
    }
    return packed_.back().const_data_ptr<float>();
  }

  int64_t batch, rows, in, out;
  Shape in_shape, out_shape;

 private:
  std::vector<Tensor> packed_;
};

std::tuple<Tensor, Tensor> pointwise_forward(const Tensor& x, const Tensor& weight, const OptionalTensor& scale,
                                             const OptionalTensor& shift, int64_t act, const OptionalTensor& gate,
                                             bool stats) {
  constexpr const char* op = "pointwise_forward";
  Product from(op, x, "x", weight);
  PointwiseParams p{};
  p.batch = from.batch, p.rows = from.rows, p.in = from.in, p.out = from.out;
  p.bands = plan_bands(p.batch, p.rows).bands;
  p.x = static_cast<const float*>(from.image(x, "x", from.in_shape));
  p.act = check_activation(act, op, "act");
  p.scale = from.vector(scale, "scale", {p.in});
  p.shift = from.vector(shift, "shift", {p.in});
  p.gate = from.vector(gate, "gate", {p.batch, p.in});
  p.forms = p.scale != nullptr || p.shift != nullptr || p.gate != nullptr || p.act != Activation::kNone;
  p.panels = Panels::of(p.out);
  p.weights = from.pack(weight, p.in, weight.stride(1), p.out, weight.stride(0));
  Tensor y = new_image(x, from.out_shape);
  p.y = y.mutable_data_ptr<float>();
  Tensor moments = new_vector(stats ? Shape{p.tasks(), 3, p.out} : Shape{0});
  if (stats) p.moments = moments.mutable_data_ptr<float>();
  const auto kernel = EFFNET_SELECT_ISA(pointwise_tasks);
  torch::stable::parallel_for(
      0, p.tasks(), 1, [&](int64_t begin, int64_t end) { kernel(p, begin, end, thread_scratch(p.scratch_floats())); });
  return {y, moments};
}

// dweight[o, i] = sum of the parts' gradients, always in the same order; theirs may lie transposed.
void merge_dweight(const PointwiseBackwardParams& p, const PointwiseBackwardPlan& plan, float* dweight) {
  constexpr int64_t kSide = 16;
  const int64_t size = p.in * p.out, grain = std::max<int64_t>((1 << 14) / std::max<int64_t>(p.in * plan.parts, 1), 1);
  torch::stable::parallel_for(0, divide_up(p.out, kSide), divide_up(grain, kSide), [&](int64_t begin, int64_t end) {
    if (!p.transposed()) {
      const int64_t first = begin * kSide * p.in, last = std::min(end * kSide, p.out) * p.in;
      std::fill(dweight + first, dweight + last, 0.0f);
      for (int64_t part = 0; part < plan.parts; ++part) {
        for (int64_t i = first; i < last; ++i) dweight[i] += p.dweight[part * size + i];
      }
      return;
    }
    for (int64_t o = begin * kSide; o < std::min(end * kSide, p.out); o += kSide) {
      const int64_t side = std::min(kSide, p.out - o);
      for (int64_t i = 0; i < p.in; ++i) {
        float sums[kSide] = {};
        const float* from = p.dweight + i * p.out + o;
        for (int64_t part = 0; part < plan.parts; ++part, from += size) {
          for (int64_t k = 0; k < side; ++k) sums[k] += from[k];
        }
        for (int64_t k = 0; k < side; ++k) dweight[(o + k) * p.in + i] = sums[k];
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> pointwise_backward(const TensorList& incoming, const TensorList& source,
                                                      int64_t in_act, const Tensor& weight,
                                                      const OptionalTensor& residual_grad, bool need_dx, bool need_dw) {
  constexpr const char* op = "pointwise_backward";
  const Tensor& x = leading_tensor(Failure{op}, source, "source.x");
  Product from(op, x, "source.x", weight);
  PointwiseBackwardParams p{};
  p.batch = from.batch, p.rows = from.rows, p.in = from.in, p.out = from.out;
  read_record(p.incoming, from, incoming, from.out_shape);
  read_record(p.source, from, source, from.in_shape);
  p.source.act = check_activation(in_act, op, "source.act");
  p.residual = static_cast<const float*>(from.image(residual_grad, "residual_grad", from.in_shape));
  const bool sums = p.source.scale != nullptr;
  EFFNET_CHECK(!sums || (p.source.norm_mean != nullptr && p.source.invstd != nullptr && p.source.shift != nullptr), op,
               "source.norm", "vectors, for the sums that source.affine asks for", "None");

  const PointwiseBackwardPlan plan = plan_pointwise_backward(p);
  const bool writes_dx = need_dx || sums;
  Tensor dx = writes_dx ? new_image(x, from.in_shape) : new_vector({0});
  if (writes_dx) {
    p.dx = dx.mutable_data_ptr<float>();
    p.panels = Panels::of(p.in);
    p.weights = from.pack(weight, p.out, weight.stride(0), p.in, weight.stride(1));
  }
  Tensor partial_sums = new_vector(sums ? Shape{p.batch * plan.bands, 5, p.in} : Shape{0});
  Tensor merged_sums = new_vector(sums ? Shape{5, p.batch, p.in} : Shape{0});
  if (sums) p.sums = partial_sums.mutable_data_ptr<float>();
  Tensor partial_dw = new_vector(need_dw ? Shape{plan.parts, p.in, p.out} : Shape{0});
  Tensor dweight = new_vector(need_dw ? Shape{p.out, p.in} : Shape{0});
  if (need_dw) p.dweight = partial_dw.mutable_data_ptr<float>();
  const auto kernel = EFFNET_SELECT_ISA(pointwise_backward_tasks);
  torch::stable::parallel_for(0, plan.parts, 1, [&](int64_t begin, int64_t end) {
    kernel(p, plan, begin, end, thread_scratch(plan.scratch_floats()));
  });
  if (sums) merge_bands(p.sums, p.batch, plan.bands, 5, p.in, merged_sums.mutable_data_ptr<float>());
  if (need_dw) merge_dweight(p, plan, dweight.mutable_data_ptr<float>());
  return {dx, dweight, merged_sums};
}

}  // namespace
}  // namespace effnet::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CPU, m) {
  m.impl("pointwise_forward", TORCH_BOX(&effnet::cpu::pointwise_forward));
  m.impl("pointwise_backward", TORCH_BOX(&effnet::cpu::pointwise_backward));
}
