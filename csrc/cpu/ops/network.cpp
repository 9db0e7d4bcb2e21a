// The ops of a compiled network: checks and planning.
#include <string>
#include <vector>

#include "cpu/engine/plan.h"
#include "cpu/engine/run.h"
#include "cpu/ops/checks.h"

namespace effnet::cpu {
namespace {

Program check_program(const char* op, const Tensor& program) {
  EFFNET_CHECK(
      program.is_cpu() && program.scalar_type() == ScalarType::Long && program.dim() == 1 && program.is_contiguous(),
      op, "program", "what network_compile made: int64 on the CPU", to_text(program));
  std::string wrong;
  Program checked = from_numbers(static_cast<const int64_t*>(program.const_data_ptr()), program.numel(), &wrong);
  EFFNET_CHECK(wrong.empty(), op, "program", "what network_compile made, in format " + std::to_string(kProgramFormat),
               wrong);
  return checked;
}

NetworkCall describe(int64_t batch, int64_t height, int64_t width) {
  NetworkCall call{};
  call.batch = batch, call.height = height, call.width = width;
  call.threads = static_cast<int64_t>(torch::stable::get_num_threads());
  return call;
}

// [bytes of workspace, steps, sizes of the output...] for x [batch, Cin, height, width] and the threads of now.
std::vector<int64_t> network_plan(const Tensor& program, int64_t batch, int64_t height, int64_t width) {
  constexpr const char* op = "network_plan";
  const Program network = check_program(op, program);
  EFFNET_CHECK(batch > 0 && height > 0 && width > 0, op, "x", "at least one image and one pixel",
               std::to_string(batch) + " of " + std::to_string(height) + " x " + std::to_string(width));
  const NetworkPlan plan = plan_network(network, describe(batch, height, width));
  EFFNET_CHECK(
      plan.too_small == nullptr, op, "x",
      std::string("an image that leaves the ") + (plan.too_small == nullptr ? "" : plan.too_small) + " a pixel",
      std::to_string(height) + " x " + std::to_string(width));
  std::vector<int64_t> result{plan.workspace_bytes, static_cast<int64_t>(plan.steps.size())};
  result.insert(result.end(), plan.out_shape.begin(), plan.out_shape.end());
  return result;
}

void network_run(const Tensor& x, const Tensor& program, const Tensor& weights, Tensor workspace, Tensor out,
                 std::optional<Tensor> times) {
  constexpr const char* op = "network_run";
  const Program network = check_program(op, program);
  EFFNET_CHECK(x.dim() == 4 && x.size(1) == network.stem.in, op, "x",
               "[N, " + std::to_string(network.stem.in) + ", H, W]", to_text(x));
  NetworkCall call = describe(x.size(0), x.size(2), x.size(3));
  call.x_dtype = check_dtype(x, op, "x");
  call.x = x.const_data_ptr();
  for (int i = 0; i < 4; ++i) call.x_strides[i] = x.stride(i);
  EFFNET_CHECK(weights.is_cpu() && weights.is_contiguous() && weights.scalar_type() == ScalarType::Byte, op, "weights",
               "bytes on the CPU", to_text(weights));
  call.weights = static_cast<const char*>(weights.const_data_ptr());
  call.workspace = static_cast<char*>(workspace.mutable_data_ptr());
  call.out = static_cast<float*>(out.mutable_data_ptr());
  const NetworkPlan plan = plan_network(network, call);
  EFFNET_CHECK(plan.too_small == nullptr, op, "x", "a larger image", to_text(x));
  EFFNET_CHECK(workspace.is_cpu() && workspace.is_contiguous() && workspace.scalar_type() == ScalarType::Byte &&
                   workspace.numel() >= plan.workspace_bytes,
               op, "workspace", std::to_string(plan.workspace_bytes) + " bytes on the CPU", to_text(workspace));
  EFFNET_CHECK(weights.numel() >= plan.weight_bytes, op, "weights", std::to_string(plan.weight_bytes) + " bytes",
               weights.numel());
  EFFNET_CHECK(out.is_cpu() && out.is_contiguous() && out.scalar_type() == ScalarType::Float, op, "out",
               "a dense float32 CPU tensor", to_text(out));
  check_shape(out, plan.out_shape, op, "out");
  int64_t* clock = nullptr;
  if (times.has_value()) {
    check_shape(*times, {static_cast<int64_t>(plan.steps.size()) + 1}, op, "times");
    EFFNET_CHECK(times->scalar_type() == ScalarType::Long, op, "times", "int64", "another dtype");
    clock = static_cast<int64_t*>(times->mutable_data_ptr());
  }
  run_plan(plan, call.threads, clock);
}

// Workspaces and weights are read in many short streams; with 4 KB pages the address translation of each costs too.
void prefer_huge_pages_of(Tensor memory) {
  prefer_huge_pages(memory.mutable_data_ptr(), memory.numel() * static_cast<int64_t>(memory.element_size()));
}

}  // namespace
}  // namespace effnet::cpu

STABLE_TORCH_LIBRARY_IMPL(effnet_fast_native, CPU, m) {
  m.impl("network_plan", TORCH_BOX(&effnet::cpu::network_plan));
  m.impl("prefer_huge_pages", TORCH_BOX(&effnet::cpu::prefer_huge_pages_of));
  m.impl("network_run", TORCH_BOX(&effnet::cpu::network_run));
}
