// Training's formulas on small vectors as dispatcher ops: checks and allocation; arithmetic is in
// batch_norm_kernel.cpp and excite_backward_kernel.cpp.
#include <algorithm>
#include <tuple>

#include "cpu/ops/checks.h"
#include "cpu/passes/batch_norm.h"

namespace effnet::cpu {
namespace {

Tensor batch_norm_finalize(const Tensor& stats, const OptionalTensor& weight, const OptionalTensor& bias, double eps) {
  constexpr const char* op = "batch_norm_finalize";
  EFFNET_CHECK(stats.dim() == 3 && stats.size(1) == 3, op, "stats", "shape [P, 3, C]", to_text(stats));
  BatchNormFinalizeParams p{};
  p.parts = stats.size(0), p.channels = stats.size(2), p.eps = eps;
  Vectors vectors;
  p.stats = vectors.pointer(stats, {p.parts, 3, p.channels}, op, "stats");
  p.weight = vectors.pointer(weight, {p.channels}, op, "weight");
  p.bias = vectors.pointer(bias, {p.channels}, op, "bias");
  Tensor out = new_vector({5, p.channels});
  p.out = out.mutable_data_ptr<float>();
  EFFNET_SELECT_ISA(batch_norm_finalize_vectors)(p);
  return out;
}

// `stats` are rows mean, var, invstd, scale, shift and perhaps more.
std::tuple<Tensor, Tensor> batch_norm_backward_finalize(const Tensor& sums, int64_t count, const Tensor& stats,
                                                        bool training) {
  constexpr const char* op = "batch_norm_backward_finalize";
  EFFNET_CHECK(sums.dim() == 3 && sums.size(1) == 2, op, "sums", "shape [P, 2, C]", to_text(sums));
  BatchNormBackwardParams p{};
  p.parts = sums.size(0), p.channels = sums.size(2), p.count = training ? std::max<int64_t>(count, 0) : 0;
  EFFNET_CHECK(stats.dim() == 2 && stats.size(0) >= 5, op, "stats", "shape [5, C]", to_text(stats));
  Vectors vectors;
  p.sums = vectors.pointer(sums, {p.parts, 2, p.channels}, op, "sums");
  const float* rows = vectors.pointer(stats, {stats.size(0), p.channels}, op, "stats");
  p.invstd = rows + 2 * p.channels;
  p.scale = rows + 3 * p.channels;
  Tensor params = new_vector({2, p.channels}), formula = new_vector({2, p.channels});
  p.params = params.mutable_data_ptr<float>();
  p.formula = formula.mutable_data_ptr<float>();
  EFFNET_SELECT_ISA(batch_norm_backward_vectors)(p);
  return {params, formula};
}

Tensor gate_batch_norm_sums(const Tensor& sums, const OptionalTensor& gate, const OptionalTensor& pool_grad) {
  constexpr const char* op = "gate_batch_norm_sums";
  EFFNET_CHECK(sums.dim() == 3 && sums.size(0) == 5, op, "sums", "shape [5, N, C]", to_text(sums));
  GateSumsParams p{};
  p.batch = sums.size(1), p.channels = sums.size(2);
  Vectors vectors;
  p.sums = vectors.pointer(sums, {5, p.batch, p.channels}, op, "sums");
  p.gate = vectors.pointer(gate, {p.batch, p.channels}, op, "gate");
  p.pool_grad = vectors.pointer(pool_grad, {p.batch, p.channels}, op, "pool_grad");
  Tensor out = new_vector({p.batch, 2, p.channels});
  p.out = out.mutable_data_ptr<float>();
  EFFNET_SELECT_ISA(gate_sums_vectors)(p);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> squeeze_excite_backward(
    const Tensor& dgate, const Tensor& pooled, const Tensor& w1_in, const OptionalTensor& b1, const Tensor& w2_in,
    const OptionalTensor& b2, int64_t act, int64_t gate_act, int64_t area) {
  constexpr const char* op = "squeeze_excite_backward";
  EFFNET_CHECK(area == 1, op, "area", "1 (the CPU leaves the division to the caller)", area);
  EFFNET_CHECK(pooled.dim() == 2, op, "pooled", "rank 2 [N, C]", to_text(pooled));
  EFFNET_CHECK(w1_in.dim() == 2, op, "w1", "rank 2 [R, C]", to_text(w1_in));
  ExciteBackwardParams p{};
  p.batch = pooled.size(0), p.channels = pooled.size(1), p.hidden = w1_in.size(0);
  p.act = check_activation(act, op, "act");
  p.gate_act = check_activation(gate_act, op, "gate_act");
  p.dtype = check_dtype(w1_in, op, "w1");
  check_shape(w1_in, {p.hidden, p.channels}, op, "w1");
  check_shape(w2_in, {p.channels, p.hidden}, op, "w2");
  EFFNET_CHECK(check_dtype(w2_in, op, "w2") == p.dtype, op, "w2", "the dtype of w1", "another");
  const Tensor w1 = w1_in.is_contiguous() ? w1_in : torch::stable::contiguous(w1_in);
  const Tensor w2 = w2_in.is_contiguous() ? w2_in : torch::stable::contiguous(w2_in);
  p.w1 = w1.const_data_ptr(), p.w2 = w2.const_data_ptr();
  Vectors vectors;
  p.dgate = vectors.pointer(dgate, {p.batch, p.channels}, op, "dgate");
  p.pooled = vectors.pointer(pooled, {p.batch, p.channels}, op, "pooled");
  p.b1 = vectors.pointer(b1, {p.hidden}, op, "b1");
  p.b2 = vectors.pointer(b2, {p.channels}, op, "b2");
  Tensor middle = new_vector({3, p.batch, p.hidden}), dn2 = new_vector({p.batch, p.channels});
  p.n1 = middle.mutable_data_ptr<float>();
  p.a1 = p.n1 + p.batch * p.hidden;
  p.dn1 = p.a1 + p.batch * p.hidden;
  p.dn2 = dn2.mutable_data_ptr<float>();
  Tensor dpooled = new_vector({p.batch, p.channels});
  Tensor dw1 = new_vector({p.hidden, p.channels}), dw2 = new_vector({p.channels, p.hidden});
  Tensor db1 = new_vector({p.b1 == nullptr ? 0 : p.hidden}), db2 = new_vector({p.b2 == nullptr ? 0 : p.channels});
  p.dpooled = dpooled.mutable_data_ptr<float>();
  p.dw1 = dw1.mutable_data_ptr<float>(), p.dw2 = dw2.mutable_data_ptr<float>();
  if (p.b1 != nullptr) p.db1 = db1.mutable_data_ptr<float>();
  if (p.b2 != nullptr) p.db2 = db2.mutable_data_ptr<float>();
  // Below 64k multiply-adds a second thread costs more than it saves.
  const auto run = [&](ExciteBackward* kernel, int64_t tasks, int64_t work) {
    const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(work, 1));
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  };
  run(EFFNET_SELECT_ISA(excite_backward_images), p.batch, 4 * p.hidden * p.channels);
  run(EFFNET_SELECT_ISA(excite_backward_weights), p.hidden + p.channels, p.batch * std::max(p.hidden, p.channels) / 2);
  return {dpooled, dw1, db1, dw2, db2};
}

}  // namespace
}  // namespace effnet::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CPU, m) {
  m.impl("batch_norm_finalize", TORCH_BOX(&effnet::cpu::batch_norm_finalize));
  m.impl("batch_norm_backward_finalize", TORCH_BOX(&effnet::cpu::batch_norm_backward_finalize));
  m.impl("gate_batch_norm_sums", TORCH_BOX(&effnet::cpu::gate_batch_norm_sums));
  m.impl("squeeze_excite_backward", TORCH_BOX(&effnet::cpu::squeeze_excite_backward));
}
